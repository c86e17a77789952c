"""Two processes of a layer, either of them killed; a topic made anew under load; a partition whose end Kafka lost.

Nobody but the operator who follows the printed advice does anything: what ends is started again by its supervisor.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType

import domains
from engine.runtime import kafka
from engine.runtime.settings import environment, load
from stack import lifecycle, process
from stack import settings as stack_settings
from stack.java import find_java
from stack.services import KAFKA
from tests.conftest import Stack
from tests.e2e.conftest import ROOT, SHARES, Pipeline

(STOCKS,) = domains.named("stocks", environment())
(TICKS,) = STOCKS.streams
TOPIC = TICKS.topic
# Small segments, so that a partition has a last one to lose; and times as others send them, which topics of ours refuse.
CONFIG = {"segment.bytes": "20000", "cleanup.policy": "delete", "message.timestamp.after.max.ms": str(2**63 - 1)}


@pytest.fixture(scope="module")
def drill(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    running = Pipeline(stack, tmp_path_factory.mktemp("two"), domain=STOCKS.name)
    create_topic(running)
    try:
        running.run("producer.py", "--rate", "0", "--count", "1000", "--seed", "5", *SHARES)
        yield running
    finally:
        running.finish()


def create_topic(drill: Pipeline) -> None:
    """Make the topic, also where it was just deleted: Kafka says for a moment that it exists; else set it as if it were made."""
    settings = load(environ=drill.env, env_file=None)
    admin = kafka.admin(settings)
    topic: dict[str, Any] = {"num_partitions": TICKS.partitions, "replication_factor": 1, "configs": CONFIG}
    deadline = time.monotonic() + 60
    while TOPIC not in kafka.topic_ids(admin, [TOPIC]):
        assert time.monotonic() < deadline
        admin.create_topics({TOPIC: topic}, raise_errors=False)
        time.sleep(0.5)
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, TOPIC, CONFIG)])
    admin.close()


def supervised(drill: Pipeline, *layers: str) -> None:
    for layer in layers:
        script = str(drill.root / f"{layer}_layer.py")
        drill.spawn(layer, "-m", "stack.supervise", "--fault-retry", "15", script)


def everything_covered(drill: Pipeline) -> bool:
    ledger = drill.ledger()
    lags = [row["lag"] for row in ledger.get("partitions", [])]
    fresh = ledger.get("staleness_seconds", 1e9) < 30
    return bool(lags) and fresh and all(lag["ingest"] == lag["stream"] == 0 for lag in lags)


def produce(drill: Pipeline, events: int, seed: int) -> None:
    drill.run("producer.py", "--rate", "200", "--count", str(events), "--seed", str(seed), *SHARES)


def test_either_of_two_processes_of_a_layer_may_be_killed_and_nobody_else_is_hurt(drill: Pipeline) -> None:
    drill.start("serving", "ingest", "stream")
    drill.wait("first answers", lambda: drill.ledger().get("events", {}).get("speed"))
    drill.spawn("producer", "producer.py", "--rate", "40", "--seed", "6", *SHARES)
    drill.spawn("ingest-2", "ingest_layer.py")
    drill.spawn("stream-2", "stream_layer.py")
    for name in ("ingest-2", "stream-2"):
        drill.wait(f"{name} is at work", lambda name=name: "started" in drill.log(name, 100_000))
    for killed in (("ingest", "stream"), ("ingest-2", "stream-2")):
        for name in killed:
            drill.kill(name)
        ends = drill.heads("kafka_end")
        # The one that is left ends neither now nor later: `wait` looks.
        drill.wait(
            f"what came before {killed} were killed is mirrored and counted",
            lambda ends=ends: all(
                drill.heads(column)[place] >= end for place, end in ends.items() for column in ("raw_head", "speed_end")
            ),
        )
        drill.start(*(name for name in killed if name in ("ingest", "stream")))
    assert drill.stop("producer") == 0
    drill.wait("all is covered", lambda: everything_covered(drill))
    assert "exact" in drill.verify()
    drill.run("batch_layer.py")
    for name in ("ingest", "stream"):
        assert drill.stop(name) == 0, drill.log(name)
    for name in ("ingest", "ingest-2", "stream", "stream-2"):
        assert "fault:" not in drill.log(name, 10**6) and "Traceback" not in drill.log(name, 10**6), drill.log(name)


def test_what_other_clients_send_is_ordinary(drill: Pipeline) -> None:
    """Transactions, aborted ones, every codec, and times that are none.

    Nobody ends, nothing that was aborted counts.
    """
    supervised(drill, "ingest", "stream")
    layers = {name: layer_of(drill, name) for name in ("ingest", "stream")}
    before = drill.ledger()
    broker = drill.env["KAFKA_BOOTSTRAP_SERVERS"]
    transactions(broker, ([b"committed"] * 3, True), ([b"aborted"] * 4, False), ([b"committed"], True))
    for codec in ("gzip", "snappy", "lz4", "zstd"):
        console_producer(broker, codec)
    plain = KafkaProducer(bootstrap_servers=broker)
    for milliseconds in (0, 1_700_000_000_000_000, 1_700_000_000_000_000_000):
        plain.send(TOPIC, value=b'{"symbol": "ODD"}', partition=0, timestamp_ms=milliseconds).get(timeout=30)
    plain.close()
    produce(drill, 100, 12)
    drill.wait("all is covered", lambda: everything_covered(drill))
    # A partition that ends in an aborted transaction is the same log at the next look.
    transactions(broker, ([b"aborted"] * 2, False))
    drill.wait("the aborted end is covered", lambda: everything_covered(drill))
    plain = KafkaProducer(bootstrap_servers=broker)
    plain.send(TOPIC, value=b'{"symbol": "ODD"}', partition=1).get(timeout=30)
    plain.close()
    drill.wait("all is covered", lambda: everything_covered(drill))
    after = drill.ledger()
    assert sum(row["holes"] for row in after["partitions"]) >= 1 + 5 + 1
    malformed = [ledger["quarantined"].get("malformed", 0) for ledger in (before, after)]
    assert malformed[1] - malformed[0] >= 3 + 4 * 3 + 3 + 1
    aborted = drill.get(f"/v1/quarantine?topic={TOPIC}&limit=1000")["rows"]
    assert not [row for row in aborted if "aborted" in (row["value"] or "")]
    drill.run("batch_layer.py")
    drill.wait("balanced", lambda: drill.ledger()["balanced"] and everything_covered(drill))
    assert "exact" in drill.verify()
    assert {name: layer_of(drill, name) for name in layers} == layers, "a layer was started again"
    for name in layers:
        drill.stop(name)


def transactions(broker: str, *told: tuple[list[bytes], bool]) -> None:
    """Send the values of each transaction, and commit or abort it."""
    producer = KafkaProducer(bootstrap_servers=broker, transactional_id="drill", compression_type="lz4")
    producer.init_transactions()
    for values, commits in told:
        producer.begin_transaction()
        for value in values:
            producer.send(TOPIC, value=value, partition=0)
        producer.flush(timeout=60)
        if commits:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    producer.close()


def console_producer(broker: str, codec: str) -> None:
    """Kafka's own producer, three lines in one batch."""
    command = [find_java().executable, "-cp", f"{ROOT}/lib/kafka/*", "kafka.tools.ConsoleProducer"]
    command += ["--bootstrap-server", broker, "--topic", TOPIC, "--compression-codec", codec]
    lines = "".join(f"{codec} {number} {'x' * 200}\n" for number in range(3))
    subprocess.run(command, input=lines.encode(), check=True, capture_output=True, timeout=120)


def test_a_topic_made_anew_under_load_goes_on_and_what_was_lost_is_on_record(drill: Pipeline) -> None:
    supervised(drill, "ingest", "stream")
    produce(drill, 100, 11)
    drill.wait("all is covered", lambda: everything_covered(drill))
    paused = layer_of(drill, "ingest")
    os.kill(paused, signal.SIGSTOP)
    try:
        produce(drill, 300, 7)
        drill.wait("the stream is ahead of ingest", lambda: drill.lag("stream") == 0 and drill.lag("ingest") > 0)
        admin = KafkaAdminClient(bootstrap_servers=drill.env["KAFKA_BOOTSTRAP_SERVERS"])
        admin.delete_topics([TOPIC])
        admin.close()
        create_topic(drill)
    finally:
        os.kill(paused, signal.SIGCONT)
    produce(drill, 300, 8)

    def followed() -> bool:
        drill.run("batch_layer.py")
        ledger = drill.ledger()
        logs = {row["log"] for row in ledger.get("partitions", []) if row["speed_end"] > 0}
        return len(logs) == 2 and everything_covered(drill)

    drill.wait("serving follows the new log", followed)
    ledger = drill.ledger()
    assert any(row["lost"] for row in ledger["partitions"]) and ledger["balanced"] and ledger["complete"]
    assert "exact" in drill.verify()


def test_a_partition_whose_end_kafka_lost_goes_on_where_it_was_cut(drill: Pipeline, stack: Stack) -> None:
    produce(drill, 600, 9)
    drill.wait("all is covered", lambda: everything_covered(drill))
    before = sum(row["raw"] for row in drill.ledger()["partitions"])
    settings = stack_settings.load({**os.environ, **stack.env})
    broker = process.running_pid(KAFKA.pid_file(settings))
    assert broker is not None
    os.kill(broker, signal.SIGKILL)
    while process.running_pid(KAFKA.pid_file(settings)):
        time.sleep(0.1)
    lost = lose_the_last_segment(next(stack.var.rglob(f"{TOPIC}-0")))
    lifecycle.up(settings, say=lambda line: None)
    drill.wait("ingest names the loss", lambda: "LOG_REPLACED" in drill.log("ingest", 10**6))
    said = drill.run("ingest_layer.py", "--new-log", TOPIC)
    assert "partition 0 at offset" in said and "cut short here" in said, said
    untouched = said.count("it goes on at its head") + said.count("nothing is stored")
    assert untouched == TICKS.partitions - 1, said
    produce(drill, 300, 10)

    def folded() -> bool:
        # A chain speaks of the logs it began with; what the closed one holds comes with the next version.
        drill.run("batch_layer.py")
        return everything_covered(drill) and drill.ledger()["balanced"]

    drill.wait("all is covered again, and balanced", folded)
    partitions = drill.ledger()["partitions"]
    assert sum(row["raw"] for row in partitions) < before + 300 * 1.2, "nothing was mirrored twice"
    assert 0 < sum(row["only_hdfs"] for row in partitions) <= lost
    assert "exact" in drill.verify()


def layer_of(drill: Pipeline, name: str) -> int:
    """Process id of the layer that a supervisor runs."""
    supervisor = drill.running[name].pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    return int(drill.wait(f"{name} is at work", lambda: children.read_text().split())[0])


def lose_the_last_segment(folder: Path) -> int:
    """Delete the newest segment of a partition that has records.

    Return about how many records it may have held at most.
    """
    logs = sorted(path for path in folder.glob("*.log") if path.stat().st_size)
    assert len(logs) > 1, "one segment only: the partition would be empty"
    base = logs[-1].stem
    for path in folder.iterdir():
        if path.stem >= base and path.suffix in (".log", ".index", ".timeindex", ".snapshot", ".txnindex"):
            path.unlink()
    return 20_000
