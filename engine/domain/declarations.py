"""What is a domain? One frozen declaration from which everything that names a field is derived.

A `Domain` holds streams (topics with a schema), views (what merges) and reports (what does not). The Spark
schema, the JSON Schema, the producer's validation, the API's parameters and the documentation all come from it.
This module imports neither Spark nor Kafka; expressions are SQL text, which `engine.domain.expressions` reads and
writes for Spark and for DuckDB.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal, InvalidOperation
from functools import partial
from random import Random
from typing import Any

from engine.domain import expressions
from engine.domain.operators import Engine, ExpressionError, Said, decimal_of

# Part of every schema hash: raise it when `engine.fold.decode` starts to read the same bytes differently, or a
# rule to say another thing.
DECODE_VERSION = 3
# Part of every definition hash: raise it when a measure's arithmetic changes, or what an expression says. Serving
# answers from versions of before until they are built anew; where stored rows cannot be merged as they were, rename the
# stored columns, so that it refuses them.
MEASURES_VERSION = 2

# A field that a schema does not know is counted by its name if it looks like one, else under the second text.
FIELD_NAME, OTHER_FIELDS = r"[A-Za-z_][A-Za-z0-9_.-]{0,62}", "(other)"
# So many names are kept, of a row and of a topic, the shortest ones; what is left counts under the text below. A name
# among the shortest of all was among the shortest of any part, so counts add up to the same however the log was split.
UNKNOWN_FIELDS, FURTHER_FIELDS = 100, "(others)"

# Event time may run ahead of Kafka's receive time by this much (the default rule of every stream).
FUTURE_LIMIT_MINUTES = 5
FUTURE_RULE = "from_the_future"

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
GRAINS = {"1 minute": 60, "5 minutes": 300, "15 minutes": 900, "1 hour": 3600, "1 day": 86400}
MEASURE_KINDS = ("count", "sum", "min", "max", "avg", "stddev", "first", "last", "distinct", "quantiles")

# What Spark's SQL calls the rows of a topic's table: all of them, those that a batch run adds, those of a micro-batch.
ALL_ROWS, NEW_ROWS, FRESH_ROWS = ROWS_OF = ("", "new_", "fresh_")


def table_name(topic: str) -> str:
    """Return the name under which reports know the good rows of a topic."""
    return topic.replace("-", "_").replace(".", "_")


def unknown_order(name: str) -> tuple[Any, ...]:
    """Sort key of unknown fields' names: those first that are kept."""
    return name != OTHER_FIELDS, len(name), name


_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_TOPIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_CONSTANT = re.compile(r"\{([a-z][a-z0-9_]*)\}")
# What an expression over events may use besides the fields.
_TIMES = (("event_time", "TIMESTAMP"), ("kafka_time", "TIMESTAMP"))
_SCALARS = ("STRING", "BIGINT", "INT", "DOUBLE", "BOOLEAN", "TIMESTAMP", "ARRAY<STRING>")

# Makes the event of a moment (epoch ms); None where there is nothing to tell just now.
Maker = Callable[[int], dict[str, Any] | None]
# (random source, the stream's options) → a maker, which may remember what it made before.
Generator = Callable[[Random, Mapping[str, str]], Maker]


class DeclarationError(ValueError):
    """A domain file says something that cannot work; the message names the place, the value and the way out."""


@dataclass(frozen=True)
class Measure:
    """A column of a view that merges: `kind` over `columns` (several form one struct), of the rows where `where`.

    `at` is the share of values below a quantile, as the text of a decimal.
    """

    kind: str
    columns: tuple[str, ...] = ()
    where: str | None = None
    at: str | None = None


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


def each(generate: Callable[[Random, int], dict[str, Any]]) -> Generator:
    """Make a generator of a function that remembers nothing between two events."""
    return lambda rng, _options: partial(generate, rng)


@dataclass(frozen=True)
class Stream:
    """A topic and the schema of its events.

    Args:
        topic: Kafka topic; belongs to one domain.
        columns: field name → SQL type, in order.
        key: field whose text is the Kafka key.
        time: field with the event time, or None for Kafka's own timestamp.
        unique: fields that identify an event.
        required: fields that must be present and not null, besides key, time and unique.
        rules: name → SQL condition; a row for which it is not TRUE gets the name as its problem.
        duplicate_window: W, in offsets.
        generator: (random source, options) → a maker: event time in epoch ms → one event as a dict ready for JSON.
        options: texts that the generator reads; a setting of the same name, in upper case, overrides the default.
        weight: how often the producer picks this topic, relative to the others of its domain.
        stored_hash: the schema hash of a stream that was stored with a version; empty for one that is declared.
    """

    topic: str
    columns: Mapping[str, str]
    key: str
    unique: tuple[str, ...]
    time: str | None = None
    required: tuple[str, ...] = ()
    rules: Mapping[str, str] = field(default_factory=dict)
    duplicate_window: int = 100_000
    partitions: int = 3
    generator: Generator | None = field(default=None, compare=False, repr=False)
    options: Mapping[str, str] = field(default_factory=dict, compare=False)
    weight: float = field(default=1.0, compare=False)
    stored_hash: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        where = f"stream '{self.topic}'"
        if not _TOPIC.fullmatch(self.topic):
            raise DeclarationError(f"{where}: a topic name is letters, digits, '.', '_' and '-'")
        for name, sql_type in self.columns.items():
            if name.lower() in SQL_WORDS:
                raise DeclarationError(f"{where} column '{name}': a word of SQL; rename the field")
            if not _FIELD.fullmatch(name) or name.lower() in RESERVED:
                raise DeclarationError(f"{where} column '{name}': reserved or not a plain identifier; rename the field")
            dec = decimal_of(sql_type)
            if sql_type not in _SCALARS and dec is None:
                raise DeclarationError(
                    f"{where} column '{name}': type {sql_type} is none of {', '.join(_SCALARS)}, DECIMAL(p,s)"
                )
            if dec and not 0 <= dec[1] <= dec[0] <= 28:
                raise DeclarationError(
                    f"{where} column '{name}': {sql_type} needs 0 <= scale <= precision <= 28, else its sum overflows"
                )
        if len({name.lower() for name in self.columns}) != len(self.columns):
            raise DeclarationError(f"{where}: two columns differ only in upper and lower case")
        for name in (self.key, *self.unique, *self.required, *([self.time] if self.time else [])):
            if name not in self.columns:
                raise DeclarationError(f"{where}: '{name}' is not one of its columns: {', '.join(self.columns)}")
        if not self.unique or self.duplicate_window < 1 or self.partitions < 1:
            raise DeclarationError(f"{where}: unique, duplicate_window and partitions must not be empty or below 1")
        if not 0 < self.weight < 1e6:
            raise DeclarationError(f"{where}: weight {self.weight} is not above 0 and below a million")
        if self.time and self.columns[self.time] != "TIMESTAMP":
            raise DeclarationError(
                f"{where}: event time '{self.time}' must be TIMESTAMP, not {self.columns[self.time]}"
            )
        for rule in self.rules:
            if not _NAME.fullmatch(rule) or rule in ("malformed", "duplicate", FUTURE_RULE):
                raise DeclarationError(f"{where} rule '{rule}': reserved or not a lower-case identifier")
        for rule, sql in self.rules.items():
            with _told_of(f"{where} rule '{rule}'"):
                self._condition(sql)

    @property
    def needed(self) -> tuple[str, ...]:
        """Fields whose absence makes an event malformed, in the order of the columns."""
        must = {self.key, *self.unique, *self.required, *([self.time] if self.time else [])}
        return tuple(name for name in self.columns if name in must)

    @property
    def all_rules(self) -> dict[str, str]:
        """Rules in the order in which they are judged, the default rule last."""
        future = f"event_time <= kafka_time + INTERVAL {FUTURE_LIMIT_MINUTES} MINUTE"
        return {**self.rules, FUTURE_RULE: future}

    def rules_in(self, engine: Engine) -> dict[str, str]:
        """Name → SQL of all rules for an engine; NULL where a rule cannot be worked out."""
        return {name: self._condition(sql).in_engine(engine) for name, sql in self.all_rules.items()}

    def _condition(self, sql: str) -> Said:
        return expressions.condition(sql, (*self.columns.items(), *_TIMES))

    @property
    def problems(self) -> tuple[str, ...]:
        """Every value that `problem` can take, in the order of precedence."""
        return ("malformed", *self.all_rules, "duplicate")

    @property
    def schema_hash(self) -> str:
        """16 hex digits; equal exactly when the same bytes give the same typed rows."""
        return self.stored_hash or _hash(
            {
                "topic": self.topic,
                "columns": list(self.columns.items()),
                "time": self.time,
                "unique": self.unique,
                "needed": self.needed,
                "window": self.duplicate_window,
                "rules": list(self.all_rules.items()),
                "decode": DECODE_VERSION,
            }
        )

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of one event; what it refuses is `malformed`."""
        properties = {name: _json_type(sql_type, name not in self.needed) for name, sql_type in self.columns.items()}
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": self.topic,
            "type": "object",
            "required": list(self.needed),
            "properties": properties,
            "additionalProperties": True,
        }


@dataclass(frozen=True)
class View:
    """Measures of one or more streams, grouped by dimensions and, where `every` is set, by event-time windows.

    Args:
        name: also the name in the API and of the plain folder.
        streams: where the rows come from; a dimension or column must exist in each of them.
        by: dimensions; besides columns, `topic` may be one.
        every: window width, one of GRAINS, or None.
        measures: name → Measure.
        show: name → SQL over shown columns, a DOUBLE; derived at reading, never merged. `{name}` stands for a constant.
        explode: (ARRAY<STRING> column, dimension): each distinct value of the array gets the row, under that dimension.
        constants: numbers that `show` uses; a setting of the same name, in upper case, overrides the default.
        stored_hash: as in a stream.
    """

    name: str
    streams: tuple[Stream, ...]
    by: tuple[str, ...]
    measures: Mapping[str, Measure]
    every: str | None = None
    show: Mapping[str, str] = field(default_factory=dict)
    explode: tuple[str, str] | None = None
    constants: Mapping[str, str] = field(default_factory=dict)
    stored_hash: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        where = f"view '{self.name}'"
        if not _NAME.fullmatch(self.name) or not self.streams or not self.measures:
            raise DeclarationError(f"{where}: needs a lower-case name, a stream and a measure")
        if self.every is not None and self.every not in GRAINS:
            raise DeclarationError(f"{where}: every '{self.every}' is none of {', '.join(GRAINS)}")
        names = [*self.by, *self.measures, *self.show, *(("window_start", "window_end") if self.every else ())]
        if len(set(names)) != len(names):
            raise DeclarationError(f"{where}: a name occurs twice among dimensions, measures and shown columns")
        for name in (*self.measures, *self.show):
            if not _NAME.fullmatch(name) or "__" in name or name in SQL_WORDS:
                raise DeclarationError(
                    f"{where} '{name}': a lower-case identifier without '__', no SQL word, is wanted"
                )
        if self.explode and (self.explode[1] not in self.by or self.type_of(self.explode[0]) != "ARRAY<STRING>"):
            raise DeclarationError(
                f"{where}: explode {self.explode} must be an ARRAY<STRING> column and one of its dimensions"
            )
        for dimension in self.by:
            if self.dimension_type(dimension) == "ARRAY<STRING>":
                raise DeclarationError(f"{where}: dimension '{dimension}' is an array; name it in explode")
        for name, measure in self.measures.items():
            self._check_measure(name, measure)
        if len({(m.columns, m.where) for m in self.measures.values() if m.kind == "quantiles"}) > 1:
            raise DeclarationError(f"{where}: quantiles of two columns; make a second view for the other one")
        _check_constants(where, self.constants, self.show)
        for name in self.show:
            with _told_of(f"{where} '{name}'"):
                self._shown(name)

    def _check_measure(self, name: str, measure: Measure) -> None:
        where = f"view '{self.name}': measure '{name}'"
        with _told_of(where):
            self._condition(measure)
        if measure.kind not in MEASURE_KINDS:
            raise DeclarationError(
                f"{where}: '{measure.kind}' does not merge; use {', '.join(MEASURE_KINDS)}, or move it to a report"
            )
        types = [self.type_of(column) for column in measure.columns]
        if (measure.kind == "count" and types) or (measure.kind not in ("count", "first", "last") and len(types) != 1):
            raise DeclarationError(f"{where}: {measure.kind} takes {'no' if measure.kind == 'count' else 'one'} column")
        if measure.kind in ("first", "last") and not types:
            raise DeclarationError(f"{where}: {measure.kind} takes at least one column")
        if measure.kind in ("sum", "avg", "stddev") and any(
            t not in ("INT", "BIGINT") and not decimal_of(t) for t in types
        ):
            raise DeclarationError(f"{where}: {measure.kind} of {types[0]} is not exact; use BIGINT or DECIMAL(p,s)")
        if measure.kind == "distinct" and types[0] in ("DOUBLE", "ARRAY<STRING>"):
            raise DeclarationError(
                f"{where}: distinct of {types[0]}: Spark and DuckDB write its values differently; use DECIMAL(p,s) or STRING"
            )
        if measure.kind == "quantiles":
            if types[0] not in ("INT", "BIGINT") and (decimal_of(types[0]) or (99, 0))[0] > 15:
                raise DeclarationError(f"{where}: quantiles of {types[0]} are not exact; use BIGINT or DECIMAL(15,s)")
            if not _is_number(measure.at or "") or not 0 < Decimal(measure.at or "") < 1:
                raise DeclarationError(f"{where}: at={measure.at!r}: allowed is a decimal between 0 and 1, as text")
        if measure.kind == "stddev" and (decimal_of(types[0]) or (19, 0))[0] > 14:
            raise DeclarationError(
                f"{where}: stddev needs a column of precision <= 14, not {types[0]}; use DECIMAL(14,s)"
            )

    def type_of(self, column: str) -> str:
        """SQL type of a column or dimension of this view; the same in all its streams."""
        if column == "topic":
            return "STRING"
        types = {stream.topic: stream.columns.get(column) for stream in self.streams}
        without = [topic for topic, sql_type in types.items() if sql_type is None]
        if without:
            known = [name for name in self.streams[0].columns if all(name in stream.columns for stream in self.streams)]
            raise DeclarationError(
                f"view '{self.name}': no column '{column}' in {', '.join(without)}; known are {', '.join([*known, 'topic'])}"
            )
        if len(set(types.values())) > 1:
            told = ", ".join(f"{sql_type} in {topic}" for topic, sql_type in types.items())
            raise DeclarationError(f"view '{self.name}': column '{column}' is {told}; one type is wanted")
        return str(types[self.streams[0].topic])

    def dimension_type(self, dimension: str) -> str:
        """SQL type of a dimension as stored: an exploded array holds its elements."""
        return "STRING" if self.explode and dimension == self.explode[1] else self.type_of(dimension)

    @property
    def shown(self) -> dict[str, str]:
        """Name → SQL of the shown columns, with the constants in it."""
        return {name: _with_constants(sql, self.constants) for name, sql in self.show.items()}

    def shown_in(self, engine: Engine) -> dict[str, str]:
        """Name → SQL of the shown columns for an engine; NULL where one cannot be worked out."""
        return {name: self._shown(name).in_engine(engine) for name in self.show}

    def where_in(self, measure: Measure, engine: Engine) -> str:
        """SQL of the condition of a measure for an engine, empty where it has none."""
        said = self._condition(measure)
        return said.in_engine(engine) if said else ""

    @property
    def value_types(self) -> dict[str, str]:
        """SQL type of each measure as it is shown."""
        return {name: self.value_type(measure) for name, measure in self.measures.items()}

    def value_type(self, measure: Measure) -> str:
        """SQL type of a measure as it is shown; of several columns a STRUCT."""
        types = [self.type_of(column) for column in measure.columns]
        match measure.kind:
            case "count" | "distinct":
                return "BIGINT"
            case "sum":
                return f"DECIMAL(38,{(decimal_of(types[0]) or (19, 0))[1]})"
            case "avg" | "stddev" | "quantiles":
                return "DOUBLE"
        if len(types) == 1:
            return types[0]
        return f"STRUCT<{', '.join(f'{name}: {kind}' for name, kind in zip(measure.columns, types, strict=True))}>"

    def _condition(self, measure: Measure) -> Said | None:
        if measure.where is None:
            return None
        shared = set.intersection(*({*stream.columns.items()} for stream in self.streams))
        fields = [field for field in self.streams[0].columns.items() if field in shared]
        return expressions.condition(measure.where, (*fields, *_TIMES, ("topic", "STRING")))

    def _shown(self, name: str) -> Said:
        """A shown column may use the measures and the columns shown before it."""
        fields = self.value_types
        for other, sql in self.shown.items():
            said = expressions.value(sql, tuple(fields.items()))
            if other == name:
                return said
            fields[other] = said.kind
        raise KeyError(name)

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns that identify a stored row: dimensions, then the window."""
        return (*self.by, "window_start", "window_end") if self.every else self.by

    @property
    def definition_hash(self) -> str:
        """16 hex digits; only partials of equal hash are ever combined."""
        return self.stored_hash or _hash(
            {
                "name": self.name,
                "by": self.by,
                "every": self.every,
                "explode": self.explode,
                "measures": [(n, m.kind, m.columns, m.where, m.at) for n, m in self.measures.items()],
                "show": list(self.shown.items()),
                "schemas": [stream.schema_hash for stream in self.streams],
                "arithmetic": MEASURES_VERSION,
            }
        )


@dataclass(frozen=True)
class Report:
    """Batch-only SQL for what does not merge.

    Args:
        name: also the name in the API and of its folder.
        by: columns of the result that can be filtered on.
        sql: over one table per topic (its good rows; `-` and `.` in a topic become `_`) and over earlier reports.
        checks: name → SQL over the report (as table `report`) that gives one row: a BOOLEAN, of which FALSE or NULL
            holds the report back, and further columns, measured values that are told then.
        time: column of the result (a TIMESTAMP) to which `from` and `to` of a request speak.
        constants: as in a view; `{name}` in `sql` stands for one.
    """

    name: str
    by: tuple[str, ...]
    sql: str
    checks: Mapping[str, str] = field(default_factory=dict)
    time: str | None = None
    constants: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"report '{self.name}'"
        if not _NAME.fullmatch(self.name):
            raise DeclarationError(f"{where}: a lower-case identifier is wanted")
        if self.time and self.time not in self.by:
            raise DeclarationError(f"{where}: time '{self.time}' is not one of {', '.join(self.by)}")
        _check_constants(where, self.constants, {"sql": self.sql})

    @property
    def query(self) -> str:
        """The SQL with the constants in it."""
        return _with_constants(self.sql, self.constants)


@dataclass(frozen=True)
class Domain:
    """Everything that is said about one kind of data; `stored_hash` as in a stream."""

    name: str
    streams: tuple[Stream, ...]
    views: tuple[View, ...]
    reports: tuple[Report, ...] = ()
    title: str = ""
    stored_hash: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise DeclarationError(f"domain '{self.name}': a lower-case identifier is wanted")
        for what, names in (
            ("topic", [s.topic for s in self.streams]),
            ("view or report", [*(v.name for v in self.views), *(r.name for r in self.reports)]),
        ):
            if len(set(names)) != len(names):
                raise DeclarationError(f"domain '{self.name}': a {what} occurs twice among {', '.join(names)}")
        double = next(
            (name for name, times in Counter(name.lower() for name in self._sql_names()).items() if times > 1), None
        )
        if double:
            raise DeclarationError(
                f"domain '{self.name}': SQL would know two things as '{double}'; rename a topic, a view or a report"
            )
        for view in self.views:
            for stream in view.streams:
                if stream not in self.streams:
                    raise DeclarationError(
                        f"domain '{self.name}' view '{view.name}': topic '{stream.topic}' is not one of its streams"
                    )

    def _sql_names(self) -> list[str]:
        """Return every name under which `engine.fold.spark_fold` makes rows of this domain known to Spark's SQL."""
        tables = [table_name(s.topic) for s in self.streams]
        names = [prefix + table for prefix in ROWS_OF for table in tables]
        names += [f"{prefix}{view.name}_rows" for prefix in ROWS_OF for view in self.views if len(view.streams) > 1]
        names += [f"stored_{view.name}" for view in self.views]
        return [*names, *(report.name for report in self.reports), "report"]

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(stream.topic for stream in self.streams)

    @property
    def definition_hash(self) -> str:
        """16 hex digits over all views and streams: what a version, an epoch and a process carry."""
        return self.stored_hash or _hash(
            {"views": [v.definition_hash for v in self.views], "streams": [s.schema_hash for s in self.streams]}
        )

    @property
    def is_of_this_code(self) -> bool:
        """False if this code reads or folds the same events differently than the code that stored this definition.

        What was made by it can still be shown; nothing can be added to it.
        """
        return self.definition_hash == self.declared_anew().definition_hash

    def declared_anew(self) -> Domain:
        """Return the same declaration with the hashes that this code gives it."""
        streams = {s.topic: replace(s, stored_hash="") for s in self.streams}
        views = [replace(v, stored_hash="", streams=tuple(streams[s.topic] for s in v.streams)) for v in self.views]
        return replace(self, stored_hash="", streams=tuple(streams.values()), views=tuple(views))

    @property
    def report_hash(self) -> str:
        """16 hex digits over the reports; they are recomputed by every batch version and merge with nothing."""
        return _hash([(r.name, r.by, r.query, list(r.checks.items())) for r in self.reports])

    @property
    def settings(self) -> dict[str, str]:
        """Setting → default, of the options and constants that a user may override."""
        found: dict[str, str] = {}
        parts = [*(s.options for s in self.streams), *(v.constants for v in self.views)]
        for part in [*parts, *(r.constants for r in self.reports)]:
            found |= {name.upper(): default for name, default in part.items()}
        return found

    def configured(self, given: Mapping[str, str]) -> Domain:
        """Return the domain with the options and constants that `given` names (upper case) in place of the defaults.

        Raises:
            DeclarationError: a constant is no number.
        """

        def chosen(defaults: Mapping[str, str]) -> dict[str, str]:
            return {name: given.get(name.upper(), "").strip() or default for name, default in defaults.items()}

        streams = {stream.topic: replace(stream, options=chosen(stream.options)) for stream in self.streams}
        views = tuple(
            replace(v, constants=chosen(v.constants), streams=tuple(streams[s.topic] for s in v.streams))
            for v in self.views
        )
        reports = tuple(replace(r, constants=chosen(r.constants)) for r in self.reports)
        return replace(self, streams=tuple(streams.values()), views=views, reports=reports)

    def to_json(self) -> dict[str, Any]:
        """Return everything but generators and options, for a manifest: what the answers of a version mean."""
        return {
            "name": self.name,
            "title": self.title,
            "hash": self.definition_hash,
            "streams": [
                _plain(stream, ("generator", "options", "weight", "stored_hash")) | {"hash": stream.schema_hash}
                for stream in self.streams
            ],
            "views": [
                _plain(view, ("stored_hash",))
                | {"streams": [s.topic for s in view.streams], "hash": view.definition_hash}
                for view in self.views
            ],
            "reports": [_plain(report, ()) for report in self.reports],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Domain:
        """Return the domain that `to_json` described, with its hashes, whatever this code would make of it.

        Raises DeclarationError, KeyError or TypeError for anything else.
        """
        streams = {s["topic"]: Stream(**_stored(_tuples(s, ("unique", "required")))) for s in value["streams"]}
        views = tuple(
            View(
                **_stored(_tuples(v, ("by",)))
                | {
                    "streams": tuple(streams[topic] for topic in v["streams"]),
                    "explode": tuple(v["explode"]) if v["explode"] else None,
                    "measures": {name: Measure(**_tuples(m, ("columns",))) for name, m in v["measures"].items()},
                }
            )
            for v in value["views"]
        )
        reports = tuple(Report(**_tuples(r, ("by",))) for r in value["reports"])
        return cls(value["name"], tuple(streams.values()), views, reports, value["title"], value.get("hash", ""))

    def stream(self, topic: str) -> Stream:
        return next(stream for stream in self.streams if stream.topic == topic)

    def view(self, name: str) -> View:
        return next(view for view in self.views if view.name == name)


def _plain(value: Any, without: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a declaration as JSON has them; mappings keep their order."""
    found: dict[str, Any] = {}
    for one in fields(value):
        held = getattr(value, one.name)
        if one.name == "measures":
            held = {name: _plain(measure, ()) for name, measure in held.items()}
        if one.name not in without:
            found[one.name] = (
                dict(held) if isinstance(held, Mapping) else list(held) if isinstance(held, tuple) else held
            )
    return found


def _tuples(value: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {**value, **{name: tuple(value[name]) for name in names}}


def _stored(value: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stored declaration; older manifests hold no hash in it."""
    return {**{name: held for name, held in value.items() if name != "hash"}, "stored_hash": value.get("hash", "")}


@contextmanager
def _told_of(where: str) -> Iterator[None]:
    """Say where an expression stands that cannot be said."""
    try:
        yield
    except ExpressionError as error:
        raise DeclarationError(f"{where}: {error}") from None


def _check_constants(where: str, constants: Mapping[str, str], expressions: Mapping[str, str]) -> None:
    for name, text in constants.items():
        if not _is_number(text):
            raise DeclarationError(f"{where}: constant {name.upper()}={text!r}: allowed is a decimal number")
    for name, sql in expressions.items():
        unknown = [word for word in _CONSTANT.findall(sql) if word not in constants]
        if unknown:
            raise DeclarationError(f"{where} '{name}': {{{unknown[0]}}} is none of its constants")


def _with_constants(sql: str, constants: Mapping[str, str]) -> str:
    return _CONSTANT.sub(lambda found: f"CAST({constants[found[1]]} AS DOUBLE)", sql)


def _is_number(text: str) -> bool:
    try:
        return Decimal(text).is_finite()
    except InvalidOperation:
        return False


def _hash(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _json_type(sql_type: str, nullable: bool) -> dict[str, Any]:
    dec = decimal_of(sql_type)
    if dec:
        bound = 10 ** (dec[0] - dec[1])
        schema: dict[str, Any] = {
            "type": ["number"],
            "exclusiveMinimum": -bound,
            "exclusiveMaximum": bound,
            "multipleOf": 10 ** -dec[1] if dec[1] else 1,
        }
    elif sql_type == "BIGINT":
        schema = {"type": ["integer"], "minimum": -(2**63), "maximum": 2**63 - 1}
    elif sql_type == "INT":
        schema = {"type": ["integer"], "minimum": -(2**31), "maximum": 2**31 - 1}
    elif sql_type == "TIMESTAMP":
        schema = {
            "type": ["string", "integer"],
            "description": "ISO-8601 text (no zone means UTC) or epoch milliseconds",
        }
    elif sql_type == "ARRAY<STRING>":
        schema = {"type": ["array"], "items": {"type": "string"}}
    else:
        schema = {"type": [{"STRING": "string", "DOUBLE": "number", "BOOLEAN": "boolean"}[sql_type]]}
    if nullable:
        schema["type"] = [*schema["type"], "null"]
    return schema
