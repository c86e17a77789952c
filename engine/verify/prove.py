"""What does the raw log say of one request, or at one position? The recount itself, as JSON.

`prove` answers the proof route of serving, one request at a time; `recounted` tells all views and reports at an `as_of`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from engine.domain import Domain, View
from engine.runtime.settings import Settings
from engine.verify.answers import (
    BadQuestion,
    Question,
    checked,
    matching_events,
    moment,
    question_of,
    report_rows,
    view_rows,
)
from engine.verify.compare import Answer, Difference, compare_rows, tests_of
from engine.verify.judge import furthest, read_log
from engine.verify.rawlog import RawLog

# So many faults of a raw log are named.
SHOWN_FAULTS = 20


class BrokenLog(RuntimeError):
    """The raw log has holes or overlaps, so nothing can be recounted from it; names the ranges."""


def prove(settings: Settings, request: Mapping[str, Any]) -> dict[str, Any]:
    """Recount one request, and compare what was served with it.

    Args:
        request: {"definition" (`Domain.to_json`), "view", "filters": {dimension: [texts, null]}, "from", "to", "every",
            "by", "columns", "coverage", "served": rows as the API shows them}.

    Returns:
        {"rows", "differences", "offsets", "segments", "from_kafka", "events"}; rows as the API shows them, at
        most 20 of the newest events.

    Raises:
        BadQuestion, Unanswered, BrokenLog, DeclarationError.
    """
    domain, view, asked, answer = read_request(request)
    tests, as_of = tests_of(view, asked.columns), answer.as_of
    raw, con = read_log(settings, domain, furthest([as_of["coverage"]], {s.topic for s in view.streams}), keep=True)
    _check_whole(raw)
    account = raw.account
    offsets: dict[str, Any] = {}
    for topic, logs in raw.end.items():
        offsets[topic] = {
            log: {p: [account.origins[topic, log, p], end] for p, end in parts.items()} for log, parts in logs.items()
        }
    from_kafka: dict[str, dict[str, list[int]]] = {}
    for (topic, _, partition), ends in account.from_kafka.items():
        from_kafka.setdefault(topic, {})[partition] = list(ends)
    rows = view_rows(con, domain, view, asked, as_of)
    differences = compare_rows(view.name, answer, rows, asked.keys(view), tests)
    return {
        "rows": rows,
        "differences": [_as_json(difference) for difference in differences],
        "offsets": offsets,
        "segments": account.segments,
        "from_kafka": from_kafka,
        "events": matching_events(con, domain, view, asked, as_of),
    }


def recounted(
    settings: Settings, domain: Domain, view: str | None, as_of: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the recount of views and reports at an `as_of`: {"view" or "report", "as_of", "rows"}.

    Raises BadQuestion, Unanswered, BrokenLog.
    """
    views = [_view(domain, view)] if view else domain.views
    reports = () if view or not as_of.get("horizon") else domain.reports
    coverage = as_of.get("coverage") or as_of.get("horizon") or {}
    full = {**as_of, "coverage": coverage, "horizon": as_of.get("horizon") or {}}
    topics = set(domain.topics) if reports else {stream.topic for chosen in views for stream in chosen.streams}
    raw, con = read_log(settings, domain, furthest([coverage, full["horizon"]], topics))
    _check_whole(raw)
    for chosen in views:
        rows = view_rows(con, domain, chosen, question_of(chosen, []), full)
        yield {"view": chosen.name, "as_of": as_of, "rows": rows}
    for report in reports:
        yield {"report": report.name, "as_of": as_of, "rows": report_rows(con, domain, report, full["horizon"])}


def read_request(request: Mapping[str, Any]) -> tuple[Domain, View, Question, Answer]:
    """Return what a proof request is about, and the answer that it is of. Raises BadQuestion, DeclarationError."""
    try:
        domain = Domain.from_json(request["definition"])
        view = _view(domain, request["view"])
        filters = {name: tuple(texts) for name, texts in (request.get("filters") or {}).items()}
        start, end = (moment(request[name]) if request.get(name) else None for name in ("from", "to"))
        by = tuple(view.by if request.get("by") is None else request["by"])
        asked = Question(by, filters, request.get("every"), start, end, columns=tuple(request["columns"]))
        as_of = {"coverage": request["coverage"], "horizon": {}}
        return domain, view, checked(view, asked), Answer(view.name, (), request["served"], as_of, True, ())
    except (KeyError, TypeError, AttributeError) as error:
        raise BadQuestion(f"no proof request: {error!r}") from error


def json_text(value: Any) -> str:
    """Return JSON in which decimals keep their digits and times are ISO-8601 in UTC."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))}: {json_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(json_text, value)) + "]"
    if isinstance(value, datetime):
        return f'"{value.isoformat()}Z"'
    if isinstance(value, date):
        return f'"{value.isoformat()}"'
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, float) and not math.isfinite(value):
        return "null"
    return json.dumps(value)


def _check_whole(raw: RawLog) -> None:
    if raw.account.faults:
        raise BrokenLog("; ".join(raw.account.faults[:SHOWN_FAULTS]))


def _as_json(difference: Difference) -> dict[str, Any]:
    """{"key", "column", "served", "recomputed"}; without a column a group that one side lacks, and the other's row."""
    served, recomputed = difference.served, difference.recounted
    if difference.column is None:
        served, recomputed = (rows[0] if len(rows) == 1 else rows or None for rows in (served, recomputed))
    key = None if difference.group is None else list(difference.group.values())
    return {"key": key, "column": difference.column, "served": served, "recomputed": recomputed}


def _view(domain: Domain, name: str) -> View:
    named = [view for view in domain.views if view.name == name]
    if not named:
        raise BadQuestion(
            f"domain '{domain.name}' has no view '{name}'; known: {', '.join(view.name for view in domain.views)}"
        )
    return named[0]
