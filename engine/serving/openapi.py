"""What does the interface say of itself? OpenAPI 3.1, made from the very routes that are served, with a path per view.

A route names the function that describes it; what it can answer (statuses, content types, bodies) stands there, and
`tests/unit/test_openapi.py` asks the interface until it answers something else.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.domain import GRAINS, Domain, Report, View
from engine.fold.measures import shown_types
from engine.serving.parameters import EVERY, FORMATS, LIMIT_DEFAULT, LIMIT_MAX, PARTS
from engine.serving.reply import MEDIA

Operation = dict[str, Any]
Schema = dict[str, Any]


@dataclass(frozen=True)
class Route:
    """A path that is served.

    Args:
        path: as served, with at most one name in braces.
        answer: (service, request) → response.
        operations: domains → (name in the path, operation); None for what is no part of the interface.
    """

    path: str
    answer: Callable[[Any, Any], Awaitable[Any]]
    operations: Callable[[Sequence[Domain]], Iterable[tuple[str, Operation]]] | None

    @property
    def template(self) -> str:
        """The path as people read it."""
        return re.sub(r":path}", "}", self.path)


def document(routes: Iterable[Route], domains: Sequence[Domain]) -> dict[str, Any]:
    """Return the OpenAPI document of these routes for these domains."""
    paths = {
        re.sub(r"{.*}", name, route.path): {"get": operation}
        for route in routes
        if route.operations
        for name, operation in route.operations(domains)
    }
    info = {
        "title": "Highwater",
        "version": "1",
        "description": "Exact answers: a batch version plus the epochs after its horizon. HEAD answers wherever GET does.",
    }
    tags = [{"name": domain.name, "description": domain.title} for domain in domains]
    return {
        "openapi": "3.1.0",
        "info": info,
        "tags": [
            *tags,
            {"name": _ALL, "description": "Of all domains"},
            {"name": _SERVER, "description": "The process"},
        ],
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }


def describe(view: View) -> dict[str, Any]:
    """Return what the API says of a view: dimensions, grain, measures with kinds and types."""
    types = shown_types(view)
    short = {name: text for text, name in EVERY.items()}
    return {
        "view": view.name,
        "topics": [stream.topic for stream in view.streams],
        "dimensions": [{"name": name, "type": view.dimension_type(name)} for name in view.by],
        "every": short[view.every] if view.every else None,
        "measures": [
            *({"name": name, "kind": measure.kind, "type": types[name]} for name, measure in view.measures.items()),
            *({"name": name, "kind": "show", "type": types[name]} for name in view.show),
        ],
    }


# Operations, in the order of the routes -------------------------------------------------------------------------------


def catalogue(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    yield "", _operation("Every view and report", _ALL, [], _json("Catalogue"), (422,))


def views(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    for domain in domains:
        for view in domain.views:
            parameters = [*view_parameters(view), *_paging()]
            content = _rows(_view_columns(view))
            yield view.name, _operation(_what(view), domain.name, parameters, content, (410, 422, 503))


def proofs(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    for domain in domains:
        for view in domain.views:
            summary = f"The same rows recounted from the raw log. {_what(view)}"
            yield view.name, _operation(summary, domain.name, view_parameters(view), _json("Proof"), (422, 429, 503))


def reports(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    for domain in domains:
        for report in domain.reports:
            parameters = [*_report_parameters(report), *_paging()]
            # Which columns its SQL gives, and of what types, is known where it runs.
            content = _rows({name: {} for name in report.by}, "ReportAnswer", closed=False)
            yield report.name, _operation("A batch-only report", domain.name, parameters, content, (410, 422, 503))


def events(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    for domain in domains:
        for stream in domain.streams:
            times = [_parameter(name, f"event time, {text}", _TIME, _DAY) for name, text in _BORDERS]
            kind = {"type": _column(stream.columns[stream.key])["type"][0]}
            parameters = [*times, _parameter("key", f"value of {stream.key}, repeatable", _list(kind)), *_paging(False)]
            content = _rows({**_PLACE, **_columns(stream.columns)})
            summary = "Good typed events, newest first"
            yield stream.topic, _operation(summary, domain.name, parameters, content, (422, 503))


def quarantine(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    streams = [stream for domain in domains for stream in domain.streams]
    allowed = {
        "topic": _one_of(*(stream.topic for stream in streams)),
        "problem": _one_of(*sorted({problem for stream in streams for problem in stream.problems})),
        "partition": {"type": "string", "pattern": "^[0-9]{1,9}$"},
    }
    filters = [_parameter(name, "repeatable", _list(schema)) for name, schema in allowed.items()]
    columns = {**_PLACE, **_columns(dict.fromkeys(("domain", "problem", "value", "value_base64"), "STRING"))}
    summary = "Rows with a problem, newest first, raw value included"
    parameters = [_of_domain(domains), *filters, *_paging(False)]
    yield "", _operation(summary, _ALL, parameters, _rows(columns, "QuarantineAnswer"), (404, 422, 503))


def ledger(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    summary = "The balance of every partition"
    yield "", _operation(summary, _ALL, [_of_domain(domains)], _json("Ledger"), (404, 422), description=_LEDGER)


def live(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    yield "", _operation("Liveness", _SERVER, [], _json("Live"), ())


def ready(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    operation = _operation("Readiness with reasons", _SERVER, [], _json("Ready"), ())
    operation["responses"]["503"] = {"description": "Not ready", "content": _json("Ready")}
    yield "", operation


def metrics(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    yield "", _operation("The state, for Prometheus", _SERVER, [], {"text/plain": _TEXT}, ())


def itself(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    yield "", _operation("This description", _SERVER, [], {"application/json": {"schema": {"type": "object"}}}, ())


def page(domains: Sequence[Domain]) -> Iterator[tuple[str, Operation]]:
    yield "", _operation("A page for people", _SERVER, [], {"text/html": _TEXT}, ())


# Parameters -----------------------------------------------------------------------------------------------------------


def view_parameters(view: View) -> list[dict[str, Any]]:
    """Parameters of a view besides paging."""
    found = []
    for name in view.by:
        kind = view.dimension_type(name)
        values = {"type": _column(kind)["type"][0]}
        found.append(_parameter(name, f"rows where {name} ({kind}) is one of the values; repeatable", _list(values)))
        found.append(_parameter(f"{name}.null", f"true adds the rows where {name} is NULL", _one_of("true", "false")))
    if view.every:
        what = "windows that start {}, on a border of the answered grain"
        found += [_parameter(name, what.format(text), _TIME, _DAY) for name, text in _BORDERS]
        grains = [short for short, grain in EVERY.items() if GRAINS[grain] % GRAINS[view.every] == 0]
        what = "grain of the answer; all drops the windows"
        found.append(_parameter("every", what, _one_of(*grains, "all"), grains[-1]))
    types = shown_types(view)
    dimensions = {"type": "string", "pattern": f"^({_names(view.by)})?$"} if view.by else _one_of("")
    what = "dimensions to keep, by comma; empty for none"
    found.append(_parameter("by", what, dimensions, view.by[0] if view.by else ""))
    measures = {"type": "string", "pattern": f"^{_names(types)}$"}
    found.append(_parameter("measures", f"only these of {', '.join(types)}, by comma", measures, next(iter(types))))
    found.append(_parameter("part", "merged, or one side alone", _one_of(*PARTS), "merged"))
    return found


def _report_parameters(report: Report) -> list[dict[str, Any]]:
    what = "rows where {} is one of the values; repeatable"
    equal = [_parameter(name, what.format(name), _list(_STRING)) for name in report.by]
    ranged = [_parameter(name, f"rows whose {report.time} is {text}", _TIME, _DAY) for name, text in _BORDERS]
    return [*equal, *(ranged if report.time else [])]


def _of_domain(domains: Sequence[Domain]) -> dict[str, Any]:
    names = [domain.name for domain in domains]
    return _parameter("domain", "one of the domains, repeatable; all without it", _list(_one_of(*names)), [names[0]])


def _paging(ordered: bool = True) -> list[dict[str, Any]]:
    order = [_parameter("order", "columns by comma, -column for descending; NULLs last", _STRING)] if ordered else []
    limit = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}
    most = (
        f"rows at most, 1 to {LIMIT_MAX}; without it {LIMIT_DEFAULT} in JSON and all in csv and parquet; an answer of "
        "about 16 MB ends, too"
    )
    form = (
        "how the rows come, before what the Accept header asks for; csv and parquet carry as_of and the rest in "
        "X-Highwater- headers, and where more rows follow a Link header and the file's name say so"
    )
    return [
        *order,
        _parameter("limit", most, limit, 10),
        _parameter("cursor", "next_cursor of the page before, with the same parameters", _STRING),
        _parameter("format", form, _one_of(*FORMATS), "json"),
    ]


def _parameter(name: str, what: str, schema: Schema, example: Any = None) -> dict[str, Any]:
    shown = {} if example is None else {"example": example}
    return {"name": name, "in": "query", "description": what, "schema": schema, **shown}


def _one_of(*texts: str) -> Schema:
    return {"type": "string", "enum": list(texts)}


def _names(known: Iterable[str]) -> str:
    """A pattern of names by comma."""
    name = f"({'|'.join(map(re.escape, known))})"
    return f"{name}(,{name})*"


# Answers --------------------------------------------------------------------------------------------------------------

_ALL, _SERVER = "all", "server"
_BORDERS = (("from", "at or after"), ("to", "before"))
_DAY = "2026-01-31T00:00:00Z"
_TIME: Schema = {"type": "string", "format": "date-time"}
_TEXT: dict[str, Any] = {"schema": {"type": "string"}}
_PROBLEMS = {
    404: "No such name; `known` are those that there are",
    410: "The snapshot of the cursor is gone",
    422: "A parameter cannot be honoured",
    429: "Another proof is running",
    503: "Nothing right to say now; Retry-After says when to ask again",
}
_LEDGER = (
    "`good`, `problems` and `gaps` are counted below the batch `horizon`, `speed` between horizon and `speed_end`. "
    "`raw` and `typed` are the rows below `raw_head` and `typed_head`; `pending` is what lies above the typed head up "
    "to Kafka's end. `holes` are offsets below `raw_head` that have no record, such as a transaction's marker. "
    "`balanced`: horizon - origin = good + problems + gaps + holes; speed_end - horizon = speed good + problems + gaps "
    "+ holes; as many raw as typed rows lie below the typed head; horizon <= typed_head <= raw_head <= kafka_end. "
    "`only_hdfs`: rows of a closed log that Kafka lost. `lost`: null, or `from` which offset on the speed layer had "
    "counted rows of a log that Kafka lost before they were mirrored. `kafka_start` and `kafka_end` are null for a log "
    "that Kafka no longer has, or while it gives no answer."
)


def _operation(
    summary: str,
    tag: str,
    parameters: list[dict[str, Any]],
    content: Mapping[str, Any],
    problems: Iterable[int],
    **more: Any,
) -> Operation:
    problem = {"application/problem+json": {"schema": _ref("Problem")}}
    refused = {str(status): {"description": _PROBLEMS[status], "content": problem} for status in problems}
    answers = {"200": {"description": "OK", "content": content}, **refused}
    return {"summary": summary, "tags": [tag], **more, "parameters": parameters, "responses": answers}


def _what(view: View) -> str:
    return f"{', '.join([*view.measures, *view.show])} by {', '.join(view.by) or 'nothing'}"


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(schema)}}


def _rows(columns: Mapping[str, Schema], answer: str = "Answer", closed: bool = True) -> dict[str, Any]:
    """Contents of an answer of rows: `by`, `measures` and the like may leave columns out."""
    row = {"type": "object", "properties": columns, "additionalProperties": not closed}
    json = {"allOf": [_ref(answer), {"properties": {"rows": {"items": row}}}]}
    schemas = {"json": json, "csv": _TEXT["schema"], "parquet": {"type": "string", "format": "binary"}}
    return {MEDIA[form].partition(";")[0]: {"schema": schemas[form]} for form in FORMATS}


def _view_columns(view: View) -> dict[str, Schema]:
    types = {name: view.dimension_type(name) for name in view.by} | shown_types(view)
    windows = dict.fromkeys(("window_start", "window_end"), "TIMESTAMP") if view.every else {}
    return _columns({**types, **windows})


def _columns(types: Mapping[str, str]) -> dict[str, Schema]:
    """How values of SQL types stand in JSON; any may be NULL."""
    return {name: {**_column(sql_type), "description": sql_type} for name, sql_type in types.items()}


def _column(sql_type: str) -> Schema:
    if sql_type in ("INT", "BIGINT"):
        return {"type": ["integer", "null"]}
    if sql_type == "DOUBLE" or sql_type.startswith("DECIMAL"):
        return {"type": ["number", "null"]}
    if sql_type == "TIMESTAMP":
        return {"type": ["string", "null"], "format": "date-time"}
    if sql_type == "BOOLEAN":
        return {"type": ["boolean", "null"]}
    if sql_type == "ARRAY<STRING>":
        return {"type": ["array", "null"], "items": {"type": ["string", "null"]}}
    return {"type": ["object" if sql_type.startswith("STRUCT") else "string", "null"]}


def _ref(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(properties: Mapping[str, Schema], more: bool = False) -> Schema:
    """An object that has all these fields, and no other unless `more`."""
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": more}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


_BOOLEAN, _INTEGER, _OBJECT, _STRING = ({"type": name} for name in ("boolean", "integer", "object", "string"))
_OR_NULL = {"integer": {"type": ["integer", "null"]}, "string": {"type": ["string", "null"]}}
_PLACE = _columns(
    {
        **dict.fromkeys(("topic", "log", "partition"), "STRING"),
        "offset": "BIGINT",
        **dict.fromkeys(("kafka_time", "event_time"), "TIMESTAMP"),
    }
)
_POSITION = {"anyOf": [_ref("Position"), {"type": "null"}]}
_FACTS: dict[str, Schema] = {
    "as_of": _ref("AsOf"),
    "complete": {**_BOOLEAN, "description": "false exactly when something below coverage is missing"},
    "missing": _list(_ref("Missing")),
    "staleness_seconds": {"type": "number", "description": "since all of Kafka's end offsets were covered"},
    "next_cursor": {**_OR_NULL["string"], "description": "holds its snapshot for 5 minutes, then 410"},
}
_LAG = _object(dict.fromkeys(("ingest", "typed", "stream"), _INTEGER))
_CHECKS: dict[str, Schema] = {
    "status": _OR_NULL["string"],
    "version": _OR_NULL["integer"],
    "held_since": _OR_NULL["integer"],
    "failed_checks": {"type": ["object", "null"]},
}
_BALANCE: dict[str, Schema] = {
    **dict.fromkeys(("topic", "log", "partition"), _STRING),
    **dict.fromkeys(("kafka_start", "kafka_end"), _OR_NULL["integer"]),
    **dict.fromkeys(("origin", "raw_head", "typed_head", "raw", "typed", "good"), _INTEGER),
    "problems": _map(_INTEGER),
    **dict.fromkeys(("gaps", "holes", "pending", "horizon", "speed_end", "only_hdfs"), _INTEGER),
    "speed": _object({"good": _INTEGER, "problems": _map(_INTEGER)}),
    "lost": {"type": ["object", "null"]},
    "lag": _LAG,
    "balanced": _BOOLEAN,
}
_SCHEMAS: dict[str, Schema] = {
    "Position": {**_map(_map(_map(_INTEGER))), "description": "{topic: {log: {partition: offset}}}, exclusive"},
    "AsOf": _object(
        {
            "version": _OR_NULL["integer"],
            "horizon": {**_POSITION, "description": "of the batch version"},
            "coverage": {**_POSITION, "description": "every event below it is in the answer, none above"},
            "event_time_max": _OR_NULL["string"],
        }
    ),
    "Missing": _object(
        {
            **dict.fromkeys(("topic", "log", "partition", "reason"), _STRING),
            **dict.fromkeys(("start", "end"), _INTEGER),
        }
    ),
    "Answer": _object({"rows": _list(_OBJECT), **_FACTS}),
    "ReportAnswer": _object(
        {
            "rows": _list(_OBJECT),
            **_FACTS,
            "report": {**_object(_CHECKS, more=True), "description": "what its checks said"},
        }
    ),
    "QuarantineAnswer": _object(
        {
            "rows": _list(_OBJECT),
            **_FACTS,
            "as_of": {"anyOf": [_ref("AsOf"), _map(_ref("AsOf"))], "description": "of several domains: by domain"},
        }
    ),
    "Proof": _object(
        {
            **dict.fromkeys(("rows_served", "rows_recomputed", "differences"), _list(_OBJECT)),
            "match": _BOOLEAN,
            "offsets": _POSITION,
            "segments": _list(_STRING),
            "from_kafka": {**_map(_map(_list(_INTEGER))), "description": "{topic: {partition: [from, to]}}"},
            "events": {**_list(_OBJECT), "description": "up to 20 of the raw events"},
            **_FACTS,
        },
        more=True,
    ),
    "Catalogue": _object(
        {
            "domains": _list(_object(dict.fromkeys(("domain", "title"), _STRING))),
            "views": _list(
                _object(
                    {
                        **dict.fromkeys(("view", "domain"), _STRING),
                        "topics": _list(_STRING),
                        "dimensions": _list(_object(dict.fromkeys(("name", "type"), _STRING))),
                        "every": _OR_NULL["string"],
                        "measures": _list(_object(dict.fromkeys(("name", "kind", "type"), _STRING))),
                        "freshness": {"type": ["object", "null"]},
                    },
                    more=True,
                )
            ),
            "reports": _list(
                _object(
                    {**dict.fromkeys(("report", "domain"), _STRING), "columns": _list(_STRING), **_CHECKS}, more=True
                )
            ),
        }
    ),
    "Ledger": _object(
        {
            "domains": _list(
                _object(
                    {
                        "domain": _STRING,
                        "version": _INTEGER,
                        "created_at": _OR_NULL["string"],
                        "events": _object(dict.fromkeys(("batch", "speed", "merged"), _INTEGER)),
                        "balanced": _BOOLEAN,
                        **{name: schema for name, schema in _FACTS.items() if name != "next_cursor"},
                        "max_staleness_seconds": {"type": ["number", "null"]},
                        "quarantined": _map(_INTEGER),
                        "unknown_fields": _map(_map(_INTEGER)),
                        "partitions": _list(_object(_BALANCE)),
                    }
                )
            )
        }
    ),
    "Live": _object({"status": _STRING}),
    "Ready": _object({"status": _STRING, **dict.fromkeys(("reasons", "warnings"), _list(_STRING))}),
    "Problem": {
        **_object({"type": _STRING, "title": _STRING, "status": _INTEGER, "detail": _STRING}, more=True),
        "description": "RFC 9457; 404 with the names that there are, 422 with the field",
    },
}
