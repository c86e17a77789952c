"""What `engine.runtime.kafka` says about topics, ids, ranges and records, against real Kafka."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType

from engine.domain import Stream
from engine.runtime import kafka
from engine.runtime.settings import Settings, load
from engine.verify.rawlog import RawLog


@pytest.fixture
def settings(stack: Any) -> Settings:
    return load(environ={**os.environ, **stack.env}, env_file=None)


@pytest.fixture
def client(settings: Settings) -> Iterator[KafkaAdminClient]:
    client = kafka.admin(settings)
    yield client
    client.close()


@pytest.fixture
def stream(client: KafkaAdminClient) -> Iterator[Stream]:
    stream = Stream(f"test-{uuid.uuid4().hex[:12]}", {"id": "STRING"}, "id", ("id",), partitions=2)
    yield stream
    client.delete_topics([stream.topic], raise_errors=False)


def send(settings: Settings, topic: str, *values: bytes | None) -> None:
    producer = KafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers)
    for value in values:
        producer.send(topic, key=b"k", value=value, partition=1)
    producer.flush(timeout=30)
    producer.close()


def record(reader: kafka.Reader, topic: str, partition: int, offset: int) -> kafka.Record | None:
    return reader.records_at({(topic, partition): offset}).get((topic, partition))


def test_missing_topics_are_created_as_declared_and_twice_is_fine(
    settings: Settings, client: KafkaAdminClient, stream: Stream
) -> None:
    kafka.ensure_topics(settings, [stream])
    kafka.ensure_topics(settings, [stream])
    assert kafka.log_ranges(client, [stream.topic]) == {stream.topic: {0: (0, 0), 1: (0, 0)}}
    resource = ConfigResource(ConfigResourceType.TOPIC, stream.topic, dict.fromkeys(kafka.TOPIC_CONFIG))
    told = client.describe_configs([resource], config_filter="all")["topic"][stream.topic]
    assert {name: told[name]["value"] for name in kafka.TOPIC_CONFIG} == kafka.TOPIC_CONFIG


def test_a_compacted_topic_is_refused_by_name(settings: Settings, client: KafkaAdminClient, stream: Stream) -> None:
    compacted = {"num_partitions": 1, "replication_factor": 1, "configs": {"cleanup.policy": "compact"}}
    client.create_topics({stream.topic: compacted})
    with pytest.raises(kafka.TopicRefused, match=f"topic '{stream.topic}': cleanup.policy=compact"):
        kafka.ensure_topics(settings, [stream])


def test_a_topic_made_again_has_another_id_and_is_read_anew(
    settings: Settings, client: KafkaAdminClient, stream: Stream
) -> None:
    reader = kafka.consumer(settings)
    kafka.ensure_topics(settings, [stream])
    send(settings, stream.topic, b"old 0", b"old 1", b"old 2")
    first = kafka.topic_ids(client, [stream.topic, "no-such-topic"])
    assert list(first) == [stream.topic]
    assert len(first[stream.topic]) == 22
    found = record(reader, stream.topic, 1, 1)
    assert found is not None
    assert (found[0], found[2], found[3]) == (1, b"k", b"old 1")
    assert abs(found[1] / 1000 - time.time()) < 60

    client.delete_topics([stream.topic])
    deadline = time.monotonic() + 20
    while kafka.topic_ids(client, [stream.topic]) and time.monotonic() < deadline:
        time.sleep(0.1)
    kafka.ensure_topics(settings, [stream])
    assert kafka.topic_ids(client, [stream.topic])[stream.topic] != first[stream.topic]
    assert record(reader, stream.topic, 1, 2) is None
    send(settings, stream.topic, b"new 0", None, b"new 2")
    for offset, value in enumerate((b"new 0", None, b"new 2")):
        found = record(reader, stream.topic, 1, offset)
        assert found is not None
        assert found[3] == value
    reader.close()


def test_an_expired_or_unknown_record_is_none(settings: Settings, client: KafkaAdminClient, stream: Stream) -> None:
    from kafka import TopicPartition

    reader = kafka.consumer(settings)
    kafka.ensure_topics(settings, [stream])
    send(settings, stream.topic, b"0", b"1", b"2")
    client.delete_records({TopicPartition(stream.topic, 1): 2})
    assert kafka.log_ranges(reader, [stream.topic])[stream.topic][1] == (2, 3)
    assert record(reader, stream.topic, 1, 1) is None
    assert record(reader, stream.topic, 1, 3) is None
    assert record(reader, stream.topic, 9, 0) is None
    assert record(reader, "no-such-topic", 0, 0) is None
    found = record(reader, stream.topic, 1, 2)
    assert found is not None
    assert found[3] == b"2"
    reader.close()


def test_a_topic_made_again_is_another_generation(settings: Settings, client: KafkaAdminClient, stream: Stream) -> None:
    reader = kafka.consumer(settings)
    kafka.ensure_topics(settings, [stream])
    state = reader.state([stream.topic, "no-such-topic"])
    assert list(state) == [stream.topic]
    before = reader.generations([stream.topic])
    assert before == {stream.topic: state[stream.topic].generation}
    client.delete_topics([stream.topic])
    while kafka.topic_ids(client, [stream.topic]):
        time.sleep(0.1)
    kafka.ensure_topics(settings, [stream])
    assert reader.generations([stream.topic]) != before
    reader.close()


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_what_any_codec_compressed_is_read_by_layers_and_recount(
    settings: Settings, client: KafkaAdminClient, stream: Stream, codec: str
) -> None:
    kafka.ensure_topics(settings, [stream])
    # More than one batch holds, and far more than one when it is unpacked.
    producer = KafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap_servers, compression_type=codec, batch_size=900_000, linger_ms=200
    )
    values = [b"%d " % number * 20_000 for number in range(60)]
    for value in values:
        producer.send(stream.topic, value=value, partition=1)
    producer.flush(timeout=30)
    producer.close()
    reader = kafka.consumer(settings)
    for offset in (0, 30, 59):
        found = record(reader, stream.topic, 1, offset)
        assert found is not None and found[3] == values[offset]
    topic_id = reader.state([stream.topic])[stream.topic].id
    reader.close()
    raw = RawLog(settings, {stream.topic: {topic_id: {"1": 60}}})
    read = [text for _, rows in raw.chunks() for text in rows["value"].to_pylist()]
    assert read == [value.decode() for value in values] and raw.account.faults == []


def test_the_recount_passes_over_markers_and_aborted_records_and_counts_them_as_holes(
    settings: Settings, client: KafkaAdminClient, stream: Stream
) -> None:
    kafka.ensure_topics(settings, [stream])
    producer = KafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap_servers, transactional_id=f"tests-{stream.topic}"
    )
    producer.init_transactions()
    for values, commits in (((b"0", b"1"), True), ((b"x", b"y", b"z"), False), ((b"2",), True), ((b"w",), False)):
        producer.begin_transaction()
        for value in values:
            producer.send(stream.topic, value=value, partition=1)
        producer.flush(timeout=30)
        if commits:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    producer.close()
    reader = kafka.consumer(settings)
    deadline = time.monotonic() + 20
    while (told := reader.state([stream.topic])[stream.topic]).partitions[1].end < 11 and time.monotonic() < deadline:
        time.sleep(0.1)
    reader.close()
    raw = RawLog(settings, {stream.topic: {told.id: {"1": 11}}})
    read = [
        pair
        for _, rows in raw.chunks()
        for pair in zip(rows["offset"].to_pylist(), rows["value"].to_pylist(), strict=True)
    ]
    assert read == [(0, "0"), (1, "1"), (7, "2")]
    assert raw.account.faults == [] and raw.account.holes == {(stream.topic, told.id, "1"): 8}


def test_an_open_transaction_is_not_the_end_and_its_marker_is_an_offset(
    settings: Settings, client: KafkaAdminClient, stream: Stream
) -> None:
    reader = kafka.consumer(settings)
    kafka.ensure_topics(settings, [stream])
    producer = KafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap_servers, transactional_id=f"tests-{stream.topic}"
    )
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(stream.topic, value=b"0", partition=1)
    producer.flush(timeout=30)
    assert reader.state([stream.topic])[stream.topic].partitions[1].end == 0
    producer.commit_transaction()
    deadline = time.monotonic() + 20
    while reader.state([stream.topic])[stream.topic].partitions[1].end != 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert reader.state([stream.topic])[stream.topic].partitions[1].end == 2
    assert record(reader, stream.topic, 1, 1) is None, "the marker"
    producer.close()
    reader.close()


def test_what_was_aborted_at_the_end_of_a_log_is_no_record(
    settings: Settings, client: KafkaAdminClient, stream: Stream
) -> None:
    """Else the offsets behind the last stored row would seem to have been filled since: another log."""
    kafka.ensure_topics(settings, [stream])
    send(settings, stream.topic, b"0")
    producer = KafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap_servers, transactional_id=f"tests-{stream.topic}"
    )
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(stream.topic, value=b"1", partition=1)
    producer.flush(timeout=30)
    producer.abort_transaction()
    producer.close()
    reader = kafka.consumer(settings)
    deadline = time.monotonic() + 20
    while reader.state([stream.topic])[stream.topic].partitions[1].end != 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [record(reader, stream.topic, 1, offset) is None for offset in (0, 1, 2)] == [False, True, True]
    assert [found.offset for found in reader.records(stream.topic, 1, 0, 3)] == [0]
    reader.close()


def test_lag_is_visible_to_group_tools(settings: Settings, client: KafkaAdminClient, stream: Stream) -> None:
    kafka.ensure_topics(settings, [stream])
    group = f"highwater.test.{stream.topic}"
    kafka.publish_lag(client, group, {stream.topic: {0: 0, 1: 7}})
    offsets = client.list_group_offsets({group: None})[group]
    assert {tp.partition: offset.offset for tp, offset in offsets.items()} == {0: 0, 1: 7}
    client.delete_groups([group])


def test_publishing_lag_never_raises(client: KafkaAdminClient) -> None:
    kafka.publish_lag(client, "highwater.test", {})
    kafka.publish_lag(client, "highwater.test", {"no-such-topic": {0: 1}})


def test_a_closed_port_fails_in_seconds_and_names_the_address(settings: Settings) -> None:
    start = time.monotonic()
    with pytest.raises(kafka.KafkaUnreachable, match=r"Kafka does not answer at localhost:1 .*KAFKA_BOOTSTRAP_SERVERS"):
        kafka.admin(load({"KAFKA_BOOTSTRAP_SERVERS": "localhost:1"}, environ={}, env_file=None), timeout=2)
    assert time.monotonic() - start < 5
