"""Rules, `where` and `show` are total.

No value makes them raise, and Spark, serving and the recount say the same, NULL included.
"""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from engine.domain import DeclarationError, Domain, Stream, View, count, expressions, last, max_of, sum_of
from engine.domain.operators import _FUNCTIONS, ExpressionError
from engine.fold import measures, spark_fold
from engine.fold.decode import decode_rows, decode_stream, decoded_columns
from engine.fold.measures import arrow_type
from engine.fold.quality import judged
from engine.serving import query
from engine.verify.answers import question_of, view_rows
from engine.verify.rows import load, open_database
from tests.unit.test_decode import raw

FIELDS = {
    "i": "INT",
    "j": "INT",
    "n": "BIGINT",
    "m": "BIGINT",
    "d": "DECIMAL(18,6)",
    "e": "DECIMAL(5,2)",
    "w": "DECIMAL(28,10)",
    "z": "DECIMAL(28,28)",
    "f": "DOUBLE",
    "g": "DOUBLE",
    "s": "STRING",
    "r": "STRING",
    "b": "BOOLEAN",
    "t": "TIMESTAMP",
    "u": "TIMESTAMP",
    "tags": "ARRAY<STRING>",
}
NASTY: dict[str, list[Any]] = {
    "INT": [None, 0, 1, -1, 7, 2**31 - 1, -(2**31)],
    "BIGINT": [None, 0, 1, -1, 10, 2**63 - 1, -(2**63), 2**53 + 1],
    "DOUBLE": [None, 0.0, 0.5, -2.5, 3.0, 1e308, -1e308, 5e-324, 9.223372036854775807e18, 2147483648.5],
    "STRING": [None, "", "a", "A", "é😀", "a'b\\n", " x ", "%"],
    "BOOLEAN": [None, True, False],
    "TIMESTAMP": [
        None,
        datetime(1, 1, 1),
        datetime(1970, 1, 1),
        datetime(2026, 1, 31, 7, 8, 9, 10),
        datetime(9999, 12, 31, 23, 59, 59, 999999),
    ],
    "ARRAY<STRING>": [None, [], ["a"], ["b", "a"]],
}
for _sql_type in ("DECIMAL(18,6)", "DECIMAL(5,2)", "DECIMAL(28,10)", "DECIMAL(28,28)"):
    _precision, _scale = map(int, _sql_type[8:-1].split(","))
    _most = Decimal(10**_precision - 1).scaleb(-_scale)
    NASTY[_sql_type] = [None, Decimal(0), _most, -_most, Decimal(1).scaleb(-_scale), Decimal(5).scaleb(-_scale - 1 + 1)]

ROWS = [
    {name: NASTY[kind][(row + place) % len(NASTY[kind])] for place, (name, kind) in enumerate(FIELDS.items())}
    for row in range(60)
]
TABLE = pa.Table.from_pylist(ROWS, pa.schema([(name, arrow_type(kind)) for name, kind in FIELDS.items()]))


def said(expression: str, fields: dict[str, str] = FIELDS) -> expressions.Said:
    return expressions.value(expression, tuple(fields.items()))


def everywhere(spark: SparkSession, wanted: list[str]) -> dict[str, list[list[Any]]]:
    """Engine → for each expression its value in each row."""
    assert spark.conf.get("spark.sql.ansi.enabled") == "true"
    found = {}
    columns = ", ".join(f"{said(text).spark} AS x{place}" for place, text in enumerate(wanted))
    zoned = pa.schema(
        [(f.name, pa.timestamp("us", "UTC")) if pa.types.is_timestamp(f.type) else f for f in TABLE.schema]
    )
    spark.createDataFrame(TABLE.cast(zoned)).coalesce(1).createOrReplaceTempView("nasty")
    found["Spark"] = spark.sql(f"SELECT {columns} FROM nasty").toArrow()
    columns = ", ".join(f"{said(text).duckdb} AS x{place}" for place, text in enumerate(wanted))
    for name, connection in (("serving", query.open_database()), ("recount", open_database())):
        connection.register("nasty", TABLE)
        found[name] = connection.sql(f"SELECT {columns} FROM nasty").to_arrow_table()
    return {name: [plain(column) for column in table.columns] for name, table in found.items()}


def plain(column: pa.ChunkedArray) -> list[Any]:
    """Values that can be compared: times as µs, which may lie beyond the year 9999."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return ["NaN" if isinstance(v, float) and math.isnan(v) else v for v in column.to_pylist()]


def assert_alike(spark: SparkSession, wanted: list[str]) -> dict[str, list[Any]]:
    found = everywhere(spark, wanted)
    for place, text in enumerate(wanted):
        for engine in ("serving", "recount"):
            for row, one, other in zip(ROWS, found["Spark"][place], found[engine][place], strict=True):
                assert one == other, (engine, text, one, other, said(text), row)
    return {text: found["Spark"][place] for place, text in enumerate(wanted)}


def of(**values: Any) -> int:
    """Number of a row with these values."""
    return next(number for number, row in enumerate(ROWS) if all(row[name] == value for name, value in values.items()))


LEAST, MOST = -(2**63), 2**63 - 1
# expression, values of a row, what it says there
TOLD: list[tuple[str, dict[str, Any], Any]] = [
    ("n / m", {"m": 0}, None),
    ("n / m > 1", {"m": 0}, None),
    ("i / 0", {"i": 1}, None),
    ("d / 0.0", {"e": Decimal(0)}, None),
    ("f / g", {"g": 0.0}, None),
    ("f / (g - g)", {"f": 0.5}, None),
    ("n % m", {"m": 0}, None),
    ("d % 0", {"i": 1}, None),
    ("f % g", {"g": 0.0}, None),
    ("n % -1", {"n": LEAST}, 0),
    ("n + 1", {"n": MOST}, None),
    ("n - 1", {"n": LEAST}, None),
    ("n * 2", {"n": MOST}, None),
    ("n * -1", {"n": LEAST}, None),
    ("-n", {"n": LEAST}, None),
    ("abs(n)", {"n": LEAST}, None),
    ("abs(n)", {"n": -1}, 1),
    ("i + 1", {"i": 2**31 - 1}, None),
    ("abs(i)", {"i": -(2**31)}, None),
    ("i * i", {"i": 2**31 - 1}, None),
    ("n + n", {"n": MOST}, None),
    ("d + d", {"d": Decimal("999999999999.999999")}, Decimal("1999999999999.999998")),
    ("d * d", {"d": Decimal("999999999999.999999")}, Decimal("999999999999999998000000.000000000001")),
    ("w * w", {"w": Decimal(0)}, 0.0),
    ("CAST(f AS INT)", {"f": 2147483648.5}, None),
    ("CAST(f AS BIGINT)", {"f": 9.223372036854775807e18}, None),
    ("CAST(f AS INT)", {"f": -2.5}, -2),
    ("CAST(n AS INT)", {"n": MOST}, None),
    ("n::INT", {"n": 10}, 10),
    ("CAST(d AS DECIMAL(5,2))", {"d": Decimal("999999999999.999999")}, None),
    ("CAST(d AS BIGINT)", {"d": Decimal("999999999999.999999")}, 999999999999),
    ("try_cast(w AS INT)", {"w": Decimal("999999999999999999.9999999999")}, None),
    ("z > d", {"z": Decimal("0.9999999999999999999999999999")}, None),
    ("t + INTERVAL 9000 YEAR > u", {"t": None}, None),
    ("sqrt(f)", {"f": -2.5}, None),
    ("coalesce(n / m, -1)", {"m": 0}, -1.0),
    ("n / m IS NULL OR b", {"m": 0}, True),
    ("n IN (1, 9223372036854775807)", {"n": MOST}, True),
    ("CASE WHEN n / m > 1 THEN 1 ELSE 2 END", {"m": 0}, 2),
    ("s LIKE 'a''%'", {"s": "a'b\\n"}, True),
    ("s = 'a''b\\n'", {"s": "a'b\\n"}, True),
]


def test_an_error_is_null_in_spark_in_serving_and_in_the_recount(spark: SparkSession) -> None:
    found = assert_alike(spark, [text for text, _, _ in TOLD])
    for text, values, wanted in TOLD:
        if text != "z > d":
            assert found[text][of(**values)] == wanted, (text, values)


NUMBERS = [
    "i",
    "j",
    "n",
    "m",
    "d",
    "e",
    "w",
    "z",
    "f",
    "g",
    "0",
    "1",
    "-1",
    "2147483647",
    "9223372036854775807",
    "0.5",
    "1e3",
    "NULL",
    "12345678901234567890",
]


def test_every_operator_over_every_pair_of_numbers_is_alike(spark: SparkSession) -> None:
    texts = [f"{a} {sign} {b}" for sign in ("+", "-", "*", "/", "%", "<", "=") for a in NUMBERS for b in NUMBERS]
    for start in range(0, len(texts), 200):
        assert_alike(spark, texts[start : start + 200])


def test_every_cast_and_function_of_every_number_is_alike(spark: SparkSession) -> None:
    numbers = [name for name in NUMBERS if name != "NULL"]
    casts = [f"CAST({a} AS {kind})" for a in numbers for kind in ("INT", "BIGINT", "DOUBLE")]
    exact = [name for name in numbers if name not in ("f", "g", "1e3")]
    casts += [
        f"CAST({a} AS {kind})" for a in exact for kind in ("DECIMAL(5,2)", "DECIMAL(38,3)", "DECIMAL(3,0)", "STRING")
    ]
    calls = [f"{call}({a})" for a in numbers for call in ("abs", "-", "round", "floor", "ceil", "sqrt")]
    calls += (
        [f"round({a}, 2)" for a in numbers]
        + [f"greatest({a}, n)" for a in numbers]
        + [f"nullif({a}, 1)" for a in numbers]
    )
    assert_alike(spark, casts)
    assert_alike(spark, calls)


OTHERS = """
s = r|s < r|s <> 'a'|s IN ('a', r)|s LIKE 'a%'|s NOT LIKE '_'|s || r|length(s)|lower(s)|trim(s)|s || 'it''s \\ $'|s IS NULL|NOT b
b AND n > 1|b OR n / m > 1|b IS TRUE|b IS NOT FALSE|n IS DISTINCT FROM m|s IS NOT DISTINCT FROM r|NOT (n = m)|n BETWEEN -1 AND m
t < u|t = u|t > '2026-01-01'|t BETWEEN TIMESTAMP '0001-01-01' AND u|t + INTERVAL 5 MINUTE|t - INTERVAL '2' YEARS|t + INTERVAL 10000 YEAR > u
t - u < INTERVAL 1 DAY|u - t >= INTERVAL 90 SECONDS|date_trunc('week', t)|date_trunc('month', t)|year(t)|hour(t)|month(t) = 1|coalesce(t, u)
array_contains(tags, 'a')|array_contains(tags, s)|CASE s WHEN 'a' THEN 1 WHEN 'A' THEN 2.5 END|if(b, n, d)|greatest(s, r)|least(t, u)
CAST(b AS STRING)|CAST(n AS STRING) = s|coalesce(CAST(z AS STRING), s)|upper('abc')|nullif(s, 'a')|i = 1 = b|-(-i)|+n|1 + 2 * 3 - 4|(1 + 2) * 3|- 2 * -3
"""


def test_conditions_texts_and_times_are_alike(spark: SparkSession) -> None:
    assert_alike(
        spark,
        [text.strip() for line in OTHERS.strip().splitlines() for text in line.split("|") if "||" not in line]
        + ["s || r", "s || 'it''s \\ $'"],
    )


def test_a_difference_of_times_that_no_interval_holds_is_null_everywhere(spark: SparkSession) -> None:
    far = "u" + " + INTERVAL 10000 YEAR" * 29 + " + INTERVAL 500 YEAR"
    text = f"{far} - t < INTERVAL 1 DAY"
    values = assert_alike(spark, [text, f"{far} > t"])
    row = of(t=datetime(1, 1, 1), u=datetime(1970, 1, 1))
    assert (values[text][row], values[f"{far} > t"][row]) == (None, True)


def _tree(leaf: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds("({} {} {})".format, inner, st.sampled_from("+-*/%"), inner),
            st.builds("{}({})".format, st.sampled_from(["-", "abs"]), inner),
            st.builds("CAST({} AS {})".format, inner, st.sampled_from(["INT", "BIGINT", "DOUBLE"])),
            st.builds("coalesce({}, {})".format, inner, inner),
            st.builds("CASE WHEN {} < {} THEN {} ELSE {} END".format, inner, inner, inner, inner),
        ),
        max_leaves=5,
    )


@given(texts=st.lists(_tree(st.sampled_from(NUMBERS)), min_size=30, max_size=30))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_expression_raises_or_differs(spark: SparkSession, texts: list[str]) -> None:
    assert_alike(spark, texts)


HARMLESS = [
    "i + j * 2 > 9",
    "n - m < 10 AND i <> 2",
    "i BETWEEN 1 AND 3 OR NOT j = 2",
    "i + 2 - j * 3 + n",
    "CASE WHEN i > j THEN n ELSE m END",
    "d * 2 + e - 0.5",
    "d > e AND s = 'a'",
    "s IN ('a', 'c') OR s IS NULL",
    "coalesce(i, j) % 3",
    "-i + abs(j - n)",
    "s LIKE 'a%' AND NOT s LIKE '%b'",
    "t + INTERVAL 1 MINUTE >= u",
    "f * 2 - g / 4 > 1 OR b",
    "length(s) = 1 AND (b OR i = 1)",
    "CAST(i AS DOUBLE) / CAST(j AS DOUBLE)",
]


def test_where_nothing_can_go_wrong_an_expression_says_what_its_own_text_says(spark: SparkSession) -> None:
    """The second opinion on the reader: the engines' own parsers."""
    rows = []
    for row in range(24):
        number = {name: (row * 7 + place * 3) % 5 + 1 for place, name in enumerate(FIELDS)}
        rows.append(
            {name: number[name] for name in ("i", "j", "n", "m")}
            | {name: Decimal(number[name]) / 2 for name in ("d", "e", "w")} | {"z": Decimal(0)} | {name: number[name] / 4 for name in ("f", "g")}
            | {"s": "abcde"[number["s"] - 1], "r": "a", "b": row % 2 == 0, "tags": ["a"]}
            | {name: datetime(2026, 1, 1, 0, number[name]) for name in ("t", "u")}
        )  # fmt: skip
    table = pa.Table.from_pylist(rows, TABLE.schema)
    connection = query.open_database()
    connection.register("harmless", table)
    zoned = pa.schema(
        [(f.name, pa.timestamp("us", "UTC")) if pa.types.is_timestamp(f.type) else f for f in table.schema]
    )
    spark.createDataFrame(table.cast(zoned)).createOrReplaceTempView("harmless")
    for text in HARMLESS:
        own = connection.sql(f"SELECT {text} AS a, {said(text).duckdb} AS b FROM harmless").fetchall()
        assert [a for a, _ in own] == [b for _, b in own], text
        assert len({a for a, _ in own}) > 1, f"{text} tells no rows apart"
        same = spark.sql(f"SELECT {text} AS a, {said(text).spark} AS b FROM harmless").collect()
        assert [row.a for row in same] == [row.b for row in same], text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n >", "a value is wanted before 'its end'"),
        ("n > 1 m", "nothing may follow before 'm'"),
        ("(n > 1", "[)] is wanted before 'its end'"),
        ("q > 1", "no field 'q'; known are i, j, "),
        ('s = "a"', "texts stand in single quotes, fields without"),
        ("`n` > 1", "texts stand in single quotes, fields without"),
        ("n > 1; DROP", "no sign of an expression"),
        ("s > 1", "INT, STRING: values of one type are wanted"),
        ("b = 1", "BOOLEAN, INT: values of one type are wanted"),
        ("t > s", "STRING, TIMESTAMP: values of one type are wanted"),
        ("t > 'soon'", "'soon' is no time"),
        ("t > '2026-01-01T00:00:00Z'", "are in UTC and have no zone"),
        ("s + 1", r"\+ wants numbers, not STRING"),
        ("n AND b", "AND, OR, NOT and WHEN wants BOOLEAN, not BIGINT"),
        ("ln(f)", r"ln\(\) is none of the functions"),
        ("regexp_like(s, 'a')", r"regexp_like\(\) is none of the functions that Spark and DuckDB have alike: abs, "),
        ("length(s, s)", r"length\(\) takes 1 values, not 2"),
        ("CAST(s AS INT)", "'s' is a text, and Spark and DuckDB read INT from text differently"),
        ("CAST(f AS DECIMAL(5,2))", r"a DOUBLE is not cast to DECIMAL\(5,2\)"),
        ("CAST(f AS STRING)", "a DOUBLE is not cast to STRING"),
        ("CAST(n AS DATE)", "a BIGINT is not cast to DATE"),
        ("CAST(n AS DECIMAL(39,2))", "0 <= scale <= precision <= 38 is wanted"),
        ("s LIKE r", "LIKE compares a text field with a text in single quotes"),
        ("s LIKE 'a\\%'", "a text in single quotes that has no backslash"),
        ("tags = tags", "values of type ARRAY<STRING> are not compared"),
        ("t + INTERVAL 90000 YEAR", "INTERVAL 90000 YEAR is longer than 10000 years"),
        ("t + INTERVAL 5 FORTNIGHT", "known units are SECOND"),
        ("round(n, m)", "round takes 0 to 15 decimal places"),
        ("n IN ()", "IN wants at least one value"),
        ("1e400 > f", "1e400 is larger than any DOUBLE"),
        ("i.x > 1", "'i' has no field 'x'; known are none"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_alike_is_refused(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        said(text)


def test_the_guide_names_every_function() -> None:
    guide = (Path(__file__).parents[2] / "docs/add-a-domain.md").read_text(encoding="utf-8")
    language = " ".join(guide.split()).partition("and the functions ")[2].partition(". ")[0]
    assert set(re.findall(r"`(\w+)`", language)) == set(_FUNCTIONS)


@pytest.mark.parametrize("text", ["n + 1", "'a'", "t"])
def test_a_rule_that_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(DeclarationError, match=r"stream 'pairs' rule 'r': .* a condition is wanted"):
        Stream("pairs", {"id": "STRING", "n": "BIGINT", "t": "TIMESTAMP"}, "id", ("id",), rules={"r": text})


# Through the layers ---------------------------------------------------------------------------------------------------

PAIRS = Stream(
    "pairs",
    {"id": "STRING", "a": "BIGINT", "b": "BIGINT"},
    key="id",
    unique=("id",),
    rules={"quotient": "a / b > 1 OR a = 5", "sum": "a + b > 0"},
)
VIEW = View(
    "totals",
    (PAIRS,),
    by=("id",),
    measures={
        "n": count(),
        "even": count("a % (b - 3) = 0"),
        "large": sum_of("a", "a * a > 100"),
        "total": sum_of("a"),
        "most": max_of("a"),
        "final": last("a", "b"),
    },
    show={
        "share": "n / even",
        "off": "total / {margin}",
        "spill": "most * most",
        "rest": "final.a % (final.b - 3)",
        "twice": "share + off",
    },
    constants={"margin": "0"},
)
DOMAIN = Domain("nasty", (PAIRS,), (VIEW,))
EVENTS = [
    {"id": "zero", "a": 4, "b": 0},
    {"id": "overflow", "a": 2**63 - 1, "b": 1},
    {"id": "three", "a": 30, "b": 3},
    {"id": "plain", "a": 12, "b": 2},
    {"id": "large", "a": 2**62, "b": 2},
]
PROBLEMS = {"zero": "quotient", "overflow": "sum", "three": None, "plain": None, "large": None}
WANTED: dict[str, dict[str, Any]] = {
    "three": {"n": 1, "even": 0, "large": 30, "total": 30, "most": 30, "final": {"a": 30, "b": 3}, "share": None, "off": None, "spill": 900, "rest": None, "twice": None},
    "plain": {"n": 1, "even": 1, "large": 12, "total": 12, "most": 12, "final": {"a": 12, "b": 2}, "share": 1.0, "off": None, "spill": 144, "rest": 0, "twice": None},
    "large": {"n": 1, "even": 1, "large": None, "total": 2**62, "most": 2**62, "final": {"a": 2**62, "b": 2}, "share": 1.0, "off": None, "spill": None, "rest": 0, "twice": None},
}  # fmt: skip


def test_a_rule_that_cannot_be_worked_out_names_the_row_s_problem_and_no_layer_ends(spark: SparkSession) -> None:
    log = raw([json.dumps(event) for event in EVENTS])
    ddl = ", ".join(f"`{n}` {t}" for n, t in {"log": "STRING", "partition": "STRING", **decoded_columns(PAIRS)}.items())
    placed = log.append_column("log", pa.array(["L"] * len(log))).append_column("partition", pa.array(["0"] * len(log)))
    rows = judged(spark.createDataFrame(placed).mapInArrow(decode_stream(PAIRS), ddl), PAIRS).toArrow()
    assert dict(zip(rows["id"].to_pylist(), rows["problem"].to_pylist(), strict=True)) == PROBLEMS
    con = open_database()
    load(con, DOMAIN, [(("pairs", "L", "0"), log)], len(log))
    assert dict(con.sql("SELECT id, problem FROM recount.judged_0").fetchall()) == PROBLEMS


def test_a_condition_or_a_shown_column_that_cannot_be_worked_out_is_null_everywhere(spark: SparkSession) -> None:
    log = raw([json.dumps(event) for event in EVENTS])
    typed = decode_rows(PAIRS, log)
    for name, value in {"topic": "pairs", "log": "L", "partition": "0"}.items():
        typed = typed.append_column(name, pa.array([value] * len(typed)))
    good = spark.createDataFrame(typed).where("id NOT IN ('zero', 'overflow')")
    spark_fold.register_good_rows({"pairs": good})
    stored = spark_fold.partials(spark, VIEW)
    by_spark = spark_fold.merged(spark, VIEW, None, stored).toArrow().to_pylist()
    serving = query.open_database()
    serving.register("stored", stored.toArrow().cast(measures.stored_schema(VIEW)))
    by_serving = serving.sql(measures.show_query(VIEW, "stored", "duckdb")).to_arrow_table().to_pylist()
    con = open_database()
    load(con, DOMAIN, [(("pairs", "L", "0"), log)], len(log))
    as_of = {"coverage": {"pairs": {"L": {"0": len(log)}}}, "horizon": {}}
    by_recount = view_rows(con, DOMAIN, VIEW, question_of(VIEW, []), as_of)
    for rows in (by_spark, by_serving, by_recount):
        assert {row["id"]: {name: row[name] for name in WANTED["plain"]} for row in rows} == WANTED


@pytest.mark.parametrize("margin", ["0", "-0.0", "1e-320", "5", "1e308", "-7.25"])
def test_no_setting_makes_a_shown_column_raise(margin: str, spark: SparkSession) -> None:
    view = DOMAIN.configured({"MARGIN": margin}).views[0]
    stored = pa.table(
        {
            "most": pa.array([1], pa.int64()),
            "n": pa.array([1], pa.int64()),
            "total": pa.array([5], pa.decimal128(38, 0)),
        }
    )
    serving = query.open_database()
    serving.register("stored", stored)
    ((by_serving,),) = serving.sql(f"SELECT {view.shown_in('duckdb')['off']} FROM stored").fetchall()
    spark.createDataFrame(stored).createOrReplaceTempView("stored")
    (by_spark,) = spark.sql(f"SELECT {view.shown_in('spark')['off']} FROM stored").first() or ()
    assert (
        by_serving == by_spark == (5 / float(margin) if float(margin) and 5 / abs(float(margin)) < 1e308 else by_spark)
    )
    assert (by_spark is None) == (float(margin) == 0)
