"""How is a value written down? As JSON, and as a cell of a spreadsheet."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

# A spreadsheet takes a cell that starts like this for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

# Microseconds of the years 1 to 9999; Kafka takes any 64 bits of milliseconds from a sender.
_FIRST_MICRO, _LAST_MICRO = -62_135_596_800_000_000, 253_402_300_799_999_999

_ISO = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?([Zz]|[+-][0-9]{2}:?[0-9]{2})?)?"
)

_json = msgspec.json.Encoder(decimal_format="number")


class BadQuery(ValueError):
    """A parameter cannot be honoured (422); names the field and says what is allowed."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field


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


def jsonable(value: Any) -> Any:
    """Return a value as it stands in JSON: naive times are UTC and get their `Z`."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: jsonable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [jsonable(inner) for inner in value]
    return value


def time_of(text: str, field: str) -> datetime:
    """Return naive UTC of an ISO-8601 text; no zone means UTC. Raises BadQuery."""
    try:
        if not _ISO.fullmatch(text):
            raise ValueError(text)
        value = datetime.fromisoformat(text.upper())
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    except (ValueError, OverflowError):
        raise BadQuery(field, "an ISO-8601 time such as 2026-01-31T07:00:00Z is wanted (write + as %2B)") from None
