"""Where does a log begin, does Kafka continue it, and what becomes of it when it does not?"""

from __future__ import annotations

import copy
import dataclasses
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.batch import build
from engine.fold.measures import stored_schema
from engine.ingest.mirror import Mirror
from engine.runtime.observe import StartAgain
from engine.speed import chain_log
from engine.speed.chain_log import NewChain, SpeedLog
from engine.storage import chains, log, versions
from engine.storage.chains import HOLE
from engine.storage.checkpoints import Reading
from engine.storage.commit import StartsAbove, commit_origin
from engine.storage.continuity import DataExpired, LogReplaced
from engine.storage.log import (
    MASTER,
    RAW_ARROW,
    LogReader,
    MasterWentBack,
    Origin,
    Partition,
    Place,
    Range,
    segment_path,
)
from tests.unit.localfs import LocalFs
from tests.unit.memorykafka import KafkaPartition, MemoryKafka
from tests.unit.serving_data import SALES, SHOP, parquet

TOPIC = SALES.topic


class World:
    """Kafka with two partitions and an empty HDFS."""

    def __init__(self, folder: Path) -> None:
        self.fs, self.kafka = LocalFs(folder), MemoryKafka()
        self.kafka.create(TOPIC, 2)

    def ingest(self, latest: bool = False) -> Mirror:
        """Start ingest."""
        mirror = Mirror(self.fs, self.kafka, SHOP, latest)
        mirror.prove()
        return mirror

    def mirror_all(self, mirror: Mirror, meanwhile: Callable[[], None] = lambda: None) -> int:
        """One micro-batch of everything that Kafka has; return the rows that it committed."""
        ends = {p: at.end for p, at in self.kafka.state([TOPIC])[TOPIC].partitions.items()}
        planned = {(TOPIC, int(p)): (head, ends[int(p)]) for (_, _, p), head in mirror.heads().items()}
        return sum(piece.rows for piece in mirror.commit(planned, self.writer(meanwhile), "ingest"))

    def writer(self, meanwhile: Callable[[], None]) -> Callable[[Mapping[Place, Range], str], int]:
        def write(ranges: Mapping[Place, Range], staging: str) -> int:
            read = 0
            for (topic, _, p), (start, end) in ranges.items():
                records = self.kafka.read(topic, int(p), start, end)
                read += len(records)
                rows = [
                    {"offset": o, "timestamp": ms * 1000, "key": None, "value": value.decode() if value else None}
                    for o, ms, _, value in records
                ]
                if rows:
                    columns = {name: [row.get(name) for row in rows] for name in RAW_ARROW.names}
                    table = pa.table({n: pa.array(c, RAW_ARROW.field(n).type) for n, c in columns.items()})
                    self.fs.create(f"{staging}/topic={topic}/partition={p}/part-0.parquet", parquet(table))
            meanwhile()
            return read

        return write

    def partitions(self, log: str) -> dict[str, Partition]:
        return LogReader(self.fs).partitions([TOPIC])[TOPIC][log]

    def rows(self) -> list[tuple[str, str, int]]:
        """Log, partition and offset of every stored row, as any reader finds them."""
        found = []
        for entry in self.fs.list(MASTER, recursive=True):
            if entry.name.endswith(".parquet"):
                log, p = (part.split("=")[1] for part in entry.path.split("/")[-3:-1])
                found += [(log, p, o) for o in self.fs.open_parquet(entry.path).read()["offset"].to_pylist()]
        return sorted(found)

    def stream(self) -> SpeedLog:
        return SpeedLog.open(self.fs, SHOP, self.kafka)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(chain_log, "ORIGIN_PATIENCE_SECONDS", 0.0)
    return World(tmp_path)


def epoch_of(world: World, stream: SpeedLog, ends: dict[int, int] | None = None) -> None:
    """One micro-batch of the speed layer up to Kafka's ends: every row good, a key of its own."""
    at = stream.next_offsets()
    told = world.kafka.state([TOPIC])[TOPIC].partitions
    planned = {place: (start, (ends or {}).get(place[1], told[place[1]].end)) for place, start in at.items()}
    epoch = stream.next_epoch(positions_of(world, stream, planned), planned)
    assert epoch is not None
    empty = {view.name: pa.Table.from_pylist([], stored_schema(view)) for view in SHOP.views}
    assert stream.append(epoch, empty, world.fs.create)


def positions_of(world: World, stream: SpeedLog, planned: Mapping[tuple[str, int], tuple[int, int]]) -> pa.Table:
    """What a micro-batch tells of its rows."""
    rows: list[dict[str, Any]] = []
    for (topic, p), (start, end) in planned.items():
        for offset, ms, _, value in world.kafka.read(topic, p, start, end):
            rows.append(
                {"topic": topic, "log": stream.logs[topic], "partition": str(p), "offset": offset, "ukey": str(value),
                 "problem": None, "event_time": ms * 1000, "kafka_time": ms * 1000, "crc": zlib.crc32(value or b"")}
            )  # fmt: skip
    time = pa.timestamp("us")
    types = {"offset": pa.int64(), "event_time": time, "kafka_time": time, "crc": pa.int64()}
    names = ("topic", "log", "partition", "offset", "ukey", "problem", "event_time", "kafka_time", "crc")
    return pa.table({n: pa.array([row[n] for row in rows], types.get(n, pa.string())) for n in names})


# origins --------------------------------------------------------------------------------------------------------------


def test_two_ingests_that_see_a_log_a_moment_apart_begin_it_at_one_origin(world: World) -> None:
    world.kafka.append(TOPIC, 0, 100)
    world.kafka.append(TOPIC, 1, 100)
    first = Mirror(world.fs, world.kafka, SHOP, latest=True)
    second = Mirror(world.fs, world.kafka, SHOP, latest=True)
    second.prove()
    world.kafka.append(TOPIC, 0, 7)
    first.prove()
    assert {p: head for (_, _, p), head in first.heads().items()} == {"0": 100, "1": 100}
    world.mirror_all(first)
    world.kafka.append(TOPIC, 0, 3)
    world.mirror_all(second)
    assert [o for _, p, o in world.rows() if p == "0"] == list(range(100, 110))


def test_retention_that_moves_between_two_starts_does_not_move_the_origin(world: World) -> None:
    world.kafka.append(TOPIC, 0, 100)
    world.ingest()
    world.kafka.forget(TOPIC, 0, 40)
    with pytest.raises(DataExpired, match=r"\[0, 40\)"):
        world.ingest()


def test_the_stream_begins_where_ingest_began_the_log(world: World) -> None:
    """STARTING_OFFSETS=latest, a setting of ingest alone, on a topic with 1,000 old records."""
    world.kafka.append(TOPIC, 0, 1000)
    with pytest.raises(StartAgain, match=r"its origin is not committed yet; is ingest_layer.py running"):
        world.stream()
    world.ingest(latest=True)
    world.kafka.append(TOPIC, 0, 10)
    assert world.stream().next_offsets() == {(TOPIC, 0): 1000, (TOPIC, 1): 0}


def test_the_origins_of_a_new_log_are_committed_at_once(world: World) -> None:
    """A crash between two of them would let the next start judge half of the log by another setting."""
    world.kafka.append(TOPIC, 0, 5)
    world.kafka.append(TOPIC, 1, 5)
    created: list[str] = []
    world.ingest(latest=True)
    created = [e.path for e in world.fs.list(MASTER, recursive=True) if e.name == "_origin"]
    assert len(created) == 2
    assert {p: part.origin for p, part in world.partitions("id1").items()} == {"0": 5, "1": 5}


def test_a_partition_that_joins_begins_at_kafkas_start_whatever_the_setting(world: World) -> None:
    world.kafka.append(TOPIC, 0, 5)
    world.ingest(latest=True)
    world.kafka.topics[TOPIC][1][2] = KafkaPartition()
    world.kafka.append(TOPIC, 2, 4)
    mirror = world.ingest(latest=True)
    assert mirror.heads()[TOPIC, "id1", "2"] == 0
    world.mirror_all(mirror)
    assert world.partitions("id1")["2"].head == 4


def test_data_of_the_older_layout_begins_at_its_first_segment_and_gets_an_origin(world: World) -> None:
    world.kafka.append(TOPIC, 0, 30)
    world.kafka.append(TOPIC, 1, 30)
    world.mirror_all(world.ingest())
    for p in "01":
        world.fs.delete(f"{MASTER}/topic={TOPIC}/log=id1/partition={p}/_origin")
    assert not world.partitions("id1")["0"].begun
    world.ingest()
    assert world.partitions("id1")["0"].begun and world.partitions("id1")["0"].origin == 0


def test_a_first_segment_above_the_origin_is_refused_by_name(world: World) -> None:
    world.kafka.append(TOPIC, 0, 100)
    mirror = world.ingest()
    world.mirror_all(mirror)
    world.kafka.append(TOPIC, 0, 110)
    world.mirror_all(mirror)
    world.fs.delete(segment_path(MASTER, TOPIC, "id1", "0", 0))
    for start in (world.ingest, world.stream):
        with pytest.raises(MasterWentBack, match="begins at offset 100, its origin is 0"):
            start()


def test_an_origin_is_committed_once(world: World) -> None:
    place = (TOPIC, "id1", "0")
    assert commit_origin(world.fs, MASTER, place, Origin(3)) == Origin(3)
    assert commit_origin(world.fs, MASTER, place, Origin(9)) == Origin(3)


# continuity -----------------------------------------------------------------------------------------------------------


def filled(world: World, records: int = 1000) -> Mirror:
    for p in (0, 1):
        world.kafka.append(TOPIC, p, records)
    mirror = world.ingest()
    world.mirror_all(mirror)
    return mirror


def replaced(world: World) -> None:
    """Close the present log, and begin another one, though Kafka has lost nothing."""
    mirror = Mirror(world.fs, world.kafka, SHOP)
    mirror._close((TOPIC, mirror.logs[TOPIC], "0"), world.partitions(mirror.logs[TOPIC])["0"])
    mirror.new_log(TOPIC)


def test_a_partition_that_was_cut_goes_on_where_it_was_cut_and_the_others_at_their_heads(world: World) -> None:
    filled(world)
    world.kafka.cut(TOPIC, 0, 990)
    with pytest.raises(LogReplaced, match=r"Kafka ends at 990, the master dataset at 1000; .*--new-log"):
        world.ingest()
    origins = Mirror(world.fs, world.kafka, SHOP).new_log(TOPIC)
    assert origins == {"0": Origin(990, "id1", "cut"), "1": Origin(1000, "id1", "continues")}
    world.kafka.append(TOPIC, 0, 5)
    world.kafka.append(TOPIC, 1, 5)
    world.mirror_all(world.ingest())
    assert len(world.rows()) == 2000 + 10 and len(set(world.rows())) == 2010
    assert [(log, o) for log, p, o in world.rows() if p == "0"][-5:] == [("id1.2", o) for o in range(990, 995)]


def test_a_partition_that_was_cut_and_filled_beyond_the_head_is_still_the_same_log(world: World) -> None:
    filled(world)
    world.kafka.cut(TOPIC, 0, 990)
    world.kafka.append(TOPIC, 0, 60)
    for start in (world.ingest, world.stream):
        with pytest.raises(LogReplaced, match="Kafka's record at 999 is not the stored row"):
            start()
    assert Mirror(world.fs, world.kafka, SHOP).new_log(TOPIC)["0"] == Origin(990, "id1", "cut")
    world.mirror_all(world.ingest())
    assert [(log, o) for log, p, o in world.rows() if p == "0"][1000:] == [("id1.2", o) for o in range(990, 1050)]


def test_a_partition_that_is_cut_again_below_the_origin_of_its_log_goes_on_where_it_was_cut(world: World) -> None:
    filled(world, 10)
    for end in (7, 4):
        world.kafka.cut(TOPIC, 0, end)
        with pytest.raises(LogReplaced):
            world.ingest()
        Mirror(world.fs, world.kafka, SHOP).new_log(TOPIC)
        world.ingest()
    assert {log: world.partitions(log)["0"].origin for log in ("id1", "id1.2", "id1.3")} == {
        "id1": 0,
        "id1.2": 7,
        "id1.3": 4,
    }
    world.kafka.append(TOPIC, 0, 2)
    world.mirror_all(world.ingest())
    assert [row for row in world.rows() if row[1] == "0"][-2:] == [("id1.3", "0", 4), ("id1.3", "0", 5)]


def test_a_log_that_was_cut_within_its_last_markers_is_found_out(world: World) -> None:
    world.kafka.append(TOPIC, 0, 10)
    world.kafka.append_holes(TOPIC, 0, 3)
    mirror = world.ingest()
    world.mirror_all(mirror)
    stream = world.stream()
    epoch_of(world, stream)
    world.ingest()
    world.kafka.cut(TOPIC, 0, 11)
    world.kafka.append(TOPIC, 0, 6)
    for start in (world.ingest, world.stream):
        with pytest.raises(LogReplaced, match=r"Kafka's record at 1[12] is not the stored row"):
            start()
    Mirror(world.fs, world.kafka, SHOP).new_log(TOPIC)
    world.mirror_all(world.ingest())
    assert [row for row in world.rows() if row[1] == "0"][10:] == [("id1.2", "0", o) for o in range(11, 17)]
    assert world.stream().chain.number == 2


@pytest.mark.parametrize("refilled", [1, 2])
def test_a_chain_that_counted_markers_alone_is_not_continued_where_they_became_records(
    world: World, refilled: int
) -> None:
    """Nothing of the partition was mirrored, and no record of it was counted, so that there is none to compare."""
    world.ingest()
    world.kafka.append_holes(TOPIC, 0, 3)
    epoch_of(world, world.stream())
    world.kafka.cut(TOPIC, 0, 1)
    world.kafka.append(TOPIC, 0, refilled)
    world.kafka.append_holes(TOPIC, 0, 2)
    stream = world.stream()
    assert (stream.chain.number, stream.next_offsets()[TOPIC, 0]) == (2, 0)


def test_a_chain_whose_epochs_with_records_were_pruned_has_lost_nothing(world: World) -> None:
    world.ingest()
    stream = world.stream()
    world.kafka.append(TOPIC, 0, 3)
    epoch_of(world, stream)
    world.kafka.append_holes(TOPIC, 0, 2)
    epoch_of(world, stream)
    raw, state = LogReader(world.fs).sound([TOPIC]), world.kafka.state([TOPIC])
    for there in (stream.epochs, stream.epochs[1:]):
        assert chain_log._lost(stream.chain, there, stream.logs, raw, stream.chain.start, world.kafka, state) == {}


def test_a_cut_partition_whose_last_common_offset_is_a_marker_now_is_another_log_from_there_on(world: World) -> None:
    filled(world, 10)
    world.kafka.cut(TOPIC, 0, 6)
    world.kafka.append_holes(TOPIC, 0, 2)
    with pytest.raises(LogReplaced, match="Kafka's record at 7 is not the stored row"):
        world.ingest()
    assert Mirror(world.fs, world.kafka, SHOP).new_log(TOPIC)["0"] == Origin(6, "id1", "cut")


@pytest.mark.parametrize("refilled", [0, 400, 1500])
def test_a_broker_that_lost_its_disk_has_another_log(world: World, refilled: int) -> None:
    filled(world)
    world.kafka.lose_disk(TOPIC)
    for p in (0, 1):
        world.kafka.append(TOPIC, p, refilled)
    for start in (world.ingest, world.stream):
        with pytest.raises(LogReplaced):
            start()
    origins = Mirror(world.fs, world.kafka, SHOP).new_log(TOPIC)
    assert {origin.offset for origin in origins.values()} == {0}
    world.mirror_all(world.ingest())
    assert len(set(world.rows())) == len(world.rows()) == 2000 + 2 * refilled


def test_a_partition_of_which_kafka_holds_nothing_that_is_stored_goes_on_unproven(world: World) -> None:
    filled(world)
    world.kafka.append(TOPIC, 0, 10)
    world.kafka.forget(TOPIC, 0, 1000)
    world.kafka.cut(TOPIC, 1, 990)
    assert Mirror(world.fs, world.kafka, SHOP).new_log(TOPIC)["0"] == Origin(1000, "id1", "unproven")


@pytest.mark.parametrize("forgotten", [0, 1000])
def test_a_log_that_kafka_continues_is_not_closed(world: World, forgotten: int) -> None:
    """An operator may be told twice, by two processes, and do it twice."""
    filled(world)
    world.kafka.append(TOPIC, 0, 10)
    world.kafka.forget(TOPIC, 0, forgotten)
    assert Mirror(world.fs, world.kafka, SHOP).new_log(TOPIC) == {}
    assert not any(partition.closed for partition in world.partitions("id1").values())
    world.mirror_all(world.ingest())
    assert len(world.rows()) == 2010


def test_a_stream_that_stood_still_while_its_log_was_mirrored_and_lost_compares_what_was_stored(world: World) -> None:
    """It has listed an empty log; then ingest mirrors, Kafka loses its disk, and goes on beyond the head."""
    world.kafka.append(TOPIC, 0, 5)
    mirror = world.ingest()
    real = world.kafka.state

    def meanwhile(topics: Iterable[str]) -> Any:
        world.kafka.state = real  # type: ignore[method-assign]
        world.mirror_all(mirror)
        world.kafka.lose_disk(TOPIC)
        world.kafka.append(TOPIC, 0, 9)
        return real(topics)

    world.kafka.state = meanwhile  # type: ignore[method-assign]
    with pytest.raises(LogReplaced, match="Kafka's record at 4 is not the stored row"):
        world.stream()


def test_a_record_that_retention_takes_while_it_is_asked_for_is_no_other_log(world: World) -> None:
    mirror = filled(world, 10)
    real = world.kafka.records_at

    def taken(wanted: Mapping[tuple[str, int], int]) -> Any:
        world.kafka.forget(TOPIC, 0, 10)
        return real(wanted)

    world.kafka.records_at = taken  # type: ignore[method-assign]
    mirror.prove()


def test_holes_and_an_accepted_gap_before_the_head_are_no_other_log(world: World) -> None:
    world.kafka.append(TOPIC, 0, 10)
    world.kafka.append_holes(TOPIC, 0, 5)
    mirror = world.ingest()
    world.mirror_all(mirror)
    world.ingest()
    world.kafka.append_holes(TOPIC, 0, 3)
    world.mirror_all(mirror)
    world.ingest()
    part = world.partitions("id1")["0"]
    assert (part.head, part.holes, part.rows_between(0, 18)) == (18, ((10, 15), (15, 18)), 10)
    world.kafka.append(TOPIC, 0, 10)
    world.kafka.forget(TOPIC, 0, 22)
    with pytest.raises(DataExpired, match=r"\[18, 22\)"):
        world.ingest()
    (gap,) = Mirror(world.fs, world.kafka, SHOP).accept_gaps()
    assert gap == ((TOPIC, "id1", "0"), 18, 22, True)
    world.mirror_all(world.ingest())
    part = world.partitions("id1")["0"]
    assert (part.gaps, part.head, part.rows_between(0, 28)) == (((18, 22),), 28, 16)


def test_a_gap_is_accepted_before_the_first_segment_too(world: World) -> None:
    world.kafka.append(TOPIC, 0, 50)
    world.ingest()
    world.kafka.forget(TOPIC, 0, 20)
    assert [gap[1:3] for gap in Mirror(world.fs, world.kafka, SHOP).accept_gaps()] == [(0, 20)]
    world.mirror_all(world.ingest())
    part = world.partitions("id1")["0"]
    assert (part.origin, part.head, part.gaps, part.damage) == (0, 50, ((0, 20),), "")


def test_a_head_that_another_ingest_moves_while_kafka_is_asked_is_no_replaced_log(world: World) -> None:
    mirror, other = filled(world, 10), world.ingest()

    def another_ingest() -> None:
        world.kafka.before_state = lambda: None
        world.kafka.append(TOPIC, 0, 5)
        world.mirror_all(other)

    world.kafka.before_state = another_ingest
    mirror.prove()
    assert mirror.heads()[TOPIC, "id1", "0"] == 15


FAULTS: dict[str, Callable[[MemoryKafka], None]] = {
    "a broker was away": lambda kafka: kafka.cut(TOPIC, 1, 10),
    "deleted or made anew": lambda kafka: kafka.create(TOPIC, 2),
    "Kafka has no topic": lambda kafka: kafka.topics.clear(),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_what_was_read_while_the_log_became_another_one_is_not_committed(world: World, reason: str) -> None:
    mirror = filled(world, 10)
    world.kafka.append(TOPIC, 0, 5)
    with pytest.raises(StartAgain, match=reason):
        world.mirror_all(mirror, lambda: FAULTS[reason](world.kafka))
    assert world.partitions("id1")["0"].head == 10


def test_a_staged_file_that_went_away_is_no_hole(world: World) -> None:
    mirror = filled(world, 10)
    world.kafka.append(TOPIC, 0, 5)
    world.kafka.append(TOPIC, 1, 5)

    def somebody_cleans() -> None:
        (gone,) = [e.path for e in world.fs.list("/data/.staging", recursive=True) if "partition=0/part" in e.path]
        world.fs.delete(gone)

    with pytest.raises(StartAgain, match="10 rows were read from Kafka, 5 lie in"):
        world.mirror_all(mirror, somebody_cleans)
    assert world.partitions("id1")["0"].head == 10


def test_a_writer_that_was_paused_while_its_log_was_closed_adds_nothing_to_it(world: World) -> None:
    paused = filled(world)
    world.kafka.append(TOPIC, 0, 5)
    with pytest.raises(StartAgain, match="closed, a new one begins"):
        world.mirror_all(paused, lambda: replaced(world))
    world.mirror_all(world.ingest())
    assert len(world.rows()) == len({(p, o) for _, p, o in world.rows()}) == 2005


def test_a_log_that_was_closed_without_a_successor_names_the_command(world: World) -> None:
    mirror = filled(world, 10)
    mirror._close((TOPIC, "id1", "0"), world.partitions("id1")["0"])
    with pytest.raises(LogReplaced, match=r"log id1 is closed and none follows it; .*--new-log"):
        mirror.heads()
    assert Mirror(world.fs, world.kafka, SHOP).new_log(TOPIC)["0"].offset == 10


def test_a_micro_batch_that_begins_above_the_head_starts_again_from_there(world: World) -> None:
    mirror = filled(world, 10)
    world.kafka.append(TOPIC, 0, 10)
    with pytest.raises(StartsAbove, match="ends at 10, what was read begins at 15"):
        mirror.commit({(TOPIC, 0): (15, 20)}, world.writer(lambda: None), "ingest")


def test_timestamps_that_no_datetime_holds_are_compared_all_the_same(world: World) -> None:
    for p, ms in ((0, -1), (0, 0), (0, 1_700_000_000_000_000), (1, 253_402_300_800_000)):
        world.kafka.append(TOPIC, p, 1)
        entries = world.kafka.topics[TOPIC][1][p].entries
        offset, _, key, value = entries[-1]  # type: ignore[misc]
        entries[-1] = (offset, ms, key, value)
        world.mirror_all(world.ingest())
        world.ingest()
        stream = world.stream()
        epoch_of(world, stream)
        assert world.stream().chain == stream.chain


# the stream -----------------------------------------------------------------------------------------------------------


def test_a_tail_that_only_the_stream_had_counted_begins_a_new_chain(world: World) -> None:
    """Kafka lost records that ingest never had, and has others in their place by now."""
    filled(world, 10)
    stream = world.stream()
    world.kafka.append(TOPIC, 0, 20)
    epoch_of(world, stream)
    assert world.stream().chain.number == 1
    world.kafka.cut(TOPIC, 0, 15)
    for more in (0, 30):
        world.kafka.append(TOPIC, 0, more)
        if not more:
            with pytest.raises(NewChain, match="a broker was away"):
                stream.check_topics()
        again = world.stream()
        assert again.chain.number == 2 and again.chain.lost == [[1, {TOPIC: {"id1": {"0": 0}}}]]
    assert [chain.number for chain in chains.chains(world.fs, SHOP.name)] == [1, 2]


def test_an_epoch_of_rows_that_kafka_lost_meanwhile_is_not_taken_over_by_the_second_stream(world: World) -> None:
    """The first has read them, is paused, and commits after Kafka lost them and the second has proved the log."""
    filled(world, 10)
    first = world.stream()
    world.kafka.append(TOPIC, 0, 8)
    whole = copy.deepcopy(world.kafka)
    world.kafka.cut(TOPIC, 0, 14)
    world.kafka.append(TOPIC, 0, 9)
    second, now = world.stream(), world.kafka
    world.kafka = first.kafka = whole
    epoch_of(world, first)
    world.kafka = now
    with pytest.raises(NewChain, match="epoch 0 was read from a log that Kafka has no longer"):
        second.follow_versions()
    assert world.stream().chain.number == 2


def test_an_older_chain_does_not_stand_in_for_one_that_counted_what_is_lost(world: World) -> None:
    """Two streams began a chain each; serving goes by the newer one, and would wait for ever."""
    filled(world, 10)
    world.stream()
    begun = chains.chains(world.fs, SHOP.name)[0]
    newer = dataclasses.replace(begun, number=2)
    world.fs.create(f"{newer.folder}/chain.json", json.dumps(vars(newer)).encode())
    stream = world.stream()
    assert stream.chain.number == 2
    world.kafka.append(TOPIC, 0, 20)
    epoch_of(world, stream)
    world.kafka.cut(TOPIC, 0, 15)
    again = world.stream().chain
    assert (again.number, again.lost) == (3, [[2, {TOPIC: {"id1": {"0": 0}}}]])


def test_a_topic_made_anew_while_the_stream_is_ahead_says_what_was_lost(world: World) -> None:
    filled(world, 10)
    stream = world.stream()
    world.kafka.append(TOPIC, 0, 20)
    epoch_of(world, stream)
    world.kafka.create(TOPIC, 2)
    with pytest.raises(NewChain, match="deleted or made anew"):
        stream.check_topics()
    world.ingest()
    assert world.stream().chain.lost == [[1, {TOPIC: {"id1": {"0": 10}}}]]


def test_a_second_stream_stands_by_the_first_and_goes_on_when_that_is_gone(world: World) -> None:
    world.ingest()
    first, second = world.stream(), world.stream()
    for records in (3, 4):
        world.kafka.append(TOPIC, 0, records)
        epoch_of(world, first)
    second.follow_versions()
    assert (second.end, second.next_number, len(second.keys)) == (first.end, 2, 7)
    world.kafka.append(TOPIC, 0, 5)
    epoch_of(world, second)
    first.follow_versions()
    assert first.end == second.end == {TOPIC: {"id1": {"0": 12, "1": 0}}}


def test_a_log_that_was_closed_under_the_stream_is_noticed(world: World) -> None:
    filled(world, 10)
    stream = world.stream()
    stream.check_topics()
    replaced(world)
    with pytest.raises(NewChain, match="log id1 was closed"):
        stream.check_topics()


def test_an_epoch_covers_what_was_planned_and_counts_its_holes(world: World) -> None:
    world.ingest()
    stream = world.stream()
    world.kafka.append(TOPIC, 0, 3)
    world.kafka.append_holes(TOPIC, 0, 2)
    world.kafka.append_holes(TOPIC, 1, 1)
    epoch_of(world, stream)
    assert stream.end == {TOPIC: {"id1": {"0": 5, "1": 1}}}
    assert stream.epochs[-1].counts == {TOPIC: {"id1": {"0": {"good": 3, HOLE: 2}, "1": {HOLE: 1}}}}
    assert stream.epochs[-1].events == 3


def test_holes_whose_offsets_kafka_has_deleted_are_a_loss(world: World) -> None:
    world.ingest()
    stream = world.stream()
    world.kafka.append(TOPIC, 0, 10)
    place = (TOPIC, 0)
    names = ("topic", "log", "partition", "offset", "ukey", "problem", "event_time", "kafka_time", "crc")
    nothing = pa.table({n: pa.array([], pa.int64() if n in ("offset", "crc") else pa.string()) for n in names})
    world.kafka.forget(TOPIC, 0, 5)
    with pytest.raises(DataExpired, match=r"\[0, 5\)"):
        stream.next_epoch(nothing.set_column(6, "event_time", pa.array([], pa.timestamp("us"))), {place: (0, 10)})


def test_the_ranges_of_a_micro_batch_are_those_that_spark_noted(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    reading = Reading(fs, "/checkpoints/x", {("t", 0): 5})
    with pytest.raises(StartAgain, match="offsets/0 cannot be read"):
        reading.planned(0)
    fs.create("/checkpoints/x/offsets/0", b'v1\n{"batchWatermarkMs":0}\n{"t":{"0":7,"1":3}}')
    assert reading.planned(0) == {("t", 0): (5, 7), ("t", 1): (None, 3)}
    fs.create("/checkpoints/x/offsets/1", b'v1\n{"batchWatermarkMs":0}\n{"t":{"0":9,"1":3}}')
    assert reading.planned(1) == {("t", 0): (7, 9), ("t", 1): (3, 3)}
    assert reading.starting_offsets() == '{"t": {"0": 9, "1": 3}}'


def test_what_another_stream_counted_after_kafka_was_asked_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.kafka.append(TOPIC, 0, 5)
    world.mirror_all(world.ingest())
    other = world.stream()
    followed = versions.followed

    def meanwhile(*asked: Any) -> Any:
        monkeypatch.setattr(versions, "followed", followed)
        world.kafka.append(TOPIC, 0, 3)
        epoch_of(world, other)
        return followed(*asked)

    monkeypatch.setattr(versions, "followed", meanwhile)
    stream = world.stream()
    assert stream.chain == other.chain and stream.next_offsets()[TOPIC, 0] == 8


def test_rows_of_a_partition_that_another_stream_counted_whole_are_left_out(world: World) -> None:
    world.kafka.append(TOPIC, 0, 5)
    world.mirror_all(world.ingest())
    first, second = world.stream(), world.stream()
    epoch_of(world, first)
    world.kafka.append(TOPIC, 1, 3)
    planned = {(TOPIC, 0): (0, 5), (TOPIC, 1): (0, 3)}
    second.follow_versions()
    epoch = second.next_epoch(positions_of(world, second, planned), planned)
    assert epoch is not None and epoch.rows == {TOPIC: 3}
    assert epoch.first(TOPIC, "id1") == {"0": 5, "1": 0}


def test_a_stream_that_stood_still_and_writes_under_a_pruned_number_makes_no_chain(world: World) -> None:
    world.kafka.append(TOPIC, 0, 4)
    world.mirror_all(world.ingest())
    first, still = world.stream(), world.stream()
    epoch_of(world, first, {0: 2})
    epoch_of(world, first)
    world.fs.delete(chains.epoch_path(SHOP.name, 1, 0))
    epoch_of(world, still, {0: 3})
    assert [epoch.number for epoch in chains.epochs(world.fs, SHOP.name, 1)] == [0]
    assert world.stream().chain.number == 2


def test_what_an_older_chain_counted_and_kafka_lost_is_said_by_a_new_one(world: World) -> None:
    """Two streams begun at once had a chain each; serving follows whichever reaches further."""
    world.kafka.append(TOPIC, 0, 5)
    mirror = world.ingest()
    world.mirror_all(mirror)
    older = world.stream()
    start = older.chain.start
    chains.begin(world.fs, SHOP, 2, 0, start, older.chain.origins, older.chain.created_at)
    world.kafka.append(TOPIC, 0, 3)
    epoch_of(world, older)
    world.kafka.cut(TOPIC, 0, 5)
    stream = world.stream()
    assert stream.chain.number == 3 and stream.chain.lost == [[1, {TOPIC: {"id1": {"0": 0}}}]]
    assert world.stream().chain == stream.chain


@pytest.mark.parametrize(("horizon", "kept"), [(4, [1, 2]), (9, [2])])
def test_a_chain_that_counted_further_than_every_version_is_not_pruned(
    world: World, horizon: int, kept: list[int]
) -> None:
    """A server may show it yet; what Kafka loses of it later, nobody else could say."""
    world.kafka.append(TOPIC, 0, 5)
    world.mirror_all(world.ingest())
    older = world.stream()
    chains.begin(world.fs, SHOP, 2, 0, older.chain.start, older.chain.origins, older.chain.created_at)
    world.kafka.append(TOPIC, 0, 3)
    epoch_of(world, older)
    version = replace(
        versions.version_zero(SHOP.name, SHOP.definition_hash, {}),
        version=1,
        horizon={TOPIC: {"id1": {"0": horizon - 1, "1": 0}}},
    )
    for made in (version, replace(version, version=2, horizon={TOPIC: {"id1": {"0": horizon, "1": 0}}})):
        world.fs.create(f"{versions.folder(SHOP.name, made.version)}/manifest.json", made.to_json())
    build.prune(world.fs, SHOP, 1)  # type: ignore[arg-type]
    assert [chain.number for chain in chains.chains(world.fs, SHOP.name)] == kept


def test_a_typed_log_without_its_first_segment_lends_no_keys(world: World) -> None:
    """A copy of what it held would count as an event."""
    world.kafka.append(TOPIC, 0, 6)
    world.mirror_all(world.ingest())
    rows = pa.table(
        {"offset": pa.array([3, 4, 5], pa.int64()), "ukey": ["a", "b", "c"], "problem": pa.nulls(3, pa.string())}
    )
    world.fs.create(log.segment_path(log.typed_root(SHOP.stream(TOPIC)), TOPIC, "id1", "0", 3), parquet(rows))
    version = replace(
        versions.version_zero(SHOP.name, SHOP.definition_hash, {}),
        version=1,
        horizon={TOPIC: {"id1": {"0": 6, "1": 0}}},
    )
    world.fs.create(f"{versions.folder(SHOP.name, 1)}/manifest.json", version.to_json())
    with pytest.raises(StartAgain, match=r"made again, .*begins at offset 3, the raw log at 0"):
        world.stream()
