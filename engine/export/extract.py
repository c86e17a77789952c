"""Which rows does an export take, and where from? Tables of bounded size, one after the other.

A view or a report comes from the files of the served version, events and quarantine from the segments of the typed log
up to the heads found at the start, a merged answer from the REST interface, page by page. Where compaction takes a
listed segment away, a fresh listing goes on at the offset that was reached; where a version or a snapshot goes away,
the export has to begin again (`TakenAway`).
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.domain import Domain, Report, Stream, View
from engine.fold.measures import arrow_type
from engine.runtime.notation import writable
from engine.storage import quarantine, versions
from engine.storage.hdfs import HdfsUnavailable
from engine.storage.log import EVENTS, LogReader, Partition, Segment, position, to_json
from engine.storage.versions import Manifest

KINDS = ("view", "report", "events", "quarantine")
# A batch holds so many rows, or bytes.
BATCH_ROWS, BATCH_BYTES, STEP_ROWS = 50_000, 64_000_000, 1_000
PAGE_ROWS = 10_000
ATTEMPTS = 5
TIME = pa.timestamp("us", "UTC")


class BadRequest(ValueError):
    """Nothing of that name, or a border where none can be; one line with what is known."""


class NothingYet(RuntimeError):
    """The batch layer has not made it yet; names the command."""


class Damaged(RuntimeError):
    """A file does not hold what its manifest or its name says."""


class TakenAway(RuntimeError):
    """What was listed is gone, or its reading broke off although HDFS answers; a fresh start heals."""


class Unanswered(RuntimeError):
    """The serving layer gives no usable answer."""


@dataclass(frozen=True)
class Span:
    """Times in [start, end), in UTC; None is open."""

    start: datetime | None = None
    end: datetime | None = None

    def __bool__(self) -> bool:
        return self.start is not None or self.end is not None


@dataclass(frozen=True)
class Extract:
    """What is going to be exported.

    Args:
        what: in words, with what it is true of.
        schema: of every table; times in UTC with a zone.
        planned: rows that are going to be looked at, None if unknown.
        tables: yields (rows looked at, table of those that are wanted). Raises TakenAway, Damaged, HdfsUnavailable.
    """

    what: str
    schema: pa.Schema
    planned: int | None
    tables: Callable[[], Iterator[tuple[int, pa.Table]]]


def find(fs: Any, chosen: Sequence[Domain], kind: str, name: str, span: Span) -> Extract:
    """Return the extract of that name, in the first domain that has it.

    Args:
        chosen: domains as their files declare them; what is served may be of an older definition.

    Raises:
        BadRequest, NothingYet, Damaged.
    """
    served = [_served(fs, domain) for domain in chosen]
    for domain, manifest in served:
        if name not in _names(domain, kind):
            continue
        if kind == "view":
            return _of_view(fs, manifest, domain.view(name), span)
        if kind == "report":
            return _of_report(fs, manifest, next(r for r in domain.reports if r.name == name), span)
        return _of_topic(fs, domain, domain.stream(name), kind, span)
    for domain, manifest in zip(chosen, (manifest for _, manifest in served), strict=True):
        if name in _names(domain, kind):
            raise NothingYet(
                f"version {manifest.version} of '{domain.name}' does not hold '{name}' yet; run batch_layer.py --domain {domain.name}"
            )
    known = ", ".join(other for domain, _ in served for other in _names(domain, kind)) or "none"
    of = ", ".join(domain.name for domain in chosen)
    raise BadRequest(
        f"{'topic' if kind in ('events', 'quarantine') else kind} '{name}': unknown in {of}; known: {known}"
    )


def _served(fs: Any, domain: Domain) -> tuple[Domain, Manifest]:
    """Return the domain as the served version defines it, and that version."""
    try:
        manifest = versions.followed(fs, domain)
    except ValueError as error:
        raise Damaged(str(error)) from error
    return versions.definition_of(manifest) if manifest.definition else domain, manifest


def _names(domain: Domain, kind: str) -> tuple[str, ...]:
    declared: Mapping[str, Sequence[View | Report]] = {"view": domain.views, "report": domain.reports}
    return tuple(one.name for one in declared[kind]) if kind in declared else domain.topics


# Files of a version ---------------------------------------------------------------------------------------------------


def _of_view(fs: Any, manifest: Manifest, view: View, span: Span) -> Extract:
    _check_version(manifest)
    if span and not view.every:
        raise BadRequest(f"view '{view.name}' has no windows, so nothing for --from and --to")
    said = manifest.views.get(view.name)
    if said is None:
        raise Damaged(f"version {manifest.version} of '{manifest.domain}': its manifest has no view '{view.name}'")
    columns = (*view.keys, *view.measures, *view.show)
    where = f"view {view.name}, version {manifest.version}, horizon {to_json(manifest.horizon)}"
    return _of_files(fs, manifest, manifest.version, said, view.name, where, columns, span, "window_start")


def _of_report(fs: Any, manifest: Manifest, report: Report, span: Span) -> Extract:
    _check_version(manifest)
    if span and not report.time:
        raise BadRequest(f"report '{report.name}' has no time column, so nothing for --from and --to")
    said = manifest.reports.get(report.name, {})
    if not said.get("version"):
        why = versions.held_back(manifest).get(report.name) or "not made by that version"
        raise NothingYet(
            f"no version holds report '{report.name}' yet: {why}; run batch_layer.py --domain {manifest.domain}"
        )
    number = int(said["version"])
    where = f"report {report.name}, version {number}, horizon {to_json(manifest.horizon)}"
    if number != manifest.version:
        # Its checks failed since, and its own horizon is that of the version that holds it.
        with _reading(fs, versions.folder(manifest.domain, number)):
            older = versions.manifest(fs, manifest.domain, number)
        where = f"report {report.name}, version {number} (held back since version {said['held_since']}), horizon {to_json(older.horizon)}"
    return _of_files(fs, manifest, number, said, report.name, where, None, span, report.time or "")


def _check_version(manifest: Manifest) -> None:
    if not manifest.version:
        raise NothingYet(
            f"domain '{manifest.domain}' has no version yet; run batch_layer.py --domain {manifest.domain}"
        )


def _of_files(
    fs: Any,
    manifest: Manifest,
    number: int,
    said: Mapping[str, Any],
    name: str,
    what: str,
    columns: Sequence[str] | None,
    span: Span,
    time_column: str,
) -> Extract:
    """The files of a view or a report; `columns` None for all."""
    folder = f"{versions.folder(manifest.domain, number)}/{name}"
    paths = [f"{folder}/{file}" for file in said["files"]]
    if not paths:
        raise Damaged(f"{folder}: the manifest names no files")
    with _reading(fs, paths[0]):
        stored = fs.open_parquet(paths[0]).schema_arrow
    if lacking := [column for column in columns or () if column not in stored.names]:
        raise Damaged(f"{paths[0]}: has no column {', '.join(lacking)}")
    schema = pa.schema([(c, _zoned(stored.field(c).type)) for c in columns or stored.names])

    def tables() -> Iterator[tuple[int, pa.Table]]:
        rows = 0
        for path in paths:
            for looked_at, table in _tables(fs, path, schema.names, lambda group: _may_hold(group, time_column, span)):
                rows += looked_at
                table = table.cast(schema)
                yield looked_at, table.filter(_within(table[time_column], span)) if span else table
        if rows != said["rows"]:
            raise Damaged(f"{folder}: {rows} rows in its files, the manifest says {said['rows']}")

    return Extract(what, schema, int(said["rows"]), tables)


# Segments of the typed log --------------------------------------------------------------------------------------------


def _of_topic(fs: Any, domain: Domain, stream: Stream, kind: str, span: Span) -> Extract:
    if kind == "quarantine" and span:
        raise BadRequest("--from and --to speak of event time, and a malformed row of the quarantine has none")
    reader = LogReader(fs, f"{EVENTS}/{stream.schema_hash}")
    logs = reader.partitions([stream.topic])
    found = {(log, name): part for log, by in logs[stream.topic].items() for name, part in by.items()}
    if not found:
        raise NothingYet(f"topic '{stream.topic}' has no typed events yet; run batch_layer.py --domain {domain.name}")
    place = ("topic", "log", "partition")
    own = ("offset", "kafka_time", "event_time")
    if kind == "events":
        types = {**dict.fromkeys(place, pa.string()), "offset": pa.int64(), **dict.fromkeys(own[1:], TIME)}
        types |= {name: _zoned(arrow_type(sql_type)) for name, sql_type in stream.columns.items()}
        schema = pa.schema(list(types.items()))
        columns = [name for name in schema.names if name not in place]
    else:
        schema, columns = quarantine.SCHEMA, [*own, "value", "value_bytes"]

    def wanted(table: pa.Table, log: str, partition: str) -> pa.Table:
        here = dict(zip(place, (stream.topic, log, partition), strict=True))
        if kind == "quarantine":
            bad = writable(table.filter(pc.is_valid(table["problem"]))).to_pylist()
            return pa.Table.from_pylist([quarantine.shown(domain.name, {**here, **row}) for row in bad], schema)
        good = table.filter(pc.is_null(table["problem"])).select(columns)
        for name, text in reversed(here.items()):
            good = good.add_column(0, name, pa.repeat(pa.scalar(text), good.num_rows))
        good = good.cast(schema)
        return good.filter(_within(good["event_time"], span)) if span else good

    def worth(group: Any) -> bool:
        return quarantine.may_hold_problems(group) if kind == "quarantine" else _may_hold(group, "event_time", span)

    def tables() -> Iterator[tuple[int, pa.Table]]:
        for log, partition in sorted(found, key=lambda key: (key[0], int(key[1]))):
            walk = _walk(reader, (stream.topic, log, partition), found[log, partition], [*columns, "problem"], worth)
            yield from ((looked_at, wanted(table, log, partition)) for looked_at, table in walk)

    planned = sum(part.rows_between(part.origin, part.head) for part in found.values())
    what = f"{kind} {stream.topic}, typed up to {to_json(position(logs, lambda part: part.head))}"
    return Extract(what, schema, planned, tables)


def _walk(
    reader: LogReader, key: tuple[str, str, str], part: Partition, columns: Sequence[str], worth: Callable[[Any], bool]
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of a partition from its origin to the head it has now, each once, whatever compaction does."""
    topic, log, partition = key
    at, head, failures = part.origin, part.head, 0
    while at < head:
        try:
            for segment in part.segments_between(at, head):
                for looked_at, table in _of_segment(reader.fs, part, segment, columns, worth):
                    # A wider segment may begin below what was reached, and end above the head of the start.
                    offsets = table["offset"]
                    fresh = table.filter(pc.and_(pc.greater_equal(offsets, at), pc.less(offsets, head)))
                    at = max(at, offsets[-1].as_py() + 1) if table.num_rows else at
                    yield looked_at, fresh
                    failures = 0
                at = max(at, segment.end if segment.end is not None else head)
        except TakenAway:
            failures += 1
            if failures > ATTEMPTS:
                raise
            part = reader.partitions([topic])[topic].get(log, {}).get(partition, Partition((), at, at))
            if part.head < head:
                raise Damaged(
                    f"topic '{topic}' log {log} partition {partition}: typed rows went away at {at}"
                ) from None


def _of_segment(
    fs: Any, part: Partition, segment: Segment, columns: Sequence[str], worth: Callable[[Any], bool]
) -> Iterator[tuple[int, pa.Table]]:
    planned = part.rows_between(segment.base, segment.end if segment.end is not None else part.head)
    rows = 0
    for looked_at, table in _tables(fs, segment.path, columns, worth):
        rows += looked_at
        yield looked_at, table
    if rows != planned:
        raise Damaged(f"{segment.path}: {rows} rows, its offsets say {planned}")


# Parquet on HDFS ------------------------------------------------------------------------------------------------------


def _tables(fs: Any, path: str, columns: Sequence[str], worth: Callable[[Any], bool]) -> Iterator[tuple[int, pa.Table]]:
    """Yield (rows looked at, table) of a file; row groups that cannot hold a wanted row give an empty table."""
    with _reading(fs, path):
        opened: pq.ParquetFile = fs.open_parquet(path)
        groups = [opened.metadata.row_group(number) for number in range(opened.metadata.num_row_groups)]
        nothing = opened.schema_arrow.empty_table().select(columns)
    for number, group in enumerate(groups):
        if not worth(group):
            yield group.num_rows, nothing
            continue
        # Read in small steps: how long its texts are is seen only when they are there.
        read = [group.column(column) for column in range(group.num_columns)]
        size = sum(c.total_uncompressed_size for c in read if c.path_in_schema.partition(".")[0] in columns)
        step = max(1, min(STEP_ROWS, BATCH_BYTES * group.num_rows // max(1, size)))
        batches = opened.iter_batches(step, row_groups=[number], columns=columns)
        waiting: list[pa.RecordBatch] = []
        while True:
            with _reading(fs, path):
                batch = next(batches, None)
            if batch is not None:
                waiting.append(batch)
            rows, held = sum(one.num_rows for one in waiting), sum(one.nbytes for one in waiting)
            if waiting and (batch is None or rows >= BATCH_ROWS or held >= BATCH_BYTES):
                yield rows, pa.Table.from_batches(waiting).select(columns)
                waiting = []
            if batch is None:
                break


@contextmanager
def _reading(fs: Any, path: str) -> Iterator[None]:
    """Tell "it was taken away" from "HDFS is silent" and from "the file is damaged"."""
    try:
        yield
    except HdfsUnavailable:
        raise
    except (pa.ArrowInvalid, KeyError) as error:
        raise Damaged(f"{path}: damaged: {error}") from error
    except (OSError, RuntimeError) as error:
        fs.status(path)  # raises HdfsUnavailable
        raise TakenAway(f"{path}: {(str(error).splitlines() or [''])[0][:200]}") from error


def _zoned(kind: pa.DataType) -> pa.DataType:
    """Times in UTC with a zone, also inside structs."""
    if pa.types.is_timestamp(kind):
        return TIME
    if pa.types.is_struct(kind):
        return pa.struct([kind.field(n).with_type(_zoned(kind.field(n).type)) for n in range(kind.num_fields)])
    return kind


def _within(times: pa.ChunkedArray, span: Span) -> Any:
    mask = pc.is_valid(times)
    if span.start is not None:
        mask = pc.and_kleene(mask, pc.greater_equal(times, pa.scalar(span.start, TIME)))
    if span.end is not None:
        mask = pc.and_kleene(mask, pc.less(times, pa.scalar(span.end, TIME)))
    return mask


def _may_hold(group: Any, column: str, span: Span) -> bool:
    """False if the statistics of a row group say that no time of it lies in the span."""
    for number in range(group.num_columns if span else 0):
        found = group.column(number)
        if found.path_in_schema != column or found.statistics is None or not found.statistics.has_min_max:
            continue
        least, most = found.statistics.min, found.statistics.max
        if not (isinstance(least, datetime) and isinstance(most, datetime)):
            continue
        least, most = (time if time.tzinfo else time.replace(tzinfo=UTC) for time in (least, most))
        return not ((span.start and most < span.start) or (span.end and least >= span.end))
    return True


# The REST interface ---------------------------------------------------------------------------------------------------


def ask(base: str, name: str, span: Span) -> Extract:
    """Return the merged answer of a view, paged with its cursor so that all of it is of one snapshot.

    Raises:
        BadRequest: the interface refuses, in its own words.
        Unanswered, TakenAway.
    """
    given = {"limit": PAGE_ROWS, "format": "parquet"}
    borders = {field: time.isoformat() for field, time in (("from", span.start), ("to", span.end)) if time}
    path = f"{base.rstrip('/')}/v1/views/{quote(name, safe='')}"

    def page(cursor: str | None) -> tuple[pa.Table, Mapping[str, str]]:
        return _page(f"{path}?{urlencode({**given, **borders, **({'cursor': cursor} if cursor else {})})}")

    first, facts = page(None)
    as_of = json.loads(facts["X-Highwater-As-Of"])
    complete = facts["X-Highwater-Complete"]
    what = f"view {name}, version {as_of['version']}, coverage {to_json(as_of['coverage'])}, complete {complete}"
    if complete != "true":
        what += f", missing {facts['X-Highwater-Missing']}"

    def tables() -> Iterator[tuple[int, pa.Table]]:
        table, said = first, facts
        while True:
            yield table.num_rows, table.cast(schema)
            cursor = said["X-Highwater-Next-Cursor"]
            if cursor == "null":
                return
            table, said = page(cursor)

    schema = pa.schema([(field.name, _zoned(field.type)) for field in first.schema])
    return Extract(what, schema, None, tables)


def _page(url: str) -> tuple[pa.Table, Mapping[str, str]]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for attempt in range(ATTEMPTS):
        try:
            with opener.open(url, timeout=60) as reply:
                content, facts = reply.read(), reply.headers
            table = pq.read_table(pa.BufferReader(content))
            if "X-Highwater-As-Of" not in facts:
                raise BadRequest(f"{url}: answers, but is no serving layer")
            return table, facts
        except urllib.error.HTTPError as error:
            said = error.read(4000).decode("utf-8", "replace")
            if error.code == 410:
                raise TakenAway(f"{url}: {_detail(said)}") from None
            if error.code in (404, 405, 422):
                raise BadRequest(_detail(said)) from None
            if error.code not in (429, 503) or attempt == ATTEMPTS - 1:
                raise Unanswered(f"{url}: HTTP {error.code}: {_detail(said)}") from None
            time.sleep(min(5.0, float(error.headers.get("Retry-After") or 1)))
        except pa.ArrowInvalid:
            raise BadRequest(f"{url}: answers, but no Parquet; is it a serving layer?") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{url}: {error}; is serving_layer.py running?") from None
    raise AssertionError("unreachable")


def _detail(said: str) -> str:
    """Return what a problem document says in one line."""
    try:
        problem = json.loads(said)
        known = f"; known: {', '.join(problem['known'])}" if problem.get("known") else ""
        return f"{problem['detail']}{known}"
    except (ValueError, KeyError, TypeError):
        return " ".join(said.split())[:300]
