"""What is in the log? Segments, heads, logs, gaps, and the one way to commit a segment.

Kafka's log goes on in Parquet: `<root>/topic=<T>/log=<L>/partition=<P>/<base offset, 20 digits>.parquet`. The file
name is the commit: HDFS refuses a second file of that name, and every segment is named by the head it continues, so
two segments cannot overlap, whoever writes them. The raw log and the typed log commit alike, by `commit`.

Positions are JSON-shaped everywhere: {topic: {log: {partition: offset}}}, partition as text, offset exclusive.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from engine.hdfs import Entry

MASTER = "/data/master_dataset"
EVENTS = "/data/events"
STAGING = "/data/.staging"

# A writer gives its staging up after this time; `compact` frees used names only among staging twice as old.
WRITER_PATIENCE_SECONDS = 600.0
# Footer entry of a segment of zero rows: the end offset (exclusive) of an accepted gap.
GAP_END = b"highwater.end"
# Only a segment smaller than this can be a gap; footers of larger ones are not read in search of gaps.
GAP_MAX_BYTES = 8192
COMMIT_ATTEMPTS = 20
LISTINGS = 5

Position = dict[str, dict[str, dict[str, int]]]

_SEGMENT = re.compile(r"(\d{20})(?:-(\d{20}))?\.parquet")
_log = structlog.get_logger("engine.log")


class OffsetGap(RuntimeError):
    """Rows do not continue the head: the first missing offset is named, nothing was committed."""


class MasterWentBack(RuntimeError):
    """The log ends before a position that was already reached: a segment was removed by hand."""


class FileSystem(Protocol):
    """What the commit protocol asks of a file system; `engine.hdfs.Hdfs` is one."""

    def list(self, path: str, recursive: bool = False) -> list[Entry]: ...
    def status(self, path: str) -> Entry | None: ...
    def open_parquet(self, path: str) -> pq.ParquetFile: ...
    def create(self, path: str, data: bytes) -> None: ...
    def mkdirs(self, path: str) -> None: ...
    def delete(self, path: str, recursive: bool = False) -> bool: ...
    def rename(self, source: str, target: str) -> None: ...


@dataclass(frozen=True)
class Segment:
    """A committed file: offsets [base, end); end is None where only the footer knows it (the newest file)."""

    path: str
    base: int
    end: int | None
    length: int
    modified_ms: int = 0


@dataclass(frozen=True)
class Piece:
    """A staged file that wants to become a segment: its rows are exactly the offsets [first, end)."""

    topic: str
    log: str
    partition: str
    path: str
    first: int
    end: int
    length: int


@dataclass(frozen=True)
class Partition:
    """One partition of one log: segments by base, origin, head, accepted gaps as [start, end) pairs."""

    segments: tuple[Segment, ...]
    origin: int
    head: int
    gaps: tuple[tuple[int, int], ...] = ()

    def rows_between(self, start: int, end: int) -> int:
        """Number of rows that lie in [start, end): the offsets less the accepted gaps."""
        missing = sum(max(0, min(end, gap_end) - max(start, gap_start)) for gap_start, gap_end in self.gaps)
        return max(0, end - start) - missing

    def segments_between(self, start: int, end: int) -> list[Segment]:
        """Segments that hold rows of [start, end)."""
        return [s for s in self.segments if s.base < end and (s.end if s.end is not None else self.head) > start]


Partitions = dict[str, dict[str, dict[str, Partition]]]


@dataclass
class LogReader:
    """Reads the layout of a log from HDFS; footers are remembered, because no visible file ever changes."""

    fs: FileSystem
    root: str = MASTER
    _footers: dict[tuple[str, int], tuple[int, int | None]] = field(default_factory=dict)

    def partitions(self, topics: Iterable[str]) -> Partitions:
        """Return every partition of every log of the topics, as it is on HDFS now."""
        return {topic: self._listed_anew(topic) for topic in topics}

    def heads(self, topics: Iterable[str]) -> Position:
        """Return the end (exclusive) of every partition."""
        return position(self.partitions(topics), lambda partition: partition.head)

    def _listed_anew(self, topic: str) -> dict[str, dict[str, Partition]]:
        """List again while compaction takes away what was just listed."""
        for _ in range(LISTINGS - 1):
            try:
                return self._of_topic(topic)
            except FileNotFoundError:
                continue
        return self._of_topic(topic)

    def _of_topic(self, topic: str) -> dict[str, dict[str, Partition]]:
        folder = f"{self.root}/topic={topic}"
        files: dict[str, dict[str, list[Segment]]] = {}
        for entry in self.fs.list(folder, recursive=True):
            parts = entry.path[len(folder) + 1 :].split("/")
            if entry.is_folder:
                if len(parts) == 1 and parts[0].startswith("log="):
                    files.setdefault(parts[0][4:], {})
                continue
            name = _SEGMENT.fullmatch(parts[-1])
            if len(parts) == 3 and name:
                end = int(name[2]) if name[2] else None
                segment = Segment(entry.path, int(name[1]), end, entry.length, entry.modified_ms)
                files.setdefault(parts[0][4:], {}).setdefault(parts[1][10:], []).append(segment)
        partitions = {log: {p: self._partition(found) for p, found in sorted(by.items())} for log, by in files.items()}
        # A layer lists for months, and compaction takes files away.
        there = {segment.path for by in files.values() for found in by.values() for segment in found}
        gone = [key for key in self._footers if key[0].startswith(f"{folder}/") and key[0] not in there]
        for key in gone:
            del self._footers[key]
        return partitions

    def _partition(self, found: list[Segment]) -> Partition:
        # What lies inside a wider name was merged into it and is about to be deleted.
        kept: list[Segment] = []
        for segment in sorted(found, key=lambda s: (s.base, -(s.end if s.end is not None else s.base))):
            if not kept or kept[-1].end is None or segment.base >= kept[-1].end:
                kept.append(segment)
        gaps = []
        for number, segment in enumerate(kept):
            last = number == len(kept) - 1
            if segment.end is not None or not (last or segment.length < GAP_MAX_BYTES):
                continue
            rows, gap_end = self._footer(segment)
            if gap_end is not None:
                gaps.append((segment.base, gap_end))
            if last:
                kept[number] = replace(segment, end=segment.base + rows if gap_end is None else gap_end)
        ended = [replace(s, end=s.end if s.end is not None else after.base) for s, after in itertools.pairwise(kept)]
        ended += kept[-1:]
        return Partition(tuple(ended), ended[0].base, ended[-1].end or ended[-1].base, tuple(gaps))

    def _footer(self, segment: Segment) -> tuple[int, int | None]:
        key = (segment.path, segment.length)
        if key not in self._footers:
            metadata = self.fs.open_parquet(segment.path).metadata
            end = (metadata.metadata or {}).get(GAP_END)
            self._footers[key] = (metadata.num_rows, int(end) if end is not None else None)
        return self._footers[key]


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
        for topic, logs in other.items()
        for log, partitions in logs.items()
        for partition, offset in partitions.items()
        if offset > 0
    )


def present_log(fs: FileSystem, topic: str, topic_id: str, root: str = MASTER) -> str:
    """Return the log that Kafka's topic id continues: the id, or its newest `.2`, `.3` … if one was begun."""
    known = [
        entry.name[4:]
        for entry in fs.list(f"{root}/topic={topic}")
        if entry.is_folder and entry.name.startswith("log=")
    ]
    numbered = [int(log[len(topic_id) + 1 :]) for log in known if re.fullmatch(re.escape(topic_id) + r"\.\d+", log)]
    return f"{topic_id}.{max(numbered)}" if numbered else topic_id


def partition_folder(root: str, topic: str, log: str, partition: str) -> str:
    return f"{root}/topic={topic}/log={log}/partition={partition}"


def segment_path(root: str, topic: str, log: str, partition: str, base: int) -> str:
    return f"{partition_folder(root, topic, log, partition)}/{base:020d}.parquet"


def commit(
    fs: FileSystem,
    root: str,
    read_heads: Callable[[], Mapping[tuple[str, str, str], int]],
    stage: Callable[[Mapping[tuple[str, str, str], int], str], list[Piece]],
    name: str,
    clock: Callable[[], float] = time.monotonic,
) -> list[Piece]:
    """Commit everything that `stage` finds at or above the heads; return the pieces that we published.

    Args:
        root: the tree that the segments belong to.
        read_heads: asks HDFS for the head (or the wanted start, where a log has none) of each (topic, log, partition).
        stage: given the heads and a fresh staging folder, writes every row with offset >= head and says what it wrote.
        name: of this writer, part of the staging path.
        clock: seconds; only differences count.

    Returns only when every head has reached the end of what `stage` was asked to write.

    Raises:
        OffsetGap: the rows do not start at the head or are not contiguous.
        RuntimeError: other writers won every race.
    """
    published: list[Piece] = []
    for attempt in range(COMMIT_ATTEMPTS):
        staging = f"{STAGING}/{name}-{time.time_ns()}-{attempt}"
        heads = read_heads()
        asked = clock()
        try:
            pieces = sorted(
                stage(heads, staging), key=lambda piece: (piece.topic, piece.log, piece.partition, piece.first)
            )
            _check_contiguous(pieces, heads)
            done = _publish_all(fs, root, pieces, asked, clock)
        finally:
            fs.delete(staging, recursive=True)
        published += done
        if len(done) == len(pieces):
            return published
    raise RuntimeError(
        f"{name}: {COMMIT_ATTEMPTS} times another writer was first; is a second ingest of this domain running?"
    )


def publish(fs: FileSystem, piece: Piece, target: str) -> bool:
    """Rename a staged file to its name; False if somebody else was first, or if we cannot know: then read the head again."""
    try:
        fs.rename(piece.path, target)
        return True
    except FileExistsError:
        _log.warning("LOST_RACE", topic=piece.topic, log=piece.log, partition=piece.partition, offset=piece.first)
        return False
    except (OSError, RuntimeError) as error:
        # The answer may be lost after the rename happened: only "staging gone and our length at the target" is a yes.
        there = fs.status(target)
        if fs.status(piece.path) is None and there is not None and there.length == piece.length:
            return True
        _log.warning("rename in doubt", target=target, error=str(error).splitlines()[0][:200])
        return False


def gap_segment(start: int, end: int, schema: pa.Schema) -> bytes:
    """Return a Parquet file of zero rows that commits the accepted gap [start, end)."""
    if not start < end:
        raise ValueError(f"a gap must have offsets, not [{start}, {end})")
    out = pa.BufferOutputStream()
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        writer.write_table(schema.empty_table())
        writer.add_key_value_metadata({GAP_END: str(end).encode()})
    return bytes(out.getvalue())


def staged_pieces(fs: FileSystem, staging: str, logs: Mapping[str, str] | None = None) -> list[Piece]:
    """Read back what was staged under `topic=/[log=/]partition=` folders.

    Args:
        logs: topic → log, where the staging folders do not name it.

    Raises:
        OffsetGap: the offsets inside one file are not contiguous.
    """
    pieces = []
    for entry in fs.list(staging, recursive=True):
        if entry.is_folder or not entry.name.endswith(".parquet"):
            continue
        keys = dict(part.split("=", 1) for part in entry.path[len(staging) + 1 :].split("/")[:-1])
        parquet = fs.open_parquet(entry.path)
        if parquet.metadata.num_rows == 0:
            continue
        offsets = parquet.read(columns=["offset"]).column("offset").to_numpy()
        first, end = int(offsets[0]), int(offsets[-1]) + 1
        if end - first != len(offsets) or (len(offsets) > 1 and int((offsets[1:] - offsets[:-1]).max()) != 1):
            steps = (offsets[1:] - offsets[:-1]) != 1
            missing = int(offsets[:-1][steps][0]) + 1 if steps.any() else first
            raise OffsetGap(
                f"OFFSET_GAP topic '{keys['topic']}' partition {keys['partition']}: offset {missing} is missing in [{first}, {end})"
            )
        log = keys.get("log") or (logs or {})[keys["topic"]]
        pieces.append(Piece(keys["topic"], log, keys["partition"], entry.path, first, end, entry.length))
    return pieces


def to_json(where: Position) -> str:
    return json.dumps(where, sort_keys=True, separators=(",", ":"))


def _check_contiguous(pieces: list[Piece], heads: Mapping[tuple[str, str, str], int]) -> None:
    ends = dict(heads)
    for piece in pieces:
        key = (piece.topic, piece.log, piece.partition)
        wanted = ends.get(key, piece.first)
        if piece.first != wanted:
            raise OffsetGap(
                f"OFFSET_GAP topic '{piece.topic}' partition {piece.partition}: head is {wanted}, the next rows start at {piece.first}; "
                f"first missing offset {wanted}"
            )
        ends[key] = piece.end


def _publish_all(
    fs: FileSystem, root: str, pieces: list[Piece], asked: float, clock: Callable[[], float]
) -> list[Piece]:
    done: list[Piece] = []
    stopped: set[tuple[str, str, str]] = set()
    for piece in pieces:
        key = (piece.topic, piece.log, piece.partition)
        if key in stopped:
            continue
        if clock() - asked > WRITER_PATIENCE_SECONDS:
            _log.warning(
                "staging given up", seconds=round(clock() - asked), topic=piece.topic, partition=piece.partition
            )
            break
        fs.mkdirs(partition_folder(root, *key))
        if publish(fs, piece, segment_path(root, *key, piece.first)):
            done.append(piece)
        else:
            stopped.add(key)
    return done
