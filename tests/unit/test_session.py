"""A record's time may be anything that 64 bits hold.

Spark's Kafka source ends a job where it is longer than it likes.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from engine.runtime.kafka import LONGEST_MS
from engine.runtime.session import with_any_time

# Spark's own names and types (org.apache.spark.sql.kafka010.KafkaRecordToRowConverter, with headers).
SOURCE = (
    "key BINARY, value BINARY, topic STRING, partition INT, offset BIGINT, timestamp TIMESTAMP, timestampType INT, "
    "headers ARRAY<STRUCT<key: STRING, value: BINARY>>"
)


class Reader:
    """A topic of one partition with offsets 3 to 5, of which 4 has a time in nanoseconds and 3 is no record."""

    def state(self, topics: Any) -> dict[str, Any]:
        return {topic: SimpleNamespace(partitions={0: SimpleNamespace(start=3)}) for topic in topics}

    def records(self, topic: str, partition: int, start: int, end: int) -> list[Any]:
        assert (start, end) == (3, 6)
        times = {4: 1_700_000_000_000_000_000, 5: 1_700_000_000_000}
        same = {"topic": topic, "partition": partition, "timestamp_type": 0, "key": b"k", "value": b"v"}
        headers = [("h", b"\xff"), ("none", None)]
        return [SimpleNamespace(offset=o, timestamp=ms, headers=headers, **same) for o, ms in times.items()]


def overflowing(rows: DataFrame) -> DataFrame:
    """What Spark does where a time does not fit: the source multiplies by 1,000, and the job ends."""
    return rows.selectExpr("raise_error('java.lang.ArithmeticException: long overflow')")


@pytest.mark.parametrize("start", [None, 3])
def test_a_time_beyond_spark_is_read_apart_and_stored_as_the_longest(spark: SparkSession, start: int | None) -> None:
    tried: list[DataFrame] = []

    def work(rows: DataFrame) -> list[Any]:
        tried.append(rows)
        if len(tried) == 1:
            rows = overflowing(rows)
        return rows.selectExpr("offset", "unix_micros(timestamp) AS micros", "value", "headers").collect()

    rows = spark.createDataFrame([], SOURCE)
    found = with_any_time(spark.range(1).selectExpr("id"), Reader(), {("t", 0): (start, 6)}, work)  # type: ignore[arg-type]
    assert tried[1].schema.simpleString() == rows.schema.simpleString()
    assert [(row["offset"], row["micros"], bytes(row["value"])) for row in found] == [
        (4, LONGEST_MS * 1000, b"v"),
        (5, 1_700_000_000_000_000, b"v"),
    ]
    assert [(header["key"], header["value"]) for header in found[0]["headers"]] == [("h", b"\xff"), ("none", None)]


def test_other_errors_are_as_they_were(spark: SparkSession) -> None:
    with pytest.raises(Exception, match="other"):
        with_any_time(
            spark.range(1).selectExpr("id"),
            Reader(),
            {},
            lambda rows: rows.selectExpr("raise_error('other')").collect(),
        )  # type: ignore[arg-type]
