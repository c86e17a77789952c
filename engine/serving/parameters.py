"""What may a request ask? Parameters become a checked `Query`, or a `BadQuery` that names the field.

A dimension is a parameter by its name, repeatable (OR); `<name>.null=true` adds the rows where it is NULL. Values are
typed by the column that they are held against.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa

from engine.domain import GRAINS, MEASURE_KINDS, Measure, Report, View
from engine.fold.measures import arrow_type
from engine.runtime.notation import BadQuery, time_of
from engine.serving.query import Filter, Query

# Grains as the API writes them → as the declarations write them; `all` drops the windows.
EVERY = {"1m": "1 minute", "5m": "5 minutes", "15m": "15 minutes", "1h": "1 hour", "1d": "1 day"}
FORMATS = ("json", "csv", "parquet")
PARTS = ("merged", "batch", "speed")
# Rows of an answer; a file has all that there are, up to its bytes.
LIMIT_DEFAULT, LIMIT_MAX, ALL_ROWS = 100, 10_000, 2**60
REPEATABLE = {"by", "measures", "order", "domain", "topic", "problem", "partition", "key"}
# What an exploded view can still answer when one event may stand in several of the rows that are added.
OVERLAP_SAFE = tuple(name for name, kind in MEASURE_KINDS.items() if kind.overlap_safe)

Params = Sequence[tuple[str, str]]

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,38}(\.[0-9]{1,38})?")
_FLOAT = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")


def parsed(query_string: bytes) -> Params:
    """Return the query's parameters in order. Raises BadQuery for what is not UTF-8, or far too many."""
    try:
        text = query_string.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=2000)
    except ValueError:
        raise BadQuery("query", "the query string must be percent-encoded UTF-8 with at most 2000 fields") from None


def view_query(view: View, params: Params) -> Query:
    """Check the parameters of a view's rows. Raises BadQuery naming the field."""
    types = {name: arrow_type(view.dimension_type(name)) for name in view.by}
    windowed = ("every", "from", "to") if view.every else ()
    own = (*windowed, "by", "part", "measures", "order", "limit", "format")
    given = collected(params, types, own)
    filters, texts = _filters(given, types)
    shape = _shape(view, given, filters)
    columns = (*shape.keys, *shape.measures, *shape.show)
    start, end = (_border(given, field, view, shape) for field in ("from", "to"))
    form = one_of(given, "format", FORMATS)
    return Query(
        name=view.name,
        columns=columns,
        filters=filters,
        order=_order(given, columns, shape.keys),
        limit=limit_of(given.get("limit"), form),
        format=form,
        view=view,
        shape=shape,
        part=one_of(given, "part", PARTS),
        start=start,
        end=end,
        texts=texts,
    )


def report_query(report: Report, schema: pa.Schema, params: Params) -> Query:
    """Check the parameters of a report's rows. Raises BadQuery naming the field."""
    by = [name for name in report.by if name in schema.names]
    types = {column: schema.field(column).type for column in by}
    ranged = ("from", "to") if report.time else ()
    given = collected(params, types, (*ranged, "order", "limit", "format"))
    filters, texts = _filters(given, types)
    start, end = (time_of(given[field][0], field) if given.get(field) else None for field in ("from", "to"))
    columns = tuple(schema.names)
    order = _order(given, columns, (*by, *(c for c in columns if c not in by)))
    form = one_of(given, "format", FORMATS)
    limit = limit_of(given.get("limit"), form)
    time = report.time or Query.time
    return Query(report.name, columns, filters, order, limit, form, start=start, end=end, time=time, texts=texts)


def limit_of(texts: Sequence[str] | None, form: str) -> int:
    """Return the checked `limit`, or the default of the format: a page for a program, a whole file for a person."""
    if not texts:
        return LIMIT_DEFAULT if form == "json" else ALL_ROWS
    text = texts[-1]
    if len(texts) > 1 or not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= LIMIT_MAX:
        raise BadQuery("limit", f"one whole number from 1 to {LIMIT_MAX} is wanted")
    return int(text)


def typed(text: str, kind: pa.DataType, field: str) -> Any:
    """Return the value that a literal text names in a column's type. Raises BadQuery."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return text
    if pa.types.is_boolean(kind) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if pa.types.is_integer(kind) and _INTEGER.fullmatch(text) and abs(int(text)) < 2 ** (kind.bit_width - 1):
        return int(text)
    if pa.types.is_decimal(kind) and _NUMBER.fullmatch(text):
        value = Decimal(text)
        if value == round(value, kind.scale) and abs(value) < Decimal(10) ** (kind.precision - kind.scale):
            return value
    if pa.types.is_floating(kind) and len(text) <= 64 and _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    if pa.types.is_timestamp(kind):
        return time_of(text, field)
    if pa.types.is_date(kind):
        return time_of(text, field).date() if len(text) == 10 else _no_value(field, kind)
    return _no_value(field, kind)


def _no_value(field: str, kind: pa.DataType) -> Any:
    raise BadQuery(field, f"a value of type {kind} is wanted")


def collected(params: Params, types: Mapping[str, Any], own: tuple[str, ...]) -> dict[str, list[str]]:
    """Return parameter → texts. Raises BadQuery for a name that is neither `own` nor a column of `types`."""
    allowed = {*own, "cursor", *types, *(f"{name}.null" for name in types)}
    given: dict[str, list[str]] = {}
    for name, text in params:
        if name not in allowed:
            raise BadQuery(name[:64], f"no such parameter here; allowed: {', '.join(sorted(allowed))}")
        given.setdefault(name, []).append(text)
    for name in given.keys() & {*own, "cursor"} - REPEATABLE - types.keys():
        if len(given[name]) > 1:
            raise BadQuery(name, "may be given once")
    return given


def _filters(
    given: Mapping[str, list[str]], types: Mapping[str, pa.DataType]
) -> tuple[tuple[Filter, ...], dict[str, tuple[str | None, ...]]]:
    filters, texts = [], {}
    for name, kind in types.items():
        values = tuple(dict.fromkeys(given.get(name, ())))
        nulls = [text.lower() for text in given.get(f"{name}.null", ())]
        if any(text not in ("true", "false") for text in nulls) or len(set(nulls)) > 1:
            raise BadQuery(f"{name}.null", "true or false is wanted; true adds the rows where it is NULL")
        if len(values) > 1000:
            raise BadQuery(name, "at most 1000 values")
        if values or "true" in nulls:
            filters.append(Filter(name, tuple(typed(text, kind, name) for text in values), "true" in nulls))
            texts[name] = (*values, *((None,) if "true" in nulls else ()))
    return tuple(filters), texts


def _shape(view: View, given: Mapping[str, list[str]], filters: tuple[Filter, ...]) -> View:
    by = view.by
    if "by" in given:
        by = tuple(dict.fromkeys(name for text in given["by"] for name in text.split(",") if name))
        wrong = [name for name in by if name not in view.by]
        if wrong:
            raise BadQuery("by", f"{wrong[0][:64]!r} is no dimension of {view.name}; dimensions: {', '.join(view.by)}")
    every = view.every
    if "every" in given and view.every:
        every = _grain(view, given["every"][0])
    measures, show = _measures(view, given)
    exploded = view.explode[1] if view.explode else None
    fixed = any(f.column == exploded and len(f.values) + f.or_null == 1 for f in filters)
    if exploded and exploded not in by and not fixed:
        unsafe = [name for name, measure in measures.items() if measure.kind not in OVERLAP_SAFE] + list(show)
        if unsafe:
            safe = [name for name, measure in view.measures.items() if measure.kind in OVERLAP_SAFE]
            raise BadQuery(
                "by",
                f"one event may stand under several values of '{exploded}', so {', '.join(unsafe)} would count it more than once; "
                f"group by it, fix it to one value" + (f", or ask for measures={','.join(safe)}" if safe else ""),
            )
    ordered = tuple(name for name in view.by if name in by)
    explode = view.explode if exploded in by else None
    return dataclasses.replace(view, by=ordered, every=every, measures=measures, show=show, explode=explode)


def _grain(view: View, text: str) -> str | None:
    seconds = GRAINS[view.every or "1 day"]
    allowed = [short for short, name in EVERY.items() if GRAINS[name] % seconds == 0]
    if text != "all" and text not in allowed:
        raise BadQuery("every", f"{view.name} is kept per {view.every}; allowed: {', '.join([*allowed, 'all'])}")
    return EVERY.get(text)


def _measures(view: View, given: Mapping[str, list[str]]) -> tuple[Mapping[str, Measure], Mapping[str, str]]:
    if "measures" not in given:
        return view.measures, view.show
    names = tuple(dict.fromkeys(name for text in given["measures"] for name in text.split(",") if name))
    known = (*view.measures, *view.show)
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise BadQuery("measures", f"some of {', '.join(known)} are wanted")
    if any(name in view.show for name in names):
        return view.measures, view.show  # a derived column needs what it derives from
    return {name: measure for name, measure in view.measures.items() if name in names}, {}


def _border(given: Mapping[str, list[str]], field: str, view: View, shape: View) -> datetime | None:
    if field not in given:
        return None
    value = time_of(given[field][0], field)
    grain = shape.every or view.every or "1 minute"
    if value.microsecond or int((value - datetime(1970, 1, 1)).total_seconds()) % GRAINS[grain]:
        raise BadQuery(field, f"must lie on a border of the answered grain, {grain} in UTC")
    return value


def _order(
    given: Mapping[str, list[str]], columns: tuple[str, ...], keys: tuple[str, ...]
) -> tuple[tuple[str, bool], ...]:
    order: dict[str, bool] = {}
    for text in (part for texts in given.get("order", ()) for part in texts.split(",")):
        name = text.removeprefix("-")
        if name not in columns:
            raise BadQuery("order", f"{name[:64]!r} is no column of the answer; columns: {', '.join(columns)}")
        order.setdefault(name, text.startswith("-"))
    for name in keys:
        order.setdefault(name, False)
    return tuple(order.items())


def one_of(given: Mapping[str, list[str]], field: str, allowed: tuple[str, ...]) -> str:
    text = given.get(field, [allowed[0]])[0]
    if text not in allowed:
        raise BadQuery(field, f"one of {', '.join(allowed)} is wanted")
    return text
