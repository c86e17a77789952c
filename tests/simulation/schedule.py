"""One schedule: what the world does, step by step, while two of every layer run; and what must hold after each step.

A schedule is drawn from a seed: moves (what happens to Kafka, to files, to time), each at a step, and faults. Every
part can be left out without moving the others: `Schedule(seed, moves, only, without)` with fewer moves, the steps at
which faults may happen, and processes that are never started. The same arguments give the same steps to the letter
(`World.digest`). The oracle below shares nothing with the product: it knows what Kafka was given, reads Parquet itself,
and counts.

To add a process: `layers.py` gets a function that returns `work(process)`, and `Schedule.run` adds it under a name. To
add a move: a function of the schedule in `MOVES`; whatever chance it needs comes from `schedule.random`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from engine.serving.snapshot import Snapshot
from engine.storage import versions
from engine.storage.log import EVENTS, MASTER
from tests.simulation import layers
from tests.simulation.layers import TOPIC, WINDOW, Serving, decoded
from tests.simulation.world import Faults, Hdfs, Stuck, World, remove
from tests.unit.memorykafka import KafkaPartition

CHUNK = 60  # steps between two moves
HURRY = 30  # in some schedules segments settle, and staging grows old, so many times faster
QUIET_STEPS = 16_000
QUIET_LOOK = 250
SHOPS = "ab"

Raw = dict[tuple[str, str], dict[int, tuple[int, str | None]]]  # log, partition → offset → timestamp, value
Move = tuple[int, str]  # the step before which it happens, and what


@dataclass
class Truth:
    """What Kafka was given, and what lies in the raw log."""

    world: World
    given: dict[int, int] = field(default_factory=dict)  # timestamp of a record → how often it was stored
    partitions: dict[str, dict[int, KafkaPartition]] = field(default_factory=dict)  # topic id → partitions
    ever: set[int] = field(default_factory=set)  # timestamps of the records that were stored at any time
    damaged: set[int] = field(
        default_factory=set
    )  # of those in segments that an operator damaged: maybe read again, piece by piece
    _rows: dict[bytes, list[tuple[int, int, str | None]]] = field(default_factory=dict)

    def note(self) -> None:
        """Remember the partitions of the topic, which lives on here when it is deleted."""
        if TOPIC in self.world.kafka.topics:
            topic_id, partitions = self.world.kafka.topics[TOPIC]
            self.partitions[topic_id] = partitions

    def _whole(self) -> dict[str, tuple[bytes, int]]:
        """The files as they are once raw segments that were cut are restored."""
        broken = self.world.broken
        return {
            path: broken[path] if path in broken and broken[path][0].startswith(file[0]) else file
            for path, file in self.world.files.items()
        }

    def raw(self) -> Raw:
        """(log, partition) → offset → (timestamp, value) of every raw row.

        Raises AssertionError where one is doubled.
        """
        found: Raw = {}
        stored: dict[int, tuple[str, str, int]] = {}
        for path, (data, _) in self._whole().items():
            if not path.startswith(f"{MASTER}/") or not path.endswith(".parquet"):
                continue
            lg, p = (part.split("=", 1)[1] for part in path.split("/")[-3:-1])
            for offset, stamp, value in self.parsed(data):
                place = (lg, p, offset)
                assert stored.setdefault(stamp, place) == place, (
                    f"record {stamp} is stored at {stored[stamp]} and at {place}"
                )
                before = found.setdefault((lg, p), {}).setdefault(offset, (stamp, value))
                assert before == (stamp, value), f"two rows at {place}"
        lost = self.ever - stored.keys() - self.damaged
        assert not lost, f"records {sorted(lost)[:5]} were stored and are gone"
        self.ever |= stored.keys()
        return found

    def head(self, lg: str, p: str) -> int:
        """Up to where the raw log of a partition covers offsets, with rows or without."""
        folder = f"{MASTER}/topic={TOPIC}/log={lg}/partition={p}/"
        head = 0
        for path, (data, _) in self._whole().items():
            if path.startswith(folder) and path.endswith(".parquet"):
                head = max(head, layers.covered_end(self.world, int(path[len(folder) :][:20]), data))
        return head

    def without_rows(self, lg: str, p: str) -> tuple[list[tuple[int, int]], int]:
        """The accepted gaps of a partition, and how many offsets of it are holes, by the footers."""
        folder = f"{MASTER}/topic={TOPIC}/log={lg}/partition={p}/"
        gaps: set[tuple[int, int]] = set()
        holes: set[int] = set()
        for path, (data, _) in self._whole().items():
            if path.startswith(folder) and path.endswith(".parquet"):
                footer = self.world.parsed(data).metadata
                told = footer.metadata or {}
                if b"highwater.end" in told and b"highwater.holes" not in told:
                    gaps.add((int(path[len(folder) :][:20]), int(told[b"highwater.end"])))
                for part in told.get(b"highwater.missing", b"").decode().split():
                    start, _, end = part.partition("-")
                    holes |= set(range(int(start), int(end)))
        return sorted(gaps), len(holes)

    def parsed(self, data: bytes) -> list[tuple[int, int, str | None]]:
        if data not in self._rows:
            table = self.world.parsed(data).read(columns=["offset", "timestamp", "value"])
            stamps = [micros // 1000 for micros in table["timestamp"].cast("int64").to_pylist()]
            self._rows[data] = list(zip(table["offset"].to_pylist(), stamps, table["value"].to_pylist(), strict=True))
        return self._rows[data]

    def lives(self, topic_id: str, p: str) -> list[dict[int, bytes | None]]:
        """What the log of a partition held at each of its times, the last one now: offset → value."""
        partition = self.partitions.get(topic_id, {}).get(int(p))
        if partition is None:
            return [{}]
        return [
            {r[0]: r[3] for r in entries if r is not None}
            for entries in [*partition.lives, partition.forgotten + partition.entries]
        ]


def totals(rows: dict[int, bytes | str | None], gaps: Sequence[tuple[int, int]] = ()) -> tuple[int, int]:
    """Number and sum of the good events among rows, duplicates as declared; those in gaps are known, not counted."""
    newest: dict[str, int] = {}
    events = amount = 0
    for offset in sorted(rows):
        value = rows[offset]
        event = decoded(value.encode() if isinstance(value, str) else value)
        if event is None:
            continue
        before = newest.get(event["id"])
        newest[event["id"]] = offset
        if (before is None or offset - before > WINDOW) and not any(low <= offset < high for low, high in gaps):
            events, amount = events + 1, amount + event["n"]
    return events, amount


class Schedule:
    """Two ingests, streams and batch layers and one serving process in a world, and what happens to them."""

    def __init__(
        self,
        seed: int,
        moves: Sequence[Move] | None = None,
        only: Collection[int] | None = None,
        without: Collection[str] = (),
    ) -> None:
        self.seed, self.without, self.random = seed, without, Random(seed)
        own = drawn(self.random)
        self.moves = tuple(own if moves is None else moves)
        self.latest = self.random.random() < 0.15
        self.hurry = self.random.choice((1, 1, HURRY))
        self.faults = Faults(0.002, self.random.choice((0.002, 0.002, 0.02)), 0.03, 0.1)
        self.world = World(Random(seed), seed, None if only is None else frozenset(only))
        self.truth = Truth(self.world)
        self.world.kafka.create(TOPIC, 2 if self.hurry == 1 else 1)
        self.truth.note()
        self.serving = Serving(self.world, self.judge)
        self._ids = itertools.count(1)
        self._stamps = itertools.count(10_000)

    def run(self) -> World:
        """Raises AssertionError where something does not hold."""
        world = self.world
        with layers.patched(world, self.hurry):
            try:
                self.append(0)
                for number in (1, 2):
                    self.start(f"ingest-{number}", layers.ingest(world, self.latest, self.false_alarm))
                    self.start(f"stream-{number}", layers.stream(world))
                    self.start(f"batch-{number}", layers.batch(world))
                    if self.hurry > 1:
                        self.start(f"compaction-{number}", layers.compaction(world))
                self.start("serving", self.serving.work)
                self.start("operator", layers.operator_at_work(world))
                world.faults = self.faults
                for step, move in self.moves:
                    world.run(step - world.steps)
                    world.trace.append(f"MOVE {move}")
                    self.random = Random(f"{self.seed} {step}")
                    MOVES[move](self)
                    self.truth.note()
                world.run(CHUNK)
                world.faults = Faults()
                layers.restore(world)
                world.orders.append(layers.promote_newest)
                for process in world.processes:
                    process.runnable_at = min(process.runnable_at, world.now)
                self.come_to_rest()
            finally:
                world.kill_all()
        return world

    def start(self, name: str, work: Callable[[layers.Process], None]) -> None:
        if name not in self.without:
            self.world.add(name, work)

    def false_alarm(self, error: Exception) -> None:
        """A log is said to be replaced only if Kafka ever lost something of it."""
        lost = any(partition.lives for by in self.truth.partitions.values() for partition in by.values())
        assert lost or len(self.truth.partitions) > 1, f"nothing was lost, and an operator is told: {error}"

    # what holds -----------------------------------------------------------------------------------------------------

    def judge(self, snapshot: Snapshot) -> None:
        """An answer equals a direct count below its own coverage, and reaches no less far than the one before it."""
        self.does_not_go_back(snapshot)
        said = self.answer(snapshot)
        raw = self.truth.raw()
        choices: list[list[tuple[int, int]]] = []
        for lg, by in snapshot.coverage.get(TOPIC, {}).items():
            for p, end in by.items():
                stored = {o: value for o, (_, value) in raw.get((lg, p), {}).items()}
                head = self.truth.head(lg, p)
                begin = self.origin(lg, p)
                gaps, _ = self.truth.without_rows(lg, p)
                horizon = snapshot.manifest.horizon.get(TOPIC, {}).get(lg, {}).get(p, begin)
                # Above the horizon epochs may have counted what became an accepted gap.
                left_out = [[], gaps, [(low, min(high, horizon)) for low, high in gaps]]
                found = []
                for life in self.truth.lives(lg.partition(".")[0], p):
                    # Epochs may have counted a log whose holes are records of the one that followed it unnoticed.
                    for rows in ({**{o: v for o, v in life.items() if o >= head}, **stored}, {**stored, **life}, life):
                        below = {o: v for o, v in rows.items() if begin <= o < end}
                        found += [totals(below, gaps) for gaps in left_out[: 3 if gaps else 1]]
                        if gaps:
                            without = {o: v for o, v in below.items() if not any(a <= o < b for a, b in gaps)}
                            found.append(totals(without))
                            # And a batch run below the horizon without the keys that epochs above it know.
                            by_batch = totals({o: v for o, v in without.items() if o < horizon})
                            both, part = (
                                totals({o: v for o, v in below.items() if o < e}, gaps) for e in (end, horizon)
                            )
                            found.append(tuple(a + b - c for a, b, c in zip(by_batch, both, part, strict=True)))
                choices.append(list(dict.fromkeys(found)))
        possible = {(sum(e for e, _ in one), sum(a for _, a in one)) for one in itertools.product(*choices)}
        assert said in possible, f"{said} answered at {snapshot.as_of}, counted {sorted(possible)}"

    def does_not_go_back(self, snapshot: Snapshot) -> None:
        """Coverage falls only where Kafka lost a part of the topic, or an operator chose another version.

        A log is closed with all of its partitions, so that what the stream counted beyond their heads is counted anew.
        """
        before = self.serving.snapshot
        if before is None or any(name.startswith(f"{versions.SERVED}/") for name in self.world.files):
            return
        kafka = self.world.kafka.topics.get(TOPIC, ("", {}))[0]
        for lg, by in before.coverage.get(TOPIC, {}).items():
            for p, end in by.items():
                stem = lg.partition(".")[0]
                logs = snapshot.coverage.get(TOPIC, {}).items()
                now = max([self.origin(lg, p), *(by.get(p, 0) for log, by in logs if log.partition(".")[0] == stem)])
                lost = stem != kafka or any(partition.lives for partition in self.truth.partitions[kafka].values())
                assert now >= end or lost, f"log {lg} partition {p} was covered up to {end}, now {now}"

    def origin(self, lg: str, p: str) -> int:
        path = f"{MASTER}/topic={TOPIC}/log={lg}/partition={p}/_origin"
        return int(json.loads(self.world.files[path][0])["origin"]) if path in self.world.files else 0

    def answer(self, snapshot: Snapshot) -> tuple[int, int]:
        events, amount = 0, 0
        for table in (snapshot.batch["totals"], snapshot.speed["totals"]):
            events += sum(table["events"].to_pylist())
            amount += int(sum(table["amount"].to_pylist()))
        assert events == snapshot.manifest.events + snapshot.events_speed
        return events, amount

    def come_to_rest(self) -> None:
        """After the faults everything is mirrored, counted, folded and served, and the ledger balances."""
        missing = "nothing was tried"
        for _ in range(QUIET_STEPS // QUIET_LOOK):
            self.world.run(QUIET_LOOK)
            missing = self.unfinished()
            if not missing:
                return
        raise Stuck(missing)

    def unfinished(self) -> str:
        snapshot, kafka = self.serving.snapshot, self.world.kafka.state([TOPIC])
        if snapshot is None or TOPIC not in kafka:
            return "there is no snapshot"
        raw = self.truth.raw()
        covered = snapshot.coverage.get(TOPIC, {})
        folders = (
            name.rpartition("/log=")[2]
            for name in self.world.folders
            if name.startswith(f"{MASTER}/topic={TOPIC}/log=")
        )
        ours = [lg for lg in folders if "/" not in lg and lg.partition(".")[0] == kafka[TOPIC].id]
        present = max(ours, key=lambda lg: (len(lg), lg), default="")
        for p, at in kafka[TOPIC].partitions.items():
            if covered.get(present, {}).get(str(p), self.origin(present, str(p))) != at.end:
                return f"partition {p} of log {present} ends at {at.end}, covered is {covered}"
        ledger = self.serving.ledger()
        if not ledger["balanced"]:
            return f"the ledger does not balance: {[r for r in ledger['partitions'] if not r['balanced']]}"
        stored = {stamp for rows in raw.values() for stamp, _ in rows.values()}
        for topic_id, partitions in self.truth.partitions.items():
            if topic_id != kafka[TOPIC].id:
                continue
            for p, partition in partitions.items():
                begin = self.origin(present, str(p))
                lost = [r[0] for r in partition.entries if r and r[1] not in stored and r[0] >= begin]
                if lost:
                    return f"records {lost[:5]} of partition {p} are in no segment"
        exact = [0, 0]
        for (lg, p), rows in raw.items():
            end = covered.get(lg, {}).get(p, 0)
            counted = totals({o: v for o, (_, v) in rows.items() if o < end})
            exact = [exact[0] + counted[0], exact[1] + counted[1]]
        if self.answer(snapshot) != tuple(exact):
            return f"{self.answer(snapshot)} answered, {exact} lie in the raw log below {covered}"
        return self.misjudged(raw, covered, ledger)

    def misjudged(self, raw: Raw, covered: dict[str, dict[str, int]], ledger: dict[str, Any]) -> str:
        """What the ledger or the recount's own reader say otherwise than the files."""
        for lg, by in covered.items():
            for p, end in by.items():
                if end > (head := max(self.truth.head(lg, p), self.origin(lg, p))):
                    return f"log {lg} partition {p} is covered up to {end} and ends at {head}"
        gaps: set[tuple[str, str, int, int]] = set()
        for row in ledger["partitions"]:
            lg, p = row["log"], row["partition"]
            accepted, holes = self.truth.without_rows(lg, p)
            gaps |= {(lg, p, *gap) for gap in accepted}
            said = row["raw_head"], row["raw"], row["holes"], row["gaps"]
            there = self.truth.head(lg, p), len(raw.get((lg, p), {})), holes, sum(b - a for a, b in accepted)
            if said != there and self.truth.head(lg, p):
                return f"log {lg} partition {p}: the ledger says {said}, the files {there}"
        missing = {(m["log"], m["partition"], m["start"], m["end"]) for m in ledger["missing"]}
        if missing != gaps:
            return f"{missing} is said to be missing, {gaps} is"
        return layers.recounted(self.world, covered, {place: sorted(rows) for place, rows in raw.items()})

    # what happens ---------------------------------------------------------------------------------------------------

    def partition(self) -> int:
        topic = self.world.kafka.topics.get(TOPIC)
        return self.random.choice(sorted(topic[1])) if topic else 0

    def append(self, p: int, records: int = 5) -> None:
        if TOPIC not in self.world.kafka.topics:
            return
        for _ in range(records):
            number = next(self._ids)
            again = self.random.random() < 0.2
            event = {
                "id": f"id{max(1, number - self.random.randrange(1, 12)) if again else number}",
                "shop": self.random.choice(SHOPS),
                "n": number,
            }
            value = json.dumps(event).encode() if self.random.random() < 0.95 else b"{"
            self.world.kafka.append_value(TOPIC, p, next(self._stamps), value)

    def transaction(self) -> None:
        p = self.partition()
        self.append(p, self.random.randrange(0, 4))
        self.world.kafka.append_holes(TOPIC, p, self.random.randrange(1, 4))

    def cut(self) -> None:
        p = self.partition()
        end = self.world.kafka.topics[TOPIC][1][p].end
        self.world.kafka.cut(
            TOPIC, p, max(self.world.kafka.topics[TOPIC][1][p].start, end - self.random.randrange(1, 6))
        )

    def recreate(self) -> None:
        self.world.kafka.create(TOPIC, len(self.world.kafka.topics[TOPIC][1]))

    def forget(self) -> None:
        p = self.partition()
        partition = self.world.kafka.topics[TOPIC][1][p]
        if partition.entries:
            self.world.kafka.forget(TOPIC, p, self.random.randrange(partition.start, partition.end + 1))

    def grow(self) -> None:
        partitions = self.world.kafka.topics[TOPIC][1]
        if len(partitions) < 3:
            partitions[len(partitions)] = KafkaPartition()

    def damage(self, under: str, whole: bool = False) -> None:
        """Delete, cut or garble one of the files below a path that may always be deleted, or a whole folder."""
        files = sorted(name for name in self.world.files if name.startswith(under))
        if not files:
            return
        path = self.random.choice(files)
        if whole:
            remove(self.world, path.rsplit("/", 1)[0])
            return
        data, at = self.world.files[path]
        if self.random.random() < 0.5:
            remove(self.world, path)
        else:
            self.world.files[path] = (data[: self.random.randrange(len(data) + 1)], at + 1)

    def newest_version(self) -> None:
        """Delete the newest version by hand."""
        if numbers := versions.numbers(Hdfs(self.world), layers.DOMAIN.name):
            remove(self.world, versions.folder(layers.DOMAIN.name, numbers[-1]))

    def raw(self) -> None:
        """Delete or cut a raw segment, which is put back once a layer names it, and at the end."""
        segments = sorted(n for n in self.world.files if n.startswith(f"{MASTER}/") and n.endswith(".parquet"))
        segments = [path for path in segments if path not in self.world.broken]
        if segments:
            path = self.random.choice(segments)
            data, at = self.world.files[path]
            self.world.broken[path] = data, at
            self.truth.damaged |= {stamp for _, stamp, _ in self.truth.parsed(data)}
            if self.random.random() < 0.5:
                remove(self.world, path)
            else:
                self.world.files[path] = (data[: len(data) // 2], at + 1)

    def overtake(self) -> None:
        """Of three compactors one was paused.

        What it staged appears once another has merged a part of it with others.
        """
        partitions = layers.LogReader(Hdfs(self.world)).partitions([TOPIC])[TOPIC].values()
        long = [p.segments for by in partitions for p in by.values() if len(p.segments) > 3 and not p.damage]
        if not long:
            return
        segments = self.random.choice(long)[:-1]
        middle = self.random.randrange(1, len(segments) - 1)
        if self.merge(segments[: middle + 1]) and self.merge(segments[middle:]):
            for segment in segments[middle:]:
                del self.world.files[segment.path]

    def merge(self, run: Sequence[layers.log.Segment]) -> bool:
        """Publish segments as one, where each has a row for every offset."""
        if any(segment.path not in self.world.files for segment in run):
            return False
        rows = layers.pa.concat_tables([self.world.parsed(self.world.files[s.path][0]).read() for s in run])
        base, end = run[0].base, run[-1].end or 0
        path = f"{run[0].path.rpartition('/')[0]}/{base:020d}-{end:020d}.parquet"
        if rows.num_rows != end - base or path in self.world.files:
            return False
        self.world.files[path] = layers.parquet(rows.replace_schema_metadata(None)), self.world.now_ms
        return True

    def choose(self) -> None:
        """An operator promotes a version, or goes back to one."""
        follow, back = self.random.random() < 0.5, self.random.randrange(3)
        self.world.orders.append(lambda fs: layers.choose(fs, back, follow))


MOVES: dict[str, Callable[[Schedule], Any]] = {
    "append": lambda s: s.append(s.partition(), s.random.randrange(1, 12)),
    "transaction": Schedule.transaction,
    "wait": lambda s: setattr(s.world, "now", s.world.now + s.random.choice((10, 90, 4000))),
    "cut": Schedule.cut,
    "lose disk": lambda s: s.world.kafka.lose_disk(TOPIC),
    "recreate": Schedule.recreate,
    "forget": Schedule.forget,
    "grow": Schedule.grow,
    "epoch": lambda s: s.damage("/data/speed_views/sim/"),
    "chain": lambda s: s.damage("/data/speed_views/sim/", whole=True),
    "version": lambda s: s.damage("/data/batch_views/_versions/", whole=True),
    "newest version": Schedule.newest_version,
    "choose": Schedule.choose,
    "choice": lambda s: s.damage(versions.SERVED),
    "taken": lambda s: s.damage("/data/batch_views/_taken/"),
    "raw": Schedule.raw,
    "manifest": lambda s: s.damage("/data/batch_views/_versions/"),
    "typed": lambda s: remove(s.world, EVENTS),
    "typed file": lambda s: s.damage(EVENTS),
    "overtake": Schedule.overtake,
    "retype": lambda s: layers.events.forget_typed(Hdfs(s.world), layers.DOMAIN),
}
ORDINARY = ("append", "append", "append", "append", "transaction", "wait")
TOLD = ("overtake",)  # in stories of `mutants` alone, since a compactor looks at its members again
RARE = tuple(name for name in MOVES if name not in ORDINARY and name not in TOLD)
# What belongs to one story.
TOGETHER = (("raw", "retype"), ("newest version", "choose"), ("cut", "epoch"), ("cut", "forget"), ("retype", "typed"))


def drawn(random: Random) -> list[Move]:
    """Moves of a schedule: traffic, and a few rare things of one or two kinds."""
    kinds = (
        list(random.choice(TOGETHER)) if random.random() < 0.2 else random.sample(RARE, random.choice((0, 1, 1, 2, 3)))
    )
    if "raw" in kinds:
        # A log that is closed while one of its segments is away is closed without it; a copy then comes too late.
        kinds = [kind for kind in kinds if kind not in ("cut", "lose disk", "recreate")]
    names = (
        random.choice(kinds) if kinds and random.random() < 0.25 else random.choice(ORDINARY)
        for _ in range(random.randrange(4, 16))
    )
    first = random.randrange(10, CHUNK)
    return [(first + number * CHUNK, name) for number, name in enumerate(names)]
