"""What does an operator or a function of an expression say in each engine? All of it is total: an error is NULL.

Each is written with the types of what it works on. Where the engines would differ, or one of them would raise, the text
says what both do. `a / b` is a DOUBLE, and NULL where b is 0:

    Spark   try_divide(CAST(`a` AS DOUBLE), CAST(`b` AS DOUBLE))
    DuckDB  (CAST("a" AS DOUBLE) / nullif(CAST("b" AS DOUBLE), CAST(0 AS DOUBLE)))

Integers that overflow are NULL. Decimals never do: a result has as many digits as it can need, and where these may be
more than 38, or one side is a DOUBLE, it is a DOUBLE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

Engine = Literal["spark", "duckdb"]

MOST_DIGITS = 38
# Seconds of the units in which an interval is counted; months and years have no fixed length.
UNITS = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86_400, "WEEK": 604_800}
MONTHS = {"MONTH": 1, "QUARTER": 3, "YEAR": 12}

_DECIMAL = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)")
_DIGITS = {"INT": (10, 0), "BIGINT": (19, 0)}
_LONGEST_YEARS = 10_000
_TRUNCATED = ("minute", "hour", "day", "week", "month", "quarter", "year")


class ExpressionError(ValueError):
    """The expression cannot be said alike in both engines; one sentence with the way out."""


def decimal_of(sql_type: str) -> tuple[int, int] | None:
    """Return (precision, scale) of a DECIMAL type, else None."""
    found = _DECIMAL.fullmatch(sql_type)
    return (int(found[1]), int(found[2])) if found else None


@dataclass(frozen=True)
class Said:
    """A part of an expression in both engines.

    Args:
        kind: SQL type, or NULL, INTERVAL, MONTHS.
        digits: (precision, scale) of an exact number; of a literal those that it has.
        text: of a string literal.
    """

    kind: str
    spark: str
    duckdb: str
    digits: tuple[int, int] | None = None
    text: str | None = None

    def in_engine(self, engine: Engine) -> str:
        return self.spark if engine == "spark" else self.duckdb


def combined(kind: str, template: str | tuple[str, str], *parts: Said) -> Said:
    """Fill a template, or one for Spark and one for DuckDB, with parts."""
    spark, duckdb = (template, template) if isinstance(template, str) else template
    in_spark, in_duckdb = (part.spark for part in parts), (part.duckdb for part in parts)
    return Said(kind, spark.format(*in_spark), duckdb.format(*in_duckdb), digits_of(kind))


def places(number: int, first: int = 0) -> str:
    return ", ".join(f"{{{place}}}" for place in range(first, first + number))


def digits_of(kind: str) -> tuple[int, int] | None:
    return _DIGITS.get(kind) or decimal_of(kind)


# Literals -------------------------------------------------------------------------------------------------------------


def number_of(text: str) -> Said:
    if text.isdigit() and len(text) <= MOST_DIGITS:
        number = int(text)
        if number < 2**63:
            return Said("INT" if number < 2**31 else "BIGINT", str(number), str(number), (len(str(number)), 0))
    whole, _, fraction = text.partition(".")
    kind = _exact(max(1, len(whole.lstrip("0")) + len(fraction)), len(fraction))
    if "e" not in text.lower() and kind != "DOUBLE":
        return combined(kind, f"CAST('{whole or 0}.{fraction or 0}' AS {kind})")
    if float(text) == float("inf"):
        raise ExpressionError(f"{text} is larger than any DOUBLE")
    return combined("DOUBLE", f"CAST('{text}' AS DOUBLE)")


def text_of(text: str) -> Said:
    # In a text of Spark's a backslash has a meaning.
    spark = text.replace("\\", "\\\\").replace("'", "\\'")
    return Said("STRING", f"'{spark}'", "'" + text.replace("'", "''") + "'", text=text)


def moment_of(text: str) -> Said:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ExpressionError(f"'{text}' is no time; written is 2026-01-31 or 2026-01-31 07:00:00, in UTC") from None
    if moment.tzinfo:
        raise ExpressionError(f"'{text}': times in expressions are in UTC and have no zone")
    return combined("TIMESTAMP", f"TIMESTAMP '{moment.isoformat(' ')}'")


def interval_of(number: int, unit: str) -> Said:
    months, seconds = number * MONTHS.get(unit, 0), number * UNITS.get(unit, 0)
    if months > _LONGEST_YEARS * 12 or seconds > _LONGEST_YEARS * 366 * 86_400:
        raise ExpressionError(f"INTERVAL {number} {unit} is longer than {_LONGEST_YEARS} years")
    if months:
        return combined("MONTHS", f"INTERVAL '{months}' MONTH")
    return combined("INTERVAL", f"INTERVAL '{seconds}' SECOND")


# Types ----------------------------------------------------------------------------------------------------------------


def _as(kind: str, said: Said) -> Said:
    """Widen to a kind; never raises in any engine."""
    if said.kind == kind:
        return said
    return combined(kind, (f"CAST({{0}} AS {kind})", f"CAST({{0}} AS {kind.replace('STRING', 'VARCHAR')})"), said)


def _is_number(said: Said) -> bool:
    return said.kind == "DOUBLE" or said.digits is not None or said.kind == "NULL"


def of_kind(kind: str, said: Said, what: str) -> Said:
    if said.kind not in (kind, "NULL"):
        raise ExpressionError(f"{what} wants {kind}, not {said.kind}")
    return _as(kind, said)


def conditions(*parts: Said) -> list[Said]:
    return [of_kind("BOOLEAN", part, "AND, OR, NOT and WHEN") for part in parts]


def _exact(precision: int, scale: int) -> str:
    """The decimal of that many digits, or DOUBLE where no engine has so many."""
    return f"DECIMAL({precision},{scale})" if precision <= MOST_DIGITS else "DOUBLE"


def _common(parts: Sequence[Said]) -> str:
    """The kind that holds the values of all parts."""
    kinds = {part.kind for part in parts} - {"NULL"}
    if len(kinds) <= 1 and not any(decimal_of(kind) for kind in kinds):
        return kinds.pop() if kinds else "NULL"
    if "TIMESTAMP" in kinds and all(part.kind != "STRING" or part.text is not None for part in parts):
        kinds.discard("STRING")
    if kinds == {"TIMESTAMP"}:
        return "TIMESTAMP"
    if not all(_is_number(part) for part in parts):
        told = ", ".join(sorted(kinds))
        raise ExpressionError(f"{told}: values of one type are wanted; nothing is turned into another type unasked")
    if "DOUBLE" in kinds:
        return "DOUBLE"
    if kinds <= _DIGITS.keys():
        return "BIGINT"
    digits = [part.digits for part in parts if part.digits]
    scale = max(s for _, s in digits)
    return _exact(max(1, max(p - s for p, s in digits) + scale), scale)


def alike(*parts: Said) -> list[Said]:
    kind = _common(parts)
    if kind == "TIMESTAMP":
        parts = tuple(moment_of(part.text) if part.text is not None else part for part in parts)
    return [_as(kind, part) if kind != "NULL" else part for part in parts]


def compared(sign: str, left: Said, right: Said) -> Said:
    left, right = alike(left, right)
    if left.kind.startswith(("ARRAY", "STRUCT", "MONTHS")):
        raise ExpressionError(f"values of type {left.kind} are not compared")
    return combined("BOOLEAN", f"({{0}} {sign} {{1}})", left, right)


def chosen(whens: Sequence[Said], values: Sequence[Said]) -> Said:
    values = alike(*values)
    number = len(whens)
    cases = " ".join(f"WHEN {{{place}}} THEN {{{number + place}}}" for place in range(number))
    return combined(values[0].kind, f"(CASE {cases} ELSE {{{2 * number}}} END)", *whens, *values)


def cast(said: Said, kind: str) -> Said:
    """Turn into another type where both engines do it alike; what does not fit is NULL."""
    if kind == "TIMESTAMP" and said.text is not None:
        return moment_of(said.text)
    if kind == said.kind or said.kind == "NULL":
        return _as(kind, said)
    if said.kind == "STRING":
        name = said.spark.strip("`")
        raise ExpressionError(
            f"'{name}' is a text, and Spark and DuckDB read {kind.partition('(')[0]} from text differently; "
            "declare the field as what it is, or compare it as text"
        )
    if kind == "DOUBLE" and said.digits:
        return _as(kind, said)
    if kind in _DIGITS and said.digits:
        # Towards zero: DuckDB alone would round, and Spark would make an INT of the nearest double.
        template = (f"try_cast(try_cast({{0}} AS BIGINT) AS {kind})", f"TRY_CAST(trunc({{0}}) AS {kind})")
        return combined(kind, template, said)
    if kind in _DIGITS and said.kind == "DOUBLE":
        # Spark alone would take 2^63 for 2^63 - 1.
        bits = 31 if kind == "INT" else 63
        least, end = (f"CAST('{border}' AS DOUBLE)" for border in (-(2**bits), 2**bits))
        inside = f"(CASE WHEN {{0}} >= {least} AND {{0}} < {end} THEN"
        return combined(
            kind, (f"{inside} try_cast({{0}} AS {kind}) END)", f"{inside} TRY_CAST(trunc({{0}}) AS {kind}) END)"), said
        )
    if decimal_of(kind) and said.digits:
        return combined(kind, (f"try_cast({{0}} AS {kind})", f"TRY_CAST({{0}} AS {kind})"), said)
    if kind == "STRING" and (said.kind == "BOOLEAN" or said.digits):
        precision, scale = said.digits or (0, -1)
        if precision == scale:  # DuckDB would write .5, Spark 0.5
            said = _as(f"DECIMAL({precision + 1},{scale})", said)
        return combined(kind, ("CAST({0} AS STRING)", "CAST({0} AS VARCHAR)"), said)
    raise ExpressionError(f"a {said.kind} is not cast to {kind}: Spark and DuckDB do it differently, or not at all")


# Arithmetic -----------------------------------------------------------------------------------------------------------


def _numbers(sign: str, *parts: Said) -> None:
    for part in parts:
        if not _is_number(part):
            raise ExpressionError(f"{sign} wants numbers, not {part.kind}")


def added(sign: str, left: Said, right: Said) -> Said:
    if left.kind == "TIMESTAMP" and right.kind in ("INTERVAL", "MONTHS"):
        name = "try_add" if sign == "+" else "try_subtract"
        return combined("TIMESTAMP", (f"{name}({{0}}, {{1}})", f"TRY({{0}} {sign} {{1}})"), left, right)
    if left.kind == right.kind == "TIMESTAMP" and sign == "-":
        return combined("INTERVAL", ("try_subtract({0}, {1})", "TRY({0} - {1})"), left, right)
    _numbers(sign, left, right)
    kind = _common((left, right))
    if decimal_of(kind) or (kind == "DOUBLE" and left.digits and right.digits):
        (p, s), (q, t) = left.digits or (1, 0), right.digits or (1, 0)
        scale = max(s, t)
        kind = _exact(max(p - s, q - t) + scale + 1, scale)
    return _in_arithmetic(sign, kind, left, right)


def _multiplied(left: Said, right: Said) -> Said:
    _numbers("*", left, right)
    kind = _common((left, right))
    if decimal_of(kind) or (kind == "DOUBLE" and left.digits and right.digits):
        (p, s), (q, t) = left.digits or (1, 0), right.digits or (1, 0)
        kind = _exact(p + q + 1, s + t)  # Spark counts one digit more than a product can have
    return _in_arithmetic("*", kind, left, right)


def _in_arithmetic(sign: str, kind: str, left: Said, right: Said) -> Said:
    if kind == "NULL":
        return left
    if not decimal_of(kind):
        left, right = _as(kind, left), _as(kind, right)
        if kind == "DOUBLE":
            return combined(kind, f"({{0}} {sign} {{1}})", left, right)
        name = {"+": "try_add", "-": "try_subtract", "*": "try_multiply"}[sign]
        return combined(kind, (f"{name}({{0}}, {{1}})", f"TRY({{0}} {sign} {{1}})"), left, right)
    left, right = (_as("DECIMAL({},{})".format(*(part.digits or (1, 0))), part) for part in (left, right))
    # DuckDB multiplies decimals of up to 18 digits in 64 bits; a wider factor makes it use 128.
    factor = (
        f"CAST({{0}} AS DECIMAL({max(19, left.digits[0])},{left.digits[1]}))" if sign == "*" and left.digits else "{0}"
    )
    template = (f"CAST({{0}} {sign} {{1}} AS {kind})", f"CAST({factor} {sign} {{1}} AS {kind})")
    return combined(kind, template, left, right)


def _divided(left: Said, right: Said) -> Said:
    _numbers("/", left, right)
    left, right = _as("DOUBLE", left), _as("DOUBLE", right)
    return combined("DOUBLE", ("try_divide({0}, {1})", "({0} / nullif({1}, CAST(0 AS DOUBLE)))"), left, right)


def _remainder(left: Said, right: Said) -> Said:
    _numbers("%", left, right)
    left, right = alike(left, right)
    if left.kind == "NULL":
        return left
    duckdb = "({0} % nullif({1}, 0))"
    if left.kind in _DIGITS:  # the least number % -1 is 0, at which DuckDB raises
        duckdb = "(CASE WHEN {1} = -1 THEN {0} * 0 ELSE {0} % nullif({1}, 0) END)"
    return combined(left.kind, ("try_mod({0}, {1})", duckdb), left, right)


ARITHMETIC: Mapping[str, Callable[[Said, Said], Said]] = {"*": _multiplied, "/": _divided, "%": _remainder}


def negated(said: Said) -> Said:
    _numbers("-", said)
    if re.fullmatch(r"\d+", said.spark):
        return replace(said, spark=f"-{said.spark}", duckdb=f"-{said.duckdb}")
    return added("-", _as(said.kind, number_of("0")), said) if said.kind != "NULL" else said


# Functions ------------------------------------------------------------------------------------------------------------


def _absolute(said: Said) -> Said:
    if said.kind not in _DIGITS:
        return combined(said.kind, "abs({0})", said)
    return chosen([compared("<", said, number_of("0"))], [negated(said), said])


def _rounded(name: str, said: Said, places: Said | None) -> Said:
    """round, floor, ceil: of a DOUBLE by steps that are the same in every engine."""
    number = int(places.spark) if places and places.spark.isdigit() else 0
    if (places and not places.spark.isdigit()) or number > 15:
        raise ExpressionError(f"{name} takes 0 to 15 decimal places, written as a number")
    if said.kind in (*_DIGITS, "NULL"):
        return said
    if said.kind == "DOUBLE":
        unit = f"CAST('{10**number}' AS DOUBLE)"
        half = "CAST('0.5' AS DOUBLE)"
        size = {"round": f"floor(abs({{0}}) * {unit} + {half}) / {unit} * sign({{0}})"}.get(name, f"{name}({{0}})")
        small = "abs({0}) * " + unit + " < CAST('1e15' AS DOUBLE)"
        return combined("DOUBLE", f"(CASE WHEN {small} THEN CAST({size} AS DOUBLE) + 0 ELSE {{0}} END)", said)
    precision, scale = said.digits or (0, 0)
    if number >= scale:
        return said
    kind = f"DECIMAL({precision - scale + number + 1},{number})"
    call = f"{name}({{0}}, {number})" if name == "round" else f"{name}({{0}})"
    return combined(kind, f"CAST({call} AS {kind})", said)


def _truncated(unit: Said, time: Said) -> Said:
    if unit.text not in _TRUNCATED:
        raise ExpressionError(f"date_trunc takes one of {', '.join(_TRUNCATED)}")
    return combined("TIMESTAMP", f"date_trunc('{unit.text}', {{0}})", of_kind("TIMESTAMP", time, "date_trunc"))


def called(name: str, given: list[Said]) -> Said:
    known = _FUNCTIONS.get(name)
    if known is None:
        raise ExpressionError(
            f"{name}() is none of the functions that Spark and DuckDB have alike: {', '.join(sorted(_FUNCTIONS))}"
        )
    least, most, call = known
    if not least <= len(given) <= most:
        raise ExpressionError(
            f"{name}() takes {least if least == most else f'{least} to {most}'} values, not {len(given)}"
        )
    return call(*given)


def _plain(kind: str, wanted: str, template: str | tuple[str, str]) -> Callable[..., Said]:
    """A function of one or more values of the wanted type."""

    def call(*given: Said) -> Said:
        if wanted == "DOUBLE":
            _numbers(str(template).partition("(")[0].strip("('"), *given)
            return combined(kind, template, *(_as("DOUBLE", part) for part in given))
        return combined(kind, template, *(of_kind(wanted, part, str(template)) for part in given))

    return call


def _largest(name: str) -> Callable[..., Said]:
    return lambda *given: combined(_common(given), f"{name}({places(len(given))})", *alike(*given))


def _part_of_time(name: str) -> tuple[int, int, Callable[..., Said]]:
    return 1, 1, _plain("INT", "TIMESTAMP", f"CAST({name}({{0}}) AS INT)")


def _number_only(call: Callable[..., Said]) -> Callable[..., Said]:
    def checked(*given: Said) -> Said:
        _numbers("this function", given[0])
        return call(*given)

    return checked


_MANY = 1000
# Name → least and most values, and what it says.
_FUNCTIONS: Mapping[str, tuple[int, int, Callable[..., Said]]] = {
    "abs": (1, 1, _number_only(_absolute)),
    "array_contains": (
        2,
        2,
        lambda a, b: combined(
            "BOOLEAN",
            "array_contains({0}, {1})",
            of_kind("ARRAY<STRING>", a, "array_contains"),
            of_kind("STRING", b, "array_contains"),
        ),
    ),
    "ceil": (1, 1, _number_only(lambda a: _rounded("ceil", a, None))),
    "coalesce": (1, _MANY, _largest("coalesce")),
    "date_trunc": (2, 2, _truncated),
    "day": _part_of_time("day"),
    "floor": (1, 1, _number_only(lambda a: _rounded("floor", a, None))),
    "greatest": (2, _MANY, _largest("greatest")),
    "hour": _part_of_time("hour"),
    "if": (3, 3, lambda test, a, b: chosen(conditions(test), [a, b])),
    "least": (2, _MANY, _largest("least")),
    "length": (1, 1, _plain("INT", "STRING", "CAST(length({0}) AS INT)")),
    "lower": (1, 1, _plain("STRING", "STRING", "lower({0})")),
    "minute": _part_of_time("minute"),
    "month": _part_of_time("month"),
    "nullif": (2, 2, lambda a, b: chosen([compared("=", a, b)], [Said("NULL", "NULL", "NULL"), a])),
    "round": (1, 2, _number_only(lambda a, places=None: _rounded("round", a, places))),
    "sqrt": (1, 1, _plain("DOUBLE", "DOUBLE", "(CASE WHEN {0} >= 0 THEN sqrt({0}) END)")),
    "trim": (1, 1, _plain("STRING", "STRING", "trim({0})")),
    "try_add": (2, 2, lambda a, b: added("+", a, b)),
    "try_divide": (2, 2, _divided),
    "try_mod": (2, 2, _remainder),
    "try_multiply": (2, 2, _multiplied),
    "try_subtract": (2, 2, lambda a, b: added("-", a, b)),
    "upper": (1, 1, _plain("STRING", "STRING", "upper({0})")),
    "year": _part_of_time("year"),
}
