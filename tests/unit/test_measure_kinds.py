"""Is a kind of measure known everywhere? Each place of "a new measure" in ARCHITECTURE.md, for every kind."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import engine.domain
from engine.domain import (
    MEASURE_KINDS,
    DeclarationError,
    Domain,
    Measure,
    Stream,
    View,
    avg,
    count,
    distinct,
    first,
    last,
    max_of,
    min_of,
    quantile,
    stddev,
    sum_of,
)
from engine.fold import measures
from engine.serving.openapi import describe
from engine.serving.parameters import BadQuery, view_query
from engine.verify import compare
from engine.verify.answers import question_of, view_rows
from engine.verify.rows import load, open_database, table_of
from tests.unit import test_measures

ROOT = Path(__file__).resolve().parents[2]
PAID = Stream(
    topic="paid",
    key="id",
    time=None,
    unique=("id",),
    columns={"id": "STRING", "amount": "DECIMAL(10,2)", "tags": "ARRAY<STRING>"},
)
# The name of the function that makes it, as in the guide → a measure; one of each kind.
EXAMPLES: dict[str, Measure] = {
    "count": count(),
    "sum_of": sum_of("amount"),
    "min_of": min_of("amount"),
    "max_of": max_of("amount"),
    "avg": avg("amount"),
    "stddev": stddev("amount"),
    "first": first("amount"),
    "last": last("amount"),
    "distinct": distinct("amount"),
    "quantile": quantile("amount", "0.5"),
}
EACH = pytest.mark.parametrize("name", EXAMPLES)
ROWS = 60
AS_OF = {"coverage": {"paid": {"L": {"0": ROWS}}}, "horizon": {}}


def view_of(name: str) -> View:
    return View("payments", (PAID,), by=("tag",), explode=("tags", "tag"), measures={"m": EXAMPLES[name]})


@pytest.fixture(scope="module")
def paid() -> duckdb.DuckDBPyConnection:
    """60 payments, some of one amount, some without, judged by the recount."""
    values = [
        f'{{"id": "{number}", "amount": {"null" if number % 7 == 0 else f"{number % 11}.25"}, "tags": ["a"]}}'
        for number in range(ROWS)
    ]
    raw = pa.table(
        {
            "offset": pa.array(range(ROWS), pa.int64()),
            "timestamp": pa.array([datetime(2026, 3, 1, 12)] * ROWS, pa.timestamp("us", "UTC")),
            "value": values,
            "value_bytes": pa.nulls(ROWS, pa.binary()),
        }
    )
    con = open_database()
    measures.register(con)
    load(con, Domain("till", (PAID,), (view_of("count"),)), [(("paid", "L", "0"), raw)], ROWS)
    return con


def test_each_kind_has_an_example_here_and_among_those_that_spark_and_duckdb_fold() -> None:
    assert {measure.kind for measure in EXAMPLES.values()} == set(MEASURE_KINDS)
    assert {measure.kind for measure in test_measures.VIEW.measures.values()} == set(MEASURE_KINDS)
    assert all(kind.name == name for name, kind in MEASURE_KINDS.items())


@EACH
def test_each_is_made_by_a_function_of_the_face(name: str) -> None:
    assert name in engine.domain.__all__ and callable(getattr(engine.domain, name))


@EACH
def test_layers_and_recount_say_the_same_of_it(name: str, paid: duckdb.DuckDBPyConnection) -> None:
    view = view_of(name)
    domain = Domain("till", (PAID,), (view,))
    halves = []
    for side in ("<", ">="):
        rows = (
            f"(SELECT 'paid' AS topic, * FROM {table_of(domain, 'paid')} WHERE \"offset\" {side} {ROWS // 2}) AS half"
        )
        halves.append(paid.sql(measures.partial_query(view, rows, "duckdb")).to_arrow_table())
    paid.register("stored", pa.concat_tables(halves))
    merged = f"({measures.merge_query(view, 'stored', 'duckdb')}) AS merged"
    (shown,) = paid.sql(measures.show_query(view, merged, "duckdb")).to_arrow_table().to_pylist()
    (recounted,) = view_rows(paid, domain, view, question_of(view, ()), AS_OF)
    assert shown["m"] is not None
    assert compare.tests_of(view, ["m"])["m"](shown["m"], recounted["m"])


@EACH
def test_spark_stores_it_under_the_same_names_and_types_as_duckdb(name: str) -> None:
    stored = [
        [(part.name, part.sql_type) for part in measures.all_parts(view_of(name), engine)]
        for engine in ("spark", "duckdb")
    ]
    assert stored[0] == stored[1] and measures.shown_as(view_of(name), "m", "spark")


def test_each_comparison_of_a_kind_has_its_test() -> None:
    assert {kind.comparison for kind in MEASURE_KINDS.values()} == set(compare.TESTS)


@EACH
def test_the_api_describes_it_with_its_kind_and_type(name: str) -> None:
    (described,) = [entry for entry in describe(view_of(name))["measures"] if entry["name"] == "m"]
    assert described["kind"] == EXAMPLES[name].kind and described["type"] == view_of(name).value_types["m"]


@EACH
def test_only_what_may_see_an_event_twice_is_regrouped_over_several_rows_of_an_event(name: str) -> None:
    if MEASURE_KINDS[EXAMPLES[name].kind].overlap_safe:
        assert view_query(view_of(name), [("by", "")])
    else:
        with pytest.raises(BadQuery, match="more than once"):
            view_query(view_of(name), [("by", "")])


@EACH
def test_it_refuses_columns_that_it_cannot_fold(name: str) -> None:
    measure, kind = EXAMPLES[name], MEASURE_KINDS[EXAMPLES[name].kind]
    wrong = ("amount",) if kind.columns == "no" else ()
    with pytest.raises(DeclarationError, match=f"{kind.name} takes {kind.columns} column"):
        View("v", (PAID,), (), {"m": Measure(kind.name, wrong, at=measure.at)})
    if not kind.accepts("ARRAY<STRING>"):
        with pytest.raises(DeclarationError, match=re.escape(kind.refusal.format(type="ARRAY<STRING>"))):
            View("v", (PAID,), (), {"m": Measure(kind.name, ("tags",), at=measure.at)})


def test_the_guide_has_a_row_for_each_and_no_other() -> None:
    table = (ROOT / "docs/add-a-domain.md").read_text(encoding="utf-8").partition("| measure | stores |")[2]
    assert re.findall(r"^\| `(\w+)` \|", table.partition("\n\n")[0], re.M) == list(EXAMPLES)


def kinds_in(file: str, pattern: str) -> set[str]:
    """Quoted words of the one place in a file of the dashboard that a pattern finds."""
    (place,) = re.findall(pattern, (ROOT / "web" / file).read_text(encoding="utf-8"))
    return set(re.findall(r'"(\w+)"', place))


def test_the_dashboard_knows_what_is_zero_what_is_a_number_and_what_is_an_estimate() -> None:
    zero = {name for name, kind in MEASURE_KINDS.items() if kind.zero_when_absent}
    assert kinds_in("chart.js", r"ZERO_WHEN_ABSENT = new Set\(\[(.*)\]\)") == zero
    assert kinds_in("card.js", r"NUMERIC_KINDS = \[(.*)\]") <= set(MEASURE_KINDS)
    estimates = {name for name, kind in MEASURE_KINDS.items() if kind.comparison == "estimated"}
    assert kinds_in("proof.js", r'kind === ("\w+") \? "within the estimate"') == estimates
