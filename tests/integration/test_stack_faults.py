"""Does the doctor name a fault of the real servers, and does an acknowledged write survive a kill? Each test breaks the
running stack of this module in one way, looks, and mends it with the fix that the doctor printed or with `up`."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from stack import clusters, doctor, lifecycle, probes, process
from stack.java import find_java
from stack.services import DATANODE, KAFKA, Service
from stack.settings import Settings, StackError, load


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A running stack of this module alone."""
    up = lifecycle.up(load({"HIGHWATER_VAR": str(tmp_path_factory.mktemp("faults"))}), free=True)
    yield up
    lifecycle.down(up)


def end(service: Service, settings: Settings, sign: signal.Signals) -> None:
    """Send a signal to a running service and wait for its end."""
    pid = process.running_pid(service.pid_file(settings))
    assert pid is not None, f"{service.name} does not run"
    os.kill(pid, sign)
    while process.running_pid(service.pid_file(settings)):
        time.sleep(0.05)


def safe_mode(settings: Settings, word: str) -> None:
    """Run `hdfs dfsadmin -safemode enter|leave`."""
    path = f"{settings.conf}/hadoop:{settings.lib}/hdfs/*"
    command = [find_java().executable, "-cp", path, "org.apache.hadoop.hdfs.tools.DFSAdmin", "-safemode", word]
    subprocess.run(command, env={**os.environ, "HADOOP_USER_NAME": "hadoop"}, check=True, capture_output=True)


def test_an_acknowledged_event_and_a_closed_file_survive_kill_9(settings: Settings) -> None:
    broker = f"localhost:{settings.port('KAFKA_PORT')}"
    with probes.hdfs_client(settings).create("/data/kept") as file:
        file.write(b"still here")
    admin = KafkaAdminClient(bootstrap_servers=broker)
    admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=broker, acks="all")
    producer.send("kept", b"still here", partition=0).get(timeout=30)
    producer.close()
    for service in (KAFKA, DATANODE):
        end(service, settings, signal.SIGKILL)
    lifecycle.up(settings, say=lambda line: None)
    assert probes.hdfs_client(settings).read("/data/kept").read() == b"still here"
    consumer = KafkaConsumer(bootstrap_servers=broker, auto_offset_reset="earliest", consumer_timeout_ms=20_000)
    consumer.assign([TopicPartition("kept", 0)])
    assert next((record.value for record in consumer), None) == b"still here"
    consumer.close()


def test_the_web_pages_of_the_namenode_open(settings: Settings) -> None:
    for page in ("/dfshealth.html", "/explorer.html", "/prom", "/webhdfs/v1/?op=LISTSTATUS"):
        url = f"http://127.0.0.1:{settings.port('NAMENODE_UI_PORT')}{page}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.status == 200, page


def test_zookeeper_holds_the_cluster_id_of_the_broker(settings: Settings) -> None:
    assert clusters.zookeeper_kafka_id(settings) == clusters.kafka_id(settings) != ""
    assert clusters.read_node(settings.port("ZOOKEEPER_PORT"), "/not/there") == b""


def test_doctor_finds_a_kafka_log_of_another_cluster(settings: Settings) -> None:
    meta = settings.data / "kafka" / "meta.properties"
    kept = meta.read_text()
    meta.write_text(kept.replace(clusters.kafka_id(settings), "anotherClusterAltogether"))
    try:
        (finding,) = doctor.check_broker_id(settings)
        assert "anotherClusterAltogether" in finding.evidence
        assert clusters.zookeeper_kafka_id(settings) in finding.evidence
    finally:
        meta.write_text(kept)


def test_doctor_tells_to_leave_a_safe_mode_that_a_person_turned_on(settings: Settings) -> None:
    safe_mode(settings, "enter")
    try:
        (finding,) = doctor.check_safe_mode(settings)
        assert "safe mode" in finding.what
        assert finding.fix.endswith("-safemode leave")
    finally:
        safe_mode(settings, "leave")
    assert not list(doctor.check_safe_mode(settings))


def test_doctor_finds_a_listener_that_leads_nowhere(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    render = lifecycle.write_config

    def elsewhere(here: Settings) -> None:
        render(here)
        path = here.conf / "kafka" / "server.properties"
        path.write_text(path.read_text().replace("PLAINTEXT://localhost:", "PLAINTEXT://kafka.invalid:"))

    end(KAFKA, settings, signal.SIGTERM)
    monkeypatch.setattr(lifecycle, "write_config", elsewhere)
    monkeypatch.setattr(lifecycle, "DEADLINE", 20.0)
    with pytest.raises(StackError, match="kafka: does not answer"):  # as any client that is told a dead address
        lifecycle.up(settings, say=lambda line: None)
    (finding,) = doctor.check_listener(settings)
    assert "kafka.invalid" in finding.evidence
    assert "advertised" in finding.what
    monkeypatch.undo()
    assert lifecycle.down(settings)
    lifecycle.up(settings, say=lambda line: None)
    assert not list(doctor.check_listener(settings))


def test_doctor_never_tells_to_leave_a_safe_mode_that_guards_lost_blocks(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with probes.hdfs_client(settings).create("/data/lost") as file:
        file.write(b"x" * 1000)
    assert lifecycle.down(settings)
    blocks = list(Path(settings.data / "dn").rglob("blk_*"))
    assert blocks
    for path in blocks:
        path.unlink()
    monkeypatch.setattr(lifecycle, "DEADLINE", 30.0)
    with pytest.raises(StackError, match=r"(?i)safe ?mode"):
        lifecycle.up(settings, say=lambda line: None)
    (finding,) = doctor.check_safe_mode(settings)
    assert "leave" not in finding.fix
    assert "blocks" in finding.evidence
