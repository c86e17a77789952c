"""How does a snapshot lie in the serving store? Editions of rows, written once, and a pointer that says what counts.

A *cell* is a piece of bytes of bounded size; cells that are read together share a *place*. An edition holds either the
rows of one batch version (`manifest`, each view, each report) or a run of epochs of one chain. Its name is new for ever
and begins with the serial of the only pointer that may show it first, so what no pointer shows any more, or never will,
can be told and deleted, and nothing that is written or deleted late can touch what is read.

The pointer of a domain is one row. It moves from serial n to n + 1 by a compare-and-set on n, after all that it names
was written. It names the SHA-256 of every piece of the version and of the last epoch; each epoch holds the SHA-256 of
the one before it. So a reader either finds what the writer meant, to the byte, or raises `Torn`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Protocol

import pyarrow as pa

from engine.storage.chains import Chain
from engine.storage.log import Position

CELL_BYTES = 512 * 1024
# Places stay below about 16 MiB, a size that Cassandra reads and compacts with ease.
CELLS_OF_A_PLACE = 32
EPOCHS_OF_A_PLACE = 64

MANIFEST = "manifest"
EPOCHS = "epochs"
# What the first epoch of an edition says of the one before it.
NO_DIGEST = "0" * 64


class Torn(ValueError):
    """What lies in the store is not what the pointer names; the message says which piece."""


@dataclass(frozen=True, order=True)
class Place:
    """Cells that lie together: a bucket of one part of an edition."""

    domain: str
    edition: str
    part: str
    bucket: int

    @property
    def born(self) -> int:
        """Serial of the only pointer that could show the edition first."""
        return int(self.edition.partition("-")[0])


@dataclass(frozen=True)
class Cell:
    """Bytes of an item (the number of an epoch, else 0) whose whole has the SHA-256 `digest`; cells count from 0."""

    item: int
    digest: str
    number: int
    data: bytes


class Store(Protocol):
    """The verbs that the protocol needs; each is one request, which may have happened although it seems to fail."""

    def pointer(self, domain: str, settled: bool = False) -> tuple[int, bytes] | None:
        """Return serial and body; `settled`: of a move under way it is decided first whether it happened."""

    def advance(self, domain: str, serial: int, body: bytes) -> bool:
        """Move the pointer to `serial` if it stands at `serial` − 1 (for 1: if there is none); False if it does not."""

    def register(self, place: Place) -> None:
        """Note that something lies, or will lie, at a place."""

    def places(self, domain: str) -> list[Place]:
        """Return the places that were registered."""

    def write(self, place: Place, cells: Sequence[Cell]) -> None:
        """Write cells; a cell that is there already is written once more."""

    def read(self, place: Place, item: int = 0) -> list[Cell]:
        """Return the cells of a place from an item on, ordered by item, digest and number."""

    def drop(self, place: Place) -> None:
        """Delete the cells of a place, then its registration."""


@dataclass(frozen=True)
class Piece:
    """A whole that was cut into cells: SHA-256 and bytes."""

    digest: str
    size: int


@dataclass(frozen=True)
class Version:
    """Where the rows of the batch version lie: an edition, and its parts."""

    edition: str
    parts: Mapping[str, Piece]


@dataclass(frozen=True)
class Run:
    """Where the epochs lie: an edition, first and last number, the SHA-256 of the last one and its end."""

    edition: str
    first: int
    last: int
    digest: str
    end: Position


@dataclass(frozen=True)
class Pointer:
    """What is served: names of what was written before it, and what a snapshot says of itself.

    Args:
        name: of the snapshot, unique for ever.
        version, definition_hash, pinned: of the manifest; `pinned` where an operator's rollback fixed it.
        choice: number of the operator's choice that is obeyed; only a newer one lets coverage go back.
        chain, coverage, events_speed, counts, event_time_max, created_at: as in Snapshot.
    """

    serial: int
    name: str
    domain: str
    version: int
    definition_hash: str
    pinned: bool
    choice: int
    rows: Version
    chain: Chain | None
    run: Run | None
    coverage: Position
    events_speed: int = 0
    counts: Mapping[str, Any] = field(default_factory=dict)
    event_time_max: str | None = None
    created_at: str = ""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @staticmethod
    def from_json(body: bytes) -> Pointer:
        said = json.loads(body)
        rows, run, chain = said["rows"], said["run"], said["chain"]
        said["rows"] = Version(rows["edition"], {part: Piece(**piece) for part, piece in rows["parts"].items()})
        said["run"], said["chain"] = Run(**run) if run else None, Chain(**chain) if chain else None
        return Pointer(**said)


def pointer_of(store: Store, domain: str, settled: bool = False) -> Pointer | None:
    """Return what the domain's pointer says now, None before the first."""
    found = store.pointer(domain, settled)
    return Pointer.from_json(found[1]) if found else None


def packed(table: pa.Table) -> bytes:
    """Return a table as Arrow IPC, compressed: the very columns and types come back."""
    out = pa.BufferOutputStream()
    with pa.ipc.new_file(out, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(out.getvalue())


def unpacked(data: bytes) -> pa.Table:
    """Return the table of `packed`."""
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def piece_of(data: bytes) -> Piece:
    return Piece(hashlib.sha256(data).hexdigest(), len(data))


def piece_cells(domain: str, edition: str, part: str, data: bytes) -> Iterator[tuple[Place, list[Cell]]]:
    """Cut a part of a version into cells, place by place."""
    cells = _cells(0, piece_of(data).digest, data)
    for first in range(0, len(cells), CELLS_OF_A_PLACE):
        place = Place(domain, edition, part, first // CELLS_OF_A_PLACE)
        yield place, cells[first : first + CELLS_OF_A_PLACE]


def read_piece(store: Store, domain: str, edition: str, part: str, piece: Piece) -> bytes:
    """Return a part of a version. Raises Torn."""
    places = -(-piece.size // (CELL_BYTES * CELLS_OF_A_PLACE))
    cells = [cell for bucket in range(places) for cell in store.read(Place(domain, edition, part, bucket))]
    return _whole(cells, piece.digest, f"{domain} edition {edition}: {part}")


def epoch_place(domain: str, edition: str, number: int) -> Place:
    return Place(domain, edition, EPOCHS, number // EPOCHS_OF_A_PLACE)


def epoch_cells(number: int, before: str, data: bytes) -> list[Cell]:
    """Cut an epoch file into cells; `before` is the SHA-256 of the epoch before it."""
    linked = before.encode() + data
    return _cells(number, hashlib.sha256(linked).hexdigest(), linked)


def read_epochs(store: Store, domain: str, run: Run, known: Run | None) -> list[tuple[int, bytes]]:
    """Return numbers and bytes of the epochs of a run, oldest first; what lies in `known` is left out.

    Args:
        known: an earlier state of the same edition.

    Raises:
        Torn: an epoch is not there, or does not follow the one before it.
    """
    first = max(run.first, known.last + 1 if known else run.first)
    if first > run.last:
        return []
    buckets = range(first // EPOCHS_OF_A_PLACE, run.last // EPOCHS_OF_A_PLACE + 1)
    read = [c for bucket in buckets for c in store.read(Place(domain, run.edition, EPOCHS, bucket), first)]
    found = {key: list(cells) for key, cells in groupby(read, lambda cell: (cell.item, cell.digest))}
    epochs, digest = [], run.digest
    for number in range(run.last, first - 1, -1):
        data = _whole(found.get((number, digest), []), digest, f"{domain} edition {run.edition}: epoch {number}")
        digest = data[: len(NO_DIGEST)].decode()
        epochs.append((number, data[len(NO_DIGEST) :]))
    if known and first == known.last + 1 and digest != known.digest:
        raise Torn(
            f"{domain} edition {run.edition}: epoch {first} does not follow the epoch {known.last} that was read"
        )
    return epochs[::-1]


def expired(places: Iterable[Place], pointer: Pointer) -> list[Place]:
    """Return the places that no later pointer can show: what it names stays, and what may still be shown first."""
    run = pointer.run
    kept = pointer.rows.edition
    return [
        place
        for place in places
        if place.born <= pointer.serial
        and place.edition != kept
        and not (run and place.edition == run.edition and (place.bucket + 1) * EPOCHS_OF_A_PLACE > run.first)
    ]


def _cells(item: int, digest: str, data: bytes) -> list[Cell]:
    starts = range(0, len(data), CELL_BYTES)
    return [Cell(item, digest, n, data[at : at + CELL_BYTES]) for n, at in enumerate(starts)]


def _whole(cells: Sequence[Cell], digest: str, what: str) -> bytes:
    data = b"".join(cell.data for cell in sorted(cells, key=lambda cell: cell.number) if cell.digest == digest)
    if hashlib.sha256(data).hexdigest() != digest:
        raise Torn(f"{what} is not whole in the store")
    return data
