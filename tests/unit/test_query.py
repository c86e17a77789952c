"""Is merged = direct, for every grain, grouping and filter, however the events were cut?"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.domain import GRAINS, View
from engine.fold.measures import window_of
from engine.runtime.notation import writable
from engine.serving.parameters import EVERY, BadQuery, view_query
from engine.serving.query import fetch_rows, fetch_table, merge_tables, open_database
from tests.unit.serving_data import MINUTES, SHOPS, TAGS, cut, events, partials

DATABASE = open_database()


def merged(
    view: View, pieces: Sequence[pa.Table], params: Sequence[tuple[str, str]], batch: int
) -> list[dict[str, Any]]:
    """Answer from stored partials: the first `batch` pieces folded together, the others one by one."""
    tables = {
        "batch": partials(view, pa.concat_tables(pieces[:batch])) if batch else partials(view, pieces[0].slice(0, 0)),
        "speed": pa.concat_tables(
            [partials(view, piece) for piece in pieces[batch:]] or [partials(view, pieces[0].slice(0, 0))]
        ),
    }
    query = view_query(view, [*params, ("limit", "10000")])
    with DATABASE.cursor() as cursor:
        return [dict(zip(query.columns, row, strict=True)) for row in fetch_rows(cursor, query, tables, 0)]


def direct(rows: pa.Table, by: Sequence[str], every: str | None, where: str) -> list[dict[str, Any]]:
    """One query over every good event, written apart from the measures."""
    window = window_of("event_time", GRAINS[EVERY[every]], "duckdb") if every else ()
    keys = [*by, *(f"{sql} AS {name}" for sql, name in zip(window, ("window_start", "window_end"), strict=False))]
    sql = f"""SELECT {", ".join([*keys, ""])} count(*) AS sales, count(CASE WHEN size > 1 THEN 1 END) AS big, sum(amount) AS revenue,
        sum(size) AS units, min(amount) AS least, max(amount) AS most, avg(amount) AS mean, stddev_samp(amount::DOUBLE) AS spread,
        arg_min(amount, (event_time, partition, "offset")) FILTER (WHERE amount IS NOT NULL) AS opening
        FROM typed WHERE problem IS NULL AND {where} {f"GROUP BY {', '.join(str(n + 1) for n in range(len(keys)))}" if keys else ""}"""
    with DATABASE.cursor() as cursor:
        cursor.register("typed", rows)
        answer = cursor.execute(sql)
        names = [column[0] for column in answer.description]
        return [dict(zip(names, row, strict=True)) for row in answer.fetchall() if keys or row[0]]


def exact(row: dict[str, Any]) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    key = (str(row.get("shop", "-")), str(row.get("size", "-")), str(row.get("window_start"))[:19])
    return key, tuple(row[name] for name in ("sales", "big", "revenue", "units", "least", "most", "opening"))


def near(one: float | None, other: float | None, share: float) -> bool:
    return one is other or (one is not None and other is not None and abs(one - other) <= share * max(1.0, abs(other)))


@settings(max_examples=40, deadline=None)
@given(
    start=st.integers(0, 10**6),
    every=st.sampled_from([None, "1m", "5m", "15m", "1h", "1d", "all"]),
    by=st.sampled_from([None, "", "shop", "size", "size,shop"]),
    shops=st.sampled_from([(), ("north",), ("north", "Hà Nội"), ("=cmd()", None), (None,)]),
    window=st.sampled_from([None, "2026-01-31T23:00:00Z"]),
)
def test_any_cut_any_grain_any_grouping_gives_the_direct_answer(
    start: int, every: str | None, by: str | None, shops: tuple[str | None, ...], window: str | None
) -> None:
    random = Random(start)
    rows = events(random, random.randrange(1, 120))
    pieces = cut(random, rows, 6)
    if every == "1d" and window:
        window = "2026-02-01T00:00:00Z"
    params = [("shop", text) if text else ("shop.null", "true") for text in shops]
    params += [("every", every)] if every else []
    params += [("by", by)] if by is not None else []
    params += [("from", window)] if window else []
    names = (
        {None: ("shop", "size"), "": ()}.get(by)
        if by in (None, "")
        else tuple(n for n in ("shop", "size") if n in str(by))
    )
    where = " OR ".join(f"shop = '{text}'" if text else "shop IS NULL" for text in shops) or "true"
    where = f"({where})" + (f" AND event_time >= '{window[:-1]}'" if window else "")
    wanted = direct(rows, names or (), None if every == "all" else every or "1m", where)
    got = merged(MINUTES, pieces, params, random.randrange(7))
    assert dict(map(exact, got)) == dict(map(exact, wanted)) and len(got) == len(wanted)
    shown = {exact(row)[0]: row for row in wanted}
    for row in got:
        other = shown[exact(row)[0]]
        assert near(row["mean"], other["mean"], 1e-9) and near(row["spread"], other["spread"], 1e-6)


def test_distinct_is_the_same_for_any_cut() -> None:
    random = Random(5)
    rows = events(random, 400)
    answers = {merged(SHOPS, cut(random, rows, 9), [("by", "")], batch)[0]["buyers"] for batch in range(10)}
    assert len(answers) == 1 and 47 <= answers.pop() <= 53


def test_batch_and_speed_alone_add_up_to_merged() -> None:
    pieces = cut(Random(3), events(Random(3), 200), 4)
    alone = [
        merged(SHOPS, pieces, [("by", ""), ("part", part)], 2)[0]["sales"] for part in ("batch", "speed", "merged")
    ]
    assert alone[0] and alone[1] and alone[0] + alone[1] == alone[2]


def test_nothing_stored_is_no_row_also_without_keys() -> None:
    nothing = [events(Random(1), 5).slice(0, 0)]
    assert merged(SHOPS, nothing, [("by", "")], 0) == []


def test_merging_blocks_of_partials_changes_no_answer() -> None:
    pieces = [partials(MINUTES, piece) for piece in cut(Random(8), events(Random(8), 300), 12)]
    with DATABASE.cursor() as cursor:
        block = merge_tables(cursor, MINUTES, pieces)
    query, empty = view_query(MINUTES, [("every", "1h"), ("limit", "10000")]), pieces[0].slice(0, 0)
    with DATABASE.cursor() as one, DATABASE.cursor() as two:
        plain = fetch_rows(one, query, {"batch": empty, "speed": pa.concat_tables(pieces)}, 0)
        assert fetch_rows(two, query, {"batch": block, "speed": empty}, 0) == plain
    assert block.num_rows < sum(piece.num_rows for piece in pieces) and block.schema == pieces[0].schema


def test_order_is_total_with_nulls_last_either_way() -> None:
    pieces = [events(Random(2), 300)]
    for sign in ("", "-"):
        shops = [row["shop"] for row in merged(MINUTES, pieces, [("order", f"{sign}shop")], 1)]
        known = [shop for shop in shops if shop is not None]
        assert shops[len(known) :] == [None] * (len(shops) - len(known)) and None in shops
        assert known == sorted(known, key=lambda text: text.encode(), reverse=bool(sign))
    query = view_query(MINUTES, [("order", "-sales,big")])
    assert query.order[:2] == (("sales", True), ("big", False)) and {name for name, _ in query.order} >= set(
        MINUTES.keys
    )


def test_an_exploded_view_refuses_what_would_count_an_event_twice() -> None:
    pieces = [events(Random(4), 200)]
    with pytest.raises(BadQuery, match=r"sales would count it more than once.*measures=most"):
        view_query(TAGS, [("by", "shop")])
    with pytest.raises(BadQuery):
        view_query(TAGS, [("by", "shop"), ("tag", "a"), ("tag", "b")])
    assert "sales" not in merged(TAGS, pieces, [("by", ""), ("measures", "most")], 1)[0]
    fixed = merged(TAGS, pieces, [("by", ""), ("every", "all"), ("tag", "c")], 1)[0]["sales"]
    good = [
        tags
        for tags, problem in zip(pieces[0]["tags"].to_pylist(), pieces[0]["problem"].to_pylist(), strict=True)
        if not problem
    ]
    assert fixed == sum("c" in tags for tags in good)
    grouped = {row["tag"]: row["sales"] for row in merged(TAGS, pieces, [("by", "tag"), ("every", "all")], 1)}
    assert grouped["(unknown)"] == sum(not tags for tags in good)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ([("nope", "1")], "nope"),
        ([("limit", "-1")], "limit"),
        ([("limit", "0")], "limit"),
        ([("limit", "10001")], "limit"),
        ([("limit", "1e309")], "limit"),
        ([("limit", "٣")], "limit"),
        ([("limit", "5"), ("limit", "6")], "limit"),
        ([("size", "1.5")], "size"),
        ([("size", str(2**31))], "size"),
        ([("size", "9" * 400)], "size"),
        ([("size", "NaN")], "size"),
        ([("shop.null", "maybe")], "shop.null"),
        ([("every", "7m")], "every"),
        ([("by", "shop;drop")], "by"),
        ([("order", "sales__n")], "order"),
        ([("part", "all")], "part"),
        ([("format", "xml")], "format"),
        ([("measures", "mean__s")], "measures"),
        ([("from", "2026-01-31T23:00:30Z")], "from"),
        ([("from", "2026-01-31T23:01:00Z"), ("every", "1h")], "from"),
        ([("to", "0000-01-01T00:00:00Z")], "to"),
        ([("to", "9999-12-31T23:59:00-01:00")], "to"),
        ([("to", "2026-02-30T00:00:00Z")], "to"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(params: list[tuple[str, str]], field: str) -> None:
    with pytest.raises(BadQuery) as refused:
        view_query(MINUTES, params)
    assert refused.value.field == field


def test_windows_are_asked_only_of_windowed_views() -> None:
    for name, text in (("from", "2026-01-31T00:00:00Z"), ("to", "2026-01-31T00:00:00Z"), ("every", "1h")):
        with pytest.raises(BadQuery):
            view_query(SHOPS, [(name, text)])
    assert view_query(TAGS, [("every", "all")]).shape.every is None  # type: ignore[union-attr]
    with pytest.raises(BadQuery, match="kept per 1 day"):
        view_query(TAGS, [("every", "1h")])


def test_a_value_is_a_literal_whatever_it_contains() -> None:
    pieces = [events(Random(6), 100)]
    for text in ("' OR 1=1 --", "north'; DROP TABLE batch; --", "a\x00b", "ʼ OR 1", "%", "_orth"):
        assert merged(MINUTES, pieces, [("shop", text)], 1) == []


def test_arrow_and_rows_say_the_same() -> None:
    rows = partials(MINUTES, events(Random(7), 100))
    query = view_query(MINUTES, [("every", "1d")])
    with DATABASE.cursor() as one, DATABASE.cursor() as two:
        table = fetch_table(one, query, {"batch": rows, "speed": rows.slice(0, 0)}, 0)
        plain = fetch_rows(two, query, {"batch": rows, "speed": rows.slice(0, 0)}, 0)
    assert [tuple(row.values()) for row in table.to_pylist()] == plain
    assert str(table.schema.field("window_start").type) == "timestamp[us, tz=UTC]"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "COPY (SELECT 1) TO '/tmp/out.csv'",
        "ATTACH '/tmp/x.db'",
        "INSTALL httpfs",
        "SET threads = 9",
    ],
)
def test_the_database_reaches_nothing_outside(sql: str) -> None:
    with DATABASE.cursor() as cursor, pytest.raises(Exception, match=r"(disabled|locked|Permission)"):
        cursor.execute(sql)


def test_a_time_that_nobody_can_write_down_is_null() -> None:
    """A client that sends microseconds, or none, where Kafka wants milliseconds."""
    micros = [-1000, 0, 1_700_000_000_000_000_000, 253_402_300_799_999_999, None]
    for zone in (None, "UTC"):
        table = pa.table(
            {"kafka_time": pa.array(micros, pa.int64()).cast(pa.timestamp("us", zone)), "n": [1, 2, 3, 4, 5]}
        )
        shown = writable(table)
        assert [moment and moment.year for moment in shown["kafka_time"].to_pylist()] == [1969, 1970, None, 9999, None]
        assert shown["n"].to_pylist() == [1, 2, 3, 4, 5] and shown.schema == table.schema
