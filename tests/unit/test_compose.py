"""docker-compose.yml without an engine: Compose's own reading of it, and what that does not check."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from domains import DOMAINS
from engine import prepare
from engine.runtime.settings import SETTINGS
from stack.config import container_spark_defaults

ROOT = Path(__file__).resolve().parents[2]
READER = ROOT / "tests/compose/config"
LIMIT_MB = 6 * 1024
PROFILES = {"monitoring", "cassandra", "notebook"}
ONE_SHOT = {"create-topics", "hdfs-setup"}
HEAPS = {"SPARK_DRIVER_MEMORY", "SPARK_DAEMON_MEMORY"}  # what the worker offers to executors is a number in its books
OF_DOMAINS = {name for domain in DOMAINS for name in domain.settings}
UNITS = {"k": 1 / 1024, "m": 1, "g": 1024}


def reader() -> Path:
    """Compose's own library as a program, built once."""
    binary = ROOT / ".cache/compose-config"
    if not binary.exists() or binary.stat().st_mtime < (READER / "main.go").stat().st_mtime:
        if shutil.which("go") is None:
            assert "HIGHWATER_ALL_TOOLS" not in os.environ, "Go is absent"
            pytest.skip("SKIPPED: no Go, docker-compose.yml was not read")
        binary.parent.mkdir(exist_ok=True)
        subprocess.run(["go", "build", "-o", str(binary), "."], cwd=READER, check=True, timeout=300)
    return binary


def read(file: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment}
    return subprocess.run([reader(), str(file)], env=env, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    done = read(ROOT / "docker-compose.yml")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def services(project: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(project["services"])


def megabytes(limit: str | int) -> float:
    """Compose writes bytes as text."""
    return int(limit) / 1024 / 1024


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("      zookeeper: {condition: service_healthy}", "      zookeper: {condition: service_healthy}"),
        ("    mem_limit: 464m", "    mem_limit: much"),
        ("      - kafka-data:/var/lib/kafka/data", "      - kafka-dta:/var/lib/kafka/data"),
        ("    env_file: [conf/kafka.env]", "    env_files: [conf/kafka.env]"),
    ],
)
def test_compose_refuses_a_mistake(tmp_path: Path, line: str, broken: str) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert line in text
    for name in ("conf", "hadoop.env"):
        (tmp_path / name).symlink_to(ROOT / name)
    file = tmp_path / "docker-compose.yml"
    file.write_text(text.replace(line, broken, 1), encoding="utf-8")
    assert read(file).returncode == 1


def test_the_services_are_those_that_the_readme_names(services: dict[str, dict[str, Any]]) -> None:
    core = {name for name, service in services.items() if not service.get("profiles")}
    assert core == ONE_SHOT | {
        *("zookeeper", "kafka", "namenode", "datanode", "spark-master", "spark-worker"),
        *("producer", "ingest", "stream", "batch", "serving"),
    }
    assert {profile for service in services.values() for profile in service.get("profiles", ())} <= PROFILES


def test_who_is_waited_for_can_tell_that_it_is_ready(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}, which has no health check"
            elif how["condition"] == "service_completed_successfully":
                assert services[other]["restart"].startswith("on-failure"), other
            else:
                pytest.fail(f"{name} does not wait until {other} is ready")


def test_the_datanode_does_not_wait_for_a_namenode_that_waits_for_its_blocks(
    services: dict[str, dict[str, Any]],
) -> None:
    """A NameNode with data is healthy when it has left safe mode; without this a second `up` never ends."""
    assert "depends_on" not in services["datanode"]


def test_a_health_check_asks_a_question(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        if name not in ONE_SHOT and not service.get("profiles"):
            assert service["healthcheck"]["test"][0] == "CMD", name
            assert "health.sh" in " ".join(service["healthcheck"]["test"]), name


def test_ports_are_published_once_and_on_loopback_only(services: dict[str, dict[str, Any]]) -> None:
    ports = [(port["host_ip"], port["published"], name) for name, s in services.items() for port in s.get("ports", ())]
    assert {address for address, _, _ in ports} == {"127.0.0.1"}
    published = [number for _, number, _ in ports]
    assert len(published) == len(set(published))
    assert {"8000", "8082", "8080", "8081", "9870", "9092", "2181", "9000", "9866", "9864"} <= set(published)


def test_nothing_has_a_fixed_name_or_a_floating_tag(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert "container_name" not in service, name
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"v?\d", tag) and tag != "latest", service["image"]
        assert not service.get("privileged") and service.get("network_mode") != "host", name


def test_the_example_file_names_everything_that_may_be_set() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    example = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    may_be_set = re.findall(r"\$\{(\w+):-([^}]*)\}", text)
    assert len(may_be_set) > 20
    settings = {setting.name for setting in SETTINGS}  # their own test compares the defaults
    assert [(n, d) for n, d in may_be_set if n not in settings and f"#{n}={d}" not in example] == []


def test_an_image_is_named_in_one_place() -> None:
    named = re.findall(
        r"^ +image: (\S*\$\{\w+:-[^}]+\})$", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"), re.M
    )
    assert len(named) == len(set(named)) >= 4


def test_every_service_is_limited_and_restarted(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert megabytes(service["mem_limit"]) > 0, name
        assert service["restart"] in ("unless-stopped", "on-failure:5"), name
        assert service["logging"]["options"]["max-size"], name


def test_a_layer_that_starts_spark_has_a_supervisor_with_pauses_of_its_own(services: dict[str, dict[str, Any]]) -> None:
    """Docker's begin anew after ten seconds, which is how long Spark takes to start: a fault would be a hot loop."""
    words = {name: " ".join(service.get("entrypoint") or ()) for name, service in services.items()}
    assert {name for name, line in words.items() if "spark-submit" in line} == {"ingest", "stream", "batch"}
    for name in ("ingest", "stream", "batch"):
        expected = f"tini -- python -m stack.supervise --fault-retry 300 spark-submit {name}_layer.py"
        assert words[name] == expected, name
    spoken = json.loads(read(ROOT / "docker-compose.yml", FAULT_RETRY_SECONDS="60").stdout)["services"]
    assert "60" in spoken["ingest"]["entrypoint"]


def test_the_stack_fits_into_six_gigabytes(services: dict[str, dict[str, Any]]) -> None:
    running = {n: megabytes(s["mem_limit"]) for n, s in services.items() if not s.get("profiles") and n not in ONE_SHOT}
    assert sum(running.values()) < LIMIT_MB, running


def test_a_heap_leaves_room_below_its_limit(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        environment = service.get("environment", {})
        text = " ".join(str(v) for k, v in environment.items() if k.endswith("_OPTS") or k in HEAPS)
        for number, unit in re.findall(r"(?:-Xmx|^|\s)(\d+)([mg])\b", text):
            assert int(number) * UNITS[unit] <= megabytes(service["mem_limit"]), (name, number, unit)


def test_layers_are_users_of_their_own_on_hdfs(services: dict[str, dict[str, Any]]) -> None:
    users = {name: service.get("environment", {}).get("HADOOP_USER_NAME") for name, service in services.items()}
    assert (users["ingest"], users["stream"], users["batch"], users["serving"]) == (
        "ingest",
        "stream",
        "batch",
        "serve",
    )
    assert [name for name, user in users.items() if user == prepare.SUPERUSER] == ["hdfs-setup"]
    owners = {folder.owner for folder in prepare.FOLDERS}
    assert owners == {prepare.SUPERUSER, "ingest", "stream", "batch"}


def test_names_of_the_environment_are_settings(services: dict[str, dict[str, Any]]) -> None:
    known = {setting.name for setting in SETTINGS} | OF_DOMAINS
    sparks = {"SPARK_DRIVER_MEMORY", "SPARK_EXECUTOR_MEMORY"}
    for name in ("producer", "ingest", "stream", "batch", "serving", "create-topics", "hdfs-setup"):
        assert set(services[name].get("environment", {})) <= known | sparks, name


def test_mounted_files_exist(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists(), (name, volume["source"])
                assert volume.get("read_only") or name == "notebook", (name, volume["source"])


def test_a_setting_of_the_shell_reaches_the_layers() -> None:
    done = read(ROOT / "docker-compose.yml", MSGS_PER_SEC="77", DOMAIN="iot", KAFKA_PORT="19092")
    services = json.loads(done.stdout)["services"]
    assert services["producer"]["environment"]["MSGS_PER_SEC"] == "77"
    assert {services[n]["environment"]["DOMAIN"] for n in ("producer", "ingest", "stream", "batch", "serving")} == {
        "iot"
    }
    assert "localhost:19092" in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_every_setting_may_stand_in_the_shell() -> None:
    """All but those that say where things are between containers; the batch interval is a word of the command."""
    inside = {"KAFKA_BOOTSTRAP_SERVERS", "HDFS_URL", "SPARK_MASTER", "HADOOP_USER_NAME", "CASSANDRA_CONTACT_POINTS"}
    inside |= {name for name in (setting.name for setting in SETTINGS) if name.endswith(("_PORT", "_HOST"))}
    wanted = {setting.name for setting in SETTINGS} - inside - {"BATCH_INTERVAL"} | OF_DOMAINS
    services = json.loads(read(ROOT / "docker-compose.yml", **dict.fromkeys(wanted, "7")).stdout)["services"]
    reached = {name for s in services.values() for name, value in s.get("environment", {}).items() if value == "7"}
    assert wanted - reached == set()


def test_a_port_moves_on_the_host_only() -> None:
    moved = {"INGEST_METRICS_PORT": "9983", "STREAM_METRICS_PORT": "9984", "BATCH_METRICS_PORT": "9985"}
    services = json.loads(read(ROOT / "docker-compose.yml", **moved, DATANODE_PORT="19866").stdout)["services"]
    for layer, port in (("ingest", "8083"), ("stream", "8084"), ("batch", "8085")):
        name = f"{layer.upper()}_METRICS_PORT"
        assert services[layer]["environment"][name] == port
        assert (moved[name], int(port)) in {(p["published"], p["target"]) for p in services[layer]["ports"]}
    # Except where a server tells its clients its own port.
    datanode = services["datanode"]
    assert ("19866", 19866) in {(p["published"], p["target"]) for p in datanode["ports"]}
    assert datanode["environment"]["HDFS-SITE.XML_dfs.datanode.address"] == "0.0.0.0:19866"


def test_only_hadoop_may_gain_rights(services: dict[str, dict[str, Any]]) -> None:
    """Its image prepares its volume by sudo."""
    free = {name for name, s in services.items() if s.get("cap_drop") != ["ALL"] or not s.get("security_opt")}
    assert free == {"namenode", "datanode"}


def test_spark_in_the_image_differs_from_the_template_only_where_it_must() -> None:
    template = (ROOT / "conf/spark-defaults.conf").read_text(encoding="utf-8")
    made = container_spark_defaults(template, ROOT / "lib")
    before, after = ({line for line in text.splitlines() if line[:1] not in ("#", "")} for text in (template, made))
    keys = {line.split()[0] for line in before ^ after}
    assert keys == {
        *("spark.jars", "spark.master", "spark.hadoop.fs.defaultFS"),
        *("spark.driver.host", "spark.driver.bindAddress", "spark.driver.memory", "spark.executor.memory"),
        "spark.executor.extraJavaOptions",
    }


def test_hadolint_finds_nothing() -> None:
    files = [ROOT / "Dockerfile", *sorted((ROOT / "tests/compose/images").glob("*/Dockerfile"))]
    hadolint = Path(os.sys.executable).parent / "hadolint"  # type: ignore[attr-defined]
    # The stand-ins are never published.
    for file, ignored in zip(files, [(), *[("--ignore", "DL3008")] * (len(files) - 1)], strict=True):
        done = subprocess.run(
            [hadolint, *ignored, "--failure-threshold", "warning", file], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_the_image_holds_what_the_layers_import() -> None:
    """What .dockerignore lets in is what the Dockerfile copies, and all packages of the layers are among it."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copies = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M)
    copied = {source.partition("/")[0] for sources in copies for source in sources.split()}
    assert let_in == copied
    assert {"engine", "domains", "web", "conf", "stack", "*.py"} <= copied
    opened = re.search(r"chmod -R a\+rX (.*) \\", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert opened, "a checkout made under umask 027 makes an image that its user cannot read"
    code = {source for source in copied if not source.endswith(".lock")}
    assert {source.removeprefix("./") for source in opened[1].split()} == code
