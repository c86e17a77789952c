"""Merging small segments: the rows stay the same, at every step, whatever step is the last one."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.storage import compact
from engine.storage.commit import Piece, commit, gap_segment, staged_pieces
from engine.storage.log import STAGING, DamagedSegment, LogReader, segment_path
from engine.verify import rawlog
from tests.unit.localfs import LocalFs

ROOT, TOPIC, LOG, HOUR = "/data/master_dataset", "t", "L", 3600
SCHEMA = pa.schema([("value", pa.string()), ("offset", pa.int64())])


class Crash(BaseException):
    """kill -9."""


class Crashing:
    """A file system whose caller dies at its n-th change."""

    def __init__(self, fs: LocalFs, steps: int) -> None:
        self.fs, self.left = fs, steps

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.fs, name)
        if name not in ("create", "rename", "delete", "mkdirs"):
            return call

        def changed(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Crash
            return call(*args, **kwargs)

        return changed


def segment(first: int, end: int) -> bytes:
    out = pa.BufferOutputStream()
    rows = {"value": [f"v{offset}" for offset in range(first, end)], "offset": list(range(first, end))}
    pq.write_table(pa.table(rows, SCHEMA), out)
    return bytes(out.getvalue())


def put(fs: LocalFs, first: int, end: int, age: float = 2 * HOUR, partition: str = "0") -> str:
    path = segment_path(ROOT, TOPIC, LOG, partition, first)
    fs.create(path, segment(first, end))
    then = time.time() - age
    os.utime(fs._at(path), (then, then))
    return path


def a_log(folder: Path) -> LocalFs:
    fs = LocalFs(folder)
    for first in range(0, 200, 10):
        put(fs, first, first + 10)
    put(fs, 200, 205, age=10)
    return fs


def names(fs: LocalFs, partition: str = "0") -> list[str]:
    return [e.name for e in fs.list(f"{ROOT}/topic={TOPIC}/log={LOG}/partition={partition}")]


def rows_of_ours(fs: LocalFs) -> list[int]:
    partition = LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"]
    return [o for s in partition.segments for o in pq.read_table(fs._at(s.path))["offset"].to_pylist()]


def rows_of_others(fs: LocalFs) -> list[int]:
    found = [o for path in fs._at(ROOT).rglob("*.parquet") for o in pq.read_table(path)["offset"].to_pylist()]
    return sorted(found)


def test_a_run_of_old_small_segments_becomes_one_and_the_last_segment_stays(tmp_path: Path) -> None:
    fs = a_log(tmp_path)
    before = LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"]
    assert compact.compact(fs, ROOT, [TOPIC]) == 20
    assert names(fs) == [f"{0:020d}-{200:020d}.parquet", f"{200:020d}.parquet"]
    after = LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"]
    assert (after.origin, after.head, after.gaps) == (before.origin, before.head, before.gaps) == (0, 205, ())
    assert rows_of_ours(fs) == rows_of_others(fs) == list(range(205))
    assert fs.list(STAGING) == []
    assert compact.compact(fs, ROOT, [TOPIC]) == 0


def test_a_crash_at_any_step_loses_no_row_and_the_next_run_finishes(tmp_path: Path) -> None:
    for steps in range(60):
        fs = a_log(tmp_path / str(steps))
        finished = False
        try:
            compact.compact(Crashing(fs, steps), ROOT, [TOPIC])
            finished = True
        except Crash:
            pass
        assert rows_of_ours(fs) == list(range(205)), steps
        assert set(rows_of_others(fs)) == set(range(205)), steps
        oracle = [
            rawlog.Segment(e.path, int(e.name[:20]), int(e.name[21:41]) if "-" in e.name else None, 0)
            for e in fs.list(f"{ROOT}/topic={TOPIC}/log={LOG}/partition=0")
        ]
        assert [s.path for s in rawlog.visible(oracle)] == [
            s.path for s in LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"].segments
        ]
        compact.compact(fs, ROOT, [TOPIC])
        assert rows_of_ours(fs) == rows_of_others(fs) == list(range(205)), steps
        if finished:
            assert steps > 20
            return
    pytest.fail("never finished")


def test_young_large_few_and_empty_segments_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = LocalFs(tmp_path)
    for first in range(0, 60, 10):
        put(fs, first, first + 10)  # six: too few
    gap = segment_path(ROOT, TOPIC, LOG, "0", 60)
    fs.create(gap, gap_segment(60, 100, SCHEMA))
    os.utime(fs._at(gap), (0, 0))
    for first in range(100, 200, 10):
        put(fs, first, first + 10, age=10)  # too young
    assert compact.compact(fs, ROOT, [TOPIC]) == 0
    whole = LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"]
    assert whole.gaps == ((60, 100),)
    monkeypatch.setattr(compact, "TARGET_BYTES", 8 * 100)  # a segment has more than 100 bytes
    for path in fs._at(ROOT).rglob("*.parquet"):
        os.utime(path, (0, 0))
    assert compact.compact(fs, ROOT, [TOPIC]) == 0
    monkeypatch.undo()
    assert compact.compact(fs, ROOT, [TOPIC]) == 9
    assert LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"].gaps == ((60, 100),)


def test_merged_segments_are_merged_again_and_the_widest_covers(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    for first in range(0, 640, 10):
        put(fs, first, first + 10)
        if first % 80 == 70:
            put(fs, first + 10, first + 11, age=10)  # the last one while this run is merged
            compact.compact(fs, ROOT, [TOPIC])
            fs.delete(segment_path(ROOT, TOPIC, LOG, "0", first + 10))
    put(fs, 640, 641, age=10)
    for path in fs._at(ROOT).rglob("*-*.parquet"):
        os.utime(path, (0, 0))
    assert len(names(fs)) == 9
    assert compact.compact(fs, ROOT, [TOPIC]) == 8
    assert names(fs) == [f"{0:020d}-{640:020d}.parquet", f"{640:020d}.parquet"]
    assert rows_of_ours(fs) == list(range(641))


def heads(fs: LocalFs) -> dict[tuple[str, str, str], int]:
    found = LogReader(fs).partitions([TOPIC])[TOPIC].get(LOG, {})
    return {(TOPIC, LOG, p): partition.head for p, partition in found.items()}


def wide(fs: LocalFs, first: int, end: int) -> None:
    fs.create(
        segment_path(ROOT, TOPIC, LOG, "0", first).replace(".parquet", f"-{end:020d}.parquet"), segment(first, end)
    )


def test_a_compaction_that_was_overtaken_neither_hides_nor_deletes_what_it_does_not_hold(tmp_path: Path) -> None:
    """B has staged 0-160 and is paused; A merges 0-80 and C merges 80-200; then B renames."""
    fs = LocalFs(tmp_path)
    wide(fs, 0, 80)
    wide(fs, 80, 200)
    wide(fs, 0, 160)
    put(fs, 200, 205, age=10)
    assert rows_of_ours(fs) == list(range(205))
    partition = LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"]
    assert (partition.damage, [s.end for s in partition.superfluous]) == ("", [160])
    assert compact.compact(fs, ROOT, [TOPIC]) == 1
    assert rows_of_ours(fs) == rows_of_others(fs) == list(range(205))


def test_a_paused_compaction_does_not_publish_over_what_others_merged(tmp_path: Path) -> None:
    fs = a_log(tmp_path)
    reader = LogReader(fs)
    run = list(reader.partitions([TOPIC])[TOPIC][LOG]["0"].segments[:16])
    assert compact.compact(fs, ROOT, [TOPIC]) == 20
    put_back = [put(fs, s.base, s.base + 10) for s in run[:3]]
    folder = put_back[0].rsplit("/", 1)[0]
    with pytest.raises(FileNotFoundError):
        compact._merge(fs, reader, folder, run)
    assert rows_of_ours(fs) == list(range(205))


def test_copies_that_overlap_what_was_read_again_are_merged_once(tmp_path: Path) -> None:
    """Of [0, 30) and [30, 50) copies were put back; [1, 80) and what follows were read again meanwhile."""
    fs = LocalFs(tmp_path)
    for first, end in ((0, 30), (30, 50), (1, 80), *((first, first + 10) for first in range(80, 150, 10))):
        put(fs, first, end)
    put(fs, 150, 155, age=10)
    partition = LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"]
    assert [(s.base, s.end, s.whole) for s in partition.segments[:3]] == [(0, 1, False), (1, 80, True), (80, 90, True)]
    assert (partition.damage, partition.rows_between(0, 155)) == ("", 155)
    assert compact.compact(fs, ROOT, [TOPIC]) == 10
    assert names(fs) == [f"{0:020d}-{150:020d}.parquet", f"{150:020d}.parquet"]
    assert rows_of_ours(fs) == rows_of_others(fs) == list(range(155))


def test_a_damaged_segment_that_is_to_be_merged_is_named(tmp_path: Path) -> None:
    fs = a_log(tmp_path)
    reader = LogReader(fs)
    run = list(reader.partitions([TOPIC])[TOPIC][LOG]["0"].segments[:16])
    fs._at(run[3].path).write_bytes(b"PAR1 no more")
    with pytest.raises(DamagedSegment, match="is damaged"):
        compact._merge(fs, reader, run[0].path.rpartition("/")[0], run)


def test_a_partition_with_a_hole_in_it_is_damaged_and_nothing_of_it_is_deleted(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    wide(fs, 0, 80)
    wide(fs, 0, 160)
    wide(fs, 170, 200)
    put(fs, 200, 205, age=10)
    before = names(fs)
    partition = LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"]
    assert partition.damage == "no segment holds offset 160, though later ones are there"
    assert compact.compact(fs, ROOT, [TOPIC], settled_seconds=0) == 0 and names(fs) == before


def test_holes_outlive_the_merge_of_their_segments(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    place = (TOPIC, LOG, "0")
    for first in range(0, 100, 10):
        rows = pa.table({"value": ["x"] * 8, "offset": list(range(first, first + 8))}, SCHEMA)  # 8 and 9 have no record
        out = pa.BufferOutputStream()
        pq.write_table(rows, out)
        fs.create(f"{STAGING}/{first}/topic={TOPIC}/log={LOG}/partition=0/x.parquet", bytes(out.getvalue()))

        def stage(todo: Any, staging: str, first: int = first) -> list[Piece]:
            return staged_pieces(fs, f"{STAGING}/{first}", todo)

        commit(fs, ROOT, {place: (first, first + 10)}, lambda: heads(fs), stage, "w", {place: 0})
    put(fs, 100, 105, age=10)
    for path in fs._at(ROOT).rglob("*0.parquet"):
        os.utime(path, (0, 0))
    before = LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"]
    assert compact.compact(fs, ROOT, [TOPIC]) == 10
    after = LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"]
    assert len(after.segments) == 2
    assert after.holes == before.holes == tuple((n + 8, n + 10) for n in range(0, 100, 10))
    assert after.rows_between(0, 105) == 85 == len(rows_of_ours(fs))


def test_a_member_of_holes_alone_does_not_stop_a_merge_whatever_its_columns(tmp_path: Path) -> None:
    for where in (0, 40, 90):
        fs = LocalFs(tmp_path / str(where))
        for first in range(0, 100, 10):
            if first != where:
                put(fs, first, first + 10)
        (piece,) = staged_pieces(
            fs, STAGING, {(TOPIC, LOG, "0"): (where, where + 10)}, pa.schema([("offset", pa.int64())])
        )
        fs.rename(piece.path, segment_path(ROOT, TOPIC, LOG, "0", where))
        fs.create(f"{ROOT}/topic={TOPIC}/log={LOG}/partition=0/_holes", b"")
        put(fs, 100, 105, age=10)
        for path in fs._at(ROOT).rglob("*0.parquet"):
            os.utime(path, (0, 0))
        assert compact.compact(fs, ROOT, [TOPIC], settled_seconds=0) >= 10
        after = LogReader(fs).partitions([TOPIC])[TOPIC][LOG]["0"]
        assert (len(after.segments), after.holes, after.damage) == (2, ((where, where + 10),), "")
        assert rows_of_ours(fs) == [o for o in range(105) if not where <= o < where + 10]


def test_a_member_that_misses_rows_is_not_merged_away(tmp_path: Path) -> None:
    fs = a_log(tmp_path)
    broken = segment_path(ROOT, TOPIC, LOG, "0", 50)
    fs._at(broken).write_bytes(segment(50, 59))
    os.utime(fs._at(broken), (0, 0))
    assert compact.compact(fs, ROOT, [TOPIC]) == 0
    assert len(names(fs)) == 21


def test_staging_of_dead_writers_goes_and_that_of_a_long_build_stays(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    for name, age in (
        ("ingest-1", 1300),
        ("ingest-2", 1100),
        ("version-x-7-1", 20 * HOUR),
        ("version-x-6-1", 25 * HOUR),
    ):
        fs.create(f"{STAGING}/{name}/file", b"x")
        then = time.time() - age
        os.utime(fs._at(f"{STAGING}/{name}"), (then, then))
    assert compact.clean_staging(fs) == 2
    assert [entry.name for entry in fs.list(STAGING)] == ["ingest-2", "version-x-7-1"]


def test_a_reader_forgets_files_that_are_gone(tmp_path: Path) -> None:
    fs = a_log(tmp_path)
    reader = LogReader(fs)
    reader.partitions([TOPIC])
    last = put(fs, 205, 210, age=1)
    reader.partitions([TOPIC])
    assert len(reader._footers) >= 2
    compact.compact(fs, ROOT, [TOPIC])
    assert reader.partitions([TOPIC])[TOPIC][LOG]["0"].head == 210
    there = {entry.path for entry in fs.list(ROOT, recursive=True)}
    assert {path for path, *_ in reader._footers} <= there and any(path == last for path, *_ in reader._footers)
