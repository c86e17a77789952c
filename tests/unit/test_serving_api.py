"""Does the API keep its contract: right rows, honest facts, stable pages, and never a 500?"""

from __future__ import annotations

import asyncio
import base64
import csv
import dataclasses
import io
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import serving_layer
from engine.domain import count
from engine.runtime.observe import StartAgain
from engine.runtime.settings import load
from engine.serving import proof, query, tail
from engine.serving import service as service_module
from engine.serving.reply import MEDIA
from engine.serving.service import Service
from engine.storage import versions
from engine.storage.commit import gap_segment
from engine.storage.log import MASTER, segment_path
from serving_layer import create_app, listen_refusal
from tests.unit.localfs import LocalFs
from tests.unit.serving_data import (
    LOG,
    ORIGINS,
    SALES,
    SHOP,
    cut,
    end_of,
    events,
    good_in,
    write_chain,
    write_epoch,
    write_epochs,
    write_logs,
    write_version,
)


class Api:
    """A serving process without threads: `service.poll()` and `service.look()` are called by the tests."""

    def __init__(self, folder: Path, number: int = 1) -> None:
        self.fs = LocalFs(folder)
        self.rows = events(Random(number), 500)
        self.pieces = [piece for piece in cut(Random(number), self.rows, 12) if piece.num_rows]
        self.now = 1_800_000_000.0
        self.service = Service(load(env_file=None), [SHOP], self.fs, clock=lambda: self.now)
        self.client = TestClient(create_app(self.service))

    def fill(self, epochs: int | None = None) -> None:
        chain = write_chain(self.fs, SHOP, 1, 0, ORIGINS)
        ends = write_epochs(self.fs, SHOP, chain, self.pieces[:epochs])
        days = pa.array([datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)], pa.timestamp("us", "UTC"))
        report = pa.table({"shop": ["north", "south", None], "day": days, "sales": [3, 2, 1]})
        write_version(self.fs, SHOP, 1, pa.concat_tables(self.pieces[:4]), ends[3], report)
        write_logs(self.fs, self.rows)
        self.service.poll()
        self.service.look()

    def get(self, path: str) -> Any:
        return self.client.get(path)

    def json(self, path: str, status: int = 200) -> dict[str, Any]:
        answer = self.get(path)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    found = Api(tmp_path_factory.mktemp("api"))
    found.fill()
    yield found


def pages(api: Api, path: str) -> list[dict[str, Any]]:
    rows, cursor = [], None
    while True:
        found = api.json(path + (f"&cursor={cursor}" if cursor else ""))
        rows += found["rows"]
        cursor = found["next_cursor"]
        if cursor is None:
            return rows


def test_nothing_right_to_say_is_503_with_retry_after(api: Api) -> None:
    for path in ("/v1/views/shops", "/v1/events/sales-topic", "/v1/quarantine", "/v1/reports/tops"):
        answer = api.get(path)
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0, path
        assert answer.headers["content-type"] == "application/problem+json"
    assert api.get("/health/live").status_code == 200
    assert "no snapshot" in api.json("/health/ready", 503)["reasons"][0]
    assert api.json("/v1/views")["views"][0]["freshness"] is None


def test_a_promoted_definition_is_served_once_it_covers_and_a_rollback_goes_back_at_once(api: Api) -> None:
    """The same process answers by the old definition, by the promoted one, and by the old one again."""
    api.fill(8)
    before = api.json("/v1/views/shops?order=shop")
    cursor = api.json("/v1/views/shops?limit=1")["next_cursor"]
    shops = next(view for view in SHOP.views if view.name == "shops")
    changed = dataclasses.replace(shops, measures={**shops.measures, "large": count("amount > 50")})
    other = dataclasses.replace(SHOP, views=tuple(changed if v is shops else v for v in SHOP.views))
    ends = end_of(pa.concat_tables(api.pieces[:4]), ORIGINS)
    write_version(api.fs, other, 2, pa.concat_tables(api.pieces[:4]), ends, line=2)
    api.service.poll()
    assert api.json("/v1/views/shops?order=shop") == before, "a candidate is not served"

    versions.choose(api.fs, "shop", 2, follow=True)
    api.service.poll()
    assert api.json("/v1/views/shops?order=shop") == before, "the stream has not followed yet"
    chain = write_chain(api.fs, other, 2, 2, ends)
    write_epoch(api.fs, other, chain, 0, ends, pa.concat_tables(api.pieces[4:8]))
    api.service.poll()
    after = api.json("/v1/views/shops?order=shop")
    assert after["as_of"]["version"] == 2 and after["as_of"]["coverage"] == before["as_of"]["coverage"]
    assert all(0 <= row["large"] <= row["sales"] for row in after["rows"])
    assert [row["sales"] for row in after["rows"]] == [row["sales"] for row in before["rows"]]
    (told,) = (view for view in api.json("/v1/views")["views"] if view["view"] == "shops")
    assert "large" in [measure["name"] for measure in told["measures"]]
    assert api.get(f"/v1/views/shops?limit=1&cursor={cursor}").status_code in (410, 422)

    versions.choose(api.fs, "shop", 1, follow=False)
    api.service.poll()
    again = api.json("/v1/views/shops?order=shop")
    assert (again["rows"], again["as_of"]["version"]) == (before["rows"], 1)


def test_the_ledger_tells_what_is_ingested_before_any_version_or_epoch(api: Api) -> None:
    write_logs(api.fs, api.rows)
    api.service.look()
    found = api.json("/v1/ledger")["domains"][0]
    assert (found["version"], found["events"]["merged"], found["as_of"]["coverage"]) == (0, 0, {})
    assert sum(row["raw"] for row in found["partitions"]) == api.rows.num_rows


def test_every_data_answer_says_what_it_knows_of_itself(filled: Api) -> None:
    for path in (
        "/v1/views/shops",
        "/v1/views/shops?shop=nobody",
        "/v1/reports/tops",
        "/v1/events/sales-topic",
        "/v1/quarantine",
    ):
        found = filled.json(path)
        assert set(found) >= {"rows", "as_of", "complete", "missing", "staleness_seconds", "next_cursor"}, path
        assert set(found["as_of"]) == {"version", "horizon", "coverage", "event_time_max"}
        assert found["complete"] is True and found["as_of"]["version"] == 1
    assert filled.json("/v1/views/shops")["as_of"]["coverage"] == end_of(filled.rows, ORIGINS)
    assert filled.json("/v1/views/shops?by=")["rows"][0]["sales"] == good_in(filled.rows)


def test_rows_show_no_stored_parts_and_decimals_keep_their_digits(filled: Api) -> None:
    answer = filled.get("/v1/views/sales_minutes?every=1d&limit=1&by=")
    row = answer.json()["rows"][0]
    assert not [name for name in row if "__" in name] and row["window_start"] == "2026-01-31T00:00:00Z"
    total = sum(
        a
        for a, p in zip(filled.rows["amount"].to_pylist(), filled.rows["problem"].to_pylist(), strict=True)
        if a is not None and not p
    )
    assert f'"revenue":{total}' in filled.get("/v1/views/shops?by=").text


def test_pages_are_of_one_snapshot_while_snapshots_change(api: Api) -> None:
    api.fill(epochs=6)
    whole = api.json("/v1/views/sales_minutes?order=-revenue&limit=10000")["rows"]
    first = api.json("/v1/views/sales_minutes?order=-revenue&limit=20")
    chain = api.service.loaders["shop"].current.chain  # type: ignore[union-attr]
    assert chain
    write_epoch(api.fs, SHOP, chain, 6, end_of(pa.concat_tables(api.pieces[:6]), ORIGINS), api.pieces[6])
    api.service.poll()
    assert api.json("/v1/views/sales_minutes?limit=1")["as_of"] != first["as_of"]
    rows, cursor = first["rows"], first["next_cursor"]
    while cursor:
        page = api.json(f"/v1/views/sales_minutes?order=-revenue&limit=20&cursor={cursor}")
        assert page["as_of"] == first["as_of"]
        rows, cursor = rows + page["rows"], page["next_cursor"]
    assert rows == whole


def test_a_cursor_is_forged_422_of_another_list_422_or_gone_410(api: Api) -> None:
    api.fill()
    cursor = api.json("/v1/views/sales_minutes?limit=1")["next_cursor"]
    text, _, signature = cursor.partition(".")
    for forged in (
        cursor[:-1] + ("A" if cursor[-1] != "A" else "B"),
        f"{text}A.{signature}",
        ".",
        "",
        "é",
        "a.b.c",
        "x" * 20_000,
    ):
        assert api.json(f"/v1/views/sales_minutes?limit=1&cursor={quote(forged)}", 422)["field"] == "cursor"
    assert api.json(f"/v1/views/sales_minutes?limit=1&shop=north&cursor={cursor}", 422)["field"] == "cursor"
    assert api.json(f"/v1/views/shops?limit=1&cursor={cursor}", 422)["field"] == "cursor"
    api.now += 299
    assert api.get(f"/v1/views/sales_minutes?limit=1&cursor={cursor}").status_code == 200
    api.now += 301
    api.service.cursors.open(cursor, json.loads(base64.urlsafe_b64decode(text + "=="))["list"])
    assert api.json(f"/v1/views/sales_minutes?limit=1&cursor={cursor}", 410)["title"] == "Gone"


def test_csv_opens_in_a_spreadsheet_and_runs_nothing(filled: Api) -> None:
    answer = filled.get("/v1/views/shops?format=csv&limit=2")
    assert answer.content.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert rows[1][0] == "'=cmd()" and not any(cell.startswith(("=", "@")) for row in rows for cell in row)
    assert json.loads(answer.headers["x-highwater-as-of"]) == filled.json("/v1/views/shops")["as_of"]
    assert answer.headers["x-highwater-complete"] == "true" and answer.headers["x-highwater-next-cursor"]
    assert "Hà Nội" in filled.get("/v1/views/shops?format=csv").content.decode("utf-8-sig")


def test_a_file_has_all_rows_or_says_that_more_follow(filled: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its name and by a link, since nobody who opens it sees a header."""
    for path in ("/v1/views/sales_minutes", "/v1/reports/tops", "/v1/events/sales-topic", "/v1/quarantine"):
        name = path.rpartition("/")[2]
        whole = filled.json(f"{path}?limit=10000")["rows"]
        assert "content-disposition" not in filled.get(path).headers
        for form in ("csv", "parquet"):
            answer = filled.get(f"{path}?format={form}")
            assert rows_in(answer, form) == len(whole)
            assert answer.headers["content-disposition"] == f'attachment; filename="{name}.{form}"'
            assert "link" not in answer.headers
            with monkeypatch.context() as patch:
                patch.setattr(tail, "PAGE_BYTES", 2_000 if len(whole) > 10 else 20)
                patch.setattr(query, "FETCH_ROWS", 2)
                number, found, link = 0, 0, f"{path}?format={form}"
                while link:
                    answer = filled.get(link)
                    number, found = number + 1, found + rows_in(answer, form)
                    link = str(answer.links.get("next", {}).get("url", ""))
                    end = "" if link else "-last"
                    assert answer.headers["content-disposition"].endswith(f'="{name}-page-{number}{end}.{form}"')
            assert found == len(whole) and number > 1, (path, form)
    first = filled.get("/v1/views/shops?format=csv&limit=2&shop=north&shop.null=true&shop=south")
    following = filled.get(str(first.links["next"]["url"]))
    assert (rows_in(first, "csv"), rows_in(following, "csv")) == (2, 1)


def rows_in(answer: Any, form: str) -> int:
    assert answer.status_code == 200, answer.text
    if form == "parquet":
        return int(pq.read_table(pa.BufferReader(answer.content)).num_rows)
    return len(list(csv.reader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))) - 1


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("text/csv", "csv"),
        ("application/vnd.apache.parquet", "parquet"),
        ("text/*;q=0.5, application/json;q=0.4", "csv"),
        ("application/json;q=0.1, TEXT/CSV ; q=0.9", "csv"),
        ("text/csv;q=0, */*", "json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "json"),
        ("application/json, text/csv", "json"),
        ("image/png", "json"),
        (",;=q;q=x, text/csv;q=2", "json"),
    ],
)
def test_accept_chooses_the_format_where_the_request_names_none(filled: Api, accept: str, form: str) -> None:
    for path in ("/v1/views/shops", "/v1/reports/tops", "/v1/events/sales-topic", "/v1/quarantine"):
        answer = filled.client.get(path, headers={"Accept": accept})
        assert answer.headers["content-type"] == MEDIA[form] and "Accept" in answer.headers["vary"]
        named = filled.client.get(f"{path}?format=json", headers={"Accept": accept})
        assert named.headers["content-type"] == "application/json"
    assert filled.client.get("/v1/ledger", headers={"Accept": accept}).json()["domains"]


def test_answers_are_compressed_for_who_reads_gzip_but_not_what_is_compressed(filled: Api) -> None:
    for path, packed in (
        ("/v1/views/sales_minutes?limit=50", True),
        ("/v1/reports/tops?format=csv", False),
        ("/v1/events/sales-topic?format=csv", True),
        ("/v1/views/sales_minutes?format=parquet", False),
        ("/static/style.css", True),
        ("/health/live", False),
    ):
        plain, asked = (filled.client.get(path, headers={"Accept-Encoding": e}) for e in ("identity", "gzip"))
        assert "content-encoding" not in plain.headers
        assert (asked.headers.get("content-encoding") == "gzip") == packed, path
        assert asked.content == plain.content
        if packed:
            assert int(asked.headers["content-length"]) < len(plain.content) / 2
            assert "Accept-Encoding" in asked.headers["vary"]


def test_parquet_holds_the_same_rows(filled: Api) -> None:
    for path in ("/v1/views/sales_minutes?every=1h", "/v1/events/sales-topic?limit=7", "/v1/reports/tops?order=-sales"):
        join = "&" if "?" in path else "?"
        table = pq.read_table(pa.BufferReader(filled.get(f"{path}{join}format=parquet").content))
        assert table.num_rows == len(filled.json(path)["rows"]) > 0


def test_reports_filter_order_and_tell_their_checks(filled: Api) -> None:
    found = filled.json("/v1/reports/tops?shop=north&shop.null=true&order=sales")
    assert [row["sales"] for row in found["rows"]] == [1, 3]
    assert found["report"] == {"status": "ok", "version": 1, "held_since": None, "failed_checks": {}}
    assert found["as_of"]["coverage"] == found["as_of"]["horizon"]


def test_a_report_that_is_held_says_since_when_and_why_and_serves_its_last_good_rows(api: Api) -> None:
    api.fill()
    good = api.json("/v1/reports/tops")["rows"]
    why = {"most": {"passed": False, "largest": "9"}}
    write_version(api.fs, SHOP, 2, pa.concat_tables(api.pieces[:4]), end_of(pa.concat_tables(api.pieces[:4])), held=why)
    api.service.poll()
    found = api.json("/v1/reports/tops")
    told = {"status": "held", "version": 1, "held_since": 2, "failed_checks": why}
    assert (found["rows"], found["report"], found["as_of"]["version"]) == (good, told, 1)
    assert api.json("/v1/views/shops")["as_of"]["version"] == 2
    catalogue = api.json("/v1/views")["reports"]
    assert catalogue == [{"report": "tops", "domain": "shop", "columns": ["shop", "day", "sales"], **told}]


def test_a_report_that_was_never_good_is_503_and_says_why(api: Api) -> None:
    write_version(api.fs, SHOP, 1, api.rows, end_of(api.rows), held={"most": {"passed": None}})
    api.service.poll()
    api.service.look()
    assert "it is held back since version 1" in api.json("/v1/reports/tops", 503)["detail"]
    assert "check most: passed null" in api.json("/v1/reports/tops", 503)["detail"]
    assert api.json("/v1/views")["reports"][0]["version"] is None


def test_a_report_with_a_time_is_cut_by_from_and_to(filled: Api) -> None:
    found = filled.json("/v1/reports/tops?from=2026-01-02&to=2026-01-03T00:00:00Z")["rows"]
    assert [(row["shop"], row["day"]) for row in found] == [("south", "2026-01-02T00:00:00Z")]
    assert [row["sales"] for row in filled.json("/v1/reports/tops?day=2026-01-03&from=2026-01-02")["rows"]] == [1]
    assert filled.get("/v1/reports/tops?from=soon").status_code == 422


def test_events_are_the_good_rows_newest_first(filled: Api) -> None:
    rows = pages(filled, "/v1/events/sales-topic?limit=100")
    assert len(rows) == good_in(filled.rows) and len({(row["partition"], row["offset"]) for row in rows}) == len(rows)
    assert [row["kafka_time"] for row in rows] == sorted((row["kafka_time"] for row in rows), reverse=True)
    some = filled.json("/v1/events/sales-topic?from=2026-01-31T23:00:00Z&to=2026-02-01T00:00:00Z&limit=10000")["rows"]
    assert {row["id"] for row in some} == {
        row["id"] for row in rows if "2026-01-31T23" <= row["event_time"] < "2026-02"
    }
    key = rows[17]["id"]
    assert [row["id"] for row in filled.json(f"/v1/events/sales-topic?key={key}")["rows"]] == [key]


def test_quarantine_is_every_other_row_with_its_raw_value(filled: Api) -> None:
    rows = pages(filled, "/v1/quarantine?limit=7")
    assert len(rows) == filled.rows.num_rows - good_in(filled.rows)
    assert {row["problem"] for row in rows} == {"malformed", "amount_given", "duplicate"}
    assert any(row["value_base64"] == "//4=" for row in rows)
    assert {row["problem"] for row in pages(filled, "/v1/quarantine?limit=7&problem=duplicate&domain=shop")} == {
        "duplicate"
    }
    assert {row["partition"] for row in filled.json("/v1/quarantine?partition=1")["rows"]} == {"1"}
    assert filled.json("/v1/quarantine?problem=nope", 422)["field"] == "problem"
    assert filled.json("/v1/quarantine?topic=nope", 404)["known"] == ["sales-topic"]


@pytest.mark.parametrize(
    "path", ["/v1/quarantine?limit=10000", "/v1/events/sales-topic?limit=10000", "/v1/views/sales_minutes?limit=10000"]
)
def test_a_page_ends_by_its_bytes_and_the_next_goes_on(path: str, filled: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = filled.json(path)
    assert whole["next_cursor"] is None
    monkeypatch.setattr(tail, "PAGE_BYTES", 2_000)
    short = filled.json(path)
    assert 0 < len(short["rows"]) < len(whole["rows"]) and len(json.dumps(short["rows"])) < 10_000
    assert pages(filled, path) == whole["rows"]
    for form in ("csv", "parquet"):
        rows, cursor = 0, None
        while cursor != "null":
            answer = filled.get(f"{path}&format={form}" + (f"&cursor={cursor}" if cursor else ""))
            cursor = answer.headers["x-highwater-next-cursor"]
            lines = csv.reader(io.StringIO(answer.content.decode("utf-8-sig"))) if form == "csv" else None
            found = len(list(lines)) - 1 if lines else pq.read_table(pa.BufferReader(answer.content)).num_rows
            assert 0 < found < len(whole["rows"])
            rows += found
        assert rows == len(whole["rows"])


def test_what_one_request_reads_is_bounded_in_bytes_and_the_walk_still_comes_to_its_end(
    filled: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pages(filled, "/v1/quarantine?limit=1000&problem=duplicate")
    monkeypatch.setattr(tail, "WORK_BYTES", 1)
    monkeypatch.setattr(tail, "HAND_BYTES", 1)
    found = pages(filled, "/v1/quarantine?limit=1000&problem=duplicate")
    assert sorted(found, key=str) == sorted(whole, key=str) and len(whole) > 5


def test_a_quarantine_of_long_values_is_answered_in_pages_of_bounded_size(tmp_path: Path) -> None:
    api = Api(tmp_path)
    long = ["x" * 1_000_000 if problem else None for problem in api.rows["problem"].to_pylist()]
    api.rows = api.rows.set_column(api.rows.column_names.index("value"), "value", pa.array(long, pa.string()))
    api.fill()
    rows, cursor, number = [], None, 0
    while number == 0 or cursor:
        answer = api.get("/v1/quarantine?limit=10000" + (f"&cursor={cursor}" if cursor else ""))
        assert answer.status_code == 200 and len(answer.content) < 1.2 * tail.PAGE_BYTES
        found = answer.json()
        rows += [(row["partition"], row["offset"]) for row in found["rows"]]
        cursor, number = found["next_cursor"], number + 1
    assert len(rows) == len(set(rows)) == api.rows.num_rows - good_in(api.rows) and number > 2


def test_the_ledger_balances_and_notices_when_it_does_not(api: Api) -> None:
    api.fill()
    found = api.json("/v1/ledger")["domains"][0]
    assert found["balanced"] and found["complete"] and found["events"]["merged"] == good_in(api.rows)
    assert sum(found["quarantined"].values()) == api.rows.num_rows - good_in(api.rows)
    assert sum(part["raw"] for part in found["partitions"]) == api.rows.num_rows
    last = max(api.fs.list(f"{MASTER}/topic={SALES.topic}/log={LOG}/partition=0"), key=lambda entry: entry.path)
    api.fs.delete(last.path)
    api.service.look()
    assert not api.json("/v1/ledger")["domains"][0]["balanced"]


def test_an_accepted_gap_below_coverage_makes_every_answer_incomplete(api: Api) -> None:
    api.fill()
    chain = api.service.loaders["shop"].current.chain  # type: ignore[union-attr]
    assert chain
    end = end_of(api.rows, ORIGINS)
    head = end[SALES.topic][LOG]["1"]
    path = segment_path(MASTER, SALES.topic, LOG, "1", head)
    api.fs.create(path, gap_segment(head, head + 5, pa.schema([("offset", pa.int64())])))
    api.service.look()
    assert api.json("/v1/views/shops")["complete"] is True  # the gap lies above coverage
    later = events(Random(9), 30)
    later = later.set_column(3, "offset", pa.compute.add(later["offset"], 10_000))
    write_epoch(api.fs, SHOP, chain, len(api.pieces), end, later)
    api.service.poll()
    found = api.json("/v1/views/shops")
    assert found["complete"] is False
    assert found["missing"] == [
        {"topic": SALES.topic, "log": LOG, "partition": "1", "start": head, "end": head + 5, "reason": "accepted gap"}
    ]
    assert json.loads(api.get("/v1/views/shops?format=csv").headers["x-highwater-complete"]) is False


def test_errors_are_problem_documents_with_the_known_names(filled: Api) -> None:
    for path, known in (
        ("views/x", "shops"),
        ("reports/x", "tops"),
        ("events/x", SALES.topic),
        ("views/x/proof", "shops"),
    ):
        assert known in filled.json(f"/v1/{path}", 404)["known"]
    assert "limit" in filled.json("/v1/views/shops?nope=1", 422)["detail"]
    for path in (
        "/v1/views/..%2f..%2fetc%2fpasswd",
        "/v1/views/%2e%2e",
        "/nix",
        "/static/..%2fserving_layer.py",
        "/static/%00",
        "/v1//views",
    ):
        assert filled.get(path).status_code == 404, path
    answer = filled.client.post("/v1/views", content=b"x" * 100_000)
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"
    assert filled.json("/v1/views/shops?shop=%ff", 422)["field"] == "query"
    assert filled.json("/v1/views/shops?shop=%ed%a0%80", 422)["field"] == "query"


def test_security_headers_stand_on_every_answer(filled: Api) -> None:
    for path in ("/v1/views/shops", "/v1/views/x", "/docs", "/nix", "/metrics"):
        headers = filled.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["content-security-policy"].startswith(
            "default-src 'self'"
        )
    assert filled.get("/v1/views/shops").headers["cache-control"] == "no-store"


def test_what_is_described_is_what_answers(filled: Api) -> None:
    for path, item in filled.json("/openapi.json")["paths"].items():
        if path.endswith("/proof"):
            continue
        assert filled.get(path).status_code == 200, path
        for parameter in item["get"]["parameters"]:
            if "example" in parameter:
                example = parameter["example"][0] if isinstance(parameter["example"], list) else parameter["example"]
                answer = filled.get(f"{path}?{quote(parameter['name'])}={quote(str(example))}")
                assert answer.status_code == 200 or parameter["name"] in ("by", "topic"), (path, parameter, answer.text)
    page = filled.get("/docs").text
    needed = re.findall(r'(?:src|href)="(/[^"]*)"', page)
    assert len(needed) >= 5 and all(filled.get(path).status_code == 200 for path in needed)
    assert not re.search(r"<script(?! src=)|<style|style=", page), "the Content-Security-Policy allows nothing inline"


def test_metrics_tell_the_state(filled: Api) -> None:
    text = filled.get("/metrics").text
    assert (
        'highwater_serving_balanced{domain="shop"} 1.0' in text
        and 'highwater_serving_version{domain="shop"} 1.0' in text
    )
    told = dict(re.findall(r'^highwater_serving_(\w+)\{domain="shop",?([^}]*\} \S+)$', text, re.M))
    ledger = filled.json("/v1/ledger")["domains"][0]
    parts = dict(re.findall(r'serving_events\{domain="shop",part="(\w+)"\} (\S+)', text))
    assert {part: int(float(rows)) for part, rows in parts.items()} == {
        p: ledger["events"][p] for p in ("batch", "speed")
    }
    lags = re.findall(r'serving_lag_offsets\{domain="shop",layer="stream",topic="(\w+)"\} (\S+)', text)
    assert sum(float(lag) for _, lag in lags) == sum(row["lag"]["stream"] for row in ledger["partitions"])
    assert {"version_timestamp_seconds", "unbalanced_partitions", "missing_offsets"} <= set(told)
    assert 'source_silence_seconds{source="Kafka"}' in text


def _recount(tmp_path: Path, body: str) -> tuple[str, ...]:
    script = tmp_path / "recount.py"
    script.write_text(f"import json, sys, time\nasked = json.load(sys.stdin)\n{body}")
    return (sys.executable, str(script))


def test_a_proof_gives_the_recount_what_is_served_and_says_what_it_says(
    filled: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = filled.json("/v1/views/shops?measures=sales,revenue,mean,buyers")["rows"]
    body = (
        "assert asked['columns'] == ['sales', 'revenue', 'mean', 'buyers']\n"
        "print(json.dumps({'rows': asked['served'], 'differences': DIFFERENCES, 'offsets': asked['coverage'], 'segments': 3}))"
    )
    path = "/v1/views/shops/proof?measures=sales,revenue,mean,buyers"
    monkeypatch.setattr(proof, "COMMAND", _recount(tmp_path, body.replace("DIFFERENCES", "[]")))
    found = filled.json(path)
    assert found["rows_served"] == found["rows_recomputed"] == rows
    assert found["match"] is True and found["differences"] == []
    assert found["segments"] == 3 and found["offsets"] == found["as_of"]["coverage"]
    difference = {"key": ["north"], "column": "sales", "served": 3, "recomputed": 4}
    monkeypatch.setattr(proof, "COMMAND", _recount(tmp_path, body.replace("DIFFERENCES", repr([difference]))))
    found = filled.json(path)
    assert found["match"] is False and found["differences"] == [difference]


def test_a_proof_is_killed_at_its_deadline(filled: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "alive"
    body = f"time.sleep(1.5)\nopen({str(mark)!r}, 'w').write('x')"
    monkeypatch.setattr(proof, "COMMAND", _recount(tmp_path, body))
    monkeypatch.setattr(proof, "DEADLINE_SECONDS", 0.3)
    found = filled.json("/v1/views/shops/proof", 503)
    assert "python -m engine.verify --domain shop --view shops" in found["detail"] and found["offsets"]
    time.sleep(1.6)
    assert not mark.exists()


def test_a_proof_of_too_many_groups_is_refused(filled: Api) -> None:
    assert "200" in filled.json("/v1/views/sales_minutes/proof", 422)["detail"]


_names = st.sampled_from(
    [
        "shop",
        "size",
        "shop.null",
        "from",
        "to",
        "every",
        "by",
        "part",
        "order",
        "limit",
        "cursor",
        "format",
        "measures",
        "key",
        "domain",
        "problem",
        "x",
    ]
)
_texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "-1",
            "1e309",
            "NaN",
            "9" * 400,
            "\x00",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "9999-12-31T00:00:00-23:59",
            str(2**63),
            "' OR 1=1 --",
            "1d",
            "all",
            "shop",
            "-sales",
            "",
            "csv",
            "parquet",
            "true",
            "speed",
            "2026-01-31T00:00:00Z",
            "0001-01-01T00:00:00+14:00",
        ]
    ),
)
_paths = [
    "/v1/views",
    "/v1/views/shops",
    "/v1/views/sales_minutes",
    "/v1/views/tag_days",
    "/v1/reports/tops",
    "/v1/ledger",
]
_paths += ["/v1/events/sales-topic", "/v1/quarantine", "/v1/views/shops/proof"]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(_paths), params=st.lists(st.tuples(_names, _texts), max_size=4), raw=st.binary(max_size=8))
def test_no_input_is_ever_a_500(
    filled: Api, monkeypatch: pytest.MonkeyPatch, path: str, params: list[tuple[str, str]], raw: bytes
) -> None:
    monkeypatch.setattr(proof, "COMMAND", ("false",))
    query = "&".join(f"{quote(name)}={quote(text.encode('utf-8', 'surrogatepass'))}" for name, text in params)
    answer = filled.get(f"{path}?{query}{'&' + quote(raw) if len(raw) == 8 else ''}")
    assert answer.status_code in (200, 404, 410, 422, 429, 503), (answer.status_code, path, query, answer.text)
    if answer.status_code != 200:
        assert answer.json()["status"] == answer.status_code


def test_other_machines_are_refused_without_a_word_of_consent() -> None:
    assert "--allow-remote" in str(listen_refusal("0.0.0.0", 0, False))
    assert listen_refusal("0.0.0.0", 0, True) is None and listen_refusal("127.0.0.1", 0, False) is None
    assert "cannot listen" in str(listen_refusal("no-such-host.invalid", 8000, False))
    assert serving_layer.DRAIN_SECONDS <= 10


def test_answers_older_than_the_bound_are_not_ready_and_every_page_says_so(api: Api) -> None:
    """A healthy store of answers that stopped growing; without a bound it is a warning for as long as it lasts."""
    api.fill()
    made = api.json("/v1/ledger")["domains"][0]
    api.now += 1_166 - made["staleness_seconds"]
    api.service.heard = dict.fromkeys(api.service.heard, api.now)

    def told(bound: float) -> tuple[dict[str, Any], dict[str, Any], str]:
        api.service.settings = dataclasses.replace(api.service.settings, ready_staleness=bound)
        ready = api.json("/health/ready", 503 if 0 < bound < 1_166 else 200)
        return ready, api.json("/v1/ledger")["domains"][0], api.get("/metrics").text

    ready, ledger, page = told(0)
    assert (ready["reasons"], ready["warnings"]) == ([], ["domain 'shop' is 1166 s behind Kafka"])
    assert ledger["max_staleness_seconds"] is None
    assert 'highwater_serving_max_staleness_seconds{domain="shop"} 0.0' in page
    ready, ledger, page = told(900)
    assert ready["reasons"] == ["domain 'shop' is 1166 s behind Kafka, READY_STALENESS allows 900"]
    assert ready["status"] == "not ready" and ready["warnings"] == []
    assert ledger["staleness_seconds"] > ledger["max_staleness_seconds"] == 900
    assert 'highwater_serving_max_staleness_seconds{domain="shop"} 900.0' in page
    assert told(1_200)[0]["status"] == "ready"


def test_a_server_that_ends_by_itself_is_start_me_again(filled: Api) -> None:
    """Its port was free a moment ago; exit 0 would have left it down for good."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        chosen = dataclasses.replace(filled.service.settings, serving_port=busy.getsockname()[1])
        idle: Any = SimpleNamespace(start=lambda: None, stop=lambda: None)
        with pytest.raises(StartAgain, match=r"ended by itself: Address already in use"):
            asyncio.run(serving_layer.serve(create_app(filled.service), chosen, idle))


def test_while_hdfs_hangs_answers_from_memory_do_not_wait(filled: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dashboard asks for the quarantine every few seconds."""
    came_back = threading.Event()
    monkeypatch.setattr(filled.fs, "open_parquet", lambda path: came_back.wait(30))
    monkeypatch.setattr(service_module, "DEADLINE_SECONDS", 1.0)
    try:
        with ThreadPoolExecutor(8) as pool:
            hanging = [pool.submit(filled.get, "/v1/quarantine") for _ in range(8)]
            assert {answer.result().status_code for answer in hanging} == {503}
            assert filled.json("/v1/views/shops?limit=1")["rows"]
    finally:
        came_back.set()
