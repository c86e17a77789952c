"""What does each raw row say, by other hands? The decoder and the judge of the recount, used by `engine.verify` alone.

`docs/decode.md` is followed here a second time, with the standard library's parser, and rules and duplicates are judged
in DuckDB. Nothing is shared with the layers but the declarations and what their expressions mean: a mistake must be
made twice to stay unseen.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import multiprocessing
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import date
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa

from engine.domain import FIELD_NAME, FURTHER_FIELDS, OTHER_FIELDS, UNKNOWN_FIELDS, Domain, Stream, decimal_of

Place = tuple[str, str, str]  # topic, log, partition
Chunk = tuple[Place, pa.Table]  # consecutive raw rows: offset, timestamp, value, value_bytes

# A second process pays off from here on; its start costs about as much as this many rows.
SHARED_FROM_ROWS = 200_000
CHUNK_ROWS = 50_000
DEEPEST = 64
LONGEST_NUMBER, LONGEST_EXPONENT = 1000, 6

_EPOCH_DAY = date(1970, 1, 1).toordinal()
_FIRST_MICRO = (date.min.toordinal() - _EPOCH_DAY) * 86_400_000_000
_END_MICRO = (date.max.toordinal() + 1 - _EPOCH_DAY) * 86_400_000_000
_MOMENT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9])(?:\.([0-9]{1,9}))?"
    r"(?:[Zz]|([+-])([01][0-9]|2[0-3]):?([0-5][0-9]))?"
)
_NAME = re.compile(FIELD_NAME)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89abcdefABCDEF]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Malformed(ValueError):
    """The bytes are not one JSON object of the schema's types."""


class _Number(str):
    """The text of a JSON number as it was sent."""

    __slots__ = ()


def parse_event(text: str | None) -> dict[str, Any]:
    """Return the object that a value holds; its numbers are texts of their own type. Raises Malformed."""
    if not text:
        raise Malformed("nothing")
    try:
        event = (_PARSER if len(text) <= LONGEST_NUMBER else _CAREFUL_PARSER).decode(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from None
    if type(event) is not dict:
        raise Malformed("not an object")
    if text.count("{") + text.count("[") > DEEPEST:
        _check_depth(event)
    if _SURROGATE_ESCAPE.search(text):
        _check_surrogates(event)
    return event


def typed_table(stream: Stream, raw: pa.Table) -> pa.Table:
    """Return offset, kafka_time, event_time, the columns, problem ('malformed' or NULL) and unknown of raw rows."""
    readers = _readers(stream)
    nothing = (None,) * len(stream.columns)
    rows: list[tuple[Any, ...]] = []
    problems: list[str | None] = []
    unknown: list[list[str] | None] = []
    for text in raw["value"].to_pylist():
        try:
            event = parse_event(text)
            rows.append(_row(event, readers))
            problems.append(None)
            names = dict.fromkeys(_field_name(name) for name in event if name not in stream.columns)
            unknown.append([*shortest(dict.fromkeys(names, 1))] or None)
        except Malformed:
            rows.append(nothing)
            problems.append("malformed")
            unknown.append(None)
    fields = list(zip(*rows, strict=True)) if rows else [()] * len(stream.columns)
    columns = {
        name: _arrow(values, sql_type) for (name, sql_type), values in zip(stream.columns.items(), fields, strict=True)
    }
    kafka_time = raw["timestamp"].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
    event_time = columns[stream.time] if stream.time else kafka_time
    named = {"offset": raw["offset"], "kafka_time": kafka_time, "event_time": event_time, **columns}
    return pa.table(
        {**named, "problem": pa.array(problems, pa.string()), "unknown": pa.array(unknown, pa.list_(pa.string()))}
    )


def open_database() -> duckdb.DuckDBPyConnection:
    """Return an empty DuckDB in memory that reaches no file and no network."""
    con = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"})
    con.execute("SET enable_external_access = false")
    con.execute("CREATE SCHEMA recount")
    con.execute("CREATE MACRO try_divide(a, b) AS CASE WHEN b <> 0 THEN a / b END")
    con.execute("CREATE MACRO explode(list) AS unnest(list)")
    return con


def load(con: duckdb.DuckDBPyConnection, domain: Domain, chunks: Iterable[Chunk], rows: int, keep: bool = False) -> int:
    """Decode and judge raw rows; afterwards each topic's rows are in its `table_of`, with their problem.

    Args:
        chunks: of any partitions, those of one partition in the order of offsets.
        rows: about how many there are; decides whether a second process helps.
        keep: also keep the raw text, as `value`.

    Returns:
        Number of rows.
    """
    total = 0
    for stream in domain.streams:
        columns = "".join(f', "{name}" {_duck(sql_type)}' for name, sql_type in stream.columns.items())
        con.execute(
            f'CREATE TABLE {_decoded(domain, stream.topic)} (log VARCHAR, partition VARCHAR, "offset" BIGINT, '
            f"kafka_time TIMESTAMP, event_time TIMESTAMP{columns}, problem VARCHAR, unknown VARCHAR[], value VARCHAR)"
        )
    for (topic, log, partition), raw, typed in _decode_all(domain, chunks, rows >= SHARED_FROM_ROWS):
        value = raw["value"] if keep else pa.nulls(len(raw), pa.string())
        con.register("arrived", typed.append_column("value", value))
        con.execute(f"INSERT INTO {_decoded(domain, topic)} SELECT ?, ?, * FROM arrived", [log, partition])
        con.unregister("arrived")
        total += len(raw)
    for stream in domain.streams:
        _judge(con, _decoded(domain, stream.topic), table_of(domain, stream.topic), stream)
    return total


def table_of(domain: Domain, topic: str) -> str:
    """Name of the table with a topic's judged rows: log, partition, offset, times, columns, problem, value."""
    return f"recount.judged_{domain.topics.index(topic)}"


def _decoded(domain: Domain, topic: str) -> str:
    return f"recount.decoded_{domain.topics.index(topic)}"


def _judge(con: duckdb.DuckDBPyConnection, decoded: str, judged: str, stream: Stream) -> None:
    """Name the first rule that is not TRUE, then the repeats of a unique key among rows that passed all rules."""
    failed = " ".join(
        f"WHEN NOT coalesce(({sql}), false) THEN '{rule}'" for rule, sql in stream.rules_in("duckdb").items()
    )
    con.execute(
        f"CREATE TEMP TABLE ruled AS SELECT * REPLACE "
        f"(CASE WHEN problem IS NOT NULL THEN problem {failed} END AS problem) FROM {decoded}"
    )
    con.execute(f"DROP TABLE {decoded}")
    key = ", ".join(f'"{name}"' for name in stream.unique)
    repeats = (
        f'SELECT log, partition, "offset" FROM (SELECT log, partition, "offset", lag("offset") OVER '
        f'(PARTITION BY log, partition, {key} ORDER BY "offset") AS before FROM ruled WHERE problem IS NULL) '
        f'WHERE "offset" - before <= {stream.duplicate_window}'
    )
    con.execute(
        f"CREATE TABLE {judged} AS SELECT r.* REPLACE "
        f"(CASE WHEN d.log IS NOT NULL THEN 'duplicate' ELSE r.problem END AS problem) FROM ruled r "
        f'LEFT JOIN ({repeats}) d ON r.log = d.log AND r.partition = d.partition AND r."offset" = d."offset"'
    )
    con.execute("DROP TABLE ruled")


def _decode_all(domain: Domain, chunks: Iterable[Chunk], shared: bool) -> Iterator[tuple[Place, pa.Table, pa.Table]]:
    streams = {stream.topic: dataclasses.replace(stream, generator=None) for stream in domain.streams}
    if not shared:
        for place, raw in chunks:
            yield place, raw, typed_table(streams[place[0]], raw)
        return
    waiting: deque[tuple[Place, pa.Table, Future[pa.Table]]] = deque()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=_end_with_parent) as pool:
        for place, raw in chunks:
            for start in range(0, len(raw), CHUNK_ROWS):
                piece = raw.slice(start, CHUNK_ROWS).combine_chunks()
                waiting.append((place, piece, pool.submit(typed_table, streams[place[0]], piece)))
            while len(waiting) > 8:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(place: Place, raw: pa.Table, typed: Future[pa.Table]) -> tuple[Place, pa.Table, pa.Table]:
    return place, raw, typed.result()


def _end_with_parent() -> None:
    """A recount may be killed at its deadline; then its helpers must not wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    event = dict(pairs)
    if len(event) < len(pairs):
        raise Malformed("a name occurs twice")
    return event


def _number(text: str) -> _Number:
    if len(text) > LONGEST_NUMBER:
        raise Malformed("a number too long")
    return _Number(text)


def _number_with_point_or_exponent(text: str) -> _Number:
    mark = max(text.find("e"), text.find("E"))
    if mark >= 0 and sum(letter.isdigit() for letter in text[mark:]) > LONGEST_EXPONENT:
        raise Malformed("an exponent too long")
    return _number(text)


def _refuse(text: str) -> Any:
    raise Malformed(text)


_CAREFUL_PARSER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_number, parse_float=_number_with_point_or_exponent, parse_constant=_refuse
)
# In a text that is not longer itself, no number is too long.
_PARSER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_Number, parse_float=_number_with_point_or_exponent, parse_constant=_refuse
)


def _check_depth(event: Any) -> None:
    level = [event]
    for _ in range(DEEPEST):
        inner = [child for node in level for child in (node.values() if type(node) is dict else node)]
        level = [child for child in inner if type(child) in (dict, list)]
    if level:
        raise Malformed("nested too deep")


def _check_surrogates(node: Any) -> None:
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if type(node) is str and _SURROGATE.search(node):
            raise Malformed("half of a surrogate pair")
        if type(node) is dict:
            waiting += node.keys()
        if type(node) in (dict, list):
            waiting += node.values() if type(node) is dict else node


_Reader = tuple[str, Callable[[Any], Any], bool]


def _readers(stream: Stream) -> list[_Reader]:
    """Name, converter and whether it is needed, of each column."""
    needed = set(stream.needed)
    return [(name, _converter(sql_type), name in needed) for name, sql_type in stream.columns.items()]


def _field_name(name: str) -> str:
    return name if _NAME.fullmatch(name) else OTHER_FIELDS


def shortest(names: Mapping[str, int]) -> dict[str, int]:
    """Keep the counts of the names that come first: (other), then the shorter, then by alphabet.

    Add up the rest as (others).
    """
    ordered = sorted((n for n in names if n != FURTHER_FIELDS), key=lambda n: (n != OTHER_FIELDS, len(n), n))
    kept = {name: names[name] for name in ordered[:UNKNOWN_FIELDS]}
    rest = sum(names.values()) - sum(kept.values())
    return {**kept, FURTHER_FIELDS: rest} if rest else kept


def _row(event: Mapping[str, Any], readers: list[_Reader]) -> tuple[Any, ...]:
    get = event.get
    row = []
    for name, convert, needed in readers:
        value = get(name)
        if value is not None:
            row.append(convert(value))
        elif needed:
            raise Malformed(f"{name} is absent")
        else:
            row.append(None)
    return tuple(row)


@functools.cache
def _converter(sql_type: str) -> Callable[[Any], Any]:
    dec = decimal_of(sql_type)
    if dec:
        return _decimal_reader(*dec)
    whole = {"BIGINT": 63, "INT": 31}.get(sql_type)
    if whole:
        return _whole_reader(-(2**whole), 2**whole - 1)
    return {"STRING": _text, "DOUBLE": _double, "BOOLEAN": _truth, "TIMESTAMP": _moment, "ARRAY<STRING>": _texts}[
        sql_type
    ]


def _text(value: Any) -> str:
    if type(value) is not str:
        raise Malformed("not a string")
    return value


def _texts(value: Any) -> list[str]:
    if type(value) is not list:
        raise Malformed("not an array")
    return [_text(item) for item in value]


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise Malformed("not true or false")
    return value


def _double(value: Any) -> float:
    if type(value) is not _Number or math.isinf(nearest := float(value)):
        raise Malformed("not a number that a double holds")
    return nearest or 0.0  # zero has no sign


def _scaled(value: Any, scale: int) -> tuple[int, int]:
    """Return (whole number of units of 10**-scale, its number of digits). Raises Malformed if it has a finer part."""
    if type(value) is not _Number:
        raise Malformed("not a number")
    sign, digits, exponent = Decimal(value).as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)).lstrip("0")
    kept = text.rstrip("0")
    if not kept:
        return 0, 0
    exponent += len(text) - len(kept) + scale
    size = len(kept) + exponent
    if exponent < 0 or size > 60:
        raise Malformed("finer or larger than the column")
    units = int(kept) * 10**exponent
    return -units if sign else units, size


def _whole_reader(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is _Number and len(value) < 10 and value.isdigit():
            return int(value)
        units, _ = _scaled(value, 0)
        if not least <= units <= most:
            raise Malformed("out of range")
        return units

    return read


def _decimal_reader(precision: int, scale: int) -> Callable[[Any], Decimal]:
    @functools.lru_cache(maxsize=10_000)
    def read_number(value: _Number) -> Decimal:
        units, size = _scaled(value, scale)
        if size > precision:
            raise Malformed("too many digits")
        return Decimal((int(units < 0), tuple(map(int, str(abs(units)))), -scale))

    def read(value: Any) -> Decimal:
        # The cache must not be asked for a text: "10" and 10 are equal to it.
        if type(value) is not _Number:
            raise Malformed("not a number")
        return read_number(value)

    return read


def _moment(value: Any) -> int:
    """Epoch µs of a text or of a whole number of epoch ms."""
    if type(value) is str:
        found = _MOMENT.fullmatch(value)
        if not found:
            raise Malformed("not a time")
        day, hour, minute, second, fraction, sign, off_hours, off_minutes = found.groups()
        minutes = int(hour) * 60 + int(minute)
        if sign:
            ahead = int(off_hours) * 60 + int(off_minutes)
            minutes -= ahead if sign == "+" else -ahead
        micros = int((fraction + "00000")[:6]) if fraction else 0
        at = (_day(day) * 1440 + minutes) * 60_000_000 + int(second) * 1_000_000 + micros
    else:
        at = _scaled(value, 0)[0] * 1000
    if not _FIRST_MICRO <= at < _END_MICRO:
        raise Malformed("outside the years 1 to 9999")
    return at


@functools.lru_cache(maxsize=4096)
def _day(text: str) -> int:
    try:
        return date.fromisoformat(text).toordinal() - _EPOCH_DAY
    except ValueError:
        raise Malformed("no such day") from None


def _duck(sql_type: str) -> str:
    return {"STRING": "VARCHAR", "ARRAY<STRING>": "VARCHAR[]", "INT": "INTEGER"}.get(sql_type, sql_type)


def _arrow(values: tuple[Any, ...], sql_type: str) -> pa.Array:
    dec = decimal_of(sql_type)
    if sql_type == "TIMESTAMP":
        return pa.array(values, pa.int64()).cast(pa.timestamp("us"))
    kinds = {
        "STRING": pa.string(),
        "BIGINT": pa.int64(),
        "INT": pa.int32(),
        "DOUBLE": pa.float64(),
        "BOOLEAN": pa.bool_(),
    }
    return pa.array(values, pa.decimal128(*dec) if dec else kinds.get(sql_type) or pa.list_(pa.string()))
