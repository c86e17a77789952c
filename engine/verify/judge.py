"""Do answers equal a recount? Reads the raw log up to where they speak, recounts each, and gathers the differences.

Every answer is judged by the definition that its own version was built from.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import duckdb
from kafka.errors import KafkaError

from engine.domain import Domain
from engine.runtime.settings import Settings
from engine.verify.answers import BadQuestion
from engine.verify.ask import Unanswered, get_json, whole_answer
from engine.verify.compare import (
    Answer,
    Difference,
    EndOf,
    completeness_differences,
    ledger_differences,
    position,
    report_differences,
    view_differences,
)
from engine.verify.rawlog import RawLog, definition_in_manifest
from engine.verify.rows import load, open_database


def live(settings: Settings, domain: Domain, base: str, view: str | None) -> tuple[list[Difference], int]:
    """Ask serving for all views, reports and the ledger of a domain (or for one view), and judge."""
    ledger = get_json(f"{base}/v1/ledger?" + urlencode({"domain": domain.name}))["domains"][0]
    domain = definition(settings, domain, int(ledger["version"]))
    names = [view] if view else [declared.name for declared in domain.views]
    answers = [whole_answer(base, f"/v1/views/{name}", name) for name in names]
    if view:
        return judge_each(settings, domain, answers)
    # Before the first batch run there is no version, and so no report.
    if answers and answers[0].as_of["version"]:
        never = {report["report"] for report in get_json(f"{base}/v1/views")["reports"] if report["version"] is None}
        for name in (report.name for report in domain.reports):
            if name in never:
                _report(f"{name}: held back, and no version of it is there yet; not judged")
            else:
                answers.append(whole_answer(base, f"/v1/reports/{name}", name))
    ledger = get_json(f"{base}/v1/ledger?" + urlencode({"domain": domain.name}))["domains"][0]
    return judge_each(settings, domain, answers, ledger)


def judge_each(
    settings: Settings, domain: Domain, answers: Sequence[Answer], ledger: Mapping[str, Any] | None = None
) -> tuple[list[Difference], int]:
    """Judge every answer, and the ledger, by the definition that its version was built from. Raises as `judge` does."""
    numbers = [int(answer.as_of.get("version") or 0) for answer in answers]
    of_ledger = int(ledger["version"]) if ledger is not None else None
    versions = {*numbers, *([of_ledger] if of_ledger is not None else [])}
    definitions = {version: definition(settings, domain, version) for version in versions}
    hashes = {version: (meant.definition_hash, meant.report_hash) for version, meant in definitions.items()}
    differences: list[Difference] = []
    rows = 0
    for alike in sorted(set(hashes.values())):
        same = [version for version in versions if hashes[version] == alike]
        group = [answer for answer, version in zip(answers, numbers, strict=True) if version in same]
        of_group, number = judge(settings, definitions[same[0]], group, ledger if of_ledger in same else None)
        differences, rows = [*differences, *of_group], rows + number
    return differences, rows


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
            _report(f"{answer.name}: held back, its rows are those of version {answer.as_of['version']}; not judged")
        else:
            differences += report_differences(con, domain, reports[answer.name], answer)
        _report(f"{answer.name}: {len(answer.rows):,} rows, {len(differences)} differences so far")
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
    _report(f"{domain.name}: {rows:,} events read and judged in {seconds:.1f} s ({rows / max(seconds, 1e-9):,.0f}/s)")
    return raw, con


def definition(settings: Settings, domain: Domain, version: int) -> Domain:
    """Return the domain as a version's manifest defines it.

    The given one for version 0, and for a version that was pruned.
    """
    stored_json = definition_in_manifest(settings, domain.name, version) if version else None
    stored = Domain.from_json(stored_json) if stored_json else domain
    if not stored.is_of_this_code:
        _report(
            f"{domain.name}: version {version} was made by code that read or folded events otherwise than this code does"
        )
    return stored


def _report(text: str) -> None:
    sys.stderr.write(f"verify: {text}\n")
    sys.stderr.flush()
