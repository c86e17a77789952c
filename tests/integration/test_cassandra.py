"""Does a real Cassandra keep the promises that the serving store is built on?"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest

from engine.runtime.settings import load
from engine.serving import store as stores
from engine.serving.cassandra import Cassandra, CassandraUnavailable
from engine.serving.materialise import Materialiser, Writer
from engine.serving.parameters import view_query
from engine.serving.query import fetch_rows, open_database
from engine.serving.replica import Replica
from engine.serving.snapshot import Loader, Snapshot
from engine.serving.store import Cell, Place
from stack import lifecycle, process
from stack import settings as stack_settings
from stack.services import CASSANDRA
from stack.settings import free_ports
from tests.conftest import Stack
from tests.unit.localfs import LocalFs
from tests.unit.serving_data import ORIGINS, SHOP, cut, end_of, events, write_chain, write_epochs, write_version


@pytest.fixture
def store(cassandra: Stack) -> Iterator[Cassandra]:
    """A keyspace of this test alone."""
    keyspace = f"t{uuid.uuid4().hex[:12]}"
    settings = load({"cassandra_keyspace": keyspace}, environ=cassandra.env, env_file=None)
    found = Cassandra.of(settings, patience=20.0)
    found.create_tables()
    yield found
    found.close()


def test_the_pointer_moves_by_one_and_of_many_writers_one_wins(store: Cassandra) -> None:
    assert store.pointer("shop") is None
    for serial in (1, 2):
        wins: list[int] = []

        def move(number: int, serial: int = serial, wins: list[int] = wins) -> None:
            if store.advance("shop", serial, f"writer {number}".encode()):
                wins.append(number)

        threads = [threading.Thread(target=move, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert store.pointer("shop", settled=True) == (serial, f"writer {wins[0]}".encode())
    assert store.advance("shop", 2, store.pointer("shop")[1])  # type: ignore[index]  # asked again: it was ours
    assert not store.advance("shop", 4, b"too far")


def test_cells_come_back_to_the_byte_in_order_and_can_be_dropped(store: Cassandra) -> None:
    place = Place("shop", "000000000001-x", "epochs", 0)
    data = Random(1).randbytes(3 * stores.CELL_BYTES + 17)
    cells = [c for number in (3, 1, 2) for c in stores.epoch_cells(number, stores.NO_DIGEST, data)]
    store.register(place)
    store.write(place, cells)
    store.write(place, cells[:2])  # written once more: the same
    found = store.read(place)
    assert found == sorted(cells, key=lambda cell: (cell.item, cell.digest, cell.number)) and len(found) == 12
    assert {cell.item for cell in store.read(place, 2)} == {2, 3}
    assert store.read(Place("shop", "000000000001-x", "epochs", 1)) == []
    assert store.places("shop") == [place]
    store.drop(place)
    assert (store.places("shop"), store.read(place)) == ([], [])


def test_a_read_of_many_cells_has_all_of_them(store: Cassandra) -> None:
    place = Place("shop", "000000000001-x", "epochs", 0)
    store.write(place, [Cell(number, "d", 0, bytes(20)) for number in range(6000)])  # more than one page of an answer
    assert [cell.item for cell in store.read(place, 100)] == list(range(100, 6000))


def test_all_replicas_get_the_same_key(store: Cassandra) -> None:
    key = store.cursor_key()
    store.create_tables()
    assert store.cursor_key() == key and len(key) == 32


def test_what_a_pointer_was_is_found_by_its_name(store: Cassandra) -> None:
    store.name("shop", "shop-1", b"body")
    assert store.named("shop", "shop-1") == b"body" and store.named("shop", "shop-2") is None


def test_nobody_listens_or_nothing_was_made_is_unavailable_within_the_patience(cassandra: Stack) -> None:
    began = time.monotonic()
    away = Cassandra(f"127.0.0.1:{free_ports(['x'])['x']}", "highwater", 1, patience=1.0)
    with pytest.raises(CassandraUnavailable, match="CASSANDRA_CONTACT_POINTS="):
        away.pointer("shop")
    assert time.monotonic() - began < 20
    bare = Cassandra(cassandra.env["CASSANDRA_CONTACT_POINTS"], "nothing_here", 1, patience=1.0)
    with pytest.raises(
        CassandraUnavailable, match=r"nothing_here has no tables yet; run: python -m engine\.materialise"
    ):
        bare.pointer("shop")
    bare.close()


def rows(snapshot: Snapshot) -> dict[str, list[object]]:
    """The merged answer of every view."""
    with open_database() as database:
        return {
            view.name: fetch_rows(
                database,
                view_query(view, [("limit", "10000")]),
                {"batch": snapshot.batch[view.name], "speed": snapshot.speed[view.name]},
                0,
            )
            for view in SHOP.views
        }


def test_a_replica_answers_what_a_reader_of_hdfs_answers_row_by_row(store: Cassandra, tmp_path: Path) -> None:
    fs, random = LocalFs(tmp_path), Random(5)
    pieces = [piece for piece in cut(random, events(random, 400), 90) if piece.num_rows]
    chain = write_chain(fs, SHOP, 1, 0, ORIGINS)
    ends = write_epochs(fs, SHOP, chain, pieces[:68])
    report = pa.table({"shop": ["north", None], "day": pa.array([0, 1], pa.timestamp("us", "UTC")), "sales": [3, 1]})
    materialiser = Materialiser(fs, SHOP, Writer(store, "shop"), open_database())
    assert materialiser.step()
    write_version(fs, SHOP, 1, pa.concat_tables(pieces[:30]), ends[29], report)
    assert materialiser.step() and not materialiser.step()

    replica = Replica(store, SHOP, open_database())
    for step in ("cold", "warm", "after a restart of the writer"):
        found = replica.poll()
        wanted = Loader(fs, SHOP, open_database()).poll()
        assert found and wanted and rows(found) == rows(wanted), step
        assert found.as_of == wanted.as_of and found.quarantined == wanted.quarantined
        assert found.events_speed == wanted.events_speed and found.counts == wanted.counts
        assert found.reports["tops"].equals(wanted.reports["tops"])
        assert all(found.batch[name].equals(wanted.batch[name]) for name in found.batch)
        if step == "warm":
            materialiser = Materialiser(fs, SHOP, Writer(store, "shop"), open_database())
        done = chain_length(fs)
        write_epochs(
            fs,
            SHOP,
            dataclasses.replace(chain, start=end_of(pa.concat_tables(pieces[:done]), ORIGINS)),
            pieces[done : done + 2],
            done,
        )
        assert materialiser.step()


def chain_length(fs: LocalFs) -> int:
    return sum(
        not entry.is_folder and entry.name.endswith(".parquet")
        for entry in fs.list("/data/speed_views/shop/0000000001")
    )


def test_what_was_written_is_there_after_a_kill_and_the_same_connection_goes_on(
    cassandra: Stack, store: Cassandra
) -> None:
    assert store.advance("shop", 1, b"kept")
    settings = stack_settings.load({**os.environ, **cassandra.env})
    pid = process.running_pid(CASSANDRA.pid_file(settings))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    impatient = Cassandra.of(load(environ=cassandra.env, env_file=None), patience=1.0)
    with pytest.raises(CassandraUnavailable):
        impatient.pointer("shop")
    lifecycle.up(settings)
    assert store.pointer("shop", settled=True) == (1, b"kept")
