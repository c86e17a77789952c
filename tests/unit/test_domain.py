"""A wrong declaration fails when it is built, with a message that names the place, the value and the way out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from engine.domain import (
    DeclarationError,
    Domain,
    Measure,
    Report,
    Stream,
    View,
    avg,
    count,
    decimal_of,
    distinct,
    first,
    last,
    max_of,
    stddev,
    sum_of,
)

COLUMNS = {
    "id": "STRING",
    "ts": "TIMESTAMP",
    "n": "BIGINT",
    "price": "DECIMAL(18,6)",
    "x": "DOUBLE",
    "tags": "ARRAY<STRING>",
}


def a_stream(**change: Any) -> Stream:
    return Stream(**{"topic": "ticks", "columns": COLUMNS, "key": "id", "unique": ("id",), "time": "ts", **change})


def a_view(**change: Any) -> View:
    return View(
        **{"name": "per_id", "streams": (a_stream(),), "by": ("id",), "measures": {"events": count()}, **change}
    )


def a_domain(**change: Any) -> Domain:
    return Domain(**{"name": "market", "streams": (a_stream(),), "views": (a_view(),), **change})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: a_view(measures={"m": sum_of("x")}), "measure 'm': sum of DOUBLE is not exact; use BIGINT or DECIMAL"),
        (lambda: a_view(measures={"m": avg("x")}), "avg of DOUBLE is not exact"),
        (
            lambda: a_view(measures={"m": distinct("x")}),
            "distinct of DOUBLE: Spark and DuckDB write its values different",
        ),
        (lambda: a_view(measures={"m": sum_of("id")}), "sum of STRING is not exact"),
        (
            lambda: a_view(measures={"m": Measure("median", ("n",))}),
            "'median' does not merge; use .*or move it to a report",
        ),
        (
            lambda: a_view(measures={"m": stddev("price")}),
            r"stddev needs a column of precision <= 14, not DECIMAL\(18,6\)",
        ),
        (lambda: a_view(measures={"m": stddev("n")}), "stddev needs a column of precision <= 14"),
        (lambda: a_view(measures={"m": Measure("count", ("n",))}), "count takes no column"),
        (lambda: a_view(measures={"m": Measure("sum", ("n", "price"))}), "sum takes one column"),
        (lambda: a_view(measures={"m": first()}), "first takes at least one column"),
        (
            lambda: a_view(measures={"m": distinct("nowhere")}),
            "no column 'nowhere' in ticks; known are id, ts, .*, topic$",
        ),
        (lambda: a_view(measures={"a__b": count()}), "'a__b': a lower-case identifier without '__', no SQL word"),
        (lambda: a_view(measures={"id": count()}), "a name occurs twice"),
        (lambda: a_view(measures={"window_start": count()}, every="1 day"), "a name occurs twice"),
        (lambda: a_view(measures={}), "needs a lower-case name, a stream and a measure"),
        (lambda: a_view(every="7 minutes"), "every '7 minutes' is none of 1 minute"),
        (lambda: a_view(by=("nowhere",)), "no column 'nowhere' in ticks; known are id, ts"),
        (lambda: a_view(explode=("nowhere", "id")), "no column 'nowhere' in ticks; known are id, ts"),
        (lambda: a_view(explode=("id", "id")), "must be an ARRAY<STRING> column and one of its dimensions"),
        (lambda: a_view(explode=("tags", "tag")), "must be an ARRAY<STRING> column and one of its dimensions"),
        (lambda: a_stream(topic="a b"), "stream 'a b': a topic name is"),
        (lambda: a_stream(columns={**COLUMNS, "kafka_time": "BIGINT"}), "column 'kafka_time': reserved"),
        (lambda: a_stream(columns={**COLUMNS, "Event_Time": "STRING"}), "column 'Event_Time': reserved"),
        (lambda: a_stream(columns={**COLUMNS, "a-b": "STRING"}), "column 'a-b': reserved or not a plain identifier"),
        (lambda: a_stream(columns={**COLUMNS, "ID": "STRING"}), "two columns differ only in upper and lower case"),
        (lambda: a_stream(columns={**COLUMNS, "f": "FLOAT"}), "type FLOAT is none of STRING"),
        (lambda: a_stream(columns={**COLUMNS, "d": "DECIMAL(29,2)"}), "needs 0 <= scale <= precision <= 28"),
        (lambda: a_stream(columns={**COLUMNS, "d": "DECIMAL(3,4)"}), "needs 0 <= scale <= precision <= 28"),
        (lambda: a_stream(columns={**COLUMNS, "select": "STRING"}), "column 'select': a word of SQL; rename the field"),
        (lambda: a_stream(time="n"), "event time 'n' must be TIMESTAMP, not BIGINT"),
        (lambda: a_stream(key="nowhere"), "'nowhere' is not one of its columns: id, ts"),
        (lambda: a_stream(unique=()), "must not be empty"),
        (lambda: a_stream(duplicate_window=0), "must not be empty or below 1"),
        (lambda: a_stream(weight=0), "weight 0 is not above 0"),
        (lambda: a_stream(rules={"malformed": "true"}), "rule 'malformed': reserved"),
        (lambda: a_stream(rules={"from_the_future": "true"}), "rule 'from_the_future': reserved"),
        (lambda: a_stream(rules={"Price > 0": "true"}), "rule 'Price > 0': reserved or not a lower-case identifier"),
        (lambda: a_stream(rules={"r": "try_cast(id AS INT) > 0"}), "rule 'r': 'id' is a text, and Spark and DuckDB"),
        (lambda: a_stream(rules={"r": "n > 0 AND Cast( ID as DECIMAL(3,1)) > 0"}), "'id' is a text, .* read DECIMAL"),
        (lambda: a_stream(rules={"r": "id::INT > 0"}), "'id' is a text, .* read INT from text"),
        (lambda: a_view(measures={"m": count("try_cast(id AS DATE) IS NULL")}), "measure 'm': 'id' is a text"),
        (lambda: a_domain(name="Stocks"), "domain 'Stocks': a lower-case identifier is wanted"),
        (lambda: a_domain(streams=(a_stream(), a_stream(partitions=1))), "a topic occurs twice among ticks, ticks"),
        (
            lambda: a_domain(streams=(a_stream(), a_stream(topic="new-ticks"))),
            "SQL would know two things as 'new_ticks'",
        ),
        (
            lambda: a_domain(streams=(a_stream(), a_stream(topic="stored_per_id"))),
            "SQL would know two things as 'stored_per_id'",
        ),
        (lambda: a_domain(streams=(a_stream(), a_stream(topic="Report"))), "SQL would know two things as 'report'"),
        (lambda: a_domain(reports=(Report("per_id", (), "SELECT 1"),)), "a view or report occurs twice"),
        (
            lambda: a_domain(streams=(a_stream(topic="other"),)),
            "view 'per_id': topic 'ticks' is not one of its streams",
        ),
        (lambda: Report("Top 10", (), "SELECT 1"), "report 'Top 10': a lower-case identifier is wanted"),
    ],
)
def test_a_wrong_declaration_is_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rule",
    ["cast(n AS DOUBLE) > 0", "id = 'try_cast(id AS INT)'", "cast(id AS STRING) = id", "cast(length(id) AS INT) > 0"],
)
def test_a_cast_of_something_else_than_a_text_is_fine(rule: str) -> None:
    assert a_stream(rules={"r": rule}).rules == {"r": rule}


def test_a_column_of_several_streams_must_have_one_type() -> None:
    other = a_stream(topic="other", columns={**COLUMNS, "n": "INT"})
    assert a_view(streams=(a_stream(), other)).by == ("id",)
    with pytest.raises(DeclarationError, match="column 'n' is BIGINT in ticks, INT in other; one type is wanted"):
        a_view(streams=(a_stream(), other), measures={"m": max_of("n")})


def test_a_column_that_one_of_several_streams_lacks_is_named_with_those_that_all_have() -> None:
    other = a_stream(topic="other", columns={name: COLUMNS[name] for name in ("id", "ts")})
    with pytest.raises(DeclarationError, match=r"^view 'per_id': no column 'n' in other; known are id, ts, topic$"):
        a_view(streams=(a_stream(), other), measures={"m": max_of("n")})


def test_needed_fields_are_key_time_unique_and_required_in_the_order_of_the_columns() -> None:
    assert a_stream(unique=("price", "id"), required=("n",)).needed == ("id", "ts", "n", "price")


def test_problems_stand_in_the_order_in_which_they_are_judged() -> None:
    stream = a_stream(rules={"b": "n > 0", "a": "price > 0"})
    assert stream.problems == ("malformed", "b", "a", "from_the_future", "duplicate")


@pytest.mark.parametrize(
    "change",
    [
        {"columns": {**COLUMNS, "n": "INT"}},
        {"columns": dict(reversed(COLUMNS.items()))},
        {"rules": {"positive": "n > 0"}},
        {"unique": ("id", "ts")},
        {"required": ("n",)},
        {"duplicate_window": 5},
        {"time": None},
    ],
)
def test_what_changes_the_typed_rows_changes_the_hash(change: dict[str, Any]) -> None:
    assert a_stream(**change).schema_hash != a_stream().schema_hash
    changed = a_view(streams=(a_stream(**change),))
    assert changed.definition_hash != a_view().definition_hash


def test_what_changes_no_typed_row_keeps_the_hash() -> None:
    other = a_stream(partitions=7, weight=5, generator=lambda rng, options: dict)
    assert other.schema_hash == a_stream().schema_hash


def test_a_view_s_hash_follows_its_measures_and_shown_columns() -> None:
    hashes = {
        a_view().definition_hash,
        a_view(measures={"events": count("n > 0")}).definition_hash,
        a_view(measures={"events": last("n")}).definition_hash,
        a_view(show={"double": "2 * events"}).definition_hash,
        a_view(every="1 day").definition_hash,
    }
    assert len(hashes) == 5


def test_declarations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        a_stream().topic = "other"  # type: ignore[misc]


def test_decimal_of_reads_precision_and_scale() -> None:
    assert (decimal_of("DECIMAL(5,2)"), decimal_of("DECIMAL(5, 2)"), decimal_of("BIGINT")) == ((5, 2), (5, 2), None)
