"""How is a value written down? As JSON, and as a cell of a spreadsheet."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

# A spreadsheet takes a cell that starts like this for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

# Microseconds of the years 1 to 9999; Kafka takes any 64 bits of milliseconds from a sender.
_FIRST_MICRO, _LAST_MICRO = -62_135_596_800_000_000, 253_402_300_799_999_999

_json = msgspec.json.Encoder(decimal_format="number")


def writable(table: pa.Table) -> pa.Table:
    """Return a table in which a time outside of the years 1 to 9999, which nobody can write down, is NULL."""
    for number, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            micros = table.column(number).cast(pa.timestamp("us", field.type.tz)).cast(pa.int64())
            held = pc.and_(pc.greater_equal(micros, _FIRST_MICRO), pc.less_equal(micros, _LAST_MICRO))
            if pc.all(held).as_py() is False:
                nothing = pa.scalar(None, field.type)
                table = table.set_column(number, field, pc.if_else(held, table.column(number), nothing))
    return table


def encode(value: Any) -> bytes:
    """Return JSON, unescaped; decimals keep all their digits, what is not finite is null."""
    return _json.encode(value)


def cell(value: Any) -> Any:
    """Return what a CSV writer takes: text that looks like a formula gets a quote before it, times are UTC with their Z."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, (dict, list)):
        return encode(value).decode()
    if isinstance(value, Decimal):
        return format(value, "f")
    return value
