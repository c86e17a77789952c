"""What is declared: streams, views, reports and the expressions in them. Imports nothing else of ours.

`from engine.domain import …` gives what a domain file needs; every other package reads declarations through it.
"""

from engine.domain.domain import ALL_ROWS, NEW_ROWS, Domain, table_name
from engine.domain.measure import (
    MEASURE_KINDS,
    Comparison,
    Measure,
    MeasureKind,
    avg,
    count,
    distinct,
    first,
    last,
    max_of,
    min_of,
    quantile,
    stddev,
    sum_of,
)
from engine.domain.operators import decimal_of
from engine.domain.report import Report
from engine.domain.sql import DeclarationError
from engine.domain.stream import (
    FIELD_NAME,
    FURTHER_FIELDS,
    FUTURE_RULE,
    OTHER_FIELDS,
    UNKNOWN_FIELDS,
    Maker,
    Stream,
    each,
    unknown_order,
)
from engine.domain.view import GRAINS, View

__all__ = [
    "ALL_ROWS",
    "FIELD_NAME",
    "FURTHER_FIELDS",
    "FUTURE_RULE",
    "GRAINS",
    "MEASURE_KINDS",
    "NEW_ROWS",
    "OTHER_FIELDS",
    "UNKNOWN_FIELDS",
    "Comparison",
    "DeclarationError",
    "Domain",
    "Maker",
    "Measure",
    "MeasureKind",
    "Report",
    "Stream",
    "View",
    "avg",
    "count",
    "decimal_of",
    "distinct",
    "each",
    "first",
    "last",
    "max_of",
    "min_of",
    "quantile",
    "stddev",
    "sum_of",
    "table_name",
    "unknown_order",
]
