"""Does an answer say what the recount says? Group by group, column by column; `engine.verify` judges all answers so.

The one place of the tolerances, for the proof of one answer and for all of a domain: counts, sums, min, max, first,
last and quantiles must be equal digit for digit, averages, deviations and shown columns within 1e-9 of their size;
`distinct` is an estimate: it must be that of one sketch of all values, and lie within its stated error of the exact
count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import urlencode

import duckdb

from engine.domain import MEASURE_KINDS, Comparison, Domain, Report, View
from engine.verify.answers import (
    BadQuestion,
    Row,
    moment,
    problem_counts,
    question_of,
    report_rows,
    unknown_fields,
    view_rows,
)
from engine.verify.rawlog import RawLog

SHARE = 1e-9
# HLL of 2^12 registers: 1.04 / sqrt(2^12) standard error, five of them; below some 200 values it only knows collisions.
DISTINCT_SHARE, DISTINCT_FLOOR, DISTINCT_SMALL = 5 * 1.04 / 64, 2, 200
# A partition that was on HDFS this long before the question must be covered, or be named as missing.
SETTLED_SECONDS = 60.0

# From this many characters on a page may hold fewer rows than it was asked for: it ends by its bytes.
HEAVY_PAGE = 8_000_000

EndOf = dict[str, dict[str, dict[str, int]]]


class Difference(NamedTuple):
    """One number that is not what the raw log says.

    Without a column the rows of a group, of which one side lacks some.
    """

    where: str
    group: Any
    column: str | None
    served: Any
    recounted: Any


@dataclass(frozen=True)
class Answer:
    """What serving said of a view or a report; JSON numbers as int or Decimal.

    Args:
        first, last: whether the list begins and ends with these rows (else they are a page of it).
        at: epoch seconds before it was asked for, None for a recorded answer.
    """

    name: str
    params: tuple[tuple[str, str], ...]
    rows: list[Row]
    as_of: Mapping[str, Any]
    complete: bool
    missing: Sequence[Mapping[str, Any]]
    first: bool = True
    last: bool = True
    at: float | None = None


def same(served: Any, counted: Any) -> bool:
    """True if a JSON value says exactly what the recount found; what is not finite is null in JSON."""
    if isinstance(counted, datetime):
        return isinstance(served, str) and _time(served) == counted
    if isinstance(counted, date):
        return bool(served == counted.isoformat())
    if isinstance(counted, dict):
        return (
            isinstance(served, dict)
            and served.keys() == counted.keys()
            and all(same(served[k], v) for k, v in counted.items())
        )
    if isinstance(counted, list):
        return isinstance(served, list) and len(served) == len(counted) and all(map(same, served, counted))
    if isinstance(counted, float):
        return served is None if not math.isfinite(counted) else _is_number(served) and float(served) == counted
    if _is_number(counted):
        return _is_number(served) and bool(served == counted)
    return type(served) is type(counted) and bool(served == counted)


def near(served: Any, counted: Any) -> bool:
    """Like `same`, but doubles that come from a division may differ by 1e-9 of their size."""
    if _is_number(counted) and _is_number(served) and math.isfinite(counted):
        return abs(float(served) - float(counted)) <= max(SHARE * abs(float(counted)), 1e-12)
    return same(served, counted)


def estimated(served: Any, counted: Any) -> bool:
    """True if an estimate is that of one sketch of all values, and within its stated error of their exact number."""
    error = DISTINCT_FLOOR if counted <= DISTINCT_SMALL else DISTINCT_SHARE * counted
    return _is_number(served) and abs(served - counted) <= error and served == getattr(counted, "estimate", served)


# How a kind of measure is compared, as `engine.domain.measure.MEASURE_KINDS` declares it → when two are the same.
TESTS: Mapping[Comparison, Callable[[Any, Any], bool]] = {"exact": same, "rounded": near, "estimated": estimated}


def tests_of(view: View, columns: Iterable[str]) -> dict[str, Callable[[Any, Any], bool]]:
    """Return column → how it is compared; what is shown of measures comes from divisions."""
    comparisons = {name: MEASURE_KINDS[measure.kind].comparison for name, measure in view.measures.items()}
    return {name: TESTS[comparisons.get(name, "rounded")] for name in columns}


def _time(text: str) -> datetime | None:
    try:
        return moment(text)
    except BadQuestion:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


def compare_rows(
    where: str,
    answer: Answer,
    counted: Sequence[Row],
    keys: Sequence[str],
    tests: Mapping[str, Callable[[Any, Any], bool]],
) -> list[Difference]:
    """Compare group by group: the same groups on both sides, in each column the same value.

    Args:
        keys: columns that name a group; several rows of one group are compared in the order of their values.
        tests: other column → how it is compared.
    """
    times = {name for row in counted for name in keys if isinstance(row[name], datetime)}
    try:
        ours, theirs = _grouped(answer.rows, keys, times), _grouped(counted, keys, set())
    except KeyError as error:
        return [Difference(where, None, "rows", f"a row without a usable key: {error!r}", f"keys {', '.join(keys)}")]
    found = []
    whole = answer.first and answer.last
    for group in {**ours, **theirs} if whole else ours:
        mine, other = ours.get(group, []), theirs.get(group, [])
        shown = dict(zip(keys, group, strict=True))
        if len(mine) != len(other):
            found.append(Difference(where, shown, None, mine, other))
            continue
        for one, two in zip(mine, other, strict=True):
            if one.keys() != {*keys, *tests}:
                found.append(Difference(where, shown, "columns", sorted(one), sorted({*keys, *tests})))
                continue
            found += [
                Difference(where, shown, n, one[n], two[n]) for n, test in tests.items() if not test(one[n], two[n])
            ]
    short = not whole and len(answer.rows) != min(_limit(answer), len(counted))
    if answer.first and short and len(str(answer.rows)) < HEAVY_PAGE:
        found.append(Difference(where, None, "number of rows", len(answer.rows), min(_limit(answer), len(counted))))
    return found


def _limit(answer: Answer) -> int:
    return int(dict(answer.params).get("limit", 100))


def _grouped(rows: Sequence[Row], keys: Sequence[str], times: set[str]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        values = [_time(row[n]) if n in times and isinstance(row[n], str) else row[n] for n in keys]
        group = tuple(
            Decimal(repr(v)) if isinstance(v, float) else tuple(v) if isinstance(v, list) else v for v in values
        )
        groups.setdefault(group, []).append(row)
    for several in groups.values():
        if len(several) > 1:
            several.sort(key=lambda row: [(str(type(v)), float(v) if _is_number(v) else str(v)) for v in row.values()])
    return groups


def view_differences(con: duckdb.DuckDBPyConnection, domain: Domain, view: View, answer: Answer) -> list[Difference]:
    """Recount one answer of a view and compare. Raises BadQuestion."""
    asked = question_of(view, answer.params)
    tests = tests_of(view, asked.columns)
    counted = view_rows(con, domain, view, asked, answer.as_of)
    where = f"{view.name}{'?' + urlencode(answer.params) if answer.params else ''}"
    return compare_rows(where, answer, counted, asked.keys(view), tests)


def report_differences(
    con: duckdb.DuckDBPyConnection, domain: Domain, report: Report, answer: Answer
) -> list[Difference]:
    """Recount one unfiltered answer of a report at its horizon and compare."""
    counted = report_rows(con, domain, report, answer.as_of["horizon"])
    columns = list(counted[0] if counted else answer.rows[0] if answer.rows else report.by)
    doubles = {name for row in counted for name in columns if isinstance(row[name], float)}
    keys = [name for name in columns if name in report.by] or [name for name in columns if name not in doubles]
    tests = {name: near if name in doubles else same for name in columns if name not in keys}
    return compare_rows(report.name, answer, counted, keys, tests)


def completeness_differences(answer: Answer, raw: RawLog) -> list[Difference]:
    """What an answer says is missing below its coverage must be exactly the accepted gaps and uncovered partitions."""
    coverage = answer.as_of["coverage"] or {}
    ends = {
        (t, log, p): end
        for t, logs in coverage.items()
        if t in raw.topics
        for log, parts in logs.items()
        for p, end in parts.items()
    }
    gaps = {
        (*place, low, min(high, ends.get(place, 0))) for place, found in raw.account.gaps.items() for low, high in found
    }
    gaps = {gap for gap in gaps if gap[3] < gap[4]}
    named = {_range(one) for one in answer.missing if one["topic"] in raw.topics}
    silent = {one for one in named if one[:3] not in ends}
    found = []
    if answer.complete != (not answer.missing):
        found.append(Difference(answer.name, None, "complete", answer.complete, not answer.missing))
    if named - silent != gaps:
        found.append(Difference(answer.name, None, "missing", sorted(named - silent), sorted(gaps)))
    if answer.at is not None:
        for place, segments in raw.found.items():
            settled = segments[0].modified_ms / 1000 < answer.at - SETTLED_SECONDS
            if settled and place not in ends and place not in {one[:3] for one in silent}:
                found.append(
                    Difference(
                        answer.name, place, "coverage", "not named", f"segments from offset {segments[0].base} on"
                    )
                )
    return found


def _range(one: Mapping[str, Any]) -> tuple[str, str, str, int, int]:
    return (one["topic"], one["log"], str(one["partition"]), int(one["start"]), int(one["end"]))


def ledger_differences(con: duckdb.DuckDBPyConnection, domain: Domain, ledger: Mapping[str, Any]) -> list[Difference]:
    """Hold the ledger's counts of good rows and problems, below the horizon and from there on, against the recount."""
    horizon, speed_end = (position(ledger["partitions"], name) for name in ("horizon", "speed_end"))
    found = []
    shown, carried = ledger.get("unknown_fields", {}), unknown_fields(con, domain, horizon)
    for topic in {**shown, **carried}:
        said, exact = shown.get(topic, {}), carried.get(topic, {})
        if said != exact:
            found.append(Difference("ledger", topic, "unknown_fields", said, exact))
    below, above = problem_counts(con, domain, {}, horizon), problem_counts(con, domain, horizon, speed_end)
    for one in ledger["partitions"]:
        place = (one["topic"], one["log"], str(one["partition"]))
        for side, told, counted in (("batch", one, below), ("speed", one["speed"], above)):
            said = {"good": told["good"], **{name: n for name, n in told["problems"].items() if n and name != "gap"}}
            exact = {"good": 0, **counted.get(place, {})}
            if said != exact:
                found.append(Difference("ledger", place, side, said, exact))
    return found


def position(partitions: Iterable[Mapping[str, Any]], name: str) -> EndOf:
    """Return one offset of each partition of a ledger in the shape of a horizon."""
    where: EndOf = {}
    for one in partitions:
        where.setdefault(one["topic"], {}).setdefault(one["log"], {})[str(one["partition"])] = int(one[name])
    return where
