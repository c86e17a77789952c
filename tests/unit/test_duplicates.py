"""A copy within W offsets is a duplicate, one farther is an event.

The same in batch, in the speed layer's memory, in words.
"""

from __future__ import annotations

import itertools
import json
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from domains import DOMAINS
from engine.domain import FUTURE_RULE, Domain, Stream, View, count, decimal_of
from engine.fold.decode import decode_rows, decode_stream, decoded_columns
from engine.fold.duplicates import KeyWindow
from engine.fold.quality import judged, with_duplicates
from engine.verify.rows import load, open_database
from tests.unit.test_decode import raw

W = 5
PLACE = ("t", "L", "0")


def brute_force(keys: list[str]) -> list[int]:
    """Offsets whose key occurred within the W offsets before; a duplicate counts as an occurrence."""
    return [o for o, key in enumerate(keys) if key in keys[max(0, o - W) : o]]


@pytest.mark.parametrize(("distance", "duplicate"), [(1, True), (W - 1, True), (W, True), (W + 1, False)])
def test_the_window_ends_at_w(distance: int, duplicate: bool) -> None:
    window = KeyWindow({"t": W})
    window.remember(PLACE, [(100, "k")])
    window.remember(PLACE, [(o, f"other{o}") for o in range(101, 100 + distance)])
    assert window.duplicates(PLACE, [(100 + distance, "k")]) == ([100 + distance] if duplicate else [])
    assert window.duplicates(("t", "L", "1"), [(100 + distance, "k")]) == []


@given(keys=st.lists(st.sampled_from("abcd"), max_size=40), borders=st.lists(st.integers(0, 40), max_size=5))
def test_any_split_into_epochs_finds_the_same_duplicates(keys: list[str], borders: list[int]) -> None:
    window, found = KeyWindow({"t": W}), []
    cuts = sorted({0, *(min(border, len(keys)) for border in borders), len(keys)})
    for start, end in itertools.pairwise(cuts):
        valid = [(o, keys[o]) for o in range(start, end)]
        found += window.duplicates(PLACE, valid)
        window.remember(PLACE, valid)
    assert found == brute_force(keys)


def test_the_memory_forgets_what_no_coming_row_can_repeat() -> None:
    window = KeyWindow({"t": W})
    window.remember(PLACE, [(o, f"k{o}") for o in range(1000)])
    assert len(window) == W + 1


def test_spark_names_the_same_duplicates_with_and_without_earlier_rows(spark: SparkSession) -> None:
    source = Random(3)
    keys = [source.choice("abcdefgh") for _ in range(200)]
    problems = [source.choice([None, None, None, "bad_rule"]) for _ in keys]
    schema = "log STRING, partition STRING, offset BIGINT, ukey STRING, problem STRING"
    rows = [("L", "0", o, key, problem) for o, (key, problem) in enumerate(zip(keys, problems, strict=True))]
    valid = [
        key if problem is None else f"invalid{o}" for o, (key, problem) in enumerate(zip(keys, problems, strict=True))
    ]
    wanted = brute_force(valid)
    whole = with_duplicates(spark.createDataFrame(rows, schema), None, W)
    assert sorted(row.offset for row in whole.where("problem = 'duplicate'").collect()) == wanted
    assert whole.where("problem = 'bad_rule'").count() == sum(problem is not None for problem in problems)
    cut = 120
    earlier = spark.createDataFrame(
        [row[:4] for row in rows if cut - W <= row[2] < cut and row[4] is None], schema[: schema.index(", problem")]
    )
    later = with_duplicates(spark.createDataFrame([row for row in rows if row[2] >= cut], schema), earlier, W)
    assert sorted(row.offset for row in later.where("problem = 'duplicate'").collect()) == [
        o for o in wanted if o >= cut
    ]
    assert later.count() == len(rows) - cut


IDS = Stream("ids", {"id": "STRING", "n": "BIGINT"}, key="id", unique=("id",), duplicate_window=4)
PAIRS = Stream("pairs", {"id": "STRING", "n": "BIGINT"}, key="id", unique=("id", "n"), duplicate_window=4)


@pytest.mark.parametrize("stream", [IDS, PAIRS], ids=lambda stream: stream.topic)
def test_a_key_of_a_megabyte_is_remembered_in_32_characters_and_the_recount_agrees(stream: Stream) -> None:
    long = "é" * 500_000
    ids = [long, "a", long + "x", long, "a", '", 1', "", long + "x"]
    log = raw([json.dumps({"id": text, "n": 1}) for text in ids])
    keys = decode_rows(stream, log)["ukey"].to_pylist()
    assert {len(key) for key in keys} == {32} and len(set(keys)) == len(set(ids))
    window = KeyWindow({stream.topic: 4})
    found = window.duplicates((stream.topic, "L", "0"), list(enumerate(keys)))
    assert found == [3, 4]  # the last is 5 after the other
    domain = Domain("keys", (stream,), (View("number", (stream,), (), {"n": count()}),))
    con = open_database()
    load(con, domain, [((stream.topic, "L", "0"), log)], len(log))
    counted = con.sql("SELECT \"offset\" FROM recount.judged_0 WHERE problem = 'duplicate' ORDER BY 1").fetchall()
    assert [offset for (offset,) in counted] == found


STREAMS = [(domain, stream) for domain in DOMAINS for stream in domain.streams]


@pytest.mark.parametrize(("domain", "stream"), STREAMS, ids=[stream.topic for _, stream in STREAMS])
def test_no_rule_raises_and_every_rule_can_fail_alone(spark: SparkSession, domain: Domain, stream: Stream) -> None:
    """A rule that no row fails, or that stops the query on an odd value, would be worse than none."""
    odd = {
        "STRING": [None, "", "x", "🎓", "\u202e", "\0", "y" * 10_000],
        "BIGINT": [None, 0, -1, 2**63 - 1, -(2**63)],
        "INT": [None, 0, -1, 2**31 - 1, -(2**31)],
        "TIMESTAMP": [None, "0001-01-01 00:00:00", "9999-12-31 23:59:59"],
        "ARRAY<STRING>": [None],
    }
    good = stream.generator(Random(0), stream.options)(1_767_225_600_000)  # type: ignore[misc]
    import json

    raw_good = raw([json.dumps(good)])
    ddl = ", ".join(
        f"`{n}` {t}" for n, t in {"log": "STRING", "partition": "STRING", **decoded_columns(stream)}.items()
    )
    with_place = raw_good.append_column("log", pa.array(["L"])).append_column("partition", pa.array(["0"]))
    decoded = spark.createDataFrame(with_place).mapInArrow(decode_stream(stream), ddl).persist()
    assert [row.problem for row in judged(decoded, stream).collect()] == [None]
    seen = set()
    for name, sql_type in stream.columns.items():
        values = odd.get(sql_type, [None, "0", "-1", _largest(sql_type)])
        for value in values:
            changed = decoded.withColumn(name, _literal(value, sql_type))
            if name == stream.time:
                changed = changed.withColumn("event_time", _literal(value, sql_type))
            seen.add(judged(changed, stream).select("problem").first().problem)  # type: ignore[union-attr]
    assert seen - {None} == set(stream.all_rules) - _needs_two_fields(stream)


def _needs_two_fields(stream: Stream) -> set[str]:
    """Rules over two fields, and the clock of a stream without event time, which changing one field cannot fail."""
    kafka_time_only = set() if stream.time else {FUTURE_RULE}
    return ({"score_only_when_graded"} & set(stream.rules)) | kafka_time_only


def _largest(sql_type: str) -> str:
    precision, scale = decimal_of(sql_type) or (1, 0)
    return f"{'9' * (precision - scale)}.{'9' * scale}"


def _literal(value: object, sql_type: str):  # type: ignore[no-untyped-def]
    from pyspark.sql import functions as F

    return F.lit(value).cast(sql_type)
