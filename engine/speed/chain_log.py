"""Where does the speed layer stand, and what is its next epoch? Its chain, its keys, the versions it follows."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from engine.domain import Domain
from engine.fold.duplicates import KeyWindow
from engine.runtime.kafka import KafkaLogs, Record, TopicState, stored_ms
from engine.runtime.observe import StartAgain
from engine.storage import chains, derived, log, versions
from engine.storage.chains import HOLE, KEYS, KEYS_TYPE, Chain, Epoch
from engine.storage.commit import OffsetGap
from engine.storage.continuity import (
    DataExpired,
    by_topic,
    check_continuity,
    filled_holes,
    lineages,
    present_logs,
    verdicts,
)
from engine.storage.derived import Damaged
from engine.storage.log import (
    DamagedSegment,
    FileSystem,
    LogReader,
    Partitions,
    Place,
    Position,
    Range,
    each,
    offset_in,
    overlay,
    position,
    present_log,
    typed_root,
)
from engine.storage.versions import Manifest

# Ingest commits the origins when it starts; who starts beside it waits this long.
ORIGIN_PATIENCE_SECONDS = 60.0
ORIGIN_PAUSE_SECONDS = 1.0
# So many losses are handed on from chain to chain; who still serves by an older one has been away for long.
LOSSES = 50
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_log = structlog.get_logger("engine.speed.chain_log")


class NewChain(RuntimeError):
    """The chain cannot be continued; the query begins a new one at the newest version's horizon."""


@dataclass(frozen=True)
class NextEpoch:
    """What a micro-batch adds: the rows at or above the chain's end, with duplicates named.

    Args:
        duplicates: offsets of the rows that repeat a key.
        valid: per partition (offset, unique key) of the rows that decode and pass every rule, duplicates included.
        counts, last: as in `Epoch`.
    """

    number: int
    start: Position
    end: Position
    duplicates: dict[Place, set[int]]
    valid: dict[Place, list[tuple[int, str]]]
    counts: dict[str, Any]
    event_time_max: str | None
    last: dict[str, Any]

    def first(self, topic: str, log: str) -> dict[str, int]:
        """Return partition → the first offset that the chain has not counted."""
        return dict(self.start.get(topic, {}).get(log, {}))

    def repeated(self, topic: str, log: str) -> dict[str, set[int]]:
        """Return partition → offsets of the rows that repeat a key."""
        return {p: offsets for (t, lg, p), offsets in self.duplicates.items() if (t, lg) == (topic, log)}

    @property
    def summary(self) -> dict[str, Any]:
        """Counts for a log line."""
        totals: dict[str, int] = {}
        for logs in self.counts.values():
            for partitions in logs.values():
                for problems in partitions.values():
                    for problem, rows in problems.items():
                        totals[problem] = totals.get(problem, 0) + rows
        return {"rows": sum(totals.values()), **totals}

    @property
    def rows(self) -> dict[str, int]:
        """Rows by topic, good ones and others."""
        return {
            topic: sum(sum(problems.values()) for by in logs.values() for problems in by.values())
            for topic, logs in self.counts.items()
        }


class SpeedLog:
    """The chain of one domain that this process extends."""

    def __init__(
        self,
        fs: FileSystem,
        domain: Domain,
        kafka: KafkaLogs,
        state: dict[str, TopicState],
        logs: dict[str, str],
        chain: Chain,
        epochs: list[Epoch],
    ) -> None:
        self.fs, self.domain, self.kafka, self.logs = fs, domain, kafka, logs
        self.generations = {topic: told.generation for topic, told in state.items()}
        self.chain, self.epochs = chain, epochs
        self.set_aside = 0
        self.seen: Any = None
        self._born = self.fs.status(f"{chain.folder}/chain.json")
        self.keys = self._remembered_keys()

    @classmethod
    def open(cls, fs: FileSystem, domain: Domain, kafka: KafkaLogs) -> SpeedLog:
        """Continue the newest chain that the newest version fits, else begin a new one at that version's horizon.

        Raises:
            StartAgain: the newest version has another definition, an origin is not committed yet, or the typed log is
                being rebuilt.
            LogReplaced: Kafka's log is not the one that the master dataset has.
            DataExpired: Kafka no longer has what follows the chain's end.
        """
        raw, state, logs = _proved(fs, domain, kafka)
        origins = {t: {lg: {p: part.origin for p, part in raw[t][lg].items()}} for t, lg in logs.items()}
        newest = versions.followed(fs, domain)
        _refuse_other_definition(domain, newest)
        aside: list[str] = []

        def damaged(damage: Damaged) -> None:
            derived.set_aside(fs, damage.path, damage)
            aside.append(damage.path)

        def attempt() -> SpeedLog | None:
            # Asked first: where another stream job begins a chain meanwhile, ours gets no number, and we look at that
            # one.
            number = chains.next_number(fs, domain.name)
            lost: list[list[Any]] = []
            fitting: tuple[Chain, list[Epoch]] | None = None
            for known in reversed(chains.chains(fs, domain.name, damaged)):
                found = chains.epochs(fs, domain.name, known.number, damaged)
                whole = len(found) == len(chains.epoch_numbers(fs, domain.name, known.number))
                whole = whole and not chains.closed(fs, domain.name, known.number)
                present = all(chains.speaks_of(known, topic, lg) for topic, lg in logs.items())
                same = whole and present and known.definition_hash == domain.definition_hash
                # Serving never moves to an older chain: where a newer one counted what is lost, a new one has to say
                # so.
                same = same and all(through < known.number for through, _ in lost)
                fallen = _lost(known, found, logs, raw, start, kafka, state)
                # Another stream job may have counted what Kafka got after it was asked: the larger bound is read last.
                if fallen:
                    fallen = _lost(known, found, logs, raw, start, kafka, _asked_again(kafka, state))
                if fitting is None and same and not fallen:
                    fits = chains.fits(known, found, newest.horizon, newest.version) is not None
                    fitting = (known, found) if fits else None
                elif fitting and fallen and not _handed_on(fitting[0], known.number, fallen):
                    fitting = None  # serving may follow the older one, which had counted further
                lost += [[known.number, fallen]] if fallen else []
                lost += [loss for loss in known.lost if loss not in lost]
            if fitting:
                return cls(fs, domain, kafka, state, logs, *fitting)
            now = datetime.now(UTC).isoformat()
            begun = chains.begin(fs, domain, number, newest.version, start, origins, now, lost[:LOSSES])
            return cls(fs, domain, kafka, state, logs, begun, []) if begun else None

        start = _start_at(newest, origins)
        opened = None
        while opened is None:  # another stream job began a chain, or an epoch was damaged: look again at what is there
            try:
                opened = derived.listed_again(attempt)
            except Damaged as damage:
                damaged(damage)
        opened.set_aside = len(aside)
        opened._refuse_expired(state, newest)
        _log.info(
            "chain",
            domain=domain.name,
            chain=opened.chain.number,
            epochs=len(opened.epochs),
            version=newest.version,
            keys=len(opened.keys),
        )
        return opened

    @property
    def end(self) -> Position:
        """Where the chain ends, exclusive."""
        return self.epochs[-1].end if self.epochs else self.chain.start

    @property
    def next_number(self) -> int:
        return self.epochs[-1].number + 1 if self.epochs else 0

    def next_offsets(self) -> dict[tuple[str, int], int]:
        """Return where each (topic, partition) of Kafka is read on."""
        return {
            (topic, p): offset_in(self.end, topic, self.logs[topic], str(p), self._origin(topic, str(p)))
            for topic, (_, partitions) in self.generations.items()
            for p, _ in partitions
        }

    def _origin(self, topic: str, p: str) -> int:
        """Where a partition begins that the chain does not know yet."""
        lg = self.logs[topic]
        if (known := offset_in(self.chain.origins, topic, lg, p, -1)) >= 0:
            return known
        origin = LogReader(self.fs).origin_of((topic, lg, p))
        if origin is None:
            raise StartAgain(_no_origin(topic, p))
        return origin.offset

    def follow_versions(self) -> None:
        """Look for new versions, for epochs of another stream job, and for epochs that went away.

        Raises:
            StartAgain: the newest version has another definition.
            NewChain: the newest version does not fit the chain, or the chain was damaged or deleted.
        """
        self.check_topics()
        there = chains.epoch_numbers(self.fs, self.domain.name, self.chain.number)
        last = self.next_number - 1
        ours = [number for number in there if number <= last]
        whole = ours == list(range(ours[0], last + 1)) if ours else last < 0
        if not whole or not self._begun():
            raise NewChain(f"chain {self.chain.number} has lost epochs; {last + 1} were known, {len(ours)} are there")
        if len(ours) < len(there):
            self._catch_up()
        pruned = [epoch for epoch in self.epochs if there and epoch.number >= there[0]]
        folders = versions.folders(self.fs, self.domain.name)
        seen = folders, versions.choices(self.fs, self.domain.name)
        if (not folders or seen == self.seen) and len(pruned) == len(self.epochs):
            return
        self.epochs = pruned
        newest = versions.followed(self.fs, self.domain)
        _refuse_other_definition(self.domain, newest)
        if chains.fits(self.chain, self.epochs, newest.horizon, newest.version) is None:
            raise NewChain(f"version {newest.version} ends at no epoch of chain {self.chain.number}")
        self.seen = seen

    def check_topics(self) -> None:
        """Raise NewChain unless Kafka's logs are those that were proved.

        Asked before and after a micro-batch is read.
        """
        now = self.kafka.generations(self.domain.topics)
        for topic, (topic_id, leaders) in self.generations.items():
            if topic not in now or now[topic][0] != topic_id:
                raise NewChain(f"topic '{topic}' was deleted or made anew")
            if not set(leaders) <= set(now[topic][1]):
                raise NewChain(
                    f"topic '{topic}': a broker was away; whether its log continues the chain is proved anew"
                )
            if present_log(self.fs, topic, topic_id) != self.logs[topic]:
                raise NewChain(f"topic '{topic}': log {self.logs[topic]} was closed, a new one begins")

    def _begun(self) -> bool:
        """True if our chain is there, and not another one under its number."""
        return self._born is not None and self.fs.status(f"{self.chain.folder}/chain.json") == self._born

    def next_epoch(
        self, positions: pa.Table, planned: Mapping[tuple[str, int], tuple[int | None, int]]
    ) -> NextEpoch | None:
        """Return the epoch that a micro-batch makes, or None if the chain has all of it already.

        Args:
            positions: topic, log, partition, offset, ukey, problem, event_time, kafka_time, crc of every row of the
                micro-batch.
            planned: (topic, partition) → the offsets that it was asked for (start None: where the partition begins);
                what has no row among them is a hole.

        Raises:
            NewChain: it begins above the chain's end.
            OffsetGap: rows lie elsewhere, or an offset came twice.
            DataExpired: offsets are missing, and Kafka has deleted them.
        """
        start = self.end
        todo = self._to_do(planned)
        if not todo:
            return None
        rows_of = _by_partition(positions)
        epoch = _Building()
        for place, (first, end) in todo.items():
            rows = rows_of.get(place, positions.slice(0, 0))
            fresh = rows.filter(pc.greater_equal(rows["offset"], first))
            _check_offsets(place, fresh["offset"], first, end)
            epoch.add(place, fresh, (first, end), self.keys)
        if epoch.holes:
            self._refuse_loss(todo)
        last = {t: {lg: {p: offset for p, (_, offset) in by.items()}} for (t, lg), by in _grouped(todo).items()}
        return NextEpoch(
            self.next_number,
            start,
            overlay(start, last),
            epoch.duplicates,
            epoch.valid,
            epoch.counts,
            _iso(epoch.newest),
            epoch.last,
        )

    def _to_do(self, planned: Mapping[tuple[str, int], tuple[int | None, int]]) -> dict[Place, Range]:
        """Return what of a micro-batch lies at or above the chain's end."""
        todo = {}
        for (topic, number), (begin, end) in planned.items():
            place = topic, self.logs[topic], str(number)
            at = offset_in(self.end, *place, -1)
            at = self._origin(topic, str(number)) if at < 0 else at
            if begin is not None and begin > at:
                raise NewChain(f"topic '{topic}' partition {number}: read from {begin}, the chain ends at {at}")
            if at < end:
                todo[place] = (at, end)
        return todo

    def _refuse_loss(self, todo: Mapping[Place, Range]) -> None:
        state = self.kafka.state(self.domain.topics)
        for (topic, _, p), (start, _) in todo.items():
            kafka_start = state[topic].partitions[int(p)].start if topic in state else start
            if kafka_start > start:
                raise DataExpired(
                    f"DATA_EXPIRED topic '{topic}' partition {p} [{start}, {kafka_start}): Kafka deleted these offsets while they were read"
                )

    def append(self, following: NextEpoch, partials: dict[str, pa.Table], write: Callable[[str, bytes], None]) -> bool:
        """Commit an epoch; False if another stream job was first: the chain's end has been read again."""
        events = sum(
            p.get("good", 0) for logs in following.counts.values() for by in logs.values() for p in by.values()
        )
        epoch = Epoch(
            number=following.number,
            start=following.start,
            end=following.end,
            definition_hash=self.domain.definition_hash,
            counts=following.counts,
            events=events,
            event_time_max=following.event_time_max,
            created_at=datetime.now(UTC).isoformat(),
            last=following.last,
        )
        data = chains.epoch_file(self.domain, epoch, partials, _keys_table(following.valid))
        if chains.append(self.fs, self.chain, following.number, data, write):
            self.epochs.append(epoch)
            for place, valid in following.valid.items():
                self.keys.remember(place, valid)
            return True
        _log.warning("another stream job wrote this epoch", chain=self.chain.number, epoch=following.number)
        if not self._begun():
            raise NewChain(f"chain {self.chain.number} was deleted")
        self._catch_up()
        return False

    def _catch_up(self) -> None:
        for number in chains.epoch_numbers(self.fs, self.domain.name, self.chain.number):
            if number == self.next_number:
                try:
                    epoch, table = chains.read_epoch(self.fs, self.domain.name, self.chain.number, number)
                except (FileNotFoundError, Damaged) as error:
                    raise NewChain(f"chain {self.chain.number} has lost epoch {number}: {error}") from error
                if not chains.continues(self.end, epoch.start):
                    raise NewChain(
                        f"chain {self.chain.number} epoch {number} does not start where the one before it ends"
                    )
                self._refuse_foreign(epoch)
                self.epochs.append(epoch)
                self._remember(table)

    def _refuse_foreign(self, epoch: Epoch) -> None:
        """Another stream job may have read this epoch before Kafka lost its rows, and committed it after our proof."""
        stamps = {(t, int(p)): stamp for t, lg, p, stamp in each(epoch.last) if self.logs.get(t) == lg}
        live = self.kafka.records_at({place: stamp[0] for place, stamp in stamps.items()}) if stamps else {}
        if any(place not in live or _stamp(live[place]) != stamp for place, stamp in stamps.items()):
            raise NewChain(
                f"chain {self.chain.number} epoch {epoch.number} was read from a log that Kafka has no longer"
            )

    def _remembered_keys(self) -> KeyWindow:
        """Rebuild the memory: typed log below the first epoch, then the epochs' own keys."""
        self.keys = KeyWindow({stream.topic: stream.duplicate_window for stream in self.domain.streams})
        begin = self.epochs[0].start if self.epochs else self.chain.start
        for stream in self.domain.streams:
            try:
                typed = LogReader(self.fs, typed_root(stream)).partitions([stream.topic])[stream.topic]
            except DamagedSegment as damage:
                raise StartAgain(f"typed events have to be made again, run batch_layer.py: {damage}") from damage
            for lg, by in begin.get(stream.topic, {}).items():
                for p, offset in by.items():
                    self._remember_typed(stream.topic, lg, p, offset, stream.duplicate_window, typed.get(lg, {}).get(p))
        for epoch in self.epochs:
            self._remember(chains.read_epoch(self.fs, self.domain.name, self.chain.number, epoch.number)[1])
        return self.keys

    def _remember_typed(
        self, topic: str, lg: str, p: str, offset: int, window: int, typed: log.Partition | None
    ) -> None:
        origin = offset_in(self.chain.origins, topic, lg, p, 0)
        if (typed.head if typed else origin) < offset:
            raise StartAgain(
                f"topic '{topic}' partition {p}: typed events end below the chain's start {offset}; they are being rebuilt, or run batch_layer.py"
            )
        if typed is None:
            return
        # Without its first segment it would seem to begin later, and know no keys from before.
        begins_above = f"it begins at offset {typed.origin}, the raw log at {origin}" if typed.origin > origin else ""
        if reason := typed.damage or begins_above:
            raise StartAgain(
                f"typed events have to be made again, run batch_layer.py: topic '{topic}' log {lg} partition {p}: {reason}"
            )
        for segment in typed.segments_between(offset - window, offset):
            try:
                rows = log.opened(self.fs, segment.path)
                if rows.metadata.num_rows == 0:
                    continue
                table = rows.read(columns=["offset", "ukey", "problem"])
            except FileNotFoundError:
                raise StartAgain(f"{segment.path} was merged into a larger segment meanwhile") from None
            except DamagedSegment as damage:
                raise StartAgain(f"typed events have to be made again, run batch_layer.py: {damage}") from damage
            keep = pc.and_(pc.less(table["offset"], offset), pc.is_in(table["problem"], pa.array([None, "duplicate"])))
            kept = table.filter(keep)
            self.keys.remember((topic, lg, p), zip(kept["offset"].to_pylist(), kept["ukey"].to_pylist(), strict=True))

    def _remember(self, epoch: pa.Table) -> None:
        for place, rows in _by_partition(chains.rows_of(epoch, KEYS)).items():
            self.keys.remember(place, zip(rows["offset"].to_pylist(), rows["ukey"].to_pylist(), strict=True))

    def _refuse_expired(self, state: Mapping[str, TopicState], newest: Manifest) -> None:
        for topic, told in state.items():
            for p, kafka in told.partitions.items():
                at = offset_in(self.end, topic, self.logs[topic], str(p), kafka.start)
                if at < kafka.start:
                    raise DataExpired(
                        f"DATA_EXPIRED topic '{topic}' partition {p}: Kafka starts at offset {kafka.start}, version {newest.version} and its epochs end at {at}; "
                        f"{kafka.start - at} offsets only in the master dataset; run batch_layer.py --domain {self.domain.name}"
                    )


class _Building:
    """The parts of an epoch, partition by partition."""

    def __init__(self) -> None:
        self.counts: dict[str, Any] = {}
        self.valid: dict[Place, list[tuple[int, str]]] = {}
        self.last: dict[str, Any] = {}
        self.holes = 0
        self.newest: int | None = None
        self.duplicates: dict[Place, set[int]] = {}

    def add(self, place: Place, rows: pa.Table, covered: Range, keys: KeyWindow) -> None:
        """Count the rows of a partition that were read from the range it covers."""
        topic, lg, p = place
        offsets, problems = rows["offset"].to_pylist(), rows["problem"].to_pylist()
        valid = [
            (o, k) for o, k, problem in zip(offsets, rows["ukey"].to_pylist(), problems, strict=True) if problem is None
        ]
        repeated = set(keys.duplicates(place, valid))
        self.valid[place] = valid
        self.duplicates[place] = repeated
        tally: dict[str, int] = {}
        for offset, problem in zip(offsets, problems, strict=True):
            name = problem or ("duplicate" if offset in repeated else "good")
            tally[name] = tally.get(name, 0) + 1
        if holes := covered[1] - covered[0] - len(offsets):
            tally[HOLE] = holes
            self.holes += holes
        self.counts.setdefault(topic, {}).setdefault(lg, {})[p] = tally
        # As integers: a sender may have set a time that no datetime holds.
        times = pc.cast(rows["event_time"], pa.int64()).to_pylist()
        good = [
            t
            for o, t, x in zip(offsets, times, problems, strict=True)
            if x is None and o not in repeated and t is not None
        ]
        self.newest = max([*good, *([self.newest] if self.newest is not None else [])], default=None)
        if offsets:
            stamp = stored_ms(pc.cast(rows["kafka_time"], pa.int64())[-1].as_py() // 1000)
            self.last.setdefault(topic, {}).setdefault(lg, {})[p] = [offsets[-1], stamp, rows["crc"][-1].as_py()]


def _proved(
    fs: FileSystem, domain: Domain, kafka: KafkaLogs
) -> tuple[Partitions, dict[str, TopicState], dict[str, str]]:
    """Return raw logs, Kafka's state, present logs, once all origins are there and Kafka continues what is stored."""
    deadline = time.monotonic() + ORIGIN_PATIENCE_SECONDS
    reader = LogReader(fs)
    while True:
        heads = reader.heads(domain.topics)
        state = kafka.state(domain.topics)
        raw = reader.sound(domain.topics)
        # What was mirrored before Kafka was asked, and lost by it, would not be compared if only the heads were known.
        if position(raw, lambda partition: partition.head) != heads:
            continue
        if absent := [topic for topic in domain.topics if topic not in state]:
            raise StartAgain(f"Kafka has no topic '{absent[0]}' at this moment")
        logs = present_logs(fs, state)
        missing = [
            (topic, p)
            for topic, lg in logs.items()
            for p in state[topic].partitions
            if str(p) not in raw[topic].get(lg, {})
        ]
        if not missing:
            break
        if time.monotonic() > deadline:
            raise StartAgain(_no_origin(*missing[0]))
        time.sleep(ORIGIN_PAUSE_SECONDS)
    for topic, found in by_topic(verdicts(fs, kafka, lineages(logs, raw), state)).items():
        check_continuity(topic, found, domain.name)
    return raw, state, logs


def _asked_again(kafka: KafkaLogs, state: Mapping[str, TopicState]) -> dict[str, TopicState]:
    """Return Kafka's state now. Raises StartAgain where its logs may be others than those that were proved."""
    now = kafka.state(state)
    for topic, proved in state.items():
        topic_id, leaders = proved.generation
        if topic not in now or now[topic].id != topic_id or not set(leaders) <= set(now[topic].generation[1]):
            raise StartAgain(f"topic '{topic}': its log is proved anew")
    return now


def _no_origin(topic: str, p: object) -> str:
    return f"topic '{topic}' partition {p}: its origin is not committed yet; is ingest_layer.py running?"


def _refuse_other_definition(domain: Domain, newest: Manifest) -> None:
    if not domain.is_of_this_code:
        raise StartAgain(
            f"code_changed domain {domain.name}: version {newest.version} was made by a decoder or measures of another version than this "
            f"code has, and cannot be completed; run batch_layer.py --domain {domain.name}; until then serving shows it as it is"
        )
    if newest.definition_hash != domain.definition_hash:
        raise StartAgain(
            f"definition_changed domain {domain.name}: version {newest.version} has definition {newest.definition_hash}, this process "
            f"{domain.definition_hash}; started again, the stream goes by that version"
        )


def _stamp(record: Record) -> list[int]:
    """What an epoch keeps of the last record of a partition."""
    return [record[0], record[1], zlib.crc32(record[3] or b"")]


def _lost(
    chain: Chain,
    epochs: list[Epoch],
    logs: Mapping[str, str],
    raw: Partitions,
    start: Position,
    kafka: KafkaLogs,
    state: Mapping[str, TopicState],
) -> Position:
    """Return from where on a chain counted rows that are in no log, per partition; empty if it did not.

    A log may have been closed before they reached the master dataset, or Kafka's was cut below the chain's end.
    """
    lost: Position = {}
    stamps: dict[tuple[str, int], list[int]] = {}
    for epoch in epochs:
        for topic, lg, p, stamp in each(epoch.last):
            if logs.get(topic) == lg:
                stamps[topic, int(p)] = stamp
    live = kafka.records_at({place: stamp[0] for place, stamp in stamps.items()}) if stamps else {}
    # The epochs that are there may end with offsets that had no record, or cover no others of a partition; if one has a
    # record now, the log was cut there.
    holes = {}
    for topic, lg, p, end in each(epochs[-1].end if epochs else {}):
        if logs.get(topic) == lg:
            origin = offset_in(chain.origins, topic, lg, p, 0)
            first = offset_in(epochs[0].start, topic, lg, p, origin)
            holes[topic, int(p)] = range(stamps.get((topic, int(p)), [first - 1])[0] + 1, end)
    filled = filled_holes(kafka, holes)
    for topic, lg, p, end in each(epochs[-1].end if epochs else chain.start):
        if topic not in logs:
            continue
        stored = raw[topic].get(lg, {}).get(p)
        if lg != logs[topic]:
            head = stored.head if stored and stored.head > stored.origin else 0
            if end > head:
                lost.setdefault(topic, {}).setdefault(lg, {})[p] = head
            continue
        place = topic, int(p)
        at, record = state[topic].partitions.get(int(p)), live.get(place)
        other = record is not None and _stamp(record) != stamps[place]
        if at is None or end > at.end or other or place in filled:
            lost.setdefault(topic, {}).setdefault(lg, {})[p] = offset_in(start, topic, lg, p, 0)
    return lost


def _handed_on(chain: Chain, number: int, fallen: Position) -> bool:
    """True if a chain says of an older one, by its number, wherever that counted what is lost; or can say no more."""
    said = {(t, lg, p) for through, where in chain.lost if through >= number for t, lg, p, _ in each(where)}
    return len(chain.lost) == LOSSES or all((t, lg, p) in said for t, lg, p, _ in each(fallen))


def _start_at(newest: Manifest, origins: Position) -> Position:
    """Return the start of a new chain: H, or the origin where H is silent, for every partition of the present logs."""
    return {
        topic: {
            lg: {p: offset_in(newest.horizon, topic, lg, p, origin) for p, origin in by.items()}
            for lg, by in logs.items()
        }
        for topic, logs in origins.items()
    }


def _by_partition(rows: pa.Table) -> dict[Place, pa.Table]:
    """Split rows by topic, log and partition, each in offset order."""
    ordered = rows.sort_by(
        [("topic", "ascending"), ("log", "ascending"), ("partition", "ascending"), ("offset", "ascending")]
    )
    places = list(zip(*(ordered[name].to_pylist() for name in ("topic", "log", "partition")), strict=True))
    split, begin = {}, 0
    for number in range(1, len(places) + 1):
        if number == len(places) or places[number] != places[begin]:
            split[places[begin]] = ordered.slice(begin, number - begin)
            begin = number
    return split


def _check_offsets(place: Place, offsets: pa.ChunkedArray, first: int, end: int) -> None:
    found = offsets.to_numpy()
    if len(found) and (found[0] < first or found[-1] >= end or (np.diff(found) <= 0).any()):
        raise OffsetGap(
            f"OFFSET_GAP topic '{place[0]}' partition {place[2]}: [{first}, {end}) planned, rows in [{found[0]}, {found[-1] + 1}) read, or one twice"
        )


def _grouped(ranges: Mapping[Place, Range]) -> dict[tuple[str, str], dict[str, Range]]:
    grouped: dict[tuple[str, str], dict[str, Range]] = {}
    for (topic, lg, p), covered in ranges.items():
        grouped.setdefault((topic, lg), {})[p] = covered
    return grouped


def _iso(micros: int | None) -> str | None:
    """ISO-8601 text of epoch µs in UTC; None for a time that no datetime holds."""
    try:
        return None if micros is None else (EPOCH + timedelta(microseconds=micros)).isoformat()
    except OverflowError:
        return None


def _keys_table(valid: dict[Place, list[tuple[int, str]]]) -> pa.Table:
    rows = [(*place, key, offset) for place, keyed in valid.items() for offset, key in keyed]
    columns = list(zip(*rows, strict=True)) or [() for _ in KEYS_TYPE]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, KEYS_TYPE, strict=True)],
        schema=pa.schema(list(KEYS_TYPE)),
    )
