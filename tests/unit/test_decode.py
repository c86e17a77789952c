"""Each line of docs/decode.md, for the layers' decoder."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain import Stream
from engine.fold.decode import decode_rows

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STREAM = Stream(
    topic="t",
    columns={
        "id": "STRING",
        "moment": "TIMESTAMP",
        "n": "BIGINT",
        "i": "INT",
        "d": "DECIMAL(5,2)",
        "f": "DOUBLE",
        "b": "BOOLEAN",
        "tags": "ARRAY<STRING>",
    },
    key="id",
    time="moment",
    unique=("id",),
)
GOOD = {"id": "x", "moment": "2026-01-02T03:04:05Z"}


def raw(values: list[str | bytes | None]) -> pa.Table:
    texts = [value if isinstance(value, str) else None for value in values]
    blobs = [value if isinstance(value, bytes) else None for value in values]
    return pa.table(
        {
            "offset": pa.array(range(len(values)), pa.int64()),
            "timestamp": pa.array([NOW] * len(values), pa.timestamp("us", tz="UTC")),
            "value": pa.array(texts, pa.string()),
            "value_bytes": pa.array(blobs, pa.binary()),
        }
    )


def decoded(value: str | bytes | None) -> dict[str, Any]:
    return dict(decode_rows(STREAM, raw([value])).to_pylist()[0])


def event(text: str) -> str:
    """A good event with further JSON text inside the object."""
    return json.dumps(GOOD)[:-1] + (f", {text}" if text else "") + "}"


@pytest.mark.parametrize("value", [event(""), f" \t\r\n{event('')}\n ", json.dumps(GOOD, separators=(",", ":"))])
def test_white_space_around_the_object_is_good(value: str) -> None:
    assert decoded(value)["problem"] is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        b"\xff\xfe{}",
        "\ufeff" + event(""),
        event("") + " x",
        event("") + event(""),
        event("") + "]",
        "[]",
        "1",
        '"text"',
        "null",
        "[" + event("") + "]",
        event('"n": 1,'),
        event('"n": 1 /* c */'),
        event("'n': 1"),
        event('"z": NaN'),
        event('"z": Infinity'),
        event('"z": -Infinity'),
        event('"z": 01'),
        event('"z": "a\nb"'),
        event('"n": 1, "n": 2'),
        event('"z": {"a": 1, "a": 1}'),
        event('"z": 1, "\\u007a": 2'),
        event('"z": "\\ud800"'),
        event('"\\udc00": 1'),
        event('"z": ' + "[" * 64 + "]" * 64),
        event('"z": 1e1234567'),
        event('"z": ' + "1" * 1001),
        event('"z": "' + "[" * 10)[:-1],
        '{"id": "x"}',
        '{"moment": "2026-01-02T03:04:05Z"}',
        json.dumps({**GOOD, "id": None}),
        json.dumps({**GOOD, "moment": None}),
        json.dumps({**GOOD, "ID": "y", "id": 5}),
    ],
)
def test_what_is_not_one_object_of_the_schema_is_malformed(value: str | bytes | None) -> None:
    row = decoded(value)
    assert row["problem"] == "malformed"
    assert [name for name in STREAM.columns if row[name] is not None] == []
    assert row["event_time"] is None and row["ukey"] is None


@pytest.mark.parametrize(
    "text",
    [
        '"z": ' + "[" * 63 + "]" * 63,
        '"z": 1e123456',
        '"z": ' + "1" * 1000,
        '"z": "' + "[" * 100 + '"',
        '"z": "\\ud83d\\ude00"',
        '"z": {"a": 1, "b": {"a": 1}}',
        '"N": 1, "Id": 2',
        '"n": null, "tags": null',
    ],
)
def test_what_the_schema_does_not_know_is_ignored(text: str) -> None:
    assert decoded(event(text))["problem"] is None


@pytest.mark.parametrize(
    ("name", "literal", "value"),
    [
        ("id", '"\\u0000 \\u00e9"', "\0 é"),
        ("id", '""', ""),
        ("n", "3", 3),
        ("n", "3.0", 3),
        ("n", "30e-1", 3),
        ("n", "-0", 0),
        ("n", "1e2", 100),
        ("n", "9223372036854775807", 2**63 - 1),
        ("n", "-9223372036854775808", -(2**63)),
        ("i", "2147483647", 2**31 - 1),
        ("d", "10.5", Decimal("10.50")),
        ("d", "10.500", Decimal("10.50")),
        ("d", "1.05e1", Decimal("10.50")),
        ("d", "999.99", Decimal("999.99")),
        ("d", "-999.99", Decimal("-999.99")),
        ("d", "0e99", Decimal("0.00")),
        ("f", "0.1", 0.1),
        ("f", "1", 1.0),
        ("b", "true", True),
        ("tags", "[]", []),
        ("tags", '["a", ""]', ["a", ""]),
    ],
)
def test_a_value_of_the_type_is_read_exactly(name: str, literal: str, value: Any) -> None:
    plain = {key: json.dumps(text) for key, text in GOOD.items()} | {name: literal}
    spaced = "{" + ", ".join(f'"{key}": {text}' for key, text in plain.items()) + "}"
    for text in (spaced, spaced.replace(": ", ":").replace(", ", ",")):
        row = decoded(text)
        assert (row["problem"], row[name]) == (None, value)


@pytest.mark.parametrize(
    ("name", "literal"),
    [
        ("id", "5"),
        ("id", "true"),
        ("id", "{}"),
        ("n", "3.7"),
        ("n", '"3"'),
        ("n", "9223372036854775808"),
        ("n", "1e30"),
        ("n", "true"),
        ("i", "2147483648"),
        ("d", "10.005"),
        ("d", "10.0000000000000000000000001"),
        ("d", "1000"),
        ("d", "999.995"),
        ("d", '"10"'),
        ("d", "1e400"),
        ("f", "1e400"),
        ("f", '"1"'),
        ("b", "0"),
        ("b", '"true"'),
        ("tags", "[null]"),
        ("tags", '["a", 1]'),
        ("tags", '"a"'),
    ],
)
def test_a_value_of_another_type_is_malformed(name: str, literal: str) -> None:
    plain = {key: json.dumps(text) for key, text in GOOD.items()} | {name: literal}
    compact = "{" + ",".join(f'"{key}":{text}' for key, text in plain.items()) + "}"
    assert decoded(compact)["problem"] == "malformed"


@pytest.mark.parametrize(
    ("literal", "iso"),
    [
        ('"2026-01-02T03:04:05Z"', "2026-01-02T03:04:05+00:00"),
        ('"2026-01-02t03:04:05z"', "2026-01-02T03:04:05+00:00"),
        ('"2026-01-02 03:04:05"', "2026-01-02T03:04:05+00:00"),
        ('"2026-01-02T03:04:05+07:00"', "2026-01-01T20:04:05+00:00"),
        ('"2026-01-02T03:04:05+0700"', "2026-01-01T20:04:05+00:00"),
        ('"2026-01-02T03:04:05-23:59"', "2026-01-03T03:03:05+00:00"),
        ('"2026-01-02T03:04:05.1Z"', "2026-01-02T03:04:05.100000+00:00"),
        ('"2026-01-02T03:04:05.123456789Z"', "2026-01-02T03:04:05.123456+00:00"),
        ('"0001-01-01T00:00:00Z"', "0001-01-01T00:00:00+00:00"),
        ('"9999-12-31T23:59:59.999999Z"', "9999-12-31T23:59:59.999999+00:00"),
        ('"2024-02-29T00:00:00Z"', "2024-02-29T00:00:00+00:00"),
        ("1767323045123", "2026-01-02T03:04:05.123000+00:00"),
        ("-1", "1969-12-31T23:59:59.999000+00:00"),
        ("1.7e12", "2023-11-14T22:13:20+00:00"),
    ],
)
def test_times_are_read_in_every_accepted_form(literal: str, iso: str) -> None:
    row = decoded('{"id":"x","moment":' + literal + "}")
    assert row["problem"] is None
    assert row["event_time"].isoformat() == iso


@pytest.mark.parametrize(
    "literal",
    [
        '"2026-01-02"',
        '"2026-01-02T03:04Z"',
        '"2026-01-02T03:04:60Z"',
        '"2026-01-02T24:00:00Z"',
        '"2026-04-31T00:00:00Z"',
        '"2026-02-29T00:00:00Z"',
        '"0000-01-01T00:00:00Z"',
        '"2026-01-02T03:04:05+24:00"',
        '"2026-01-02T03:04:05+07:60"',
        '"2026-01-02T03:04:05,5Z"',
        '"2026-01-02T03:04:05.Z"',
        '"2026-01-02T03:04:05.1234567890Z"',
        '"2026-01-02  03:04:05Z"',
        '"0001-01-01T00:00:00+00:01"',
        '"9999-12-31T23:59:59-00:01"',
        '"٢٠٢٦-01-02T03:04:05Z"',
        '""',
        "1.5",
        "253402300800000",
        "true",
    ],
)
def test_other_times_are_malformed(literal: str) -> None:
    assert decoded('{"id":"x","moment":' + literal + "}")["problem"] == "malformed"


def test_a_row_is_judged_alike_alone_and_among_others() -> None:
    values: list[str | bytes | None] = [
        event(""),
        None,
        event('"n": 3.5'),
        event('"d": 1.005'),
        '{"id":"y","moment":7,"n":2}',
    ]
    together = decode_rows(STREAM, raw(values)).drop_columns(["offset"]).to_pylist()
    assert together == [{k: v for k, v in decoded(value).items() if k != "offset"} for value in values]


def test_the_checksum_is_of_the_bytes_as_they_came() -> None:
    import zlib

    table = decode_rows(STREAM, raw([event(""), b"\xff", None]))
    assert table["crc"].to_pylist() == [zlib.crc32(event("").encode()), zlib.crc32(b"\xff"), 0]


@given(st.binary(max_size=60) | st.text(max_size=60) | st.none())
def test_no_bytes_ever_raise(value: str | bytes | None) -> None:
    assert decoded(value)["problem"] in (None, "malformed")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["n", "i", "d", "f", "b", "tags", "z"]), JSON, max_size=5))
def test_spacing_and_escaping_make_no_difference(fields: dict[str, Any]) -> None:
    whole = {**GOOD, **fields}
    try:
        texts = [json.dumps(whole, separators=(",", ":"), ensure_ascii=False), json.dumps(whole, indent=1)]
        rows = [decoded(text) for text in texts]
    except UnicodeEncodeError:
        return  # half a surrogate pair cannot be sent as UTF-8
    for name in ("crc", "value"):
        rows = [{k: v for k, v in row.items() if k != name} for row in rows]
    assert repr(rows[0]) == repr(rows[1])
