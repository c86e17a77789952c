"""Is an answer right? `python -m engine.verify --proof` recounts the same rows from the raw log, and both are compared.

One recount at a time, in a process of its own that is killed at the deadline.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from engine.domain import Domain, View
from engine.runtime.notation import BadQuery, encode
from engine.serving.parameters import EVERY
from engine.serving.query import Query
from engine.serving.reply import Problem

DEADLINE_SECONDS = 30.0
GROUPS = 200
# `distinct` is an estimate: five standard errors of 2^12 registers, and what rounding does to small numbers.
DISTINCT_SHARE, DISTINCT_FLOOR = 5 * 0.016, 2
DOUBLE_SHARE = 1e-9

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "engine.verify", "--proof")
_running = asyncio.Lock()


def check(query: Query, rows: int) -> None:
    """Refuse what cannot be proven at once: parts of an answer and too many groups. Raises BadQuery."""
    if query.part != "merged":
        raise BadQuery("part", "a proof is of the merged answer")
    if rows > GROUPS:
        raise BadQuery("by", f"more than {GROUPS} groups; narrow the request by filters, from, to, every or by")


def request(domain: Domain, query: Query, coverage: Mapping[str, Any]) -> bytes:
    """Return what the recount reads: the query in the client's own words, the definition it is of, and the coverage.

    Raises Problem 503 where the recount would read the events otherwise than the layers did.
    """
    if not domain.is_of_this_code:
        raise Problem(
            503, f"made by code of another version; run batch_layer.py --domain {domain.name}", retry_after=60
        )
    shape, view = query.shape, query.view
    assert shape and view
    short = {name: text for text, name in EVERY.items()}
    every = short[shape.every] if shape.every else ("all" if view.every else None)
    asked = {"definition": domain.to_json(), "view": view.name, "filters": query.texts, "every": every, "by": shape.by}
    return json.dumps({**asked, "from": _text(query.start), "to": _text(query.end), "coverage": coverage}).encode()


async def recount(asked: bytes, domain: str, view: str, coverage: Mapping[str, Any]) -> dict[str, Any]:
    """Run the recount. Raises Problem 429 while another runs, 503 with the offsets at the deadline or when it fails."""
    if _running.locked():
        raise Problem(429, "another proof is running; one at a time", retry_after=5)
    by_hand = f"python -m engine.verify --domain {domain} --view {view}"
    async with _running:
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(asked), DEADLINE_SECONDS)
        except TimeoutError:
            raise Problem(
                503, f"no proof within {DEADLINE_SECONDS:g} s; run: {by_hand}", retry_after=60, offsets=coverage
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    try:
        found: dict[str, Any] = json.loads(out, parse_float=Decimal)
        found["rows"]
    except (ValueError, KeyError, TypeError):
        raise Problem(
            503, f"the recount failed (exit {process.returncode}); run: {by_hand}", retry_after=30, offsets=coverage
        ) from None
    return found


def differences(
    view: View, shape: View, served: Sequence[Mapping[str, Any]], counted: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what differs, row by row and column by column: {"key", "column", "served", "recomputed"}."""
    ours, theirs = ({_key(shape, row): row for row in rows} for rows in (served, counted))
    found: list[dict[str, Any]] = []
    for key in {**ours, **theirs}:
        mine, other = ours.get(key), theirs.get(key)
        if mine is None or other is None:
            found.append({"key": key, "column": None, "served": mine, "recomputed": other})
            continue
        for column in (*shape.measures, *shape.show):
            kind = view.measures[column].kind if column in view.measures else "show"
            if not equal(kind, mine[column], other.get(column)):
                found.append({"key": key, "column": column, "served": mine[column], "recomputed": other.get(column)})
    return found


def equal(kind: str, served: Any, counted: Any) -> bool:
    """True if both say the same: exactly, doubles within 1e-9, `distinct` within its stated error."""
    if served is None or counted is None:
        return served is counted or (kind == "distinct" and not served and not counted)
    mine, theirs = _number(served), _number(counted)
    if mine is None or theirs is None:
        return bool(json.loads(encode(served)) == json.loads(encode(counted)))
    if kind == "distinct":
        return abs(mine - theirs) <= max(DISTINCT_FLOOR, float(theirs) * DISTINCT_SHARE)
    if kind in ("avg", "stddev", "show") or isinstance(served, float):
        return abs(float(mine) - float(theirs)) <= DOUBLE_SHARE * max(1.0, abs(float(theirs)))
    return mine == theirs


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    try:
        return Decimal(str(value))
    except InvalidOperation:
        return None


def _key(shape: View, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The row's key as text: times in one spelling, numbers without trailing zeros, NULL apart from any text."""
    return tuple(_key_text(row.get(name)) for name in shape.keys)


def _key_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, datetime):
        return f"={_text(value)}"
    number = _number(value)
    return f"#{number.normalize():f}" if number is not None else f"={value}"


def _text(value: datetime | None) -> str | None:
    return value.replace(tzinfo=UTC).isoformat().replace("+00:00", "Z") if value else None
