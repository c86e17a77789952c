"""What has the speed layer counted after the horizon? Chains of epochs, one small file each.

`/data/speed_views/<domain>/<chain, 10 digits>/{chain.json, <epoch, 12 digits>.parquet}`. A chain starts at a
position; epoch n covers [end(n − 1), end(n)) of every partition. An epoch is committed by one rename that refuses an
existing name, so of two stream jobs one wins and the other reads again. Its footer says what it covers (`FOOTER`).

An epoch file has a column `kind` and one nullable struct column per view with that view's stored columns, and a
struct column `keys` (topic, log, partition, ukey, offset) with the unique keys of its valid rows; in each row the
struct that `kind` names is set.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.domain import Domain
from engine.fold.measures import stored_schema
from engine.storage import derived
from engine.storage.commit import Piece, publish
from engine.storage.derived import Damaged
from engine.storage.hdfs import HdfsUnavailable
from engine.storage.log import STAGING, FileSystem, Position, offset_in

SPEED = "/data/speed_views"
# The newest numbers of chains that were taken (`engine.storage.derived`), not in the folder of the domain, so that they
# survive its deletion.
TAKEN = f"{SPEED}/_taken"
KEYS = "keys"
# Name under which an epoch counts the offsets of its range that have no record.
HOLE = "hole"
FOOTER = b"highwater.epoch"
KEYS_TYPE = pa.struct(
    [
        ("topic", pa.string()),
        ("log", pa.string()),
        ("partition", pa.string()),
        ("ukey", pa.string()),
        ("offset", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Chain:
    """The start of a chain: it continues `version` at `start` (a position, exclusive), for one definition.

    Args:
        origins: where the log of each partition of `start` began; a version that is silent about it stands there.
        lost: [number, position] pairs: chains up to that number counted rows from there on that are in no log, because
            Kafka lost them before they were ingested; coverage may fall back to there. Each chain hands on what earlier
            ones said.
    """

    domain: str
    number: int
    version: int
    start: Position
    definition_hash: str
    created_at: str
    origins: Position = field(default_factory=dict)
    lost: list[list[Any]] = field(default_factory=list)

    @property
    def folder(self) -> str:
        return chain_folder(self.domain, self.number)


@dataclass(frozen=True)
class Epoch:
    """What the footer of an epoch says: the range it covers and what was in it.

    Args:
        counts: {topic: {log: {partition: {"good": n, problem: n, "hole": n}}}} of the offsets in [start, end).
        event_time_max: ISO-8601 UTC of the newest good row, or None.
        last: {topic: {log: {partition: [offset, timestamp in ms, CRC-32 of the value]}}} of the last row of each
            partition, by which the next start knows whether Kafka still holds what was counted.
    """

    number: int
    start: Position
    end: Position
    definition_hash: str
    counts: dict[str, Any] = field(default_factory=dict)
    events: int = 0
    event_time_max: str | None = None
    created_at: str = ""
    last: dict[str, Any] = field(default_factory=dict)


def chain_folder(domain: str, number: int) -> str:
    return f"{SPEED}/{domain}/{number:010d}"


def epoch_path(domain: str, chain: int, number: int) -> str:
    return f"{chain_folder(domain, chain)}/{number:012d}.parquet"


def numbers(fs: FileSystem, domain: str) -> list[int]:
    """Return the numbers of the chains that are there, damaged ones, too."""
    return sorted(int(e.name) for e in fs.list(f"{SPEED}/{domain}") if e.is_folder and e.name.isdigit())


def next_number(fs: FileSystem, domain: str) -> int:
    """Return a number that no chain of the domain ever had."""
    return 1 + max([*numbers(fs, domain), derived.newest_taken(fs, f"{TAKEN}/{domain}", f"{SPEED}/{domain}")])


def chains(fs: Any, domain: str, damaged: Callable[[Damaged], None] = derived.left_out) -> list[Chain]:
    """Return the chains of a domain, oldest first.

    Args:
        damaged: what to do with one that cannot be read; its `path` is the chain's folder.
    """
    found = []
    for number in numbers(fs, domain):
        folder = chain_folder(domain, number)
        try:
            found.append(Chain(**derived.known_fields(Chain, json.loads(fs.read(f"{folder}/chain.json")))))
        except FileNotFoundError:
            continue  # being deleted
        except (TypeError, ValueError) as error:
            damaged(Damaged(folder, error))
    return found


def closed(fs: FileSystem, domain: str, chain: int) -> bool:
    """True if an epoch of the chain was set aside: its number must not come back, so nobody continues the chain."""
    return any(entry.name.startswith(derived.ASIDE) for entry in fs.list(chain_folder(domain, chain)))


def epoch_numbers(fs: FileSystem, domain: str, chain: int) -> list[int]:
    """Return the numbers of the epochs that are there, in order; pruning removes them from the front."""
    names = (e.name for e in fs.list(chain_folder(domain, chain)) if not e.is_folder)
    return sorted(
        int(name[:12]) for name in names if len(name) == 20 and name[:12].isdigit() and name[12:] == ".parquet"
    )


def read_epoch(fs: Any, domain: str, chain: int, number: int) -> tuple[Epoch, pa.Table]:
    """Return footer and rows of an epoch. Raises FileNotFoundError or Damaged."""
    path = epoch_path(domain, chain, number)
    return parsed_epoch(fs.read(path), path)


def parsed_epoch(data: bytes, path: str) -> tuple[Epoch, pa.Table]:
    """Return footer and rows of the bytes of an epoch file. Raises Damaged."""
    try:
        table = pq.read_table(pa.BufferReader(data))
        return epoch_footer(table.schema.metadata), table
    except (ValueError, KeyError, TypeError, OSError) as error:  # the bytes are here: OSError is said of their contents
        raise Damaged(path, error) from error


def epochs(fs: Any, domain: str, chain: int, damaged: Callable[[Damaged], None] = derived.left_out) -> list[Epoch]:
    """Return the footers of the consecutive epochs of a chain; a hole ends the list, what is behind it is unreachable.

    Args:
        damaged: what to do with an epoch that cannot be read, which is a hole.
    """
    return derived.listed_again(lambda: _footers(fs, domain, chain, damaged))


def _footers(fs: Any, domain: str, chain: int, damaged: Callable[[Damaged], None]) -> list[Epoch]:
    found: list[Epoch] = []
    for number in epoch_numbers(fs, domain, chain):
        if found and number != found[-1].number + 1:
            break
        path = epoch_path(domain, chain, number)
        try:
            footer = epoch_footer(fs.open_parquet(path).schema_arrow.metadata)
        except (ValueError, KeyError, TypeError) as error:
            damaged(Damaged(path, error))
            break
        # A stream that stood still for long may have written again under a number that was pruned.
        if found and not continues(found[-1].end, footer.start):
            break
        found.append(footer)
    return found


def epoch_footer(metadata: dict[bytes, bytes] | None) -> Epoch:
    return Epoch(**derived.known_fields(Epoch, json.loads((metadata or {})[FOOTER])))


def continues(end: Position, start: Position) -> bool:
    """True if an epoch starts where the one before it ends; partitions that are new to the chain may join."""
    return all(
        offset_in(start, topic, log, partition, -1) == offset
        for topic, logs in end.items()
        for log, partitions in logs.items()
        for partition, offset in partitions.items()
    )


def epoch_file(domain: Domain, epoch: Epoch, views: dict[str, pa.Table], keys: pa.Table) -> bytes:
    """Return the bytes of an epoch file.

    Args:
        views: view → rows with the stored columns of that view.
        keys: rows of KEYS_TYPE.
    """
    schema = epoch_schema(domain).with_metadata({FOOTER: json.dumps(asdict(epoch), sort_keys=True).encode()})
    tables = []
    for name in (*(view.name for view in domain.views), KEYS):
        rows = keys if name == KEYS else views[name]
        if rows.num_rows == 0:
            continue
        structs = (
            rows.select([f.name for f in schema.field(name).type])
            .cast(pa.schema(list(schema.field(name).type)))
            .to_struct_array()
        )
        columns = [pa.repeat(name, rows.num_rows)]
        columns += [
            structs.combine_chunks() if f.name == name else pa.nulls(rows.num_rows, f.type) for f in list(schema)[1:]
        ]
        tables.append(pa.table(columns, schema=schema))
    out = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables) if tables else schema.empty_table(), out, compression="zstd")
    return bytes(out.getvalue())


def epoch_schema(domain: Domain) -> pa.Schema:
    views = [pa.field(view.name, pa.struct(list(stored_schema(view)))) for view in domain.views]
    return pa.schema([pa.field("kind", pa.string()), *views, pa.field(KEYS, KEYS_TYPE)])


def rows_of(table: pa.Table, kind: str) -> pa.Table:
    """Return the rows of one view (or of KEYS) in an epoch table, with that view's own columns."""
    chosen = table.filter(pa.compute.equal(table["kind"], kind))[kind].combine_chunks()
    if isinstance(chosen, pa.ChunkedArray):
        chosen = pa.concat_arrays(chosen.chunks) if chosen.num_chunks else pa.array([], chosen.type)
    return pa.Table.from_struct_array(chosen)


def fits(chain: Chain, epochs: list[Epoch], horizon: Position, version: int) -> int | None:
    """Return how many of the given epochs lie below a version's horizon, or None if the version does not fit.

    A version fits a chain when, over the logs that the chain speaks of, its horizon is the chain's start or the end of
    one of its epochs; a partition that one of the two does not name stands at its origin there. A chain speaks of the
    logs it began with and of no others: what the horizon says of other logs, closed ones or one that began after the
    chain, is the batch layer's alone.

    Args:
        epochs: consecutive epochs of the chain; the front may have been pruned.
    """
    if version == 0:
        return 0 if chain.version == 0 and (not epochs or epochs[0].number == 0) else None
    start = epochs[0].start if epochs else chain.start
    for count, boundary in enumerate([start, *(epoch.end for epoch in epochs)]):
        if _same(boundary, horizon, chain):
            return count
    return None


def speaks_of(chain: Chain, topic: str, log: str) -> bool:
    """True if the chain counts the events of this log."""
    return log in chain.start.get(topic, {})


def _same(boundary: Position, horizon: Position, chain: Chain) -> bool:
    named = {
        (topic, log, partition)
        for position in (boundary, horizon)
        for topic, logs in position.items()
        for log, partitions in logs.items()
        for partition in partitions
        if speaks_of(chain, topic, log)
    }
    # A partition that was added later began at offset 0; the others' origins were committed before the chain began.
    origins = {place: offset_in(chain.origins, *place, 0) for place in named}
    return all(offset_in(boundary, *p, origins[p]) == offset_in(horizon, *p, origins[p]) for p in named)


def begin(
    fs: Any,
    domain: Domain,
    number: int,
    version: int,
    start: Position,
    origins: Position,
    created_at: str,
    lost: list[list[Any]] | None = None,
) -> Chain | None:
    """Commit a new chain by one directory rename; None if another stream job took the number, or a later one, first.

    Raises:
        HdfsUnavailable: it is not known whether the chain is there.
    """
    if not derived.take(fs, f"{TAKEN}/{domain.name}", number):
        return None
    chain = Chain(domain.name, number, version, start, domain.definition_hash, created_at, origins, lost or [])
    staged = f"{STAGING}/chain-{domain.name}-{number}-{os.getpid()}-{time.time_ns()}"
    fs.create(f"{staged}/chain.json", json.dumps(asdict(chain), sort_keys=True).encode())
    fs.mkdirs(f"{SPEED}/{domain.name}")
    try:
        fs.rename(staged, chain.folder)
    except FileExistsError:
        fs.delete(staged, recursive=True)
        return None
    except (OSError, RuntimeError) as error:
        raise HdfsUnavailable(f"domain {domain.name}: in doubt whether chain {number} is there: {error}") from error
    return chain


def append(fs: Any, chain: Chain, number: int, data: bytes, write: Callable[[str, bytes], None]) -> bool:
    """Commit the bytes of an epoch under its number; False if somebody else was first or it cannot be known.

    Args:
        write: creates the staged file; `fs.create`, or a faster way for small files.
    """
    staged = f"{STAGING}/epoch-{chain.domain}-{chain.number}-{number}-{os.getpid()}-{time.time_ns()}.parquet"
    target = epoch_path(chain.domain, chain.number, number)
    write(staged, data)
    try:
        return publish(
            fs, Piece(chain.domain, str(chain.number), "epoch", staged, number, number + 1, len(data)), target
        )
    finally:
        fs.delete(staged)
