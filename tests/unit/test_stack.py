"""Does the native stack render, verify and diagnose rightly, before any server runs?"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import config, demo, doctor, jars, lifecycle, ports, process
from stack.java import JavaError, find_java
from stack.services import CASSANDRA, KAFKA, SERVICES, command, environment, services
from stack.settings import PORTS, Settings, StackError, free_ports, load, save_ports
from stack.steps import Steps

ROOT = Path(__file__).resolve().parents[2]
JAR = "spark/a-1.jar"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A stack that does not run, in a folder of its own, on free ports."""
    return Settings(var=tmp_path / "var").with_ports(free_ports(list(PORTS)))


@pytest.fixture
def lib(tmp_path: Path) -> Path:
    """A lib folder with one jar."""
    (tmp_path / "lib" / "spark").mkdir(parents=True)
    (tmp_path / "lib" / JAR).write_bytes(b"content of a jar")
    return tmp_path / "lib"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server of this very process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def lock_of(lib: Path) -> dict[str, str]:
    return {JAR: hashlib.sha256((lib / JAR).read_bytes()).hexdigest()}


def test_hadoop_env_becomes_xml_with_native_addresses_and_folders(settings: Settings) -> None:
    rendered = config.render(settings)
    core, hdfs = (
        {p.findtext("name"): p.findtext("value") for p in ET.fromstring(rendered[f"hadoop/{name}-site.xml"])}
        for name in ("core", "hdfs")
    )
    assert core["fs.defaultFS"] == f"hdfs://localhost:{settings.port('HDFS_PORT')}"
    assert core["hadoop.prometheus.endpoint.enabled"] == "true"
    assert hdfs["dfs.namenode.name.dir"] == (settings.var / "data" / "nn").as_uri()
    assert hdfs["dfs.namenode.rpc-bind-host"] == "127.0.0.1"
    assert hdfs["dfs.replication"] == "1"
    assert hdfs["dfs.datanode.synconclose"] == "true"
    assert not [value for value in (*core.values(), *hdfs.values()) if "0.0.0.0" in str(value)]


def test_a_value_of_hadoop_env_may_hold_equal_signs_and_xml_signs(settings: Settings) -> None:
    text = "# a comment\n\nHDFS-SITE.XML_some.key=a=b<&c\n"
    properties = config.hadoop_properties(text, settings)
    assert properties["hdfs-site.xml"]["some.key"] == "a=b<&c"


@pytest.mark.parametrize("line", ["CORE_CONF_fs_defaultFS=hdfs://x", "YARN-SITE.XML_a=b", "CORE-SITE.XML_a"])
def test_a_line_that_the_image_would_not_understand_is_refused_with_its_number(line: str, settings: Settings) -> None:
    with pytest.raises(StackError, match=r"hadoop\.env line 2"):
        config.hadoop_properties(f"# first\n{line}\n", settings)


@pytest.mark.parametrize(("chosen", "user"), [({}, "hadoop"), ({"HADOOP_USER_NAME": "ingest"}, "ingest")])
def test_spark_keeps_the_user_that_somebody_chose(
    settings: Settings, tmp_path: Path, chosen: dict[str, str], user: str
) -> None:
    """The layers find this file on a host whose containers have a user per layer, too."""
    file = tmp_path / "spark-env.sh"
    file.write_text(config.render(settings)["spark/spark-env.sh"])
    command = ["bash", "-euc", f'. "{file}"; echo "$HADOOP_USER_NAME $SPARK_LOCAL_IP"']
    env = {"PATH": os.environ["PATH"], **chosen}
    assert subprocess.check_output(command, env=env, text=True) == f"{user} 127.0.0.1\n"


def test_kafka_listens_on_loopback_and_never_elects_an_unclean_leader(settings: Settings) -> None:
    rendered = config.render(settings)["kafka/server.properties"].splitlines()
    properties = dict(line.split("=", 1) for line in rendered)
    assert properties["listeners"] == f"PLAINTEXT://127.0.0.1:{settings.port('KAFKA_PORT')}"
    assert properties["advertised.listeners"] == f"PLAINTEXT://localhost:{settings.port('KAFKA_PORT')}"
    assert properties["unclean.leader.election.enable"] == "false"
    assert properties["zookeeper.session.timeout.ms"] == "3000"


def test_kafka_shows_its_numbers_on_loopback(settings: Settings) -> None:
    page = f"127.0.0.1:{settings.port('KAFKA_METRICS_PORT')}"
    agent = next(word for word in command(KAFKA, settings) if word.startswith("-javaagent:"))
    assert agent.endswith(f"={page}:{settings.root / 'monitoring' / 'kafka-jmx.yml'}")
    assert Path(agent.removeprefix("-javaagent:").partition("=")[0]).is_file()


def test_spark_defaults_name_every_jar_with_its_absolute_path(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "lib" / "spark").mkdir(parents=True)
    wanted = [tmp_path / "lib" / "spark" / name for name in ("a.jar", "b.jar")]
    for jar in wanted:
        jar.touch()
    here = Settings(var=settings.var, root=tmp_path, ports=settings.ports)
    template = (settings.root / "conf" / "spark-defaults.conf").read_text()
    lines = [line.split(maxsplit=1) for line in config.spark_defaults(template, here).splitlines()]
    pairs = {line[0]: line[1] for line in lines if line and line[0].startswith("spark.")}
    assert pairs["spark.jars"] == f"{wanted[0]},{wanted[1]}"
    assert pairs["spark.sql.session.timeZone"] == "UTC"
    assert f"-Djava.io.tmpdir={settings.var}/tmp/spark" in pairs["spark.driver.extraJavaOptions"]
    assert len([line for line in lines if line and line[0] == "spark.jars"]) == 1


def test_clients_get_absolute_paths_and_addresses_of_this_stack(settings: Settings) -> None:
    env = environment(settings)
    assert env["KAFKA_BOOTSTRAP_SERVERS"] == f"localhost:{settings.port('KAFKA_PORT')}"
    assert env["SPARK_MASTER"] == f"spark://localhost:{settings.port('SPARK_MASTER_PORT')}"
    assert env["HADOOP_USER_NAME"] == "hadoop"
    assert all(Path(env[name]).is_absolute() for name in ("SPARK_CONF_DIR", "SPARK_LOCAL_DIRS", "PYSPARK_PYTHON"))


def test_a_jar_with_a_flipped_byte_is_refused_by_name(lib: Path) -> None:
    lock = lock_of(lib)
    jars.verify(lib, lock)
    content = bytearray((lib / JAR).read_bytes())
    content[3] ^= 1
    (lib / JAR).write_bytes(content)
    with pytest.raises(jars.JarError, match=r"a-1\.jar: sha-256 is .* python -m stack jars"):
        jars.verify(lib, lock)


def test_an_unknown_jar_is_refused_by_name(lib: Path) -> None:
    lock = lock_of(lib)
    (lib / "spark" / "stranger-6.jar").write_bytes(b"")
    with pytest.raises(jars.JarError, match=r"stranger-6\.jar: not in stack/jars.lock"):
        jars.verify(lib, lock)


def test_a_verified_jar_is_not_read_again(lib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = lock_of(lib)
    jars.verify(lib, lock)
    monkeypatch.setattr(jars, "sha256", lambda path: pytest.fail(f"read {path} again"))
    jars.verify(lib, lock)


def test_one_version_of_the_token_provider_is_enough(lib: Path) -> None:
    both = {f"{jars.TOKEN_PROVIDER}-{version}.jar": "0" for version in ("4.0.0", "4.2.0")}
    assert jars.token_provider_versions(both) == ["4.2.0", "4.0.0"]
    assert jars.missing(lib, both) == list(both)
    (lib / f"{jars.TOKEN_PROVIDER}-4.0.0.jar").touch()
    assert jars.missing(lib, both) == []


def test_the_lock_names_what_ivy_is_told_to_fetch() -> None:
    wanted = ET.parse(jars.ROOT / "stack" / "ivy.xml").findall("dependencies/dependency")
    locked = jars.read_lock()
    assert all(len(digest) == 64 for digest in locked.values())
    for dependency in wanted:
        revision = dependency.attrib["rev"].replace("${token.provider.version}", "")
        assert [name for name in locked if f"/{dependency.attrib['name']}-{revision}" in name]


def test_doctor_names_the_process_that_holds_a_port(settings: Settings, listener: socket.socket) -> None:
    taken = settings.with_ports({"KAFKA_PORT": listener.getsockname()[1]})
    (finding,) = doctor.check_ports(taken)
    assert finding.what.startswith("kafka:")
    assert f"held by pid {os.getpid()}: " in finding.evidence
    assert not list(doctor.check_ports(settings))


def test_doctor_finds_blocks_of_another_namenode(settings: Settings) -> None:
    for folder, cluster in (("nn", "CID-one"), ("dn", "CID-two")):
        (settings.data / folder / "current").mkdir(parents=True)
        (settings.data / folder / "current" / "VERSION").write_text(f"namespaceID=7\nclusterID={cluster}\n")
    (finding,) = doctor.check_cluster_ids(settings)
    assert "CID-one" in finding.evidence and "CID-two" in finding.evidence
    assert "reset" in finding.fix
    (settings.data / "dn" / "current" / "VERSION").write_text("clusterID=CID-one\n")
    assert not list(doctor.check_cluster_ids(settings))


def test_doctor_finds_a_kafka_log_whose_zookeeper_was_wiped(settings: Settings) -> None:
    (settings.data / "kafka").mkdir(parents=True)
    (settings.data / "kafka" / "meta.properties").write_text("version=0\nbroker.id=1\ncluster.id=abc\n")
    (finding,) = doctor.check_broker_id(settings)
    assert finding.what.startswith("kafka: ZooKeeper's folder is empty")


def test_doctor_finds_a_missing_jar_and_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    here = Settings(var=settings.var, root=tmp_path, ports=settings.ports)
    (finding,) = doctor.check_jars(here)
    assert finding.fix == "python -m stack jars"
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_an_old_python_and_too_little_memory(settings: Settings, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8388608 kB\nMemAvailable: 1048576 kB\n")
    (memory,) = doctor.check_memory(settings, meminfo)
    (python,) = doctor.check_python(settings, (3, 9, 2))
    assert "1.0 GB" in memory.evidence and "3.9.2" in python.evidence


def test_an_old_java_is_named_with_the_way_it_was_found(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    java = tmp_path / "bin" / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    with pytest.raises(JavaError, match=rf"11\.0\.2.*JAVA_HOME={tmp_path}.*17"):
        find_java({"JAVA_HOME": str(tmp_path)})
    with pytest.raises(JavaError, match="JAVA_HOME=/nowhere"):
        find_java({"JAVA_HOME": "/nowhere"})


def test_up_refuses_a_taken_port_and_names_its_holder(settings: Settings, listener: socket.socket) -> None:
    taken = settings.with_ports({"HDFS_PORT": listener.getsockname()[1]})
    with pytest.raises(StackError, match=rf"HDFS_PORT: port .* is taken by pid {os.getpid()} .*--free-ports"):
        lifecycle._choose_ports(taken, free=False)
    chosen = lifecycle._choose_ports(taken, free=True)
    assert chosen.port("HDFS_PORT") != taken.port("HDFS_PORT")


def test_saved_ports_win_and_two_services_never_share_one(tmp_path: Path) -> None:
    env = {"HIGHWATER_VAR": str(tmp_path), "KAFKA_PORT": "19092"}
    assert load(env).port("KAFKA_PORT") == 19092
    save_ports(load(env).with_ports({"KAFKA_PORT": 20001}), free=True)
    assert load(env).port("KAFKA_PORT") == 20001
    with pytest.raises(StackError, match="HDFS_PORT and NAMENODE_UI_PORT: both are 9870"):
        load(env | {"HDFS_PORT": "9870"}, saved=False)
    with pytest.raises(StackError, match="KAFKA_PORT: '70000' is not a port"):
        load(env | {"KAFKA_PORT": "70000"}, saved=False)


def test_the_demo_reads_domain_and_ports_of_its_layers_from_the_file_of_settings(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("DOMAIN=cards\nSERVING_PORT=8100\n")
    found = load({"HIGHWATER_VAR": str(tmp_path)}, env_file=file)
    assert (found.domain, found.layer_ports["SERVING_PORT"]) == ("cards", 8100)
    assert load({"HIGHWATER_VAR": str(tmp_path), "DOMAIN": "iot"}, env_file=file).domain == "iot"


def test_cassandra_belongs_to_a_stack_only_where_it_is_asked_for(tmp_path: Path) -> None:
    env = {"HIGHWATER_VAR": str(tmp_path)}
    assert not load(env).cassandra and CASSANDRA not in services(load(env))
    assert load(env | {"STACK_CASSANDRA": "true"}).cassandra
    with pytest.raises(StackError, match="STACK_CASSANDRA: 'maybe' is not a switch"):
        load(env | {"STACK_CASSANDRA": "maybe"})
    save_ports(load(env).with_cassandra(), free=True)
    assert services(load(env)) == (*SERVICES, CASSANDRA)
    assert environment(load(env))["CASSANDRA_CONTACT_POINTS"] == "localhost:9042"


# Runs a program as if Cassandra's driver were not there.
WITHOUT_DRIVER = """
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "cassandra" else find(name, *rest)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0].removesuffix(".py"), run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "command", [["stack", "up", "--with", "cassandra"], ["serving_layer.py"], ["engine.materialise"]], ids=" ".join
)
def test_whoever_wants_cassandra_without_its_driver_is_told_the_command(tmp_path: Path, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DRIVER, *command],
        cwd=ROOT,
        env={**os.environ, "HIGHWATER_VAR": str(tmp_path), "SERVING_STORE": "cassandra"},
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert told.endswith("run: python -m pip install --require-hashes -r requirements-cassandra.lock")
    assert not list(tmp_path.iterdir())


def test_doctor_names_the_missing_driver_only_to_those_who_have_cassandra(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(doctor.check_driver(settings)) == []
    (finding,) = doctor.check_driver(settings.with_cassandra())
    assert finding.fix == "python -m pip install --require-hashes -r requirements-cassandra.lock"


def test_cassandra_listens_on_loopback_and_answers_a_write_only_when_it_is_on_disk(settings: Settings) -> None:
    said = json.loads(config.render(settings)["cassandra/cassandra.yaml"])
    assert (said["listen_address"], said["rpc_address"]) == ("127.0.0.1", "127.0.0.1")
    assert said["native_transport_port"] == settings.port("CASSANDRA_PORT")
    assert said["commitlog_sync"] == "batch"
    folders = [value for name, value in said.items() if name.endswith(("_directory", "_directories"))]
    assert all(str(settings.var) in str(folder) for folder in folders) and len(folders) == 4


def test_jars_of_cassandra_are_missed_only_where_they_are_asked_for(lib: Path) -> None:
    lock = lock_of(lib) | {"cassandra/c-1.jar": "0"}
    assert jars.missing(lib, jars.wanted(lock, jars.CONFS)) == []
    assert jars.missing(lib, jars.wanted(lock, (*jars.CONFS, *jars.OPTIONAL_CONFS))) == ["cassandra/c-1.jar"]
    (lib / "cassandra").mkdir()
    (lib / "cassandra" / "c-1.jar").write_bytes(b"another jar")
    with pytest.raises(jars.JarError, match=r"c-1\.jar: sha-256 is"):
        jars.verify(lib, lock)


def test_free_ports_differ_and_lie_below_those_of_outgoing_connections() -> None:
    chosen = free_ports(list(PORTS))
    assert len(set(chosen.values())) == len(PORTS)
    assert max(chosen.values()) < 32768
    assert all(ports.is_free(port) for port in chosen.values())


def test_a_recycled_pid_is_not_ours_and_is_never_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        noted = tmp_path / "kafka.json"
        noted.write_text(json.dumps({"pid": stranger.pid, "started": "1"}))
        assert process.running_pid(noted) is None
        assert process.stop(noted, patience=1) == "was not running"
        assert stranger.poll() is None
        stranger.kill()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    noted, log = tmp_path / "x.json", tmp_path / "x.log"
    process.start([sys.executable, "-c", stubborn], pid_file=noted, log=log, folder=tmp_path, env=os.environ)
    while "deaf" not in process.tail(log, 1):
        assert process.running_pid(noted)
    assert process.stop(noted, patience=0.2).endswith("by SIGKILL")
    assert process.running_pid(noted) is None


def test_reset_asks_before_it_wipes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    env = {**os.environ, "HIGHWATER_VAR": str(tmp_path)}
    command = [sys.executable, "-m", "stack", "reset"]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert (tmp_path / "data").is_dir()


def test_the_demo_stops_at_an_exit_code_unless_it_is_one_to_go_on_with(settings: Settings) -> None:
    wrong = ("producer.py", "--rate", "fast")  # exit 2
    out = io.StringIO()
    assert demo.script(settings, Steps(out), *wrong, going_on=2) == 2
    assert "--rate" in out.getvalue(), "what it said stands among the steps"
    with pytest.raises(StackError, match=r"producer.py --rate fast: exit 2"):
        demo.script(settings, Steps(out), *wrong, going_on=1)
