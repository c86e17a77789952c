"""What may a declaration write? Names, SQL types, constants and expressions, and the error that refuses the rest.

Shared by streams, views and reports, each of which checks itself with it when it is built.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import Any

from engine.domain.operators import ExpressionError, decimal_of

# Names the typed log gives to the log position and to its own columns; no event field may carry one of them.
RESERVED = frozenset(
    {
        "topic",
        "log",
        "partition",
        "offset",
        "kafka_time",
        "event_time",
        "problem",
        "ukey",
        "crc",
        "unknown",
        "value",
        "value_bytes",
    }
    | {"window_start", "window_end"}
)
# Words that DuckDB's grammar keeps for itself (Spark keeps none of them outside of ANSI's reserved mode): expressions
# name fields without quotes, because the two engines quote differently.
SQL_WORDS = frozenset(
    (
        "all analyse analyze and anti any array as asc asof asymmetric at authorization binary both by case cast "
        "check collate collation column columns concurrently constraint create cross default deferrable desc "
        "describe distinct do else end except false fetch for foreign freeze from full generated glob group having "
        "ilike in initially inner intersect into is isnull join lambda lateral leading left like limit map natural "
        "not notnull null offset on only or order outer overlaps pivot pivot_longer pivot_wider placing positional "
        "primary qualify references returning right select semi show similar some struct summarize symmetric table "
        "tablesample then to trailing true try_cast tuple union unique unpack unpivot using variadic verbose when "
        "where window with"
    ).split()
)
SCALARS = ("STRING", "BIGINT", "INT", "DOUBLE", "BOOLEAN", "TIMESTAMP", "ARRAY<STRING>")
# What an expression over events may use besides the fields.
TIMES = (("event_time", "TIMESTAMP"), ("kafka_time", "TIMESTAMP"))

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_CONSTANT = re.compile(r"\{([a-z][a-z0-9_]*)\}")


class DeclarationError(ValueError):
    """A domain file says something that cannot work; the message names the place, the value and the way out."""


def check_columns(place: str, columns: Mapping[str, str]) -> None:
    """Raise DeclarationError for a field whose name or type cannot be a column; `place` begins the message."""
    for name, sql_type in columns.items():
        if name.lower() in SQL_WORDS:
            raise DeclarationError(f"{place} column '{name}': a word of SQL; rename the field")
        if not _FIELD.fullmatch(name) or name.lower() in RESERVED:
            raise DeclarationError(f"{place} column '{name}': reserved or not a plain identifier; rename the field")
        _check_type(f"{place} column '{name}'", sql_type)
    if len({name.lower() for name in columns}) != len(columns):
        raise DeclarationError(f"{place}: two columns differ only in upper and lower case")


def _check_type(place: str, sql_type: str) -> None:
    decimal = decimal_of(sql_type)
    if decimal is None and sql_type not in SCALARS:
        raise DeclarationError(f"{place}: type {sql_type} is none of {', '.join(SCALARS)}, DECIMAL(p,s)")
    if decimal and not 0 <= decimal[1] <= decimal[0] <= 28:
        raise DeclarationError(f"{place}: {sql_type} needs 0 <= scale <= precision <= 28, else its sum overflows")


@contextmanager
def expression_at(place: str) -> Iterator[None]:
    """Name the place of an expression that cannot be said."""
    try:
        yield
    except ExpressionError as error:
        raise DeclarationError(f"{place}: {error}") from None


def check_constants(place: str, constants: Mapping[str, str], expressions: Mapping[str, str]) -> None:
    """Raise DeclarationError for a constant that is no number, and for one that an expression uses and nobody gives."""
    for name, text in constants.items():
        if not is_number(text):
            raise DeclarationError(f"{place}: constant {name.upper()}={text!r}: allowed is a decimal number")
    for name, sql in expressions.items():
        unknown = [word for word in _CONSTANT.findall(sql) if word not in constants]
        if unknown:
            raise DeclarationError(f"{place} '{name}': {{{unknown[0]}}} is none of its constants")


def with_constants(sql: str, constants: Mapping[str, str]) -> str:
    """Return the SQL with its constants written in, as doubles."""
    return _CONSTANT.sub(lambda match: f"CAST({constants[match[1]]} AS DOUBLE)", sql)


def is_number(text: str) -> bool:
    """True for the text of a finite decimal."""
    try:
        return Decimal(text).is_finite()
    except InvalidOperation:
        return False


def hash_of(value: Any) -> str:
    """Return 16 hex digits of a declaration as JSON; what is stored carries them."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
