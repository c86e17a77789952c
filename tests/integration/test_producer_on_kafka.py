"""The producer against real Kafka: what it counts is in the log, and what it cannot send it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from domains.learning import LEARNING
from engine.runtime import kafka
from engine.runtime.settings import Settings, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environ(stack: Any) -> dict[str, str]:
    return {**os.environ, **stack.env, "PRODUCER_METRICS_PORT": "0", "SEED": "11"}


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    return load(environ=environ, env_file=None)


def ends(settings: Settings) -> Counter[tuple[str, int]]:
    kafka.ensure_topics(settings, LEARNING.streams)
    client = kafka.admin(settings)
    try:
        ranges = kafka.log_ranges(client, LEARNING.topics)
    finally:
        client.close()
    return Counter({(topic, p): end for topic, parts in ranges.items() for p, (_, end) in parts.items()})


def produce(environ: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "producer.py", "--domain", "learning", *flags]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)


def records(settings: Settings, start: Counter[tuple[str, int]], end: Counter[tuple[str, int]]) -> list[Any]:
    consumer = KafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap_servers, group_id=None, auto_offset_reset="earliest"
    )
    partitions = {TopicPartition(*where) for where in end if end[where] > start[where]}
    consumer.assign(list(partitions))
    for tp in partitions:
        consumer.seek(tp, start[(tp.topic, tp.partition)])
    wanted = sum(end.values()) - sum(start.values())
    found: list[Any] = []
    deadline = time.monotonic() + 60
    while len(found) < wanted and time.monotonic() < deadline:
        for batch in consumer.poll(timeout_ms=500).values():
            found.extend(batch)
    consumer.close(autocommit=False)
    return found


def journal_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_counted_is_in_the_log_once(environ: dict[str, str], settings: Settings, tmp_path: Path) -> None:
    before = ends(settings)
    flags = ("--rate", "0", "--count", "20000", "--duplicates", "0.05", "--late", "0.05", "--broken", "0.05")
    done = produce(environ, *flags, "--future", "0.01", "--journal", str(tmp_path / "journal"))
    after = ends(settings)
    assert done.returncode == 0, done.stderr
    assert "20000 events acknowledged" in done.stderr
    assert "none failed" in done.stderr
    assert sum(after.values()) - sum(before.values()) == 20_000

    found = {(record.topic, record.partition, record.offset): record for record in records(settings, before, after)}
    assert len(found) == 20_000
    places = set()
    for line in journal_lines(tmp_path / "journal"):
        place = (line["topic"], line["partition"], line["offset"])
        places.add(place)
        value = found[place].value
        if value.startswith(b'{"event_id":"') and value.endswith(b"}"):  # a broken one may not even have its id
            assert line["event_id"].encode() in value or b'"event_id":{' in value
    assert places == set(found)


def test_a_key_stays_in_one_partition_and_every_partition_is_used(environ: dict[str, str], settings: Settings) -> None:
    before = ends(settings)
    assert produce(environ, "--rate", "0", "--count", "5000", "--broken", "0.1").returncode == 0
    after = ends(settings)
    where: dict[tuple[str, bytes], set[int]] = {}
    for record in records(settings, before, after):
        where.setdefault((record.topic, record.key), set()).add(record.partition)
        # Kafka refuses or rewrites nothing: its timestamp is the producer's clock, not the event's time.
        assert abs(record.timestamp / 1000 - time.time()) < 300
    assert all(len(partitions) == 1 for partitions in where.values())
    assert {p for (topic, _), parts in where.items() if topic == "video_topic" for p in parts} == {0, 1, 2}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_flushes_and_exits_0(
    environ: dict[str, str], settings: Settings, tmp_path: Path, number: signal.Signals
) -> None:
    before = ends(settings)
    command = [sys.executable, "producer.py", "--rate", "2000", "--journal", str(tmp_path / "journal")]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and sum(ends(settings).values()) - sum(before.values()) < 500:
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=40)
    assert process.returncode == 0, said
    written = sum(ends(settings).values()) - sum(before.values())
    assert written >= 500
    assert f"{written} events acknowledged" in said
    assert len(journal_lines(tmp_path / "journal")) == written


def test_the_rate_is_kept_against_kafka(environ: dict[str, str]) -> None:
    start = time.monotonic()
    done = produce(environ, "--rate", "400", "--count", "1200")
    assert done.returncode == 0, done.stderr
    assert 2.9 < time.monotonic() - start < 12


def test_metrics_count_what_kafka_acknowledged(environ: dict[str, str], tmp_path: Path) -> None:
    import socket
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "producer.py", "--rate", "200", "--metrics-port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        sent = 0.0
        while sent < 100 and time.monotonic() < deadline:
            time.sleep(0.2)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    lines = answer.read().decode().splitlines()
            except OSError:
                continue
            sent = sum(float(line.split()[1]) for line in lines if line.startswith("messages_sent_total{"))
        assert sent >= 100
    finally:
        process.terminate()
        _, said = process.communicate(timeout=40)
    assert process.returncode == 0, said


def test_an_unreachable_broker_is_one_clear_line(environ: dict[str, str]) -> None:
    start = time.monotonic()
    done = produce({**environ, "KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}, "--count", "1")
    assert done.returncode == 75
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("producer: ")]
    assert line.startswith("start again: Kafka does not answer at localhost:1")
    assert time.monotonic() - start < 15
