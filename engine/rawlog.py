"""What lies in the raw log below an offset? The recount's own reader: segments on HDFS, then Kafka, nothing else.

Each partition is read from its origin to the asked end, and every offset is accounted for: a row, an accepted gap, or a
fault that names the range. A file that vanishes (compaction) is looked for again in a fresh listing.
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
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import hdfs_native
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from engine.recount import Chunk, Place
from engine.settings import Settings

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
ROOT = "/data/master_dataset"
KAFKA_PATIENCE_SECONDS = 15.0

_FILE = re.compile(r"log=([^/]+)/partition=(\d+)/(\d{20})(?:-(\d{20}))?\.parquet")


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
    segments: list[str] = field(default_factory=list)
    from_kafka: dict[Place, tuple[int, int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    rows: int = 0


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
        self.found = {place: parts for topic in end for place, parts in segments_of(self._client, topic).items()}
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

    def _partition(self, place: Place, end: int) -> Iterator[pa.Table]:
        """Read one partition up to `end`; segments must meet, and what follows the last one comes from Kafka."""
        at = self.account.origins[place] = self._origin(place, end)
        visited: set[str] = set()
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
                rows, gap_end = read_segment(self._client, segment.path)
            except FileNotFoundError:
                self._list_again(place, segment)
                continue
            if segment.base < at and place not in self._listed_again:
                self._fault(place, segment.base, at, f"{segment.path} overlaps an earlier segment")
            self.account.segments.append(segment.path)
            if gap_end is not None:
                self.account.gaps.setdefault(place, []).append((at, min(gap_end, end)))
                at = gap_end
            else:
                self._check_name(place, segment, rows)
                at = yield from self._in_order(place, rows, at, end)
        self._check_strays(place, min(at, end), visited)

    def _origin(self, place: Place, end: int) -> int:
        found = self.found.get(place)
        if found:
            return found[0].base
        return self._kafka_start(place) if end and self._is_present(place) else 0

    def _segment_at(self, place: Place, at: int, visited: set[str]) -> Segment | None:
        """The newest unread segment that begins at or before an offset and may hold it."""
        for segment in reversed(self.found.get(place, ())):
            if segment.base <= at and segment.path not in visited and (segment.end is None or segment.end > at):
                return segment
        return None

    def _list_again(self, place: Place, vanished: Segment) -> None:
        self.found |= segments_of(self._client, place[0])
        self._listed_again.add(place)
        if vanished in self.found.get(place, ()):
            raise FileNotFoundError(f"{vanished.path} is listed but cannot be opened")

    def _in_order(self, place: Place, rows: pa.Table, at: int, end: int) -> Generator[pa.Table, None, int]:
        """Yield the rows of [at, end); return the offset after them. Missing and repeated offsets are faults."""
        offsets = rows["offset"].to_numpy()
        wanted = (offsets >= at) & (offsets < end)
        chosen = offsets[wanted]
        if not len(chosen):
            return at
        steps = np.diff(chosen, prepend=at - 1)
        for index in np.flatnonzero(steps != 1)[:5]:
            offset = int(chosen[index])
            before = offset - int(steps[index]) + 1
            reason = "the offsets are missing" if before < offset else "the offsets are repeated or out of order"
            self._fault(place, min(before, offset), max(before, offset), reason)
        yield rows.filter(pa.array(wanted)) if len(chosen) < len(offsets) else rows
        return int(chosen[-1]) + 1

    def _check_name(self, place: Place, segment: Segment, rows: pa.Table) -> None:
        first, last = (rows["offset"][0].as_py(), rows["offset"][-1].as_py()) if len(rows) else (-1, -1)
        if first != segment.base or segment.end not in (None, last + 1):
            self._fault(place, segment.base, last + 1, f"{segment.path} holds other offsets than its name says")

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
        start = at
        if (earliest := self._kafka_start(place)) > at:
            self._fault(place, at, min(earliest, end), "in no segment, and Kafka has deleted it")
            at = earliest
        for rows in self._poll(place, at, min(end, self._kafka_end(place))):
            at = yield from self._in_order(place, rows, at, end)
        if at < end:
            self._fault(place, at, end, "in no segment, and Kafka does not give it")
        self.account.from_kafka[place] = (start, at)

    def _poll(self, place: Place, at: int, end: int) -> Iterator[pa.Table]:
        partition = TopicPartition(place[0], int(place[2]))
        consumer = self._consumer
        consumer.assign([partition])
        consumer.seek(partition, at)
        deadline = time.monotonic() + KAFKA_PATIENCE_SECONDS
        while at < end and time.monotonic() < deadline:
            records = consumer.poll(timeout_ms=500, max_records=20_000).get(partition, [])
            if records:
                yield _table(records)
                at = records[-1].offset + 1
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
    """Return what a batch version says it was built from, None if the version is gone or says nothing. Raises OSError."""
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


def segments_of(client: hdfs_native.Client, topic: str) -> dict[Place, tuple[Segment, ...]]:
    """List a topic's segments by base, without the members of a compacted one."""
    found: dict[Place, list[Segment]] = {}
    try:
        entries = [
            (entry.path, entry.isdir, entry.modification_time)
            for entry in client.list_status(f"{ROOT}/topic={topic}", True)
        ]
    except FileNotFoundError:
        return {}
    for path, is_folder, modified_ms in entries:
        name = _FILE.fullmatch(path.partition(f"/topic={topic}/")[2])
        if name and not is_folder:
            segment = Segment("/" + path.lstrip("/"), int(name[3]), int(name[4]) if name[4] else None, int(modified_ms))
            found.setdefault((topic, name[1], name[2]), []).append(segment)
    return {place: visible(segments) for place, segments in found.items()}


def visible(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Segments by base; a base that lies inside a `<base>-<end>` name is a member about to be deleted."""
    shown: list[Segment] = []
    for segment in sorted(segments, key=lambda s: (s.base, -1 if s.end is None else -s.end)):
        inside = shown and shown[-1].end is not None and segment.base < shown[-1].end
        if not inside:
            shown.append(segment)
    return tuple(shown)


def read_segment(client: hdfs_native.Client, path: str) -> tuple[pa.Table, int | None]:
    """Return the rows of a segment, or no rows and the end of the accepted gap. Raises FileNotFoundError."""
    with client.read(path) as file:
        parquet = pq.ParquetFile(pa.BufferReader(file.read()))
    gap_end = (parquet.metadata.metadata or {}).get(b"highwater.end")
    rows = parquet.read(columns=COLUMNS).select(COLUMNS).cast(SCHEMA)
    return rows, int(gap_end) if gap_end is not None and not len(rows) else None


def _table(records: list[Any]) -> pa.Table:
    texts: list[str | None] = []
    for record in records:
        try:
            texts.append(record.value.decode() if record.value is not None else None)
        except UnicodeDecodeError:
            texts.append(None)
    raw = [record.value if text is None else None for record, text in zip(records, texts, strict=True)]
    columns = [[record.offset for record in records], [record.timestamp * 1000 for record in records], texts, raw]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
