"""The typed log follows the raw log, pass by pass; Spark's part is left out here."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from engine.batch import build, events
from engine.batch.events import WriteTyped
from engine.domain import Domain, Stream, View, count
from engine.storage.commit import Piece, commit, commit_empty, commit_origin, gap_segment, staged_pieces
from engine.storage.log import MASTER, LogReader, MasterWentBack, Origin, Partition, segment_path, typed_root
from engine.storage.versions import Manifest
from tests.unit.localfs import LocalFs
from tests.unit.serving_data import parquet

STREAM = Stream("a_topic", columns={"one_id": "STRING"}, key="one_id", unique=("one_id",))


def write(fs: LocalFs, root: str, start: int, end: int) -> None:
    rows = pa.table({"offset": pa.array(range(start, end), pa.int64())})
    fs.create(segment_path(root, STREAM.topic, "log1", "0", start), parquet(rows))


def writer(fs: LocalFs, passes: list[tuple[int, int]], meanwhile: Callable[[], None] = lambda: None) -> WriteTyped:
    """What Spark does: write a typed row per raw row of the ranges; something may happen before it is published."""

    def write_ranges(raw: Any, typed: Any, ranges: Any, staging: str) -> None:
        assert len(passes) < 8, "it follows the head"
        for (lg, p), (start, end) in ranges.items():
            passes.append((start, end))
            folder = f"{staging}/topic={STREAM.topic}/log={lg}/partition={p}"
            fs.create(f"{folder}/part-0.parquet", parquet(rows_of(fs, start, end)))
        meanwhile()

    return write_ranges


def rows_of(fs: LocalFs, start: int, end: int) -> pa.Table:
    partition = LogReader(fs).partitions([STREAM.topic])[STREAM.topic]["log1"]["0"]
    tables = [fs.open_parquet(s.path).read(columns=["offset"]) for s in partition.segments_between(start, end)]
    rows = pa.concat_tables(tables)
    return rows.filter((pc.field("offset") >= start) & (pc.field("offset") < end))


def typed_part(fs: LocalFs) -> Partition:
    return LogReader(fs, typed_root(STREAM)).partitions([STREAM.topic])[STREAM.topic]["log1"]["0"]


def test_a_run_types_what_was_there_when_it_began(tmp_path: Path) -> None:
    """Ingest adds a segment during each pass, so a run that followed the head would never end."""
    fs = LocalFs(tmp_path)
    write(fs, MASTER, 0, 10)
    write(fs, MASTER, 10, 25)
    heads = itertools.count(25, 3)

    def ingest_goes_on() -> None:
        head = next(heads)
        write(fs, MASTER, head, head + 3)

    passes: list[tuple[int, int]] = []
    assert events.extend_typed(fs, STREAM, writer(fs, passes, ingest_goes_on)) == 25
    assert passes == [(0, 25)]
    assert events.extend_typed(fs, STREAM, writer(fs, passes)) == 3, "the next run takes the rest"


def test_a_pass_is_bounded_in_offsets_and_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = LocalFs(tmp_path)
    write(fs, MASTER, 0, 30)
    monkeypatch.setattr(events, "PASS_OFFSETS", 20)
    passes: list[tuple[int, int]] = []
    assert events.extend_typed(fs, STREAM, writer(fs, passes)) == 30
    assert passes == [(0, 20), (20, 30)]
    events.forget_topic(fs, STREAM)
    (entry,) = [e for e in fs.list(MASTER, recursive=True) if e.name.endswith(".parquet")]
    monkeypatch.setattr(events, "PASS_BYTES", entry.length // 3)
    passes.clear()
    assert events.extend_typed(fs, STREAM, writer(fs, passes)) == 30
    assert passes[0][1] <= 10 and len(passes) > 2


def test_a_typed_log_that_was_taken_away_does_not_come_back_from_its_middle(tmp_path: Path) -> None:
    """One run has staged from head 100 on.

    `--full --typed` of a second process takes the log away before it is published.
    """
    fs = LocalFs(tmp_path)
    write(fs, MASTER, 0, 100)
    events.extend_typed(fs, STREAM, writer(fs, []))
    write(fs, MASTER, 100, 150)
    taken = iter([True])

    def second_process() -> None:
        if next(taken, False):
            events.forget_topic(fs, STREAM)

    with pytest.raises(events.RowsDiffer, match="ends at 0"):
        events.extend_typed(fs, STREAM, writer(fs, [], second_process))
    assert LogReader(fs, typed_root(STREAM)).partitions([STREAM.topic]) == {STREAM.topic: {}}
    assert events.extend_typed(fs, STREAM, writer(fs, [])) == 150
    assert (typed_part(fs).origin, typed_part(fs).head) == (0, 150)


def test_a_typed_log_that_begins_above_its_source_is_made_again(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    write(fs, MASTER, 0, 150)
    write(fs, typed_root(STREAM), 100, 150)
    assert events.extend_typed(fs, STREAM, writer(fs, [])) == 150
    assert (typed_part(fs).origin, typed_part(fs).head) == (0, 150)


def test_a_raw_log_that_lost_its_beginning_is_refused(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    write(fs, MASTER, 0, 100)
    write(fs, MASTER, 100, 210)
    commit_origin(fs, MASTER, (STREAM.topic, "log1", "0"), Origin(0))
    fs.delete(segment_path(MASTER, STREAM.topic, "log1", "0", 0))
    with pytest.raises(MasterWentBack, match="begins at offset 100, its origin is 0"):
        events.extend_typed(fs, STREAM, writer(fs, []))
    # In the older layout no origin is committed: there the typed log knows better.
    fs.delete(f"{MASTER}/topic={STREAM.topic}/log=log1/partition=0/_origin")
    write(fs, typed_root(STREAM), 0, 150)
    with pytest.raises(MasterWentBack, match="typed from 0, raw segments begin at 100"):
        events.extend_typed(fs, STREAM, writer(fs, []))


def test_typed_rows_that_are_fewer_than_the_raw_ones_are_not_committed(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    write(fs, MASTER, 0, 10)

    def loses_one(raw: Any, typed: Any, ranges: Any, staging: str) -> None:
        folder = f"{staging}/topic={STREAM.topic}/log=log1/partition=0"
        fs.create(f"{folder}/part-0.parquet", parquet(rows_of(fs, 0, 9)))

    with pytest.raises(events.RowsDiffer, match="hold 10 raw rows, 9 were typed"):
        events.extend_typed(fs, STREAM, loses_one)


def test_holes_and_gaps_of_the_raw_log_are_those_of_the_typed_one(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    place = (STREAM.topic, "log1", "0")
    commit_origin(fs, MASTER, place, Origin(0))
    offsets = [0, 1, 4, 5, 6]  # 2 and 3 are an aborted record and its marker, 7 is a marker
    staged = f"/data/.staging/raw/topic={STREAM.topic}/log=log1/partition=0/x.parquet"
    fs.create(staged, parquet(pa.table({"offset": pa.array(offsets, pa.int64())})))

    def stage(todo: Any, staging: str) -> list[Piece]:
        return staged_pieces(fs, "/data/.staging/raw", todo)

    commit(fs, MASTER, {place: (0, 8)}, lambda: {place: head(fs)}, stage, "ingest")
    commit_empty(fs, MASTER, place, 8, gap_segment(8, 20), 20)
    write(fs, MASTER, 20, 25)
    assert events.extend_typed(fs, STREAM, writer(fs, [])) == 10
    raw, typed = LogReader(fs).partitions([STREAM.topic])[STREAM.topic]["log1"]["0"], typed_part(fs)
    for partition in (raw, typed):
        assert (partition.holes, partition.gaps, partition.head) == (((2, 4), (7, 8)), ((8, 20),), 25)
    assert raw.rows_between(0, 25) == typed.rows_between(0, 25) == 10
    assert raw.rows_between(1, 4) == 1 and raw.rows_between(3, 9) == 3


def test_a_copy_put_back_over_a_segment_that_was_read_again_counts_as_far_as_the_next_one(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    place = (STREAM.topic, "log1", "0")

    def stage(todo: Any, staging: str) -> list[Piece]:
        return staged_pieces(fs, staging, todo)  # markers alone

    commit_origin(fs, MASTER, place, Origin(0))
    write(fs, MASTER, 0, 5)
    commit(fs, MASTER, {place: (5, 8)}, lambda: {place: head(fs)}, stage, "ingest")
    path = segment_path(MASTER, STREAM.topic, "log1", "0", 5)
    copy = fs.read(path)
    fs.delete(path)
    commit(fs, MASTER, {place: (5, 6)}, lambda: {place: head(fs)}, stage, "ingest")
    write(fs, MASTER, 6, 12)
    fs.delete(path)
    fs.create(path, copy)
    assert events.extend_typed(fs, STREAM, writer(fs, [])) == 11
    assert LogReader(fs).partitions([STREAM.topic])[STREAM.topic]["log1"]["0"].holes == ((5, 6),)


def test_a_segment_removed_from_the_middle_is_missed(tmp_path: Path) -> None:
    """Its neighbour must not seem to reach up to the next one."""
    fs = LocalFs(tmp_path)
    for start in (0, 10, 20):
        write(fs, MASTER, start, start + 10)
        assert events.extend_typed(fs, STREAM, writer(fs, [])) == 10
    fs.delete(segment_path(typed_root(STREAM), STREAM.topic, "log1", "0", 10))
    assert typed_part(fs).damage == "no segment holds offset 10, though later ones are there"
    assert events.extend_typed(fs, STREAM, writer(fs, [])) == 30  # made again
    fs.delete(segment_path(MASTER, STREAM.topic, "log1", "0", 10))
    with pytest.raises(MasterWentBack, match="no segment holds offset 10"):
        events.extend_typed(fs, STREAM, writer(fs, []))


def test_a_damaged_segment_in_the_middle_is_told_however_long_it_is(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    for start in (0, 10, 20):
        write(fs, MASTER, start, start + 10)
        events.extend_typed(fs, STREAM, writer(fs, []))
    fs._at(segment_path(typed_root(STREAM), STREAM.topic, "log1", "0", 10)).write_bytes(b"PAR1 no more")
    assert events.extend_typed(fs, STREAM, writer(fs, [])) == 30
    fs._at(segment_path(MASTER, STREAM.topic, "log1", "0", 10)).write_bytes(b"PAR1 no more")
    with pytest.raises(MasterWentBack, match="is damaged"):
        events.extend_typed(fs, STREAM, writer(fs, []))


def test_a_typed_log_that_is_taken_away_before_its_rows_are_typed_lends_no_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run makes it again meanwhile, up to the same head: what we type must know the keys below it."""
    fs = LocalFs(tmp_path)
    write(fs, MASTER, 0, 4)
    events.extend_typed(fs, STREAM, writer(fs, []))
    write(fs, MASTER, 4, 8)
    real, taken = events.commit, []

    def commit_after_another_took_it_away(*given: Any) -> Any:
        stage = given[4]

        def staged(todo: Any, staging: str) -> Any:
            if not taken:
                taken.append(True)
                events.forget_topic(fs, STREAM)
            return stage(todo, staging)

        return real(*given[:4], staged, *given[5:])

    monkeypatch.setattr(events, "commit", commit_after_another_took_it_away)
    with pytest.raises(events.RowsDiffer, match="no longer ends at 4"):
        events.extend_typed(fs, STREAM, writer(fs, []))


def head(fs: LocalFs) -> int:
    return LogReader(fs).partitions([STREAM.topic])[STREAM.topic]["log1"]["0"].head


def test_a_typed_log_that_is_being_made_again_is_no_master_that_went_back(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    domain = Domain("d", (STREAM,), (View("v", (STREAM,), ("one_id",), {"events": count()}),), ())
    write(fs, MASTER, 0, 150)
    write(fs, typed_root(STREAM), 0, 100)
    parent = Manifest("d", 1, 0, {STREAM.topic: {"log1": {"0": 120}}}, domain.definition_hash, "", {})
    with pytest.raises(events.RowsDiffer, match="ends below version 1"):
        build.horizon_of(fs, parent, domain, build.typed_log(fs, domain))
    beyond = dataclasses.replace(parent, horizon={STREAM.topic: {"log1": {"0": 151}}})
    with pytest.raises(MasterWentBack, match="version 1 lies beyond the raw log"):
        build.horizon_of(fs, beyond, domain, build.typed_log(fs, domain))
    events.forget_topic(fs, STREAM)
    write(fs, typed_root(STREAM), 100, 150)
    with pytest.raises(events.RowsDiffer, match="is being made again: log log1 partition 0 begins at 100"):
        build.typed_log(fs, domain)


def test_a_damaged_typed_segment_is_made_again_and_a_damaged_raw_one_is_named(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    domain = Domain("d", (STREAM,), (View("v", (STREAM,), ("one_id",), {"events": count()}),), ())
    write(fs, MASTER, 0, 100)
    events.extend_typed(fs, STREAM, writer(fs, []))
    for data in (b"", b"PAR1 no more"):
        fs._at(segment_path(typed_root(STREAM), STREAM.topic, "log1", "0", 0)).write_bytes(data)
        with pytest.raises(events.RowsDiffer, match="has to be made again"):
            build.typed_log(fs, domain)
        assert events.extend_typed(fs, STREAM, writer(fs, [])) == 100
        assert (typed_part(fs).origin, typed_part(fs).head) == (0, 100)
    last = segment_path(MASTER, STREAM.topic, "log1", "0", 0)
    fs._at(last).write_bytes(b"PAR1 no more")
    with pytest.raises(MasterWentBack, match=r"log1/partition=0/0{20}\.parquet is damaged .*; restore it from a copy"):
        events.extend_typed(fs, STREAM, writer(fs, []))
