"""What do old and new events of one topic say under the old and the new schema?

The layers and the recount must agree.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

import engine.domain.stream as stream_module
from engine.domain import Domain, Stream, View, count, each
from engine.fold.decode import decode_rows
from engine.storage.log import typed_root
from engine.verify.rows import load, open_database, table_of, typed_table
from tests.unit.test_decode import raw
from tests.unit.test_domain_answers import judged_rows

OLD = Stream(
    topic="orders",
    columns={
        "id": "STRING",
        "moment": "TIMESTAMP",
        "pieces": "INT",
        "price": "DECIMAL(10,2)",
        "coupon": "STRING",
    },
    key="id",
    time="moment",
    unique=("id",),
    rules={"pieces_positive": "pieces IS NULL OR pieces > 0"},
)


def changed(**columns: str | None) -> Stream:
    """OLD with columns added or retyped, or, where None, removed."""
    merged: dict[str, str | None] = {**OLD.columns, **columns}
    return replace(OLD, columns={name: sql_type for name, sql_type in merged.items() if sql_type})


WITH_NOTE = changed(note="STRING")
WITHOUT_COUPON = changed(coupon=None)
WIDER = changed(pieces="BIGINT", price="DECIMAL(12,2)")
ALL_AT_ONCE = changed(note="STRING", coupon=None, pieces="BIGINT", price="DECIMAL(12,2)")
SCHEMAS = {"old": OLD, "note": WITH_NOTE, "no coupon": WITHOUT_COUPON, "wider": WIDER, "all": ALL_AT_ONCE}


def event(number: int, **fields: Any) -> str:
    return json.dumps({"id": f"o{number}", "moment": "2026-01-01T00:00:00Z", **fields})


# One log, in the order in which a producer that was changed half-way sent it; some events repeat across the change.
LOG = [
    event(0, pieces=1, price=9.99, coupon="x"),
    event(1, pieces=2**31, price=1),
    event(2, pieces=2, price=99_999_999.99, coupon=None),
    event(3, pieces=2, price=100_000_000),
    event(4, pieces=0, coupon="x"),
    event(5, coupon=7),
    event(6, pieces=3, price=5, note="by hand"),
    event(7, pieces=3, price=5, note=None),
    event(8, pieces=3, price=5, note=8),
    event(9, pieces=2**40, price=1_234_567_890.12, note="large"),
    event(10, pieces=2**63, price=1),
    event(11, pieces=1, price=12_345_678_901),
    event(12, pieces=1, price=0.001),
    event(0, pieces=1, price=9.99, note="again"),
    event(5, coupon=7, note="again"),
]


def both(stream: Stream, values: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows by the layers' decoder and by the recount's, which must also be of the same types."""
    names = ["offset", "event_time", *stream.columns, "problem"]
    layers = decode_rows(stream, raw(values)).select(names)  # type: ignore[arg-type]
    recount = typed_table(stream, raw(values)).select(names)  # type: ignore[arg-type]
    for field, other in zip(layers.schema, recount.schema, strict=True):
        assert field.type == other.type or pa.types.is_timestamp(field.type), field.name
    return layers.to_pylist(), recount.cast(layers.schema).to_pylist()


def rows(stream: Stream, values: list[str]) -> list[dict[str, Any]]:
    layers, recount = both(stream, values)
    assert layers == recount
    return layers


def good(stream: Stream) -> set[int]:
    """Places in LOG of the rows that decode."""
    return {row["offset"] for row in rows(stream, LOG) if row["problem"] is None}


# Old and new events side by side --------------------------------------------------------------------------------------


def test_a_new_optional_field_is_null_in_old_rows_and_read_in_new_ones() -> None:
    before, after = rows(OLD, LOG), rows(WITH_NOTE, LOG)
    notes = {row["offset"]: row.pop("note") for row in after}
    assert {n: note for n, note in notes.items() if note} == {6: "by hand", 13: "again"}
    assert [b for b, a in zip(before, after, strict=True) if b != a] == [before[8]], (
        "only a note of another type differs"
    )
    assert (before[8]["problem"], after[8]["problem"]) == (None, "malformed")


def test_a_removed_field_is_ignored_in_old_rows_whatever_it_holds() -> None:
    before, after = rows(OLD, LOG), rows(WITHOUT_COUPON, LOG)
    assert all("coupon" not in row for row in after)
    assert good(WITHOUT_COUPON) - good(OLD) == {5, 14}
    assert good(OLD) <= good(WITHOUT_COUPON)
    for one, other in zip(before, after, strict=True):
        one.pop("coupon")
        assert one == other or one["offset"] in (5, 14)


def test_a_wider_type_keeps_every_old_value_and_takes_larger_ones() -> None:
    before, after = rows(OLD, LOG), rows(WIDER, LOG)
    assert good(WIDER) - good(OLD) == {1, 3, 9}
    assert good(OLD) <= good(WIDER)
    assert all(after[n] == before[n] for n in good(OLD))
    assert (after[1]["pieces"], str(after[9]["price"]), str(after[3]["price"])) == (
        2**31,
        "1234567890.12",
        "100000000.00",
    )


def test_a_wider_type_does_not_begin_to_round_or_to_overflow() -> None:
    assert {10, 11, 12} & good(WIDER) == set()


def test_a_new_needed_field_makes_old_rows_malformed() -> None:
    needed = replace(WITH_NOTE, required=("note",))
    assert good(needed) == {6, 13}


@pytest.mark.parametrize("name", SCHEMAS)
def test_rules_and_duplicates_across_the_change_are_judged_alike(name: str, spark: SparkSession) -> None:
    """A repeat counts from the first row that is good under this schema: event 5 was malformed under the old one."""
    stream = SCHEMAS[name]
    table = raw(LOG)  # type: ignore[arg-type]
    judged = judged_rows(spark, stream, table)
    layers = dict(zip(judged["offset"].to_pylist(), judged["problem"].to_pylist(), strict=True))
    assert layers == by_recount(stream, LOG)
    without_coupon = "coupon" not in stream.columns
    assert (layers[4], layers[13]) == ("pieces_positive", "duplicate")
    assert (layers[5], layers[14]) == ((None, "duplicate") if without_coupon else ("malformed", "malformed"))


def by_recount(stream: Stream, values: list[str]) -> dict[int, str | None]:
    """Offset → problem of each row, judged by the recount."""
    domain = Domain("d", (stream,), (View("v", (stream,), (), {"rows": count()}),))
    connection = open_database()
    load(connection, domain, [((stream.topic, "L", "0"), raw(values))], len(values))  # type: ignore[arg-type]
    return dict(connection.execute(f'SELECT "offset", problem FROM {table_of(domain, stream.topic)}').fetchall())


SOME: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        0,
        1,
        -1,
        2**31 - 1,
        2**31,
        -(2**31) - 1,
        2**63,
        0.5,
        1e2,
        9.99,
        99999999.99,
        1e8,
        1e10,
        0.001,
        "1",
        "",
        True,
        [],
        {},
    ]
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["pieces", "price", "coupon", "note"]), SOME, max_size=4), max_size=6))
def test_any_mixture_of_events_is_read_alike_under_every_schema(mixture: list[dict[str, Any]]) -> None:
    values = [event(number, **fields) for number, fields in enumerate(mixture)]
    for stream in SCHEMAS.values():
        rows(stream, values)


# The hash -------------------------------------------------------------------------------------------------------------

REFUSED = "pieces IS NULL OR pieces > 1"
# Change → events whose rows it changes.
CHANGES: dict[str, tuple[Stream, list[str]]] = {
    "a column more": (WITH_NOTE, [LOG[6]]),
    "a column less": (WITHOUT_COUPON, [LOG[5]]),
    "a wider integer": (changed(pieces="BIGINT"), [LOG[1]]),
    "a wider decimal": (changed(price="DECIMAL(12,2)"), [LOG[9], LOG[3]]),
    "a finer decimal": (changed(price="DECIMAL(10,3)"), [LOG[12]]),
    "another order of columns": (replace(OLD, columns=dict(reversed(list(OLD.columns.items())))), [LOG[0]]),
    "a field required": (replace(OLD, required=("coupon",)), [LOG[6]]),
    "another key, so that it is needed": (replace(OLD, key="price"), [event(0)]),
    "another unique key": (replace(OLD, unique=("id", "pieces")), [LOG[6], event(6, pieces=4)]),
    "Kafka's time": (replace(OLD, time=None), [LOG[0]]),
    "a rule more": (replace(OLD, rules={**OLD.rules, "coupon_given": "coupon IS NOT NULL"}), [LOG[6]]),
    "a rule mended": (replace(OLD, rules={"pieces_positive": REFUSED}), [LOG[0]]),
    "a rule renamed": (replace(OLD, rules={"any_pieces": OLD.rules["pieces_positive"]}), [LOG[4]]),
    "a smaller window": (replace(OLD, duplicate_window=1), [LOG[0], LOG[6], LOG[0]]),
}
SAME: dict[str, Stream] = {
    "a generator": replace(OLD, generator=each(lambda rng, now_ms: {})),
    "options": replace(OLD, options={"shops": "3"}),
    "a weight": replace(OLD, weight=7),
    "more partitions": replace(OLD, partitions=12),
    "another key, which is needed anyway": replace(OLD, key="moment"),
    "required, where it is needed anyway": replace(OLD, required=("id", "moment", "id")),
}


def told(stream: Stream, values: list[str]) -> Any:
    """All that a typed log holds of these events: columns with their types, and rows with their problems."""
    decoded = decode_rows(stream, raw(values))  # type: ignore[arg-type]
    return [(field.name, field.type) for field in decoded.schema], decoded.to_pylist(), by_recount(stream, values)


@pytest.mark.parametrize("name", CHANGES)
def test_the_hash_changes_where_typed_rows_do(name: str) -> None:
    stream, values = CHANGES[name]
    assert told(stream, values) != told(OLD, values)
    assert stream.schema_hash != OLD.schema_hash
    assert typed_root(stream) != typed_root(OLD)


@pytest.mark.parametrize("name", SAME)
def test_the_hash_stays_where_typed_rows_do(name: str) -> None:
    assert told(SAME[name], LOG) == told(OLD, LOG)
    assert SAME[name].schema_hash == OLD.schema_hash
    assert typed_root(SAME[name]) == typed_root(OLD)


def test_every_two_changes_have_two_hashes() -> None:
    hashes = [OLD.schema_hash, *(stream.schema_hash for stream, _ in CHANGES.values())]
    assert len(set(hashes)) == len(hashes)


def test_a_decoder_that_reads_otherwise_and_a_later_future_change_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {OLD.schema_hash}
    for name in ("DECODE_VERSION", "FUTURE_LIMIT_MINUTES"):
        with monkeypatch.context() as patch:
            patch.setattr(stream_module, name, getattr(stream_module, name) + 1)
            hashes.add(OLD.schema_hash)
    assert len(hashes) == 3


def test_another_schema_is_another_definition_of_every_view_over_it() -> None:
    """Stored rows of the old schema are never added to those of the new one."""
    views = [View("v", (stream,), ("id",), {"rows": count()}) for stream in SCHEMAS.values()]
    assert len({view.definition_hash for view in views}) == len(views)
