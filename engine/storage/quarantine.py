"""How is a row with a problem shown? The same in answers, exports and files.

It lies in the typed log, beside the good rows, with its raw value and the name of its `problem`, which
`engine.fold.decode` (malformed) and `engine.fold.quality` (rules, duplicates) give it.
"""

from __future__ import annotations

import base64
from typing import Any

import pyarrow as pa

from engine.runtime.notation import jsonable

_TIME = pa.timestamp("us", "UTC")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("domain", "topic", "log", "partition")),
        ("offset", pa.int64()),
        ("problem", pa.string()),
        *((name, _TIME) for name in ("kafka_time", "event_time")),
        *((name, pa.string()) for name in ("value", "value_base64")),
    ]
)


def may_hold_problems(group: Any) -> bool:
    """False if every row of a row group is good."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "problem" and column.statistics is not None and column.statistics.has_null_count:
            return bool(column.statistics.null_count < group.num_rows)
    return True


def shown(domain: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with a problem as the API shows it; bytes that are not UTF-8 appear as base64."""
    named = {"domain": domain, **{name: row[name] for name in ("topic", "log", "partition", "offset", "problem")}}
    named |= {name: jsonable(row[name]) for name in ("kafka_time", "event_time")} | {"value": row["value"]}
    if row.get("value_bytes") is not None:
        named["value_base64"] = base64.b64encode(row["value_bytes"]).decode()
    return named
