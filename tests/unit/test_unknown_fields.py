"""Names of unknown fields are bounded where they are written, and counted alike however the log is split."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from engine.batch import build
from engine.domain import FURTHER_FIELDS, OTHER_FIELDS, UNKNOWN_FIELDS, Domain, Stream, View, count
from engine.fold.decode import decode_rows
from engine.storage import versions
from engine.verify.answers import unknown_fields
from engine.verify.rows import load, open_database, shortest
from tests.unit.test_decode import raw

STREAM = Stream("open", {"id": "STRING"}, key="id", unique=("id",))
DOMAIN = Domain("open", (STREAM,), (View("number", (STREAM,), (), {"n": count()}),))


def added(*parts: dict[str, int]) -> dict[str, int]:
    """Counts of parts of a log, folded one after the other, each cut to what a manifest holds."""
    total: dict[str, int] = {}
    for part in parts:
        for name, rows in build._shortest(part).items():
            total[name] = total.get(name, 0) + rows
        total = build._shortest(total)
    return total


@given(
    rows=st.lists(st.sampled_from([OTHER_FIELDS, *(f"f{n}" for n in range(250))]), max_size=600),
    cuts=st.lists(st.integers(0, 600), max_size=5),
)
def test_any_split_of_the_log_keeps_the_same_names_with_the_same_counts(rows: list[str], cuts: list[int]) -> None:
    def counted(part: list[str]) -> dict[str, int]:
        return {name: part.count(name) for name in part}

    borders = [0, *sorted(cuts), len(rows)]
    parts = [counted(rows[a:b]) for a, b in itertools.pairwise(borders)]
    whole = added(counted(rows))
    assert added(*parts) == added(*parts[::-1]) == whole == shortest(counted(rows))
    assert len(whole) <= UNKNOWN_FIELDS + 1 and sum(whole.values()) == len(rows)


def test_a_row_with_thousands_of_unknown_fields_names_a_hundred() -> None:
    many = {f"field_{n}": 0 for n in range(5000)} | {"note": 1, "not a name": 2}
    (found,) = decode_rows(STREAM, raw([json.dumps({"id": "x", **many})]))["unknown"].to_pylist()
    assert len(found) == UNKNOWN_FIELDS + 1 and {OTHER_FIELDS, FURTHER_FIELDS, "note", "field_0"} <= set(found)
    con = open_database()
    load(con, DOMAIN, [(("open", "L", "0"), raw([json.dumps({"id": "x", **many})]))], 1)
    ((recounted,),) = con.sql("SELECT unknown FROM recount.judged_0").fetchall()
    assert sorted(recounted) == found


def test_thirty_thousand_names_leave_a_manifest_of_a_hundred_that_the_recount_agrees_with(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [json.dumps({"id": str(n), f"field_{n * 7919 % 30_000}": 1, "coupon": n}) for n in range(30_000)]
    values += [
        json.dumps({"id": f"x{n}", "not a name": n, **{f"made_up_{n}_{m}": 0 for m in range(200)}}) for n in range(5)
    ]
    log = raw(values)
    typed = decode_rows(STREAM, log).append_column("topic", pa.array(["open"] * len(log)))
    ranges: dict[str, Any] = {}
    monkeypatch.setattr(
        build, "read_typed", lambda spark, url, stream, partitions, rows: spark.createDataFrame(typed.slice(*rows))
    )

    def counted(parent: versions.Manifest, start: int, number: int, full: bool) -> dict[str, dict[str, int]]:
        return build._unknown_fields(spark, "", DOMAIN, parent, {"open": {}}, {"open": (start, number)}, full)  # type: ignore[dict-item]

    zero = versions.version_zero(DOMAIN.name, DOMAIN.definition_hash, ranges)
    whole = counted(zero, 0, len(log), True)
    first = counted(zero, 0, 17_000, True)
    parent = versions.Manifest(**{**vars(zero), "unknown": first, "schema_hashes": {"open": STREAM.schema_hash}})
    assert counted(parent, 17_000, len(log) - 17_000, False) == whole
    assert len(whole["open"]) == UNKNOWN_FIELDS + 1 and len(json.dumps(whole)) < 4_000
    assert whole["open"]["coupon"] == 30_000 and whole["open"][OTHER_FIELDS] == 5
    con = open_database()
    load(con, DOMAIN, [(("open", "L", "0"), log)], len(log))
    assert unknown_fields(con, DOMAIN, {"open": {"L": {"0": len(log)}}}) == whole
