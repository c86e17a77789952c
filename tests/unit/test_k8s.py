"""Would a cluster take these manifests, and would the pods find what they ask for?

Rendered as they would be applied, judged without a cluster: by Kubernetes' own schemas, and by what the schemas cannot
know.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from engine.runtime.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("dev", "prod")
EACH = pytest.mark.parametrize("overlay", OVERLAYS)
OLDEST, NEWEST = "1.31", "1.37"  # StatefulSets may begin at ordinal 1 since 1.31
NO_TOOL = 3
_SCHEMA = functools.cache(kubernetes_validate.utils.schema_contents)
Object = dict[str, Any]


@functools.cache
def rendered(overlay: str) -> tuple[Object, ...]:
    """Every object of an overlay."""
    done = subprocess.run(
        [sys.executable, "k8s/render.py", overlay], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode == NO_TOOL:
        assert "HIGHWATER_ALL_TOOLS" not in os.environ, done.stderr
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> list[Object]:
    return [each for each in rendered(overlay) if each["kind"] in kinds]


def named(overlay: str, kind: str, name: str) -> Object:
    """The object of this name; a ConfigMap's has a hash behind it."""
    found = [o for o in of_kind(overlay, kind) if re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", o["metadata"]["name"])]
    assert len(found) == 1, f"{overlay}: {len(found)} of {kind} {name}"
    return found[0]


@dataclass(frozen=True)
class Pod:
    """A pod as it will be: whose, its labels, its spec, how many."""

    name: str
    kind: str
    labels: dict[str, str]
    spec: Object
    replicas: int = 1

    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def ports(self) -> dict[str, int]:
        return {p["name"]: p["containerPort"] for c in self.spec["containers"] for p in c.get("ports", [])}


@functools.cache
def pods(overlay: str) -> tuple[Pod, ...]:
    found = []
    for each in of_kind(overlay, "Deployment", "StatefulSet", "Job", "CronJob"):
        spec = each["spec"]["jobTemplate"]["spec"] if each["kind"] == "CronJob" else each["spec"]
        template = spec["template"]
        labels = template["metadata"]["labels"]
        found.append(Pod(each["metadata"]["name"], each["kind"], labels, template["spec"], spec.get("replicas", 1)))
    return tuple(found)


def pod(overlay: str, name: str) -> Pod:
    return next(each for each in pods(overlay) if each.name == name)


def executor() -> Pod:
    """The pod that Spark makes from its template; image and resources come from Spark's settings."""
    template = yaml.safe_load(named("prod", "ConfigMap", "spark")["data"]["executor.yaml"])
    return Pod("executor", "Pod", template["metadata"]["labels"], template["spec"])


def with_executors(overlay: str) -> list[Pod]:
    return [*pods(overlay), *([executor()] if overlay == "prod" else [])]


def each_container(overlay: str) -> Iterator[tuple[str, Object]]:
    for one in with_executors(overlay):
        for container in one.containers():
            yield f"{overlay}: {one.name}/{container['name']}", container


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    wanted = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    expressions = selector.get("matchExpressions", [])
    assert all(e["operator"] == "Exists" for e in expressions), "this test knows no other operator"
    return wanted and all(e["key"] in labels for e in expressions)


@pytest.fixture(autouse=True)
def schemas_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", _SCHEMA)  # else megabytes per object


# Schemas --------------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_fits_the_schema_of_its_kind_and_has_no_key_that_is_unknown_there(
    overlay: str, version: str
) -> None:
    for each in rendered(overlay):
        kubernetes_validate.validate(each, version, strict=True)


def test_the_template_of_executors_fits_the_schema_of_a_pod() -> None:
    template = yaml.safe_load(named("prod", "ConfigMap", "spark")["data"]["executor.yaml"])
    kubernetes_validate.validate(template, NEWEST, strict=True)


def test_a_misspelt_key_is_found() -> None:
    broken = yaml.safe_load(yaml.safe_dump(named("dev", "StatefulSet", "kafka")))
    broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


# Pods -----------------------------------------------------------------------------------------------------------------


@EACH
def test_every_container_says_what_it_needs_and_what_it_may_take(overlay: str) -> None:
    for where, container in each_container(overlay):
        if where == "prod: executor/spark":
            continue  # Spark's settings say it, see below
        resources = container["resources"]
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= resources[kind].keys(), f"{where} has no {kind}"


@EACH
def test_every_pod_is_restricted(overlay: str) -> None:
    for one in with_executors(overlay):
        security = one.spec["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] > 0, one.name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, one.name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & one.spec.keys(), one.name
        assert all(volume.keys() <= {"name", "configMap", "emptyDir"} for volume in one.spec["volumes"]), one.name
    for where, container in each_container(overlay):
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}, where
        assert security["allowPrivilegeEscalation"] is False, where
        assert security["readOnlyRootFilesystem"] is True, where
    labels = named(overlay, "Namespace", "highwater")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@EACH
def test_no_pod_gets_service_addresses_as_environment(overlay: str) -> None:
    """A Service named kafka would set KAFKA_PORT=tcp://…, which the image refuses and our own settings misread."""
    assert {one.name: one.spec["enableServiceLinks"] for one in with_executors(overlay)} == {
        one.name: False for one in with_executors(overlay)
    }


@EACH
def test_only_drivers_on_kubernetes_get_a_token(overlay: str) -> None:
    with_token = {one.name for one in with_executors(overlay) if one.spec["automountServiceAccountToken"]}
    assert with_token == ({"ingest", "stream", "batch"} if overlay == "prod" else set())


@EACH
def test_whatever_serves_is_asked_real_questions(overlay: str) -> None:
    for one in pods(overlay):
        if one.kind not in ("Deployment", "StatefulSet"):
            continue
        for container in one.spec["containers"]:
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert probe in container, f"{overlay}: {one.name} has no {probe}"
            for probe in ("startupProbe", "readinessProbe"):
                assert "tcpSocket" not in container[probe], f"{overlay}: {one.name}: an open port is no answer"
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = container[probe].get("httpGet", container[probe].get("tcpSocket", {})).get("port")
                assert port is None or port in one.ports(), f"{overlay}: {one.name}: no port {port}"


@EACH
def test_questions_of_the_shared_script_are_ones_that_it_knows(overlay: str) -> None:
    script = (ROOT / "conf" / "health.sh").read_text()
    asked = set()
    for where, container in each_container(overlay):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = container.get(probe, {}).get("exec", {}).get("command")
            if command:
                assert command[:1] == ["bash"] and command[1].endswith("/health.sh"), where
                assert re.search(rf"^{command[2]}\)", script, re.M), f"{where}: health.sh knows no {command[2]}"
                asked.add(command[2])
    assert asked >= {"zookeeper", "kafka", "namenode", "datanode"}


@EACH
def test_no_image_is_latest(overlay: str) -> None:
    for where, container in each_container(overlay):
        if where == "prod: executor/spark":
            continue
        name, _, tag = container["image"].rpartition(":")
        assert name and tag != "latest", f"{where}: {container['image']} has no tag of its own"


def test_images_are_those_of_compose() -> None:
    compose = ROOT / "docker-compose.yml"
    if not compose.exists():
        pytest.skip("no docker-compose.yml here")
    text = compose.read_text() + (ROOT / ".env.example").read_text()
    found = {f"{name}:{tag}" for name, tag in re.findall(r"([\w/.-]+):\$\{\w+:-([\w.-]+)\}", text)}
    found |= set(re.findall(r"image: (?:\$\{\w+:-)?([\w/.-]+:[\w.-]+)\}?", text))
    for overlay in OVERLAYS:
        ours = {c["image"] for one in pods(overlay) for c in one.containers()}
        assert ours <= found, f"{overlay}: not in docker-compose.yml: {ours - found}"


@EACH
def test_every_folder_that_is_mounted_is_a_volume_and_mounted_once(overlay: str) -> None:
    for one in with_executors(overlay):
        claims = [t["metadata"]["name"] for t in _templates(overlay, one)]
        volumes = [v["name"] for v in one.spec["volumes"]] + claims
        assert len(volumes) == len(set(volumes)), one.name
        for container in one.containers():
            mounts = container.get("volumeMounts", [])
            assert {m["name"] for m in mounts} <= set(volumes), f"{overlay}: {one.name}"
            paths = [m["mountPath"] for m in mounts]
            assert len(paths) == len(set(paths)), f"{overlay}: {one.name}: {paths}"


def _templates(overlay: str, one: Pod) -> list[Object]:
    return named(overlay, "StatefulSet", one.name)["spec"]["volumeClaimTemplates"] if one.kind == "StatefulSet" else []


@EACH
def test_data_lies_on_volumes_that_outlive_the_pod(overlay: str) -> None:
    paths = {
        "zookeeper": "/var/lib/zookeeper/data",
        "kafka": "/var/lib/kafka/data",
        "namenode": "/data",
        "datanode": "/data",
    }
    for name, path in paths.items():
        one = pod(overlay, name)
        claims = {t["metadata"]["name"] for t in _templates(overlay, one)}
        assert {m["name"] for m in one.spec["containers"][0]["volumeMounts"] if m["mountPath"] == path} <= claims
        assert path in {m["mountPath"] for m in one.spec["containers"][0]["volumeMounts"] if m["name"] in claims}, name
    hadoop = named(overlay, "ConfigMap", "hadoop")["data"]
    assert hadoop["HDFS-SITE.XML_dfs.namenode.name.dir"].startswith("file:///data/")
    assert hadoop["HDFS-SITE.XML_dfs.datanode.data.dir"].startswith("file:///data/")
    # not the volume's own folder: lost+found in it stops Kafka
    assert _env(pod(overlay, "kafka").spec["containers"][0])["KAFKA_LOG_DIRS"].startswith("/var/lib/kafka/data/")


# References -----------------------------------------------------------------------------------------------------------


@EACH
def test_everything_that_is_referred_to_exists(overlay: str) -> None:
    maps = {o["metadata"]["name"] for o in of_kind(overlay, "ConfigMap")}
    accounts = {o["metadata"]["name"] for o in of_kind(overlay, "ServiceAccount")} | {"default"}
    used = set()
    for one in with_executors(overlay):
        used |= {v["configMap"]["name"] for v in one.spec["volumes"] if "configMap" in v}
        for container in one.containers():
            used |= {source["configMapRef"]["name"] for source in container.get("envFrom", [])}
            assert all("secretRef" not in source for source in container.get("envFrom", []))
        assert one.spec.get("serviceAccountName", "default") in accounts, one.name
    assert used == maps, f"{overlay}: missing {used - maps}, unused {maps - used}"
    for binding in of_kind(overlay, "RoleBinding"):
        assert binding["roleRef"]["name"] in {o["metadata"]["name"] for o in of_kind(overlay, "Role")}
        assert {s["name"] for s in binding["subjects"]} <= accounts
    assert all(o["metadata"].get("namespace") == "highwater" for o in rendered(overlay) if o["kind"] != "Namespace")


@EACH
def test_every_service_leads_to_pods_and_to_ports_that_they_have(overlay: str) -> None:
    for service in of_kind(overlay, "Service"):
        name = service["metadata"]["name"]
        found = [one for one in pods(overlay) if matches({"matchLabels": service["spec"]["selector"]}, one.labels)]
        assert len(found) == 1, f"{overlay}: service {name} leads to {[one.name for one in found]}"
        for port in service["spec"]["ports"]:
            assert found[0].ports().get(port["targetPort"]) == port["port"], f"{overlay}: service {name}: {port}"


@EACH
def test_every_workload_selects_its_own_pods_alone(overlay: str) -> None:
    for each in of_kind(overlay, "Deployment", "StatefulSet"):
        found = [one.name for one in with_executors(overlay) if matches(each["spec"]["selector"], one.labels)]
        assert found == [each["metadata"]["name"]]
    for each in of_kind(overlay, "StatefulSet"):
        governing = named(overlay, "Service", each["spec"]["serviceName"])
        assert matches({"matchLabels": governing["spec"]["selector"]}, each["spec"]["template"]["metadata"]["labels"])


@EACH
def test_addresses_in_the_settings_are_services(overlay: str) -> None:
    settings = named(overlay, "ConfigMap", "settings")["data"]
    for name, expected in (("KAFKA_BOOTSTRAP_SERVERS", "kafka"), ("HDFS_URL", "namenode")):
        host, port = re.fullmatch(r"(?:hdfs://)?([\w-]+):(\d+)", settings[name]).groups()  # type: ignore[union-attr]
        assert host == expected
        assert int(port) in {p["port"] for p in named(overlay, "Service", host)["spec"]["ports"]}
    if overlay == "dev":
        assert settings["SPARK_MASTER"] == "spark://spark-master:7077"
        assert 7077 in {p["port"] for p in named(overlay, "Service", "spark-master")["spec"]["ports"]}
    else:
        assert settings["SPARK_MASTER"] == "k8s://https://kubernetes.default.svc"
    assert named(overlay, "ConfigMap", "hadoop")["data"]["CORE-SITE.XML_fs.defaultFS"] == settings["HDFS_URL"]


@EACH
def test_what_names_itself_by_its_ordinal_uses_names_that_the_cluster_knows(overlay: str) -> None:
    for name, variable in (
        ("kafka", "KAFKA_ADVERTISED_LISTENERS"),
        ("datanode", "HDFS-SITE.XML_dfs.datanode.hostname"),
    ):
        owner = named(overlay, "StatefulSet", name)
        service = owner["spec"]["serviceName"]
        assert named(overlay, "Service", service)["spec"]["clusterIP"] == "None"
        assert named(overlay, "Service", service)["spec"]["publishNotReadyAddresses"] is True
        values = [_env(c)[variable] for c in pod(overlay, name).containers() if variable in _env(c)]
        assert len(values) == 1 and f"$(POD_NAME).{service}.$(NAMESPACE).svc" in values[0]
    for name, variable in (("kafka", "KAFKA_BROKER_ID"), ("zookeeper", "ZOOKEEPER_SERVER_ID")):
        container = pod(overlay, name).spec["containers"][0]
        source = next(e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"] if e["name"] == variable)
        assert source == "metadata.labels['apps.kubernetes.io/pod-index']"
        assert named(overlay, "StatefulSet", name)["spec"]["ordinals"] == {"start": 1}, "ZooKeeper refuses the id 0"


# Settings -------------------------------------------------------------------------------------------------------------

# Names of the environment that are neither a setting of ours nor one of Kafka, ZooKeeper or Hadoop.
OF_THE_POD = {"POD_IP", "POD_NAME", "NAMESPACE", "HIGHWATER_IMAGE"}
OF_SPARK = {"SPARK_CONF_DIR", "SPARK_DAEMON_MEMORY", "SPARK_WORKER_CORES", "SPARK_WORKER_MEMORY", "SPARK_WORKER_DIR"}
OF_CONFLUENT = {
    "KAFKA_ZOOKEEPER_CONNECT",
    "KAFKA_LISTENERS",
    "KAFKA_ADVERTISED_LISTENERS",
    "KAFKA_LOG_DIRS",
    "KAFKA_HEAP_OPTS",
}
OF_CONFLUENT |= {
    f"ZOOKEEPER_{name}" for name in ("SERVER_ID", "SERVERS", "CLIENT_PORT", "TICK_TIME", "ADMIN_ENABLE_SERVER")
}
OF_CONFLUENT |= {f"ZOOKEEPER_{name}" for name in ("AUTOPURGE_SNAP_RETAIN_COUNT", "AUTOPURGE_PURGE_INTERVAL")}
OF_CONFLUENT |= {"ZOOKEEPER_QUORUM_LISTEN_ON_ALL_IPS"}
OF_HADOOP = {"HADOOP_LOG_DIR", "HDFS_NAMENODE_OPTS", "HDFS_DATANODE_OPTS"}


def _env(container: Object) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in container.get("env", [])}


def env_file(path: str) -> dict[str, str]:
    lines = [line.strip() for line in (ROOT / path).read_text().splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@EACH
def test_every_name_in_an_environment_is_one_that_its_image_reads(overlay: str) -> None:
    ours = {setting.name for setting in SETTINGS} | OF_SPARK
    known = {"highwater": ours, "confluentinc/cp-kafka": OF_CONFLUENT | env_file("conf/kafka.env").keys()}
    known |= {"confluentinc/cp-zookeeper": OF_CONFLUENT, "apache/hadoop": OF_HADOOP}
    for where, container in each_container(overlay):
        names = set(_env(container))
        for source in container.get("envFrom", []):
            data = next(
                o for o in of_kind(overlay, "ConfigMap") if o["metadata"]["name"] == source["configMapRef"]["name"]
            )
            names |= data["data"].keys()
        whole = container.get("image", "highwater:")  # a registry's name may stand before it
        image = next(name for name in known if f"/{whole}".endswith(f"/{name}:{whole.rpartition(':')[2]}"))
        hadoop = {n for n in names if re.match(r"(CORE-SITE|HDFS-SITE)\.XML_|LOG4J\.PROPERTIES_", n)}
        assert not hadoop or image == "apache/hadoop", where
        assert names - hadoop <= known[image] | OF_THE_POD, f"{where}: {names - hadoop - known[image] - OF_THE_POD}"


@EACH
def test_values_of_our_settings_are_ones_that_we_accept(overlay: str) -> None:
    by_name = {setting.name: setting for setting in SETTINGS}
    values = [*named(overlay, "ConfigMap", "settings")["data"].items()]
    values += [
        e for _, c in each_container(overlay) for e in _env(c).items() if c.get("image", "").startswith("highwater")
    ]
    for name, value in values:
        if name in by_name and value:  # empty is as good as unset
            by_name[name].kind.parse(value)


def test_dev_runs_with_the_settings_of_compose_and_the_native_stack() -> None:
    spark = named("dev", "ConfigMap", "spark")["data"]
    for name in ("spark-defaults.conf", "log4j2.properties", "metrics.properties"):
        assert spark[name] == (ROOT / "conf" / name).read_text()
    assert named("dev", "ConfigMap", "kafka")["data"] == env_file("conf/kafka.env")
    hadoop = named("dev", "ConfigMap", "hadoop")["data"]
    assert {n: v for n, v in hadoop.items() if not n.startswith("LOG4J.")} == env_file("hadoop.env")
    assert named("dev", "ConfigMap", "health")["data"]["health.sh"] == (ROOT / "conf" / "health.sh").read_text()


def test_dev_is_one_of_each() -> None:
    assert {one.name: one.replicas for one in pods("dev")} == {one.name: 1 for one in pods("dev")}
    assert {"spark-master", "spark-worker", "producer"} <= {one.name for one in pods("dev")}


def test_prod_keeps_three_copies_and_two_brokers_must_have_each_event() -> None:
    replicas = {one.name: one.replicas for one in pods("prod")}
    assert [replicas[name] for name in ("zookeeper", "kafka", "datanode")] == [3, 3, 3]
    kafka, hadoop = (named("prod", "ConfigMap", name)["data"] for name in ("kafka", "hadoop"))
    assert kafka["KAFKA_DEFAULT_REPLICATION_FACTOR"] == "3"
    assert kafka["KAFKA_MIN_INSYNC_REPLICAS"] == "2"
    assert kafka["KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR"] == "3"
    assert kafka["KAFKA_UNCLEAN_LEADER_ELECTION_ENABLE"] == "false"
    assert hadoop["HDFS-SITE.XML_dfs.replication"] == "3"
    assert kafka.keys() == named("dev", "ConfigMap", "kafka")["data"].keys()
    assert hadoop.keys() == named("dev", "ConfigMap", "hadoop")["data"].keys()


def test_the_quorum_of_prod_is_its_servers_in_the_order_of_their_ids() -> None:
    servers = _env(pod("prod", "zookeeper").spec["containers"][0])["ZOOKEEPER_SERVERS"].split(";")
    service = named("prod", "StatefulSet", "zookeeper")["spec"]["serviceName"]
    assert servers == [f"zookeeper-{n}.{service}:2888:3888" for n in range(1, pod("prod", "zookeeper").replicas + 1)]
    ports = pod("prod", "zookeeper").ports()
    assert (ports["peer"], ports["election"]) == (2888, 3888)


def test_zookeeper_ticks_fast_enough_for_the_session_that_kafka_asks_for() -> None:
    tick = int(_env(pod("prod", "zookeeper").spec["containers"][0])["ZOOKEEPER_TICK_TIME"])
    assert 2 * tick <= int(env_file("conf/kafka.env")["KAFKA_ZOOKEEPER_SESSION_TIMEOUT_MS"])


def test_a_drained_node_takes_one_of_three_at_most() -> None:
    budgets = {b["metadata"]["name"]: b["spec"] for b in of_kind("prod", "PodDisruptionBudget")}
    assert set(budgets) == {one.name for one in pods("prod") if one.replicas > 1}
    for name, budget in budgets.items():
        assert matches(budget["selector"], pod("prod", name).labels)
        assert budget["maxUnavailable"] == 1
    for name in ("zookeeper", "kafka", "datanode"):
        constraints = {c["topologyKey"]: c for c in pod("prod", name).spec["topologySpreadConstraints"]}
        assert constraints["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"


# Spark ----------------------------------------------------------------------------------------------------------------


@EACH
def test_a_driver_is_reached_by_its_address_and_the_last_line_of_a_key_counts(overlay: str, tmp_path: Path) -> None:
    properties = spark_defaults(overlay, tmp_path)
    assert properties["spark.driver.host"] == "10.1.2.3"
    assert properties["spark.driver.bindAddress"] == "0.0.0.0"
    assert properties["spark.jars"] == "/opt/highwater/lib/spark/*.jar"
    assert properties["spark.sql.session.timeZone"] == "UTC", "the shared file is in it"
    # Spark itself puts the application in; everything else in braces was to be filled in before.
    assert not [v for v in properties.values() if re.search(r"[{}]", v.replace("${spark.app.name}", ""))]
    assert {path.name for path in (tmp_path / "conf").iterdir()} >= {"log4j2.properties", "metrics.properties"}
    ports = pod(overlay, "ingest").ports()
    assert properties["spark.driver.port"] == str(ports["driver"])
    assert properties["spark.driver.blockManager.port"] == properties["spark.blockManager.port"] == str(ports["blocks"])
    assert properties["spark.ui.port"] == str(ports["spark-ui"])


def test_executors_of_prod_are_pods_of_the_same_image_that_write_three_copies(tmp_path: Path) -> None:
    properties = spark_defaults("prod", tmp_path)
    images = {c["image"] for one in pods("prod") if "highwater/spark" in one.labels for c in one.containers()}
    assert {properties["spark.kubernetes.container.image"]} == images
    assert properties["spark.kubernetes.driver.pod.name"] == "ingest-0"
    assert properties["spark.kubernetes.namespace"] == "highwater"
    account = properties["spark.kubernetes.authenticate.executor.serviceAccountName"]
    assert account in {o["metadata"]["name"] for o in of_kind("prod", "ServiceAccount")}
    assert Path(properties["spark.kubernetes.executor.podTemplateFile"]).name == "executor.yaml"
    assert (tmp_path / "conf" / "executor.yaml").is_file()
    assert properties["spark.kubernetes.executor.podTemplateContainerName"] == executor().spec["containers"][0]["name"]
    assert properties["spark.kubernetes.executor.limit.cores"] and properties["spark.kubernetes.executor.request.cores"]
    hadoop = named("prod", "ConfigMap", "hadoop")["data"]
    policy = "dfs.client.block.write.replace-datanode-on-failure.policy"
    for key in ("dfs.replication", policy):
        assert properties[f"spark.hadoop.{key}"] == hadoop[f"HDFS-SITE.XML_{key}"]


def spark_defaults(overlay: str, folder: Path) -> dict[str, str]:
    """What the pod of a driver would read: the ConfigMap's files, run through the script of its first container."""
    for name, text in named(overlay, "ConfigMap", "spark")["data"].items():
        (folder / name).write_text(text)
    script = pod(overlay, "ingest").spec["initContainers"][0]
    given = _env(script) | {"POD_IP": "10.1.2.3", "POD_NAME": "ingest-0", "NAMESPACE": "highwater"}
    given |= {"SPARK_CONF_DIR": str(folder / "conf"), "PATH": os.environ["PATH"]}
    assert script["command"] == ["sh", "/etc/highwater/spark/spark-conf.sh"]
    subprocess.run(["sh", str(folder / "spark-conf.sh")], env=given, check=True, timeout=10)
    lines = (folder / "conf" / "spark-defaults.conf").read_text().splitlines()
    return dict(line.split(None, 1) for line in lines if line.strip() and not line.startswith("#"))


def test_an_executor_starts_with_the_options_that_spark_gives_it(tmp_path: Path) -> None:
    tini = tmp_path / "tini"
    tini.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    tini.chmod(0o755)
    names = ("DRIVER_URL", "EXECUTOR_ID", "EXECUTOR_CORES", "APPLICATION_ID", "EXECUTOR_POD_IP", "RESOURCE_PROFILE_ID")
    given = {f"SPARK_{name}": name.lower() for name in (*names, "EXECUTOR_POD_NAME", "CONF_DIR", "HOME")}
    options = {f"SPARK_JAVA_OPT_{n}": f"-Doption{n}=with a blank" for n in range(12)}
    command = executor().spec["containers"][0]["command"]
    done = subprocess.run(
        [*command, "executor"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SPARK_EXECUTOR_MEMORY": "1g", **given, **options},
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    words = done.stdout.splitlines()
    assert words[:3] == ["-s", "--", "java"]
    assert words[3:15] == [f"-Doption{n}=with a blank" for n in range(12)], "in the order of their numbers"
    assert words[15:17] == ["-Xms1g", "-Xmx1g"]
    assert words[words.index("--driver-url") + 1] == "driver_url"
    assert words[-2:] == ["--podName", "executor_pod_name"]


def test_a_driver_may_do_what_executors_need_and_nothing_else() -> None:
    rules = {
        resource: set(r["verbs"]) for r in named("prod", "Role", "spark-driver")["rules"] for resource in r["resources"]
    }
    assert set(rules) == {"pods", "configmaps"}
    assert rules["pods"] >= {"create", "get", "list", "watch", "delete", "deletecollection"}
    assert "*" not in rules["pods"] | rules["configmaps"]


@EACH
def test_layers_are_scripts_that_are_there_and_are_started_again(overlay: str) -> None:
    for name in ("ingest", "stream", "batch", "serving", *(("producer",) if overlay == "dev" else ())):
        one = pod(overlay, name)
        command = one.spec["containers"][0]["command"]
        script = next(word for word in command if word.endswith(".py"))
        source = (ROOT / Path(script).name).read_text()
        assert all(f'"{flag}"' in source for flag in command if re.match(r"--\w", flag)), command
        assert one.spec.get("restartPolicy", "Always") == ("Never" if name == "batch" else "Always")
    stop_seconds = 120  # engine/runtime/observe.py: STOP_SECONDS
    assert all(
        pod(overlay, n).spec["terminationGracePeriodSeconds"] > stop_seconds for n in ("ingest", "stream", "batch")
    )
    rules = named(overlay, "CronJob", "batch")["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [1, 2], "75 is tried again"
    if (ROOT / "Dockerfile").exists():
        for name in ("create-topics", "hdfs-setup"):
            module = pod(overlay, name).spec["containers"][0]["command"][4]
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


# Network --------------------------------------------------------------------------------------------------------------


def allowed(overlay: str, source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether a pod may connect to a pod: a rule must let it out, and a rule must let it in."""
    return opens(overlay, "egress", source, target, port) and opens(overlay, "ingress", target, source, port)


def opens(overlay: str, direction: str, mine: dict[str, str], other: dict[str, str], port: int) -> bool:
    """Whether a rule for a pod with the labels `mine` lets a connection with `other` pass in this direction."""
    policies = [p["spec"] for p in of_kind(overlay, "NetworkPolicy")]
    rules = [r for p in policies if matches(p["podSelector"], mine) for r in p.get(direction, [])]
    side = "to" if direction == "egress" else "from"
    return any(_peer(r, side, other) and _port(r, port) for r in rules)


def _peer(rule: Object, side: str, labels: dict[str, str]) -> bool:
    return side not in rule or any("podSelector" in p and matches(p["podSelector"], labels) for p in rule[side])


def _port(rule: Object, port: int) -> bool:
    return any(p["port"] <= port <= p.get("endPort", p["port"]) for p in rule["ports"])


@EACH
def test_everything_is_forbidden_at_first_and_names_can_be_looked_up(overlay: str) -> None:
    deny = named(overlay, "NetworkPolicy", "deny-all")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    names = named(overlay, "NetworkPolicy", "names")["spec"]
    assert names["podSelector"] == {} and {p["port"] for p in names["egress"][0]["ports"]} == {53}


@EACH
def test_who_needs_whom_reaches_it(overlay: str) -> None:
    labels = {one.name: one.labels for one in with_executors(overlay)}
    worker = "spark-worker" if overlay == "dev" else "executor"
    needed = {("kafka", "zookeeper", 2181), ("zookeeper", "zookeeper", 2888), ("zookeeper", "zookeeper", 3888)}
    needed |= {("kafka", "kafka", 29092), ("create-topics", "kafka", 29092), ("hdfs-setup", "namenode", 9000)}
    needed |= {("datanode", "namenode", 9000), ("datanode", "datanode", 9866)}
    for client in ("ingest", "stream", "batch", "serving", worker):
        needed |= {(client, "kafka", 29092), (client, "namenode", 9000), (client, "datanode", 9866)}
    for driver in ("ingest", "stream", "batch"):
        needed |= {(worker, driver, 7078), (worker, driver, 7079), (driver, worker, 7079)}
        if overlay == "dev":
            needed |= {(driver, "spark-master", 7077), ("spark-master", driver, 7078), (driver, worker, 7081)}
    if overlay == "dev":
        needed |= {("producer", "kafka", 29092), (worker, "spark-master", 7077), ("spark-master", worker, 7078)}
    refused = {each for each in needed if not allowed(overlay, labels[each[0]], labels[each[1]], each[2])}
    assert not refused


@EACH
def test_nobody_else_reaches_anything(overlay: str) -> None:
    stranger = {"app.kubernetes.io/name": "stranger"}
    labels = {one.name: one.labels for one in with_executors(overlay)}
    for one in with_executors(overlay):
        for port in one.ports().values():
            assert not opens(overlay, "ingress", one.labels, stranger, port), f"{overlay}: {one.name} {port}"
    assert not allowed(overlay, labels["serving"], labels["zookeeper"], 2181)
    assert not allowed(overlay, labels["create-topics"], labels["namenode"], 9000)
    assert not allowed(overlay, labels["ingest"], labels["namenode"], 9870)


@EACH
def test_a_label_of_yours_opens_what_the_page_says(overlay: str) -> None:
    labels = {one.name: one.labels for one in with_executors(overlay)}
    proxy, prometheus = {"highwater/uses-serving": "true"}, {"highwater/scrapes-metrics": "true"}
    assert allowed(overlay, proxy, labels["serving"], 8000)
    for name, port in {"ingest": 8083, "stream": 8084, "serving": 8000, "namenode": 9870, "datanode": 9864}.items():
        assert allowed(overlay, prometheus, labels[name], port), name
    assert not allowed(overlay, proxy, labels["ingest"], 8083)


@EACH
def test_settings_cannot_move_what_probes_and_rules_name(overlay: str) -> None:
    fixed = {"ingest": "INGEST_METRICS_PORT", "stream": "STREAM_METRICS_PORT", "serving": "SERVING_PORT"}
    for name, setting in fixed.items():
        assert setting in {entry["name"] for entry in pod(overlay, name).spec["containers"][0]["env"]}
    batch = {entry["name"]: entry.get("value") for entry in pod(overlay, "batch").spec["containers"][0]["env"]}
    assert batch["BATCH_INTERVAL"] == "", "a pod that repeats would never end"


@EACH
def test_every_rule_speaks_of_pods_and_ports_that_exist(overlay: str) -> None:
    yours = {"highwater/uses-serving", "highwater/scrapes-metrics"}  # labels of pods that are not part of this
    everyone = with_executors(overlay)
    for policy in of_kind(overlay, "NetworkPolicy"):
        name, spec = policy["metadata"]["name"], policy["spec"]
        selected = [one for one in everyone if matches(spec["podSelector"], one.labels)]
        of_yours = spec["podSelector"].get("matchLabels", {}).keys() & yours
        assert selected or of_yours, f"{overlay}: policy {name} selects no pod"
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction, []):
                targets = selected
                for peer in rule.get(side, []):
                    chosen = [
                        one for one in everyone if "podSelector" in peer and matches(peer["podSelector"], one.labels)
                    ]
                    keys = peer.get("podSelector", {}).get("matchLabels", {}).keys()
                    assert chosen or "namespaceSelector" in peer or keys & yours, f"{overlay}: policy {name}: {peer}"
                    targets = chosen if side == "to" else targets
                if side == "to" and (not rule.get("to") or "namespaceSelector" in rule["to"][0]):
                    continue  # name service and API server are not ours
                ports = {p for one in targets for p in one.ports().values()}
                for port in rule["ports"]:
                    assert any(port["port"] <= p <= port.get("endPort", port["port"]) for p in ports), f"{name}: {port}"
