"""What is in the log? Segments, origins, heads, gaps, holes, and where they lie.

Kafka's log goes on in Parquet: `<root>/topic=<T>/log=<L>/partition=<P>/<base offset, 20 digits>.parquet`. The file
name is the commit (`engine.storage.commit`): every segment is named by the head it continues. Beside its segments a
partition of the raw log has `_origin`, the offset at which it begins, committed once before the first of them.

A segment covers [base, end). Its end is told by the base of the next one; the last one's footer tells it: base + rows,
or `highwater.end`. Three kinds of offsets have no row. An *accepted gap*, which Kafka deleted before it was ingested,
is a segment of zero rows. A *hole*, which never was a record for a reader (a transaction's marker, an aborted record,
one that Kafka's compaction took), lies within a segment whose footer counts and names the holes; `_holes` in the
partition's folder says that there are such footers to read. Example: of the offsets [100, 106) Kafka gives 100, 101,
102 and 105, since 103 was aborted and 104 is the marker of that; the segment 100 has four rows, `highwater.end` 106,
`highwater.holes` 2 and `highwater.missing` "103-105".
A segment of zero rows with `highwater.closed` closes the log: its base can be taken by nobody any more.

Positions are JSON-shaped everywhere: {topic: {log: {partition: offset}}}, partition as text, offset exclusive.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from engine.domain import Stream
from engine.storage.hdfs import Entry

MASTER = "/data/master_dataset"
EVENTS = "/data/events"
STAGING = "/data/.staging"
ORIGIN_FILE, HOLES_FILE = "_origin", "_holes"

# Footer entries: the end (exclusive) of what a segment covers; how many offsets of it have no row, and which.
RANGE_END, HOLES, MISSING = b"highwater.end", b"highwater.holes", b"highwater.missing"
# Footer entry of the segment of zero rows at the end of a log that was closed.
CLOSED = b"highwater.closed"
LISTINGS = 5
LISTING_PAUSE_SECONDS = 0.2

Position = dict[str, dict[str, dict[str, int]]]
Place = tuple[str, str, str]  # topic, log, partition
Range = tuple[int, int]  # [start, end)

RAW_ARROW = pa.schema(
    [
        ("key", pa.string()),
        ("value", pa.string()),
        ("key_bytes", pa.binary()),
        ("value_bytes", pa.binary()),
        ("offset", pa.int64()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("headers", pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))),
    ]
)

# The columns of a raw segment as Spark reads it; topic, log and partition come from the path.
RAW_SCHEMA = (
    "key STRING, value STRING, key_bytes BINARY, value_bytes BINARY, `offset` BIGINT, `timestamp` TIMESTAMP, "
    "headers ARRAY<STRUCT<key: STRING, value: BINARY>>, topic STRING, log STRING, `partition` STRING"
)

_SEGMENT = re.compile(r"(\d{20})(?:-(\d{20}))?\.parquet")


class MasterWentBack(RuntimeError):
    """The log does not reach from its origin to a position that was already reached: a segment was removed by hand."""


class DamagedSegment(MasterWentBack):
    """A segment is no Parquet file any more; a raw one has to be restored, a typed one is made again."""


class FileSystem(Protocol):
    """What the commit protocol asks of a file system; `engine.storage.hdfs.Hdfs` is one."""

    def list(self, path: str, recursive: bool = False) -> list[Entry]: ...
    def status(self, path: str) -> Entry | None: ...
    def read(self, path: str) -> bytes: ...
    def open_parquet(self, path: str) -> pq.ParquetFile: ...
    def create(self, path: str, data: bytes) -> None: ...
    def mkdirs(self, path: str) -> None: ...
    def delete(self, path: str, recursive: bool = False) -> bool: ...
    def rename(self, source: str, target: str) -> None: ...


@dataclass(frozen=True)
class Segment:
    """A committed file: offsets [base, end); end is None where only the footer knows it (the newest file).

    Args:
        whole: what the file holds ends there; otherwise it holds more, which other segments hold, too.
    """

    path: str
    base: int
    end: int | None
    length: int
    modified_ms: int = 0
    whole: bool = True


@dataclass(frozen=True)
class Footer:
    """What a segment says of itself: rows, end of the range, the holes in it, and whether it closes its log."""

    rows: int
    end: int | None
    holes: tuple[Range, ...] | None
    closes: bool

    @property
    def is_gap(self) -> bool:
        """Whether this is an accepted gap."""
        return self.rows == 0 and self.end is not None and self.holes is None and not self.closes

    def end_from(self, base: int) -> int:
        """The end of a segment with this footer."""
        return base + self.rows if self.end is None else self.end


@dataclass(frozen=True)
class Partition:
    """One partition of one log: the segments that cover it, each beginning where the one before it ends.

    Args:
        origin: the first offset that belongs to it.
        head: the end of its last segment, exclusive.
        gaps: accepted gaps as [start, end) pairs, ascending; `holes` likewise.
        begun: its origin is committed (in the older layout it is not); `continues` the log that it goes on from, if
            that is the same log of Kafka below the origin.
        closed: nothing can be committed to it any more.
        superfluous: segments whose offsets others cover.
        damage: why it cannot be counted from its origin to its head; empty where it can.
    """

    segments: tuple[Segment, ...]
    origin: int
    head: int
    gaps: tuple[Range, ...] = ()
    holes: tuple[Range, ...] = ()
    begun: bool = False
    continues: str | None = None
    closed: bool = False
    superfluous: tuple[Segment, ...] = ()
    damage: str = ""

    def rows_between(self, start: int, end: int) -> int:
        """Number of rows that lie in [start, end): the offsets less the accepted gaps and the holes."""
        return max(0, end - start) - self.gaps_between(start, end) - self.holes_between(start, end)

    def gaps_between(self, start: int, end: int) -> int:
        """Number of offsets of accepted gaps in [start, end)."""
        return _within(self.gaps, start, end)

    def holes_between(self, start: int, end: int) -> int:
        """Number of offsets without a record in [start, end)."""
        return _within(self.holes, start, end)

    def segments_between(self, start: int, end: int) -> list[Segment]:
        """Segments that hold rows of [start, end)."""
        return [s for s in self.segments if s.base < end and (s.end if s.end is not None else self.head) > start]


Partitions = dict[str, dict[str, dict[str, Partition]]]


@dataclass(frozen=True)
class Origin:
    """Where a partition of a log begins, and what it continues.

    Args:
        after: the log that was closed for this one, None for the first log of a topic.
        proof: how Kafka's log was related to the closed one: "continues" it, is the same log "cut" short, is an "other"
            log, or "unproven" because Kafka no longer holds what could be compared.
    """

    offset: int
    after: str | None = None
    proof: str | None = None

    def to_json(self) -> bytes:
        return json.dumps({"origin": self.offset, "after": self.after, "proof": self.proof}).encode()

    @classmethod
    def parsed(cls, data: bytes, path: str) -> Origin:
        """Raises MasterWentBack naming `path` where the file is damaged."""
        try:
            told = json.loads(data)
            return cls(int(told["origin"]), told.get("after"), told.get("proof"))
        except (ValueError, KeyError, TypeError) as error:
            raise MasterWentBack(f"MASTER_WENT_BACK {path} is damaged ({error!r}); restore it from a copy") from error


@dataclass
class _Listed:
    """What one listing shows of a partition."""

    segments: list[Segment] = field(default_factory=list)
    origin: Entry | None = None
    has_holes: bool = False


@dataclass
class LogReader:
    """Reads the layout of a log from HDFS; footers are remembered, because no visible file ever changes."""

    fs: FileSystem
    root: str = MASTER
    _footers: dict[tuple[str, int, int], Footer] = field(default_factory=dict)
    _origins: dict[tuple[str, int], Origin] = field(default_factory=dict)

    def partitions(self, topics: Iterable[str]) -> Partitions:
        """Return every partition of every log of the topics, as it is on HDFS now."""
        return {topic: self._listed_anew(topic) for topic in topics}

    def sound(self, topics: Iterable[str]) -> Partitions:
        """Like `partitions`. Raises MasterWentBack naming the first one that does not reach from origin to head."""
        found = self.partitions(topics)
        for topic, log, name, partition in each(found):
            if partition.damage:
                raise MasterWentBack(
                    f"MASTER_WENT_BACK topic '{topic}' log {log} partition {name}: {partition.damage}; "
                    f"restore {partition_folder(self.root, topic, log, name)} from a copy"
                )
        return found

    def heads(self, topics: Iterable[str]) -> Position:
        """Return the end (exclusive) of every partition."""
        return position(self.partitions(topics), lambda partition: partition.head)

    def origin_of(self, place: Place) -> Origin | None:
        """Return what `_origin` says of a partition, None where it is not there."""
        entry = self.fs.status(f"{partition_folder(self.root, *place)}/{ORIGIN_FILE}")
        return self._origin(entry) if entry else None

    def _listed_anew(self, topic: str) -> dict[str, dict[str, Partition]]:
        """List again while compaction takes away what was just listed; a listing of many files is not one moment."""
        for _ in range(LISTINGS - 1):
            try:
                found = self._of_topic(topic)
                if not any(partition.damage for by in found.values() for partition in by.values()):
                    return found
                time.sleep(LISTING_PAUSE_SECONDS)
            except FileNotFoundError:
                continue
        return self._of_topic(topic)

    def _of_topic(self, topic: str) -> dict[str, dict[str, Partition]]:
        listed = self._list(topic)
        partitions = {log: {p: self._partition(files) for p, files in sorted(by.items())} for log, by in listed.items()}
        # A layer lists for months, and compaction takes files away.
        folder = f"{self.root}/topic={topic}/"
        there = {s.path for by in listed.values() for files in by.values() for s in files.segments}
        for gone in [key for key in self._footers if key[0].startswith(folder) and key[0] not in there]:
            del self._footers[gone]
        return partitions

    def _list(self, topic: str) -> dict[str, dict[str, _Listed]]:
        folder = f"{self.root}/topic={topic}"
        listed: dict[str, dict[str, _Listed]] = {}
        for entry in self.fs.list(folder, recursive=True):
            parts = entry.path[len(folder) + 1 :].split("/")
            if entry.is_folder:
                if len(parts) == 1 and parts[0].startswith("log="):
                    listed.setdefault(parts[0][4:], {})
                continue
            if len(parts) != 3:
                continue
            files = listed.setdefault(parts[0][4:], {})
            if parts[2] == ORIGIN_FILE:
                files.setdefault(parts[1][10:], _Listed()).origin = entry
            elif parts[2] == HOLES_FILE:
                files.setdefault(parts[1][10:], _Listed()).has_holes = True
            elif name := _SEGMENT.fullmatch(parts[2]):
                end = int(name[2]) if name[2] else None
                segment = Segment(entry.path, int(name[1]), end, entry.length, entry.modified_ms)
                files.setdefault(parts[1][10:], _Listed()).segments.append(segment)
        return {log: {p: x for p, x in by.items() if x.segments or x.origin} for log, by in listed.items()}

    def _partition(self, listed: _Listed) -> Partition:
        found = sorted(listed.segments, key=lambda s: (s.base, s.end or 0))
        told = self._origin(listed.origin) if listed.origin else None
        committed = told.offset if told else None
        continues = told.after if told and told.proof in ("continues", "cut") else None
        if not found:
            assert committed is not None
            return Partition((), committed, committed, begun=True, continues=continues)
        newest = max(found, key=lambda s: (s.end or s.base, s.base))
        if newest.end is None:
            end = self.footer(newest).end_from(newest.base)
            found = [replace(s, end=end) if s is newest else s for s in found]
        kept, superfluous = chain_of_segments(found)
        # What a merged segment is, its name says; only where there are holes its footer says more.
        plain = {segment.path for segment in listed.segments if segment.end is None}

        def footers_of_kept() -> dict[str, Footer]:
            return {s.path: self.footer(s) for s in kept if listed.has_holes or s.path in plain or s is kept[-1]}

        footers = footers_of_kept()
        if self.root == MASTER and _first_break(kept, footers):  # a derived log is made again instead
            kept, superfluous = overlapping_segments(
                [replace(s, end=self.footer(s).end_from(s.base)) if s.path in plain else s for s in found]
            )
            footers = footers_of_kept()
        origin = committed if committed is not None else found[0].base
        damage = ""
        if kept[0].base != origin:
            damage = f"it begins at offset {kept[0].base}, its origin is {origin}"
        else:
            damage = _first_break(kept, footers)
        gaps, holes = _without_rows(kept, footers)
        closed, head = footers[kept[-1].path].closes, kept[-1].end
        assert head is not None
        begun = committed is not None
        return Partition(tuple(kept), origin, head, gaps, holes, begun, continues, closed, tuple(superfluous), damage)

    def _origin(self, entry: Entry) -> Origin:
        key = (entry.path, entry.modified_ms)
        if key not in self._origins:
            self._origins[key] = Origin.parsed(self.fs.read(entry.path), entry.path)
        return self._origins[key]

    def footer(self, segment: Segment) -> Footer:
        """Return the footer of a segment. Raises as `read_footer`."""
        key = (segment.path, segment.length, segment.modified_ms)
        if key not in self._footers:
            self._footers[key] = read_footer(self.fs, segment.path)
        return self._footers[key]


def opened(fs: FileSystem, path: str) -> pq.ParquetFile:
    """Open a segment. Raises FileNotFoundError, or DamagedSegment."""
    try:
        return fs.open_parquet(path)
    except pa.ArrowInvalid as error:
        raise DamagedSegment(
            f"MASTER_WENT_BACK {path} is damaged ({str(error).splitlines()[0][:200]}); restore it from a copy, or, if it is the last "
            f"segment of its partition and Kafka still has its offsets, delete it: they are read again"
        ) from error


def read_footer(fs: FileSystem, path: str) -> Footer:
    """Read the footer of a segment. Raises FileNotFoundError, or DamagedSegment."""
    metadata = opened(fs, path).metadata
    told = metadata.metadata or {}
    end = int(told[RANGE_END]) if RANGE_END in told else None
    holes = parse_ranges(told.get(MISSING, b"")) if HOLES in told else None
    return Footer(metadata.num_rows, end, holes, CLOSED in told)


def parse_ranges(text: bytes) -> tuple[Range, ...]:
    """Return the ranges of "103-105 117-118": [103, 105) and [117, 118)."""
    return tuple((int(start), int(end)) for start, _, end in (part.partition(b"-") for part in text.split()))


def ranges_text(ranges: Iterable[Range]) -> bytes:
    return " ".join(f"{start}-{end}" for start, end in ranges).encode()


def chain_of_segments(found: Sequence[Segment]) -> tuple[list[Segment], list[Segment]]:
    """Choose the segments that lead from the first base to the furthest end, each beginning where the last one ends.

    A merged segment `<base>-<end>` and its members cover the same offsets; a merge that overtook another one may even
    cover a part of it. So the widest segment is taken from which the furthest end can still be reached.

    Args:
        found: ascending by base; an end is None where the next larger base is meant.

    Returns:
        The chosen segments with their ends, and the others. Where no chain reaches the furthest end, as much of one as
        can be had, and what lies behind the break.
    """
    bases = sorted({s.base for s in found})
    ended = []
    for segment in found:
        after = bisect.bisect_right(bases, segment.base)
        told = segment.end if segment.end is not None else bases[after] if after < len(bases) else segment.base
        ended.append(replace(segment, end=told))
    furthest = max(s.end or 0 for s in ended)
    by_base: dict[int, list[Segment]] = {}
    for segment in ended:
        by_base.setdefault(segment.base, []).append(segment)
    reaches: dict[int, bool] = {furthest: True}
    for base in reversed(bases):
        # A segment of zero offsets (it closes the log) ends where it begins, at the furthest end.
        reaches[base] = base == furthest or any(reaches.get(s.end or 0, False) for s in by_base[base])
    kept: list[Segment] = []
    at = bases[0]
    while True:
        fitting = [s for s in by_base.get(at, ()) if s not in kept]
        if not fitting:
            later = [base for base in bases if base > at]
            if not later or at >= furthest:
                break
            at = later[0]
            continue
        best = max(fitting, key=lambda s: (reaches.get(s.end or 0, False), s.end or 0))
        kept.append(best)
        at = best.end or 0
        if best.end == best.base:
            break
    return kept, [s for s in ended if s not in kept]


def overlapping_segments(found: Sequence[Segment]) -> tuple[list[Segment], list[Segment]]:
    """Choose as `chain_of_segments` among segments whose ends are known, some of which are cut short.

    Copies that were put back may overlap what was read again from Kafka meanwhile: the same rows, in other pieces.
    """
    bases = sorted({s.base for s in found})
    uses = [
        replace(s, end=end, whole=end == s.end)
        for s in found
        for end in (*bases[bisect.bisect_right(bases, s.base) : bisect.bisect_left(bases, s.end or 0)], s.end)
    ]
    kept, _ = chain_of_segments(uses)
    paths = {s.path for s in kept}
    return kept, [s for s in found if s.path not in paths]


def _first_break(kept: Sequence[Segment], footers: Mapping[str, Footer]) -> str:
    """Say where a segment does not end at the base of the next one.

    The name of a plain segment does not tell its end: where the segment behind it was removed, only its footer says so.
    """
    for before, after in itertools.pairwise(kept):
        footer = footers.get(before.path) if before.whole else None
        end = footer.end_from(before.base) if footer else before.end or 0
        if end < after.base:
            return f"no segment holds offset {end}, though later ones are there"
        if end > after.base:
            return f"two segments hold offset {after.base}"
    return ""


def _without_rows(
    kept: Sequence[Segment], footers: Mapping[str, Footer]
) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """Return the accepted gaps and the holes that the footers tell of."""
    gaps: list[Range] = []
    holes: list[Range] = []
    for segment in kept:
        if (footer := footers.get(segment.path)) is None:
            continue
        end = footer.end_from(segment.base) if segment.end is None else segment.end  # less, where it is cut short
        if footer.is_gap:
            gaps.append((segment.base, end))
        holes += [(low, min(high, end)) for low, high in footer.holes or () if low < end]
    return tuple(gaps), tuple(holes)


def _within(ranges: Sequence[Range], start: int, end: int) -> int:
    first = max(0, bisect.bisect_right(ranges, (start, start)) - 1)
    total = 0
    for low, high in ranges[first:]:
        if low >= end:
            break
        total += max(0, min(end, high) - max(start, low))
    return total


def each(where: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, str, str, Any]]:
    """Return (topic, log, partition, value) of everything that a position, or a mapping of its shape, names."""
    return [
        (topic, log, p, value) for topic, logs in where.items() for log, by in logs.items() for p, value in by.items()
    ]


def position(partitions: Partitions, of: Callable[[Partition], int]) -> Position:
    """Return one number per partition in the shape of a horizon."""
    return {t: {log: {p: of(x) for p, x in by.items()} for log, by in logs.items()} for t, logs in partitions.items()}


def offset_in(where: Mapping[str, Any], topic: str, log: str, partition: str, default: int) -> int:
    """Return the offset a position gives for a partition, or the default (usually the origin) where it is silent."""
    return int(where.get(topic, {}).get(log, {}).get(partition, default))


def covers(further: Position, other: Position) -> bool:
    """True if `further` is at least as far as `other` in every partition that `other` names."""
    return all(
        offset_in(further, topic, log, partition, -1) >= offset
        for topic, log, partition, offset in each(other)
        if offset > 0
    )


def reaches(further: Position, other: Position, origins: Position) -> bool:
    """Like `covers`, but where `further` is silent about a partition it stands at its origin."""
    return all(
        offset_in(further, topic, log, partition, offset_in(origins, topic, log, partition, 0)) >= offset
        for topic, log, partition, offset in each(other)
    )


def overlay(below: Position, above: Position) -> Position:
    """Return `below` with every partition that `above` names replaced."""
    result = copy.deepcopy(below)
    for topic, logs in above.items():
        for log, partitions in logs.items():
            result.setdefault(topic, {}).setdefault(log, {}).update(partitions)
    return result


def present_log(fs: FileSystem, topic: str, topic_id: str, root: str = MASTER) -> str:
    """Return the log that Kafka's topic id continues: the id, or its newest `.2`, `.3` … if one was begun."""
    known = [
        entry.name[4:]
        for entry in fs.list(f"{root}/topic={topic}")
        if entry.is_folder and entry.name.startswith("log=")
    ]
    numbered = [int(log[len(topic_id) + 1 :]) for log in known if re.fullmatch(re.escape(topic_id) + r"\.\d+", log)]
    return f"{topic_id}.{max(numbered)}" if numbered else topic_id


def next_log(log: str) -> str:
    """Return the name of the log that follows a closed one of the same topic id."""
    stem, _, number = log.partition(".")
    return f"{stem}.{int(number or 1) + 1}"


def typed_root(stream: Stream) -> str:
    """Return where the typed log of a stream lies; another schema lies elsewhere."""
    return f"{EVENTS}/{stream.schema_hash}"


def partition_folder(root: str, topic: str, log: str, partition: str) -> str:
    return f"{root}/topic={topic}/log={log}/partition={partition}"


def segment_path(root: str, topic: str, log: str, partition: str, base: int) -> str:
    return f"{partition_folder(root, topic, log, partition)}/{base:020d}.parquet"


def to_json(where: Position) -> str:
    return json.dumps(where, sort_keys=True, separators=(",", ":"))
