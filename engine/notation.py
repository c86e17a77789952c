"""How is a value written down? As JSON, and as a cell of a spreadsheet."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

# A spreadsheet takes a cell that starts like this for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_json = msgspec.json.Encoder(decimal_format="number")


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
