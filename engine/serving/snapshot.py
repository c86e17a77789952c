"""What is served right now? One immutable pair of batch version and epochs, swapped whole, never going back.

`Loader.poll()` looks at HDFS and returns the snapshot to serve from now on. A pair is a version and a chain that it
fits, both of the loader's definition; its coverage is the version's horizon overlaid by the end of the last epoch
that continues without a hole. Only what is new is read: versions, epochs and merged blocks of epochs are remembered.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from engine.domain import Domain, View
from engine.fold.measures import stored_schema
from engine.serving.epochs import Epochs, stored
from engine.storage import chains, versions
from engine.storage.chains import HOLE, Chain, Epoch
from engine.storage.derived import Damaged
from engine.storage.hdfs import Entry
from engine.storage.log import LogReader, Position, covers, each, offset_in
from engine.storage.versions import Choice, Manifest, restricted

NO_FIT_SECONDS = 60.0
# A version whose files do not say what its manifest says is looked at again after this time.
REFUSED_SECONDS = 30.0

_serials = itertools.count(1)

_log = structlog.get_logger("engine.serving.snapshot")


@dataclass(frozen=True)
class Snapshot:
    """What one answer is made of.

    Args:
        name: unique in this process.
        chain, first, last: the chain and the numbers of the epochs in `speed`; None where there are none.
        batch, speed: view → rows with the stored columns (`stored_schema`); `speed` may hold a key more than once.
        reports: report → rows, of the version that the manifest names.
        coverage: every event below it is in, none above.
        counts: {topic: {log: {partition: {"good": n, problem: n}}}} of the epochs.
        created_at: ISO-8601 UTC of the newest piece.
    """

    name: str
    domain: Domain
    manifest: Manifest
    chain: Chain | None
    first: int | None
    last: int | None
    batch: Mapping[str, pa.Table]
    speed: Mapping[str, pa.Table]
    reports: Mapping[str, pa.Table]
    coverage: Position
    events_speed: int
    counts: Mapping[str, Any]
    event_time_max: str | None
    created_at: str

    @property
    def as_of(self) -> dict[str, Any]:
        """What every answer says about where it stands."""
        return {
            "version": self.manifest.version,
            "horizon": self.manifest.horizon,
            "coverage": self.coverage,
            "event_time_max": self.event_time_max,
        }

    @property
    def quarantined(self) -> dict[str, int]:
        """Rows with a problem below coverage, by problem."""
        total: dict[str, int] = {}
        for counts in (self.manifest.counts, self.counts):
            for problems in (p for logs in counts.values() for parts in logs.values() for p in parts.values()):
                for problem, number in problems.items():
                    if problem not in ("good", HOLE):
                        total[problem] = total.get(problem, 0) + number
        return dict(sorted(total.items()))


@dataclass(frozen=True)
class Pair:
    """A version and the epochs after its horizon, before anything big is read; `coverage` as in Snapshot."""

    manifest: Manifest
    chain: Chain | None
    epochs: tuple[Epoch, ...]
    coverage: Position

    @property
    def chain_number(self) -> int:
        return self.chain.number if self.chain else 0

    @property
    def reach(self) -> int:
        """Sum of the offsets of the coverage."""
        return sum(offset for logs in self.coverage.values() for parts in logs.values() for offset in parts.values())


# Topic → its id and, by partition, the end of Kafka's log.
KafkaEnds = Mapping[str, tuple[str, Mapping[int, int]]]


@dataclass
class Loader:
    """Finds and reads what to serve for one domain; used by one thread."""

    fs: Any
    domain: Domain
    database: duckdb.DuckDBPyConnection
    clock: Callable[[], float] = time.monotonic
    current: Snapshot | None = None
    relist_seconds: float = 5.0
    # By the folder as it was listed, by `Manifest.identity`, by the file as it was listed: a number may be deleted and
    # given anew.
    _manifests: dict[Entry, Manifest] = field(default_factory=dict)
    _versions: dict[tuple[int, str], tuple[dict[str, pa.Table], dict[str, pa.Table]]] = field(default_factory=dict)
    _refused: dict[Entry, float] = field(default_factory=dict)
    target: Manifest | None = None
    _choice: tuple[dict[int, Entry], Choice | None] = field(default_factory=lambda: ({}, None))
    _pinned: int | None = None
    _unfit_since: float | None = None
    _said: set[str] = field(default_factory=set)
    _kafka: tuple[Snapshot | None, KafkaEnds] = field(default_factory=lambda: (None, {}))

    def __post_init__(self) -> None:
        self._reader = Epochs(self.fs, self.domain, self.database, self.clock, self.relist_seconds)

    def note(self, shown: Snapshot | None, ends: KafkaEnds) -> None:
        """Take where Kafka's logs ended at a moment when `shown` was served already."""
        self._kafka = shown, ends

    def poll(self) -> Snapshot | None:
        """Return what to serve now; the last good snapshot where nothing better can be read, None before the first.

        Raises:
            Whatever the file system raises when it does not answer; `current` stays.
        """
        pinned = self.pinned
        manifests = self._usable()
        while not self._move(self._ranked(self._pairs(manifests, pinned), pinned)):
            manifests = self._usable()
        if self.current is not None and pinned in (None, self.current.manifest.version):
            self._pinned = pinned
        self._watch_fit(manifests[0].version if manifests else 0)
        return self.current

    @property
    def pinned(self) -> int | None:
        """The version that a rollback fixed, None where the newest of its line is served."""
        files = versions.choices(self.fs, self.domain.name)
        if files != self._choice[0]:
            self._choice = files, versions.choice(self.fs, self.domain.name)
        chosen = self._choice[1]
        return chosen.version if chosen and not chosen.follow else None

    def _move(self, ranked: list[Pair]) -> bool:
        """Move to the best pair; False if its version turned out to be damaged and has been set aside."""
        if not ranked or self._is_current(ranked[0]):
            return True
        try:
            self.current = self._snapshot(ranked[0])
        except (ValueError, KeyError, FileNotFoundError) as error:
            refused = ranked[0].manifest
            self._say("refused", f"version {refused.version}: {error}")
            if refused.version == 0:
                raise
            self._refused |= {e: self.clock() for e, m in self._manifests.items() if m.identity == refused.identity}
            return False
        self._forget(ranked[0])
        return True

    def _pairs(self, manifests: list[Manifest], pinned: int | None) -> list[Pair]:
        """For each chain the newest version that fits it, and the newest version alone."""
        # The stream continues its newest chain only, so an older one than ours, if that is there, matters for a
        # rollback alone.
        rolling_back = pinned is not None and pinned != self._pinned
        known, ours = chains.chains(self.fs, self.domain.name), self.current.chain if self.current else None
        oldest = ours.number if ours in known and ours and not rolling_back else -1
        horizons = {m.identity: restricted(m.horizon, self.domain.topics) for m in manifests}
        pairs = [Pair(manifests[0], None, (), horizons[manifests[0].identity])] if manifests else []
        for chain in known:
            if chain.definition_hash != self.domain.definition_hash or chain.number < oldest:
                continue
            zero = versions.version_zero(self.domain.name, chain.definition_hash, chain.start)
            for manifest in (*manifests, *([zero] if chain.version == 0 and self._choice[1] is None else [])):
                epochs = self._reader.after(chain, manifest)
                if epochs is not None:
                    # Where the horizon is silent: the origin.
                    begun = overlaid(chain.start, horizons.get(manifest.identity, {}))
                    pairs.append(Pair(manifest, chain, epochs, overlaid(begun, epochs[-1].end if epochs else {})))
                    break
        return pairs

    def _usable(self) -> list[Manifest]:
        """Manifests of this definition that may be served, newest first.

        `target` becomes the newest of any definition.
        """
        found = []
        folders = versions.folders(self.fs, self.domain.name)
        self._manifests = {entry: m for entry, m in self._manifests.items() if folders.get(m.version) == entry}
        self._refused = {entry: at for entry, at in self._refused.items() if entry in folders.values()}
        for number, entry in folders.items():
            refused = self._refused.get(entry)
            if refused is not None and self.clock() - refused < REFUSED_SECONDS:
                continue
            try:
                if entry not in self._manifests:
                    self._manifests[entry] = versions.manifest(self.fs, self.domain.name, number)
            except FileNotFoundError:
                continue  # being pruned
            except Damaged as damage:
                self._say("refused", str(damage))
                continue
            found.append(self._manifests[entry])
        try:
            served = versions.allowed(found, self._choice[1])
        except versions.VersionUnknown as error:
            self._say("refused", str(error))
            return []
        self.target = served[0] if served else None
        return [m for m in served if m.definition_hash == self.domain.definition_hash]

    def _ranked(self, pairs: list[Pair], pinned: int | None) -> list[Pair]:
        """The pairs that may be served, best first."""
        chains_there = [pair.chain for pair in pairs]
        # What counts rows that are in no log is no answer any more, however far it reaches.
        topics = self.domain.topics
        pairs = [
            p
            for p in pairs
            if covers(fallen(p.coverage, p.chain, chains_there, topics), restricted(p.coverage, topics))
        ]
        # Of two chains the newer one goes on.
        ahead = sorted(pairs, key=lambda pair: (pair.manifest.version, pair.chain_number, pair.reach), reverse=True)
        if self.current is None:
            return sorted(pairs, key=lambda pair: (pair.reach, pair.manifest.version, pair.chain_number), reverse=True)
        coverage = needed(self.fs, self.current.coverage, self.current.chain, chains_there, topics)
        shown, ends = self._kafka
        if shown is self.current and self.current.chain not in chains_there:
            coverage = within_kafka(coverage, self.current.chain, chains_there, ends)
        allowed = [pair for pair in ahead if covers(pair.coverage, coverage)]
        if not allowed and pinned is not None and pinned != self._pinned and pinned < self.current.manifest.version:
            _log.warning("rollback", domain=self.domain.name, version=pinned, instead_of=self.current.manifest.version)
            return sorted(pairs, key=lambda pair: pair.reach, reverse=True)
        return allowed

    @property
    def choice_number(self) -> int:
        """Number of the newest choice of an operator that was read, 0 if there never was one."""
        return self._choice[1].number if self._choice[1] else 0

    def epoch(self, number: int) -> tuple[Epoch, dict[str, pa.Table]]:
        """Return an epoch of the current snapshot as it was read: its footer, and view → stored rows."""
        assert self.current is not None and self.current.chain is not None
        return self._reader.kept(self.current.chain, number)

    def _is_current(self, pair: Pair) -> bool:
        now = self.current
        return (
            now is not None
            and (now.manifest.identity, now.chain) == (pair.manifest.identity, pair.chain)
            and (now.first is None if not pair.epochs else _ends_with(now, pair.epochs[-1]))
        )

    def _snapshot(self, pair: Pair) -> Snapshot:
        manifest, epochs = pair.manifest, pair.epochs
        batch, reports = self._version(manifest)
        newest = [text for text in (manifest.event_time_max, *(e.event_time_max for e in epochs)) if text]
        now, fresh = self.current, list(epochs)
        if (
            now
            and epochs
            and (now.manifest.identity, now.chain, now.first) == (manifest.identity, pair.chain, epochs[0].number)
            and any(_ends_with(now, epoch) for epoch in epochs)
        ):
            fresh = [epoch for epoch in epochs if epoch.number > (now.last or 0)]
        grown = [now.counts] if now and len(fresh) < len(epochs) else []
        snapshot = Snapshot(
            name=f"{self.domain.name}-{next(_serials)}",
            domain=self.domain,
            manifest=manifest,
            chain=pair.chain,
            first=epochs[0].number if epochs else None,
            last=epochs[-1].number if epochs else None,
            batch=batch,
            speed=self._reader.rows(pair.chain, epochs) if pair.chain else nothing(self.domain),
            reports=reports,
            coverage=pair.coverage,
            events_speed=sum(epoch.events for epoch in epochs),
            counts=summed([*grown, *(epoch.counts for epoch in fresh)]),
            event_time_max=max(newest, default=None),
            created_at=epochs[-1].created_at
            if epochs
            else manifest.created_at or (pair.chain.created_at if pair.chain else ""),
        )
        if now is None or (now.manifest.identity, now.chain) != (manifest.identity, pair.chain):
            number = pair.chain.number if pair.chain else None
            _log.info("snapshot", domain=self.domain.name, version=manifest.version, chain=number, epochs=len(epochs))
        return snapshot

    def _version(self, manifest: Manifest) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
        if manifest.version == 0:
            return nothing(self.domain), {}
        if manifest.identity not in self._versions:
            views = {view.name: self._batch_rows(manifest, view) for view in self.domain.views}
            self._versions[manifest.identity] = views, self._reports(manifest)
        return self._versions[manifest.identity]

    def _batch_rows(self, manifest: Manifest, view: View) -> pa.Table:
        said = manifest.views[view.name]
        table = self._files(f"{versions.folder(manifest.domain, manifest.version)}/{view.name}", said["files"])
        rows = stored(table, view) if table is not None else stored_schema(view).empty_table()
        if rows.num_rows != said["rows"]:
            raise ValueError(f"view {view.name}: {rows.num_rows} rows in its files, the manifest says {said['rows']}")
        return rows.combine_chunks()

    def _reports(self, manifest: Manifest) -> dict[str, pa.Table]:
        tables = {}
        for name, said in manifest.reports.items():
            try:
                folder = f"{versions.folder(manifest.domain, int(said.get('version') or 0))}/{name}"
                table = self._files(folder, said.get("files", []))
                if table is not None:
                    tables[name] = _without_zone(table).combine_chunks()
            except (ValueError, FileNotFoundError) as error:
                self._say("refused", f"report {name}: {error}")
        return tables

    def _files(self, folder: str, names: list[str]) -> pa.Table | None:
        tables = []
        for name in names:
            data = self.fs.read(f"{folder}/{name}")
            try:
                tables.append(pq.read_table(pa.BufferReader(data)))
            except (pa.ArrowInvalid, OSError) as error:  # the bytes are here: OSError is said of their contents
                raise Damaged(f"{folder}/{name}", error) from error
        return pa.concat_tables(tables) if tables else None

    def _forget(self, pair: Pair) -> None:
        if pair.chain is not None and pair.epochs:
            self._reader.forget(pair.chain, pair.epochs[0].number)
        for identity in [i for i in self._versions if i != pair.manifest.identity]:
            del self._versions[identity]

    def _watch_fit(self, newest: int) -> None:
        if self.current is None or newest <= self.current.manifest.version:
            self._unfit_since = None
            return
        self._unfit_since = self._unfit_since or self.clock()
        if self.clock() - self._unfit_since > NO_FIT_SECONDS:
            self._say(
                "no fit", f"version {newest} is committed but fits no chain that has caught up; is the stream running?"
            )

    def _say(self, what: str, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _log.warning(what, domain=self.domain.name, reason=text)


def fallen(coverage: Position, chain: Chain | None, later: Sequence[Chain | None], topics: Sequence[str]) -> Position:
    """Return how far an answer about these topics must reach at least to follow one with this coverage and chain.

    That is as far, except where a later chain says that rows which were counted are in no log: a topic was made anew,
    or Kafka lost the end of a log, before ingest had them.
    """
    coverage = restricted(coverage, topics)
    for following in later:
        for through, position in following.lost if following and chain else ():
            if chain is None or chain.number > through:
                continue
            lowest: Position = {}
            for topic, lg, p, offset in each(position):
                if offset_in(coverage, topic, lg, p, -1) > offset:
                    lowest.setdefault(topic, {}).setdefault(lg, {})[p] = offset
            coverage = overlaid(coverage, lowest)
    return coverage


def _ends_with(snapshot: Snapshot, epoch: Epoch) -> bool:
    """True if an epoch, and no other of its number, is the last one of a snapshot."""
    return (snapshot.last, snapshot.created_at) == (epoch.number, epoch.created_at)


def needed(
    fs: Any, coverage: Position, chain: Chain | None, later: Sequence[Chain | None], topics: Sequence[str]
) -> Position:
    """Like `fallen`, and of a log that the newest chain does not continue no more than the master dataset has of it.

    Such a log is closed. Whoever knew what was lost of it may be deleted by now; the segments are not.
    """
    coverage = fallen(coverage, chain, later, topics)
    newest = max((c for c in later if c is not None), key=lambda c: c.number, default=None)
    if newest is None or (chain is not None and newest.number <= chain.number):
        return coverage
    closed = [(t, lg, p, o) for t, lg, p, o in each(coverage) if not chains.speaks_of(newest, t, lg)]
    raw = LogReader(fs).partitions({topic for topic, *_ in closed})
    capped: Position = {}
    for topic, lg, p, offset in closed:
        stored = raw[topic].get(lg, {}).get(p)
        capped.setdefault(topic, {}).setdefault(lg, {})[p] = min(offset, stored.head if stored else 0)
    return overlaid(coverage, capped)


def within_kafka(coverage: Position, chain: Chain | None, later: Sequence[Chain | None], ends: KafkaEnds) -> Position:
    """Like `needed` where the chain that counted is gone, and with it whoever could say what Kafka has lost of it.

    Of a log that the newest chain continues no more is needed than Kafka has now.
    """
    newest = max((c for c in later if c is not None), key=lambda c: c.number, default=None)
    if newest is None or chain is None or newest.number <= chain.number:
        return coverage
    capped: Position = {}
    for topic, lg, p, offset in each(coverage):
        topic_id, ended = ends.get(topic, ("", {}))
        if lg.partition(".")[0] == topic_id and chains.speaks_of(newest, topic, lg):
            capped.setdefault(topic, {}).setdefault(lg, {})[p] = min(offset, ended.get(int(p), offset))
    return overlaid(coverage, capped)


def nothing(domain: Domain) -> dict[str, pa.Table]:
    """Return view → no rows."""
    return {view.name: stored_schema(view).empty_table() for view in domain.views}


def beginning(domain: Domain) -> Snapshot:
    """Return what there is before any version and any epoch: nothing, covering nothing."""
    zero = versions.version_zero(domain.name, domain.definition_hash, {})
    empty = nothing(domain)
    return Snapshot(f"{domain.name}-0", domain, zero, None, None, None, empty, empty, {}, {}, 0, {}, None, "")


def overlaid(below: Position, above: Position) -> Position:
    """Return a position that says what `above` says, and what `below` says where `above` is silent."""
    topics = {**below, **above}
    return {
        topic: {
            log: {**below.get(topic, {}).get(log, {}), **above.get(topic, {}).get(log, {})}
            for log in {**below.get(topic, {}), **above.get(topic, {})}
        }
        for topic in topics
    }


def summed(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add counts of the shape {topic: {log: {partition: {name: n}}}}."""
    total: dict[str, Any] = {}
    for topic, log, partition, name, number in (
        (t, lg, p, name, number)
        for one in counts
        for t, logs in one.items()
        for lg, parts in logs.items()
        for p, names in parts.items()
        for name, number in names.items()
    ):
        names = total.setdefault(topic, {}).setdefault(log, {}).setdefault(partition, {})
        names[name] = names.get(name, 0) + number
    return total


def _without_zone(table: pa.Table) -> pa.Table:
    """Spark's files hold times in UTC with a zone; everything here holds them without."""
    fields = [f.with_type(pa.timestamp("us")) if pa.types.is_timestamp(f.type) else f for f in table.schema]
    return table.cast(pa.schema(fields))
