"""What does a raw row say? JSON is parsed once, here, for batch and speed; `docs/decode.md` is the table it follows.

Who changes what the same bytes mean raises `engine.domain.stream.DECODE_VERSION`.

Rows that msgspec decodes and encodes back to the very same bytes are plain: no name occurs twice, every number is
written in its shortest form. Everything else goes through a strict walk with the standard library's parser. Columns
are converted as a whole and fall back to single values only where a value is not of the column's common form.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, InvalidOperation, localcontext
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from engine.domain import (
    FIELD_NAME,
    FURTHER_FIELDS,
    OTHER_FIELDS,
    UNKNOWN_FIELDS,
    Stream,
    decimal_of,
    unknown_order,
)
from engine.fold.measures import arrow_type

MAX_DEPTH = 64
MAX_NUMBER_LENGTH = 1000
MAX_EXPONENT_DIGITS = 6

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):?(\d\d))?", re.ASCII
)
_FIELD = re.compile(FIELD_NAME)
_COMMON_TIME = r"^(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$"
_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}|\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_EXACT = Context(prec=80, Emax=10**9, Emin=-(10**9))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROS = {"min": -62135596800 * 10**6, "max": 253402300799 * 10**6 + 999999}
_UTC = pa.timestamp("us", tz="UTC")
_DECODER = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder()

# Columns that a decoded row has besides those of the schema, in this order.
POSITION = {"offset": "BIGINT", "kafka_time": "TIMESTAMP"}
JUDGED = {
    "event_time": "TIMESTAMP",
    "ukey": "STRING",
    "problem": "STRING",
    "crc": "BIGINT",
    "unknown": "ARRAY<STRING>",
    "value": "STRING",
    "value_bytes": "BINARY",
}


class _Malformed(ValueError):
    pass


def decoded_columns(stream: Stream) -> dict[str, str]:
    """Return name → SQL type of a decoded row of one stream (topic, log and partition aside)."""
    return {**POSITION, **stream.columns, **JUDGED}


def decode_rows(stream: Stream, raw: pa.Table) -> pa.Table:
    """Decode raw rows of one stream.

    Args:
        raw: columns offset, timestamp, value, value_bytes of raw segments.

    Returns:
        A table with `decoded_columns`: `problem` is "malformed" or NULL, `ukey` a hash of the unique key, `crc` the
        CRC-32 of the value (0 for a null), `unknown` the names of fields that the schema does not know; value and
        value_bytes are kept as they came.
    """
    values = [text.encode() if text is not None else None for text in raw["value"].to_pylist()]
    events = [_event(value) for value in values]
    bad = [event is None for event in events]
    columns: dict[str, pa.Array] = {}
    for name, sql_type in stream.columns.items():
        found = [event.get(name) if event is not None else None for event in events]
        columns[name] = _column(found, sql_type, bad)
        if name in stream.needed:
            for row in pc.indices_nonzero(columns[name].is_null()).to_pylist():
                bad[row] = True
    good = pa.array([not flag for flag in bad])
    columns = {name: pc.if_else(good, column, pa.scalar(None, column.type)) for name, column in columns.items()}
    kafka_time = _as_utc(raw["timestamp"])
    decoded = {
        "offset": raw["offset"].combine_chunks(),
        "kafka_time": kafka_time,
        **columns,
        "event_time": columns[stream.time] if stream.time else pc.if_else(good, kafka_time, pa.scalar(None, _UTC)),
        "ukey": _unique_keys(stream, columns, bad),
        "problem": pc.if_else(good, pa.scalar(None, pa.string()), pa.scalar("malformed")),
        "crc": _checksums(values, raw["value_bytes"]),
        "unknown": pc.if_else(good, _unknown(events, stream), pa.scalar(None, pa.list_(pa.string()))),
        "value": raw["value"].combine_chunks(),
        "value_bytes": raw["value_bytes"].combine_chunks(),
    }
    return pa.table(decoded)


def decode_stream(stream: Stream) -> Any:
    """Return a function for `mapInArrow` that decodes raw rows of one topic; log and partition pass through."""
    stream = replace(stream, generator=None)  # executors need the declaration, not the domain's module

    def batches(source: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in source:
            raw = pa.Table.from_batches([batch])
            decoded = decode_rows(stream, raw)
            for name in ("partition", "log"):
                decoded = decoded.add_column(0, name, raw[name])
            yield from decoded.combine_chunks().to_batches()

    return batches


def _event(value: bytes | None) -> dict[str, Any] | None:
    if value is None:
        return None
    if len(value) <= MAX_NUMBER_LENGTH and value.count(b"{") + value.count(b"[") <= MAX_DEPTH:
        try:
            event = _DECODER.decode(value)
            if type(event) is dict and _ENCODER.encode(event) == value:
                return event
        except (msgspec.DecodeError, RecursionError, ValueError, UnicodeEncodeError):
            pass
    try:
        return _strict(value.decode())
    except (_Malformed, ValueError, RecursionError, InvalidOperation):
        return None


def _unknown(events: list[dict[str, Any] | None], stream: Stream) -> pa.Array:
    known = stream.columns.keys()
    found: list[list[str] | None] = []
    for event in events:
        if event is None or event.keys() <= known:
            found.append(None)
            continue
        names = {name if _FIELD.fullmatch(name) else OTHER_FIELDS for name in event.keys() - known}
        if len(names) > UNKNOWN_FIELDS:
            names = {*sorted(names, key=unknown_order)[:UNKNOWN_FIELDS], FURTHER_FIELDS}
        found.append(sorted(names))
    return pa.array(found, pa.list_(pa.string()))


def _strict(text: str) -> dict[str, Any]:
    event = json.loads(text, object_pairs_hook=_object, parse_float=_number, parse_int=_number, parse_constant=_refuse)
    if not isinstance(event, dict):
        raise _Malformed("not an object")
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(event) > MAX_DEPTH:
        raise _Malformed("too deep")
    if _SURROGATE.search(text):
        json.dumps(event, ensure_ascii=False, default=str).encode()  # raises on half a surrogate pair
    return event


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Malformed("a name occurs twice")
    return found


def _number(text: str) -> Decimal:
    exponent = text.lower().partition("e")[2].lstrip("+-")
    if len(text) > MAX_NUMBER_LENGTH or len(exponent) > MAX_EXPONENT_DIGITS:
        raise _Malformed("number out of all bounds")
    return _EXACT.create_decimal(text) if len(text) <= 80 else Decimal(text)


def _refuse(text: str) -> Any:
    raise _Malformed(text)


def _depth(event: Any) -> int:
    deepest, waiting = 0, [(event, 1)]
    while waiting:
        node, level = waiting.pop()
        deepest = max(deepest, level)
        children = node.values() if isinstance(node, dict) else node
        waiting += [(child, level + 1) for child in children if isinstance(child, dict | list)]
    return deepest


def _column(found: list[Any], sql_type: str, bad: list[bool]) -> pa.Array:
    """Convert one field of all rows; a value of another type marks its row in `bad` and becomes NULL."""
    kinds = set(map(type, found)) - {type(None)}
    target = spark_arrow(sql_type)
    plain: set[type] | None = {"STRING": {str}, "BOOLEAN": {bool}, "DOUBLE": {float}}.get(sql_type)  # type: ignore[assignment]
    if plain is not None and kinds <= plain:
        return _without_sign_of_zero(pa.array(found, target)) if sql_type == "DOUBLE" else pa.array(found, target)
    if sql_type in ("BIGINT", "INT") and kinds <= {int}:
        try:
            return pa.array(found, target)
        except (OverflowError, pa.ArrowInvalid):
            pass
    if sql_type == "TIMESTAMP" and kinds <= {str}:
        texts = pa.array(found, pa.string())
        if pc.all(pc.match_substring_regex(texts, _COMMON_TIME)).as_py() is not False:
            try:
                return texts.cast(_UTC)
            except pa.ArrowInvalid:
                pass
    convert = _CONVERT.get(sql_type) or (lambda value: _decimal(value, *(decimal_of(sql_type) or (0, 0))))
    converted = []
    for row, value in enumerate(found):
        try:
            converted.append(None if value is None else convert(value))
        except (_Malformed, InvalidOperation, OverflowError, ValueError):
            bad[row] = True
            converted.append(None)
    if sql_type == "TIMESTAMP":
        return pa.array(converted, pa.int64()).cast(pa.timestamp("us")).cast(_UTC)
    return pa.array(converted, target)


def _without_sign_of_zero(doubles: pa.Array) -> pa.Array:
    """-0.0 + 0.0 is 0.0: as a key, a dimension or a smallest value, zero has one spelling."""
    return pc.add(doubles, 0.0)


def _exact(value: Any) -> Decimal:
    if type(value) in (int, Decimal):
        return Decimal(value)
    if type(value) is float:
        return Decimal(repr(value))
    raise _Malformed("not a number")


def _whole(value: Any, bits: int) -> int:
    number = _exact(value)
    if not number:
        return 0  # however large the exponent of a zero is
    if number.adjusted() > 20 or number != number.to_integral_value():
        raise _Malformed("not a whole number")
    whole = int(number)
    if not -(2 ** (bits - 1)) <= whole < 2 ** (bits - 1):
        raise _Malformed("out of range")
    return whole


def _decimal(value: Any, precision: int, scale: int) -> Decimal:
    number = _exact(value)
    if not number:
        return Decimal(0)
    if number.adjusted() > 40:
        raise _Malformed("too large")
    with localcontext(_EXACT):
        fitted = number.quantize(Decimal(1).scaleb(-scale))
        if fitted != number or fitted.adjusted() >= precision - scale:
            raise _Malformed("does not fit without rounding")
    return fitted


def _double(value: Any) -> float:
    number = float(_exact(value))
    if number in (float("inf"), float("-inf")):
        raise _Malformed("out of range")
    return number + 0.0  # -0.0 is 0.0


def _text(value: Any) -> str:
    if type(value) is not str:
        raise _Malformed("not a string")
    return value


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise _Malformed("not true or false")
    return value


def _texts(value: Any) -> list[str]:
    if type(value) is not list or any(type(item) is not str for item in value):
        raise _Malformed("not an array of strings")
    return value


def _micros(value: Any) -> int:
    """Return epoch microseconds of ISO-8601 text or of a number of epoch milliseconds."""
    if type(value) is not str:
        micros = _whole(value, 64) * 1000
    else:
        found = _TIME.fullmatch(value)
        if not found:
            raise _Malformed("not a time")
        year, month, day, hour, minute, second = map(int, found.group(1, 2, 3, 4, 5, 6))
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        micros = (moment - _EPOCH) // timedelta(microseconds=1) + int((found[7] or "0").ljust(6, "0")[:6])
        if found[8]:
            hours, minutes = int(found[9]), int(found[10])
            if hours > 23 or minutes > 59:
                raise _Malformed("not an offset")
            micros -= (hours * 60 + minutes) * 60_000_000 * (1 if found[8] == "+" else -1)
    if not _MICROS["min"] <= micros <= _MICROS["max"]:
        raise _Malformed("outside the years 1 to 9999")
    return micros


_CONVERT = {
    "STRING": _text,
    "BOOLEAN": _truth,
    "DOUBLE": _double,
    "BIGINT": lambda value: _whole(value, 64),
    "INT": lambda value: _whole(value, 32),
    "TIMESTAMP": _micros,
    "ARRAY<STRING>": _texts,
}


def _unique_keys(stream: Stream, columns: dict[str, pa.Array], bad: list[bool]) -> pa.Array:
    """Return 128 bits of a hash of each unique key: what is remembered of an event has one size, whatever names it."""
    parts = []
    for name in stream.unique:
        column = columns[name]
        parts.append((column.cast(pa.int64()) if stream.columns[name] == "TIMESTAMP" else column).to_pylist())
    plain = [stream.columns[name] for name in stream.unique] == ["STRING"]
    texts = parts[0] if plain else [json.dumps(key, default=str) for key in zip(*parts, strict=True)]
    return pa.array([None if flag else _hashed(text) for text, flag in zip(texts, bad, strict=True)], pa.string())


def _hashed(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _checksums(values: list[bytes | None], raw_bytes: pa.ChunkedArray) -> pa.Array:
    sums = [zlib.crc32(value) if value is not None else 0 for value in values]
    if raw_bytes.null_count != len(raw_bytes):
        for row, raw in enumerate(raw_bytes.to_pylist()):
            if raw is not None:
                sums[row] = zlib.crc32(raw)
    return pa.array(sums, pa.int64())


def _as_utc(times: pa.ChunkedArray) -> pa.Array:
    return times.cast(_UTC).combine_chunks()


def spark_arrow(sql_type: str) -> pa.DataType:
    """Return the Arrow type in which a decoded column is handed to Spark: times have a zone."""
    return _UTC if sql_type == "TIMESTAMP" else arrow_type(sql_type)
