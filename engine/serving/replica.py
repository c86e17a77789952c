"""What is served by a replica that reads the serving store? The snapshot that the pointer names, or the last good one.

The same `Snapshot` as `engine.serving.snapshot.Loader` makes, from rows that a materialiser put there; the sides are
merged on read, as ever. Pointer first, then what it names, each of which never changes; only what is new is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import duckdb
import pyarrow as pa
import structlog

from engine.domain import Domain
from engine.serving import store as stores
from engine.serving.epochs import Blocks, stored, view_rows
from engine.serving.snapshot import Snapshot, fallen, nothing
from engine.serving.store import MANIFEST, Pointer, Run, Store, Torn
from engine.storage import versions
from engine.storage.chains import Epoch, continues, parsed_epoch, speaks_of
from engine.storage.log import covers
from engine.storage.versions import Manifest

_log = structlog.get_logger("engine.serving.replica")


@dataclass
class Replica:
    """Reads what to serve for one domain from the store; used by one thread.

    Args:
        target: the manifest that the pointer names, of whatever definition.
    """

    store: Store
    domain: Domain
    database: duckdb.DuckDBPyConnection
    current: Snapshot | None = None
    target: Manifest | None = None
    _pointer: Pointer | None = None
    _run: Run | None = None
    _epochs: dict[int, Epoch] = field(default_factory=dict)
    _refused: str = ""

    def __post_init__(self) -> None:
        self._blocks = Blocks(self.domain, self.database)

    @property
    def pinned(self) -> int | None:
        """The version that a rollback fixed, None where the newest of its line is served."""
        return self._pointer.version if self._pointer and self._pointer.pinned else None

    def poll(self) -> Snapshot | None:
        """Return what to serve now; None before the first.

        Raises:
            Torn: what the pointer names is not there; `current` stays.
            What the store raises when it does not answer; `current` stays.
        """
        pointer = stores.pointer_of(self.store, self.domain.name)
        if pointer is None or (self._pointer and pointer.name == self._pointer.name):
            return self.current
        manifest = self._manifest(pointer)
        if pointer.definition_hash == self.domain.definition_hash:
            if not self._allowed(pointer):
                if self._refused != pointer.name:
                    _log.warning("refused", domain=self.domain.name, reason=f"pointer {pointer.serial} would go back")
                self._refused = pointer.name
                return self.current
            self.current = self._snapshot(pointer, manifest)
        self.target, self._pointer = manifest, pointer
        return self.current

    def read(self, pointer: Pointer) -> Snapshot:
        """Return the snapshot of a pointer of this definition. Raises Torn."""
        return self._snapshot(pointer, self._manifest(pointer))

    def _allowed(self, pointer: Pointer) -> bool:
        """True if coverage does not go back, or an operator chose so."""
        if self.current is None or self._pointer is None:
            return True
        if pointer.choice > self._pointer.choice:
            return True
        now, chain = self.current, pointer.chain
        least = fallen(now.coverage, now.chain, [chain], self.domain.topics)
        if chain is not None and (now.chain is None or chain.number > now.chain.number):
            # How far a closed log must be covered the writer knows, who sees its segments.
            least = {t: {lg: by for lg, by in logs.items() if speaks_of(chain, t, lg)} for t, logs in least.items()}
        return covers(pointer.coverage, least)

    def _snapshot(self, pointer: Pointer, manifest: Manifest) -> Snapshot:
        now, before = self.current, self._pointer
        if now and before and before.rows == pointer.rows:
            batch, reports = now.batch, now.reports
        else:
            batch, reports = self._version(pointer, manifest)
            _log.info("snapshot", domain=self.domain.name, version=manifest.version, serial=pointer.serial)
        speed = self._speed(pointer)
        return snapshot_of(pointer, self.domain, manifest, batch, speed, reports)

    def _manifest(self, pointer: Pointer) -> Manifest:
        if self._pointer and self.target and pointer.rows == self._pointer.rows:
            return self.target
        return manifest_of(self.store, pointer)

    def _version(self, pointer: Pointer, manifest: Manifest) -> tuple[dict[str, pa.Table], dict[str, pa.Table]]:
        """Return the views and the reports of a version. Raises Torn."""
        tables = {part: self._table(pointer, part) for part in pointer.rows.parts if part != MANIFEST}
        batch = nothing(self.domain)
        for view in self.domain.views if manifest.version else ():
            batch[view.name] = stored(tables[f"view {view.name}"], view)
            if batch[view.name].num_rows != manifest.views[view.name]["rows"]:
                raise Torn(f"view {view.name}: {batch[view.name].num_rows} rows, its manifest says otherwise")
        reports = {part.partition(" ")[2]: table for part, table in tables.items() if part.startswith("report ")}
        return batch, reports

    def _table(self, pointer: Pointer, part: str) -> pa.Table:
        rows = pointer.rows
        return stores.unpacked(stores.read_piece(self.store, pointer.domain, rows.edition, part, rows.parts[part]))

    def _speed(self, pointer: Pointer) -> dict[str, pa.Table]:
        """Return view → stored rows of the pointer's epochs. Raises Torn where they are not those that it counted."""
        run, chain = pointer.run, pointer.chain
        if run is None or chain is None:
            return nothing(self.domain)
        if self._run is None or self._run.edition != run.edition:
            self._forget_all()
        for number, data in stores.read_epochs(self.store, pointer.domain, run, self._run):
            epoch, table = parsed_epoch(data, f"{pointer.domain} edition {run.edition}: epoch {number}")
            if epoch.definition_hash != self.domain.definition_hash or epoch.number != number:
                raise Torn(f"epoch {number} says it is epoch {epoch.number} of definition {epoch.definition_hash}")
            self._epochs[number], self._blocks.tables[chain.number, number] = epoch, view_rows(self.domain, table)
        epochs = [self._epochs[number] for number in range(run.first, run.last + 1)]
        _check(epochs, pointer)
        speed = self._blocks.rows(chain.number, run.first, run.last + 1)
        self._run = run
        self._epochs = {epoch.number: epoch for epoch in epochs}
        self._blocks.forget(chain.number, run.first)
        return speed

    def _forget_all(self) -> None:
        self._run, self._epochs, self._blocks = None, {}, Blocks(self.domain, self.database)


def reopened(store: Any, domain: Domain, database: duckdb.DuckDBPyConnection, name: str) -> Snapshot | None:
    """Return a snapshot by its name, read anew; None if no pointer bears that name any more, or of another definition.

    Raises:
        Torn: its rows are not there.
        What the store raises when it does not answer.
    """
    left = store.named(domain.name, name)
    pointer = Pointer.from_json(left) if left else stores.pointer_of(store, domain.name)
    if pointer is None or pointer.name != name or pointer.definition_hash != domain.definition_hash:
        return None
    return Replica(store, domain, database).read(pointer)


def _check(epochs: Iterable[Epoch], pointer: Pointer) -> None:
    found = list(epochs)
    for before, after in pairwise(found):
        if not continues(before.end, after.start):
            raise Torn(f"epoch {after.number} does not start where the one before it ends")
    if sum(epoch.events for epoch in found) != pointer.events_speed:
        raise Torn(f"the epochs hold other events than the {pointer.events_speed} that pointer {pointer.serial} counts")


def manifest_of(store: Store, pointer: Pointer) -> Manifest:
    """Return the manifest that a pointer names. Raises Torn."""
    piece = pointer.rows.parts[MANIFEST]
    return versions.parsed(stores.read_piece(store, pointer.domain, pointer.rows.edition, MANIFEST, piece), MANIFEST)


def snapshot_of(pointer: Pointer, domain: Domain, manifest: Manifest, batch: Any, speed: Any, reports: Any) -> Snapshot:
    """Return the snapshot that a pointer names, with these rows."""
    run = pointer.run
    return Snapshot(
        name=pointer.name,
        domain=domain,
        manifest=manifest,
        chain=pointer.chain,
        first=run.first if run else None,
        last=run.last if run else None,
        batch=batch,
        speed=speed,
        reports=reports,
        coverage=pointer.coverage,
        events_speed=pointer.events_speed,
        counts=pointer.counts,
        event_time_max=pointer.event_time_max,
        created_at=pointer.created_at,
    )
