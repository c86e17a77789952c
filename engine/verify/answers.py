"""What should a view or a report say? One query over the judged rows of the raw log, nothing merged, nothing stored.

The arithmetic is written a second time: exact sums, deviations from whole numbers, `distinct` as an
exact count with the estimate of one sketch of all values beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any

import duckdb
import pyarrow as pa
from datasketches import hll_sketch, hll_union, tgt_hll_type

from engine.domain import GRAINS, Domain, Measure, Report, Stream, View, decimal_of
from engine.verify.rows import shortest, table_of

Position = Mapping[str, Mapping[str, Mapping[str, int]]]
Row = dict[str, Any]

EVERY = {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "1d": 86400}
EVENTS = 20
PARTS = ("merged", "batch", "speed")
PARAMETERS = ("every", "from", "to", "by", "part", "measures", "order", "limit", "cursor", "format")


# Ends the name of the column with the exact count beside an estimate; a measure's name has no `__`.
_EXACT = "__exact"


class Distinct(int):
    """An exact number of different values that remembers what the sketch estimates."""

    estimate: int

    def __new__(cls, exact: int, estimate: int) -> Distinct:
        found = super().__new__(cls, exact)
        found.estimate = estimate
        return found


class BadQuestion(Exception):
    """A recorded query or a proof asks for something that the declaration does not know."""


@dataclass(frozen=True)
class Question:
    """What a request asked of a view.

    Args:
        filters: dimension → texts, one of which must match; None stands for NULL.
        every: `1m` … `1d`, `all`, or None for the view's own grain.
        start, end: windows that begin in [start, end), naive UTC.
        part: merged, batch (below the horizon) or speed (from it on).
    """

    by: tuple[str, ...]
    filters: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    every: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    part: str = "merged"
    columns: tuple[str, ...] = ()

    def keys(self, view: View) -> tuple[str, ...]:
        """Columns that name a row of the answer."""
        return (*self.by, "window_start", "window_end") if view.every and self.every != "all" else self.by


def question_of(view: View, params: Sequence[tuple[str, str]]) -> Question:
    """Read the parameters of a request as the API documents them. Raises BadQuestion."""
    given: dict[str, list[str]] = {}
    for name, text in params:
        given.setdefault(name, []).append(text)
    unknown = [n for n in given if n not in PARAMETERS and n.removesuffix(".null") not in view.by]
    if unknown:
        raise BadQuestion(f"view '{view.name}': no parameter {unknown[0]!r}")
    filters: dict[str, tuple[str | None, ...]] = {}
    for name in view.by:
        null = given.get(f"{name}.null", [""])[-1].lower() == "true"
        if wanted := (*given.get(name, ()), *((None,) if null else ())):
            filters[name] = wanted
    by = _names(given.get("by")) if "by" in given else view.by
    asked = _names(given.get("measures"))
    columns = asked if asked and not any(name in view.show for name in asked) else (*view.measures, *view.show)
    start, end = (moment(given[name][0]) if name in given else None for name in ("from", "to"))
    ordered = tuple(name for name in view.by if name in by)
    every, part = given.get("every", [None])[0], given.get("part", ["merged"])[0]
    return checked(view, Question(ordered, filters, every, start, end, part, columns))


def checked(view: View, asked: Question) -> Question:
    """Return the question if the view can answer it. Raises BadQuestion."""
    unknown = [name for name in (*asked.by, *asked.filters) if name not in view.by]
    unknown += [name for name in asked.columns if name not in view.measures and name not in view.show]
    if unknown:
        raise BadQuestion(f"view '{view.name}' has no column '{unknown[0]}'")
    if asked.every not in (None, "all", *EVERY) or asked.part not in PARTS:
        raise BadQuestion(f"view '{view.name}': every={asked.every!r}, part={asked.part!r} is not known")
    if not view.every and (asked.start or asked.end or asked.every not in (None, "all")):
        raise BadQuestion(f"view '{view.name}' has no windows")
    return asked


def moment(text: str) -> datetime:
    """Naive UTC of an ISO-8601 text; no zone means UTC. Raises BadQuestion."""
    try:
        value = datetime.fromisoformat(text.upper())
    except ValueError:
        raise BadQuestion(f"{text!r} is no time") from None
    return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value


def view_rows(
    con: duckdb.DuckDBPyConnection, domain: Domain, view: View, asked: Question, as_of: Mapping[str, Any]
) -> list[Row]:
    """Recompute a view at an `as_of` ({"horizon", "coverage"}); one dict per group, times naive UTC."""
    _set_bounds(con, asked.part, as_of)
    sql, values = _folded(domain, view, asked)
    folded = _finished(con.sql(sql, params=values).to_arrow_table(), view)
    con.register("folded", folded)
    try:
        derived = "".join(f', {sql} AS "{name}"' for name, sql in view.shown_in("duckdb").items())
        shown = con.execute(f"SELECT *{derived} FROM folded")
        names = [column[0] for column in shown.description]
        found = [dict(zip(names, row, strict=True)) for row in shown.fetchall()]
    finally:
        con.unregister("folded")
    wanted = (*asked.keys(view), *asked.columns)
    return [{name: _value_of(row, name) for name in wanted} for row in found]


def _value_of(row: Row, name: str) -> Any:
    return Distinct(row[name + _EXACT], row[name]) if name + _EXACT in row else row[name]


def report_rows(con: duckdb.DuckDBPyConnection, domain: Domain, report: Report, horizon: Position) -> list[Row]:
    """Recompute a report, and the reports declared before it, over the good rows below a horizon."""
    _set_bounds(con, "merged", {"coverage": horizon})
    for stream in domain.streams:
        name = re.sub("[-.]", "_", stream.topic)
        con.execute(f'CREATE OR REPLACE TEMP VIEW "{name}" AS {_good_rows(domain, stream, ["*"])}')
    rows: list[Row] = []
    for one in domain.reports[: domain.reports.index(report) + 1]:
        con.execute(f'CREATE OR REPLACE TEMP TABLE "{one.name}" AS {one.query}')
    answer = con.execute(f'SELECT * FROM "{report.name}"')
    names = [column[0] for column in answer.description]
    rows = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
    for one in domain.reports[: domain.reports.index(report) + 1]:
        con.execute(f'DROP TABLE "{one.name}"')
    return rows


def problem_counts(
    con: duckdb.DuckDBPyConnection, domain: Domain, start: Position, end: Position
) -> dict[tuple[str, str, str], dict[str, int]]:
    """Count the rows of [start, end) per partition and problem; `good` where there is none."""
    _set_bounds(con, "speed", {"horizon": start, "coverage": end})
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    for stream in domain.streams:
        rows = _bounded(domain, stream, ["problem"])
        sql = f"SELECT log, partition, coalesce(problem, 'good'), count(*) FROM ({rows}) GROUP BY ALL"
        for log, partition, problem, number in con.execute(sql).fetchall():
            counts.setdefault((stream.topic, log, partition), {})[problem] = number
    return counts


def unknown_fields(con: duckdb.DuckDBPyConnection, domain: Domain, end: Position) -> dict[str, dict[str, int]]:
    """Count the rows below `end` with a field that no schema knows, per topic and name, the shortest by name."""
    _set_bounds(con, "merged", {"coverage": end})
    found: dict[str, dict[str, int]] = {}
    for stream in domain.streams:
        rows = _bounded(domain, stream, ["unknown"])
        sql = f"SELECT unnest(unknown), count(*) FROM ({rows}) WHERE unknown IS NOT NULL GROUP BY 1"
        if counted := dict(con.execute(sql).fetchall()):
            found[stream.topic] = shortest(counted)
    return found


def matching_events(
    con: duckdb.DuckDBPyConnection, domain: Domain, view: View, asked: Question, as_of: Mapping[str, Any]
) -> list[Row]:
    """Return up to 20 of the newest raw events that a question speaks of; they must have been loaded with `keep`."""
    _set_bounds(con, asked.part, as_of)
    where, values = _conditions(view, asked)
    sql = (
        f'SELECT DISTINCT topic, log, partition, "offset", value FROM ({_rows(domain, view)}){where} '
        f'ORDER BY "offset" DESC, topic, log, partition LIMIT {EVENTS}'
    )
    found = con.execute(sql, values).fetchall()
    return [dict(zip(("topic", "log", "partition", "offset", "value"), row, strict=True)) for row in found]


def _names(texts: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for text in texts or () for name in text.split(",") if name))


def _set_bounds(con: duckdb.DuckDBPyConnection, part: str, as_of: Mapping[str, Any]) -> None:
    """Put the offsets [low, high) of each partition that take part into the table that every query joins."""
    end = as_of["horizon" if part == "batch" else "coverage"] or {}
    start = (as_of["horizon"] or {}) if part == "speed" else {}
    rows = [
        (topic, log, partition, start.get(topic, {}).get(log, {}).get(partition, 0), high)
        for topic, logs in end.items()
        for log, partitions in logs.items()
        for partition, high in partitions.items()
    ]
    con.execute(
        "CREATE OR REPLACE TEMP TABLE bound (topic VARCHAR, log VARCHAR, partition VARCHAR, low BIGINT, high BIGINT)"
    )
    if rows:
        con.executemany("INSERT INTO bound VALUES (?, ?, ?, ?, ?)", rows)


def _bounded(domain: Domain, stream: Stream, columns: Sequence[str]) -> str:
    names = ", ".join(f"t.{name}" if name == "*" else f't."{name}"' for name in columns)
    position = "" if "*" in columns else 't.log, t.partition, t."offset", t.event_time, t.value, '
    return (
        f"SELECT '{stream.topic}' AS topic, {position}{names} FROM {table_of(domain, stream.topic)} t "
        f"JOIN bound b ON b.topic = '{stream.topic}' AND t.log = b.log AND t.partition = b.partition "
        f'AND t."offset" >= b.low AND t."offset" < b.high'
    )


def _good_rows(domain: Domain, stream: Stream, columns: Sequence[str]) -> str:
    return f"{_bounded(domain, stream, columns)} WHERE t.problem IS NULL"


def _rows(domain: Domain, view: View) -> str:
    """SQL of the good rows of all streams of a view, with `_element` of an exploded array and `_window` in epoch µs."""
    texts = [measure.where or "" for measure in view.measures.values()]
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    named = {
        *view.by,
        *words,
        *(view.explode or ()),
        *(column for measure in view.measures.values() for column in measure.columns),
    }
    # Only a column of every stream can be meant; any other word of a condition is a function, a text or a keyword.
    common = [
        name for name in view.streams[0].columns if name in named and all(name in s.columns for s in view.streams)
    ]
    position = ["kafka_time"] if "kafka_time" in words else []
    union = " UNION ALL ".join(
        _good_rows(domain, stream, [*common, *position] or ["problem"]) for stream in view.streams
    )
    extra = ""
    if view.explode:
        array = f'"{view.explode[0]}"'
        extra += f", unnest(CASE WHEN len({array}) > 0 THEN list_distinct({array}) ELSE ['(unknown)'] END) AS _element"
    if view.every:
        extra += f", {_floor('epoch_us(event_time)', GRAINS[view.every])} AS _window"
    return f"SELECT *{extra} FROM ({union})"


def _floor(micros: str, seconds: int) -> str:
    width = seconds * 1_000_000
    return f"({micros} - (({micros} % {width}) + {width}) % {width})"


def _conditions(view: View, asked: Question) -> tuple[str, list[Any]]:
    tests, values = [], []
    for name, texts in asked.filters.items():
        column, sql_type = _dimension(view, name), view.dimension_type(name)
        equal = [
            f"{column} = CAST(? AS {'VARCHAR' if sql_type == 'STRING' else sql_type})"
            for text in texts
            if text is not None
        ]
        values += [moment(text) if sql_type == "TIMESTAMP" else text for text in texts if text is not None]
        tests.append(f"({' OR '.join([*equal, *([f'{column} IS NULL'] if None in texts else [])])})")
    for border, sign in ((asked.start, ">="), (asked.end, "<")):
        if border is not None:
            tests.append(f"make_timestamp(_window) {sign} ?")
            values.append(border)
    return (f" WHERE {' AND '.join(tests)}" if tests else ""), values


def _dimension(view: View, name: str) -> str:
    return "_element" if view.explode and name == view.explode[1] else f'"{name}"'


def _folded(domain: Domain, view: View, asked: Question) -> tuple[str, list[Any]]:
    """SQL of one row per group with its keys and measures, and the values it binds."""
    columns = [f'{_dimension(view, name)} AS "{name}"' for name in asked.by]
    if "window_start" in asked.keys(view):
        seconds = EVERY[asked.every] if asked.every else GRAINS[view.every or ""]
        start = _floor("_window", seconds)
        columns += [
            f"make_timestamp({start}) AS window_start",
            f"make_timestamp({start} + {seconds * 1_000_000}) AS window_end",
        ]
    groups = len(columns)
    columns += [f'{_measured(view, measure)} AS "{name}"' for name, measure in view.measures.items()]
    where, values = _conditions(view, asked)
    group = f"GROUP BY {', '.join(map(str, range(1, groups + 1)))}" if groups else "HAVING count(*) > 0"
    return f"SELECT {', '.join(columns)} FROM ({_rows(domain, view)}){where} {group}", values


def _measured(view: View, measure: Measure) -> str:
    quoted = [f'"{name}"' for name in measure.columns]
    value = quoted[0] if len(quoted) == 1 else f"struct_pack({', '.join(f'{c} := {c}' for c in quoted)})"
    tests = [where] if (where := view.where_in(measure, "duckdb")) else []
    if quoted:
        tests.append(f"({' OR '.join(f'{column} IS NOT NULL' for column in quoted)})")
    only = f" FILTER (WHERE {' AND '.join(tests)})" if tests else ""
    position = (
        'struct_pack(t := event_time, topic := topic, log := log, p := CAST(partition AS INTEGER), o := "offset")'
    )
    match measure.kind:
        case "count":
            return f"count(*){only}"
        case "sum":  # in the type that a shown column works with
            scale = (decimal_of(view.type_of(measure.columns[0])) or (0, 0))[1]
            return f"CAST(sum({value}){only} AS DECIMAL(38,{scale}))"
        case "min" | "max":
            return f"{measure.kind}({value}){only}"
        case "avg":
            return f"CAST(sum({value}){only} AS DOUBLE) / nullif(count(*){only}, 0)"
        case "stddev":
            # Whole units of the last digit, read from the decimal's text.
            units = f"CAST(replace(CAST({value} AS VARCHAR), '.', '') AS HUGEINT)"
            sums = (f"count(*){only}", f"sum({units}){only}", f"sum({units} * {units}){only}")
            return f"[{', '.join(f'CAST({one} AS VARCHAR)' for one in sums)}]"
        case "first" | "last":
            return f"{'arg_min' if measure.kind == 'first' else 'arg_max'}({value}, {position}){only}"
        case "distinct":
            precision, scale = decimal_of(view.type_of(measure.columns[0])) or (0, -1)
            # A decimal without digits before the point would be .5 here and 0.5 in Spark's sketch.
            spelt = f"CAST({value} AS DECIMAL({precision + 1},{scale}))" if precision == scale else value
            return f"coalesce(list(DISTINCT CAST({spelt} AS VARCHAR)){only}, [])"
        case "quantiles":
            return f"coalesce(list(CAST({value} AS VARCHAR)){only}, [])"
    raise NotImplementedError(
        f"view '{view.name}': the recount has no '{measure.kind}'; write it in engine/verify/answers.py"
    )


def _finished(folded: pa.Table, view: View) -> pa.Table:
    """Turn what `_measured` gathers for deviations and estimates into what is shown.

    Exact counts get their own column.
    """
    for name, measure in view.measures.items():
        place = folded.schema.get_field_index(name)
        if measure.kind == "stddev":
            scale = (decimal_of(view.type_of(measure.columns[0])) or (0, 0))[1]
            sums = [[int(text or 0) for text in texts] for texts in folded[name].to_pylist()]
            deviations = [deviation(n, total, squares, scale) for n, total, squares in sums]
            folded = folded.set_column(place, name, pa.array(deviations, pa.float64()))
        elif measure.kind == "distinct":
            values = folded[name].to_pylist()
            folded = folded.set_column(place, name, pa.array(map(estimate, values), pa.int64()))
            folded = folded.append_column(name + _EXACT, pa.array(map(len, values), pa.int64()))
        elif measure.kind == "quantiles":
            share = Decimal(measure.at or "")
            found = [quantile(sorted(map(Decimal, texts)), share) for texts in folded[name].to_pylist()]
            folded = folded.set_column(place, name, pa.array(found, pa.float64()))
    return folded


def estimate(values: Sequence[str]) -> int:
    """What an HLL sketch of 2^12 registers makes of different texts, after a union with itself.

    "" is no value to it.
    """
    sketch, union = hll_sketch(12, tgt_hll_type.HLL_8), hll_union(12)
    for value in values:
        if value:
            sketch.update(value)
    union.update(sketch)
    union.update(sketch)
    return round(float(union.get_result(tgt_hll_type.HLL_8).get_estimate()))


def quantile(ordered: Sequence[Decimal], share: Decimal) -> float | None:
    """Middle of the bucket of the ceil(share × number)-th value: a double's sign, exponent and next six bits."""
    if not ordered:
        return None
    value = float(ordered[max(1, math.ceil(share * len(ordered))) - 1])
    if not value:
        return 0.0
    mantissa, exponent = math.frexp(value)
    steps = math.floor(abs(mantissa) * 128)  # 64 to 127
    return math.copysign(math.ldexp((steps + 0.5) / 128, exponent), value)


def deviation(n: int, total: int, squares: int, scale: int) -> float | None:
    """Sample standard deviation of n values given in units of 10**-scale; None below two values."""
    if n < 2:
        return None
    exact = Context(prec=60)
    variance = exact.divide(Decimal(n * squares - total * total), Decimal(n * (n - 1)))
    return float(exact.scaleb(exact.sqrt(variance), -scale))
