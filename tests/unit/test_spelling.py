"""One value, one spelling.

However a number is written, both decoders, DuckDB and Spark take it for the same value and key.
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from engine.domain import Domain, Stream, View, count, distinct, max_of, min_of
from engine.fold import measures, spark_fold
from engine.fold.decode import decode_rows
from engine.produce.validate import EventRefused, checker
from engine.verify import answers
from engine.verify.answers import question_of, view_rows
from engine.verify.rows import load, open_database, typed_table
from tests.unit.test_decode import raw

TYPES = ("BIGINT", "INT", "TIMESTAMP", "DECIMAL(5,2)", "DECIMAL(28,10)", "DECIMAL(3,3)", "DOUBLE")


def stream_of(sql_type: str) -> Stream:
    return Stream("numbers", {"id": "STRING", "v": sql_type}, key="id", unique=("v",))


@st.composite
def spellings(draw: st.DrawFn) -> list[str]:
    """Several ways to write one number.

    The point moved, zeros around it, the exponent in each form, a zero with a sign.
    """
    units = draw(st.sampled_from([0, 0, 1, 10, 12345, 2**31, 2**63 - 1, 10**25]) | st.integers(0, 10**30))
    power = draw(st.integers(-12, 12))
    negative = draw(st.booleans())
    found = []
    for _ in range(draw(st.integers(2, 5))):
        zeros = draw(st.sampled_from([0, 1, 30, 300]))
        digits = f"{units}{'0' * zeros}" if units else "0"
        shift = draw(st.integers(-3, min(40, len(digits) + 3)))
        if shift > 0:
            digits = digits.rjust(shift + 1, "0")
            digits = f"{digits[:-shift]}.{digits[-shift:]}{'0' * draw(st.integers(0, 3))}"
        exponent = power - zeros + max(shift, 0)
        if not units:
            exponent = draw(st.sampled_from([0, 21, 25, 40, 999_999, -999_999]))
        form = draw(st.sampled_from(["e{}", "E{}", "e{:+}", "E{:+04}"]))
        sign = "-" if negative or (not units and draw(st.booleans())) else ""
        found.append(f"{sign}{digits}{form.format(exponent) if exponent or draw(st.booleans()) else ''}")
    return found


def by_decoder(stream: Stream, texts: list[str]) -> list[tuple[Any, ...]]:
    rows = decode_rows(stream, raw([event(text) for text in texts])).to_pylist()
    return [(row["problem"], plain(row["v"]), row["ukey"]) for row in rows]


def by_recount(stream: Stream, texts: list[str]) -> list[tuple[Any, ...]]:
    rows = typed_table(stream, raw([event(text) for text in texts])).to_pylist()
    return [(row["problem"], plain(row["v"])) for row in rows]


def event(text: str) -> str:
    return f'{{"id":"x","v":{text}}}'


def plain(value: Any) -> Any:
    """Told apart by more than ==: the sign of a zero counts."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    return (str(value), math.copysign(1, value)) if isinstance(value, (float, Decimal)) else value


@pytest.mark.parametrize("sql_type", TYPES)
@given(texts=spellings())
@settings(max_examples=150, deadline=None)
def test_a_number_is_the_same_value_and_key_however_it_is_written(sql_type: str, texts: list[str]) -> None:
    stream = stream_of(sql_type)
    found = by_decoder(stream, texts)
    assert len(set(found)) == 1, (texts, found)
    assert by_recount(stream, texts) == [row[:2] for row in found], texts
    # A row is read alike alone, where its whole column may take a faster way.
    assert [by_decoder(stream, [text])[0] for text in texts] == found
    check = checker(stream)
    for text in texts:
        try:
            check(event(text).encode())
        except EventRefused:
            continue  # no encoder writes it like this
        assert found[0][0] is None, text


@pytest.mark.parametrize(
    ("sql_type", "text"),
    [
        *((sql_type, text) for sql_type in TYPES for text in ("0e21", "-0e25", "0.0e40", "-0", "-0.0", "0E-999999")),
        ("DOUBLE", "-1e-400"),
    ],
)
def test_zero_is_zero_however_it_is_written(sql_type: str, text: str) -> None:
    stream = stream_of(sql_type)
    assert by_decoder(stream, [text]) == by_decoder(stream, ["0"])
    assert by_recount(stream, [text]) == by_recount(stream, ["0"])
    assert by_decoder(stream, [text])[0][0] is None


DOUBLES = Stream("doubles", {"id": "STRING", "v": "DOUBLE"}, key="id", unique=("id",))
SIGNS = Domain(
    "signs",
    (DOUBLES,),
    (
        View("per_value", (DOUBLES,), ("v",), {"n": count()}),
        View("extremes", (DOUBLES,), (), {"least": min_of("v"), "most": max_of("v")}),
    ),
)


def test_a_zero_has_no_sign_as_a_dimension_or_an_extreme_in_any_engine(spark: SparkSession) -> None:
    texts = ["-0.0", "0.0", "-0e3", "0", "-1e-400"]
    log = raw([json.dumps({"id": str(n)})[:-1] + f', "v": {text}}}' for n, text in enumerate(texts)])
    typed = decode_rows(DOUBLES, log)
    placed = {"topic": "doubles", "log": "L", "partition": "0"}
    for name, value in placed.items():
        typed = typed.append_column(name, pa.array([value] * len(typed)))
    spark_fold.register_good_rows({"doubles": spark.createDataFrame(typed)})
    con = open_database()
    load(con, SIGNS, [(("doubles", "L", "0"), log)], len(texts))
    as_of = {"coverage": {"doubles": {"L": {"0": len(texts)}}}, "horizon": {}}
    for view in SIGNS.views:
        rows = spark_fold.partials(spark, view).toArrow().cast(measures.stored_schema(view)).to_pylist()
        wanted = [{"v": 0.0, "n": 5}] if view.by else [{"least": 0.0, "most": 0.0}]
        for answer in (rows, view_rows(con, SIGNS, view, question_of(view, []), as_of)):
            assert repr(answer) == repr(wanted)


SPELT = {
    "BIGINT": ["0", "-1", str(2**63 - 1)],
    "DECIMAL(3,3)": ["0.5", "-0.5", "0.050", "0"],
    "DECIMAL(28,10)": ["0.0000000001", "1e17", "-5.5"],
    "BOOLEAN": ["true", "false"],
    "TIMESTAMP": [
        '"0001-01-01T00:00:00Z"',
        '"2026-01-01T00:00:00.1Z"',
        '"2026-01-01T00:00:00.000001Z"',
        '"9999-12-31T23:59:59.999999Z"',
    ],
}


@pytest.mark.parametrize("sql_type", SPELT)
def test_distinct_values_are_spelt_alike_in_every_engine(sql_type: str, spark: SparkSession) -> None:
    """A sketch sees texts: the same ones in Spark, DuckDB and the recount make one sketch, so all three add nothing."""
    stream = Stream("spelt", {"id": "STRING", "v": sql_type}, key="id", unique=("id",))
    view = View("number", (stream,), (), {"values": distinct("v")})
    domain = Domain("spelling", (stream,), (view,))
    log = raw([f'{{"id":"{n}","v":{text}}}' for n, text in enumerate(SPELT[sql_type])])
    typed = decode_rows(stream, log)
    con = duckdb.connect()
    measures.register(con)
    con.register(
        "typed", typed.set_column(typed.column_names.index("v"), "v", typed["v"].cast(measures.arrow_type(sql_type)))
    )  # times without zone
    rows = con.sql(measures.partial_query(view, "typed", "duckdb")).fetchall()
    spark.createDataFrame(typed).createOrReplaceTempView("typed")
    sketched = spark.sql(measures.partial_query(view, "typed", "spark")).collect()
    recount = open_database()
    load(recount, domain, [(("spelt", "L", "0"), log)], len(log))
    seen: list[list[str]] = []
    answers.estimate, before = lambda values: seen.append(sorted(values)) or len(values), answers.estimate
    try:
        view_rows(recount, domain, view, question_of(view, []), {"coverage": {"spelt": {"L": {"0": 9}}}})
    finally:
        answers.estimate = before
    together = measures._hll_merge([rows[0][0], bytes(sketched[0][0]), measures._hll_of(seen[0])])
    assert measures._hll_estimate(together) == len(seen[0]) == len(SPELT[sql_type])
