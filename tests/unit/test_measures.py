"""Any split, merged in any order, in Spark or DuckDB, gives the direct answer.

Every measure, NULLs and late rows included.
"""

from __future__ import annotations

import itertools
import math
import statistics
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from engine.domain import Stream, View, avg, count, distinct, first, last, max_of, min_of, quantile, stddev, sum_of
from engine.fold import measures

STREAM = Stream(
    topic="t",
    columns={
        "id": "STRING",
        "moment": "TIMESTAMP",
        "k": "STRING",
        "x": "DECIMAL(10,3)",
        "big": "BIGINT",
        "tags": "ARRAY<STRING>",
    },
    key="id",
    time="moment",
    unique=("id",),
)
VIEW = View(
    "v",
    (STREAM,),
    by=("k",),
    every="1 minute",
    measures={
        "n": count(),
        "positive": count("big > 0"),
        "s": sum_of("big"),
        "sx": sum_of("x", "big > 0"),
        "lo": min_of("x"),
        "hi": max_of("moment"),
        "a": avg("x"),
        "sd": stddev("x"),
        "f": first("x"),
        "l": last("k", "x"),
        "d": distinct("id"),
        "p50": quantile("x", "0.5"),
        "p99": quantile("x", "0.99"),
    },
    show={"ratio": "try_divide(CAST(positive AS DOUBLE), CAST(n AS DOUBLE))"},
)
EXPLODED = View(
    "e", (STREAM,), by=("tag",), explode=("tags", "tag"), measures={"titles": distinct("id"), "hi": max_of("x")}
)
START = datetime(2026, 1, 1)
SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("log", pa.string()),
        ("partition", pa.string()),
        ("offset", pa.int64()),
        ("event_time", pa.timestamp("us")),
        *[(name, measures.arrow_type(sql_type)) for name, sql_type in STREAM.columns.items()],
    ]
)

ROW = st.tuples(
    st.sampled_from(["a", "b", None, ""]),
    st.none() | st.decimals(-9999999, 9999999, places=3, allow_nan=False, allow_infinity=False),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.integers(-86_400, 86_400),
    st.integers(0, 30),
    st.none() | st.lists(st.sampled_from("pqr"), max_size=3),
)


def table(rows: list[tuple[Any, ...]]) -> pa.Table:
    found = []
    for offset, (k, x, big, seconds, user, tags) in enumerate(rows):
        at = START + timedelta(seconds=seconds)
        found.append(
            {"topic": "t", "log": "L", "partition": str(offset % 3), "offset": offset, "event_time": at}
            | {"id": f"u{user}", "moment": at, "k": k, "x": x, "big": big, "tags": tags}
        )
    return pa.Table.from_pylist(found, SCHEMA)


def shown(view: View, pieces: list[pa.Table]) -> list[dict[str, Any]]:
    """Fold each piece in DuckDB, merge the partials, show; sorted, sketches left out."""
    connection = duckdb.connect()
    measures.register(connection)
    partials = []
    for piece in pieces:
        connection.register("piece", piece)
        partials.append(connection.sql(measures.partial_query(view, "piece", "duckdb")).to_arrow_table())
    connection.register("stored", pa.concat_tables(partials))
    merged = f"({measures.merge_query(view, 'stored', 'duckdb')}) AS merged"
    rows = connection.sql(measures.show_query(view, merged, "duckdb")).to_arrow_table()
    return presentable(rows)


def presentable(rows: pa.Table) -> list[dict[str, Any]]:
    kept = rows.select([name for name in rows.column_names if not name.endswith("__hll")]).to_pylist()
    return sorted(kept, key=repr)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, max_size=40), borders=st.lists(st.integers(0, 40), max_size=4), order=st.randoms())
def test_any_split_in_any_order_gives_the_direct_answer(
    rows: list[tuple[Any, ...]], borders: list[int], order: Random
) -> None:
    whole = table(rows)
    cuts = sorted({0, *(min(b, len(rows)) for b in borders), len(rows)})
    pieces = [whole.slice(a, b - a) for a, b in itertools.pairwise(cuts)] or [whole]
    order.shuffle(pieces)
    for view in (VIEW, EXPLODED):
        assert shown(view, pieces) == shown(view, [whole])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, max_size=40))
def test_the_answer_is_what_plain_python_says(rows: list[tuple[Any, ...]]) -> None:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in table(rows).to_pylist():
        groups.setdefault((row["k"], row["event_time"].replace(second=0)), []).append(row)
    found = {(row["k"], row["window_start"]): row for row in shown(VIEW, [table(rows)])}
    assert found.keys() == groups.keys()
    for key, group in groups.items():
        row = found[key]
        xs = [r["x"] for r in group if r["x"] is not None]
        bigs = [r["big"] for r in group if r["big"] is not None]
        ordered = sorted(group, key=lambda r: (r["event_time"], int(r["partition"]), r["offset"]))
        with_x = [r for r in ordered if r["x"] is not None]
        assert row["n"] == len(group) and row["positive"] == sum(b > 0 for b in bigs)
        assert row["s"] == (sum(bigs) if bigs else None)
        positive = [r["x"] for r in group if r["big"] is not None and r["big"] > 0 and r["x"] is not None]
        assert row["sx"] == (sum(positive) if positive else None)
        assert row["lo"] == (min(xs) if xs else None) and row["hi"] == max(r["moment"] for r in group)
        assert row["a"] == (pytest.approx(float(sum(xs) / len(xs)), rel=1e-9, abs=1e-12) if xs else None)
        deviation = statistics.stdev(xs) if len(xs) > 1 else None
        assert row["sd"] == (None if deviation is None else pytest.approx(float(deviation), rel=1e-9, abs=1e-9))
        assert row["f"] == (with_x[0]["x"] if with_x else None)
        named = [r for r in ordered if r["k"] is not None or r["x"] is not None]
        assert row["l"] == ({"k": named[-1]["k"], "x": named[-1]["x"]} if named else None)
        assert row["d"] == len({r["id"] for r in group})
        for name, millionths in (("p50", 500_000), ("p99", 990_000)):
            rank = max(1, -(-len(xs) * millionths // 1_000_000))
            assert row[name] == (pytest.approx(float(sorted(xs)[rank - 1]), rel=0.008) if xs else None)
        assert row["ratio"] == pytest.approx(row["positive"] / row["n"])
        assert row["window_end"] - row["window_start"] == timedelta(minutes=1)


def random_rows(seed: int, number: int) -> list[tuple[Any, ...]]:
    source = Random(seed)
    return [
        (
            source.choice(["a", "b", None, ""]),
            source.choice([None, Decimal(source.randrange(-(10**10), 10**10)).scaleb(-3)]),
            source.choice([None, source.randrange(-(2**63), 2**63)]),
            source.randrange(-300, 300),
            source.randrange(3000),
            source.choice([None, [], ["p"], ["p", "q", "p"]]),
        )
        for _ in range(number)
    ]


@pytest.mark.parametrize("view", [VIEW, EXPLODED], ids=lambda view: view.name)
def test_spark_gives_what_duckdb_gives_split_or_whole(spark: SparkSession, view: View) -> None:
    rows = table(random_rows(7, 4000))
    whole = shown(view, [rows])
    spark.createDataFrame(rows.cast(_utc(rows.schema))).createOrReplaceTempView("measured_rows")
    halves = [
        measures.partial_query(view, f"(SELECT * FROM measured_rows WHERE offset % 3 {test} 0) AS part", "spark")
        for test in ("=", "<>")
    ]
    direct = f"({measures.partial_query(view, 'measured_rows', 'spark')}) AS stored"
    split = f"({measures.merge_query(view, f'(({halves[0]}) UNION ALL ({halves[1]})) AS s', 'spark')}) AS merged"
    for source in (direct, split):
        found = spark.sql(measures.show_query(view, source, "spark")).toArrow()
        naive = found.cast(pa.schema([_naive(field) for field in found.schema]))
        assert_same_rows(presentable(naive), whole)


def test_a_sketch_made_by_spark_is_merged_by_duckdb(spark: SparkSession) -> None:
    rows = table(random_rows(8, 9000))
    spark.createDataFrame(rows.cast(_utc(rows.schema))).createOrReplaceTempView("sketched_rows")
    found = spark.sql(measures.partial_query(EXPLODED, "sketched_rows", "spark")).toArrow()
    connection = duckdb.connect()
    measures.register(connection)
    connection.register("stored", found)
    counts = dict(connection.sql("SELECT tag, hll_estimate(titles__hll) FROM stored").fetchall())
    assert counts == {row["tag"]: row["titles"] for row in shown(EXPLODED, [rows.slice(0, 5000), rows.slice(5000)])}
    truth = len({r["id"] for r in rows.to_pylist() if "p" in (r["tags"] or [])})
    assert counts["p"] == pytest.approx(truth, rel=0.05)


def test_the_deviation_of_nearly_equal_large_numbers_is_right() -> None:
    rows = [("a", Decimal("100000.000") + Decimal(n % 3).scaleb(-3), 1, 0, n, None) for n in range(300)]
    (row,) = shown(VIEW, [table(rows[:100]), table(rows[100:])])
    assert row["sd"] == pytest.approx(float(statistics.stdev([r[1] for r in rows])), rel=1e-9)


BORDERS = [
    Decimal(sign * units).scaleb(-3)
    for sign in (1, -1)
    for power in range(34)
    for units in (2**power, 2**power - 1, 2**power + 1, 2**power * 65 // 64, 1000 * 2 ** (power % 13), 125 * power)
    if units < 10**10
]


def test_values_at_the_borders_of_buckets_lie_in_the_same_bucket_in_spark_duckdb_and_words(spark: SparkSession) -> None:
    """In words: the sign, the binary exponent and the first six bits after the leading one of the double."""
    view = View("q", (STREAM,), by=("id",), measures={"p": quantile("x", "0.5"), "b": quantile("x", "0.9")})
    rows = pa.Table.from_pylist(
        [
            {"topic": "t", "log": "L", "partition": "0", "offset": n, "event_time": START, "id": str(n), "x": x}
            for n, x in enumerate(BORDERS)
        ],
        SCHEMA,
    )
    spark.createDataFrame(rows.cast(_utc(rows.schema))).createOrReplaceTempView("border_rows")
    in_spark = f"({measures.partial_query(view, 'border_rows', 'spark')}) AS stored"
    answers = {row.id: row.p for row in spark.sql(measures.show_query(view, in_spark, "spark")).collect()}
    in_duckdb = {row["id"]: row["p"] for row in shown(view, [rows])}
    for n, x in enumerate(BORDERS):
        mantissa, exponent = math.frexp(abs(float(x)))
        step = int((2 * mantissa - 1) * 64)
        middle = math.copysign(math.ldexp(1 + (step + 0.5) / 64, exponent - 1), x) if x else 0.0
        assert answers[str(n)] == in_duckdb[str(n)] == middle, x
        assert abs(middle - float(x)) <= 0.008 * abs(float(x))


def test_the_example_of_a_bucket_is_true() -> None:
    connection = duckdb.connect()
    measures.register(connection)
    edges = ("3.7", "-3.7", "0", "3.6875", "3.6874", "3.71874", "3.71875")
    (keys,) = connection.sql(f"SELECT {', '.join(measures._bucket(value) for value in edges)}").fetchall()
    assert keys == (4215, -4215, 0, 4215, 4214, 4215, 4216)
    assert measures.bucket_value(4215) == 3.703125
    maps = "[MAP {4215: 2::BIGINT}, MAP {0: 1::BIGINT, 4215: 3::BIGINT}]"
    assert connection.sql(f"SELECT buckets_merge({maps})").fetchall() == [({0: 1, 4215: 5},)]


def test_a_view_without_dimensions_or_windows_is_one_row_and_none_without_events() -> None:
    view = View("total", (STREAM,), by=(), measures={"n": count()})
    assert shown(view, [table(random_rows(1, 10)), table(random_rows(2, 5))]) == [{"n": 15}]
    assert shown(view, [table([])]) == []


def assert_same_rows(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if isinstance(value, float) and other[name] is not None:
                assert math.isclose(value, other[name], rel_tol=1e-9, abs_tol=1e-9), name
            else:
                assert value == other[name], name


def _utc(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(f.name, pa.timestamp("us", "UTC") if pa.types.is_timestamp(f.type) else f.type) for f in schema])


def _naive(field: pa.Field) -> pa.Field:
    if pa.types.is_timestamp(field.type):
        return pa.field(field.name, pa.timestamp("us"))
    if pa.types.is_map(field.type):
        return pa.field(field.name, pa.map_(pa.int32(), pa.int64()))
    if pa.types.is_struct(field.type):
        return pa.field(field.name, pa.struct([_naive(inner) for inner in field.type]))
    return pa.field(field.name, field.type)
