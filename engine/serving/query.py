"""How does DuckDB answer a `Query`? Batch and speed are added, regrouped, merged, shown and ordered in one statement.

Merged = UNION ALL of both sides, regrouped and merged by `engine.fold.measures`. No text of a client ever becomes SQL:
columns come from the declaration, values are typed and bound.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import duckdb
import pyarrow as pa

from engine.domain import GRAINS, View
from engine.domain.operators import Engine
from engine.fold.measures import all_parts, merge_query, register, show_query, window_of
from engine.runtime.notation import jsonable, size_of

_DUCK: Engine = "duckdb"
# Rows that are taken from DuckDB at once.
FETCH_ROWS = 10_000


@dataclass(frozen=True)
class Filter:
    """A column equals one of `values`, or is NULL where `or_null`."""

    column: str
    values: tuple[Any, ...]
    or_null: bool


@dataclass(frozen=True)
class Query:
    """A checked request for rows of one view or report.

    Args:
        columns: what is answered, in order.
        filters: on stored columns.
        order: (column, descending), total.
        shape: for a view, the view regrouped to the asked dimensions, grain and measures; None for a report.
        start, end: `time` lies in [start, end), naive UTC.
        time: the column that start and end speak of.
        texts: the filters as the client wrote them, for the proof; None stands for NULL.
    """

    name: str
    columns: tuple[str, ...]
    filters: tuple[Filter, ...]
    order: tuple[tuple[str, bool], ...]
    limit: int
    format: str
    view: View | None = None
    shape: View | None = None
    part: str = "merged"
    start: datetime | None = None
    end: datetime | None = None
    time: str = "window_start"
    texts: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Equal for two requests that page through the same list."""
        shape = self.shape and (self.shape.by, self.shape.every)
        value = (self.name, self.columns, self.filters, self.order, shape, self.part, self.start, self.end)
        return hashlib.sha256(repr(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def open_database() -> duckdb.DuckDBPyConnection:
    """Return an in-memory DuckDB with the measures' functions, no access to the outside and a locked configuration.

    Every query runs on a `cursor()` of it; what a cursor registers is seen by that cursor alone.
    """
    connection = duckdb.connect(":memory:", config={"threads": "2", "autoinstall_known_extensions": "false"})
    register(connection)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def statement(query: Query, tables: Sequence[str], offset: int) -> tuple[str, list[Any]]:
    """Return the SQL of a query and the values it binds; at most limit + 1 rows, to see whether more follow.

    Args:
        tables: the names that are registered: batch and speed with the stored columns of the view, or report.
        offset: rows of the ordered list to leave out.
    """
    names = list(tables) if query.part == "merged" or query.shape is None else [query.part]
    source, values = _source(query, names)
    if query.shape:
        source = (
            f"({show_query(query.shape, f'({merge_query(query.shape, source, _DUCK)}) AS merged', _DUCK)}) AS shown"
        )
    order = ", ".join(f"{_quoted(column)} {'DESC' if down else 'ASC'} NULLS LAST" for column, down in query.order)
    columns = ", ".join(map(_quoted, query.columns))
    sql = f"SELECT {columns} FROM {source}{f' ORDER BY {order}' if order else ''} LIMIT ? OFFSET ?"
    return sql, [*values, query.limit + 1, offset]


def fetch_rows(
    cursor: duckdb.DuckDBPyConnection,
    query: Query,
    tables: Mapping[str, pa.Table],
    offset: int,
    most_bytes: float = math.inf,
) -> list[Any]:
    """Run a query on a cursor of its own; return tuples in the order of `query.columns`, times in UTC with a zone.

    Args:
        most_bytes: rows are taken until they hold more than this, and one more, which says that others follow.
    """
    for name, table in tables.items():
        cursor.register(name, table)
    answer = cursor.execute(*statement(query, list(tables), offset))
    timed = {
        n
        for n, column in enumerate(answer.description)
        if any(t in str(column[1]).upper() for t in ("TIMESTAMP", "DATE", "STRUCT"))
    }

    def take(number: int) -> list[Any]:
        taken: list[Any] = answer.fetchmany(number)
        if not timed:
            return taken
        return [tuple(jsonable(value) if n in timed else value for n, value in enumerate(row)) for row in taken]

    rows: list[Any] = []
    held = 0
    while held <= most_bytes and (taken := take(FETCH_ROWS)):
        rows += taken
        held += sum(map(size_of, taken))
    return rows + take(1)


def fetch_table(
    cursor: duckdb.DuckDBPyConnection,
    query: Query,
    tables: Mapping[str, pa.Table],
    offset: int,
    most_bytes: float = math.inf,
) -> pa.Table:
    """Run a query as `fetch_rows` does; return an Arrow table."""
    for name, table in tables.items():
        cursor.register(name, table)
    sql, values = statement(query, list(tables), offset)
    reader = cursor.sql(sql, params=values).to_arrow_reader(FETCH_ROWS)
    batches: list[pa.RecordBatch] = []
    held = 0
    for batch in reader:
        batches.append(batch)
        if held > most_bytes:
            break
        held += batch.nbytes
    found = pa.Table.from_batches(batches, reader.schema)
    return found.cast(pa.schema([_with_zone(column) for column in found.schema]))


def merge_tables(cursor: duckdb.DuckDBPyConnection, view: View, tables: Iterable[pa.Table]) -> pa.Table:
    """Merge stored rows of equal key into one, unchanged in what they say."""
    stored = pa.concat_tables(tables)
    cursor.register("pieces", stored)
    merged: pa.Table = cursor.sql(merge_query(view, "pieces", _DUCK)).to_arrow_table()
    return merged.cast(stored.schema)


def _with_zone(column: pa.Field) -> pa.Field:
    return column.with_type(pa.timestamp("us", "UTC")) if pa.types.is_timestamp(column.type) else column


def _source(query: Query, tables: Sequence[str]) -> tuple[str, list[Any]]:
    """SQL of the filtered stored rows, regrouped to the query's windows, and the values it binds."""
    conditions: list[str] = []
    values: list[Any] = []
    for item in query.filters:
        tests = [f"{_quoted(item.column)} IN ({', '.join('?' * len(item.values))})"] if item.values else []
        conditions.append(f"({' OR '.join([*tests, *([f'{_quoted(item.column)} IS NULL'] if item.or_null else [])])})")
        values += item.values
    for border, sign in ((query.start, ">="), (query.end, "<")):
        if border is not None:
            conditions.append(f"{_quoted(query.time)} {sign} ?")
            values.append(border)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    columns = "*"
    if query.view and query.shape:
        windows = []
        if query.shape.every:
            same = query.shape.every == query.view.every
            start, end = (
                ("window_start", "window_end") if same else window_of("window_start", GRAINS[query.shape.every], _DUCK)
            )
            windows = [f"{start} AS window_start", f"{end} AS window_end"]
        columns = ", ".join([*query.shape.by, *windows, *(part.name for part in all_parts(query.shape, _DUCK))])
    sides = " UNION ALL ".join(f"SELECT {columns} FROM {table}{where}" for table in tables)
    return f"({sides}) AS stored", values * len(tables)


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
