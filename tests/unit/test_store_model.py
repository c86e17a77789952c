"""The pointer protocol under crashes, second writers, readers and pruners at every step of the store."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.fold.measures import stored_schema
from engine.serving import store as stores
from engine.serving.cassandra import Cassandra
from engine.serving.materialise import GRACE_SECONDS, Writer
from engine.serving.query import open_database
from engine.serving.replica import Replica, reopened
from engine.serving.snapshot import Snapshot, nothing
from engine.serving.store import CELL_BYTES, NO_DIGEST, Place, Run, Torn
from engine.storage import versions
from engine.storage.chains import Chain, Epoch
from engine.storage.log import covers
from tests.unit.memorystore import Crash, MemoryStore
from tests.unit.serving_data import LOG, SALES, SHOP, SHOPS

DATABASE = open_database()
TOPIC = SALES.topic
CHAIN = Chain("shop", 1, 0, {TOPIC: {LOG: {"0": 0}}}, SHOP.definition_hash, "2026-01-01T00:00:00Z")
LAST = 10
SMALL_PLACE = 4  # so that places end in between


def at(offset: int) -> dict[str, dict[str, dict[str, int]]]:
    return {TOPIC: {LOG: {"0": offset}}}


def one_row(name: str) -> dict[str, pa.Table]:
    row = dict.fromkeys(stored_schema(SHOPS).names) | {"shop": name, "sales": 1}
    return {**nothing(SHOP), "shops": pa.Table.from_pylist([row], stored_schema(SHOPS))}


def epoch(number: int) -> tuple[Epoch, dict[str, pa.Table]]:
    """Epoch n covers [10 n, 10 n + 10) and holds n % 3 events and one row named by its number."""
    return (
        Epoch(number, at(10 * number), at(10 * number + 10), SHOP.definition_hash, {}, number % 3),
        one_row(f"e{number}"),
    )


EPOCHS = [epoch(number) for number in range(LAST)]


@pytest.fixture(autouse=True, scope="module")
def small_places() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "EPOCHS_OF_A_PLACE", SMALL_PLACE)
        yield


def snapshot(below: int, end: int) -> Snapshot:
    """The version that folded the epochs below `below`, and the epochs from there to `end`."""
    said = {view.name: {"rows": 1 if view.name == "shops" else 0} for view in SHOP.views}
    manifest = versions.Manifest("shop", below + 1, 0, at(10 * below), SHOP.definition_hash, "", {}, said, events=below)
    first, last = (below, end - 1) if end > below else (None, None)
    events = sum(EPOCHS[number][0].events for number in range(below, end))
    rows = one_row(f"v{below}")
    return Snapshot("?", SHOP, manifest, CHAIN, first, last, rows, rows, {}, at(10 * end), events, {}, None, "")


def publish(writer: Writer, below: int, end: int) -> bool:
    """What a materialiser does when HDFS holds this: nothing where that would go back."""
    writer.look()
    wanted = snapshot(below, end)
    return writer.allowed(None, wanted, 0, False) and writer.publish(wanted, lambda n: EPOCHS[n], 0, False)


def exact(found: Snapshot) -> None:
    """The snapshot is one that some writer meant, row by row."""
    below, end = found.manifest.events, found.coverage[TOPIC][LOG]["0"] // 10
    wanted = snapshot(below, end)
    assert (found.first, found.last, found.events_speed) == (wanted.first, wanted.last, wanted.events_speed)
    assert found.batch["shops"]["shop"].to_pylist() == [f"v{below}"]
    assert sorted(found.speed["shops"]["shop"].to_pylist()) == sorted(f"e{n}" for n in range(below, end))


def read(store: MemoryStore) -> Snapshot | None:
    """A cold replica's first look, with nothing in between."""
    plan, store.plan = store.plan, {}
    try:
        found = Replica(store, SHOP, DATABASE).poll()
    finally:
        store.plan = plan
    if found is not None:
        exact(found)
    return found


STATES = st.tuples(st.integers(0, LAST), st.integers(0, LAST)).map(sorted)
ACTIONS = st.sampled_from(["crash", "other writer", "reader", "pruner"])


@settings(max_examples=25, deadline=None)
@given(
    plan=st.dictionaries(st.integers(1, 60), ACTIONS, max_size=6),
    states=st.lists(STATES, min_size=1, max_size=3),
    others=st.lists(STATES, min_size=1, max_size=4),
)
def test_whatever_happens_a_reader_finds_what_the_pointer_names_and_never_goes_back(
    plan: dict[int, str], states: list[list[int]], others: list[list[int]]
) -> None:
    store, now = MemoryStore(), [0.0]
    second, pruner = Writer(store, "shop"), Writer(store, "shop", clock=lambda: now[0])
    follower, seen, left = Replica(store, SHOP, DATABASE), [at(0)], list(others)

    def alone(work: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            plan_left, store.plan = store.plan, {}
            work()
            store.plan = plan_left

        return run

    def look() -> None:
        if found := follower.poll():
            exact(found)
            assert covers(found.coverage, seen[-1])
            seen.append(found.coverage)

    def prune() -> None:
        pruner.prune()
        now[0] += GRACE_SECONDS
        pruner.prune()

    works = {"other writer": lambda: publish(second, *left.pop()) if left else None, "reader": look, "pruner": prune}
    store.plan = {step: action if action == "crash" else alone(works[action]) for step, action in plan.items()}
    for state in (*states, [LAST // 2, LAST]):
        with contextlib.suppress(Crash):
            publish(Writer(store, "shop"), *state)  # a writer that was started again remembers nothing
        alone(look)()
        read(store)
    store.plan = {}
    publish(Writer(store, "shop"), LAST // 2, LAST)
    last = read(store)
    assert last is not None and last.coverage == at(10 * LAST)
    prune()
    read(store)


def test_a_crash_at_every_single_step_shows_the_old_snapshot_or_the_new_one() -> None:
    counting = MemoryStore()
    publish(Writer(counting, "shop"), 2, 5)
    before = counting.calls
    publish(Writer(counting, "shop"), 4, 9)
    assert counting.calls - before > 8
    for step in range(before + 1, counting.calls + 1):
        store = MemoryStore()
        publish(Writer(store, "shop"), 2, 5)
        store.plan = {step: "crash"}
        with pytest.raises(Crash):
            publish(Writer(store, "shop"), 4, 9)
        found = read(store)
        assert found is not None and found.coverage == at(50)
        assert publish(Writer(store, "shop"), 4, 9)
        found = read(store)
        assert found is not None and found.coverage == at(90)


def test_of_two_writers_one_wins_and_the_other_shows_nothing() -> None:
    store = MemoryStore()
    one, two = Writer(store, "shop"), Writer(store, "shop")
    one.look(), two.look()
    assert one.publish(snapshot(2, 5), lambda n: EPOCHS[n], 0, False)
    assert not two.publish(snapshot(1, 7), lambda n: EPOCHS[n], 0, False)
    found = read(store)
    assert found is not None and found.manifest.events == 2 and found.last == 4
    assert publish(two, 1, 7)


def test_an_epoch_is_written_once_and_a_version_once() -> None:
    store = MemoryStore()
    writer = Writer(store, "shop")
    for end in range(3, 9):
        assert publish(writer, 2, end)
    assert publish(writer, 5, 9)  # a new version, the epochs go on
    epochs = [place for place in store.written if place.part == stores.EPOCHS]
    assert len(epochs) == 7 and len({place.edition for place in epochs}) == 1
    assert len([place for place in store.written if place.part == "view shops"]) == 2


def test_epochs_that_do_not_continue_the_last_one_begin_an_edition() -> None:
    store = MemoryStore()
    writer = Writer(store, "shop")
    publish(writer, 2, 5)
    moved = dict(enumerate(EPOCHS))
    moved[5] = Epoch(5, at(49), at(60), SHOP.definition_hash, {}, 2), moved[5][1]
    moved[4] = Epoch(4, at(40), at(49), SHOP.definition_hash, {}, 1), moved[4][1]
    writer.look()
    assert writer.publish(snapshot(2, 6), lambda n: moved[n], 0, False)
    assert (
        writer.pointer and writer.pointer.run and len({p.edition for p in store.registered if p.part == "epochs"}) == 2
    )
    read(store)


def test_nothing_is_deleted_before_the_grace_period_and_nothing_that_is_shown_after_it() -> None:
    store, now = MemoryStore(), [0.0]
    writer = Writer(store, "shop", clock=lambda: now[0])
    publish(writer, 0, SMALL_PLACE + 2)
    publish(writer, SMALL_PLACE + 1, SMALL_PLACE + 3)
    assert writer.prune() == 0
    now[0] += GRACE_SECONDS - 1
    assert writer.prune() == 0
    now[0] += 1
    assert writer.prune() == 1 + 1 + len(
        SHOP.views
    )  # the first bucket of epochs, and the manifest and views of the old version
    read(store)
    assert writer.prune() == 0


def test_what_is_not_yet_shown_is_never_deleted_under_its_writer() -> None:
    store, now = MemoryStore(), [0.0]
    pruner = Writer(store, "shop", clock=lambda: now[0])
    publish(Writer(store, "shop"), 0, 3)

    def prune() -> None:
        pruner.prune()
        now[0] += 10 * GRACE_SECONDS
        pruner.prune()

    store.plan = {store.calls + step: prune for step in (4, 9, 14)}
    assert publish(Writer(store, "shop"), 5, 9)
    read(store)


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_cell_that_is_not_what_was_written_is_torn_and_the_last_good_snapshot_stays(damage: str) -> None:
    store = MemoryStore()
    writer = Writer(store, "shop")
    publish(writer, 2, 5)
    replica = Replica(store, SHOP, DATABASE)
    before = replica.poll()
    publish(writer, 4, 9)
    for place, cells in store.cells.items():
        if place.part in ("epochs", "view shops"):
            key = max(cells)
            kept = (
                {**cells, key: cells[key][:-1] + b"?"}
                if damage == "changed"
                else {k: cells[k] for k in cells if k != key}
            )
            store.cells[place] = kept
    with pytest.raises(Torn):
        replica.poll()
    assert replica.current is before


def test_large_pieces_are_cut_into_cells_and_places_and_come_back() -> None:
    store, data = MemoryStore(), bytes(range(256)) * (CELL_BYTES // 256 * 40 + 3)
    for place, cells in stores.piece_cells("shop", "000000000001-x", "view shops", data):
        store.write(place, cells)
        assert all(len(cell.data) <= CELL_BYTES for cell in cells)
    assert len(store.cells) == 2
    piece = stores.piece_of(data)
    assert stores.read_piece(store, "shop", "000000000001-x", "view shops", piece) == data


def test_a_run_that_goes_on_elsewhere_than_it_was_read_is_torn() -> None:
    store, edition = MemoryStore(), "000000000001-x"
    place = Place("shop", edition, stores.EPOCHS, 0)
    first = stores.epoch_cells(0, NO_DIGEST, b"zero")
    other = stores.epoch_cells(0, NO_DIGEST, b"another zero")
    second = stores.epoch_cells(1, other[0].digest, b"one")
    store.write(place, [*first, *other, *second])
    known, run = Run(edition, 0, 0, first[0].digest, {}), Run(edition, 0, 1, second[0].digest, {})
    assert stores.read_epochs(store, "shop", run, None) == [(0, b"another zero"), (1, b"one")]
    with pytest.raises(Torn, match="does not follow"):
        stores.read_epochs(store, "shop", run, known)


def test_a_snapshot_is_opened_again_by_its_name_while_its_rows_are_there() -> None:
    store = MemoryStore()
    writer = Writer(store, "shop")
    publish(writer, 2, 5)
    assert writer.pointer
    name = writer.pointer.name
    assert reopened(store, SHOP, DATABASE, name) is not None
    publish(writer, 4, 9)
    found = reopened(store, SHOP, DATABASE, name)
    assert found is not None and found.coverage == at(50) and found.name == name
    exact(found)
    store.names.clear()
    assert reopened(store, SHOP, DATABASE, name) is None


def test_a_pointer_goes_through_json_unchanged() -> None:
    store = MemoryStore()
    writer = Writer(store, "shop")
    publish(writer, 2, 5)
    assert writer.pointer and stores.pointer_of(store, "shop") == writer.pointer
    assert json.loads(store.pointers["shop"][1])["rows"]["parts"]["view shops"]["size"] > 0


class Answers(Cassandra):
    """A Cassandra whose transaction was refused, and whose pointer stands at `found`."""

    def __init__(self, found: tuple[int, bytes]) -> None:
        self.found = found

    def _run(self, cql: str, values: Any, settled: bool = False) -> Any:
        class Refused(list[Any]):
            def one(self) -> Any:
                return (False,)

        return Refused()

    def pointer(self, domain: str, settled: bool = False) -> tuple[int, bytes] | None:
        assert settled
        return self.found


def test_a_refusal_by_our_own_request_whose_answer_was_lost_is_a_success() -> None:
    assert Answers((7, b"ours")).advance("shop", 7, b"ours")
    assert not Answers((7, b"theirs")).advance("shop", 7, b"ours")
    assert not Answers((8, b"ours")).advance("shop", 7, b"ours")
