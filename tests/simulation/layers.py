"""The layers as processes of a world: the product's own functions, with Spark's part in a few lines of Python.

Ingest and stream are the scripts' own classes with their own order of steps, batch is the script's own run. What is not
the product's here: Spark's source with its notes, rows written to Parquet, decoding a small JSON object, and the fold
of one view.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import batch_layer
import ingest_layer
import stream_layer
from engine.batch import build, events
from engine.batch.events import RowsDiffer
from engine.domain import Domain, Stream, View, count, sum_of
from engine.fold.duplicates import KeyWindow
from engine.fold.measures import stored_schema
from engine.ingest import mirror
from engine.ingest.mirror import Mirror
from engine.runtime.observe import StartAgain
from engine.serving import epochs, snapshot
from engine.serving.query import open_database
from engine.serving.snapshot import Loader, Snapshot, summed
from engine.serving.watch import Watch
from engine.speed import chain_log
from engine.speed.chain_log import NewChain, NextEpoch, SpeedLog
from engine.storage import chains, commit, compact, continuity, derived, log, versions
from engine.storage.checkpoints import Reading
from engine.storage.commit import StartsAbove, TooSlow
from engine.storage.continuity import DataExpired, LogReplaced
from engine.storage.hdfs import HdfsUnavailable
from engine.storage.log import (
    MASTER,
    RAW_ARROW,
    LogReader,
    MasterWentBack,
    Partition,
    Partitions,
    Place,
    Position,
    Range,
)
from engine.storage.versions import Manifest, VersionUnknown
from engine.verify.rawlog import Account, RawLog
from tests.simulation.world import Hdfs, Kafka, LostAnswer, Process, World
from tests.unit.memorykafka import DataLoss

TOPIC = "t"
WINDOW = 8
STREAM = Stream(
    TOPIC, {"id": "STRING", "shop": "STRING", "n": "BIGINT"}, key="id", unique=("id",), duplicate_window=WINDOW
)
TOTALS = View("totals", (STREAM,), ("shop",), {"events": count(), "amount": sum_of("n")})
DOMAIN = Domain("sim", (STREAM,), (TOTALS,), ())
Rows = list[tuple[int, int, bytes | None]]  # offset, timestamp in ms, value

# What a supervisor starts again after: asked for, or said by Spark, or by an HDFS that lost an answer.
AGAIN = (StartAgain, StartsAbove, TooSlow, NewChain, RowsDiffer, HdfsUnavailable, DataLoss, LostAnswer, OSError)
MODULES = (
    batch_layer,
    build,
    chains,
    commit,
    compact,
    continuity,
    derived,
    epochs,
    events,
    log,
    mirror,
    snapshot,
    chain_log,
    versions,
)

AGES = (
    (commit, "WRITER_PATIENCE_SECONDS"),
    (commit, "WRITER_AIM_SECONDS"),
    (compact, "STAGING_SECONDS"),
    (compact, "SETTLED_SECONDS"),
)


@contextmanager
def patched(world: World, hurry: int = 1) -> Iterator[None]:
    """Let the product tell time by the world, and merge small runs.

    What fences writers by age does so many times sooner.
    """
    clock = SimpleNamespace(
        monotonic=world.monotonic, time_ns=world.time_ns, time=world.time, sleep=world.sleep, strftime=lambda *_: ""
    )

    class Now(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return world.utc()

    before = [
        (module, name, getattr(module, name))
        for module in MODULES
        for name in ("time", "datetime")
        if hasattr(module, name)
    ]
    ages = [(module, name, getattr(module, name)) for module, name in AGES]
    before += [
        *ages,
        (os, "getpid", os.getpid),
        (compact, "MEMBERS", compact.MEMBERS),
        (derived, "tell_damaged", derived.tell_damaged),
    ]
    before += [(module, "_log", module._log) for module in (*MODULES,) if hasattr(module, "_log")]
    without_spark = [
        (batch_layer, "spark_writer", lambda fs, stream_, url: typing(fs)),
        (batch_layer, "side_by_side", lambda *pieces: [piece() for piece in pieces]),
        (build, "version", version),
    ]
    before += [(module, name, getattr(module, name)) for module, name, _ in without_spark]
    silent = SimpleNamespace(**dict.fromkeys(("info", "warning", "error", "debug"), lambda *_, **__: None))
    try:
        for module, name, _ in before:
            setattr(module, name, {"time": clock, "datetime": Now, "_log": silent}.get(name))
        for module, name, seconds in ages:
            setattr(module, name, seconds / hurry)
        for module, name, value in without_spark:
            setattr(module, name, value)
        os.getpid = world.pid
        compact.MEMBERS = 3
        derived.tell_damaged = lambda path, reason: None
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def parquet(table: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(table, out, compression="none", write_statistics=False)
    return bytes(out.getvalue())


def decoded(value: bytes | None) -> dict[str, Any] | None:
    try:
        return dict(json.loads(value or b""))
    except ValueError:
        return None


# ingest ---------------------------------------------------------------------------------------------------------------


class Running:
    """`observe.Ending` of a query that nobody stops."""

    def __bool__(self) -> bool:
        return False

    def watching(self) -> AbstractContextManager[None]:
        return nullcontext()


class Source:
    """Spark's Kafka source with its notes.

    Micro-batches of planned offsets, whose rows are read when they are needed.
    """

    def __init__(self, world: World, process: Process, reading: Reading) -> None:
        self.world, self.reading, self.kafka = world, reading, Kafka(world)
        self.at, self.ends, self.batch = dict(reading.at), dict(reading.at), -1
        self.limit = world.random.choice((1, 3, 8, 1000))

    def next_batch(self) -> bool:
        """Plan a micro-batch; False if there is nothing new. Raises DataLoss where Kafka ends below what was read."""
        told = self.kafka.state([TOPIC])
        if TOPIC not in told:
            raise DataLoss("the topic is gone")
        self.at = self.ends
        ends = {}
        for p, kafka in told[TOPIC].partitions.items():
            begin = self.at.setdefault((TOPIC, p), kafka.start)  # one that Spark finds later begins at Kafka's start
            if kafka.end < begin:
                raise DataLoss(f"partition {p} ends at {kafka.end}, read up to {begin}")
            ends[TOPIC, p] = min(kafka.end, begin + self.limit)
        self.ends = {**self.at, **ends}
        if self.ends == self.at:
            return False
        self.batch += 1
        noted = {TOPIC: {str(p): end for (_, p), end in ends.items()}}
        Hdfs(self.world).create(
            f"{self.reading.checkpoint}/offsets/{self.batch}", f"v1\n{{}}\n{json.dumps(noted)}".encode()
        )
        return True

    def rows(self) -> list[tuple[str, str, int, int, bytes | None]]:
        """Topic, partition, offset, timestamp in ms and value of the micro-batch. Raises DataLoss."""
        return [
            (topic, str(p), o, ms, value)
            for (topic, p), end in self.ends.items()
            if (start := self.at[topic, p]) < end
            for o, ms, _, value in self.kafka.read(topic, p, start, end)
        ]


def reading_from(world: World, process: Process, layer: str, at: dict[tuple[str, int], int]) -> Reading:
    return Reading(Hdfs(world), f"/checkpoints/{layer}/{process.name}-{world.time_ns()}", at)


class Ingest(ingest_layer.Ingest):
    """The script's query over a source that is not Spark's."""

    def __init__(self, world: World, process: Process, latest: bool) -> None:
        self.domain, self.settings, self.ending = DOMAIN, SimpleNamespace(show_previews=False), Running()  # type: ignore[assignment]
        self.mirror = Mirror(Hdfs(world), Kafka(world), DOMAIN, latest)
        self.mirror.prove()
        heads = {(topic, int(p)): head for (topic, _, p), head in self.mirror.heads().items()}
        self.reading = reading_from(world, process, "ingest", heads)

    def write(self, rows: Any, ranges: Mapping[Place, Range], staging: str) -> int:
        covered = {(topic, p): offsets for (topic, _, p), offsets in ranges.items()}
        chosen: dict[tuple[str, str], Rows] = {}
        for topic, p, offset, ms, value in rows.rows():
            start, end = covered.get((topic, p), (0, 0))
            if start <= offset < end:
                chosen.setdefault((topic, p), []).append((offset, ms, value))
        for (topic, p), own in chosen.items():
            self.mirror.fs.create(f"{staging}/topic={topic}/partition={p}/part-0.parquet", parquet(raw_table(own)))
        return sum(map(len, chosen.values()))

    def report(self, *_: Any) -> None:
        self.mirror.heads()


def ingest(
    world: World, latest: bool = False, false_alarm: Callable[[Exception], None] = lambda error: None
) -> Callable[[Process], None]:
    fs, kafka = Hdfs(world), Kafka(world)

    def work(process: Process) -> None:
        try:
            query = Ingest(world, process, latest)
            source = Source(world, process, query.reading)
            for _ in range(world.random.randrange(2, 12)):
                if source.next_batch():
                    query.micro_batch(source, source.batch)  # type: ignore[arg-type]
                world.rest(10)
        except LogReplaced as error:
            false_alarm(error)
            operator(world, lambda: Mirror(fs, kafka, DOMAIN).new_log(TOPIC))
        except DataExpired:
            operator(world, lambda: Mirror(fs, kafka, DOMAIN).accept_gaps())
        except MasterWentBack:
            operator(world, lambda: restore(world))
        except AGAIN:
            world.rest(2)

    return work


def operator(world: World, advice: Callable[[], object]) -> None:
    """Somebody does what the fault's message says, after a while; the command may name another fault by then."""
    world.rest(60)
    with suppress(VersionUnknown, MasterWentBack, *AGAIN):
        advice()


def operator_at_work(world: World) -> Callable[[Process], None]:
    """Does what is in `world.orders`, one after the other; what fails is not tried again."""
    fs = Hdfs(world)

    def work(process: Process) -> None:
        while True:
            if world.orders:
                with suppress(VersionUnknown, *AGAIN):
                    world.orders.pop(0)(fs)
            world.rest(5)

    return work


def restore(world: World) -> None:
    """Put raw segments back from a copy, except where ingest has read all of their offsets again, or put on record that
    some are lost."""
    for path, (data, _) in world.broken.items():
        is_left = path in world.files and data.startswith(world.files[path][0])
        if is_left or not _read_again(world, path, data):
            world.files[path] = data, world.now_ms
    world.broken.clear()


def _read_again(world: World, path: str, data: bytes) -> bool:
    folder, _, name = path.rpartition("/")
    at, end = int(name[:20]), covered_end(world, int(name[:20]), data)
    for other in sorted(world.files):
        there = world.files[other][0]
        is_left = other in world.broken and world.broken[other][0].startswith(there)
        if not other.startswith(f"{folder}/0") or is_left:
            continue
        base = int(other.rpartition("/")[2][:20])
        covered, footer = covered_end(world, base, there), world.parsed(there).metadata
        if (
            footer.num_rows < covered - base
            and b"highwater.holes" not in footer.metadata
            and base < end
            and at < covered
        ):
            return True
        at = max(at, covered) if base <= at else at
    return at >= end


def covered_end(world: World, base: int, data: bytes) -> int:
    """The end of the offsets that a segment covers, with rows or without."""
    footer = world.parsed(data).metadata
    told = (footer.metadata or {}).get(b"highwater.end")
    return int(told) if told else base + footer.num_rows


def choose(fs: Hdfs, back: int, follow: bool) -> None:
    """Choose the newest version but `back`."""
    if numbers := versions.numbers(fs, DOMAIN.name)[-1 - back :]:
        versions.choose(fs, DOMAIN.name, numbers[0], follow)


def promote_newest(fs: Hdfs) -> None:
    """Follow the newest version again; where none is left, take the choices away, since there is nothing to promote."""
    if versions.numbers(fs, DOMAIN.name):
        if versions.choices(fs, DOMAIN.name):
            choose(fs, 0, True)
    else:
        fs.delete(f"{versions.SERVED}/{DOMAIN.name}", recursive=True)


def raw_table(rows: Rows) -> pa.Table:
    offsets, stamps, values = zip(*rows, strict=True)
    columns = {
        "offset": pa.array(offsets, pa.int64()),
        "timestamp": pa.array([ms * 1000 for ms in stamps], pa.int64()).cast(RAW_ARROW.field("timestamp").type),
        "value": pa.array([v.decode() if v is not None else None for v in values], pa.string()),
    }
    return pa.table([columns.get(f.name, pa.nulls(len(rows), f.type)) for f in RAW_ARROW], schema=RAW_ARROW)


# speed ----------------------------------------------------------------------------------------------------------------


class Speed(stream_layer.Speed):
    """The script's query over a source that is not Spark's."""

    def __init__(self, world: World, process: Process) -> None:
        self.domain, self.ending = DOMAIN, Running()  # type: ignore[assignment]
        self.kafka = Kafka(world)  # type: ignore[assignment]
        self.log = SpeedLog.open(Hdfs(world), DOMAIN, self.kafka)  # type: ignore[arg-type]
        self.write = self.log.fs.create
        self.reading = reading_from(world, process, "speed", self.log.next_offsets())

    def judge(self, rows: Any) -> Any:
        return {TOPIC: [((t, self.log.logs[t], p), offset, ms, value) for t, p, offset, ms, value in rows.rows()]}

    def positions(self, judged: Any) -> pa.Table:
        return positions_of(judged[TOPIC])

    def partials(self, judged: Any, epoch: NextEpoch) -> dict[str, pa.Table]:
        of_log = TOPIC, self.log.logs[TOPIC]
        first, repeated = epoch.first(*of_log), epoch.repeated(*of_log)
        good = [
            event
            for (_, _, p), offset, _, value in judged[TOPIC]
            if (event := decoded(value)) is not None and offset >= first.get(p, 0) and offset not in repeated.get(p, ())
        ]
        return {TOTALS.name: folded(good)}

    def report(self, *_: Any) -> None:
        pass


def stream(world: World) -> Callable[[Process], None]:
    fs = Hdfs(world)

    def work(process: Process) -> None:
        try:
            query = Speed(world, process)
            source = Source(world, process, query.reading)
            for _ in range(world.random.randrange(3, 25)):
                if source.next_batch():
                    query.micro_batch(source, source.batch)  # type: ignore[arg-type]
                world.rest(4)
        except (LogReplaced, DataExpired):
            world.rest(100)
        except VersionUnknown:
            operator(world, lambda: promote_newest(fs))
        except MasterWentBack:
            operator(world, lambda: restore(world))
        except AGAIN:
            world.rest(2)

    return work


def positions_of(rows: Iterable[tuple[Place, int, int, bytes | None]]) -> pa.Table:
    told: list[tuple[Any, ...]] = []
    for place, offset, ms, value in rows:
        event = decoded(value)
        key, problem = (event["id"], None) if event else (None, "malformed")
        told.append((*place, offset, key, problem, ms * 1000, ms * 1000, zlib.crc32(value or b"")))
    time = pa.timestamp("us")
    kinds = [pa.string()] * 3 + [pa.int64(), pa.string(), pa.string(), time, time, pa.int64()]
    names = ["topic", "log", "partition", "offset", "ukey", "problem", "event_time", "kafka_time", "crc"]
    columns = list(zip(*told, strict=True)) or [()] * len(names)
    return pa.table([pa.array(c, k) for c, k in zip(columns, kinds, strict=True)], names=names)


def folded(good: Iterable[Mapping[str, Any]], stored: Iterable[Mapping[str, Any]] = ()) -> pa.Table:
    """Fold events to the stored columns of the view, on top of stored rows."""
    shops = {row["shop"]: [row["events"], int(row["amount"])] for row in stored}
    for event in good:
        total = shops.setdefault(event["shop"], [0, 0])
        total[0] += 1
        total[1] += event["n"]
    rows = [{"shop": shop, "events": n, "amount": Decimal(amount)} for shop, (n, amount) in sorted(shops.items())]
    return pa.Table.from_pylist(rows, stored_schema(TOTALS))


# batch ----------------------------------------------------------------------------------------------------------------


def batch(world: World) -> Callable[[Process], None]:
    fs = Hdfs(world)

    def work(process: Process) -> None:
        try:
            for _ in range(world.random.randrange(1, 4)):
                one_run(world, fs, again=world.random.random() < 0.1)
                world.rest(world.random.choice((15, 60, 1800) if world.faults.kill else (15,)))
        except VersionUnknown:
            operator(world, lambda: promote_newest(fs))
        except MasterWentBack:
            operator(world, lambda: restore(world))
        except AGAIN:
            world.rest(2)

    return work


def compaction(world: World) -> Callable[[Process], None]:
    """What a batch run does at its end, alone and more often."""
    fs = Hdfs(world)

    def work(process: Process) -> None:
        try:
            compact.clean_staging(fs)
            compact.compact(fs, MASTER, [TOPIC], compact.SETTLED_SECONDS)
        except (MasterWentBack, *AGAIN):
            pass
        world.rest(world.random.choice((5, 40)))

    return work


def one_run(world: World, fs: Hdfs, again: bool = False) -> None:
    """One batch run as `batch_layer.py` makes it; `again` parses the raw log anew."""
    chance = world.random.random()
    args = SimpleNamespace(typed=again, full=again or chance < 0.15, candidate=not again and chance > 0.95)
    shown = SimpleNamespace(**dict.fromkeys(("set_aside", "typed", "version", "compacted"), lambda *_: None))
    settings = SimpleNamespace(hdfs_url="", keep_versions=2)
    compact.clean_staging(fs)
    batch_layer.run_listed_again(fs, fs, DOMAIN, settings, args, shown, again=False)


def version(
    spark: Hdfs, fs: Hdfs, domain: Domain, url: str, parent: Manifest, horizon: Position, log_: Partitions, full: bool,
    number: int, candidate: bool = False,
) -> Manifest | None:  # fmt: skip
    """`build.version` without Spark: what is new is added to the parent's rows, unless all is folded anew."""
    staging = f"{log.STAGING}/version-{domain.name}-{number}-{build.utc_now():%Y%m%dT%H%M%S%f}"
    rows, counts = typed_rows(fs, log_[TOPIC], build._since(STREAM, parent, log_, horizon, full))
    entry, earlier = parent.views.get(TOTALS.name), []
    if build._continues(STREAM, parent, full):
        counts = summed([parent.counts, counts])
        if entry is not None:
            folder = f"{versions.folder(domain.name, parent.version)}/{TOTALS.name}"
            build._check_files(fs, folder, entry)
            for file in entry["files"]:
                try:
                    earlier += fs.open_parquet(f"{folder}/{file}").read().to_pylist()
                except (pa.ArrowException, OSError) as error:
                    if isinstance(error, FileNotFoundError):
                        raise
                    raise build.VersionDamaged(f"{folder}: {error}") from error
    table = folded(rows, earlier)
    fs.create(f"{staging}/{TOTALS.name}/part-0.parquet", parquet(table))
    build._check_rows(domain, log_, horizon, counts)
    good = sum(n.get("good", 0) for by in counts.get(TOPIC, {}).values() for n in by.values())
    view = {"hash": TOTALS.definition_hash, "rows": table.num_rows, "files": ["part-0.parquet"], "bytes": 1}
    built = Manifest(
        domain.name, number, parent.version, horizon, domain.definition_hash, domain.report_hash, {TOPIC: STREAM.schema_hash},
        {TOTALS.name: view}, {}, counts, {}, good, None, build.utc_now().isoformat(), number if candidate else parent.line,
        domain.to_json(),
    )  # fmt: skip
    return build.commit_version(fs, built, staging)


def typing(fs: Hdfs) -> events.WriteTyped:
    def write(raw: Any, typed: Any, ranges: Any, staging: str) -> None:
        for (lg, p), (start, end) in ranges.items():
            keys = KeyWindow({TOPIC: WINDOW})
            place = (TOPIC, lg, p)
            if p in typed.get(lg, {}):
                earlier = rows_of(fs, typed[lg][p], start - WINDOW, start, ["offset", "ukey", "problem"])
                keys.remember(place, [(r["offset"], r["ukey"]) for r in earlier if r["problem"] in (None, "duplicate")])
            rows = rows_of(fs, raw[lg][p], start, end, ["offset", "value"])
            told = [(r["offset"], decoded(r["value"].encode() if r["value"] is not None else None)) for r in rows]
            doubles = set(keys.duplicates(place, [(o, event["id"]) for o, event in told if event]))
            table = pa.Table.from_pylist(
                [
                    {
                        "offset": o,
                        "ukey": event["id"] if event else None,
                        "problem": "duplicate" if o in doubles else None if event else "malformed",
                        "shop": event["shop"] if event else None,
                        "n": event["n"] if event else None,
                    }
                    for o, event in told
                ],
                TYPED,
            )
            if table.num_rows:
                fs.create(f"{staging}/topic={TOPIC}/log={lg}/partition={p}/part-0.parquet", parquet(table))

    return write


TYPED = pa.schema(
    [("offset", pa.int64()), ("ukey", pa.string()), ("problem", pa.string()), ("shop", pa.string()), ("n", pa.int64())]
)


def rows_of(fs: Hdfs, partition: Partition, start: int, end: int, columns: list[str]) -> list[dict[str, Any]]:
    found = []
    for segment in partition.segments_between(max(start, partition.origin), end):
        try:
            file = fs.open_parquet(segment.path)
        except pa.ArrowInvalid as error:
            raise StartAgain(f"{segment.path}: {error}") from error
        if file.metadata.num_rows:
            below = min(end, segment.end if segment.end is not None else end)
            found += [r for r in file.read(columns=columns).to_pylist() if start <= r["offset"] < below]
    return found


def typed_rows(
    fs: Hdfs, typed: Mapping[str, Mapping[str, Partition]], ranges: events.Ranges
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the good typed rows of ranges, and the counts by problem."""
    good: list[dict[str, Any]] = []
    counts: dict[str, Any] = {TOPIC: {}}
    for (lg, p), (start, end) in ranges.items():
        tally: dict[str, int] = {}
        for row in rows_of(fs, typed[lg][p], start, end, ["offset", "problem", "shop", "n"]):
            name = row["problem"] or "good"
            tally[name] = tally.get(name, 0) + 1
            if name == "good":
                good.append(row)
        if tally:
            counts[TOPIC].setdefault(lg, {})[p] = tally
    return good, counts


# serving --------------------------------------------------------------------------------------------------------------


class Serving:
    """Loader and watch of one serving process, and the snapshots that it held."""

    def __init__(self, world: World, judge: Callable[[Snapshot], None]) -> None:
        self.world, self.judge = world, judge
        self.snapshot: Snapshot | None = None

    def work(self, process: Process) -> None:
        fs = Hdfs(self.world)
        self.loader = Loader(fs, DOMAIN, _DATABASE, clock=self.world.monotonic)
        self.loader._reader._pool = SimpleNamespace(map=map)  # type: ignore[assignment]
        self.snapshot = None
        while True:
            try:
                found = self.loader.poll()
                if found is not None and found is not self.snapshot:
                    self.judge(found)
                self.snapshot = found
                kafka = Kafka(self.world).state([TOPIC])
                self.loader.note(
                    found, {t: (at.id, {p: x.end for p, x in at.partitions.items()}) for t, at in kafka.items()}
                )
            except (OSError, HdfsUnavailable, MasterWentBack):
                pass
            self.world.rest(3)

    def ledger(self) -> dict[str, Any]:
        """What `/v1/ledger` would say now."""
        assert self.snapshot is not None
        kafka = self.world.kafka.state([TOPIC])
        ids = {TOPIC: kafka[TOPIC].id}
        watch, reader = Watch(DOMAIN), LogReader(Hdfs(self.world))
        watch.look(reader, ids)
        watch.note(self.world.time(), ids, {TOPIC: {p: (s.start, s.end) for p, s in kafka[TOPIC].partitions.items()}})
        return watch.ledger(self.snapshot, self.world.time())


def recounted(world: World, end: Mapping[str, Mapping[str, int]], there: Mapping[tuple[str, str], list[int]]) -> str:
    """What the reader of recount and proof says otherwise than the offsets that are there below an end.

    Kafka is not asked.
    """
    whole = {lg: {p: offset for p, offset in by.items() if (lg, p) in there} for lg, by in end.items()}
    reader = object.__new__(RawLog)
    reader._client = Client(world)  # type: ignore[assignment]
    reader.end, reader.topics = {TOPIC: whole}, frozenset((TOPIC,))
    reader.found, reader.begun, reader._listed_again = {}, {}, set()
    reader.account = Account()
    reader._list(TOPIC)
    read: dict[tuple[str, str], list[int]] = {}
    for (_, lg, p), rows in reader.chunks():
        read.setdefault((lg, p), []).extend(rows["offset"].to_pylist())
    if reader.account.faults:
        return f"the recount names {reader.account.faults}"
    below = {(lg, p): [o for o in there[lg, p] if o < offset] for lg, by in whole.items() for p, offset in by.items()}
    different = {
        place: (read.get(place, []), offsets) for place, offsets in below.items() if offsets != read.get(place, [])
    }
    return f"the recount reads other rows than there are: {different}" if different else ""


class Client:
    """What `engine.verify.rawlog` asks of hdfs-native."""

    def __init__(self, world: World) -> None:
        self.fs = Hdfs(world)

    def list_status(self, path: str, recursive: bool) -> list[Any]:
        return [
            SimpleNamespace(path=e.path, isdir=e.is_folder, modification_time=e.modified_ms)
            for e in self.fs.list(path, recursive)
        ]

    def read(self, path: str) -> io.BytesIO:
        return io.BytesIO(self.fs.read(path))


_DATABASE = open_database()
