"""How do many small segments become few? Merged under a name that covers theirs, then the members are deleted.

Small files cost a reader more than their rows do. Closed segments of a partition are merged to `<base>-<end>.parquet`
by rename NONE; no visible file ever changes under its name. Deleting members frees names that a writer which was
stopped for long could still take, so three ages fence it: a writer throws its staging away after 10 minutes, staging of
other writers older than 20 minutes is deleted first, and only segments older than 60 minutes are merged. Between the
rename and the last delete a plain reader sees rows twice, never fewer; readers of ours ignore what a wider name covers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from engine.storage.commit import range_footer
from engine.storage.log import STAGING, LogReader, Partition, Segment, each, opened, partition_folder

SETTLED_SECONDS = 3600.0
STAGING_SECONDS = 1200.0
# A version is built for as long as history needs, and its folder's time stands still meanwhile.
BUILD_SECONDS = 86_400.0
BUILDS = ("version-", "plain-", "typed-old-")
TARGET_BYTES = 128 * 1024 * 1024
# Runs of at least this many, each below an eighth of the target: a row is rewritten two or three times in its life.
MEMBERS = 8
ROW_GROUP = 250_000

_log = structlog.get_logger("engine.storage.compact")


def compact(fs: Any, root: str, topics: Iterable[str], settled_seconds: float = SETTLED_SECONDS) -> int:
    """Merge runs of small old segments of the topics below a root; return the number of segments that went away.

    Any step may be the last one: what is staged is ignored, what is renamed covers its members, and the next call
    deletes them.
    """
    now_ms = _clock_ms(fs)
    reader = LogReader(fs, root)
    gone = 0
    for topic, log, name, partition in each(reader.partitions(topics)):
        folder = partition_folder(root, topic, log, name)
        if partition.damage:
            _log.error("not compacted", folder=folder, reason=partition.damage)
            continue
        gone += _delete_superfluous(fs, reader, partition)
        for run in runs(partition, now_ms - int(settled_seconds * 1000)):
            gone += _merge(fs, reader, folder, run)
    return gone


def clean_staging(fs: Any) -> int:
    """Delete what writers left behind that no longer live; return the number of folders and files."""
    now_ms = _clock_ms(fs)
    old = [
        entry
        for entry in fs.list(STAGING)
        if now_ms - entry.modified_ms > 1000 * (BUILD_SECONDS if entry.name.startswith(BUILDS) else STAGING_SECONDS)
    ]
    for entry in old:
        fs.delete(entry.path, recursive=True)
    return len(old)


def runs(partition: Partition, before_ms: int) -> Iterator[list[Segment]]:
    """Yield runs of consecutive segments worth merging: old, small, no gaps, not the last one."""
    gaps = {start for start, _ in partition.gaps}
    run: list[Segment] = []
    for segment in (*partition.segments[:-1], None):
        fits = (
            segment is not None
            and segment.base not in gaps
            and segment.modified_ms < before_ms
            and segment.length < TARGET_BYTES // MEMBERS
        )
        if segment is not None and fits and sum(s.length for s in run) + segment.length <= TARGET_BYTES:
            run.append(segment)
            continue
        if len(run) >= MEMBERS:
            yield run
        run = [segment] if segment is not None and fits else []


def _merge(fs: Any, reader: LogReader, folder: str, run: list[Segment]) -> int:
    base, end = run[0].base, run[-1].end
    assert end is not None
    name = f"{base:020d}-{end:020d}.parquet"
    staged = f"{STAGING}/compact-{os.getpid()}-{time.time_ns()}/{name}"
    out = pa.BufferOutputStream()
    rows = 0
    writer: pq.ParquetWriter | None = None
    for segment in run:
        if reader.footer(segment).rows == 0 and segment is not run[-1]:
            continue  # all holes; its columns are not those of the others
        table = opened(fs, segment.path).read()
        if not segment.whole:
            table = table.filter(pc.less(table["offset"], segment.end))
        rows += table.num_rows
        if table.num_rows == 0 and writer is not None:
            continue
        # The footer of a single member, such as Spark's schema, says nothing of the whole.
        table = table.replace_schema_metadata(None)
        writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=ROW_GROUP)
    missing = [
        (low, min(high, segment.end or 0))
        for segment in run
        for low, high in reader.footer(segment).holes or ()
        if low < (segment.end or 0)
    ]
    if writer is not None:
        if missing:
            writer.add_key_value_metadata(range_footer(base, end, missing))
        writer.close()
    if rows != end - base - sum(high - low for low, high in missing):
        _log.error("not compacted", folder=folder, base=base, end=end, rows=rows)
        return 0
    fs.create(staged, bytes(out.getvalue()))
    try:
        # Another run may have merged some of them with others meanwhile; a name that cuts through its own would be one
        # too many.
        if not all(fs.status(segment.path) for segment in run):
            _log.info("not compacted", folder=folder, base=base, end=end, reason="another run merged its members")
            return 0
        fs.rename(staged, f"{folder}/{name}")
    except FileExistsError:
        pass  # another run merged the same members
    except (OSError, RuntimeError) as error:
        if fs.status(f"{folder}/{name}") is None:
            _log.warning("not compacted", folder=folder, base=base, end=end, error=str(error).splitlines()[0][:200])
            return 0
    finally:
        fs.delete(staged.rsplit("/", 1)[0], recursive=True)
    return _delete_members(fs, reader, folder, run)


def _delete_members(fs: Any, reader: LogReader, folder: str, run: list[Segment]) -> int:
    """Delete what was merged, once a fresh listing reads from the merged segment."""
    topic, log, name = (part.split("=", 1)[1] for part in folder.split("/")[-3:])
    partition = reader.partitions([topic])[topic].get(log, {}).get(name)
    return _delete_superfluous(fs, reader, partition) if partition and not partition.damage else 0


def _delete_superfluous(fs: Any, reader: LogReader, partition: Partition) -> int:
    """Delete segments whose offsets others hold, as their own footers and those of the others prove."""
    gone = 0
    for segment in partition.superfluous:
        end = reader.footer(segment).end_from(segment.base)
        holding = partition.segments_between(segment.base, end)
        whole = bool(holding) and holding[0].base <= segment.base and (holding[-1].end or 0) >= end
        if whole and all(reader.footer(s).end_from(s.base) >= (s.end or 0) for s in holding):
            fs.delete(segment.path)
            gone += 1
        else:
            _log.error("not deleted", path=segment.path, reason="no other segment is proved to hold all of its offsets")
    return gone


def _clock_ms(fs: Any) -> int:
    """Now, as the file system tells time: its ages are compared with nothing else."""
    path = f"{STAGING}/clock-{time.time_ns()}"
    fs.create(path, b"")
    entry = fs.status(path)
    fs.delete(path)
    return int(entry.modified_ms) if entry is not None else 0
