"""How does a staged file become a segment? By one rename under the name of the head it continues, by whoever is first.

The raw log and the typed log commit alike. HDFS refuses a second file of a name, so two segments cannot begin at the
same offset, whoever writes them, and a segment begins at the head, so two cannot overlap. The folder of a partition is
made by whoever commits its beginning and by nobody else: a tree that was taken away does not come back from its middle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from engine.storage.log import (
    CLOSED,
    HOLES,
    HOLES_FILE,
    MISSING,
    ORIGIN_FILE,
    RANGE_END,
    RAW_ARROW,
    STAGING,
    FileSystem,
    Origin,
    Place,
    Range,
    partition_folder,
    ranges_text,
    segment_path,
)

# A writer gives its staging up after this time; `compact` frees used names only among staging twice as old.
WRITER_PATIENCE_SECONDS = 600.0
# What is staged at once is cut so that it takes about this long.
WRITER_AIM_SECONDS = 200.0
COMMIT_ATTEMPTS = 20
PAUSES = 3

_log = structlog.get_logger("engine.storage.commit")


class OffsetGap(RuntimeError):
    """Rows that were read do not lie in the planned offsets, or repeat one: nothing was committed."""


class StartsAbove(RuntimeError):
    """What was read begins above the head: the offsets between are read from the head by who starts again."""


class TooSlow(RuntimeError):
    """Even the smallest piece of work could not be staged in a writer's time."""


@dataclass(frozen=True)
class Piece:
    """A staged file that wants to become a segment: it covers the offsets [first, end)."""

    topic: str
    log: str
    partition: str
    path: str
    first: int
    end: int
    length: int
    rows: int = -1
    has_holes: bool = False

    @property
    def place(self) -> Place:
        return self.topic, self.log, self.partition


def commit(
    fs: FileSystem,
    root: str,
    ranges: Mapping[Place, Range],
    read_heads: Callable[[], Mapping[Place, int]],
    stage: Callable[[Mapping[Place, Range], str], list[Piece]],
    name: str,
    origins: Mapping[Place, int] | None = None,
    limit: int | None = None,
    clock: Callable[[], float] | None = None,
) -> list[Piece]:
    """Commit everything in `ranges` that lies at or above the heads; return the pieces that we published.

    Args:
        root: the tree that the segments belong to.
        ranges: the offsets that were planned and are there to be read, per partition.
        read_heads: asks HDFS for the head of each partition, its origin where it has no segment.
        stage: given what is left of the ranges and a fresh staging folder, writes it there and says what it wrote:
            pieces that cover the given ranges whole.
        name: of this writer, part of the staging path.
        origins: where a piece makes the folder that it goes into.
        limit: how many offsets of all partitions are staged at once; less where that takes too long. What was published
            stays.
        clock: seconds; only differences count.

    Returns only when every head has reached the end of its range.

    Raises:
        StartsAbove: a range begins above the head.
        TooSlow: staging took longer than a writer may, however little it was.
        RuntimeError: other writers won every race.
    """
    clock = clock or time.monotonic
    published: list[Piece] = []
    attempt = lost = slow = 0
    while True:
        attempt += 1
        heads = read_heads()
        asked = clock()
        left = _left(ranges, heads)
        if not left:
            return published
        todo = _at_most(left, limit)
        staging = f"{STAGING}/{name}-{os.getpid()}-{time.time_ns()}-{attempt}"
        try:
            pieces = sorted(stage(todo, staging), key=lambda piece: (piece.place, piece.first))
            _check_covered(pieces, todo)
            staged = clock()
            done, refused = _publish_all(fs, root, pieces, origins or {}, asked, clock)
        finally:
            fs.delete(staging, recursive=True)
        published += done
        if todo == left and len(done) == len(pieces):
            return published
        lost = lost + 1 if refused else 0
        if lost == COMMIT_ATTEMPTS:
            raise RuntimeError(
                f"{name}: {lost} times another writer was first; is a second process of this layer and domain running?"
            )
        offsets = sum(end - start for start, end in todo.values())
        if done or staged - asked <= WRITER_PATIENCE_SECONDS:
            slow = 0
        else:
            slow += 1
            # A process that was stopped for a while is not slow, however little it had to do.
            if slow == (PAUSES if offsets == 1 else COMMIT_ATTEMPTS):
                raise TooSlow(
                    f"{name}: {offsets} offsets took {staged - asked:.0f} s, {WRITER_PATIENCE_SECONDS:.0f} s are allowed"
                )
        if staged - asked > WRITER_AIM_SECONDS:
            limit = max(1, int(offsets * WRITER_AIM_SECONDS / (2 * (staged - asked))))


def publish(fs: FileSystem, piece: Piece, target: str) -> bool:
    """Rename a staged file to its name.

    False if somebody else was first, or if we cannot know: then read the head again.
    """
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


def commit_origin(fs: FileSystem, root: str, place: Place, origin: Origin) -> Origin:
    """Commit where a partition begins, unless somebody was first; return what is committed."""
    folder = partition_folder(root, *place)
    data = origin.to_json()
    staged = f"{STAGING}/origin-{'-'.join(place)}-{os.getpid()}-{time.time_ns()}"
    fs.create(staged, data)
    fs.mkdirs(folder)
    target = f"{folder}/{ORIGIN_FILE}"
    try:
        publish(fs, Piece(*place, staged, origin.offset, origin.offset, len(data)), target)
    finally:
        fs.delete(staged)
    return Origin.parsed(fs.read(target), target)


def commit_empty(fs: FileSystem, root: str, place: Place, base: int, data: bytes, end: int) -> bool:
    """Commit a segment of zero rows, such as `gap_segment` and `closing_segment` make; False if the head has moved."""
    staged = f"{STAGING}/empty-{'-'.join(place)}-{base}-{os.getpid()}-{time.time_ns()}.parquet"
    fs.create(staged, data)
    try:
        return publish(fs, Piece(*place, staged, base, end, len(data), 0), segment_path(root, *place, base))
    finally:
        fs.delete(staged)


def gap_segment(start: int, end: int, schema: pa.Schema = RAW_ARROW) -> bytes:
    """Return a Parquet file of zero rows that commits the accepted gap [start, end)."""
    if not start < end:
        raise ValueError(f"a gap must have offsets, not [{start}, {end})")
    return _parquet(schema.empty_table(), {RANGE_END: str(end).encode()})


def closing_segment(head: int) -> bytes:
    """Return a Parquet file of zero rows that closes a raw log at its head."""
    return _parquet(RAW_ARROW.empty_table(), {CLOSED: str(head).encode()})


def range_footer(base: int, end: int, missing: Sequence[Range]) -> dict[bytes, bytes]:
    """Return the footer entries of a segment that covers [base, end) and has no rows in the `missing` ranges."""
    holes = sum(high - low for low, high in missing)
    return {RANGE_END: str(end).encode(), HOLES: str(holes).encode(), MISSING: ranges_text(missing)}


def staged_pieces(
    fs: FileSystem, staging: str, ranges: Mapping[Place, Range], schema: pa.Schema = RAW_ARROW
) -> list[Piece]:
    """Read back what was staged under `topic=/[log=/]partition=` folders, as pieces that cover the ranges.

    A file whose rows leave out offsets of its range is written again with a footer that says so, and a range without
    any row becomes a file of zero rows: whether that is right is for the caller to say, who knows where the rows came
    from.

    Args:
        schema: of the files that are made here.

    Raises:
        OffsetGap: a row outside of the ranges, or offsets that do not ascend.
    """
    logs = {(topic, p): log for topic, log, p in ranges}
    files: dict[Place, list[tuple[np.ndarray, str, int]]] = {place: [] for place in ranges}
    for entry in fs.list(staging, recursive=True):
        if entry.is_folder or not entry.name.endswith(".parquet"):
            continue
        keys = dict(part.split("=", 1) for part in entry.path[len(staging) + 1 :].split("/")[:-1])
        lg = keys.get("log") or logs.get((keys["topic"], keys["partition"]), "")
        place = keys["topic"], lg, keys["partition"]
        parquet = fs.open_parquet(entry.path)
        if parquet.metadata.num_rows == 0:
            continue
        offsets = parquet.read(columns=["offset"]).column("offset").to_numpy()
        if place not in ranges:
            raise OffsetGap(f"OFFSET_GAP topic '{place[0]}' log {place[1]} partition {place[2]}: rows were not planned")
        files[place].append((offsets, entry.path, entry.length))
    pieces = []
    for place, (start, end) in ranges.items():
        found = sorted(files[place], key=lambda file: int(file[0][0]))
        _check_ascending(place, start, end, [offsets for offsets, _, _ in found])
        borders = [start, *(int(offsets[0]) for offsets, _, _ in found[1:]), end]
        for number, (offsets, path, length) in enumerate(found):
            pieces.append(_piece(fs, place, offsets, path, length, borders[number], borders[number + 1]))
        if not found:
            folder = f"{staging}/topic={place[0]}/log={place[1]}/partition={place[2]}"
            data = _parquet(schema.empty_table(), range_footer(start, end, [(start, end)]))
            fs.create(f"{folder}/holes.parquet", data)
            pieces.append(Piece(*place, f"{folder}/holes.parquet", start, end, len(data), 0, True))
    return pieces


def _piece(fs: FileSystem, place: Place, offsets: np.ndarray, path: str, length: int, first: int, end: int) -> Piece:
    if end - first == len(offsets):
        return Piece(*place, path, first, end, length, len(offsets))
    padded = np.concatenate(([first - 1], offsets, [end]))
    after = np.flatnonzero(np.diff(padded) > 1)
    missing = [(int(padded[i]) + 1, int(padded[i + 1])) for i in after]
    data = _parquet(fs.open_parquet(path).read(), range_footer(first, end, missing))
    again = f"{path.removesuffix('.parquet')}-range.parquet"
    fs.create(again, data)
    return Piece(*place, again, first, end, len(data), len(offsets), True)


def _check_ascending(place: Place, start: int, end: int, files: Sequence[np.ndarray]) -> None:
    if not files:
        return
    offsets = np.concatenate(files)
    where = f"OFFSET_GAP topic '{place[0]}' log {place[1]} partition {place[2]}: [{start}, {end}) planned"
    if int(offsets.min()) < start or int(offsets.max()) >= end:
        raise OffsetGap(f"{where}, rows in [{int(offsets.min())}, {int(offsets.max()) + 1}) read")
    repeated = np.flatnonzero(np.diff(offsets) <= 0)
    if len(repeated):
        raise OffsetGap(f"{where}, and offset {int(offsets[repeated[0] + 1])} came twice or out of order")


def _parquet(table: pa.Table, footer: Mapping[bytes, bytes]) -> bytes:
    out = pa.BufferOutputStream()
    with pq.ParquetWriter(out, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(dict(footer))
    return bytes(out.getvalue())


def _left(ranges: Mapping[Place, Range], heads: Mapping[Place, int]) -> dict[Place, Range]:
    left = {}
    for place, (start, end) in ranges.items():
        head = heads.get(place, start)
        if head < start:
            raise StartsAbove(
                f"topic '{place[0]}' log {place[1]} partition {place[2]}: the log ends at {head}, what was read begins at {start}"
            )
        if head < end:
            left[place] = (head, end)
    return left


def _at_most(todo: Mapping[Place, Range], limit: int | None) -> dict[Place, Range]:
    """Cut ranges so that they hold `limit` offsets in all, but one of each at least, each in its share."""
    total = sum(end - start for start, end in todo.values())
    if limit is None or total <= limit:
        return dict(todo)
    return {place: (start, start + max(1, (end - start) * limit // total)) for place, (start, end) in todo.items()}


def _check_covered(pieces: Sequence[Piece], todo: Mapping[Place, Range]) -> None:
    ends = {place: start for place, (start, _) in todo.items()}
    for piece in pieces:
        if piece.first != ends.get(piece.place):
            raise OffsetGap(
                f"OFFSET_GAP topic '{piece.topic}' log {piece.log} partition {piece.partition}: the next segment must begin at "
                f"{ends.get(piece.place)}, what was staged begins at {piece.first}"
            )
        ends[piece.place] = piece.end
    for place, (_, end) in todo.items():
        if ends[place] != end:
            raise OffsetGap(
                f"OFFSET_GAP topic '{place[0]}' log {place[1]} partition {place[2]}: staged up to {ends[place]} instead of {end}"
            )


def _publish_all(
    fs: FileSystem,
    root: str,
    pieces: Sequence[Piece],
    origins: Mapping[Place, int],
    asked: float,
    clock: Callable[[], float],
) -> tuple[list[Piece], bool]:
    """Publish in ascending order; return what was published, and whether somebody else was first anywhere."""
    done: list[Piece] = []
    stopped: set[Place] = set()
    for piece in pieces:
        if piece.place in stopped:
            continue
        if clock() - asked > WRITER_PATIENCE_SECONDS:
            _log.warning(
                "staging given up", seconds=round(clock() - asked), topic=piece.topic, partition=piece.partition
            )
            break
        folder = partition_folder(root, *piece.place)
        if piece.first == origins.get(piece.place):
            fs.mkdirs(folder)
        if piece.has_holes:  # before the segment is seen, so that nobody takes it for one without
            with suppress(FileExistsError, FileNotFoundError):
                _mark_holes(fs, folder)
        if publish(fs, piece, segment_path(root, *piece.place, piece.first)):
            done.append(piece)
        else:
            stopped.add(piece.place)
    return done, bool(stopped)


def _mark_holes(fs: FileSystem, folder: str) -> None:
    """By a rename, which does not make a folder that was taken away."""
    if fs.status(f"{folder}/{HOLES_FILE}") is None:
        staged = f"{STAGING}/holes-{os.getpid()}-{time.time_ns()}"
        fs.create(staged, b"")
        try:
            fs.rename(staged, f"{folder}/{HOLES_FILE}")
        finally:
            fs.delete(staged)
