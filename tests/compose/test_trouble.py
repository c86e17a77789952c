"""What a day brings to the containers.

Runs by hand, other users, crashes, a frozen broker, a cut network, and the profiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.compose.conftest import Compose
from tests.compose.engine import ROOT


def test_one_run_of_the_batch_layer(compose: Compose) -> None:
    before = compose.ledger()["version"]
    # The service has runs of its own, and may win.
    compose.wait("a run that was first", lambda: "published" in compose("run", "--rm", "-T", "batch", "--full"))
    compose.wait("its version served", lambda: compose.ledger().get("version", 0) > before)
    assert "exact" in compose.verify()


def test_each_layer_may_write_only_what_it_owns(compose: Compose) -> None:
    code = """
import sys
from engine.storage.hdfs import Hdfs
fs = Hdfs("hdfs://namenode:9000", sys.argv[1])
for path in sys.argv[2:]:
    try:
        fs.create(path + "/probe", b"")
        fs.delete(path + "/probe")
        print(path, "written")
    except PermissionError:
        print(path, "refused")
"""
    paths = ["/data/master_dataset", "/data/speed_views", "/data/batch_views", "/checkpoints/ingest"]
    wanted = {
        "serving": "serve refused refused refused refused",
        "stream": "stream refused written refused refused",
        "ingest": "ingest written refused refused written",
        "batch": "batch written written written refused",
    }
    for service, words in wanted.items():
        user, *rights = words.split()
        said = compose("exec", "-T", service, "python", "-c", code, user, *paths)
        assert [line.split()[1] for line in said.splitlines() if line.startswith("/")] == rights, (service, said)


def test_host_and_containers_agree(compose: Compose, tmp_path: Path) -> None:
    """docs/containers.md: with one line in the hosts file, the scripts run on the host against the containers."""
    if os.geteuid():
        pytest.skip("SKIPPED: only root may give a process another hosts file")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost namenode datanode\n")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "HDFS_", "SPARK_"))},
        "PYTHONPATH": str(ROOT),
        "HADOOP_USER_NAME": "ingest",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # source .venv/bin/activate
        "SPARK_LOCAL_IP": "127.0.0.1",
    }

    shell = 'mount --bind "$1" /etc/hosts; shift; exec "$@"'

    def script(*words: str, timeout: float = 120) -> str:
        inside = ["unshare", "--mount", "bash", "-c", shell, "-", str(hosts), sys.executable, *words]
        done = compose.on_host(inside, cwd=tmp_path, env=environment, timeout=timeout)
        assert done.returncode == 0, f"{words}: {done.stdout[-1500:]}{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    said = script(str(ROOT / "producer.py"), "--count", "300", "--rate", "0", "--metrics-port", "0")
    assert "300" in said
    compose("stop", "ingest")
    try:
        ends = sum(p["kafka_end"] for p in compose.ledger()["partitions"])
        submit = ["spark-submit", "--properties-file", "conf/spark-defaults.conf", "ingest_layer.py"]
        ingest = [*submit, "--trigger-interval", "2s"]
        inside = compose.engine.inside(["unshare", "--mount", "bash", "-c", shell, "-", str(hosts), *ingest])
        log = tmp_path / "ingest.log"
        with log.open("wb") as out:
            running = subprocess.Popen(inside, cwd=ROOT, env=environment, stdout=out, stderr=out)
        try:
            compose.wait("the host's ingest mirrors", lambda: raw_heads(compose) >= ends or running.poll() is not None)
            running.terminate()
            # the signal meets the JVM of spark-submit; what it was doing is done again
            assert running.wait(120) in (0, 143), log.read_text()[-3000:]
        finally:
            running.kill()
        assert "committed" in log.read_text()
        assert raw_heads(compose) >= ends
    finally:
        compose("start", "ingest")
    compose.wait("the container goes on where the host stopped", lambda: compose.lag("ingest") < 1000)


@pytest.mark.parametrize(
    "service", ["ingest", "stream", "serving", "spark-worker", "kafka", "datanode", "namenode", "zookeeper"]
)
def test_a_crash_heals_by_itself(compose: Compose, service: str) -> None:
    compose.crash(service)
    compose.wait(f"{service} started again", lambda: compose.inspect(service)["RestartCount"] > 0)


def test_a_frozen_broker_and_a_cut_network_lose_nothing(compose: Compose) -> None:
    compose("pause", "kafka")
    time.sleep(8)
    compose("unpause", "kafka")
    network, datanode = "highwater-test_default", compose.container("datanode")
    compose.docker("network", "disconnect", network, datanode)
    time.sleep(8)
    compose.docker("network", "connect", "--alias", "datanode", network, datanode)


def test_afterwards_all_is_exact(compose: Compose) -> None:
    ends = sum(p["kafka_end"] for p in compose.ledger()["partitions"])

    def caught_up() -> bool:
        ledger = compose.ledger()
        return (
            bool(ledger)
            and all(p["raw_head"] is not None for p in ledger["partitions"])
            and (sum(p["raw_head"] for p in ledger["partitions"]) > ends and compose.lag("stream") < 2000)
        )

    compose.wait("all layers go on", caught_up)
    assert "exact" in compose.verify()
    for name, state in compose.states().items():
        assert not compose.inspect(name)["State"]["OOMKilled"], (name, state)


@pytest.mark.profile
def test_prometheus_reaches_everything_that_it_asks(compose: Compose) -> None:
    """With its exporter, without Grafana, of which there is no stand-in."""

    def targets() -> list[dict[str, Any]]:
        status, body = compose.get("/api/v1/targets", 9090)
        return list(json.loads(body)["data"]["activeTargets"]) if status == 200 else []

    def silent() -> list[str]:
        return [f"{target['scrapeUrl']}: {target['lastError']}" for target in targets() if target["health"] != "up"]

    with compose.profile("monitoring", "prometheus", "kafka-exporter"):
        asked = {target["labels"]["job"] for target in compose.wait("targets", targets)}
        assert {"producer", "ingest", "stream", "batch", "serving", "kafka", "namenode", "datanode"} <= asked
        # Between two rounds the batch layer has no Spark that could be asked.
        compose.wait("all answer", lambda: all("//batch:4040" in one for one in silent()) or print(silent()))


@pytest.mark.profile
def test_the_notebook_explores_the_running_system(compose: Compose) -> None:
    with compose.profile("notebook", "notebook"):
        assert "version" in compose.get("/api", 8888)[1]
        assert compose.get("/api/contents", 8888)[0] == 403, "without its token it shows nothing"
        compose("exec", "-T", "notebook", "jupyter", "execute", "explore.ipynb", "--timeout", "300")


@pytest.mark.profile
def test_answers_from_cassandra_are_exact(compose: Compose) -> None:
    compose.chosen["SERVING_STORE"] = "cassandra"
    try:
        with compose.profile("cassandra", "cassandra", "materialiser"):
            compose.up("serving")
            assert "exact" in compose.verify()
            for service in ("materialiser", "cassandra"):
                compose.crash(service)
                compose.wait(f"{service} is back", lambda service=service: restarted(compose, service))
            ends = sum(p["kafka_end"] for p in compose.ledger()["partitions"])
            compose.wait("it goes on", lambda: covered(compose.ledger()) > ends)
            assert "exact" in compose.verify()
    finally:
        del compose.chosen["SERVING_STORE"]
        compose.up("serving")


def restarted(compose: Compose, service: str) -> bool:
    state = compose.inspect(service)
    health = state["State"].get("Health", {}).get("Status", "healthy")
    return state["RestartCount"] > 0 and state["State"]["Running"] and health == "healthy"


def covered(ledger: dict[str, Any]) -> int:
    """Offsets below the coverage of the answers."""
    topics = ledger.get("as_of", {}).get("coverage", {}).values()
    return sum(offset for logs in topics for by in logs.values() for offset in by.values())


def raw_heads(compose: Compose) -> int:
    return sum(p["raw_head"] or 0 for p in compose.ledger().get("partitions", []))
