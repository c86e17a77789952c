"""Every view and report of every domain: Spark = micro-batches = any split merged = the recount, on a month of events.

The events hold duplicates, late, broken and future ones, as a producer sends them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from domains import DOMAINS
from engine.domain import Domain, Stream, View
from engine.fold import measures, micro_batch, spark_fold
from engine.fold.decode import decode_stream, decoded_columns
from engine.fold.duplicates import KeyWindow
from engine.fold.quality import judged, with_duplicates
from engine.produce.messages import mix
from engine.runtime import settings
from engine.verify.answers import Question, report_rows, view_rows
from engine.verify.rows import load, open_database
from tests.unit.test_decode import raw

EVENTS, ON_THE_FIRST_DAY = 8_000, 5_000
START = datetime(2026, 1, 1, tzinfo=UTC)
SHARES = {"duplicate_share": 0.05, "late_share": 0.05, "broken_share": 0.03, "future_share": 0.01}


class Sample(NamedTuple):
    """Raw rows of every topic, judged ones as Spark has them, and the same log loaded into the recount."""

    domain: Domain
    raw: dict[str, pa.Table]
    tables: dict[str, pa.Table]
    recount: duckdb.DuckDBPyConnection
    as_of: dict[str, Any]


def made_log(domain: Domain) -> dict[str, list[tuple[int, bytes]]]:
    """(Kafka time in ms, value) of each event by topic: one busy day, then a month."""
    chosen = settings.load(SHARES, environ={}, env_file=None)
    busy, calm = timedelta(days=1) / ON_THE_FIRST_DAY, timedelta(days=31) / (EVENTS - ON_THE_FIRST_DAY)
    times = [START + min(n, ON_THE_FIRST_DAY) * busy + max(0, n - ON_THE_FIRST_DAY) * calm for n in range(EVENTS)]
    clock = [int(time.timestamp() * 1000) for time in times]
    found = defaultdict(list)
    messages = mix(list(domain.streams), chosen, Random(5), lambda number: clock[number % EVENTS])
    for number, (moment, message) in enumerate(zip(clock, messages, strict=False)):
        value = message.value
        if number % 50 == 0 and value.endswith(b"}"):
            value = value[:-1] + b',"later_field":[1],"' + (b"x" * 70 if number % 100 else b"b b") + b'":null}'
        found[message.stream.topic].append((moment, value))
    return found


@pytest.fixture(scope="module", params=DOMAINS, ids=lambda domain: domain.name)
def sample(request: pytest.FixtureRequest, spark: SparkSession) -> Sample:
    domain: Domain = request.param
    logs, tables, chunks, end = {}, {}, [], {}
    for topic, rows in made_log(domain).items():
        stream = domain.stream(topic)
        table = raw([text_of(value) for _, value in rows])
        times = pa.array([moment * 1000 for moment, _ in rows], pa.timestamp("us", "UTC"))
        table = table.set_column(table.schema.get_field_index("timestamp"), "timestamp", times)
        logs[topic], tables[topic] = table, judged_rows(spark, stream, table)
        chunks.append(((topic, "L", "0"), table))
        end[topic] = {"L": {"0": len(rows)}}
    recount = open_database()
    load(recount, domain, chunks, EVENTS)
    return Sample(domain, logs, tables, recount, {"horizon": end, "coverage": end})


def text_of(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def judged_rows(spark: SparkSession, stream: Stream, table: pa.Table) -> pa.Table:
    ddl = ", ".join(
        f"`{n}` {t}" for n, t in {"log": "STRING", "partition": "STRING", **decoded_columns(stream)}.items()
    )
    placed = table.append_column("log", pa.array(["L"] * len(table))).append_column(
        "partition", pa.array(["0"] * len(table))
    )
    decoded = spark.createDataFrame(placed).coalesce(1).mapInArrow(decode_stream(stream), ddl)
    rows = with_duplicates(judged(decoded, stream), None, stream.duplicate_window).toArrow()
    return rows.append_column("topic", pa.array([stream.topic] * len(rows)))


def good_rows(spark: SparkSession, sample: Sample, part: int | None = None) -> None:
    """Register the good rows, or one of three random-looking parts of them."""
    good = {}
    for topic, table in sample.tables.items():
        rows = spark.createDataFrame(table).where("problem IS NULL")
        good[topic] = rows if part is None else rows.where(f"pmod(hash(`offset`), 3) = {part}")
    spark_fold.register_good_rows(good)


def test_enough_is_good_and_every_kind_of_problem_occurs(sample: Sample) -> None:
    problems = [problem for table in sample.tables.values() for problem in table["problem"].to_pylist()]
    assert 0.8 < problems.count(None) / len(problems) < 0.95
    assert {"malformed", "duplicate"} <= set(problems)


def test_spark_and_the_recount_name_the_same_problems(sample: Sample) -> None:
    for number, stream in enumerate(sample.domain.streams):
        columns = ("offset", "problem", "unknown")
        found = sample.recount.sql(f'SELECT "offset", problem, unknown FROM recount.judged_{number}').fetchall()
        table = sample.tables[stream.topic].select(columns).to_pylist()
        assert {row[0]: (row[1], row[2] and sorted(row[2])) for row in found} == {
            row["offset"]: (row["problem"], row["unknown"]) for row in table
        }
        names = {tuple(row["unknown"] or ()) for row in table}
        assert names >= {(), ("(other)", "later_field")}


def test_every_view_is_what_the_recount_says_whole_and_split(sample: Sample, spark: SparkSession) -> None:
    for view in sample.domain.views:
        good_rows(spark, sample)
        whole = spark_fold.partials(spark, view).toArrow()
        parts = []
        for part in range(3):
            good_rows(spark, sample, part)
            parts.append(spark_fold.partials(spark, view).toArrow())
        columns = (*view.measures, *view.shown)
        wanted = view_rows(sample.recount, sample.domain, view, Question(view.by, columns=columns), sample.as_of)
        assert wanted, f"{view.name} has no rows"
        for split in ([whole], parts, parts[::-1]):
            assert_same(view.name, view.keys, shown(view, split), wanted)
        merged = spark.createDataFrame(pa.concat_tables(parts)).createOrReplaceTempView("three_parts")  # noqa: F841
        in_spark = measures.show_query(view, f"({measures.merge_query(view, 'three_parts', 'spark')}) AS m", "spark")
        assert_same(view.name, view.keys, spark.sql(in_spark).toArrow().to_pylist(), wanted)


MICRO_BATCHES = 5


def in_micro_batches(spark: SparkSession, sample: Sample) -> dict[str, list[pa.Table]]:
    """View → its partials of consecutive micro-batches; each but the first begins below the end of the one before."""
    domain = sample.domain
    windows = {stream.topic: stream.duplicate_window for stream in domain.streams}
    keys, done = KeyWindow(windows), dict.fromkeys(domain.topics, 0)
    found: dict[str, list[pa.Table]] = {view.name: [] for view in domain.views}
    for number in range(1, MICRO_BATCHES + 1):
        raw = []
        for topic, table in sample.raw.items():
            first, end = max(0, done[topic] - 7), len(table) * number // MICRO_BATCHES
            topics = pa.repeat(pa.scalar(topic), end - first)
            raw.append(table.slice(first, end - first).append_column("topic", topics))
        rows = pa.concat_tables(raw)
        rows = rows.append_column("partition", pa.repeat(pa.scalar("0"), len(rows)))
        job = spark.createDataFrame(rows).mapInArrow(
            micro_batch.judge_domain(domain), micro_batch.judged_schema(domain)
        )
        judged = micro_batch.rows_of_topics(job.toArrow(), domain, dict.fromkeys(domain.topics, "L"))
        good = {}
        for topic, own in judged.items():
            place, first = (topic, "L", "0"), done[topic]
            valid = [
                (offset, key)
                for offset, key, problem in zip(
                    *(own[n].to_pylist() for n in ("offset", "ukey", "problem")), strict=True
                )
                if problem is None and offset >= first
            ]
            repeated = set(keys.duplicates(place, valid))
            keys.remember(place, valid)
            good[topic] = micro_batch.good_rows(own, {"0": first}, {"0": repeated})
            done[topic] = max(own["offset"].to_pylist()) + 1
        for view, table in micro_batch.partials(domain.views, good).items():
            found[view].append(table)
    return found


def test_micro_batches_are_what_the_recount_says_alone_and_with_a_batch_range(
    sample: Sample, spark: SparkSession
) -> None:
    """The speed layer folds in DuckDB, the batch layer in Spark: both, and one added to the other, are exact."""
    pieces = in_micro_batches(spark, sample)
    for view in sample.domain.views:
        wanted = view_rows(
            sample.recount, sample.domain, view, Question(view.by, columns=(*view.measures, *view.shown)), sample.as_of
        )
        assert_same(view.name, view.keys, shown(view, pieces[view.name]), wanted)
    ends = {topic: len(table) * 2 // MICRO_BATCHES for topic, table in sample.raw.items()}
    spark_fold.register_good_rows(
        {
            topic: spark.createDataFrame(table).where(f"problem IS NULL AND `offset` < {ends[topic]}")
            for topic, table in sample.tables.items()
        }
    )
    for view in sample.domain.views:
        by_batch = spark_fold.partials(spark, view).toArrow()
        wanted = view_rows(
            sample.recount, sample.domain, view, Question(view.by, columns=(*view.measures, *view.shown)), sample.as_of
        )
        assert_same(view.name, view.keys, shown(view, [by_batch, *pieces[view.name][2:]]), wanted)


def shown(view: View, pieces: list[pa.Table]) -> list[dict[str, Any]]:
    connection = duckdb.connect()
    measures.register(connection)
    connection.register("pieces", pa.concat_tables(piece.cast(measures.stored_schema(view)) for piece in pieces))
    merged = f"({measures.merge_query(view, 'pieces', 'duckdb')}) AS merged"
    rows: pa.Table = connection.sql(measures.show_query(view, merged, "duckdb")).to_arrow_table()
    return rows.to_pylist()


def test_every_report_is_what_the_recount_says_and_passes_its_checks(sample: Sample, spark: SparkSession) -> None:
    good_rows(spark, sample)
    for report in sample.domain.reports:
        rows, failed = spark_fold.report_rows(spark, report)
        assert failed == {}, report.name
        wanted = report_rows(sample.recount, sample.domain, report, sample.as_of["coverage"])
        found = rows.toArrow().to_pylist()
        assert found, f"{report.name} has no rows"
        assert_same(report.name, report.by, found, wanted)


def assert_same(name: str, keys: tuple[str, ...], found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    by_key = {tuple(plain(row[key]) for key in keys): row for row in found}
    assert len(by_key) == len(found) == len(wanted), name
    for row in wanted:
        group = tuple(plain(row[key]) for key in keys)
        for column, value in row.items():
            other, one = plain(by_key[group][column]), plain(getattr(value, "estimate", value))
            if isinstance(one, float) and other is not None:
                assert math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9), (name, group, column, one, other)
            else:
                assert one == other, (name, group, column, one, other)


def plain(value: Any) -> Any:
    """Naive UTC, whole numbers as int: what two engines may give in different types."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return value
