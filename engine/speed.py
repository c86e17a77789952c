"""Where does the speed layer stand, and what is its next epoch? The chain, the key memory and the versions it follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from engine import chain as chain_of
from engine import derived, kafka, log, versions
from engine.chain import KEYS, KEYS_TYPE, Chain, Epoch
from engine.continuity import DataExpired, LogReplaced
from engine.derived import Damaged
from engine.domain import Domain
from engine.duplicates import KeyWindow, Place
from engine.events import typed_root
from engine.hdfs import Hdfs
from engine.horizon import overlay
from engine.log import LogReader, OffsetGap, Position, offset_in
from engine.observe import StartAgain
from engine.settings import Settings
from engine.versions import Manifest

_log = structlog.get_logger("engine.speed")


class NewChain(RuntimeError):
    """The chain cannot be continued; the query begins a new one at the newest version's horizon."""


@dataclass(frozen=True)
class NextEpoch:
    """What a micro-batch adds: the rows at or above the chain's end, with duplicates named.

    Args:
        trim: SQL that leaves out rows below the chain's end, or None where there are none.
        duplicates: topic, partition, offset of the rows that repeat a key.
        valid: per partition (offset, unique key) of the rows that decode and pass every rule, duplicates included.
    """

    number: int
    start: Position
    end: Position
    trim: str | None
    duplicates: pa.Table
    valid: dict[Place, list[tuple[int, str]]]
    counts: dict[str, Any]
    event_time_max: str | None

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
        fs: Hdfs,
        domain: Domain,
        ids: dict[str, str],
        logs: dict[str, str],
        clients: tuple[Any, kafka.Reader],
        chain: Chain,
        epochs: list[Epoch],
    ) -> None:
        self.fs, self.domain, self.ids, self.logs = fs, domain, ids, logs
        self.admin, self.consumer = clients
        self.chain, self.epochs = chain, epochs
        self.set_aside = 0
        self.seen: Any = None
        self._born = self.fs.status(f"{chain.folder}/chain.json")
        self.keys = self._remembered_keys()

    @classmethod
    def open(cls, fs: Hdfs, domain: Domain, settings: Settings) -> SpeedLog:
        """Continue the newest chain that the newest version fits, else begin a new one at that version's horizon.

        Raises:
            StartAgain: the newest version has another definition, or the typed log is being rebuilt.
            DataExpired: Kafka no longer has what follows the chain's end.
        """
        admin, consumer = kafka.admin(settings), kafka.consumer(settings)
        kafka.ensure_topics(settings, domain.streams)
        ids = kafka.topic_ids(admin, domain.topics)
        logs = {topic: log.present_log(fs, topic, ids[topic]) for topic in domain.topics}
        ranges = kafka.log_ranges(consumer, domain.topics)
        newest = versions.followed(fs, domain)
        _refuse_other_definition(domain, newest)
        aside: list[str] = []

        def damaged(damage: Damaged) -> None:
            derived.set_aside(fs, damage.path, damage)
            aside.append(damage.path)

        def attempt() -> SpeedLog | None:
            raw = LogReader(fs).partitions(domain.topics)
            for known in reversed(chain_of.chains(fs, domain.name, damaged)):
                found = chain_of.epochs(fs, domain.name, known.number, damaged)
                whole = len(found) == len(chain_of.epoch_numbers(fs, domain.name, known.number))
                whole = whole and not chain_of.closed(fs, domain.name, known.number)
                present = all(chain_of.speaks_of(known, topic, lg) for topic, lg in logs.items())
                same = whole and present and known.definition_hash == domain.definition_hash
                if (
                    same
                    and chain_of.fits(known, found, newest.horizon, newest.version) is not None
                    and not _beyond_closed_logs(known, found, logs, raw)
                ):
                    return cls(fs, domain, ids, logs, (admin, consumer), known, found)
            number, now = chain_of.next_number(fs, domain.name), datetime.now(UTC).isoformat()
            origins = _origins(logs, ranges, raw)
            begun = chain_of.begin(fs, domain, number, newest.version, _start_at(newest, origins), origins, now)
            return cls(fs, domain, ids, logs, (admin, consumer), begun, []) if begun else None

        opened = None
        while opened is None:  # another stream job began a chain, or an epoch was damaged: look again at what is there
            try:
                opened = derived.listed_again(attempt)
            except Damaged as damage:
                damaged(damage)
        opened.set_aside = len(aside)
        opened._check_kafka(ranges, newest)
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

    def starting_offsets(self) -> dict[str, dict[str, int]]:
        """Return Spark's startingOffsets: the chain's end, earliest for a partition that it does not know."""
        ranges = kafka.log_ranges(self.consumer, self.domain.topics)
        return {t: {str(p): offset_in(self.end, t, lg, str(p), -2) for p in ranges[t]} for t, lg in self.logs.items()}

    def follow_versions(self) -> None:
        """Look for new versions and for epochs that went away.

        Raises:
            StartAgain: the newest version has another definition.
            NewChain: the newest version does not fit the chain, or the chain was damaged or deleted.
        """
        self.check_topics()
        there = chain_of.epoch_numbers(self.fs, self.domain.name, self.chain.number)
        last = self.next_number - 1
        whole = there == list(range(there[0], last + 1)) if there else last < 0
        if not whole or not self._begun():
            raise NewChain(
                f"chain {self.chain.number} has lost epochs; {last + 1} were written, {len(there)} are there"
            )
        pruned = [epoch for epoch in self.epochs if there and epoch.number >= there[0]]
        folders = versions.folders(self.fs, self.domain.name)
        seen = folders, versions.choices(self.fs, self.domain.name)
        if (not folders or seen == self.seen) and len(pruned) == len(self.epochs):
            return
        self.epochs = pruned
        newest = versions.followed(self.fs, self.domain)
        _refuse_other_definition(self.domain, newest)
        if chain_of.fits(self.chain, self.epochs, newest.horizon, newest.version) is None:
            raise NewChain(f"version {newest.version} ends at no epoch of chain {self.chain.number}")
        self.seen = seen

    def check_topics(self) -> None:
        """Raise NewChain if a topic was deleted or made anew: asked before and after a micro-batch is read."""
        if kafka.topic_ids(self.admin, self.domain.topics) != self.ids:
            raise NewChain(f"a topic of {self.domain.name} was deleted or made anew")

    def _begun(self) -> bool:
        """True if our chain is there, and not another one under its number."""
        return self._born is not None and self.fs.status(f"{self.chain.folder}/chain.json") == self._born

    def next_epoch(self, positions: pa.Table) -> NextEpoch | None:
        """Return the epoch that these rows make, or None if the chain has all of them already.

        Args:
            positions: topic, log, partition, offset, ukey, problem, event_time of every row of the micro-batch.

        Raises:
            OffsetGap: the rows do not continue the chain.
        """
        start = self.end
        end = start
        counts: dict[str, Any] = {}
        valid: dict[Place, list[tuple[int, str]]] = {}
        doubles: list[tuple[str, str, int]] = []
        trimmed = False
        newest: datetime | None = None
        for place, rows in _by_partition(positions).items():
            first_wanted = offset_in(start, *place, int(rows["offset"][0].as_py()))
            fresh = rows.filter(pc.greater_equal(rows["offset"], first_wanted))
            trimmed = trimmed or fresh.num_rows < rows.num_rows
            if fresh.num_rows == 0:
                continue
            offsets = fresh["offset"].to_pylist()
            _check_contiguous(place, offsets, first_wanted)
            keys, problems = fresh["ukey"].to_pylist(), fresh["problem"].to_pylist()
            valid[place] = [(o, k) for o, k, problem in zip(offsets, keys, problems, strict=True) if problem is None]
            repeated = set(self.keys.duplicates(place, valid[place]))
            doubles += [(place[0], place[2], offset) for offset in repeated]
            tally: dict[str, int] = {}
            for offset, problem in zip(offsets, problems, strict=True):
                name = problem or ("duplicate" if offset in repeated else "good")
                tally[name] = tally.get(name, 0) + 1
            counts.setdefault(place[0], {}).setdefault(place[1], {})[place[2]] = tally
            good = [
                t
                for o, t, problem in zip(offsets, fresh["event_time"].to_pylist(), problems, strict=True)
                if problem is None and o not in repeated
            ]
            newest = max([*good, *([newest] if newest else [])], default=None)
            end = overlay(end, {place[0]: {place[1]: {place[2]: offsets[-1] + 1}}})
        if not counts:
            return None
        columns = list(zip(*doubles, strict=True)) or [(), (), ()]
        schema = pa.schema([("topic", pa.string()), ("partition", pa.string()), ("offset", pa.int64())])
        duplicates = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
        moment = newest.isoformat() if newest else None
        return NextEpoch(
            self.next_number, start, end, _trim(start) if trimmed else None, duplicates, valid, counts, moment
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
        )
        data = chain_of.epoch_file(self.domain, epoch, partials, _keys_table(following.valid))
        if chain_of.append(self.fs, self.chain, following.number, data, write):
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
        for number in chain_of.epoch_numbers(self.fs, self.domain.name, self.chain.number):
            if number == self.next_number:
                try:
                    epoch, table = chain_of.read_epoch(self.fs, self.domain.name, self.chain.number, number)
                except (FileNotFoundError, Damaged) as error:
                    raise NewChain(f"chain {self.chain.number} has lost epoch {number}: {error}") from error
                if not chain_of.continues(self.end, epoch.start):
                    raise NewChain(
                        f"chain {self.chain.number} epoch {number} does not start where the one before it ends"
                    )
                self.epochs.append(epoch)
                self._remember(table)

    def _remembered_keys(self) -> KeyWindow:
        """Rebuild the memory: typed log below the first epoch, then the epochs' own keys."""
        self.keys = KeyWindow({stream.topic: stream.duplicate_window for stream in self.domain.streams})
        begin = self.epochs[0].start if self.epochs else self.chain.start
        for stream in self.domain.streams:
            typed = LogReader(self.fs, typed_root(stream)).partitions([stream.topic])[stream.topic]
            for lg, by in begin.get(stream.topic, {}).items():
                for p, offset in by.items():
                    self._remember_typed(stream.topic, lg, p, offset, stream.duplicate_window, typed.get(lg, {}).get(p))
        for epoch in self.epochs:
            self._remember(chain_of.read_epoch(self.fs, self.domain.name, self.chain.number, epoch.number)[1])
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
        for segment in typed.segments_between(offset - window, offset):
            try:
                rows = self.fs.open_parquet(segment.path)
                if rows.metadata.num_rows == 0:
                    continue
                table = rows.read(columns=["offset", "ukey", "problem"])
            except FileNotFoundError:
                raise StartAgain(f"{segment.path} was merged into a larger segment meanwhile") from None
            keep = pc.and_(pc.less(table["offset"], offset), pc.is_in(table["problem"], pa.array([None, "duplicate"])))
            kept = table.filter(keep)
            self.keys.remember((topic, lg, p), zip(kept["offset"].to_pylist(), kept["ukey"].to_pylist(), strict=True))

    def _remember(self, epoch: pa.Table) -> None:
        for place, rows in _by_partition(chain_of.rows_of(epoch, KEYS)).items():
            self.keys.remember(place, zip(rows["offset"].to_pylist(), rows["ukey"].to_pylist(), strict=True))

    def _check_kafka(self, ranges: dict[str, dict[int, tuple[int, int]]], newest: Manifest) -> None:
        for topic, lg in self.logs.items():
            for p, (kafka_start, kafka_end) in ranges[topic].items():
                at = offset_in(self.end, topic, lg, str(p), kafka_start)
                if at < kafka_start:
                    raise DataExpired(
                        f"DATA_EXPIRED topic '{topic}' partition {p}: Kafka starts at offset {kafka_start}, version {newest.version} and its epochs end at {at}; "
                        f"{kafka_start - at} offsets only in the master dataset; run batch_layer.py --domain {self.domain.name}"
                    )
                if at > kafka_end:
                    raise LogReplaced(
                        f"LOG_REPLACED topic '{topic}' partition {p}: the chain ends at {at}, Kafka at {kafka_end}; if the broker lost its disk: "
                        f"ingest_layer.py --domain {self.domain.name} --new-log {topic}"
                    )


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


def _beyond_closed_logs(chain: Chain, epochs: list[Epoch], logs: dict[str, str], raw: log.Partitions) -> bool:
    """True if the chain counted rows of a log that was closed before they reached the master dataset: they are in no log."""
    end = epochs[-1].end if epochs else chain.start
    return any(
        lg != logs[topic] and offset > (raw[topic][lg][p].head if p in raw[topic].get(lg, {}) else 0)
        for topic, by_log in end.items()
        for lg, partitions in by_log.items()
        for p, offset in partitions.items()
    )


def _origins(logs: dict[str, str], ranges: dict[str, dict[int, tuple[int, int]]], raw: log.Partitions) -> Position:
    """Return where each partition of the present logs began: its first segment, or Kafka's log start before there is one."""
    origins: Position = {}
    for topic, lg in logs.items():
        for p, (kafka_start, _) in ranges[topic].items():
            mirrored = raw[topic].get(lg, {}).get(str(p))
            origins.setdefault(topic, {}).setdefault(lg, {})[str(p)] = mirrored.origin if mirrored else kafka_start
    return origins


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


def _check_contiguous(place: Place, offsets: list[int], wanted: int) -> None:
    if offsets[0] != wanted or offsets[-1] - offsets[0] + 1 != len(offsets):
        missing = next(
            (o for o, found in zip(range(wanted, offsets[-1] + 1), offsets, strict=False) if o != found), wanted
        )
        raise OffsetGap(
            f"OFFSET_GAP topic '{place[0]}' partition {place[2]}: the chain ends at {wanted}; first missing offset {missing}"
        )


def _trim(start: Position) -> str:
    cases = " ".join(
        f"WHEN '{topic}/{lg}/{p}' THEN `offset` >= {offset}"
        for topic, logs in start.items()
        for lg, by in logs.items()
        for p, offset in by.items()
    )
    return f"CASE concat(topic, '/', log, '/', `partition`) {cases} ELSE true END"


def _keys_table(valid: dict[Place, list[tuple[int, str]]]) -> pa.Table:
    rows = [(*place, key, offset) for place, keyed in valid.items() for offset, key in keyed]
    columns = list(zip(*rows, strict=True)) or [() for _ in KEYS_TYPE]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, KEYS_TYPE, strict=True)],
        schema=pa.schema(list(KEYS_TYPE)),
    )
