"""What does Kafka say about its logs: topics, ids, ranges, single records? And what do Kafka's own tools see of us?

Everything that asks Kafka outside Spark's source goes through here, with kafka-python and with bounded waits.
Clients of this module may be shared by threads.
"""

from __future__ import annotations

import base64
import contextlib
import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, RetriableError
from kafka.protocol.consumer import IsolationLevel, OffsetSpec
from kafka.structs import OffsetAndMetadata

from engine.domain import Stream
from engine.runtime.settings import Settings

REQUEST_SECONDS = 10.0
# The longest time of a record that is stored, in ms: in microseconds, and with a window added, it still fits into 64
# bits.
LONGEST_MS = 9_200_000_000_000_000
# Kafka refuses a record whose own timestamp runs ahead of the broker's clock by more than this.
TOPIC_CONFIG = {"cleanup.policy": "delete", "message.timestamp.after.max.ms": "3600000"}

_UNKNOWN_TOPIC, _ALREADY_EXISTS, _INVALID_CONFIG = 3, 36, 40
_T = TypeVar("_T")

_log = structlog.get_logger("engine.runtime.kafka")

Record = tuple[int, int, bytes | None, bytes | None]  # offset, timestamp in ms, key, value
Generation = tuple[str, tuple[tuple[int, int], ...]]  # topic id, (partition, leader's epoch) of each


@dataclass(frozen=True)
class PartitionState:
    """Kafka's range of a partition: first offset, end of what a reader of committed records sees.

    And its leader's epoch.
    """

    leader_epoch: int
    start: int
    end: int


@dataclass(frozen=True)
class TopicState:
    """A topic's id, as Kafka's tools write it, and its partitions."""

    id: str
    partitions: Mapping[int, PartitionState]

    @property
    def generation(self) -> Generation:
        """What changes whenever the log may have become another one: the topic's id and the epochs of its leaders."""
        return self.id, tuple((p, state.leader_epoch) for p, state in sorted(self.partitions.items()))


class KafkaLogs(Protocol):
    """What the layers ask of Kafka; `Reader` is one."""

    def generations(self, topics: Iterable[str]) -> dict[str, Generation]:
        """Return the generation of each topic that exists."""
        ...

    def state(self, topics: Iterable[str]) -> dict[str, TopicState]:
        """Return the state of each topic that exists."""
        ...

    def records_at(self, wanted: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], Record]:
        """Return the record at one offset of each (topic, partition); what the log does not hold is left out."""
        ...


class KafkaUnreachable(ConnectionError):
    """Kafka gives no answer; one line with the address and the way out."""


class TopicRefused(ValueError):
    """The topic cannot be a log of ours, such as a compacted one; one line with its name and the way out."""


def admin(settings: Settings, timeout: float = 5.0) -> KafkaAdminClient:
    """Connect an admin client, trying for `timeout` seconds.

    Raises:
        KafkaUnreachable: nothing answered.
    """
    return _connected(KafkaAdminClient, settings, timeout, request_timeout_ms=int(REQUEST_SECONDS * 1000))


class Reader:
    """Reads single records and asks for the state of topics; it has no group and commits nothing.

    Each record is read by a new KafkaConsumer, because an old one may answer from what it fetched ahead before the
    topic became another one; and topics are asked of an admin client, because a consumer asks without a time limit.
    """

    def __init__(self, settings: Settings, timeout: float) -> None:
        self.admin = admin(settings, timeout)
        self._settings, self._timeout = settings, timeout

    def generations(self, topics: Iterable[str]) -> dict[str, Generation]:
        """Return the generation of each topic that exists, with a single request. Raises KafkaUnreachable."""
        return _generations(self.admin, topics)

    def state(self, topics: Iterable[str]) -> dict[str, TopicState]:
        """Return the state of each topic that exists. Raises KafkaUnreachable."""
        return state(self.admin, topics)

    def records_at(self, wanted: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], Record]:
        """Return the record at one offset of each (topic, partition); what the log does not hold is left out.

        Raises:
            KafkaUnreachable: the log holds it, but it did not come in time.
        """
        return _records_at(self, wanted)

    def read(self, wanted: Mapping[TopicPartition, int]) -> dict[TopicPartition, Any]:
        """Return, per partition, the first record at or after the wanted offset; those that came in time.

        Where Kafka has passed the offset without a record (a transaction's marker is none), that is None.
        """
        client = self._consumer(
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=65_536,  # one record is wanted, and a larger one comes all the same
            request_timeout_ms=int(REQUEST_SECONDS * 1000),
        )
        found: dict[TopicPartition, Any] = {}
        try:
            client.assign(list(wanted))
            for tp, offset in wanted.items():
                client.seek(tp, offset)
            deadline = time.monotonic() + REQUEST_SECONDS
            while len(found) < len(wanted) and time.monotonic() < deadline:
                for tp, records in client.poll(timeout_ms=500).items():
                    found.setdefault(tp, records[0])
                for tp in [tp for tp in wanted if tp in found or client.position(tp) > wanted[tp]]:
                    found.setdefault(tp, None)
                    client.pause(tp)
            return found
        finally:
            client.close(autocommit=False, timeout_ms=1000)

    def records(self, topic: str, partition: int, start: int, end: int) -> list[Any]:
        """Return the committed records of [start, end), as kafka-python gives them.

        Raises:
            KafkaUnreachable: they did not come in time.
        """
        client = self._consumer(auto_offset_reset="none")
        place, found = TopicPartition(topic, partition), []
        try:
            client.assign([place])
            client.seek(place, start)
            reached, deadline = start, time.monotonic() + REQUEST_SECONDS
            while reached < end:
                found += [record for record in client.poll(timeout_ms=500).get(place, []) if record.offset < end]
                if client.position(place) > reached:
                    reached, deadline = client.position(place), time.monotonic() + REQUEST_SECONDS
                elif time.monotonic() > deadline:
                    raise KafkaUnreachable(
                        f"topic '{topic}' partition {partition}: offset {reached} not read in {REQUEST_SECONDS:g} s"
                    )
            return found
        except KafkaError as error:
            raise _unreachable(self._settings, error) from error
        finally:
            client.close(autocommit=False, timeout_ms=1000)

    def _consumer(self, **config: Any) -> KafkaConsumer:
        """Connect a client that reads what Spark's source reads: what was aborted is no record."""
        return _connected(
            KafkaConsumer,
            self._settings,
            self._timeout,
            group_id=None,
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            isolation_level="read_committed",
            **config,
        )

    def close(self) -> None:
        """Close the connection."""
        self.admin.close()


def consumer(settings: Settings, timeout: float = 5.0) -> Reader:
    """Connect what reads generations, ranges and records.

    Raises:
        KafkaUnreachable: nothing answered.
    """
    return Reader(settings, timeout)


def ensure_topics(settings: Settings, streams: Iterable[Stream], timeout: float = 30.0) -> None:
    """Create what is missing and wait until every partition has a leader.

    Raises:
        KafkaUnreachable: nothing answered, or a partition got no leader in `timeout` seconds.
        TopicRefused: a topic is compacted, or Kafka does not want to create it.
    """
    wanted = {stream.topic: stream.partitions for stream in streams}
    client = admin(settings)
    try:
        deadline = time.monotonic() + timeout
        while waiting := _not_ready(client, settings, wanted):
            if time.monotonic() > deadline:
                raise KafkaUnreachable(f"topics {', '.join(waiting)}: no leader for every partition in {timeout:g} s")
            # Asked again and again: a topic that is still being deleted "already exists" and then vanishes.
            absent = {topic: wanted[topic] for topic, code in waiting.items() if code == _UNKNOWN_TOPIC}
            if absent:
                _create(client, settings, absent)
            time.sleep(0.1)
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": None}) for topic in wanted]
        told = _answer(lambda: client.describe_configs(resources, config_filter="all"), settings)
        for topic, config in told.get("topic", {}).items():
            policy = str(config.get("cleanup.policy", {}).get("value") or "delete")
            if "compact" in policy:
                raise TopicRefused(
                    f"topic '{topic}': cleanup.policy={policy} removes records within the log, nothing stays exact; "
                    f"set cleanup.policy=delete or use another topic"
                )
    finally:
        client.close()


def state(client: KafkaAdminClient, topics: Iterable[str]) -> dict[str, TopicState]:
    """Return the state of each topic that exists. Raises KafkaUnreachable."""
    names = list(topics)

    def ask() -> dict[str, TopicState]:
        told = [topic for topic in client.describe_topics(names) if not topic["error_code"]]
        places = [TopicPartition(t["name"], p["partition_index"]) for t in told for p in t["partitions"]]
        # The end of what a reader of committed records gets, as Spark's source reads: open transactions lie above it.
        starts, ends = (
            client.list_partition_offsets(
                dict.fromkeys(places, spec), IsolationLevel.READ_COMMITTED, timeout_ms=int(REQUEST_SECONDS * 1000)
            )
            if places
            else {}
            for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
        )
        found = {}
        for topic in told:
            partitions = {}
            for described in sorted(topic["partitions"], key=lambda p: p["partition_index"]):
                tp = TopicPartition(topic["name"], described["partition_index"])
                leader_epoch = int(described["leader_epoch"])
                partitions[tp.partition] = PartitionState(leader_epoch, starts[tp].offset, ends[tp].offset)
            found[topic["name"]] = TopicState(_id_text(uuid.UUID(str(topic["topic_id"]))), partitions)
        return found

    return _answer(ask)


def topic_ids(client: KafkaAdminClient, topics: Iterable[str]) -> dict[str, str]:
    """Ids of the topics, written as Kafka's tools write them; a topic that does not exist is left out."""
    told = _answer(lambda: client.describe_topics(list(topics)))
    ids = {topic["name"]: uuid.UUID(str(topic["topic_id"])) for topic in told if not topic["error_code"]}
    return {topic: _id_text(value) for topic, value in ids.items() if value.int}


def _generations(client: KafkaAdminClient, topics: Iterable[str]) -> dict[str, Generation]:
    told = _answer(lambda: client.describe_topics(list(topics)))
    return {
        t["name"]: (
            _id_text(uuid.UUID(str(t["topic_id"]))),
            tuple(sorted((p["partition_index"], int(p["leader_epoch"])) for p in t["partitions"])),
        )
        for t in told
        if not t["error_code"]
    }


def log_ranges(client: KafkaAdminClient | Reader, topics: Iterable[str]) -> dict[str, dict[int, tuple[int, int]]]:
    """Earliest offset and end offset (exclusive) of every partition; a topic that does not exist is left out."""
    told = state(client.admin if isinstance(client, Reader) else client, topics)
    return {topic: {p: (at.start, at.end) for p, at in found.partitions.items()} for topic, found in told.items()}


def _records_at(reader: Reader, wanted: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], Record]:
    ranges = log_ranges(reader, {topic for topic, _ in wanted})
    held = {}
    for (topic, partition), offset in wanted.items():
        start, end = ranges.get(topic, {}).get(partition, (0, 0))
        if start <= offset < end:
            held[TopicPartition(topic, partition)] = offset
    if not held:
        return {}
    found = _answer(lambda: reader.read(held))
    late = [tp for tp in held if tp not in found]
    if late:
        raise KafkaUnreachable(
            f"topic '{late[0].topic}' partition {late[0].partition}: offset {held[late[0]]} not read in {REQUEST_SECONDS:g} s"
        )
    return {
        (tp.topic, tp.partition): (record.offset, stored_ms(record.timestamp), record.key, record.value)
        for tp, record in found.items()
        if record is not None and record.offset == held[tp]
    }


def stored_ms(milliseconds: int) -> int:
    """Return a record's time as it is stored; a sender may have set any 64 bits, such as nanoseconds."""
    return max(-LONGEST_MS, min(milliseconds, LONGEST_MS))


def publish_lag(client: KafkaAdminClient, group: str, ends: Mapping[str, Mapping[int, int]]) -> None:
    """Commit `ends` (topic → partition → end offset) for `group`, so that Kafka's tools show our lag.

    Display only, never read back: a failure is one line at debug level.
    """
    offsets = {
        TopicPartition(topic, partition): OffsetAndMetadata(offset, "", -1)
        for topic, partitions in ends.items()
        for partition, offset in partitions.items()
    }

    def ask() -> None:
        for error in client.alter_group_offsets(group, offsets).values():
            if error.errno:
                raise error

    try:
        if offsets:
            _answer(ask, patience=3.0)
    except (KafkaError, KafkaUnreachable, OSError, RuntimeError) as error:
        _log.debug("lag not published", group=group, error=repr(error))


def _connected(client: type[_T], settings: Settings, timeout: float, **config: Any) -> _T:
    # One attempt: kafka-python itself tries again until bootstrap_timeout_ms, with back-off and jitter.
    instance: Any = object.__new__(client)
    try:
        instance.__init__(
            bootstrap_servers=settings.kafka_bootstrap_servers.split(","),
            bootstrap_timeout_ms=int(timeout * 1000),
            reconnect_backoff_max_ms=1000,
            **config,
        )
    except (KafkaError, OSError) as error:
        instance._closed = False  # a client that never connected would keep its thread and socket for ever
        with contextlib.suppress(AttributeError, KafkaError, OSError):
            instance.close()
        raise _unreachable(settings, error) from None
    return instance  # type: ignore[no-any-return]


def _answer(ask: Callable[[], _T], settings: Settings | None = None, patience: float = 15.0) -> _T:
    deadline = time.monotonic() + patience
    pause = 0.1
    while True:
        try:
            return ask()
        except (RetriableError, OSError) as error:
            if isinstance(error, KafkaUnreachable):
                raise
            if time.monotonic() + pause > deadline:
                raise _unreachable(settings, error) from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 2.0)


def _unreachable(settings: Settings | None, error: Exception) -> KafkaUnreachable:
    where = f" at {settings.kafka_bootstrap_servers}" if settings else ""
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return KafkaUnreachable(
        f"Kafka does not answer{where} ({reason}); start it with 'python -m stack up' or set KAFKA_BOOTSTRAP_SERVERS"
    )


def _not_ready(client: KafkaAdminClient, settings: Settings, wanted: Mapping[str, int]) -> dict[str, int]:
    """Topics that cannot be used yet, with Kafka's error code (0: a partition without a leader)."""
    told = {topic["name"]: topic for topic in _answer(lambda: client.describe_topics(list(wanted)), settings)}
    return {
        topic: told[topic]["error_code"] if topic in told else _UNKNOWN_TOPIC
        for topic in wanted
        if topic not in told
        or told[topic]["error_code"]
        or any(partition["leader_id"] < 0 for partition in told[topic]["partitions"])
    }


def _create(client: KafkaAdminClient, settings: Settings, topics: Mapping[str, int]) -> None:
    for config in (TOPIC_CONFIG, {"cleanup.policy": "delete"}):  # the second for brokers that do not know the first
        wanted = {
            # as many copies as the broker gives by default (conf/kafka.env, the overlays of k8s/)
            topic: {"num_partitions": partitions, "replication_factor": -1, "configs": config}
            for topic, partitions in topics.items()
        }
        told = _answer(lambda wanted=wanted: client.create_topics(wanted, raise_errors=False), settings)  # type: ignore[misc]
        failed = {t["name"]: t for t in told["topics"] if t["error_code"] not in (0, _ALREADY_EXISTS)}
        if not failed:
            return
        topics = {topic: topics[topic] for topic in failed}
        if any(t["error_code"] != _INVALID_CONFIG for t in failed.values()):
            break
    topic, answer = next(iter(failed.items()))
    reason = answer.get("error_message") or f"error code {answer['error_code']}"
    raise TopicRefused(f"topic '{topic}': Kafka does not create it: {reason}")


def _id_text(value: uuid.UUID) -> str:
    """Kafka's `Uuid.toString`: base64url without padding, 22 characters."""
    return base64.urlsafe_b64encode(value.bytes).decode().rstrip("=")
