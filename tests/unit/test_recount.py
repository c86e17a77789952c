"""The recount against `docs/decode.md`, line by line, and against a log of 30 records counted by hand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from engine.domain import (
    Domain,
    Report,
    Stream,
    View,
    avg,
    count,
    distinct,
    first,
    last,
    max_of,
    min_of,
    stddev,
    sum_of,
)
from engine.verify import rows as judged_rows
from engine.verify.answers import (
    deviation,
    estimate,
    matching_events,
    problem_counts,
    question_of,
    report_rows,
    view_rows,
)
from engine.verify.rows import Malformed, load, open_database, parse_event, typed_table

# docs/decode.md, the first table ----------------------------------------------------------------------------------

DEEP_63, DEEP_64 = "[" * 63 + "]" * 63, "[" * 64 + "]" * 64

GOOD = {
    "white space before and after": ' \t\r\n{"a": 1} \t\r\n',
    "64 levels": f'{{"a": {DEEP_63}}}',
    "many shallow arrays": f'{{"a": [{", ".join(["[]"] * 100)}]}}',
    "brackets in a text": '{"a": "%s"}' % ("[" * 100),
    "a pair of surrogates": '{"a": "\\ud83d\\ude00"}',
    "an escaped backslash before ud800": '{"a": "\\\\ud800"}',
    "names that differ in case only": '{"a": 1, "A": 2}',
    "the same name in two objects": '{"a": {"x": 1}, "b": {"x": 1}}',
    "an exponent of 6 digits": '{"a": 1e999999, "b": -1E-999999}',
    "a number of 1000 characters": '{"a": 1%s}' % ("0" * 999),
    "U+0000 as an escape": '{"a": "\\u0000"}',
    "DEL inside a string": '{"a": "\x7f"}',
}
BAD = {
    "null": None,
    "empty": "",
    "white space only": " \n",
    "other white space": '\u00a0{"a": 1}',
    "vertical tab after": '{"a": 1}\x0b',
    "a byte-order mark": '\ufeff{"a": 1}',
    "text after the object": '{"a": 1} x',
    "a second object": '{"a": 1}{"a": 1}',
    "an array": "[1]",
    "a number": "1",
    "a string": '"a"',
    "json null": "null",
    "a trailing comma": '{"a": 1,}',
    "a trailing comma in an array": '{"a": [1,]}',
    "a comment": '{"a": 1 /* one */}',
    "single quotes": "{'a': 1}",
    "NaN": '{"a": NaN}',
    "Infinity": '{"a": Infinity}',
    "-Infinity": '{"a": -Infinity}',
    "a leading zero": '{"a": 01}',
    "a negative leading zero": '{"a": -01}',
    "a leading plus": '{"a": +1}',
    "no digit after the point": '{"a": 1.}',
    "no digit before the point": '{"a": .5}',
    "a raw tab inside a string": '{"a": "\t"}',
    "a raw newline inside a string": '{"a": "\n"}',
    "a raw NUL inside a string": '{"a": "\x00"}',
    "an unknown escape": '{"a": "\\x41"}',
    "the same name twice": '{"a": 1, "a": 1}',
    "the same name twice after unescaping": '{"a": 1, "\\u0061": 1}',
    "the same name twice, deep inside": '{"b": [{"c": {"a": 1, "a": 2}}]}',
    "half a surrogate pair": '{"a": "\\ud800"}',
    "the other half": '{"a": "\\udc00"}',
    "a pair in the wrong order": '{"a": "\\ude00\\ud83d"}',
    "half a pair in a name": '{"\\uD800": 1}',
    "half a pair deep in an unknown field": '{"a": [{"b": ["\\uDBff"]}]}',
    "65 levels": f'{{"a": {DEEP_64}}}',
    "5000 levels": "[" * 5000 + "]" * 5000,
    "5000 levels in an object": '{"a": %s}' % ("[" * 5000 + "]" * 5000),
    "an exponent of 7 digits": '{"a": 1e1000000}',
    "an exponent of 7 digits with zeros": '{"a": 1e-0000001}',
    "a number of 1001 characters": '{"a": 1%s}' % ("0" * 1000),
    "a fraction of 1001 characters": '{"a": 0.%s}' % ("1" * 999),
    "a long number deep inside": '{"b": [[1%s]]}' % ("0" * 1000),
    "cut off": '{"a": 1',
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD.keys())
def test_a_text_that_is_one_json_object_is_read(text: str) -> None:
    assert "a" in parse_event(text)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_a_text_that_is_not_one_json_object_is_malformed(text: str | None) -> None:
    with pytest.raises(Malformed):
        parse_event(text)


# docs/decode.md, the second table ---------------------------------------------------------------------------------

NEEDY = Stream(
    topic="needy",
    columns={"k": "STRING", "t": "TIMESTAMP", "u": "BIGINT", "r": "BOOLEAN", "v": "STRING"},
    key="k",
    time="t",
    unique=("u",),
    required=("r",),
)


def read_row(stream: Stream, text: str) -> tuple[Any, ...]:
    """The typed values of one event in the order of the columns, times in epoch µs. Raises Malformed."""
    return judged_rows._row(parse_event(text), judged_rows._readers(stream))


@pytest.mark.parametrize("absent", ["k", "t", "u", "r"])
@pytest.mark.parametrize("as_null", [True, False])
def test_a_needed_field_that_is_absent_or_null_is_malformed(absent: str, as_null: bool) -> None:
    fields = {"k": '"x"', "t": "0", "u": "1", "r": "false", "v": '"y"'}
    assert read_row(NEEDY, _object(fields)) == ("x", 0, 1, False, "y")
    fields = {**fields, absent: "null"} if as_null else {k: v for k, v in fields.items() if k != absent}
    with pytest.raises(Malformed):
        read_row(NEEDY, _object(fields))


def test_other_fields_may_be_absent_or_null_and_unknown_ones_are_ignored() -> None:
    fields = {"k": '""', "t": "0", "u": "1", "r": "true", "K": "1", "V": "[[]]", "w": "{}"}
    assert read_row(NEEDY, _object(fields)) == ("", 0, 1, True, None)
    assert read_row(NEEDY, _object({**fields, "v": "null"}))[-1] is None


def _object(fields: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}"


MINUTE = 60_000_000
NEW_YEAR = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z in µs

ACCEPTED: list[tuple[str, str, Any]] = [
    ("STRING", '""', ""),
    ("STRING", '"a\\u0000b"', "a\0b"),
    ("STRING", '"e\\u0301"', "e\u0301"),
    ("STRING", '"\\u00e9 \u1ea1 \U0001f600"', "é ạ 😀"),
    ("BIGINT", "3", 3),
    ("BIGINT", "3.0", 3),
    ("BIGINT", "30e-1", 3),
    ("BIGINT", "-0", 0),
    ("BIGINT", "0e999999", 0),
    ("BIGINT", "9223372036854775807", 2**63 - 1),
    ("BIGINT", "-9223372036854775808", -(2**63)),
    ("BIGINT", "9.223372036854775807E18", 2**63 - 1),
    ("INT", "2147483647", 2**31 - 1),
    ("INT", "-2147483648.00", -(2**31)),
    ("DECIMAL(5,2)", "10.5", Decimal("10.50")),
    ("DECIMAL(5,2)", "10.500", Decimal("10.50")),
    ("DECIMAL(5,2)", "1.05e1", Decimal("10.50")),
    ("DECIMAL(5,2)", "-999.99", Decimal("-999.99")),
    ("DECIMAL(5,2)", "99999e-2", Decimal("999.99")),
    ("DECIMAL(5,2)", "0.000000", Decimal("0.00")),
    ("DECIMAL(5,2)", "-0.0", Decimal("0.00")),
    ("DECIMAL(28,0)", "9" * 28, Decimal("9" * 28)),
    ("DOUBLE", "1", 1.0),
    ("DOUBLE", "0.1", 0.1),
    ("DOUBLE", "1e-400", 0.0),
    ("DOUBLE", "1.7976931348623157e308", 1.7976931348623157e308),
    ("BOOLEAN", "true", True),
    ("BOOLEAN", "false", False),
    ("ARRAY<STRING>", "[]", []),
    ("ARRAY<STRING>", '["a", "", "a"]', ["a", "", "a"]),
    ("TIMESTAMP", '"2026-01-01T00:00:00Z"', NEW_YEAR),
    ("TIMESTAMP", '"2026-01-01t00:00:00z"', NEW_YEAR),
    ("TIMESTAMP", '"2026-01-01 00:00:00"', NEW_YEAR),
    ("TIMESTAMP", '"2026-01-01T00:00:00.1"', NEW_YEAR + 100_000),
    ("TIMESTAMP", '"2026-01-01T00:00:00.123456789Z"', NEW_YEAR + 123_456),
    ("TIMESTAMP", '"2026-01-01T07:00:00+07:00"', NEW_YEAR),
    ("TIMESTAMP", '"2025-12-31T18:30:00-0530"', NEW_YEAR),
    ("TIMESTAMP", '"2025-12-31T00:01:00-23:59"', NEW_YEAR),
    ("TIMESTAMP", '"2024-02-29T23:59:59Z"', 1_709_251_199_000_000),
    ("TIMESTAMP", "1767225600000", NEW_YEAR),
    ("TIMESTAMP", "1.7672256e12", NEW_YEAR),
    ("TIMESTAMP", "-1", -1000),
    ("TIMESTAMP", '"1969-12-31T23:59:00Z"', -MINUTE),
    ("TIMESTAMP", '"0001-01-01T00:00:00Z"', -62_135_596_800_000_000),
    ("TIMESTAMP", '"9999-12-31T23:59:59.999999Z"', 253_402_300_799_999_999),
    ("TIMESTAMP", "253402300799999", 253_402_300_799_999_000),
]
REFUSED = [
    *[("STRING", text) for text in ("1", "1.5", "true", "{}", "[]", '["a"]')],
    *[
        ("BIGINT", text)
        for text in ("3.7", '"3"', "9223372036854775808", "-9223372036854775809", "1e19", "true", "[1]")
    ],
    *[("BIGINT", text) for text in ("1e-1", "1e999999", "1e-999999", "{}")],
    *[("INT", text) for text in ("2147483648", "-2147483649", '"1"', "false", "0.5")],
    *[
        ("DECIMAL(5,2)", text)
        for text in ("10.005", "1000", "1e3", "-1000.0", '"10"', "true", "[]", "1e-3", "1e999999")
    ],
    *[("DOUBLE", text) for text in ("1e400", "-1e400", '"1"', "true", "[]")],
    *[("BOOLEAN", text) for text in ("0", "1", '"true"', "[]")],
    *[("ARRAY<STRING>", text) for text in ("[null]", '["a", 1]', '"a"', "{}", '[["a"]]', "1")],
    *[
        ("TIMESTAMP", text)
        for text in (
            '"2026-01-01"',
            '"2026-01-01T00:00"',
            '"2026-01-01  00:00:00"',
            '"2026-01-01T00:00:60Z"',
            '"2026-01-01T24:00:00Z"',
            '"2026-01-01T00:60:00Z"',
            '"2026-04-31T00:00:00Z"',
            '"2025-02-29T00:00:00Z"',
            '"2026-13-01T00:00:00Z"',
            '"2026-01-01T00:00:00+24:00"',
            '"2026-01-01T00:00:00+23:60"',
            '"2026-01-01T00:00:00+07"',
            '"2026-01-01T00:00:00.Z"',
            '"2026-01-01T00:00:00.1234567890Z"',
            '"2026-01-01T00:00:00 Z"',
            '" 2026-01-01T00:00:00Z"',
            '"2026-01-01T00:00:00Z\\n"',
            '"\uff12026-01-01T00:00:00Z"',
            '"0001-01-01T00:00:00+00:01"',
            '"9999-12-31T23:59:59-00:01"',
            '"0000-12-31T00:00:00Z"',
            '"1767225600000"',
            "253402300800000",
            "-62135596800001",
            "1.5",
            "1e30",
            "true",
            "[]",
        )
    ],
]


def _only(sql_type: str) -> Stream:
    return Stream(topic="only", columns={"k": "STRING", "v": sql_type}, key="k", unique=("k",))


@pytest.mark.parametrize(("sql_type", "text", "value"), ACCEPTED)
def test_a_value_of_its_column_type_is_read(sql_type: str, text: str, value: Any) -> None:
    found = read_row(_only(sql_type), f'{{"k": "", "v": {text}}}')[1]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("sql_type", "text"), REFUSED)
def test_a_value_of_another_type_is_malformed(sql_type: str, text: str) -> None:
    with pytest.raises(Malformed):
        read_row(_only(sql_type), f'{{"k": "", "v": {text}}}')


def test_a_text_is_never_taken_for_the_number_that_it_spells() -> None:
    for text in ("10", '"10"', "10"):  # a remembered number must not let the text pass
        row = f'{{"k": "", "v": {text}}}'
        if text == "10":
            assert read_row(_only("DECIMAL(5,2)"), row)[1] == Decimal("10.00")
        else:
            with pytest.raises(Malformed):
                read_row(_only("DECIMAL(5,2)"), row)


@pytest.mark.parametrize(("sql_type", "text", "value"), ACCEPTED)
def test_duckdb_gets_the_value_unchanged(sql_type: str, text: str, value: Any) -> None:
    stream = _only(sql_type)
    domain = Domain("only", (stream,), (View("all", (stream,), ("k",), {"n": count(), "v": last("v")}),))
    con = open_database()
    assert load(con, domain, [(("only", "L", "0"), _raw([(7, "10:00:00", f'{{"k": "", "v": {text}}}')]))], 1) == 1
    (row,) = view_rows(
        con, domain, domain.views[0], question_of(domain.views[0], []), {"coverage": {"only": {"L": {"0": 8}}}}
    )
    if sql_type == "TIMESTAMP":
        row["v"] = _micros(row["v"])
    assert row == {"k": "", "n": 1, "v": value}


def _micros(moment: datetime) -> int:
    passed = moment - datetime(1970, 1, 1)
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


# A log of 30 records ----------------------------------------------------------------------------------------------

ORDERS = Stream(
    topic="t-orders",
    columns={
        "id": "STRING",
        "who": "STRING",
        "sent": "TIMESTAMP",
        "kind": "STRING",
        "shop": "STRING",
        "amount": "DECIMAL(6,2)",
        "qty": "INT",
        "tags": "ARRAY<STRING>",
    },
    key="who",
    time="sent",
    unique=("id",),
    rules={"kind_known": "kind IN ('buy', 'sell')", "amount_positive": "amount IS NULL OR amount > 0"},
    duplicate_window=3,
)
CLICKS = Stream(
    topic="t.clicks",
    columns={"id": "BIGINT", "who": "STRING", "kind": "STRING"},
    key="who",
    unique=("id", "who"),
    duplicate_window=3,
)
SHOPS = View(
    "shop_minutes",
    (ORDERS,),
    by=("shop",),
    every="1 minute",
    measures={
        "n": count(),
        "buys": count("kind = 'buy'"),
        "total": sum_of("amount"),
        "sold": sum_of("qty", "kind = 'sell'"),
        "least": min_of("amount"),
        "most": max_of("amount"),
        "mean": avg("amount"),
        "spread": stddev("amount"),
        "opening": first("amount"),
        "closing": last("amount", "qty"),
        "people": distinct("who"),
    },
    show={"per_event": "try_divide(total, n)"},
)
KINDS = View("kinds", (ORDERS, CLICKS), by=("topic", "kind"), measures={"n": count()})
TAGS = View("tags", (ORDERS,), by=("tag",), measures={"n": count()}, explode=("tags", "tag"))
DOMAIN = Domain(
    "shop",
    (ORDERS, CLICKS),
    (SHOPS, KINDS, TAGS),
    (
        Report("per_shop", ("shop",), "SELECT shop, count(*) AS n, sum(amount) AS total FROM t_orders GROUP BY shop"),
        Report("biggest", (), "SELECT max(n) AS n, (SELECT count(*) FROM t_clicks) AS clicks FROM per_shop"),
    ),
)
BROKEN_BYTES = b'{"id": "\xff"}'

LOG: dict[tuple[str, str, str], list[tuple[int, str, str | bytes | None]]] = {
    # offset, Kafka's time on 2026-03-01, value
    ("t-orders", "A", "0"): [
        (
            5,
            "10:00:11",
            '{"id":"a","who":"u1","sent":"2026-03-01T10:00:10Z","kind":"buy","shop":"S","amount":10.00,"qty":1,"tags":["x","y","x"]}',
        ),
        (
            6,
            "10:00:21",
            '{"id":"b","who":"u2","sent":"2026-03-01T10:00:20Z","kind":"sell","shop":"S","amount":2.50,"qty":3,"tags":[]}',
        ),
        (
            7,
            "10:01:00",
            '{"id":"c","who":"u1","sent":"2026-03-01T10:00:59.999999Z","kind":"buy","shop":null,"amount":null}',
        ),
        # 3 = W after offset 5, then 3 after offset 6: copies
        (
            8,
            "10:01:00",
            '{"id":"a","who":"u1","sent":"2026-03-01T10:00:10Z","kind":"buy","shop":"S","amount":100.00,"qty":1}',
        ),
        (
            9,
            "10:01:00",
            '{"id":"b","who":"u2","sent":"2026-03-01T10:00:20Z","kind":"sell","shop":"S","amount":100.00,"qty":3}',
        ),
        # the same moment as offset 5, later in the log
        (
            10,
            "10:01:00",
            '{"id":"d","who":"u1","sent":"2026-03-01T10:00:10Z","kind":"buy","shop":"S","amount":4.00,"qty":2}',
        ),
        # 4 = W + 1 after offset 7: an event
        (11, "10:01:00", '{"id":"c","who":"u1","sent":"2026-03-01T10:00:30Z","kind":"buy","amount":1.00,"qty":9}'),
        # 4 after the copy at offset 8: an event
        (
            12,
            "10:01:00",
            '{"id":"a","who":"u1","sent":"2026-03-01T10:00:15Z","kind":"sell","shop":"S","amount":3.33,"tags":["y"]}',
        ),
        (13, "10:01:00", "not json"),
        # fails the first rule, so it makes no copy of offset 15
        (14, "10:01:00", '{"id":"e","who":"u1","sent":"2026-03-01T10:00:15Z","kind":"gift","shop":"S","amount":3.33}'),
        (
            15,
            "10:01:00",
            '{"id":"e","who":"u1","sent":"2026-03-01 17:01:00+0700","kind":"buy","shop":"S","amount":1e-2,"qty":1.0}',
        ),
        (16, "10:01:00", '{"id":"f","who":"u1","sent":"2026-03-01T10:00:15Z","kind":"gift","shop":"S","amount":-1}'),
        (17, "10:01:00", '{"id":"g","who":"u1","sent":"2026-03-01T10:00:15Z","kind":"buy","shop":"S","amount":0}'),
        # 5 minutes and a microsecond ahead; exactly 5 minutes ahead
        (
            18,
            "10:00:00",
            '{"id":"h","who":"u1","sent":"2026-03-01T10:05:00.000001Z","kind":"buy","shop":"S","amount":1}',
        ),
        (
            19,
            "10:00:00",
            '{"id":"i","who":"u1","sent":"2026-03-01T10:05:00Z","kind":"sell","shop":"T","amount":9999.99,"qty":2147483647}',
        ),
        # three days late
        (
            20,
            "10:01:00",
            '{"id":"j","who":"u1","sent":"2026-02-26T10:00:00","kind":"buy","shop":"S","amount":7,"qty":1}',
        ),
        # NULL is not TRUE
        (21, "10:01:00", '{"id":"k","who":"u1","sent":"2026-03-01T10:00:15Z","shop":"S","amount":3.33}'),
        (22, "10:01:00", '{"id":"l","id":"l","who":"u1","sent":"2026-03-01T10:00:15Z","kind":"buy"}'),
        (23, "10:01:00", None),
        (24, "10:01:00", BROKEN_BYTES),
    ],
    # the same key in another partition, and in another log, one offset away
    ("t-orders", "A", "1"): [
        (
            6,
            "10:01:00",
            '{"id":"a","who":"u3","sent":"2026-03-01T10:00:10Z","kind":"buy","shop":"S","amount":5.00,"qty":8}',
        ),
    ],
    ("t-orders", "B", "0"): [
        (
            4,
            "10:01:00",
            '{"id":"a","who":"u3","sent":"2026-03-01T10:00:10Z","kind":"sell","shop":"S","amount":6.00,"qty":4}',
        ),
    ],
    # the last moment twice: partition 10 comes after partition 2
    ("t-orders", "A", "2"): [
        (
            0,
            "10:01:00",
            '{"id":"y","who":"u4","sent":"2026-03-01T10:00:59Z","kind":"buy","shop":"S","amount":1.00,"qty":1}',
        ),
    ],
    ("t-orders", "A", "10"): [
        (0, "10:01:00", '{"id":"z","who":"u4","sent":"2026-03-01T10:00:59Z","kind":"buy","shop":"S","qty":6}'),
    ],
    ("t.clicks", "C", "0"): [
        (0, "10:00:00", '{"id":1,"who":"u1","kind":"view"}'),
        (1, "10:00:00", '{"id":1.0,"who":"u2","kind":"view"}'),
        (2, "10:00:00", '{"id":10e-1,"who":"u1","kind":"buy"}'),
        (3, "10:00:00", '{"id":"1","who":"u1","kind":"view"}'),
        (4, "10:00:00", '{"id":2,"who":"u1"}'),
        (5, "10:00:00", '{"id":3,"who":"","kind":null}'),
    ],
}
EVERYTHING = {"t-orders": {"A": {"0": 25, "1": 7, "2": 1, "10": 1}, "B": {"0": 5}}, "t.clicks": {"C": {"0": 6}}}


def _raw(rows: list[tuple[int, str, str | bytes | None]]) -> pa.Table:
    times = [datetime.fromisoformat(f"2026-03-01T{time}").replace(tzinfo=UTC) for _, time, _ in rows]
    return pa.table(
        {
            "offset": pa.array([offset for offset, _, _ in rows], pa.int64()),
            "timestamp": pa.array(times, pa.timestamp("us", "UTC")),
            "value": pa.array([value if isinstance(value, str) else None for _, _, value in rows], pa.string()),
            "value_bytes": pa.array([value if isinstance(value, bytes) else None for _, _, value in rows], pa.binary()),
        }
    )


@pytest.fixture(scope="module")
def shop() -> Iterator[duckdb.DuckDBPyConnection]:
    con = open_database()
    # pieces of one partition, as segments and Kafka give them
    chunks = [(place, _raw(rows[start : start + 4])) for place, rows in LOG.items() for start in range(0, len(rows), 4)]
    assert load(con, DOMAIN, chunks, 30, keep=True) == 30
    yield con
    con.close()


def _rows(con: duckdb.DuckDBPyConnection, view: View, *params: tuple[str, str], **as_of: Any) -> list[dict[str, Any]]:
    where = {"coverage": EVERYTHING, "horizon": {}, **as_of}
    return view_rows(con, DOMAIN, view, question_of(view, params), where)


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _by(rows: list[dict[str, Any]], *names: str) -> dict[Any, dict[str, Any]]:
    found = {tuple(row.pop(name) for name in names): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_every_row_of_the_log_has_the_problem_that_was_judged_by_hand(shop: duckdb.DuckDBPyConnection) -> None:
    assert problem_counts(shop, DOMAIN, {}, EVERYTHING) == {
        ("t-orders", "A", "0"): {
            "good": 9,
            "malformed": 4,
            "kind_known": 3,
            "amount_positive": 1,
            "from_the_future": 1,
            "duplicate": 2,
        },
        ("t-orders", "A", "1"): {"good": 1},
        ("t-orders", "A", "2"): {"good": 1},
        ("t-orders", "A", "10"): {"good": 1},
        ("t-orders", "B", "0"): {"good": 1},
        ("t.clicks", "C", "0"): {"good": 4, "malformed": 1, "duplicate": 1},
    }
    judged = shop.execute(
        f"SELECT \"offset\", problem FROM {judged_rows.table_of(DOMAIN, 't-orders')} WHERE log = 'A' AND partition = '0'"
    )
    assert {offset: problem for offset, problem in judged.fetchall() if problem} == {
        **dict.fromkeys((8, 9), "duplicate"),
        **dict.fromkeys((13, 22, 23, 24), "malformed"),
        **dict.fromkeys((14, 16, 21), "kind_known"),
        17: "amount_positive",
        18: "from_the_future",
    }


def test_a_windowed_view_is_what_was_counted_by_hand(shop: duckdb.DuckDBPyConnection) -> None:
    rows = _by(_rows(shop, SHOPS), "shop", "window_start", "window_end")
    d = Decimal
    opened = rows.pop(("S", _at("2026-03-01T10:00"), _at("2026-03-01T10:01")))
    assert opened.pop("mean") == pytest.approx(31.83 / 7, rel=1e-12)
    assert opened.pop("per_event") == pytest.approx(3.97875, rel=1e-12)
    assert opened.pop("spread") == pytest.approx(2.9041161, abs=1e-7)
    assert opened == {
        "n": 8,
        "buys": 5,
        "total": d("31.83"),
        "sold": 7,
        "least": d("1.00"),
        "most": d("10.00"),
        "opening": d("10.00"),
        "closing": {"amount": None, "qty": 6},
        "people": 4,
    }
    one: dict[str, Any] = {"n": 1, "spread": None, "people": 1}

    def single(amount: str, qty: int, **more: Any) -> dict[str, Any]:
        value = d(amount)
        same = dict.fromkeys(("total", "least", "most", "opening"), value)
        shown = dict.fromkeys(("mean", "per_event"), float(value))
        return {**one, **same, **shown, "closing": {"amount": value, "qty": qty}, "buys": 1, "sold": None, **more}

    assert rows == {
        (None, _at("2026-03-01T10:00"), _at("2026-03-01T10:01")): single("1.00", 9, n=2, buys=2, per_event=0.5),
        ("S", _at("2026-03-01T10:01"), _at("2026-03-01T10:02")): single("0.01", 1),
        ("T", _at("2026-03-01T10:05"), _at("2026-03-01T10:06")): single("9999.99", 2147483647, buys=0, sold=2147483647),
        ("S", _at("2026-02-26T10:00"), _at("2026-02-26T10:01")): single("7.00", 1),
    }


def test_a_view_of_two_topics_keeps_null_as_a_value(shop: duckdb.DuckDBPyConnection) -> None:
    assert _by(_rows(shop, KINDS), "topic", "kind") == {
        ("t-orders", "buy"): {"n": 9},
        ("t-orders", "sell"): {"n": 4},
        ("t.clicks", "view"): {"n": 2},
        ("t.clicks", None): {"n": 2},
    }


def test_each_different_value_of_an_exploded_array_gets_the_row(shop: duckdb.DuckDBPyConnection) -> None:
    assert _by(_rows(shop, TAGS), "tag") == {("x",): {"n": 1}, ("y",): {"n": 2}, ("(unknown)",): {"n": 11}}
    assert _rows(shop, TAGS, ("by", ""), ("tag", "y")) == [{"n": 2}]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            [("by", "")],
            {("2026-03-01T10:00",): 10, ("2026-03-01T10:01",): 1, ("2026-03-01T10:05",): 1, ("2026-02-26T10:00",): 1},
        ),
        (
            [("by", ""), ("every", "5m")],
            {("2026-03-01T10:00",): 11, ("2026-03-01T10:05",): 1, ("2026-02-26T10:00",): 1},
        ),
        ([("by", ""), ("every", "1d")], {("2026-03-01T00:00",): 12, ("2026-02-26T00:00",): 1}),
        ([("by", ""), ("every", "all")], {(): 13}),
        ([("by", ""), ("every", "all"), ("shop", "S")], {(): 10}),
        ([("by", ""), ("every", "all"), ("shop", "S"), ("shop", "T")], {(): 11}),
        ([("by", ""), ("every", "all"), ("shop.null", "true")], {(): 2}),
        ([("by", ""), ("every", "all"), ("shop", "T"), ("shop.null", "true")], {(): 3}),
        ([("by", ""), ("every", "all"), ("shop", "none such")], {}),
        ([("by", ""), ("every", "all"), ("from", "2026-03-01T10:00:00Z"), ("to", "2026-03-01T10:05:00Z")], {(): 11}),
        ([("by", ""), ("every", "all"), ("from", "2026-03-01T17:01:00+07:00")], {(): 2}),
    ],
)
def test_filters_and_coarser_groups_are_honoured(
    shop: duckdb.DuckDBPyConnection, params: list[tuple[str, str]], expected: dict[tuple[str, ...], int]
) -> None:
    rows = _rows(shop, SHOPS, *params)
    windowed = ("every", "all") not in params
    assert {(row["window_start"].isoformat()[:16],) if windowed else (): row["n"] for row in rows} == expected


def test_only_rows_below_the_coverage_count_but_earlier_rows_still_make_them_copies(
    shop: duckdb.DuckDBPyConnection,
) -> None:
    def counted(part: str, horizon: int, coverage: int) -> int:
        params = [("by", ""), ("every", "all"), ("part", part), ("measures", "n")]
        as_of = {name: {"t-orders": {"A": {"0": end}}} for name, end in (("horizon", horizon), ("coverage", coverage))}
        return sum(row["n"] for row in _rows(shop, SHOPS, *params, **as_of))

    assert counted("merged", 5, 5) == 0
    assert counted("merged", 5, 8) == 3
    assert counted("merged", 5, 10) == 3
    assert counted("merged", 5, 11) == 4
    assert counted("batch", 11, 25) == 4
    assert counted("speed", 11, 25) == 5
    assert counted("speed", 8, 10) == 0


def test_reports_run_over_good_rows_and_earlier_reports(shop: duckdb.DuckDBPyConnection) -> None:
    assert _by(report_rows(shop, DOMAIN, DOMAIN.reports[0], EVERYTHING), "shop") == {
        ("S",): {"n": 10, "total": Decimal("38.84")},
        ("T",): {"n": 1, "total": Decimal("9999.99")},
        (None,): {"n": 2, "total": Decimal("1.00")},
    }
    assert report_rows(shop, DOMAIN, DOMAIN.reports[1], EVERYTHING) == [{"n": 10, "clicks": 4}]
    assert report_rows(shop, DOMAIN, DOMAIN.reports[1], {"t-orders": {"A": {"0": 8}}}) == [{"n": 2, "clicks": 0}]


def test_the_events_behind_a_row_are_shown_as_they_were_sent(shop: duckdb.DuckDBPyConnection) -> None:
    asked = question_of(SHOPS, [("shop", "T")])
    (event,) = matching_events(shop, DOMAIN, SHOPS, asked, {"coverage": EVERYTHING, "horizon": {}})
    assert event == {
        "topic": "t-orders",
        "log": "A",
        "partition": "0",
        "offset": 19,
        "value": LOG["t-orders", "A", "0"][14][2],
    }


def test_the_deviation_of_close_values_is_exact() -> None:
    # 100000.000, 100000.001, 100000.002 in thousandths: a textbook formula on doubles is 71 % off here
    units = [100_000_000, 100_000_001, 100_000_002]
    assert deviation(3, sum(units), sum(u * u for u in units), 3) == 0.001
    assert deviation(1, 5, 25, 0) is None
    assert deviation(2, 10, 50, 0) == 0.0


def test_windows_before_1970_begin_at_their_floor() -> None:
    con = open_database()
    early = '{"id":"a","who":"u","sent":"1969-12-31T23:59:30Z","kind":"buy","shop":"S"}'
    load(con, DOMAIN, [(("t-orders", "A", "0"), _raw([(0, "10:00:00", early)]))], 1)
    (row,) = _rows(con, SHOPS)
    assert (row["window_start"], row["window_end"]) == (_at("1969-12-31T23:59"), _at("1970-01-01T00:00"))


def test_an_estimate_stands_beside_the_exact_count() -> None:
    # what Spark 4.2 shows for hll_sketch_agg(value, 12), after a union with itself
    assert estimate([]) == 0
    assert estimate(["", "a", "b"]) == 2
    assert estimate([f"U{n:05d}" for n in range(200)]) == 200
    assert estimate([f"U{n:05d}" for n in range(5000)]) == 4970


def test_a_second_process_reads_the_same_rows() -> None:
    rows = [(n, "10:00:00", f'{{"id": {n}, "who": "u", "kind": "view"}}') for n in range(50)]
    chunk = (("t.clicks", "C", "0"), _raw([*rows, (50, "10:00:00", "broken")]))
    con = open_database()
    assert load(con, DOMAIN, [chunk], judged_rows.SHARED_FROM_ROWS) == 51
    assert problem_counts(con, DOMAIN, {}, {"t.clicks": {"C": {"0": 51}}}) == {
        ("t.clicks", "C", "0"): {"good": 50, "malformed": 1}
    }


def test_rows_without_a_time_field_happen_when_kafka_received_them() -> None:
    typed = typed_table(CLICKS, _raw([(0, "10:00:01", '{"id": 1, "who": "u"}'), (1, "10:00:02", "broken")]))
    assert typed["event_time"].to_pylist() == [_at("2026-03-01T10:00:01"), _at("2026-03-01T10:00:02")]
    assert typed["problem"].to_pylist() == [None, "malformed"]
