"""What does each route answer? From checked parameters and one snapshot to the bytes of a reply."""

from __future__ import annotations

import dataclasses
import hashlib
import mimetypes
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from fastapi import Request, Response
from prometheus_client import Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from engine.domain import Domain, Report, View
from engine.fold.measures import arrow_type
from engine.runtime.metrics import new_registry, unix_seconds
from engine.runtime.notation import BadQuery, encode, jsonable, time_of
from engine.serving import proof, tail
from engine.serving.openapi import describe
from engine.serving.parameters import (
    FORMATS,
    Params,
    collected,
    limit_of,
    one_of,
    parsed,
    report_query,
    typed,
    view_query,
)
from engine.serving.query import Query, fetch_rows, fetch_table
from engine.serving.reply import HEADERS, Problem, body, preferred, rows_reply
from engine.serving.service import Service
from engine.serving.snapshot import Snapshot, beginning
from engine.storage import quarantine, versions
from engine.storage.log import Partition

_log = structlog.get_logger("engine.serving.answers")


def json_reply(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status, {"Cache-Control": "no-store"}, "application/json")


def none_but(params: Params, *allowed: str) -> dict[str, list[str]]:
    """Collect parameters of a route that has no columns. Raises BadQuery for any other."""
    return collected(params, {}, allowed)


def _params(request: Request) -> Params:
    return parsed(request.scope["query_string"])


def _rows_params(request: Request) -> Params:
    """Parameters of a route that gives rows: where they name no format, the Accept header may."""
    params, wanted = _params(request), preferred(request.headers.get("accept", ""))
    named = wanted == "json" or any(name == "format" for name, _ in params)
    return params if named else [*params, ("format", wanted)]


async def catalogue(service: Service, request: Request) -> Response:
    """Every domain with its title, every view with its freshness, and every report with its columns."""
    none_but(_params(request))
    names = [{"domain": domain.name, "title": domain.title} for domain in service.domains]
    views, reports = [], []
    for domain in service.domains:
        current = service.loaders[domain.name].current
        watch = service.watches[domain.name]
        for view in domain.views:
            freshness = None
            if current is not None:
                freshness = {
                    "version": current.manifest.version,
                    "created_at": current.manifest.created_at,
                    "coverage_rows": watch.rows_below(current.coverage, [stream.topic for stream in view.streams]),
                    "staleness_seconds": round(watch.staleness(current, service.clock()), 3),
                }
            views.append({**describe(view), "domain": domain.name, "freshness": freshness})
        for report in domain.reports:
            table = current.reports.get(report.name) if current else None
            columns = list(table.schema.names) if table is not None else list(report.by)
            checks = _checks(current.manifest.reports.get(report.name, {}) if current else {})
            reports.append({"report": report.name, "domain": domain.name, "columns": columns, **checks})
    return json_reply({"domains": names, "views": views, "reports": reports})


async def ledger(service: Service, request: Request) -> Response:
    """The balance of one domain, or of all; one without a version and epochs yet covers nothing."""
    names = none_but(_params(request), "domain").get("domain")
    chosen = [service.domain(name) for name in names] if names else service.domains
    now, bound = service.clock(), service.settings.ready_staleness or None
    told = []
    for domain in chosen:
        loader = service.loaders[domain.name]
        balance = service.watches[domain.name].ledger(loader.current or beginning(domain), now)
        told.append({**balance, "max_staleness_seconds": bound})
    return json_reply({"domains": told})


async def live(service: Service, request: Request) -> Response:
    """The process answers."""
    return json_reply({"status": "live"})


async def ready(service: Service, request: Request) -> Response:
    """Whether there is something right to say, with reasons."""
    failing, worrying = service.reasons()
    said = {"status": "not ready" if failing else "ready", "reasons": failing, "warnings": worrying}
    return json_reply(said, 503 if failing else 200)


async def view_rows(service: Service, request: Request) -> Response:
    """One page of a view: merged, or one side alone."""
    domain, view = service.view(request.path_params["name"])
    query = view_query(view, _rows_params(request))
    snapshot, place = await _place(service, domain, query, request)
    return await _page(service, request, snapshot, query, _sides(snapshot, view), place, {})


async def report_rows(service: Service, request: Request) -> Response:
    """One page of a report, with what its checks said."""
    domain, report = service.report(request.path_params["name"])
    snapshot = service.snapshot(domain)
    query = report_query(report, _report(snapshot, report).schema, _rows_params(request))
    snapshot, place = await _place(service, domain, query, request)
    table = _report(snapshot, report)
    said = _checks(snapshot.manifest.reports[report.name])
    return await _page(service, request, snapshot, query, {"report": table}, place, {"report": said})


def _checks(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the checks of a report said: its status, the version of its rows, since when it is held, and why."""
    said = {name: entry.get(name) for name in ("status", "version", "held_since", "failed_checks")}
    return said | ({"error": entry["error"]} if entry.get("error") else {})


def _report(snapshot: Snapshot, report: Report) -> pa.Table:
    table = snapshot.reports.get(report.name)
    if table is None:
        held = versions.held_back(snapshot.manifest).get(report.name)
        why = f"it is {held}" if held else "reports are made by batch_layer.py"
        raise Problem(503, f"no batch version holds report '{report.name}' yet; {why}", retry_after=30)
    return table


async def _place(
    service: Service, domain: Domain, query: Query, request: Request
) -> tuple[Snapshot, Mapping[str, Any]]:
    """Return the snapshot that a cursor names and what it holds, else the current one and the beginning."""
    token = dict(_params(request)).get("cursor")
    if token is None:
        return service.snapshot(domain), {"offset": 0}
    value = service.cursors.open(token, query.digest)
    return await service.held(domain, value["snapshot"]), value


def _sides(snapshot: Snapshot, view: View) -> dict[str, pa.Table]:
    return {"batch": snapshot.batch[view.name], "speed": snapshot.speed[view.name]}


def _facts(service: Service, snapshot: Snapshot, query: Query) -> dict[str, Any]:
    """A report speaks of its version's horizon, not of what came after."""
    if query.view is not None:
        return service.facts(snapshot)
    manifest = snapshot.manifest
    facts = service.facts(dataclasses.replace(snapshot, coverage=manifest.horizon, created_at=manifest.created_at))
    made = manifest.reports[query.name].get("version")
    if made != manifest.version:
        facts["as_of"] = {"version": made, "horizon": None, "coverage": None, "event_time_max": None}
    else:
        facts["as_of"] = {**facts["as_of"], "event_time_max": manifest.event_time_max}
    return facts


async def _page(
    service: Service,
    request: Request,
    snapshot: Snapshot,
    query: Query,
    tables: Mapping[str, pa.Table],
    place: Mapping[str, Any],
    more: Mapping[str, Any],
) -> Response:
    facts = _facts(service, snapshot, query)
    offset, page = int(place["offset"]), int(place.get("page", 1))

    def work(cursor: duckdb.DuckDBPyConnection) -> tuple[bytes, dict[str, str]]:
        fetch = fetch_table if query.format == "parquet" else fetch_rows
        with cursor:
            rows: Any = fetch(cursor, query, tables, offset, tail.PAGE_BYTES)
        further, number = None, tail.rows_of_page(rows, query.limit)
        if len(rows) > number:
            following = {"snapshot": service.hold(snapshot), "offset": offset + number, "page": page + 1}
            further = service.cursors.seal({"list": query.digest, **following})
        return body(query.format, query.columns, rows[:number], {**facts, "next_cursor": further, **more})

    content, headers = await service.run(work)
    return rows_reply(content, headers, query.format, request.url, page)


async def proven(service: Service, request: Request) -> Response:
    """The served rows, the same rows recounted from the raw log, and what differs."""
    domain, view = service.view(request.path_params["name"])
    params = _params(request)
    asked = [(name, text) for name, text in params if name not in ("limit", "cursor", "format", "order")]
    for name, _ in params:
        if name in ("limit", "cursor", "format"):
            raise BadQuery(name, f"a proof is of a whole answer, as JSON, of at most {proof.GROUPS} groups")
    query = dataclasses.replace(view_query(view, asked), limit=proof.GROUPS)
    snapshot = service.snapshot(domain)
    sides = _sides(snapshot, view)
    rows = await service.run(lambda cursor: fetch_rows(cursor, query, sides, 0))
    proof.check(query, len(rows))
    served = [dict(zip(query.columns, row, strict=True)) for row in rows]
    asked_of_recount = proof.request(domain, query, snapshot.coverage, served)
    found = await proof.recount(asked_of_recount, domain.name, view.name, snapshot.coverage)
    told = {name: found.get(name) for name in ("differences", "offsets", "segments", "from_kafka", "events")}
    result = {"rows_served": served, "rows_recomputed": found["rows"], "match": not found["differences"]}
    return json_reply({**result, **told, **service.facts(snapshot), "next_cursor": None})


async def event_rows(service: Service, request: Request) -> Response:
    """Good typed events of a topic, newest first by log position."""
    topic = request.path_params["name"]
    domain = service.topic(topic)
    stream = domain.stream(topic)
    given = none_but(_rows_params(request), "from", "to", "key", "limit", "format")
    start, end = (time_of(given[name][0], name) if name in given else None for name in ("from", "to"))
    keys = [typed(text, arrow_type(stream.columns[stream.key]), "key") for text in given.get("key", ())]

    def keep(table: pa.Table) -> Any:
        mask = pc.is_null(table["problem"])
        times = table["event_time"].cast(pa.timestamp("us"))
        for border, test in ((start, pc.greater_equal), (end, pc.less)):
            if border is not None:
                mask = pc.and_kleene(mask, test(times, pa.scalar(border, pa.timestamp("us"))))
        return pc.and_kleene(mask, pc.is_in(table[stream.key], pa.array(keys))) if keys else mask

    columns = ["offset", "kafka_time", "event_time", *stream.columns]
    shown = ["topic", "log", "partition", *columns]

    def row(found: dict[str, Any]) -> list[Any]:
        return [jsonable(found.get(name)) for name in shown]

    parts = _typed(service, [domain], lambda key: key[0] == topic)
    walk = tail.Tail(service.fs, parts, {topic: [*columns, "problem"]}, keep)
    return await _newest(service, [domain], walk, shown, row, f"events {topic} {start} {end} {keys}", request, given)


async def quarantine_rows(service: Service, request: Request) -> Response:
    """Rows with a problem, newest first, of one or all domains, with their raw value."""
    params = _rows_params(request)
    given = none_but(params, "domain", "topic", "problem", "partition", "limit", "format")
    chosen = [service.domain(name) for name in given["domain"]] if "domain" in given else list(service.domains)
    problems = sorted({problem for d in chosen for stream in d.streams for problem in stream.problems})
    for text in given.get("topic", ()):
        service.topic(text)
    if wrong := [text for text in given.get("problem", ()) if text not in problems]:
        raise BadQuery("problem", f"{wrong[0][:64]!r} is none of {', '.join(problems)}")
    if any(not (text.isascii() and text.isdigit()) or len(text) > 9 for text in given.get("partition", ())):
        raise BadQuery("partition", "a partition is a whole number")

    def keep(table: pa.Table) -> Any:
        return (
            pc.is_in(table["problem"], pa.array(given["problem"]))
            if "problem" in given
            else pc.is_valid(table["problem"])
        )

    def wanted(key: tail.Key) -> bool:
        return key[0] in given.get("topic", (key[0],)) and key[2] in given.get("partition", (key[2],))

    def row(found: dict[str, Any]) -> list[Any]:
        named = quarantine.shown(service.topic(found["topic"]).name, found)
        return [named.get(name) for name in quarantine.SCHEMA.names]

    columns = ["offset", "kafka_time", "event_time", "problem", "value", "value_bytes"]
    parts = _typed(service, chosen, wanted)
    walk = tail.Tail(service.fs, parts, {key[0]: columns for key in parts}, keep, quarantine.may_hold_problems)
    asked = sorted((name, text) for name, text in params if name not in ("cursor", "limit", "format"))
    return await _newest(service, chosen, walk, quarantine.SCHEMA.names, row, f"quarantine {asked}", request, given)


def _typed(service: Service, chosen: Sequence[Domain], wanted: Callable[[tail.Key], bool]) -> dict[tail.Key, Partition]:
    found: dict[tail.Key, Partition] = {}
    for domain in chosen:
        seen = service.watches[domain.name].seen
        for topic, logs in (seen.typed if seen else {}).items():
            for log, partitions in logs.items():
                found |= {(topic, log, p): part for p, part in partitions.items() if wanted((topic, log, p))}
    return found


async def _newest(
    service: Service,
    chosen: Sequence[Domain],
    walk: tail.Tail,
    columns: Sequence[str],
    row: Callable[[dict[str, Any]], list[Any]],
    what: str,
    request: Request,
    given: Mapping[str, list[str]],
) -> Response:
    form = one_of(given, "format", FORMATS)
    limit = limit_of(given.get("limit"), form)
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    token = dict(_params(request)).get("cursor")
    place = service.cursors.open(token, digest) if token is not None else {}
    below, page = place.get("below"), int(place.get("page", 1))
    facts = [service.facts(service.snapshot(domain)) for domain in chosen]
    said = facts[0] if len(facts) == 1 else _together(chosen, facts)

    def work(_: Any) -> tuple[bytes, dict[str, str]]:
        try:
            found, left = walk.newest(limit, below)
        except FileNotFoundError:
            raise Problem(503, "segments were merged just now; ask again", retry_after=1) from None
        further = service.cursors.seal({"list": digest, "below": left, "page": page + 1}) if left else None
        rows: Any = [row(one) for one in found]
        if form == "parquet":
            rows = pa.Table.from_pylist([dict(zip(columns, one, strict=True)) for one in rows], _schema(columns, rows))
        return body(form, columns, rows, {**said, "next_cursor": further})

    content, headers = await service.run(work, reads_hdfs=True)
    return rows_reply(content, headers, form, request.url, page)


def _schema(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> pa.Schema | None:
    return None if rows else pa.schema([(name, pa.string()) for name in columns])


def _together(chosen: Sequence[Domain], facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "as_of": {domain.name: said["as_of"] for domain, said in zip(chosen, facts, strict=True)},
        "complete": all(said["complete"] for said in facts),
        "missing": [one for said in facts for one in said["missing"]],
        "staleness_seconds": max(said["staleness_seconds"] for said in facts),
    }


async def problem(paths: Sequence[str], request: Request, error: Exception) -> Response:
    """Answer an error as a problem document; `paths` are those that there are."""
    if isinstance(error, HTTPException):
        detail = "no such path" if error.status_code == 404 else "this path answers GET and HEAD only"
        unmethodical = {"Allow": "GET, HEAD"} if error.status_code == 405 else {}
        error = Problem(error.status_code, detail, known=paths)
        error.headers |= unmethodical
    elif isinstance(error, BadQuery):
        error = Problem(422, str(error), field=error.field)
    assert isinstance(error, Problem)
    headers = {"Cache-Control": "no-store", **error.headers}
    return Response(encode(error.body), error.status, headers, "application/problem+json")


def fault(request: Request, error: Exception) -> Response:
    """A bug: an id for the caller, the traceback for the log."""
    name = uuid.uuid4().hex[:12]
    trace = "".join(traceback.format_exception(error))
    _log.error("fault", id=name, route=getattr(request.scope.get("route"), "path", "other"), trace=trace)
    told = Problem(500, f"a fault of the server; its log knows it as {name}")
    return Response(encode(told.body), 500, {"Cache-Control": "no-store"}, "application/problem+json")


def file_reply(folder: Path, path: str) -> Response:
    """A file below a folder. Raises Problem 404."""
    try:
        target = (folder / path).resolve()
        if not target.is_relative_to(folder.resolve()) or not target.is_file():
            raise FileNotFoundError
        kind = mimetypes.guess_type(target.name)[0] or "application/octet-stream"
        return Response(target.read_bytes(), headers={"Cache-Control": "no-cache"}, media_type=kind)
    except (OSError, ValueError):
        raise Problem(404, "no such file of the dashboard", known=["/", "/docs", "/v1/views"]) from None


class Measured:
    """Counts requests, adds the security headers, and shows the state to Prometheus."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._registry = new_registry()
        own: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("highwater_serving_requests_total", "Requests", ["route", "status"], **own)
        buckets = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
        self._seconds = Histogram(
            "highwater_serving_request_seconds", "Time to answer", ["route"], buckets=buckets, **own
        )
        gauges = {
            "staleness_seconds": ("Seconds since all of Kafka's ends were covered",),
            "max_staleness_seconds": ("Beyond this staleness the domain is not ready; 0 = no bound",),
            "coverage_offsets": ("Sum of the offsets of the coverage",),
            "version": ("Batch version that is served",),
            "version_timestamp_seconds": ("When that version was made",),
            "complete": ("1 if nothing below coverage is missing",),
            "missing_offsets": ("Offsets below coverage that are in no answer",),
            "balanced": ("1 if the ledger balances",),
            "unbalanced_partitions": ("Partitions whose ledger does not balance",),
            "events": ("Good events below coverage", "part"),
            "quarantined_rows": ("Rows with a problem below coverage", "problem"),
            "lag_offsets": ("Offsets that a layer still has to do: ingest, typed (batch) or stream", "topic", "layer"),
        }
        self._gauges = {
            name: Gauge(f"highwater_serving_{name}", text, ["domain", *labels], **own)
            for name, (text, *labels) in gauges.items()
        }
        self._silence = Gauge(
            "highwater_serving_source_silence_seconds", "Since the last answer of HDFS or Kafka", ["source"], **own
        )

    async def around(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        try:
            response = await call_next(request)
        except Exception as error:
            response = fault(request, error)
        route = getattr(request.scope.get("route"), "path", "other")
        self._requests.labels(route, response.status_code).inc()
        self._seconds.labels(route).observe(time.perf_counter() - started)
        for name, text in HEADERS.items():
            response.headers.setdefault(name, text)
        return response

    def text(self) -> bytes:
        """The state now, in Prometheus' format."""
        now = self._service.clock()
        for source, heard in self._service.heard.items():
            self._silence.labels(source).set(now - heard)
        for name, loader in self._service.loaders.items():
            self._gauges["max_staleness_seconds"].labels(name).set(self._service.settings.ready_staleness)
            # Before the first version and the first epoch nothing is covered, and everything lags.
            self._tell(name, self._service.watches[name].ledger(loader.current or beginning(loader.domain), now))
        return generate_latest(self._registry)

    def _tell(self, domain: str, ledger: Mapping[str, Any]) -> None:
        for name in ("staleness_seconds", "version", "complete", "balanced"):
            self._gauges[name].labels(domain).set(float(ledger[name]))
        reach = [o for logs in ledger["as_of"]["coverage"].values() for by in logs.values() for o in by.values()]
        self._gauges["coverage_offsets"].labels(domain).set(sum(reach))
        missing = sum(found["end"] - found["start"] for found in ledger["missing"])
        self._gauges["missing_offsets"].labels(domain).set(missing)
        unbalanced = sum(not row["balanced"] for row in ledger["partitions"])
        self._gauges["unbalanced_partitions"].labels(domain).set(unbalanced)
        if (created := unix_seconds(ledger["created_at"])) is not None:
            self._gauges["version_timestamp_seconds"].labels(domain).set(created)
        for part in ("batch", "speed"):
            self._gauges["events"].labels(domain, part).set(ledger["events"][part])
        for problem, rows in ledger["quarantined"].items():
            self._gauges["quarantined_rows"].labels(domain, problem).set(rows)
        lags: dict[tuple[str, str], int] = {}
        for row in ledger["partitions"]:
            for layer, offsets in row["lag"].items():
                lags[row["topic"], layer] = lags.get((row["topic"], layer), 0) + offsets
        for (topic, layer), offsets in lags.items():
            self._gauges["lag_offsets"].labels(domain, topic, layer).set(max(0, offsets))
