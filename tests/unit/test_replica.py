"""Do replicas of the serving store answer what serving on HDFS answers, through restarts, promotions and rollbacks?"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from engine.domain import count
from engine.domain.stream import DECODE_VERSION
from engine.runtime.settings import load
from engine.serving.materialise import PRUNE_SECONDS, STAND_BY_SECONDS, Materialiser, OtherCluster, Writer, step_all
from engine.serving.query import open_database
from engine.serving.replica import Replica
from engine.serving.service import Service
from engine.serving.snapshot import Loader, Snapshot
from engine.storage import versions
from engine.storage.log import MASTER, covers
from serving_layer import create_app
from tests.unit.localfs import LocalFs
from tests.unit.memorystore import MemoryStore
from tests.unit.serving_data import (
    LOG,
    ORIGINS,
    SALES,
    SHOP,
    cut,
    end_of,
    events,
    write_chain,
    write_epoch,
    write_epochs,
    write_logs,
    write_version,
)

DATABASE = open_database()
OTHER = dataclasses.replace(SHOP, name="other")


class World:
    """Events in pieces on a file system, a store, a materialiser, and a clock."""

    def __init__(self, folder: Path, number: int = 1) -> None:
        self.random, self.fs, self.store, self.now = Random(number), LocalFs(folder), MemoryStore(), 1_800_000_000.0
        self.rows = events(self.random, 200)
        self.pieces = [piece for piece in cut(self.random, self.rows, 14) if piece.num_rows]
        self.chain = write_chain(self.fs, SHOP, 1, 0, ORIGINS)
        self.written = 0
        self.start()

    def start(self) -> None:
        """Start the materialiser; it remembers nothing."""
        clock = lambda: self.now  # noqa: E731
        self.materialiser = Materialiser(self.fs, SHOP, Writer(self.store, "shop", clock), DATABASE, clock)
        self.materialiser.loader.relist_seconds = 0.0

    def end(self, pieces: int) -> Any:
        return end_of(pa.concat_tables(self.pieces[:pieces]) if pieces else self.rows.slice(0, 0), ORIGINS)

    def epochs(self, end: int) -> None:
        chain = dataclasses.replace(self.chain, start=self.end(self.written))
        write_epochs(self.fs, SHOP, chain, self.pieces[self.written : end], self.written)
        self.written = end

    def version(self, number: int, pieces: int) -> None:
        write_version(self.fs, SHOP, number, pa.concat_tables(self.pieces[:pieces]), self.end(pieces))

    def step(self) -> bool:
        self.now += 10
        return self.materialiser.step()

    def replica(self) -> Service:
        service = Service(load(env_file=None), [SHOP], self.fs, clock=lambda: self.now, store=self.store)
        service.poll()
        service.look()
        return service


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def same(found: Snapshot | None, wanted: Snapshot | None) -> None:
    assert found and wanted
    assert (found.as_of, found.events_speed, found.counts) == (wanted.as_of, wanted.events_speed, wanted.counts)
    assert (found.chain, found.first, found.last) == (wanted.chain, wanted.first, wanted.last)
    for name in wanted.batch:
        assert found.batch[name].equals(wanted.batch[name])
        assert found.speed[name].num_rows == wanted.speed[name].num_rows
        ordered = [
            table.sort_by([(c, "ascending") for c in table.column_names if c == "sales"])
            for table in (found.speed[name], wanted.speed[name])
        ]
        assert ordered[0]["sales"].equals(ordered[1]["sales"])


@pytest.mark.parametrize("number", range(3))
def test_at_every_step_of_a_random_run_a_replica_has_what_hdfs_has(tmp_path: Path, number: int) -> None:
    world = World(tmp_path, number)
    replica, before, version = Replica(world.store, SHOP, DATABASE), None, 0
    while world.written < len(world.pieces):
        world.epochs(min(len(world.pieces), world.written + world.random.randrange(1, 4)))
        if world.random.random() < 0.5:
            version += 1
            world.version(version, world.random.randrange(max(1, world.written - 3), world.written + 1))
        if world.random.random() < 0.3:
            world.start()
        if world.random.random() < 0.2:
            replica, before = Replica(world.store, SHOP, DATABASE), None
        assert world.step()
        found = replica.poll()
        same(found, Loader(world.fs, SHOP, DATABASE).poll())
        assert found and (before is None or covers(found.coverage, before.coverage))
        before = found
    assert not world.step()
    world.start()
    assert not world.step(), "what is published already is not published again"


def test_a_new_chain_with_the_same_numbers_is_not_mixed_with_the_old_one(world: World) -> None:
    world.epochs(6)
    assert world.step()
    replica = Replica(world.store, SHOP, DATABASE)
    replica.poll()
    world.version(1, 5)
    fresh = write_chain(world.fs, SHOP, 2, 1, world.end(5))
    write_epochs(world.fs, SHOP, fresh, world.pieces[5:9])
    assert world.step()
    found = replica.poll()
    assert found and found.chain == fresh and found.coverage == world.end(9)
    same(found, Loader(world.fs, SHOP, DATABASE).poll())


def test_a_materialiser_that_was_overtaken_stands_by_and_follows(world: World) -> None:
    world.epochs(3)
    first = world.materialiser
    assert world.step()
    world.start()
    world.epochs(5)
    assert world.step()  # the second one
    world.epochs(6)
    world.now += 10
    assert not first.step() and not first.step()
    world.now += STAND_BY_SECONDS
    assert first.step()
    same(Replica(world.store, SHOP, DATABASE).poll(), Loader(world.fs, SHOP, DATABASE).poll())


def test_a_restarted_materialiser_never_takes_replicas_back(world: World) -> None:
    world.epochs(8)
    world.version(1, 2)
    assert world.step()
    replica = Replica(world.store, SHOP, DATABASE)
    before = replica.poll()
    world.fs.delete("/data/speed_views", recursive=True)
    world.start()
    assert not world.step() and replica.poll() is before
    assert Loader(world.fs, SHOP, DATABASE).poll().coverage == world.end(2)  # type: ignore[union-attr]
    world.version(2, 10)
    assert world.step() and replica.poll().coverage == world.end(10)  # type: ignore[union-attr]


def test_a_rollback_reaches_replicas_even_where_it_goes_back(world: World) -> None:
    world.epochs(3)
    world.version(1, 3)
    world.version(2, 9)
    assert world.step()
    replica = Replica(world.store, SHOP, DATABASE)
    assert replica.poll().coverage == world.end(9)  # type: ignore[union-attr]
    versions.choose(world.fs, "shop", 1, follow=False)
    world.start()
    assert world.step()
    assert replica.poll().coverage == world.end(3)  # type: ignore[union-attr]
    assert replica.pinned == 1


def test_a_pointer_that_goes_back_without_a_choice_is_refused(world: World) -> None:
    world.epochs(5)
    assert world.step()
    old = world.store.pointers["shop"]
    world.epochs(6)
    assert world.step()
    replica = Replica(world.store, SHOP, DATABASE)
    before = replica.poll()
    world.store.pointers["shop"] = old
    assert replica.poll() is before


def test_a_promoted_definition_reaches_replicas_when_it_covers(world: World) -> None:
    world.epochs(6)
    world.version(1, 4)
    assert world.step()
    service = world.replica()
    shops = next(view for view in SHOP.views if view.name == "shops")
    changed = dataclasses.replace(shops, measures={**shops.measures, "large": count("amount > 50")})
    other = dataclasses.replace(SHOP, views=tuple(changed if v is shops else v for v in SHOP.views))
    write_version(world.fs, other, 2, pa.concat_tables(world.pieces[:4]), world.end(4), line=2)
    versions.choose(world.fs, "shop", 2, follow=True)
    assert not world.step()  # nothing of it covers what is served
    chain = write_chain(world.fs, other, 2, 2, world.end(4))
    write_epoch(world.fs, other, chain, 0, world.end(4), pa.concat_tables(world.pieces[4:7]))
    assert world.step()
    service.poll()
    current = service.loaders["shop"].current
    assert current and current.domain.definition_hash == other.definition_hash
    assert current.coverage == world.end(7) and "large" in current.batch["shops"].column_names


def test_replicas_share_cursors_and_one_that_is_gone_is_410(world: World) -> None:
    write_logs(world.fs, world.rows)
    world.epochs(5)
    assert world.step()
    services = [world.replica(), world.replica()]
    one, two = (TestClient(create_app(service)) for service in services)
    path = "/v1/views/sales_minutes?order=-revenue&limit=20"
    whole = one.get("/v1/views/sales_minutes?order=-revenue&limit=10000").json()["rows"]
    first = one.get(path).json()
    world.epochs(9)
    assert world.step()
    for service in services:
        service.poll()
    rows, cursor = first["rows"], first["next_cursor"]
    while cursor:
        page = two.get(f"{path}&cursor={cursor}")
        assert page.status_code == 200 and page.json()["as_of"] == first["as_of"]
        rows, cursor = rows + page.json()["rows"], page.json()["next_cursor"]
    assert rows == whole
    three = TestClient(create_app(world.replica()))
    world.store.names.clear()
    assert three.get(f"{path}&cursor={first['next_cursor']}").status_code == 410
    world.store.away = True
    assert three.get(f"{path}&cursor={first['next_cursor']}").status_code == 503
    stranger = Service(load(env_file=None), [SHOP], world.fs, clock=lambda: world.now)
    stranger.poll(), stranger.look()
    forged = TestClient(create_app(stranger)).get(f"{path}&cursor={first['next_cursor']}")
    assert (forged.status_code, forged.json()["field"]) == (422, "cursor")


def test_while_the_store_is_away_the_last_snapshot_answers_and_readiness_says_why(world: World) -> None:
    world.epochs(5)
    assert world.step()
    service = world.replica()
    client = TestClient(create_app(service))
    before = client.get("/v1/views/shops").json()["rows"]
    world.store.away = True
    thread = threading.Thread(target=service._repeat, args=(service.poll, 0.01))
    thread.start()
    world.now += 31
    service.heard["Kafka"] = service.heard["HDFS"] = world.now
    while not service._silence:
        thread.join(0.01)
    found = client.get("/health/ready")
    service._stop.set()
    thread.join()
    assert found.status_code == 503
    assert found.json()["reasons"] == ["Cassandra has not answered for 31 s: ConnectionError: nobody answers"]
    assert client.get("/v1/views/shops").json()["rows"] == before


def test_only_new_epochs_are_read(world: World) -> None:
    world.epochs(9)
    assert world.step()
    replica = Replica(world.store, SHOP, DATABASE)
    replica.poll()
    read: list[int] = []
    whole = world.store.read
    world.store.read = lambda place, item=0: [c for c in whole(place, item) if read.append(c.item) is None]  # type: ignore[method-assign, func-returns-value]
    world.epochs(10)
    assert world.step()
    assert replica.poll().last == 9  # type: ignore[union-attr]
    assert read == [9]


def test_after_the_pointer_is_gone_the_same_rows_are_published_again(world: World) -> None:
    """The keyspace is dropped under a materialiser that had nothing new to say since its start."""
    world.epochs(6)
    world.version(1, 4)
    assert world.step()
    world.start()
    assert not world.step()
    world.store = world.materialiser.writer.store = MemoryStore()
    world.now += 2 * PRUNE_SECONDS
    assert world.step()
    same(Replica(world.store, SHOP, DATABASE).poll(), Loader(world.fs, SHOP, DATABASE).poll())


def test_a_store_of_another_cluster_is_named(world: World) -> None:
    world.epochs(6)
    assert world.step()
    write_logs(world.fs, world.rows)
    world.now += 2 * PRUNE_SECONDS
    assert not world.step()
    raw = f"{MASTER}/topic={SALES.topic}"
    world.fs.rename(f"{raw}/log={LOG}", f"{raw}/log=after-a-reset")
    world.now += 2 * PRUNE_SECONDS
    with pytest.raises(
        OtherCluster, match=f"the store answers for log {LOG} of topic '{SALES.topic}', and HDFS has after-a-reset"
    ):
        world.step()


def test_one_domain_that_cannot_be_read_does_not_stop_the_others(world: World) -> None:
    world.epochs(3)
    service = Service(load(env_file=None), [OTHER, SHOP], world.fs, clock=lambda: world.now)
    service.loaders[OTHER.name].poll = lambda: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        service.poll()
    assert service.loaders[SHOP.name].current is not None


def test_a_version_of_fewer_topics_takes_over_on_hdfs_and_in_the_store(world: World) -> None:
    """What was covered of a topic that left the domain is of no matter; of the others coverage does not go back."""
    gone = {"gone-topic": {"logG": {"0": 99}}}
    other = dataclasses.replace(SALES, topic="gone-topic")
    views = (*SHOP.views, dataclasses.replace(SHOP.views[1], name="gone", streams=(other,)))
    both = dataclasses.replace(SHOP, streams=(SALES, other), views=views)
    write_version(world.fs, both, 1, pa.concat_tables(world.pieces[:4]), {**world.end(4), **gone})
    service = Service(load(env_file=None), [both], world.fs, clock=lambda: world.now)
    world.materialiser = Materialiser(world.fs, both, Writer(world.store, "shop", lambda: world.now), DATABASE)
    assert world.materialiser.step()
    service.poll()
    assert set(service.loaders["shop"].current.coverage) == {SALES.topic, "gone-topic"}  # type: ignore[union-attr]
    world.version(2, 3)
    for _ in range(3):
        service.poll()
        assert not world.materialiser.step(), "of the topic that stays it covers less"
    assert service.loaders["shop"].current.manifest.version == 1  # type: ignore[union-attr]
    world.version(3, 5)
    service.poll()
    now = service.loaders["shop"].current
    assert now and (now.manifest.version, set(now.coverage)) == (3, {SALES.topic})
    assert any(world.materialiser.step() for _ in range(3))
    replica = Replica(world.store, SHOP, DATABASE)
    same(replica.poll(), now)


def test_a_last_epoch_that_was_made_anew_under_its_number_is_written_to_the_store(world: World) -> None:
    world.epochs(6)
    assert world.step()
    replica = Replica(world.store, SHOP, DATABASE)
    replica.poll()
    world.fs.delete(f"{world.chain.folder}/{5:012d}.parquet")
    longer = [pa.concat_tables(world.pieces[5:8]), world.pieces[8]]
    write_epochs(world.fs, SHOP, dataclasses.replace(world.chain, start=world.end(5)), longer, 5)
    world.start()  # it begins where the pointer stands
    assert world.step()
    found = replica.poll()
    assert found and found.coverage == world.end(9)
    same(found, Loader(world.fs, SHOP, DATABASE).poll())


@pytest.mark.parametrize("stored", [False, True])
def test_a_version_of_older_code_is_served_until_it_is_built_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    world.epochs(6)
    world.version(1, 4)
    monkeypatch.setattr("engine.domain.stream.DECODE_VERSION", DECODE_VERSION + 1)
    world.start()
    service = Service(
        load(env_file=None), [SHOP], world.fs, clock=lambda: world.now, store=world.store if stored else None
    )
    for _ in range(2):
        world.step()
        service.poll()
    shown = service.loaders["shop"].current
    assert shown and (shown.manifest.version, shown.coverage) == (1, world.end(6))
    world.version(2, 6)
    for _ in range(2):
        world.step()
        service.poll()
    shown = service.loaders["shop"].current
    assert shown and (shown.manifest.version, shown.domain.definition_hash) == (2, SHOP.definition_hash)


def test_a_domain_that_fails_stops_no_other_in_the_materialiser(world: World) -> None:
    class Broken:
        def step(self) -> bool:
            raise OtherCluster("of this domain")

    world.epochs(3)
    world.now += 10
    with pytest.raises(OtherCluster):
        step_all([Broken(), world.materialiser])  # type: ignore[list-item]
    assert Replica(world.store, SHOP, DATABASE).poll()


def test_a_pointer_that_moves_while_it_is_read_is_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.epochs(3)
    assert world.step()
    read, moves = world.store.read, [1]

    def moved(place: Any, item: int = 0) -> Any:
        if moves:
            moves.pop()
            other = world.materialiser
            world.epochs(5)
            world.version(1, 4)
            other.loader.relist_seconds = 0.0
            world.now += 10
            assert other.step()
            world.store.drop(place)
        return read(place, item)

    monkeypatch.setattr(world.store, "read", moved)
    world.start()
    assert not moves and world.materialiser.loader.current
    assert world.materialiser.loader.current.manifest.version == 1
