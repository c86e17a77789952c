"""Do the answers equal a recount of the raw log? The independent oracle: `python -m engine.verify --domain learning`.

Reads:   the serving layer's answers, raw segments on HDFS, and Kafka from their head up to the answers' coverage.
Writes:  nothing.
Promise: every group of every answer is recounted at the answer's own `as_of` by code that shares nothing with the
         layers but the declarations (`engine.verify.rawlog`, `engine.verify.recount`, `engine.verify.recompute`).

What may differ by how much is said in `engine.verify.compare`, for all answers and for the proof of one alike.

With `--answers FILE` recorded answers are judged (JSON lines of {"url", "view", "query", "answer"}), with
`--as-of FILE` the recount at that `as_of` is printed, and with `--proof` one JSON request is read and answered (see
`prove`).

Exit codes: 0 equal, 1 a difference or a hole in the raw log, 2 wrong usage or something does not answer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import duckdb
from kafka.errors import KafkaError

import domains
from engine.domain import DeclarationError, Domain, View
from engine.runtime.settings import Settings, SettingsError, environment
from engine.runtime.settings import load as load_settings
from engine.verify.compare import (
    Answer,
    Difference,
    EndOf,
    compare_rows,
    completeness_differences,
    ledger_differences,
    position,
    report_differences,
    tests_of,
    view_differences,
)
from engine.verify.rawlog import RawLog, definition_in_manifest
from engine.verify.recompute import (
    BadQuestion,
    Question,
    Row,
    checked,
    matching_events,
    moment,
    question_of,
    report_rows,
    view_rows,
)
from engine.verify.recount import load, open_database

SHOWN_DIFFERENCES = 20
PAGE, ATTEMPTS = 10_000, 5


class Unanswered(RuntimeError):
    """Serving, Kafka or HDFS gives no usable answer; one line with the address."""


class BrokenLog(RuntimeError):
    """The raw log has holes or overlaps, so nothing can be recounted from it; names the ranges."""


# Asking --------------------------------------------------------------------------------------------------------------


def get_json(url: str) -> dict[str, Any]:
    """Return the JSON of a URL, asking again while it says 503. Raises Unanswered, LookupError for 410."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for attempt in range(ATTEMPTS):
        try:
            with opener.open(url, timeout=60) as reply:
                found: dict[str, Any] = json.loads(reply.read(), parse_float=Decimal)
                return found
        except urllib.error.HTTPError as error:
            said = error.read(2000).decode("utf-8", "replace")
            if error.code == 410:
                raise LookupError(said) from None
            if error.code != 503 or attempt == ATTEMPTS - 1:
                raise Unanswered(f"{url}: HTTP {error.code}: {said}") from None
            time.sleep(2)
        except (OSError, ValueError) as error:
            raise Unanswered(f"{url}: {error}; is serving_layer.py running?") from None
    raise AssertionError("unreachable")


def whole_answer(base: str, path: str, name: str) -> Answer:
    """Page through a whole list of one snapshot; begins again when the snapshot is gone. Raises Unanswered."""
    for _ in range(ATTEMPTS):
        rows: list[Row] = []
        at, cursor = time.time(), None
        try:
            while True:
                page = get_json(f"{base}{path}?" + urlencode({"limit": PAGE, **({"cursor": cursor} if cursor else {})}))
                rows += page["rows"]
                cursor = page.get("next_cursor")
                if not cursor:
                    return Answer(name, (), rows, page["as_of"], page["complete"], page["missing"], at=at)
        except LookupError:
            continue
    raise Unanswered(f"{base}{path}: its snapshot was gone before the last page, {ATTEMPTS} times")


def recorded(lines: Iterable[str]) -> list[Answer]:
    """Read recorded answers; "query" may be a mapping, pairs or a query string, else it is that of "url".

    Raises BadQuestion.
    """
    answers = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = json.loads(line, parse_float=Decimal)
            query, body = one.get("query"), one["answer"]
            if query is None:
                query = urlsplit(one.get("url", "")).query
            params = _pairs(query)
            name = one.get("view") or one.get("report") or urlsplit(one["url"]).path.rsplit("/", 1)[-1]
            first = not any(name == "cursor" for name, _ in params)
            answers.append(
                Answer(
                    name,
                    params,
                    body["rows"],
                    body["as_of"],
                    body["complete"],
                    body["missing"],
                    first,
                    not body.get("next_cursor"),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadQuestion(f"line {number} is no recorded answer: {error!r}") from None
    return answers


def _pairs(query: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(query, str):
        return tuple(parse_qsl(query.lstrip("?"), keep_blank_values=True))
    items = query.items() if isinstance(query, dict) else query
    return tuple((name, str(text)) for name, given in items for text in (given if isinstance(given, list) else [given]))


# Judging -------------------------------------------------------------------------------------------------------------


def judge(
    settings: Settings, domain: Domain, answers: Sequence[Answer], ledger: Mapping[str, Any] | None = None
) -> tuple[list[Difference], int]:
    """Recount everything that was answered; return the differences and the number of raw rows that were read.

    Raises:
        BadQuestion: an answer is of something that the domain does not declare.
        Unanswered: HDFS or Kafka cannot be read.
    """
    views, reports = {view.name: view for view in domain.views}, {report.name: report for report in domain.reports}
    for answer in answers:
        if answer.name not in views and answer.name not in reports:
            raise BadQuestion(f"domain '{domain.name}' has no view or report '{answer.name}'")
    positions = [answer.as_of.get(name) or {} for answer in answers for name in ("coverage", "horizon")]
    if ledger is not None:
        positions.append(position(ledger["partitions"], "speed_end"))
    only_views = ledger is None and all(answer.name in views for answer in answers)
    topics = (
        {stream.topic for answer in answers for stream in views[answer.name].streams}
        if only_views
        else set(domain.topics)
    )
    raw, con = read_log(settings, domain, furthest(positions, topics))
    differences = [Difference("raw log", None, "offsets", fault, "every offset once") for fault in raw.account.faults]
    for answer in answers:
        differences += completeness_differences(answer, raw)
        if answer.name in views:
            differences += view_differences(con, domain, views[answer.name], answer)
        elif answer.as_of.get("horizon") is None:
            _say(f"{answer.name}: held back, its rows are those of version {answer.as_of['version']}; not judged")
        else:
            differences += report_differences(con, domain, reports[answer.name], answer)
        _say(f"{answer.name}: {len(answer.rows):,} rows, {len(differences)} differences so far")
    if ledger is not None:
        differences += ledger_differences(con, domain, ledger)
    return differences, raw.account.rows


def furthest(positions: Iterable[Mapping[str, Any]], topics: set[str]) -> EndOf:
    """Return the largest end offset of each partition of some topics."""
    end: EndOf = {}
    for where in positions:
        for topic, logs in where.items():
            for log, partitions in logs.items() if topic in topics else ():
                ours = end.setdefault(topic, {}).setdefault(log, {})
                for partition, offset in partitions.items():
                    ours[partition] = max(offset, ours.get(partition, 0))
    return end


def read_log(
    settings: Settings, domain: Domain, end: EndOf, keep: bool = False
) -> tuple[RawLog, duckdb.DuckDBPyConnection]:
    """Read, decode and judge the raw log below `end`. Raises Unanswered."""
    started = time.monotonic()
    con = open_database()
    try:
        raw = RawLog(settings, end)
        rows = load(con, domain, raw.chunks(), raw.size(), keep)
    except (KafkaError, OSError, RuntimeError) as error:
        addresses = f"HDFS_URL={settings.hdfs_url} KAFKA_BOOTSTRAP_SERVERS={settings.kafka_bootstrap_servers}"
        raise Unanswered(f"{addresses}: cannot read the raw log: {error!r}; see `python -m stack status`") from error
    seconds = time.monotonic() - started
    _say(f"{domain.name}: {rows:,} events read and judged in {seconds:.1f} s ({rows / max(seconds, 1e-9):,.0f}/s)")
    return raw, con


def judge_each(
    settings: Settings, domain: Domain, answers: Sequence[Answer], ledger: Mapping[str, Any] | None = None
) -> tuple[list[Difference], int]:
    """Judge every answer, and the ledger, by the definition that its version was built from. Raises as `judge` does."""
    numbers = [int(answer.as_of.get("version") or 0) for answer in answers]
    of_ledger = int(ledger["version"]) if ledger is not None else None
    meant = {n: definition(settings, domain, n) for n in {*numbers, *([of_ledger] if of_ledger is not None else [])}}
    differences: list[Difference] = []
    rows = 0
    for name in sorted({(one.definition_hash, one.report_hash) for one in meant.values()}):
        same = {n: one for n, one in meant.items() if (one.definition_hash, one.report_hash) == name}
        group = [answer for answer, n in zip(answers, numbers, strict=True) if n in same]
        found, number = judge(settings, next(iter(same.values())), group, ledger if of_ledger in same else None)
        differences, rows = [*differences, *found], rows + number
    return differences, rows


def definition(settings: Settings, domain: Domain, version: int) -> Domain:
    """Return the domain as a version's manifest defines it.

    The given one for version 0, and for a version that was pruned.
    """
    said = definition_in_manifest(settings, domain.name, version) if version else None
    stored = Domain.from_json(said) if said else domain
    if not stored.is_of_this_code:
        _say(
            f"{domain.name}: version {version} was made by code that read or folded events otherwise than this code does"
        )
    return stored


def live(settings: Settings, domain: Domain, base: str, view: str | None) -> tuple[list[Difference], int]:
    """Ask serving for all views, reports and the ledger of a domain (or for one view), and judge."""
    ledger = get_json(f"{base}/v1/ledger?" + urlencode({"domain": domain.name}))["domains"][0]
    domain = definition(settings, domain, int(ledger["version"]))
    names = [view] if view else [one.name for one in domain.views]
    answers = [whole_answer(base, f"/v1/views/{name}", name) for name in names]
    if view:
        return judge_each(settings, domain, answers)
    # Before the first batch run there is no version, and so no report.
    if answers and answers[0].as_of["version"]:
        never = {one["report"] for one in get_json(f"{base}/v1/views")["reports"] if one["version"] is None}
        for name in (report.name for report in domain.reports):
            if name in never:
                _say(f"{name}: held back, and no version of it is there yet; not judged")
            else:
                answers.append(whole_answer(base, f"/v1/reports/{name}", name))
    ledger = get_json(f"{base}/v1/ledger?" + urlencode({"domain": domain.name}))["domains"][0]
    return judge_each(settings, domain, answers, ledger)


# Printing ------------------------------------------------------------------------------------------------------------


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
    if raw.account.faults:
        raise BrokenLog("; ".join(raw.account.faults[:SHOWN_DIFFERENCES]))
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


def _as_json(difference: Difference) -> dict[str, Any]:
    """{"key", "column", "served", "recomputed"}; without a column a group that one side lacks, and the other's row."""
    served, recomputed = difference.served, difference.recounted
    if difference.column is None:
        served, recomputed = (rows[0] if len(rows) == 1 else rows or None for rows in (served, recomputed))
    key = None if difference.group is None else list(difference.group.values())
    return {"key": key, "column": difference.column, "served": served, "recomputed": recomputed}


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


def print_recount(settings: Settings, domain: Domain, view: str | None, as_of: Mapping[str, Any]) -> None:
    """Print the recount of views and reports at an `as_of` as JSON lines {"view" or "report", "as_of", "rows"}."""
    views = [_view(domain, view)] if view else domain.views
    reports = () if view or not as_of.get("horizon") else domain.reports
    coverage = as_of.get("coverage") or as_of.get("horizon") or {}
    full = {**as_of, "coverage": coverage, "horizon": as_of.get("horizon") or {}}
    topics = set(domain.topics) if reports else {stream.topic for one in views for stream in one.streams}
    raw, con = read_log(settings, domain, furthest([coverage, full["horizon"]], topics))
    if raw.account.faults:
        raise BrokenLog("; ".join(raw.account.faults[:SHOWN_DIFFERENCES]))
    for one in views:
        sys.stdout.write(
            json_text(
                {"view": one.name, "as_of": as_of, "rows": view_rows(con, domain, one, question_of(one, []), full)}
            )
            + "\n"
        )
    for report in reports:
        found = report_rows(con, domain, report, full["horizon"])
        sys.stdout.write(json_text({"report": report.name, "as_of": as_of, "rows": found}) + "\n")


def _view(domain: Domain, name: str) -> View:
    found = [view for view in domain.views if view.name == name]
    if not found:
        raise BadQuestion(
            f"domain '{domain.name}' has no view '{name}'; known: {', '.join(view.name for view in domain.views)}"
        )
    return found[0]


def _say(text: str) -> None:
    sys.stderr.write(f"verify: {text}\n")
    sys.stderr.flush()


def _lines(path: str) -> list[str]:
    return (sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")).splitlines()


def _told(differences: Sequence[Difference], rows: int) -> int:
    for one in differences[:SHOWN_DIFFERENCES]:
        group = "" if one.group is None else f" {json_text(one.group)}"
        served, recounted = (json_text(value)[:500] for value in (one.served, one.recounted))
        sys.stdout.write(
            f"DIFFERENT {one.where}{group} {one.column or 'rows'}: served {served}, recounted {recounted}\n"
        )
    if differences:
        sys.stdout.write(f"{len(differences):,} differences among {rows:,} events\n")
        return 1
    sys.stdout.write(f"exact: merged answer = recount of the raw log, {rows:,} events\n")
    return 0


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks.

    Raises BadQuestion, Unanswered, BrokenLog, DeclarationError, SettingsError, OSError.
    """
    settings = load_settings()
    if args.proof:
        sys.stdout.write(json_text(prove(settings, json.load(sys.stdin, parse_float=Decimal))) + "\n")
        return 0
    chosen = domains.named(args.domain or settings.domain, environment())
    if args.view:
        chosen = tuple(domain for domain in chosen if any(view.name == args.view for view in domain.views))
        if not chosen:
            raise BadQuestion(f"no domain of --domain has a view '{args.view}'")
    if args.as_of:
        said = json.loads("\n".join(_lines(args.as_of)))
        for domain in chosen:
            print_recount(settings, domain, args.view, said.get("as_of", said))
        return 0
    base = (args.url or f"http://{settings.serving_host}:{settings.serving_port}").rstrip("/")
    answers = recorded(_lines(args.answers)) if args.answers else []
    differences: list[Difference] = []
    rows = 0
    for domain in chosen:
        names = {view.name for view in domain.views} | {report.name for report in domain.reports}
        own = [answer for answer in answers if answer.name in names and args.view in (None, answer.name)]
        found, number = judge_each(settings, domain, own) if args.answers else live(settings, domain, base, args.view)
        differences, rows = [*differences, *found], rows + number
    return _told(differences, rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", help="domains to verify, by comma, or all [DOMAIN, default learning]")
    parser.add_argument(
        "--url", help="of the serving layer [SERVING_HOST, SERVING_PORT, default http://127.0.0.1:8000]"
    )
    parser.add_argument("--view", help="only this view")
    parser.add_argument(
        "--answers", metavar="FILE", help="judge recorded answers instead of asking; - is standard input"
    )
    parser.add_argument(
        "--as-of", metavar="FILE", help="print the recount at this as_of (JSON) instead; - is standard input"
    )
    parser.add_argument(
        "--proof", action="store_true", help="answer one request of the proof route, JSON on standard input"
    )
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (BadQuestion, Unanswered, DeclarationError, SettingsError, OSError, json.JSONDecodeError) as error:
        sys.stderr.write(f"verify: {error}\n")
        return 2
    except BrokenLog as error:
        sys.stderr.write(f"verify: the raw log is broken: {error}\n")
        return 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a thread of Kafka's client may live on, and then DuckDB complains at a plain exit
