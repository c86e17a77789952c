"""How is a value written down, as JSON or in a spreadsheet, and how is the time in a request or a flag read?"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

# Before the text of a CSV file: without it spreadsheets do not read it as UTF-8.
BYTE_ORDER_MARK = "\ufeff".encode()

# A spreadsheet takes for a formula what starts with one of these signs (full-width ones too), behind what it drops or
# trims. A cell starts at the text's start, and after what may separate cells or lines where the list separator is not
# the comma: quotes do not help there, since they stand in the middle of what is then the cell. A number alone is no
# harm.
_DROPPED = r"[\0-\x08\x0b\x0c\x0e-\x20\x7f-\xa0\u200b-\u200f\u2060\ufeff\"]*"
_NUMBER = r"[+-]?[0-9]+(?:[.,][0-9]+)?(?:[eE][+-]?[0-9]+)?"
_FORMULA = re.compile(rf"\A(?=[\t\r])|(?:\A(?!{_NUMBER}\Z)|(?<=[;\t\r\n]))(?={_DROPPED}[=+\-@＝＋－＠])")

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


def size_of(value: Any) -> int:
    """About how many bytes a value takes in an answer."""
    if isinstance(value, str | bytes):
        return 2 + len(value)
    if isinstance(value, dict):
        return sum(len(name) + 4 + size_of(inner) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return 2 + sum(map(size_of, value))
    return 8


def csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    """Return rows as UTF-8 lines with commas, of which no spreadsheet runs anything, be its separator `,` or `;`."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    """What looks like a formula gets a quote before it; times are UTC with their Z.

    >>> _cell("Shop;=1+1"), _cell("=1+1"), _cell("-5")
    ("Shop;'=1+1", "'=1+1", '-5')
    """
    if isinstance(value, str):
        return _FORMULA.sub("'", value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, (dict, list)):
        return _FORMULA.sub("'", encode(value).decode())
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
