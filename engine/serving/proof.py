"""Is an answer right? `python -m engine.verify --proof` recounts the same rows from the raw log, and compares both.

One recount at a time, in a process of its own that is killed at the deadline.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from engine.domain import Domain
from engine.runtime.notation import BadQuery, encode
from engine.serving.parameters import EVERY
from engine.serving.query import Query
from engine.serving.reply import Problem

DEADLINE_SECONDS = 30.0
GROUPS = 200

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "engine.verify", "--proof")
_running = asyncio.Lock()


def check(query: Query, rows: int) -> None:
    """Refuse what cannot be proven at once: parts of an answer and too many groups. Raises BadQuery."""
    if query.part != "merged":
        raise BadQuery("part", "a proof is of the merged answer")
    if rows > GROUPS:
        raise BadQuery("by", f"more than {GROUPS} groups; narrow the request by filters, from, to, every or by")


def request(domain: Domain, query: Query, coverage: Mapping[str, Any], served: Sequence[Mapping[str, Any]]) -> bytes:
    """Return what the recount reads: the query in the client's words, the definition, the coverage, the served rows.

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
    asked = {
        "definition": domain.to_json(),
        "view": view.name,
        "filters": query.texts,
        "every": every,
        "by": shape.by,
        "columns": (*shape.measures, *shape.show),
        "from": query.start,
        "to": query.end,
        "coverage": coverage,
        "served": served,
    }
    return encode(asked)


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
        found["rows"], found["differences"]
    except (ValueError, KeyError, TypeError):
        raise Problem(
            503, f"the recount failed (exit {process.returncode}); run: {by_hand}", retry_after=30, offsets=coverage
        ) from None
    return found
