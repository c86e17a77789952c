"""Puts what is served into a store: follows HDFS as serving does, writes rows, and moves the pointer last."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
import structlog

from engine.domain import Domain
from engine.serving import store as stores
from engine.serving.replica import manifest_of, snapshot_of
from engine.serving.snapshot import Loader, Snapshot, needed, nothing
from engine.serving.store import MANIFEST, NO_DIGEST, Place, Pointer, Run, Torn, Version
from engine.storage import chains
from engine.storage.chains import Epoch, continues
from engine.storage.log import LogReader, covers
from engine.storage.versions import VersionUnknown, definition_followed, definition_of

# Readers may still be busy with what the pointer named so long ago; a cursor holds its snapshot for 5 minutes.
GRACE_SECONDS = 900.0
PRUNE_SECONDS = 60.0
# After another writer was first: it is at work, so we stand by.
STAND_BY_SECONDS = 5.0

_log = structlog.get_logger("engine.serving.materialise")


class OtherCluster(RuntimeError):
    """The store holds answers of logs that this HDFS does not have."""


EpochRows = Callable[[int], tuple[Epoch, dict[str, pa.Table]]]


@dataclass
class Writer:
    """Writes snapshots of one domain and moves its pointer; `pointer` is what it last saw of it."""

    store: Any
    domain_name: str
    clock: Callable[[], float] = time.monotonic
    pointer: Pointer | None = None
    _registered: set[Place] = field(default_factory=set)
    _seen_expired: dict[Place, float] = field(default_factory=dict)

    def look(self) -> Pointer | None:
        """Learn where the pointer stands, for certain."""
        self.pointer = stores.pointer_of(self.store, self.domain_name, settled=True)
        return self.pointer

    def allowed(self, fs: Any, snapshot: Snapshot, choice: int, pinned: bool) -> bool:
        """True if coverage does not go back, or an operator chose so since the pointer moved."""
        before = self.pointer
        if before is None or (pinned and choice > before.choice):
            return True
        least = needed(fs, before.coverage, before.chain, [snapshot.chain], snapshot.domain.topics)
        return covers(snapshot.coverage, least)

    def publish(self, snapshot: Snapshot, epoch: EpochRows, choice: int, pinned: bool) -> bool:
        """Write what the store lacks of a snapshot, then move the pointer to it; False if another writer was first.

        Args:
            epoch: number → the epoch's footer, and view → stored rows.
            choice: number of the operator's choice that the snapshot obeys; `pinned` if that fixed its version.
        """
        before = self.pointer
        serial = before.serial + 1 if before else 1
        edition = f"{serial:012d}-{uuid.uuid4().hex[:12]}"
        pointer = Pointer(
            serial=serial,
            name=f"{self.domain_name}-{edition}",
            domain=self.domain_name,
            version=snapshot.manifest.version,
            definition_hash=snapshot.domain.definition_hash,
            pinned=pinned,
            choice=choice,
            rows=self._version(snapshot, f"{edition}v"),
            chain=snapshot.chain,
            run=self._run(snapshot, epoch, f"{edition}e"),
            coverage=snapshot.coverage,
            events_speed=snapshot.events_speed,
            counts=snapshot.counts,
            event_time_max=snapshot.event_time_max,
            created_at=snapshot.created_at,
        )
        if before is not None:
            self.store.name(self.domain_name, before.name, before.to_json())
        if not self.store.advance(self.domain_name, serial, pointer.to_json()):
            return False
        self.pointer = pointer
        return True

    def prune(self) -> int:
        """Delete places that no pointer has shown, or will show, for the grace period; returns how many."""
        if self.look() is None or self.pointer is None:
            return 0
        now, expired = self.clock(), stores.expired(self.store.places(self.domain_name), self.pointer)
        self._seen_expired = {place: self._seen_expired.get(place, now) for place in expired}
        gone = [place for place, since in self._seen_expired.items() if now - since >= GRACE_SECONDS]
        for place in gone:
            self.store.drop(place)
            del self._seen_expired[place]
        self._registered -= set(gone)
        return len(gone)

    def _version(self, snapshot: Snapshot, edition: str) -> Version:
        """Return where the version's rows lie: where the pointer says, if it is of this very manifest."""
        manifest = snapshot.manifest.to_json()
        before = self.pointer
        if before and before.rows.parts[MANIFEST] == stores.piece_of(manifest):
            return before.rows
        parts = {MANIFEST: manifest}
        if snapshot.manifest.version:
            parts |= {f"view {name}": stores.packed(rows) for name, rows in snapshot.batch.items()}
            parts |= {f"report {name}": stores.packed(rows) for name, rows in snapshot.reports.items()}
        for part, data in parts.items():
            for place, cells in stores.piece_cells(self.domain_name, edition, part, data):
                self._register(place)
                self.store.write(place, cells)
        return Version(edition, {part: stores.piece_of(data) for part, data in parts.items()})

    def _run(self, snapshot: Snapshot, epoch: EpochRows, edition: str) -> Run | None:
        """Append the epochs that the pointer's run lacks.

        Where they do not continue it, all of them go to a new edition.
        """
        if snapshot.chain is None or snapshot.first is None or snapshot.last is None:
            return None
        first, digest, end = snapshot.first, NO_DIGEST, snapshot.chain.start
        if (old := self._continued(snapshot, epoch)) is not None:
            edition, first, digest, end = old.edition, old.last + 1, old.digest, old.end
        for number in range(first, snapshot.last + 1):
            footer, rows = epoch(number)
            data = chains.epoch_file(snapshot.domain, footer, rows, _no_keys())
            cells = stores.epoch_cells(number, digest, data)
            place = stores.epoch_place(self.domain_name, edition, number)
            self._register(place)
            self.store.write(place, cells)
            digest, end = cells[0].digest, footer.end
        return Run(edition, snapshot.first, snapshot.last, digest, end)

    def _continued(self, snapshot: Snapshot, epoch: EpochRows) -> Run | None:
        """Return the pointer's run if the snapshot's epochs are its later ones and what follows them."""
        before = self.pointer
        if before is None or before.run is None or before.chain != snapshot.chain:
            return None
        run, first, last = before.run, snapshot.first or 0, snapshot.last or 0
        if not run.first <= first <= run.last + 1 or last < run.last:
            return None
        # The number of the run's last epoch may have been given to another one since.
        joins = epoch(run.last)[0].end == run.end if first <= run.last else continues(run.end, epoch(first)[0].start)
        return run if joins else None

    def _register(self, place: Place) -> None:
        if place not in self._registered:
            self.store.register(place)
            self._registered.add(place)


@dataclass
class Materialiser:
    """Follows one domain on HDFS and publishes what serving would serve."""

    fs: Any
    domain: Domain
    writer: Writer
    database: duckdb.DuckDBPyConnection
    clock: Callable[[], float] = time.monotonic
    _coming: Loader | None = None
    _stand_by: float = 0.0
    _pruned: float = float("-inf")

    def __post_init__(self) -> None:
        try:
            self.domain = definition_followed(self.fs, self.domain)
        except VersionUnknown as error:  # the loader says nothing either, until an operator chooses another one
            _log.error("refused", domain=self.domain.name, reason=str(error))
        self.loader = Loader(self.fs, self.domain, self.database, self.clock)
        self._begin()

    def step(self) -> bool:
        """Look at HDFS and publish what is new; True if the pointer moved."""
        if self.clock() < self._stand_by:
            return False
        if self.clock() - self._pruned >= PRUNE_SECONDS:
            self._prune()
        self.loader.poll()
        self._follow_definition()
        snapshot = self.loader.current
        if snapshot is None or (self.writer.pointer and snapshot.name == self.writer.pointer.name):
            return False
        return self._publish(snapshot)

    def _publish(self, snapshot: Snapshot) -> bool:
        began = self.clock()
        version = snapshot.manifest.version
        pinned = self.loader.pinned
        before = self.writer.pointer
        choice = self.loader.choice_number if pinned in (None, version) else before.choice if before else 0
        if not self.writer.allowed(self.fs, snapshot, choice, pinned == version):
            return False
        if not self.writer.publish(snapshot, self.loader.epoch, choice, pinned == version):
            _log.warning("LOST_RACE", domain=self.domain.name, reason="another materialiser moved the pointer")
            self._begin()
            self._stand_by = self.clock() + STAND_BY_SECONDS
            return False
        assert self.writer.pointer is not None
        ms = round(1000 * (self.clock() - began))
        told = {"serial": self.writer.pointer.serial, "version": version, "last": snapshot.last, "ms": ms}
        _log.info("materialised", domain=self.domain.name, **told)
        # Under the pointer's name it is known as published.
        self.loader.current = dataclasses.replace(snapshot, name=self.writer.pointer.name)
        return True

    def _begin(self) -> None:
        """Go on from where the pointer stands: the loader moves only to what covers that."""
        pointer = self.writer.look()
        self.loader.current = None  # else rows that only a pointer stood for would be published after it is gone
        if pointer is None or pointer.definition_hash != self.domain.definition_hash:
            return
        try:
            manifest, empty = manifest_of(self.writer.store, pointer), nothing(self.domain)
        except Torn:
            if self.writer.look() == pointer:
                raise
            return self._begin()  # another writer moved it, and what it named was deleted, while we read
        self.loader.current = snapshot_of(pointer, self.domain, manifest, empty, empty, {})

    def _refuse_another_cluster(self, pointer: Pointer) -> None:
        """Logs on HDFS are never deleted.

        Where it has others than those that the pointer covers, nothing will ever cover that.
        """
        present = LogReader(self.fs).partitions(self.domain.topics)
        for topic, logs in pointer.coverage.items():
            covered = {name for name, offsets in logs.items() if any(offsets.values())}
            if covered and present.get(topic) and not covered & present[topic].keys():
                raise OtherCluster(
                    f"OTHER_CLUSTER domain {self.domain.name}: the store answers for log {min(covered)} of topic '{topic}', and HDFS has "
                    f"{min(present[topic])}; after a reset drop the keyspace (cqlsh -e 'DROP KEYSPACE …') or choose another CASSANDRA_KEYSPACE"
                )

    def _follow_definition(self) -> None:
        """Publish by the definition that the version to serve was built from, as soon as it may be published."""
        target = self.loader.target
        if target is None or not target.definition or target.definition_hash == self.loader.domain.definition_hash:
            self._coming = None
            return
        if self._coming is None or self._coming.domain.definition_hash != target.definition_hash:
            self._coming = Loader(self.fs, definition_of(target), self.database, self.clock)
        then, pinned = self._coming.poll(), self._coming.pinned
        if then is None:
            return
        if self.writer.allowed(self.fs, then, self._coming.choice_number, pinned == then.manifest.version):
            self.loader, self.domain, self._coming = self._coming, self._coming.domain, None

    def _prune(self) -> None:
        self._pruned = self.clock()
        before = self.writer.pointer
        if before is not None:
            self._refuse_another_cluster(before)
        if gone := self.writer.prune():
            _log.info("pruned", domain=self.domain.name, places=gone)
        if self.writer.pointer != before:  # another writer was at work
            self._begin()


def step_all(writers: Iterable[Materialiser]) -> bool:
    """One step of every domain, also of those after one that fails; True if a pointer moved.

    Raises the first failure.
    """
    moved, failed = False, None
    for writer in writers:
        try:
            moved = writer.step() or moved
        except Exception as error:  # the other domains go on
            failed = failed or error
    if failed:
        raise failed
    return moved


def _no_keys() -> pa.Table:
    """A replica remembers no unique keys: they are the stream's alone."""
    return pa.Table.from_pylist([], pa.schema(list(chains.KEYS_TYPE)))
