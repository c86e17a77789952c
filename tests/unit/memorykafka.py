"""A Kafka in memory, with the faults that a log may meet.

What the layers ask of one (`engine.runtime.kafka.KafkaLogs`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from engine.runtime.kafka import Generation, PartitionState, Record, TopicState


class DataLoss(RuntimeError):
    """What Spark's source says with failOnDataLoss=true."""


@dataclass
class KafkaPartition:
    """Offsets from `start` on; None is an offset without a record: a marker, an aborted record."""

    start: int = 0
    entries: list[Record | None] = field(default_factory=list)
    leader_epoch: int = 0

    # What the log held each time before it lost something.
    lives: list[list[Record | None]] = field(default_factory=list)
    forgotten: list[Record | None] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.entries)


class MemoryKafka:
    """Topics with partitions; `before_state` is called when somebody asks for the state of topics."""

    def __init__(self) -> None:
        self.topics: dict[str, tuple[str, dict[int, KafkaPartition]]] = {}
        self.before_state: Callable[[], None] = lambda: None
        self._ids = itertools.count(1)
        self._values = itertools.count(1)

    def create(self, topic: str, partitions: int) -> None:
        """Make a topic, also one that was deleted: it has a new id."""
        self.topics[topic] = (f"id{next(self._ids)}", {p: KafkaPartition() for p in range(partitions)})

    def append(self, topic: str, p: int, records: int) -> None:
        """Append records whose timestamps, and so they themselves, differ from all others."""
        for _ in range(records):
            number = next(self._values)
            self.append_value(topic, p, 1_000 + number, f'{{"id": "id{number}"}}'.encode())

    def append_value(self, topic: str, p: int, timestamp_ms: int, value: bytes) -> None:
        partition = self.topics[topic][1][p]
        partition.entries.append((partition.end, timestamp_ms, None, value))

    def append_holes(self, topic: str, p: int, holes: int) -> None:
        self.topics[topic][1][p].entries += [None] * holes

    def cut(self, topic: str, p: int, end: int) -> None:
        """Lose the end of a partition, as a power cut does."""
        partition = self.topics[topic][1][p]
        partition.lives.append(partition.forgotten + partition.entries)
        del partition.entries[max(0, end - partition.start) :]
        partition.leader_epoch += 1

    def lose_disk(self, topic: str) -> None:
        """Begin anew under the same id."""
        topic_id, partitions = self.topics[topic]
        fresh = {
            p: KafkaPartition(leader_epoch=x.leader_epoch + 1, lives=[*x.lives, x.forgotten + x.entries])
            for p, x in partitions.items()
        }
        self.topics[topic] = (topic_id, fresh)

    def forget(self, topic: str, p: int, start: int) -> None:
        """Delete what lies below an offset, as retention does."""
        partition = self.topics[topic][1][p]
        partition.forgotten += partition.entries[: start - partition.start]
        del partition.entries[: start - partition.start]
        partition.start = start

    def read(self, topic: str, p: int, start: int, end: int) -> list[Record]:
        """Return the records of planned offsets. Raises DataLoss where they are not there."""
        if topic not in self.topics or p not in self.topics[topic][1]:
            raise DataLoss(f"no partition {p} of topic '{topic}'")
        partition = self.topics[topic][1][p]
        if start < partition.start or end > partition.end:
            raise DataLoss(f"[{start}, {end}) wanted, [{partition.start}, {partition.end}) there")
        return [r for r in partition.entries[start - partition.start : end - partition.start] if r is not None]

    def state(self, topics: Iterable[str]) -> dict[str, TopicState]:
        self.before_state()
        found = {}
        for topic in topics:
            if topic in self.topics:
                topic_id, by = self.topics[topic]
                states = {p: PartitionState(x.leader_epoch, x.start, x.end) for p, x in by.items()}
                found[topic] = TopicState(topic_id, states)
        return found

    def generations(self, topics: Iterable[str]) -> dict[str, Generation]:
        return {topic: told.generation for topic, told in self.state(topics).items()}

    def records_at(self, wanted: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], Record]:
        found = {}
        for (topic, p), offset in wanted.items():
            partition = self.topics.get(topic, ("", {}))[1].get(p, KafkaPartition())
            if partition.start <= offset < partition.end:
                record = partition.entries[offset - partition.start]
                if record is not None:
                    found[topic, p] = record
        return found
