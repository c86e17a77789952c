"""Which epochs of a chain continue a horizon? Found from the newest backwards, read once, merged in blocks.

A hole (an epoch that is missing, damaged, or does not start where the one before it ends) ends what can be used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import duckdb
import pyarrow as pa
import structlog

from engine.domain import Domain, View
from engine.fold.measures import stored_schema
from engine.serving.query import merge_tables
from engine.storage import chains
from engine.storage.chains import Chain, Epoch, continues
from engine.storage.log import reaches
from engine.storage.versions import Manifest

# Runs of this many consecutive epochs, and runs of so many runs, are merged once and remembered.
BLOCK = 16
READERS = 8

_log = structlog.get_logger("engine.serving.epochs")


class BrokenEpoch(ValueError):
    """An epoch file cannot be used; coverage ends before it."""

    def __init__(self, chain: Chain, number: int, reason: str) -> None:
        super().__init__(f"chain {chain.number} epoch {number}: {reason}")
        self.number = number


@dataclass
class Blocks:
    """Stored rows of epochs by (chain, number), aligned runs of them merged once and remembered."""

    domain: Domain
    database: duckdb.DuckDBPyConnection
    tables: dict[tuple[int, int], dict[str, pa.Table]] = field(default_factory=dict)
    _merged: dict[tuple[int, int, int], dict[str, pa.Table]] = field(default_factory=dict)

    def rows(self, chain: int, first: int, end: int) -> dict[str, pa.Table]:
        """Return view → stored rows of the epochs in [first, end), all of which are in `tables`."""
        if first >= end:
            return {view.name: stored_schema(view).empty_table() for view in self.domain.views}
        pieces = [self._block(chain, *part) for part in _cover(first, end)]
        return {view.name: pa.concat_tables([piece[view.name] for piece in pieces]) for view in self.domain.views}

    def drop(self, chain: int) -> None:
        """Forget a chain."""
        self.tables = {key: tables for key, tables in self.tables.items() if key[0] != chain}
        self._merged = {key: tables for key, tables in self._merged.items() if key[0] != chain}

    def forget(self, chain: int, first: int) -> None:
        """Forget the epochs before `first` and older chains."""
        self.tables = {key: tables for key, tables in self.tables.items() if key >= (chain, first)}
        self._merged = {key: tables for key, tables in self._merged.items() if key[:2] >= (chain, first)}

    def _block(self, chain: int, first: int, size: int) -> dict[str, pa.Table]:
        if size == 1:
            return self.tables[chain, first]
        key = (chain, first, size)
        if key not in self._merged:
            parts = [self._block(chain, start, size // BLOCK) for start in range(first, first + size, size // BLOCK)]
            with self.database.cursor() as cursor:
                self._merged[key] = {
                    v.name: merge_tables(cursor, v, [p[v.name] for p in parts]) for v in self.domain.views
                }
        return self._merged[key]


@dataclass
class Epochs:
    """Reads the epochs of one domain, each once; used by one thread.

    Args:
        relist_seconds: between two listings of a chain's folder only the name of the next epoch is asked for.
    """

    fs: Any
    domain: Domain
    database: duckdb.DuckDBPyConnection
    clock: Callable[[], float] = time.monotonic
    relist_seconds: float = 5.0
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(READERS, "epochs"))
    _chains: dict[int, Chain] = field(default_factory=dict)
    _listed: dict[int, tuple[float, list[int]]] = field(default_factory=dict)
    _first: dict[tuple[int, tuple[int, str]], int] = field(default_factory=dict)
    _torn: set[tuple[int, str, str]] = field(default_factory=set)
    _epochs: dict[tuple[int, int], Epoch] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._blocks = Blocks(self.domain, self.database)

    def _numbers(self, chain: Chain) -> list[int]:
        """Numbers of the epochs that are there; between two listings only the next name is asked for."""
        listed, numbers = self._listed.get(chain.number, (-1e9, []))
        if self.clock() - listed >= self.relist_seconds or not numbers:
            numbers = chains.epoch_numbers(self.fs, self.domain.name, chain.number)
            self._listed[chain.number] = self.clock(), numbers
            return numbers
        while self.fs.status(chains.epoch_path(self.domain.name, chain.number, numbers[-1] + 1)):
            numbers.append(numbers[-1] + 1)
        return numbers

    def after(self, chain: Chain, manifest: Manifest) -> tuple[Epoch, ...] | None:
        """Return the epochs of the chain that continue the horizon without a hole, None if the version does not fit."""
        if self._chains.get(chain.number) != chain:
            self._begin(chain)
        usable = list(self._numbers(chain))
        while True:
            try:
                return self._after_runs(chain, usable, manifest)
            except BrokenEpoch as broken:
                self._say("refused", str(broken))
                usable.remove(broken.number)

    def _begin(self, chain: Chain) -> None:
        """Forget what is remembered under a number that another chain bears now: its folder was deleted."""
        self._chains[chain.number] = chain
        self._listed.pop(chain.number, None)
        self._first = {key: first for key, first in self._first.items() if key[0] != chain.number}
        self._epochs = {key: epoch for key, epoch in self._epochs.items() if key[0] != chain.number}
        self._blocks.drop(chain.number)

    def _after_runs(self, chain: Chain, numbers: list[int], manifest: Manifest) -> tuple[Epoch, ...] | None:
        known = self._first.get((chain.number, manifest.identity))
        for run in reversed(list(_runs(numbers))):
            if known is not None and run[0] <= known <= run[-1] + 1:
                epochs, count = self._read(chain, run[known - run[0] :]), 0
            else:
                epochs = self._read_back(chain, run, manifest)
                fitting = chains.fits(chain, epochs, manifest.horizon, manifest.version)
                if fitting is None:
                    continue
                count = fitting
                self._first[chain.number, manifest.identity] = epochs[0].number + count
            if run[-1] != numbers[-1]:
                self._say("hole", f"chain {chain.number}: epoch {run[-1] + 1} is missing; coverage ends before it")
            return tuple(epochs[count:])
        if chains.fits(chain, [], manifest.horizon, manifest.version) is None:
            return None
        if numbers:
            self._say("hole", f"chain {chain.number}: its first epoch is missing; coverage ends at its start")
        return ()

    def _read_back(self, chain: Chain, run: Sequence[int], manifest: Manifest) -> list[Epoch]:
        """Read a run of epochs from its end back to one that starts at or below the horizon."""
        first = len(run)
        while first > 0:
            first = max(0, first - READERS)
            epoch = self._read(chain, run[first : first + READERS])[0]
            if manifest.version and reaches(manifest.horizon, epoch.start, chain.origins):
                break
        return self._read(chain, run[first:])

    def _read(self, chain: Chain, numbers: Sequence[int]) -> list[Epoch]:
        """Return epochs, reading those that are not remembered. Raises BrokenEpoch for one that cannot be used."""
        missing = [number for number in numbers if (chain.number, number) not in self._epochs]
        mapped = self._pool.map if len(missing) > 1 else map
        for epoch, tables in mapped(lambda number: self._read_one(chain, number), missing):
            self._epochs[chain.number, epoch.number] = epoch
            self._blocks.tables[chain.number, epoch.number] = tables
        epochs = [self._epochs[chain.number, number] for number in numbers]
        for before, after in pairwise(epochs):
            if not continues(before.end, after.start):
                tear = (after.number, before.created_at, after.created_at)
                if tear in self._torn:
                    raise BrokenEpoch(chain, after.number, "does not start where the one before it ends")
                # The last epoch was deleted by hand, and its number given to another, while we remembered it.
                self._torn.add(tear)
                self._begin(chain)
                return self._read(chain, numbers)
        return epochs

    def _read_one(self, chain: Chain, number: int) -> tuple[Epoch, dict[str, pa.Table]]:
        try:
            epoch, rows = chains.read_epoch(self.fs, self.domain.name, chain.number, number)
            tables = view_rows(self.domain, rows)
        except (ValueError, FileNotFoundError) as error:
            raise BrokenEpoch(chain, number, str(error)) from error
        if epoch.number != number or epoch.definition_hash != self.domain.definition_hash:
            raise BrokenEpoch(chain, number, f"says it is epoch {epoch.number} of definition {epoch.definition_hash}")
        return epoch, tables

    def rows(self, chain: Chain, epochs: Sequence[Epoch]) -> dict[str, pa.Table]:
        """Return view → stored rows of consecutive epochs, runs of them already merged."""
        first = epochs[0].number if epochs else 0
        return self._blocks.rows(chain.number, first, first + len(epochs))

    def kept(self, chain: Chain, number: int) -> tuple[Epoch, dict[str, pa.Table]]:
        """Return an epoch that was read before: its footer, and view → stored rows."""
        return self._epochs[chain.number, number], self._blocks.tables[chain.number, number]

    def forget(self, chain: Chain, first: int) -> None:
        """Drop the epochs before `first` and older chains; a rollback reads them from HDFS once more."""
        border = (chain.number, first)
        self._epochs = {key: epoch for key, epoch in self._epochs.items() if key >= border}
        self._blocks.forget(*border)

    def _say(self, what: str, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            _log.warning(what, domain=self.domain.name, reason=text)


def view_rows(domain: Domain, table: pa.Table) -> dict[str, pa.Table]:
    """Return view → stored rows of an epoch's table. Raises ValueError where the columns are not those of the view."""
    return {view.name: stored(chains.rows_of(table, view.name), view) for view in domain.views}


def stored(table: pa.Table, view: View) -> pa.Table:
    """Keep the stored columns, in their types; times become UTC without a zone."""
    schema = stored_schema(view)
    try:
        return table.select(schema.names).cast(schema)
    except (KeyError, pa.ArrowException) as error:
        raise ValueError(f"view {view.name}: {error}") from error


def _runs(numbers: Sequence[int]) -> Iterator[list[int]]:
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _cover(first: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut [first, end) into aligned blocks of BLOCK², BLOCK and 1, as (first number, size)."""
    while first < end:
        size = next(size for size in (BLOCK * BLOCK, BLOCK, 1) if first % size == 0 and first + size <= end)
        yield first, size
        first += size
