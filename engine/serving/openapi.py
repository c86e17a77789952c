"""What does the interface say of itself? OpenAPI 3.1 with one path per view, and the same as a page without scripts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from engine.domain import GRAINS, Domain, Report, View
from engine.fold.measures import shown_types
from engine.serving.parameters import EVERY, FORMATS, LIMIT_DEFAULT, LIMIT_MAX, PARTS

_ANSWER = {
    "type": "object",
    "required": ["rows", "as_of", "complete", "missing", "staleness_seconds", "next_cursor"],
    "properties": {
        "rows": {"type": "array", "items": {"type": "object"}},
        "as_of": {
            "type": "object",
            "description": "version, horizon H of the batch version, coverage (every event below it is in the answer, none "
            "above), event_time_max. Horizon and coverage are {topic: {log: {partition: offset}}}, offsets exclusive.",
        },
        "complete": {"type": "boolean", "description": "false exactly when something below coverage is missing"},
        "missing": {
            "type": "array",
            "items": {"type": "object"},
            "description": "topic, log, partition, start, end, reason",
        },
        "staleness_seconds": {"type": "number", "description": "since all of Kafka's end offsets were covered"},
        "next_cursor": {"type": ["string", "null"], "description": "holds its snapshot for 5 minutes, then 410"},
    },
}
_CATALOGUE = {
    "type": "object",
    "required": ["domains", "views", "reports"],
    "properties": {
        "domains": {
            "type": "array",
            "description": "every domain, with the title that people read",
            "items": {
                "type": "object",
                "required": ["domain", "title"],
                "properties": {"domain": {"type": "string"}, "title": {"type": "string"}},
            },
        },
        "views": {"type": "array", "items": {"type": "object"}},
        "reports": {"type": "array", "items": {"type": "object"}},
    },
}
_LEDGER = (
    "`good`, `problems` and `gaps` are counted below the batch `horizon`, `speed` between horizon and `speed_end`. `raw` and "
    "`typed` are the rows below `raw_head` and `typed_head`; `pending` is what lies above the typed head up to Kafka's end. "
    "`holes` are offsets below `raw_head` that have no record, such as a transaction's marker. `balanced`: horizon - origin = good + "
    "problems + gaps + holes; speed_end - horizon = speed good + problems + gaps + holes; as many raw as typed rows lie below the "
    "typed head; horizon <= typed_head <= raw_head <= kafka_end. `only_hdfs`: rows of a closed log that Kafka lost. `lost`: null, or "
    "`from` which offset on the speed layer had counted rows of a log that Kafka lost before they were mirrored. `kafka_start` and `kafka_end` are null "
    "for a log that Kafka no longer has, or while it gives no answer."
)


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


def document(domains: Sequence[Domain]) -> dict[str, Any]:
    """Return the OpenAPI document of these domains."""
    paths: dict[str, Any] = {"/v1/views": _path("Every domain, view and report", [], schema="Catalogue")}
    for domain in domains:
        for view in domain.views:
            what = f"{domain.name}: {', '.join([*view.measures, *view.show])} by {', '.join(view.by) or 'nothing'}"
            paths[f"/v1/views/{view.name}"] = _path(what, [*view_parameters(view), *_paging()])
            paths[f"/v1/views/{view.name}/proof"] = _path(
                f"The same rows recounted from the raw log. {what}", view_parameters(view)
            )
        for report in domain.reports:
            paths[f"/v1/reports/{report.name}"] = _path(
                f"{domain.name}: a batch-only report", [*_report(report), *_paging()]
            )
        for stream in domain.streams:
            times = [_parameter(name, f"event time, {text}", "2026-01-31T07:15:00Z") for name, text in _BORDERS]
            key = _parameter("key", f"value of {stream.key}, repeatable", None, many=True)
            paths[f"/v1/events/{stream.topic}"] = _path(
                "Good typed events, newest first", [*times, key, *_paging(False)]
            )
    names = [domain.name for domain in domains]
    filters = [_parameter(name, "repeatable", None, many=True) for name in ("topic", "problem", "partition")]
    own = _parameter("domain", "one of the domains", names[0], names)
    paths["/v1/quarantine"] = _path(
        "Rows with a problem, newest first, raw value included", [own, *filters, *_paging(False)]
    )
    paths["/v1/ledger"] = _path(f"The balance of every partition. {_LEDGER}", [own])
    for path, what in (
        ("/health/live", "Liveness"),
        ("/health/ready", "Readiness with reasons"),
        ("/metrics", "Prometheus"),
    ):
        paths[path] = _path(what, [], data=False)
    info = {
        "title": "Highwater",
        "version": "1",
        "description": "Exact answers: a batch version plus the epochs after its horizon.",
    }
    return {
        "openapi": "3.1.0",
        "info": info,
        "paths": paths,
        "components": {"schemas": {"Answer": _ANSWER, "Catalogue": _CATALOGUE}},
    }


def page(domains: Sequence[Domain]) -> str:
    """Return the document as one HTML page."""
    parts = []
    for path, item in document(domains)["paths"].items():
        get = item["get"]
        rows = "".join(
            f"<tr><td><code>{_e(p['name'])}</code></td><td>{_e(p['description'])}</td><td>{_e(p.get('example', ''))}</td></tr>"
            for p in get["parameters"]
        )
        example = _e(path)
        table = f"<table><tr><th>parameter</th><th>meaning</th><th>example</th></tr>{rows}</table>" if rows else ""
        parts.append(
            f'<h2>GET {_e(path)}</h2><p>{_e(get["summary"])}</p><p><a href="{example}">{example}</a></p>{table}'
        )
    title = (
        '<h1>Highwater REST interface</h1><p><a href="/">Dashboard</a> · <a href="/openapi.json">openapi.json</a></p>'
    )
    viewport = '<meta name="viewport" content="width=device-width">'
    return f'<!doctype html><html lang="en"><head><meta charset="utf-8">{viewport}<title>Highwater REST</title></head><body>{title}{"".join(parts)}</body></html>'


def view_parameters(view: View) -> list[dict[str, Any]]:
    """Parameters of a view besides paging."""
    found = []
    for name in view.by:
        kind = view.dimension_type(name)
        found.append(_parameter(name, f"rows where {name} ({kind}) is one of the values; repeatable", None, many=True))
        found.append(_parameter(f"{name}.null", f"true adds the rows where {name} is NULL", None, ["true", "false"]))
    if view.every:
        found += [
            _parameter(name, f"windows that start {text}, on a border of the answered grain", _DAY)
            for name, text in _BORDERS
        ]
        grains = [short for short, grain in EVERY.items() if GRAINS[grain] % GRAINS[view.every] == 0]
        found.append(_parameter("every", "grain of the answer; all drops the windows", grains[-1], [*grains, "all"]))
    found.append(_parameter("by", "dimensions to keep, by comma; empty for none", view.by[0] if view.by else ""))
    types = shown_types(view)
    found.append(_parameter("measures", f"only these of {', '.join(types)}, by comma", next(iter(types))))
    found.append(_parameter("part", "merged, or one side alone", "merged", list(PARTS)))
    return found


_BORDERS = (("from", "at or after"), ("to", "before"))
_DAY = "2026-01-31T00:00:00Z"


def _report(report: Report) -> list[dict[str, Any]]:
    ranged = [_parameter(name, f"rows whose {report.time} is {text}", _DAY) for name, text in _BORDERS]
    equal = [
        _parameter(name, f"rows where {name} is one of the values; repeatable", None, many=True) for name in report.by
    ]
    return [*equal, *(ranged if report.time else [])]


def _paging(ordered: bool = True) -> list[dict[str, Any]]:
    order = [_parameter("order", "columns by comma, -column for descending; NULLs last", None)] if ordered else []
    limit = _parameter(
        "limit",
        f"rows of a page at most, 1 to {LIMIT_MAX}, default {LIMIT_DEFAULT}; a page of about 16 MB ends, too",
        10,
    )
    limit["schema"] = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}
    return [
        *order,
        limit,
        _parameter("cursor", "next_cursor of the page before, with the same parameters", None),
        _parameter(
            "format",
            "how the rows come; csv and parquet carry as_of and the rest in X-Highwater- headers",
            "json",
            list(FORMATS),
        ),
    ]


def _parameter(
    name: str, what: str, example: Any, allowed: list[str] | None = None, many: bool = False
) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", **({"enum": allowed} if allowed else {})}
    found = {
        "name": name,
        "in": "query",
        "description": what,
        "schema": {"type": "array", "items": schema} if many else schema,
    }
    return {**found, "example": example} if example is not None else found


def _path(what: str, parameters: list[dict[str, Any]], data: bool = True, schema: str = "Answer") -> dict[str, Any]:
    errors = {"422": "A parameter cannot be honoured", "503": "Nothing right to say now"} if data else {}
    known = parameters or schema != "Answer"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}} if known else {}
    told = {code: {"description": text, "content": {"application/problem+json": {}}} for code, text in errors.items()}
    ok = {"description": "OK", **({"content": content} if content else {})}
    return {"get": {"summary": what, "parameters": parameters, "responses": {"200": ok, **told}}}


def _e(value: Any) -> str:
    return html.escape(str(value))
