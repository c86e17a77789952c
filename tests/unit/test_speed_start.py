"""Where does the stream go on when epochs and chains are damaged, deleted or go away while it starts?

Kafka is made up.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from engine.domain.view import MEASURES_VERSION
from engine.runtime.kafka import PartitionState, Record, TopicState
from engine.runtime.observe import StartAgain
from engine.serving.query import open_database
from engine.serving.snapshot import Loader
from engine.speed import chain_log
from engine.speed.chain_log import NewChain, SpeedLog
from engine.storage import chains, versions
from tests.unit.localfs import LocalFs
from tests.unit.serving_data import (
    LOG,
    ORIGINS,
    SALES,
    SHOP,
    cut,
    end_of,
    events,
    write_chain,
    write_epochs,
    write_logs,
)
from tests.unit.serving_data import write_version as version_of


class Kafka:
    """A Kafka that has what is stored, and whose records nobody compares."""

    def __init__(self, rows: pa.Table) -> None:
        ends = end_of(rows, ORIGINS)[SALES.topic][LOG]
        self.topic = TopicState(
            LOG, {int(p): PartitionState(0, ORIGINS[SALES.topic][LOG][p], end) for p, end in ends.items()}
        )

    def state(self, topics: Any) -> dict[str, TopicState]:
        return {SALES.topic: self.topic}

    def generations(self, topics: Any) -> dict[str, Any]:
        return {SALES.topic: self.topic.generation}

    def records_at(self, wanted: Any) -> dict[tuple[str, int], Record]:
        return {}


class World:
    def __init__(self, folder: Path) -> None:
        self.fs, self.rows = LocalFs(folder), events(Random(1), 200)
        self.pieces = [piece for piece in cut(Random(1), self.rows, 10) if piece.num_rows]
        write_logs(self.fs, self.rows)
        self.kafka = Kafka(self.rows)
        self.chain = write_chain(self.fs, SHOP, 1, 0, ORIGINS)
        write_epochs(self.fs, SHOP, self.chain, self.pieces[:6])

    def end(self, pieces: int) -> Any:
        return end_of(pa.concat_tables(self.pieces[:pieces]), ORIGINS)

    def open(self) -> SpeedLog:
        return SpeedLog.open(self.fs, SHOP, self.kafka)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(chain_log, "verdicts", lambda *_: {})
    monkeypatch.setattr(SpeedLog, "_remember_typed", lambda *_: None)  # the rows of these tests have no unique keys
    return made


def cut_short(fs: LocalFs, path: str) -> None:
    data = fs.read(path)
    fs.delete(path)
    fs.create(path, data[: len(data) // 2])


def test_a_whole_chain_is_continued(world: World) -> None:
    opened = world.open()
    assert (opened.chain, opened.next_number, opened.end, opened.set_aside) == (world.chain, 6, world.end(6), 0)


@pytest.mark.parametrize("number", [0, 3, 5])
def test_a_damaged_epoch_is_set_aside_and_a_new_chain_begins(world: World, number: int) -> None:
    path = chains.epoch_path("shop", 1, number)
    cut_short(world.fs, path)
    opened = world.open()
    assert (opened.chain.number, opened.next_number, opened.set_aside) == (2, 0, 1)
    assert world.fs.status(path) is None and chains.closed(world.fs, "shop", 1)
    again = world.open()
    assert (again.chain, again.set_aside) == (opened.chain, 0)
    world.fs.delete(opened.chain.folder, recursive=True)
    assert world.open().chain.number == 3, (
        "nobody continues a chain that lost its last epoch, whose number would come back"
    )
    shown = Loader(world.fs, SHOP, open_database()).poll()
    assert shown and shown.coverage == (world.end(number) if number else ORIGINS)


def test_an_epoch_whose_footer_is_sound_and_whose_rows_are_not_is_set_aside(world: World) -> None:
    path = chains.epoch_path("shop", 1, 2)
    data = bytearray(world.fs.read(path))
    data[4:400] = b"\xff" * 396
    world.fs.delete(path)
    world.fs.create(path, bytes(data))
    opened = world.open()
    assert (opened.chain.number, opened.set_aside) == (2, 1)


def test_a_damaged_chain_is_set_aside_and_its_number_does_not_come_back(world: World) -> None:
    cut_short(world.fs, f"{world.chain.folder}/chain.json")
    opened = world.open()
    assert (opened.chain.number, opened.set_aside) == (2, 1)
    assert not world.fs.status(world.chain.folder)


def test_an_epoch_that_is_pruned_between_listing_and_reading_is_no_end_of_the_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, doomed = world.fs.open_parquet, [0, 1]

    def pruned(path: str) -> Any:
        if doomed and path.startswith(chains.SPEED):
            world.fs.delete(chains.epoch_path("shop", 1, doomed.pop(0)))
        return read(path)

    version_of(world.fs, SHOP, 1, pa.concat_tables(world.pieces[:3]), world.end(3))
    monkeypatch.setattr(world.fs, "open_parquet", pruned)
    opened = world.open()
    assert (opened.chain, [epoch.number for epoch in opened.epochs]) == (world.chain, [2, 3, 4, 5])

    def always(path: str) -> Any:
        if path.startswith(chains.SPEED):
            raise FileNotFoundError(path)
        return read(path)

    monkeypatch.setattr(world.fs, "open_parquet", always)
    with pytest.raises(StartAgain, match="files went away"):
        world.open()


def test_a_chain_that_was_deleted_and_begun_anew_under_its_number_is_not_continued(world: World) -> None:
    opened = world.open()
    opened.check_topics = lambda: None  # type: ignore[method-assign]
    opened.follow_versions()
    world.fs.delete(chains.SPEED, recursive=True)
    other = write_chain(world.fs, SHOP, 1, 0, ORIGINS, "2026-03-01T00:00:00Z")
    write_epochs(world.fs, SHOP, other, world.pieces[:6])
    with pytest.raises(NewChain, match="lost epochs"):
        opened.follow_versions()


def test_the_loser_of_an_epoch_that_does_not_continue_its_own_begins_anew(world: World) -> None:
    opened = world.open()
    write_epochs(world.fs, SHOP, world.chain, world.pieces[2:3], 6)  # starts at the chain's start again
    with pytest.raises(NewChain, match="does not start where"):
        opened._catch_up()


def test_a_version_of_older_code_is_not_continued_and_the_way_out_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_of(world.fs, SHOP, 1, pa.concat_tables(world.pieces[:3]), world.end(3))
    monkeypatch.setattr("engine.domain.view.MEASURES_VERSION", MEASURES_VERSION + 1)
    followed = versions.definition_followed(world.fs, SHOP)
    with pytest.raises(StartAgain, match=r"code_changed domain shop: version 1 .* run batch_layer.py --domain shop"):
        SpeedLog.open(world.fs, followed, world.kafka)
