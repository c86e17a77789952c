"""What the oracle accepts and what it calls different; and that it shares no code with what it judges."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from domains.learning import LEARNING
from engine import verify
from engine.domain import Domain, Stream, View, avg, count, distinct, max_of, quantile
from engine.serving import proof
from engine.serving.parameters import view_query
from engine.verify.__main__ import main
from engine.verify.answers import BadQuestion, Distinct, moment, question_of, view_rows
from engine.verify.ask import recorded
from engine.verify.compare import (
    Answer,
    compare_rows,
    completeness_differences,
    estimated,
    near,
    position,
    same,
    view_differences,
)
from engine.verify.judge import furthest
from engine.verify.prove import json_text
from engine.verify.rawlog import Account, RawLog, Segment, visible
from engine.verify.rows import load, open_database
from tests.unit.localfs import LocalFs
from tests.unit.test_reports import ingest

ENGINE = Path(verify.__file__).parent
OURS = {"__main__", "ask", "compare", "judge", "prove", "rawlog", "answers", "rows"}
ALLOWED = {"engine.domain", "engine.runtime.settings", "domains", *(f"engine.verify.{name}" for name in OURS)}
OUTSIDE = {"duckdb", "pyarrow", "hdfs_native", "kafka", "numpy", "datasketches"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_oracle_shares_no_code_with_the_layers(name: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse((ENGINE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {node.module or ""} if node.module != "engine" else {f"engine.{a.name}" for a in node.names}
    own = {module for module in imported if module.split(".")[0] in ("engine", "domains", "stack")}
    assert own <= ALLOWED
    import sys

    foreign = {module.split(".")[0] for module in imported} - {"engine", "domains"} - sys.stdlib_module_names
    assert foreign <= OUTSIDE


# Values ------------------------------------------------------------------------------------------------------------

NOON = datetime(2026, 3, 1, 12)


@pytest.mark.parametrize(
    ("served", "counted"),
    [
        (None, None),
        ("a", "a"),
        (1, 1),
        (Decimal("1.50"), Decimal("1.5")),
        (10, Decimal("10.00")),
        (Decimal("0.1"), 0.1),
        (None, float("nan")),
        (None, float("inf")),
        (True, True),
        ("2026-03-01T12:00:00Z", NOON),
        ("2026-03-01T12:00:00.000000Z", NOON),
        ("2026-03-01", date(2026, 3, 1)),
        ({"a": 1, "t": "2026-03-01T12:00:00Z"}, {"a": 1, "t": NOON}),
        (["a", None], ["a", None]),
    ],
)
def test_equal_values_are_the_same(served: Any, counted: Any) -> None:
    assert same(served, counted)
    assert near(served, counted)


@pytest.mark.parametrize(
    ("served", "counted"),
    [
        (None, 0),
        (0, None),
        ("1", 1),
        (1, "1"),
        (1, True),
        (True, 1),
        (Decimal("1.5000001"), Decimal("1.5")),
        (Decimal("0.10000000000000002"), 0.1),
        (None, 0.0),
        ("2026-03-01T12:00:00.000001Z", NOON),
        ("2026-03-01T12:00:00+07:00", NOON),
        (None, NOON),
        ("noon", NOON),
        ({"a": 1}, {"a": 1, "b": None}),
        ({"a": 1}, {"a": 2}),
        (["a"], ["a", "b"]),
        ("a", ["a"]),
    ],
)
def test_other_values_are_different(served: Any, counted: Any) -> None:
    assert not same(served, counted)


def test_a_quotient_may_differ_by_a_billionth_of_itself() -> None:
    assert near(Decimal("1000000.0001"), 1_000_000.0)
    assert not near(Decimal("1000000.01"), 1_000_000.0)
    assert not near(Decimal("0.000001002"), 0.000001)
    assert not near(None, 1.0)
    assert not near(1, None)


def test_a_distinct_count_must_lie_within_its_stated_error() -> None:
    assert estimated(198, 200) and estimated(202, 200) and not estimated(203, 200) and not estimated(197, 200)
    assert estimated(10_800, 10_000) and not estimated(10_900, 10_000) and not estimated(9_100, 10_000)
    assert estimated(0, 0) and not estimated(None, 0)
    assert estimated(10_100, Distinct(10_000, 10_100)) and not estimated(10_101, Distinct(10_000, 10_100))
    assert not estimated(11_000, Distinct(10_000, 11_000))


# Rows --------------------------------------------------------------------------------------------------------------


def _answer(rows: list[dict[str, Any]], **more: Any) -> Answer:
    return Answer("v", (), rows, {"coverage": {}}, True, [], **more)


SERVED = [
    {"k": None, "t": "2026-03-01T12:00:00Z", "n": 1},
    {"k": "a", "t": "2026-03-01T12:00:00Z", "n": 2},
]
COUNTED = [{"k": "a", "t": NOON, "n": 2}, {"k": None, "t": NOON, "n": 1}]


def _compared(rows: list[dict[str, Any]], **more: Any) -> list[tuple[str, Any, Any]]:
    found = compare_rows("v", _answer(rows, **more), COUNTED, ("k", "t"), {"n": same})
    return [(one.column, one.served, one.recounted) for one in found]


def test_equal_rows_in_any_order_are_no_difference() -> None:
    assert _compared(SERVED) == []
    assert _compared(SERVED[::-1]) == []


def test_a_group_that_one_side_lacks_is_a_difference() -> None:
    assert _compared(SERVED[:1]) == [(None, [], [COUNTED[0]])]
    extra = {"k": "b", "t": "2026-03-01T12:00:00Z", "n": 0}
    assert _compared([*SERVED, extra]) == [(None, [extra], [])]


def test_a_group_that_is_served_twice_is_a_difference() -> None:
    assert _compared([*SERVED, SERVED[1]]) == [(None, [SERVED[1]] * 2, [COUNTED[0]])]


def test_a_wrong_number_and_a_missing_column_are_differences() -> None:
    assert _compared([SERVED[0], {**SERVED[1], "n": 3}]) == [("n", 3, 2)]
    assert _compared([SERVED[0], {"k": "a", "t": "2026-03-01T12:00:00Z"}]) == [("columns", ["k", "t"], ["k", "n", "t"])]
    assert [one[0] for one in _compared([{"k": "a"}])] == ["rows"]


def test_of_one_page_only_the_rows_on_it_are_judged() -> None:
    assert _compared(SERVED[:1], first=False) == []
    assert _compared([{**SERVED[0], "n": 9}], first=False) == [("n", 9, 1)]
    # a first page of `limit` 100 that holds one row of two and says that more follow
    assert _compared(SERVED[:1], last=False) == [("number of rows", 1, 2)]


# Both doors: `python -m engine.verify`, and the proof of one answer behind the dashboard's button --------------------

PAID = Stream(
    topic="paid",
    key="shop",
    time=None,
    unique=("id",),
    columns={"id": "STRING", "shop": "STRING", "amount": "DECIMAL(15,6)", "most": "DECIMAL(22,2)"},
)
SHOPS = View(
    "shops",
    streams=(PAID,),
    by=("shop",),
    measures={
        "n": count(),
        "mean": avg("amount"),
        "payers": distinct("id"),
        "half": quantile("amount", "0.5"),
        "largest": max_of("most"),
    },
)
TILL = Domain(name="till", streams=(PAID,), views=(SHOPS,), reports=(), title="Till")
AS_OF = {"coverage": {"paid": {"L": {"0": 100}}}, "horizon": {}}


class _ReadLog:
    """What `prove` says of a raw log that was read."""

    account = Account(origins={("paid", "L", "0"): 0})
    end = AS_OF["coverage"]


@pytest.fixture(scope="module")
def till() -> Iterator[duckdb.DuckDBPyConnection]:
    """100 payments of a ten-thousandth, each by somebody else."""
    con = open_database()
    raw = pa.table(
        {
            "offset": pa.array(range(100), pa.int64()),
            "timestamp": pa.array([NOON] * 100, pa.timestamp("us", "UTC")),
            "value": [
                f'{{"id": "{number}", "shop": "north", "amount": 0.0001, "most": 12345678901234567890.12}}'
                for number in range(100)
            ],
            "value_bytes": pa.nulls(100, pa.binary()),
        }
    )
    load(con, TILL, [(("paid", "L", "0"), raw)], 100, keep=True)
    yield con
    con.close()


def _by_verify(con: duckdb.DuckDBPyConnection, row: dict[str, Any], _: pytest.MonkeyPatch) -> list[str | None]:
    answer = Answer("shops", (), [row], AS_OF, True, [])
    return [difference.column for difference in view_differences(con, TILL, SHOPS, answer)]


def _proven(con: duckdb.DuckDBPyConnection, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    request = proof.request(TILL, view_query(SHOPS, ()), AS_OF["coverage"], [row])
    answer = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr("engine.verify.prove.read_log", lambda *_, **__: (_ReadLog(), con))
        patched.setattr("sys.stdin", io.StringIO(request.decode()))
        patched.setattr("sys.stdout", answer)
        assert main(["--proof"]) == 0
    return json.loads(answer.getvalue(), parse_float=Decimal)["differences"]


def _by_proof(con: duckdb.DuckDBPyConnection, row: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    return [difference["column"] for difference in _proven(con, row, monkeypatch)]


DOORS = pytest.mark.parametrize("door", [_by_verify, _by_proof])


def _counted(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    row = dict(view_rows(con, TILL, SHOPS, question_of(SHOPS, ()), AS_OF)[0])
    assert row["payers"] == 100 and row["mean"] == 1e-4
    return {**row, "payers": row["payers"].estimate}


@DOORS
def test_an_answer_that_is_the_recount_passes_both_doors(
    door: Any, till: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = _counted(till)
    assert door(till, row, monkeypatch) == []
    assert door(till, {**row, "mean": row["mean"] * (1 + 5e-10)}, monkeypatch) == []


@DOORS
@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("mean", lambda mean: 1.0000005e-4),
        ("half", lambda half: half + 4e-10),
        ("payers", lambda payers: 106),
        ("n", lambda n: n + 1),
        ("largest", lambda largest: largest + Decimal("0.01")),
    ],
)
def test_both_doors_call_the_same_numbers_different(
    door: Any, column: str, wrong: Any, till: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = _counted(till)
    assert door(till, {**row, column: wrong(row[column])}, monkeypatch) == [column]


@DOORS
def test_both_doors_see_a_group_that_is_not_there(
    door: Any, till: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert door(till, {**_counted(till), "shop": "south"}, monkeypatch) == [None, None]


def test_a_proof_names_the_group_and_shows_both_sides(
    till: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = _counted(till)
    assert _proven(till, {**row, "n": 7}, monkeypatch) == [
        {"key": ["north"], "column": "n", "served": 7, "recomputed": 100}
    ]
    other = {**row, "shop": None}

    def exact(row: dict[str, Any]) -> Any:
        return json.loads(json_text(row), parse_float=Decimal)

    assert _proven(till, other, monkeypatch) == [
        {"key": [None], "column": None, "served": exact(other), "recomputed": None},
        {"key": ["north"], "column": None, "served": None, "recomputed": exact({**row, "payers": 100})},
    ]


# Completeness ------------------------------------------------------------------------------------------------------

COVERAGE = {"t": {"L": {"0": 100, "1": 50}}}
GAP = {"topic": "t", "log": "L", "partition": "0", "start": 10, "end": 20, "reason": "accepted gap"}


class _Log:
    """What `completeness_differences` asks of a raw log that was read."""

    def __init__(self, gaps: dict[Any, Any], found: dict[Any, Any] | None = None) -> None:
        self.account = Account(gaps=gaps)
        self.topics = frozenset({"t"})
        self.found = found or {}


def _missing(gaps: dict[Any, Any], found: dict[Any, Any] | None = None, **said: Any) -> list[str]:
    answer = Answer("v", (), [], {"coverage": COVERAGE}, **{"complete": True, "missing": [], **said})
    return [one.column for one in completeness_differences(answer, _Log(gaps, found))]  # type: ignore[arg-type]


def test_what_is_missing_must_be_exactly_the_accepted_gaps_below_coverage() -> None:
    gap = {("t", "L", "0"): [(10, 20)]}
    assert _missing({}) == []
    assert _missing(gap, complete=False, missing=[GAP]) == []
    assert _missing(gap) == ["missing"]
    assert _missing({}, complete=False, missing=[GAP]) == ["missing"]
    assert _missing(gap, complete=False, missing=[{**GAP, "end": 19}]) == ["missing"]
    assert _missing({("t", "L", "0"): [(100, 120)]}) == []
    assert _missing({("t", "L", "0"): [(90, 120)]}, complete=False, missing=[{**GAP, "start": 90, "end": 100}]) == []


def test_complete_must_say_whether_anything_is_missing() -> None:
    gap = {("t", "L", "0"): [(10, 20)]}
    assert _missing(gap, complete=True, missing=[GAP]) == ["complete"]
    assert _missing({}, complete=False) == ["complete"]


def test_a_partition_that_was_long_there_must_be_covered_or_named() -> None:
    new, old = Segment("/p", 0, None, 990_000), Segment("/p", 0, None, 1_000)
    place = ("t", "L", "2")
    silent = {**GAP, "partition": "2", "reason": "not covered"}
    assert _missing({}, {place: (old,)}, at=1000.0) == ["coverage"]
    assert _missing({}, {place: (new,)}, at=1000.0) == []
    assert _missing({}, {place: (old,)}, at=1000.0, complete=False, missing=[silent]) == []
    assert _missing({}, {("t", "L", "1"): (old,)}, at=1000.0) == []


# Reading -----------------------------------------------------------------------------------------------------------


def test_members_of_a_compacted_segment_are_ignored() -> None:
    def named(*ranges: tuple[int, int | None]) -> list[Segment]:
        return [Segment(f"/{base}-{end}", base, end) for base, end in ranges]

    found = visible(named((300, None), (100, None), (0, None), (100, 300), (200, None)))
    assert [(s.base, s.end) for s in found] == [(0, None), (100, 300), (300, None)]


def test_recorded_answers_are_read_with_their_query() -> None:
    body = {"rows": [{"n": 1.5}], "as_of": {"coverage": {}}, "complete": True, "missing": [], "next_cursor": None}
    url = "http://x/v1/views/daily_logins?device=web&device=mobile"
    lines = [
        json.dumps({"url": url, "view": "daily_logins", "answer": body}),
        json.dumps(
            {
                "url": url,
                "view": "daily_logins",
                "query": {"device": ["web"], "limit": 5},
                "answer": {**body, "next_cursor": "c"},
            }
        ),
        "",
        json.dumps({"url": "http://x/v1/reports/engagement_bands", "query": "cursor=c", "answer": body}),
    ]
    whole, page, later = recorded(lines)
    assert whole.name == "daily_logins" and whole.params == (("device", "web"), ("device", "mobile"))
    assert whole.rows == [{"n": Decimal("1.5")}] and whole.first and whole.last
    assert page.params == (("device", "web"), ("limit", "5")) and page.first and not page.last
    assert later.name == "engagement_bands" and not later.first and later.last


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"view": "v", "answer": {}}', '"x"'])
def test_a_line_that_is_no_recorded_answer_is_named(line: str) -> None:
    with pytest.raises(BadQuestion, match="line 1 "):
        recorded([line])


def test_a_question_is_read_like_the_api_documents_it() -> None:
    view = LEARNING.view("student_submissions")
    params = [
        ("by", "course_id"),
        ("every", "all"),
        ("course_id", "C001"),
        ("course_id.null", "true"),
        ("from", "2026-03-01T07:00:00+07:00"),
    ]
    asked = question_of(view, [*params, ("limit", "5"), ("order", "-graded")])
    assert asked.by == ("course_id",) and asked.every == "all" and asked.start == datetime(2026, 3, 1)
    assert asked.filters == {"course_id": ("C001", None)} and asked.keys(view) == ("course_id",)
    assert question_of(view, [("by", "course_id,user_id")]).by == ("user_id", "course_id")
    assert question_of(view, [("measures", "graded")]).columns == ("graded",)
    with pytest.raises(BadQuestion, match="'colour'"):
        question_of(view, [("colour", "red")])


def test_positions_are_joined_at_their_furthest() -> None:
    one = {"t": {"L": {"0": 5, "1": 9}}, "other": {"L": {"0": 1}}}
    assert furthest([one, {"t": {"L": {"0": 7}, "M": {"0": 1}}}], {"t"}) == {
        "t": {"L": {"0": 7, "1": 9}, "M": {"0": 1}}
    }
    ledger = [{"topic": "t", "log": "L", "partition": 0, "speed_end": 3}]
    assert position(ledger, "speed_end") == {"t": {"L": {"0": 3}}}


def test_times_without_a_zone_are_utc() -> None:
    assert (
        moment("2026-03-01T12:00:00") == moment("2026-03-01T12:00:00Z") == moment("2026-03-01t19:00:00+07:00") == NOON
    )


def test_json_keeps_every_digit_of_a_decimal() -> None:
    value = {
        "a": Decimal("12345678901234567890.12"),
        "t": NOON,
        "d": date(2026, 3, 1),
        "x": [None, float("nan"), 0.1, True, "é\0"],
    }
    text = json_text(value)
    assert json.loads(text, parse_float=Decimal) == {
        "a": Decimal("12345678901234567890.12"),
        "t": "2026-03-01T12:00:00Z",
        "d": "2026-03-01",
        "x": [None, None, Decimal("0.1"), True, "é\0"],
    }


# The command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--domain", "no_such"], "unknown domain"),
        (["--domain", "learning", "--view", "no_such"], "no domain of --domain has a view 'no_such'"),
        (["--domain", "learning", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9/v1/ledger"),
        (["--domain", "learning", "--answers", "/no/such/file"], "/no/such/file"),
    ],
)
def test_wrong_usage_and_silence_are_one_line_and_exit_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.count("\n") == 1 and shown.out == ""


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"domain": "learning"}', '{"domain": "learning", "view": "x", "coverage": {}}']
)
def test_a_proof_request_that_cannot_be_read_exits_2(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["--proof"]) == 2
    assert capsys.readouterr().err.startswith("verify: ")


class Client:
    """What `RawLog` asks of hdfs-native, over a folder."""

    def __init__(self, fs: LocalFs) -> None:
        self.fs = fs

    def list_status(self, path: str, recursive: bool) -> list[Any]:
        found = self.fs.list(path, recursive)
        return [SimpleNamespace(path=e.path, isdir=e.is_folder, modification_time=e.modified_ms) for e in found]

    def read(self, path: str) -> io.BytesIO:
        return io.BytesIO(self.fs.read(path))


@pytest.mark.parametrize("price", [1, 7])
def test_segments_that_overlap_are_read_once_and_must_hold_the_same_rows(tmp_path: Path, price: int) -> None:
    """A copy of [0, 3) was put back after its offsets were read again as [0, 1) and [1, 5)."""
    fs = LocalFs(tmp_path)
    ingest(fs, 0, *[("north", 1)] * 3)
    ingest(fs, 1, ("north", 1), ("north", price), ("north", 1), ("north", 1))
    raw = object.__new__(RawLog)
    raw._client, raw.end, raw.topics = Client(fs), {"orders": {"L": {"0": 5}}}, frozenset(("orders",))  # type: ignore[assignment]
    raw.found, raw.begun, raw._listed_again, raw.account = {}, {}, set(), Account()
    raw._list("orders")
    assert [o for _, rows in raw.chunks() for o in rows["offset"].to_pylist()] == [0, 1, 2, 3, 4]
    assert [fault.partition("): ")[2].rpartition("/")[2] for fault in raw.account.faults] == (
        [f"{1:020d}.parquet overlaps an earlier segment"] if price != 1 else []
    )
