"""What lies in the raw log below an offset? The recount's own reader: segments on HDFS, then Kafka, nothing else.

Each partition is read from its origin to the asked end, and every offset is accounted for: a row, an accepted gap, a
hole that a segment's footer or Kafka itself tells of, or a fault that names the range. A file that vanishes
(compaction) is looked for again in a fresh listing. What follows the last segment comes from Kafka, once its record
before that is the stored row.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import hdfs_native
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from engine.runtime.settings import Settings
from engine.verify.rows import Chunk, Place

Position = Mapping[str, Mapping[str, Mapping[str, int]]]

COLUMNS = ["offset", "timestamp", "value", "value_bytes"]
SCHEMA = pa.schema(
    [
        ("offset", pa.int64()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("value", pa.string()),
        ("value_bytes", pa.binary()),
    ]
)
# Kafka takes any 64 bits of milliseconds from a sender; what is longer than this is stored as this.
LONGEST_MS = 9_200_000_000_000_000
ROOT = "/data/master_dataset"
KAFKA_PATIENCE_SECONDS = 15.0

_FILE = re.compile(r"log=([^/]+)/partition=(\d+)/(\d{20})(?:-(\d{20}))?\.parquet")
_ORIGIN = re.compile(r"log=([^/]+)/partition=(\d+)/_origin")


@dataclass(frozen=True)
class Segment:
    """A committed file; `end` is known only where the name says it (compacted)."""

    path: str
    base: int
    end: int | None
    modified_ms: int = 0


@dataclass
class Account:
    """What was read and what could not be: ranges are [start, end)."""

    origins: dict[Place, int] = field(default_factory=dict)
    gaps: dict[Place, list[tuple[int, int]]] = field(default_factory=dict)
    holes: dict[Place, int] = field(default_factory=dict)
    segments: list[str] = field(default_factory=list)
    from_kafka: dict[Place, tuple[int, int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    rows: int = 0


@dataclass(frozen=True)
class Content:
    """What a segment holds: rows, the end of its range, how many offsets of it are holes, and whether it is a gap."""

    rows: pa.Table
    end: int
    holes: int = 0
    is_gap: bool = False


class RawLog:
    """Reads the raw log of some topics.

    Args:
        end: {topic: {log: {partition: end offset, exclusive}}}; what it does not name is not read.
    """

    def __init__(self, settings: Settings, end: Position) -> None:
        os.environ.setdefault("HADOOP_USER_NAME", settings.hadoop_user_name)
        _check_listens(settings.hdfs_url)
        self._client = hdfs_native.Client(settings.hdfs_url, {"dfs.client.use.datanode.hostname": "true"})
        self._kafka = settings.kafka_bootstrap_servers
        self.end = end
        self.found: dict[Place, tuple[Segment, ...]] = {}
        self.begun: dict[Place, int] = {}
        for topic in end:
            self._list(topic)
        self.topics = frozenset(end)
        self.account = Account()
        self._listed_again: set[Place] = set()

    def size(self) -> int:
        """About how many rows there are to read."""
        ends = [offset for logs in self.end.values() for parts in logs.values() for offset in parts.values()]
        return sum(ends)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the rows of every partition, in the order of offsets; what is missing goes to `account.faults`."""
        for topic, logs in self.end.items():
            for log, partitions in logs.items():
                for partition, end in partitions.items():
                    for rows in self._partition((topic, log, partition), end):
                        self.account.rows += len(rows)
                        yield (topic, log, partition), rows

    def _list(self, topic: str) -> None:
        segments, origins = listing_of(self._client, topic)
        self.found |= segments
        self.begun |= origins

    def _partition(self, place: Place, end: int) -> Iterator[pa.Table]:
        """Read one partition up to `end`; segments must meet, and what follows the last one comes from Kafka."""
        at = self.account.origins[place] = self._origin(place, end)
        visited: set[str] = set()
        base, before = 0, None  # of what reached furthest
        while at < end:
            segment = self._segment_at(place, at, visited)
            if segment is None:
                later = [s.base for s in self.found.get(place, ()) if s.base > at]
                if not later:
                    yield from self._from_kafka(place, at, end)
                    break
                self._fault(place, at, min(later[0], end), "no segment holds it, though later ones are there")
                at = later[0]
                continue
            visited.add(segment.path)
            try:
                content = read_segment(self._client, segment.path, segment.base)
            except FileNotFoundError:
                self._list_again(place, segment)
                continue
            # Copies that were put back may overlap what was read again meanwhile: the same rows, in other pieces.
            agree = before is not None and segment.base >= base and _agree(before, content, segment.base)
            if segment.base < at and place not in self._listed_again and not agree:
                self._fault(place, segment.base, at, f"{segment.path} overlaps an earlier segment")
            if before is None or content.end > before.end:
                base, before = segment.base, content
            self.account.segments.append(segment.path)
            if content.is_gap:
                self.account.gaps.setdefault(place, []).append((at, min(content.end, end)))
            else:
                self._check_range(place, segment, content)
                if content.end > at:
                    yield from self._in_order(place, content.rows, at, min(content.end, end), bool(content.holes))
            at = max(at, content.end)
        self._check_strays(place, min(at, end), visited)

    def _origin(self, place: Place, end: int) -> int:
        begun, found = self.begun.get(place), self.found.get(place)
        if begun is not None:
            return begun
        if found:
            return found[0].base
        return self._kafka_start(place) if end and self._is_present(place) else 0

    def _segment_at(self, place: Place, at: int, visited: set[str]) -> Segment | None:
        """The first unread segment that begins at or before an offset and may hold it."""
        for segment in self.found.get(place, ()):
            if segment.base <= at and segment.path not in visited and (segment.end is None or segment.end > at):
                return segment
        return None

    def _list_again(self, place: Place, vanished: Segment) -> None:
        self._list(place[0])
        self._listed_again.add(place)
        if vanished in self.found.get(place, ()):
            raise FileNotFoundError(f"{vanished.path} is listed but cannot be opened")

    def _in_order(self, place: Place, rows: pa.Table, at: int, end: int, holes: bool) -> Iterator[pa.Table]:
        """Yield the rows of [at, end); repeated offsets are faults, as are missing ones where no holes are told of."""
        offsets = rows["offset"].to_numpy()
        wanted = (offsets >= at) & (offsets < end)
        chosen = offsets[wanted]
        steps = np.diff(chosen, prepend=at - 1, append=end)
        missing = int((steps - 1).clip(min=0).sum())
        for index in np.flatnonzero(steps < 1)[:5]:
            self._fault(
                place, int(chosen[min(index, len(chosen) - 1)]), end, "the offsets are repeated or out of order"
            )
        if holes:
            self.account.holes[place] = self.account.holes.get(place, 0) + missing
        else:
            for index in np.flatnonzero(steps > 1)[:5]:
                after = int(chosen[index]) if index < len(chosen) else end
                self._fault(place, after - int(steps[index]) + 1, after, "the offsets are missing")
        if len(chosen):
            yield rows.filter(pa.array(wanted)) if len(chosen) < len(offsets) else rows

    def _check_range(self, place: Place, segment: Segment, content: Content) -> None:
        offsets = content.rows["offset"].to_numpy()
        inside = not len(offsets) or (offsets[0] >= segment.base and offsets[-1] < content.end)
        named = segment.end if segment.end is not None else content.end
        if not inside or content.end != named or content.end - segment.base - len(offsets) != content.holes:
            self._fault(place, segment.base, content.end, f"{segment.path} holds other offsets than it says")

    def _check_strays(self, place: Place, at: int, visited: set[str]) -> None:
        for segment in self.found.get(place, ()):
            if segment.base < at and segment.path not in visited and place not in self._listed_again:
                self._fault(place, segment.base, at, f"{segment.path} overlaps its neighbours")

    def _fault(self, place: Place, start: int, end: int, reason: str) -> None:
        topic, log, partition = place
        self.account.faults.append(f"topic '{topic}' log {log} partition {partition} [{start}, {end}): {reason}")

    def _from_kafka(self, place: Place, at: int, end: int) -> Iterator[pa.Table]:
        if not self._is_present(place):
            self._fault(place, at, end, "in no segment, and Kafka's topic is another log now")
            return
        if (differing := self._differs(place, at)) is not None:
            reason = f"in no segment, and Kafka's record at {differing} is not the stored row: Kafka has another log"
            self._fault(place, at, end, reason)
            return
        start = at
        if (earliest := self._kafka_start(place)) > at:
            self._fault(place, at, min(earliest, end), "in no segment, and Kafka has deleted it")
            at = earliest
        there = min(end, self._kafka_end(place))
        for rows, reached in self._poll(place, at, there):
            # What Kafka passes over, with its start at or below it, is no record: a marker, or an aborted one.
            yield from self._in_order(place, rows, at, reached, holes=self._kafka_start(place) <= at)
            at = reached
        if at < end:
            self._fault(place, at, end, "in no segment, and Kafka does not give it")
        self.account.from_kafka[place] = (start, at)

    def _differs(self, place: Place, head: int) -> int | None:
        """Return the offset at which Kafka's log is not the stored one, None if it is, or nothing can be compared."""
        row = self._stored_before(place, min(head, self._kafka_end(place)))
        if row is None or row[0] < self._kafka_start(place):
            return None
        for _, records in self._records(place, row[0], row[0] + 1):
            told = [(one.offset, _held(one.timestamp), one.key, one.value) for one in records[:1]]
            return None if told == [row] else row[0]
        return None

    def _stored_before(self, place: Place, end: int) -> tuple[int, int, bytes | None, bytes | None] | None:
        """Return offset, timestamp in ms, key and value of the last stored row below an offset."""
        for segment in reversed(self.found.get(place, ())):
            if segment.base >= end:
                continue
            with self._client.read(segment.path) as file:
                table = pq.ParquetFile(pa.BufferReader(file.read())).read()
            below = np.flatnonzero(table["offset"].to_numpy() < end)
            if len(below):
                row = table.slice(int(below[-1]), 1)
                micros = row["timestamp"].cast(pa.int64())[0].as_py()
                texts = row.select(["offset", "key", "key_bytes", "value", "value_bytes"]).to_pylist()[0]
                key, value = (
                    texts[name].encode() if texts[name] is not None else texts[f"{name}_bytes"]
                    for name in ("key", "value")
                )
                return texts["offset"], _held(micros // 1000), key, value
        return None

    def _poll(self, place: Place, at: int, end: int) -> Iterator[tuple[pa.Table, int]]:
        """Yield rows of [at, end), and up to where Kafka was read."""
        for reached, records in self._records(place, at, end):
            yield _table([record for record in records if record.offset < end]), min(reached, end)

    def _records(self, place: Place, at: int, end: int) -> Iterator[tuple[int, list[Any]]]:
        partition = TopicPartition(place[0], int(place[2]))
        consumer = self._consumer
        consumer.assign([partition])
        consumer.seek(partition, at)
        deadline = time.monotonic() + KAFKA_PATIENCE_SECONDS
        while at < end and time.monotonic() < deadline:
            records = consumer.poll(timeout_ms=500, max_records=20_000).get(partition, [])
            reached = consumer.position(partition)
            if records or reached > at:
                yield reached, records
                at = reached
                deadline = time.monotonic() + KAFKA_PATIENCE_SECONDS

    def _kafka_start(self, place: Place) -> int:
        partition = TopicPartition(place[0], int(place[2]))
        return int(self._consumer.beginning_offsets([partition])[partition])

    def _kafka_end(self, place: Place) -> int:
        partition = TopicPartition(place[0], int(place[2]))
        return int(self._consumer.end_offsets([partition])[partition])

    def _is_present(self, place: Place) -> bool:
        """True if Kafka's topic is what continues this log: its id, or the newest `.2`, `.3` … of it."""
        topic, log, _ = place
        base = self._topic_ids.get(topic, "")
        known = {other for where in (self.found, self._named) for name, other, _ in where if name == topic}
        numbers = [int(other[len(base) + 1 :]) for other in known if re.fullmatch(re.escape(base) + r"\.\d+", other)]
        return bool(base) and log == (f"{base}.{max(numbers)}" if numbers else base)

    @functools.cached_property
    def _named(self) -> set[Place]:
        return {(topic, log, p) for topic, logs in self.end.items() for log, parts in logs.items() for p in parts}

    @functools.cached_property
    def _consumer(self) -> KafkaConsumer:
        return KafkaConsumer(
            bootstrap_servers=self._kafka.split(","),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            max_partition_fetch_bytes=8 << 20,
            bootstrap_timeout_ms=10_000,
        )

    @functools.cached_property
    def _topic_ids(self) -> dict[str, str]:
        """Topic → its id as Kafka's tools print it."""
        admin = KafkaAdminClient(bootstrap_servers=self._kafka.split(","), bootstrap_timeout_ms=10_000)
        try:
            told = admin.describe_topics(list(self.end))
        finally:
            admin.close()
        ids = {topic["name"]: uuid.UUID(str(topic["topic_id"])).bytes for topic in told if not topic["error_code"]}
        return {name: base64.urlsafe_b64encode(one).decode().rstrip("=") for name, one in ids.items()}


def definition_in_manifest(settings: Settings, domain: str, version: int) -> dict[str, Any] | None:
    """Return what a batch version says it was built from, None if the version is gone or says nothing.

    Raises OSError.
    """
    os.environ.setdefault("HADOOP_USER_NAME", settings.hadoop_user_name)
    _check_listens(settings.hdfs_url)
    client = hdfs_native.Client(settings.hdfs_url, {"dfs.client.use.datanode.hostname": "true"})
    try:
        with client.read(f"/data/batch_views/_versions/{domain}/{version:010d}/manifest.json") as file:
            return json.loads(bytes(file.read())).get("definition") or None
    except FileNotFoundError:
        return None


def _check_listens(url: str) -> None:
    """The HDFS client would try for minutes; a NameNode that is not there is told at once. Raises OSError."""
    address = urlsplit(url)
    if address.hostname and address.port:
        socket.create_connection((address.hostname, address.port), timeout=10).close()


def listing_of(client: hdfs_native.Client, topic: str) -> tuple[dict[Place, tuple[Segment, ...]], dict[Place, int]]:
    """List a topic's segments by base, without those that others hold; and the origins that were committed."""
    found: dict[Place, list[Segment]] = {}
    origins: dict[Place, int] = {}
    try:
        entries = [
            (entry.path, entry.isdir, entry.modification_time)
            for entry in client.list_status(f"{ROOT}/topic={topic}", True)
        ]
    except FileNotFoundError:
        return {}, {}
    for path, is_folder, modified_ms in entries:
        below = path.partition(f"/topic={topic}/")[2]
        if is_folder:
            continue
        if name := _FILE.fullmatch(below):
            segment = Segment("/" + path.lstrip("/"), int(name[3]), int(name[4]) if name[4] else None, int(modified_ms))
            found.setdefault((topic, name[1], name[2]), []).append(segment)
        elif name := _ORIGIN.fullmatch(below):
            with client.read("/" + path.lstrip("/")) as file:
                origins[topic, name[1], name[2]] = int(json.loads(bytes(file.read()))["origin"])
    return {place: visible(segments) for place, segments in found.items()}, origins


def visible(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Segments by base, without members that a `<base>-<end>` holds whole, and without merges that lead nowhere.

    Walks from the first base as far as it can, trying the widest name first: a merge is believed only if what follows
    begins where it ends.
    """
    by_base: dict[int, list[Segment]] = {}
    for segment in segments:
        by_base.setdefault(segment.base, []).append(segment)
    bases = sorted(by_base)
    following = dict(zip(bases, [*bases[1:], None], strict=True))
    last = max([*bases, *(s.end or 0 for s in segments if s.end is not None)]) if bases else 0
    paths: dict[int, list[Segment]] = {last: []}
    for base in reversed(bases):
        # The widest first; a plain name goes on to the next base.
        for segment in sorted(by_base[base], key=lambda s: -(s.end or 0)):
            end = segment.end if segment.end is not None else following[base]
            rest = [] if end is None else paths.get(end)
            if rest is not None:
                paths[base] = [segment, *rest]
                break
    if bases and bases[0] in paths:
        return tuple(paths[bases[0]])
    return tuple(s for base in bases for s in by_base[base])


def read_segment(client: hdfs_native.Client, path: str, base: int) -> Content:
    """Return what a segment holds. Raises FileNotFoundError."""
    with client.read(path) as file:
        parquet = pq.ParquetFile(pa.BufferReader(file.read()))
    told = parquet.metadata.metadata or {}
    rows = parquet.read(columns=COLUMNS).select(COLUMNS).cast(SCHEMA)
    end = int(told.get(b"highwater.end", base + len(rows)))
    is_gap = not len(rows) and b"highwater.end" in told and b"highwater.holes" not in told
    return Content(rows, end, int(told.get(b"highwater.holes", 0)), is_gap)


def _agree(earlier: Content, later: Content, base: int) -> bool:
    """True if two segments hold the same rows from `base`, where the later one begins, up to where one of them ends."""
    offsets = pc.field("offset")
    common = (offsets >= base) & (offsets < min(earlier.end, later.end))
    return bool(earlier.rows.filter(common).equals(later.rows.filter(common)))


def _held(milliseconds: int) -> int:
    return max(-LONGEST_MS, min(milliseconds, LONGEST_MS))


def _table(records: list[Any]) -> pa.Table:
    texts: list[str | None] = []
    for record in records:
        try:
            texts.append(record.value.decode() if record.value is not None else None)
        except UnicodeDecodeError:
            texts.append(None)
    raw = [record.value if text is None else None for record, text in zip(records, texts, strict=True)]
    columns = [
        [record.offset for record in records],
        [_held(record.timestamp) * 1000 for record in records],
        texts,
        raw,
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
