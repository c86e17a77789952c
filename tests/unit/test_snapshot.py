"""Is what is served exact, and does it never go back, whatever happens to versions, chains and epochs?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.serving.parameters import view_query
from engine.serving.query import fetch_rows, open_database
from engine.serving.snapshot import Loader, Snapshot
from engine.serving.watch import Seen, Watch
from engine.storage import chains, versions
from engine.storage.log import MASTER, Partition, covers, segment_path
from tests.unit.localfs import LocalFs
from tests.unit.serving_data import (
    LOG,
    ORIGINS,
    SALES,
    SHOP,
    SHOPS,
    cut,
    end_of,
    events,
    good_in,
    parquet,
    write_chain,
    write_epoch,
    write_epochs,
    write_version,
)


class World:
    """Events cut into 40 pieces, a file system, a loader and a clock."""

    def __init__(self, folder: Path, number: int = 1, pieces: int = 40) -> None:
        self.random = Random(number)
        self.fs = LocalFs(folder)
        self.rows = events(self.random, 600)
        self.pieces = [piece for piece in cut(self.random, self.rows, pieces) if piece.num_rows]
        self.now = 0.0
        self.loader = Loader(self.fs, SHOP, open_database(), clock=lambda: self.now, relist_seconds=0.0)
        self.chain = write_chain(self.fs, SHOP, 1, 0, ORIGINS)

    def epochs(self, first: int, end: int) -> None:
        for number in range(first, end):
            write_epoch(self.fs, SHOP, self.chain, number, self.end(number), self.pieces[number])

    def version(self, number: int, pieces: int) -> None:
        write_version(self.fs, SHOP, number, pa.concat_tables(self.pieces[:pieces]), self.end(pieces))

    def end(self, pieces: int) -> dict[str, dict[str, dict[str, int]]]:
        """Position after so many pieces."""
        return end_of(pa.concat_tables(self.pieces[:pieces]) if pieces else self.rows.slice(0, 0), ORIGINS)

    def poll(self) -> Snapshot:
        self.now += 1
        found = self.loader.poll()
        assert found is not None
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def sales(snapshot: Snapshot) -> int:
    """Sales by the view, which must be what the snapshot says of itself."""
    query = view_query(SHOPS, [("by", "")])
    with open_database() as database:
        rows = fetch_rows(database, query, {"batch": snapshot.batch["shops"], "speed": snapshot.speed["shops"]}, 0)
    total = int(rows[0][0]) if rows else 0
    assert total == snapshot.manifest.events + snapshot.events_speed
    return total


def good_below(world: World, coverage: dict[str, dict[str, dict[str, int]]]) -> int:
    ends = coverage[SALES.topic][LOG]
    rows = zip(*(world.rows[name].to_pylist() for name in ("partition", "offset", "problem")), strict=True)
    return sum(1 for partition, offset, problem in rows if problem is None and offset < ends[partition])


def test_neither_version_nor_chain_is_no_snapshot(tmp_path: Path) -> None:
    assert Loader(LocalFs(tmp_path), SHOP, open_database()).poll() is None


def test_before_the_first_version_the_epochs_alone_answer(world: World) -> None:
    assert sales(world.poll()) == 0
    world.epochs(0, 5)
    snapshot = world.poll()
    assert (snapshot.manifest.version, snapshot.chain, snapshot.coverage) == (0, world.chain, world.end(5))
    assert sales(snapshot) == good_in(pa.concat_tables(world.pieces[:5]))


@pytest.mark.parametrize("number", range(6))
def test_every_step_of_a_random_run_is_exact_and_never_goes_back(tmp_path: Path, number: int) -> None:
    world = World(tmp_path, number)
    written = version = 0
    before: Snapshot | None = None
    while written < len(world.pieces):
        step = min(len(world.pieces), written + world.random.randrange(1, 7))
        world.epochs(written, step)
        written = step
        if world.random.random() < 0.5:
            version += 1
            world.version(version, world.random.randrange(max(0, written - 5), written + 1))
        if world.random.random() < 0.2:
            world.loader = Loader(world.fs, SHOP, open_database(), relist_seconds=0.0)
            before = None
        snapshot = world.poll()
        assert snapshot.manifest.version == version and snapshot.coverage == world.end(written)
        assert sales(snapshot) == good_below(world, snapshot.coverage)
        assert before is None or covers(snapshot.coverage, before.coverage)
        before = snapshot


def test_only_new_epochs_are_read(world: World) -> None:
    world.epochs(0, 30)
    world.version(1, 3)
    world.poll()
    world.fs.reads.clear()
    world.epochs(30, 31)
    world.poll()
    assert [path for path in world.fs.reads if path.endswith(".parquet")] == [chains.epoch_path("shop", 1, 30)]


def test_a_cold_start_reads_no_epoch_far_below_the_horizon(world: World) -> None:
    world.epochs(0, len(world.pieces))
    world.version(1, len(world.pieces) - 2)
    world.poll()
    assert sum("/speed_views/" in path and path.endswith(".parquet") for path in world.fs.reads) <= 8


def test_a_missing_epoch_ends_coverage_before_it(world: World) -> None:
    world.epochs(0, 20)
    world.version(1, 5)
    world.fs.delete(chains.epoch_path("shop", 1, 12))
    snapshot = world.poll()
    assert snapshot.coverage == world.end(12) and sales(snapshot) == good_below(world, world.end(12))


@pytest.mark.parametrize("broken", [5, 0])
def test_the_first_epoch_after_the_horizon_missing_leaves_the_version_alone(world: World, broken: int) -> None:
    world.epochs(0, 20)
    if broken:
        world.version(1, 5)
    world.fs.delete(chains.epoch_path("shop", 1, broken))
    assert world.poll().coverage == world.end(broken)


def test_a_damaged_epoch_is_refused_and_the_last_good_snapshot_kept(world: World) -> None:
    world.epochs(0, 10)
    assert world.poll().coverage == world.end(10)
    world.fs.create(chains.epoch_path("shop", 1, 10), b"PAR1 not really")
    write_epoch(world.fs, SHOP, world.chain, 11, world.end(11), world.pieces[11])
    assert world.poll().coverage == world.end(10)
    world.fs.delete(chains.epoch_path("shop", 1, 10))
    world.epochs(10, 11)
    assert world.poll().coverage == world.end(12)


def test_an_epoch_that_does_not_continue_is_refused(world: World) -> None:
    world.epochs(0, 10)
    write_epoch(world.fs, SHOP, world.chain, 10, world.end(11), world.pieces[11])
    assert world.poll().coverage == world.end(10)


def test_deleted_speed_data_changes_no_answer_until_there_is_a_better_one(world: World) -> None:
    world.epochs(0, 20)
    world.version(1, 10)
    before = world.poll()
    world.fs.delete("/data/speed_views", recursive=True)
    assert world.poll() is before
    world.version(2, 15)
    assert world.poll() is before  # its horizon lies below what was already answered
    world.version(3, 25)
    after = world.poll()
    assert (after.manifest.version, after.chain, after.coverage) == (3, None, world.end(25))
    assert sales(after) == good_below(world, world.end(25))


def test_a_new_chain_of_the_same_number_is_not_mixed_with_the_deleted_one(world: World) -> None:
    world.epochs(0, 20)
    world.version(1, 1)
    world.poll()
    world.fs.delete("/data/speed_views", recursive=True)
    world.chain = write_chain(world.fs, SHOP, 1, 1, world.end(1), created="2026-02-02T00:00:00Z")
    write_epochs(world.fs, SHOP, world.chain, [pa.concat_tables(world.pieces[1:15])])
    assert world.poll().coverage == world.end(20)
    write_epoch(world.fs, SHOP, world.chain, 1, world.end(15), pa.concat_tables(world.pieces[15:30]))
    after = world.poll()
    assert after.coverage == world.end(30) and sales(after) == good_below(world, world.end(30))


def test_a_new_chain_is_taken_when_it_has_caught_up(world: World) -> None:
    world.epochs(0, 20)
    world.version(1, 10)
    before = world.poll()
    world.version(2, 18)
    fresh = write_chain(world.fs, SHOP, 2, 2, world.end(18))
    assert world.poll().chain == world.chain and world.poll().manifest.version == 2
    write_epoch(world.fs, SHOP, fresh, 0, world.end(18), world.pieces[18])
    assert world.poll().chain == world.chain
    write_epoch(world.fs, SHOP, fresh, 1, world.end(19), pa.concat_tables(world.pieces[19:25]))
    after = world.poll()
    assert after.chain == fresh and covers(after.coverage, before.coverage)
    assert after.coverage == world.end(25) and sales(after) == good_below(world, world.end(25))


def test_a_version_that_fits_no_chain_waits_until_it_covers(world: World) -> None:
    world.epochs(0, 20)
    world.version(1, 10)
    world.poll()
    middle = pa.concat_tables([*world.pieces[:11], world.pieces[11].slice(0, max(1, world.pieces[11].num_rows // 2))])
    if end_of(middle, ORIGINS) == world.end(12):
        middle = middle.slice(0, middle.num_rows - 1)
    write_version(world.fs, SHOP, 2, middle, end_of(middle, ORIGINS))
    assert world.poll().manifest.version == 1


def test_rollback_is_instant_and_loses_nothing(world: World) -> None:
    world.epochs(0, 20)
    world.version(1, 5)
    world.version(2, 15)
    assert world.poll().manifest.version == 2
    world.fs.create(f"{versions.SERVED}/shop/1.json", b'{"version": 1}')
    back = world.poll()
    assert (back.manifest.version, back.coverage) == (1, world.end(20)) and sales(back) == good_below(
        world, world.end(20)
    )
    world.fs.create(f"{versions.SERVED}/shop/2.json", b'{"version": null}')
    assert world.poll().manifest.version == 2


def test_only_a_recorded_rollback_may_go_back(world: World) -> None:
    world.epochs(0, 5)
    world.version(1, 5)
    world.version(2, 20)
    assert world.poll().coverage == world.end(20)
    world.fs.create(f"{versions.SERVED}/shop/1.json", b'{"version": 1}')
    assert world.poll().coverage == world.end(5)
    world.epochs(5, 6)
    assert world.poll().coverage == world.end(6)


def test_another_definition_is_never_combined(world: World) -> None:
    world.epochs(0, 5)
    other = dataclasses.replace(SHOP, views=(dataclasses.replace(SHOPS, show={"twice": "2 * sales"}),))
    write_version(world.fs, other, 1, pa.concat_tables(world.pieces[:9]), world.end(9))
    write_chain(world.fs, other, 2, 0, ORIGINS)
    snapshot = world.poll()
    assert (snapshot.manifest.version, snapshot.coverage) == (0, world.end(5))


def test_a_damaged_version_keeps_the_last_good_one(world: World) -> None:
    world.epochs(0, 20)
    world.version(1, 5)
    world.poll()
    world.version(2, 15)
    world.fs.delete(f"{versions.folder('shop', 2)}/shops/part-1.parquet")
    world.fs.create(f"{versions.folder('shop', 3)}/manifest.json", b"{")
    assert (world.poll().manifest.version, world.poll().coverage) == (1, world.end(20))


def test_a_version_with_other_rows_than_its_manifest_says_is_refused(world: World) -> None:
    world.epochs(0, 20)
    world.version(1, 5)
    world.version(2, 15)
    folder = f"{versions.folder('shop', 2)}/sales_minutes"
    data = world.fs.read(f"{folder}/part-0.parquet")
    extra = pq.read_table(pa.BufferReader(data)).slice(0, 1)
    world.fs.delete(f"{folder}/part-0.parquet")
    world.fs.create(
        f"{folder}/part-0.parquet", parquet(pa.concat_tables([extra, pq.read_table(pa.BufferReader(data))]))
    )
    assert world.poll().manifest.version == 1


def test_staleness_speaks_of_what_lies_above_and_grows_while_nothing_covers_it(world: World) -> None:
    world.epochs(0, 10)
    snapshot, watch = world.poll(), Watch(SHOP)
    watch.seen = Seen({}, {})
    assert watch.staleness(snapshot, 4e9) > 1e9  # never seen fresh: as old as its newest epoch
    ids = {SALES.topic: LOG}
    covered = {SALES.topic: {int(p): (0, end) for p, end in snapshot.coverage[SALES.topic][LOG].items()}}
    ahead = {SALES.topic: {p: (0, end + 1) for p, (_, end) in covered[SALES.topic].items()}}
    watch.note(4e9, ids, covered)
    assert watch.staleness(snapshot, 4e9 + 0.5) == 0.5
    watch.note(4e9 + 1, ids, ahead)
    watch.note(4e9 + 2, ids, ahead)
    assert watch.staleness(snapshot, 4e9 + 30) == 30
    assert watch.missing(snapshot) == []  # what lies above is not missing


def test_what_kafka_has_and_nothing_covers_is_missing(world: World) -> None:
    world.epochs(0, 10)
    snapshot, watch = world.poll(), Watch(SHOP)
    watch.seen = Seen({}, {})
    watch.note(1.0, {SALES.topic: "newLog"}, {SALES.topic: {0: (3, 9), 1: (4, 4)}})
    assert [(m["log"], m["partition"], m["start"], m["end"]) for m in watch.missing(snapshot)] == [
        ("newLog", "0", 3, 9)
    ]


def test_a_log_that_began_anew_under_its_id_is_neither_fresh_nor_complete(world: World) -> None:
    """A broker that lost its disk while ZooKeeper kept the topic: Kafka's ends lie below what HDFS has."""
    world.epochs(0, 10)
    snapshot, watch = world.poll(), Watch(SHOP)
    ids, covered = {SALES.topic: LOG}, snapshot.coverage[SALES.topic][LOG]
    raw = {p: Partition((), 0, end, ()) for p, end in covered.items()}
    watch.seen = Seen({SALES.topic: {LOG: raw}}, {})
    before = {SALES.topic: {int(p): (0, end) for p, end in covered.items()}}
    watch.note(4e9, ids, before)
    watch.note(4e9 + 1, ids, before)
    assert watch.staleness(snapshot, 4e9 + 1) == 0 and watch.missing(snapshot) == []
    watch.note(4e9 + 2, ids, {SALES.topic: {int(p): (0, 2) for p in covered}})
    assert watch.staleness(snapshot, 4e9 + 60) == 59
    assert {(m["log"], m["end"], m["reason"]) for m in watch.missing(snapshot)} == {
        (f"{LOG} begun anew", 2, "not covered")
    }


def mirrored(world: World, end: dict[str, int]) -> None:
    """Raw segments of the old log up to here."""
    for p, head in end.items():
        origin = ORIGINS[SALES.topic][LOG][p]
        rows = pa.table({"offset": pa.array(range(origin, head), pa.int64())})
        world.fs.create(segment_path(MASTER, SALES.topic, LOG, p, origin), parquet(rows))


def begun(world: World, number: int, lost: list[Any]) -> None:
    """A chain of the log that follows the old one."""
    fresh = {SALES.topic: {"logB": {"0": 0}}}
    chain = dataclasses.replace(world.chain, number=number, version=1, start=fresh, origins=fresh, lost=lost)
    world.fs.create(f"{chain.folder}/chain.json", json.dumps(vars(chain)).encode())


@pytest.mark.parametrize("told", [True, False])
def test_a_topic_made_anew_while_the_stream_was_ahead_is_followed(world: World, told: bool) -> None:
    """Epochs had counted rows of the old log that never reached the master dataset.

    The new chain says so, or the segments do.
    """
    world.epochs(0, 30)
    assert world.poll().last == 29
    world.version(1, 20)
    ended = world.end(20)[SALES.topic][LOG]
    mirrored(world, ended)
    begun(world, 2, [[1, {SALES.topic: {LOG: ended}}]] if told else [])
    after = world.poll()
    assert after.coverage == {SALES.topic: {LOG: ended, "logB": {"0": 0}}}
    assert sales(after) == good_below(world, after.coverage)
    if told:
        cold = Loader(world.fs, SHOP, open_database(), clock=lambda: world.now).poll()
        assert cold is not None and cold.coverage == after.coverage, (
            "the old chain reaches further, with rows of no log"
        )


@pytest.mark.parametrize("told", [True, False])
def test_coverage_falls_no_further_than_what_was_lost(world: World, told: bool) -> None:
    world.epochs(0, 30)
    before = world.poll()
    world.version(1, 20)
    head = world.end(25)[SALES.topic][LOG]
    mirrored(world, head)
    begun(world, 2, [[1, {SALES.topic: {LOG: head}}]] if told else [])
    assert world.poll().coverage == before.coverage, "the batch layer has not folded the rest of the old log yet"


@pytest.mark.parametrize("lost", [True, False])
def test_where_the_chain_that_counted_is_gone_no_more_is_waited_for_than_kafka_has(world: World, lost: bool) -> None:
    """Its epochs were damaged, and Kafka was cut: nobody can say what was lost, and nothing comes to fill it up."""
    world.epochs(0, 30)
    before = world.poll()
    world.version(1, 20)
    world.fs.delete(f"/data/speed_views/{SHOP.name}/{world.chain.number:010d}", recursive=True)
    start = world.end(20)
    chain = dataclasses.replace(world.chain, number=2, version=1, start=start)
    world.fs.create(f"{chain.folder}/chain.json", json.dumps(vars(chain)).encode())
    assert world.poll().coverage == before.coverage
    ended = world.end(20 if lost else 30)[SALES.topic][LOG]
    world.loader.note(before, {SALES.topic: (LOG, {int(p): end for p, end in ended.items()})})
    found = world.poll()
    assert found.coverage == (world.end(20) if lost else before.coverage)
    assert sales(found) == good_below(world, found.coverage)


def balance(world: World, raw: dict[str, Partition], typed: dict[str, Partition], snapshot: Snapshot) -> dict[str, Any]:
    watch = Watch(SHOP)
    watch.seen = Seen({SALES.topic: {LOG: raw}}, {SALES.topic: {LOG: typed}})
    ranges = {int(p): (0, part.head) for p, part in raw.items()}
    watch.note(4e9, {SALES.topic: LOG}, {SALES.topic: ranges})
    return watch.ledger(snapshot, 4e9)


def test_gaps_and_holes_are_counted_and_hide_no_imbalance(world: World) -> None:
    world.version(1, 40)
    snapshot = world.poll()
    counts = snapshot.manifest.counts[SALES.topic][LOG]
    rows = {p: sum(by.values()) for p, by in counts.items()}
    heads = snapshot.coverage[SALES.topic][LOG]
    begins = ORIGINS[SALES.topic][LOG]
    # As many offsets more as were accepted as a gap, or are holes, lie below the horizon.
    further = {p: head + 12 for p, head in heads.items()}
    manifest = dataclasses.replace(snapshot.manifest, horizon={SALES.topic: {LOG: further}})
    snapshot = dataclasses.replace(snapshot, manifest=manifest, coverage=manifest.horizon)
    parts = {
        p: Partition(
            (), begins[p], further[p], gaps=((begins[p], begins[p] + 7),), holes=((further[p] - 5, further[p]),)
        )
        for p in heads
    }
    ledger = balance(world, parts, parts, snapshot)
    assert ledger["balanced"] and not ledger["complete"]
    for row in ledger["partitions"]:
        assert (row["gaps"], row["holes"], row["raw"]) == (7, 5, rows[row["partition"]])
        assert (
            row["horizon"] - row["origin"] == row["good"] + sum(row["problems"].values()) + row["gaps"] + row["holes"]
        )
    short = {p: dataclasses.replace(part, gaps=((begins[p], begins[p] + 6),)) for p, part in parts.items()}
    assert not balance(world, short, short, snapshot)["balanced"]
    torn = {p: dataclasses.replace(part, origin=part.origin + 1) for p, part in parts.items()}
    assert not balance(world, parts, torn, snapshot)["balanced"]
    damaged = {p: dataclasses.replace(part, damage="it begins at offset 9") for p, part in parts.items()}
    assert not balance(world, damaged, parts, snapshot)["balanced"]


def test_the_ledger_says_what_hdfs_alone_still_has(world: World) -> None:
    world.version(1, 40)
    snapshot, watch = world.poll(), Watch(SHOP)
    heads = snapshot.coverage[SALES.topic][LOG]
    old = {p: Partition((), ORIGINS[SALES.topic][LOG][p], head, closed=True) for p, head in heads.items()}
    new = {p: Partition((), head - 10, head - 10, begun=True) for p, head in heads.items()}
    watch.seen = Seen({SALES.topic: {LOG: old, f"{LOG}.2": new}}, {SALES.topic: {LOG: old}})
    told = {(row["log"], row["only_hdfs"]) for row in watch.ledger(snapshot, 4e9)["partitions"]}
    assert told == {(LOG, 10), (f"{LOG}.2", 0)}


def test_a_topic_that_kafka_no_longer_has_is_not_fresh(world: World) -> None:
    world.epochs(0, 10)
    snapshot, watch = world.poll(), Watch(SHOP)
    watch.note(4e9, {SALES.topic: LOG}, {SALES.topic: {0: (0, 1)}})
    watch.note(4e9 + 1, {}, {})
    assert watch.staleness(snapshot, 4e9 + 30) == 30


def test_what_is_pruned_is_forgotten(world: World) -> None:
    world.epochs(0, 10)
    for number in (1, 2, 3):
        world.version(number, number)
        world.poll()
    world.fs.delete(versions.folder(SHOP.name, 1), recursive=True)
    world.poll()
    assert sorted(m.version for m in world.loader._manifests.values()) == [2, 3]


# What is deleted by hand and made anew, what is damaged, what leaves --------------------------------------------------


def test_a_version_that_was_deleted_and_made_anew_under_its_number_is_read_anew(world: World) -> None:
    world.epochs(0, 10)
    world.version(1, 3)
    world.version(2, 5)
    assert world.poll().manifest.version == 2
    world.fs.delete(versions.folder(SHOP.name, 2), recursive=True)
    world.version(2, 8)
    snapshot = world.poll()
    assert snapshot.manifest.horizon == world.end(8)
    assert sales(snapshot) == good_below(world, world.end(10))


def test_an_epoch_that_was_deleted_and_made_anew_under_its_number_is_read_anew(world: World) -> None:
    world.epochs(0, 6)
    world.poll()
    world.fs.delete(chains.epoch_path("shop", 1, 5))
    write_epoch(world.fs, SHOP, world.chain, 5, world.end(5), pa.concat_tables(world.pieces[5:8]))
    assert sales(world.poll()) == good_below(world, world.end(6)), "what is remembered of it is still right"
    write_epoch(world.fs, SHOP, world.chain, 6, world.end(8), world.pieces[8])
    snapshot = world.poll()
    assert snapshot.coverage == world.end(9) and sales(snapshot) == good_below(world, world.end(9))
    assert sum(snapshot.quarantined.values()) + sales(snapshot) == sum(p.num_rows for p in world.pieces[:9])
    world.fs.reads.clear()
    world.poll()
    assert not [path for path in world.fs.reads if path.endswith(".parquet")]


def test_an_epoch_that_does_not_continue_is_not_read_again_at_every_poll(world: World) -> None:
    world.epochs(0, 6)
    write_epoch(world.fs, SHOP, world.chain, 6, world.end(8), world.pieces[8])
    assert world.poll().coverage == world.end(6)
    world.poll()
    world.fs.reads.clear()
    world.poll()
    assert not [path for path in world.fs.reads if path.endswith(".parquet")]


def test_chains_that_begin_at_one_again_are_served(world: World) -> None:
    world.epochs(0, 4)
    world.version(1, 2)
    second = write_chain(world.fs, SHOP, 2, 1, world.end(2))
    write_epochs(world.fs, SHOP, second, world.pieces[2:6])
    assert world.poll().chain == second
    world.fs.delete(chains.SPEED, recursive=True)  # with what is remembered of their numbers
    again = write_chain(world.fs, SHOP, 1, 1, world.end(2), "2026-02-02T00:00:00Z")
    write_epochs(world.fs, SHOP, again, world.pieces[2:9])
    snapshot = world.poll()
    assert snapshot.chain == again and sales(snapshot) == good_below(world, world.end(9))


def test_a_choice_that_was_deleted_and_made_anew_under_its_number_is_obeyed(world: World) -> None:
    world.epochs(0, 10)
    for number in (1, 2, 3):
        world.version(number, number)
    versions.choose(world.fs, "shop", 2, follow=False)
    world.poll()
    world.fs.delete(versions.SERVED, recursive=True)
    world.fs.create(f"{versions.SERVED}/shop/1.json", b'{"version": 1, "follow": false, "at": "later"}')
    assert world.loader.pinned == 1
    assert world.poll().manifest.version == 1


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"7"])
def test_a_damaged_choice_stops_no_serving(world: World, text: bytes) -> None:
    world.epochs(0, 10)
    for number in (1, 2):
        world.version(number, number)
    versions.choose(world.fs, "shop", 1, follow=False)
    world.fs.create(f"{versions.SERVED}/shop/2.json", text)
    assert (world.loader.pinned, world.poll().manifest.version) == (1, 1)


@pytest.mark.parametrize("damage", ["garbled page", "garbled footer"])
def test_rows_whose_bytes_are_no_pages_are_refused_as_damage_and_not_taken_for_silence(
    world: World, damage: str
) -> None:
    world.epochs(0, 10)
    for number in (1, 2):
        world.version(number, number)
    path = f"{versions.folder('shop', 2)}/shops/part-0.parquet"
    data = bytearray(world.fs.read(path))
    place = slice(4, 40) if damage == "garbled page" else slice(-60, -40)
    data[place] = b"\xff" * len(data[place])
    world.fs.delete(path)
    world.fs.create(path, bytes(data))
    assert world.poll().manifest.version == 1


def test_a_chain_that_cannot_be_read_is_told_once_and_left_out(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.epochs(0, 4)
    world.fs.create(f"{chains.chain_folder('shop', 2)}/chain.json", b"{")
    for _ in range(3):
        assert world.poll().chain == world.chain
    assert capsys.readouterr().out.count("0000000002") <= 2  # one line, which names path and reason


def test_a_topic_that_left_the_domain_is_in_no_coverage(world: World) -> None:
    world.epochs(0, 10)
    gone = {"gone-topic": {"logG": {"0": 99}}}
    write_version(world.fs, SHOP, 1, pa.concat_tables(world.pieces[:3]), {**world.end(3), **gone})
    snapshot = world.poll()
    assert set(snapshot.coverage) == {SALES.topic} and snapshot.chain == world.chain
