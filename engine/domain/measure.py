"""What is a measure? A column of a view that merges, and of each kind all that other places must know: `MEASURE_KINDS`.

The table declares, it computes nothing: the layers fold by `engine.fold.measures`, the recount by arithmetic of its
own in `engine.verify`. `tests/unit/test_measure_kinds.py` goes through every place for every kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from engine.domain.operators import decimal_of
from engine.domain.sql import DeclarationError, is_number

# (name, SQL type) of each column that a measure is of.
Columns = Sequence[tuple[str, str]]
# What makes a served value the recounted one: every digit; all but the rounding of a division; an estimate's error.
Comparison = Literal["exact", "rounded", "estimated"]


@dataclass(frozen=True)
class Measure:
    """A column of a view that merges: `kind` over `columns` (several form one struct), of the rows where `where`.

    `at` is the share of values below a quantile, as the text of a decimal.
    """

    kind: str
    columns: tuple[str, ...] = ()
    where: str | None = None
    at: str | None = None


@dataclass(frozen=True)
class MeasureKind:
    """What all measures of a kind have in common.

    Args:
        name: as in `Measure.kind`, in manifests and in the API.
        columns: how many it takes: "no", "one", or "at least one", which then form one struct.
        value_type: its columns → SQL type of what is shown.
        comparison: when what is served and what is recounted are the same.
        accepts: SQL type of its column → whether its values can be folded alike by every engine.
        refusal: what is said of a type that it does not accept; `{type}` stands for it.
        has_share: whether `Measure.at` must be given.
        zero_when_absent: a chart draws it as zero, not as unknown, where there are no rows.
        overlap_safe: an event that is folded twice changes nothing, so rows that share events can be merged.
    """

    name: str
    columns: Literal["no", "one", "at least one"]
    value_type: Callable[[Columns], str]
    comparison: Comparison
    accepts: Callable[[str], bool] = lambda _: True
    refusal: str = ""
    has_share: bool = False
    zero_when_absent: bool = False
    overlap_safe: bool = False

    def check(self, place: str, measure: Measure, types: Sequence[str]) -> None:
        """Raise DeclarationError if a measure over columns of these SQL types cannot be folded exactly."""
        allowed = {"no": not types, "one": len(types) == 1, "at least one": bool(types)}
        if not allowed[self.columns]:
            raise DeclarationError(f"{place}: {self.name} takes {self.columns} column")
        if refused := next((sql_type for sql_type in types if not self.accepts(sql_type)), None):
            raise DeclarationError(f"{place}: {self.refusal.format(type=refused)}")
        if self.has_share and not (is_number(measure.at or "") and 0 < Decimal(measure.at or "") < 1):
            raise DeclarationError(f"{place}: at={measure.at!r}: allowed is a decimal between 0 and 1, as text")


def _is_exact(sql_type: str) -> bool:
    return sql_type in ("INT", "BIGINT") or decimal_of(sql_type) is not None


def _has_digits(most: int) -> Callable[[str], bool]:
    """Decimals of at most so many digits."""
    return lambda sql_type: (decimal_of(sql_type) or (most + 1, 0))[0] <= most


def _always(sql_type: str) -> Callable[[Columns], str]:
    return lambda _: sql_type


def _sum_type(columns: Columns) -> str:
    scale = (decimal_of(columns[0][1]) or (19, 0))[1]
    return f"DECIMAL(38,{scale})"


def _own_type(columns: Columns) -> str:
    if len(columns) == 1:
        return columns[0][1]
    return f"STRUCT<{', '.join(f'{name}: {sql_type}' for name, sql_type in columns)}>"


_NOT_EXACT = "of {type} is not exact; use BIGINT or DECIMAL(p,s)"

MEASURE_KINDS: Mapping[str, MeasureKind] = {
    kind.name: kind
    for kind in (
        MeasureKind("count", "no", _always("BIGINT"), "exact", zero_when_absent=True),
        MeasureKind("sum", "one", _sum_type, "exact", _is_exact, f"sum {_NOT_EXACT}", zero_when_absent=True),
        MeasureKind("min", "one", _own_type, "exact", overlap_safe=True),
        MeasureKind("max", "one", _own_type, "exact", overlap_safe=True),
        MeasureKind("avg", "one", _always("DOUBLE"), "rounded", _is_exact, f"avg {_NOT_EXACT}"),
        MeasureKind(
            "stddev",
            "one",
            _always("DOUBLE"),
            "rounded",
            _has_digits(14),
            "stddev needs a column of precision <= 14, not {type}; use DECIMAL(14,s)",
        ),
        MeasureKind("first", "at least one", _own_type, "exact", overlap_safe=True),
        MeasureKind("last", "at least one", _own_type, "exact", overlap_safe=True),
        MeasureKind(
            "distinct",
            "one",
            _always("BIGINT"),
            "estimated",
            lambda sql_type: sql_type not in ("DOUBLE", "ARRAY<STRING>"),
            "distinct of {type}: Spark and DuckDB write its values differently; use DECIMAL(p,s) or STRING",
            zero_when_absent=True,
            overlap_safe=True,
        ),
        MeasureKind(
            "quantiles",
            "one",
            _always("DOUBLE"),
            "exact",
            lambda sql_type: sql_type in ("INT", "BIGINT") or _has_digits(15)(sql_type),
            "quantiles of {type} are not exact; use BIGINT or DECIMAL(15,s)",
            has_share=True,
        ),
    )
}


def kind_of(place: str, measure: Measure) -> MeasureKind:
    """Return the kind of a measure. Raises DeclarationError for one that does not merge."""
    kind = MEASURE_KINDS.get(measure.kind)
    if kind is None:
        raise DeclarationError(
            f"{place}: '{measure.kind}' does not merge; use {', '.join(MEASURE_KINDS)}, or move it to a report"
        )
    return kind


def count(where: str | None = None) -> Measure:
    """Count the rows."""
    return Measure("count", (), where)


def sum_of(column: str, where: str | None = None) -> Measure:
    """Sum of integers or decimals; NULL is neutral, the sum of nothing is NULL."""
    return Measure("sum", (column,), where)


def min_of(column: str, where: str | None = None) -> Measure:
    """Smallest value."""
    return Measure("min", (column,), where)


def max_of(column: str, where: str | None = None) -> Measure:
    """Largest value."""
    return Measure("max", (column,), where)


def avg(column: str, where: str | None = None) -> Measure:
    """Mean, kept as an exact sum and a count."""
    return Measure("avg", (column,), where)


def stddev(column: str, where: str | None = None) -> Measure:
    """Sample deviation, kept as exact n, s and q and shown about a pivot."""
    return Measure("stddev", (column,), where)


def first(*columns: str, where: str | None = None) -> Measure:
    """Value of the earliest row by (event time, log position); several columns form one struct."""
    return Measure("first", columns, where)


def last(*columns: str, where: str | None = None) -> Measure:
    """Value of the latest row by (event time, log position); several columns form one struct."""
    return Measure("last", columns, where)


def distinct(column: str, where: str | None = None) -> Measure:
    """Number of different values, estimated by an HLL sketch (2^12 registers, about 1.6 % standard error)."""
    return Measure("distinct", (column,), where)


def quantile(column: str, at: str, where: str | None = None) -> Measure:
    """Value below which the share `at` lies ("0.95"), at most 0.8 % off: all values are counted in fixed buckets.

    The quantiles of one column share one stored MAP from bucket to count; a view has the quantiles of one column.
    """
    return Measure("quantiles", (column,), where, at)
