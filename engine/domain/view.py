"""What is a view? Measures of streams, grouped by dimensions and windows: what batch and speed fold and serving merges.

Its columns and their types, checked when it is built, and the hash that says which partials belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.domain import expressions
from engine.domain.measure import MEASURE_KINDS, Measure, kind_of
from engine.domain.operators import Engine, Said
from engine.domain.sql import (
    NAME,
    SQL_WORDS,
    TIMES,
    DeclarationError,
    check_constants,
    expression_at,
    hash_of,
    with_constants,
)
from engine.domain.stream import Stream

# Part of every definition hash: raise it when a measure's arithmetic changes, or what an expression says. Serving
# answers from versions of before until they are built anew; where stored rows cannot be merged as they were, rename the
# stored columns, so that it refuses them.
MEASURES_VERSION = 2

GRAINS = {"1 minute": 60, "5 minutes": 300, "15 minutes": 900, "1 hour": 3600, "1 day": 86400}


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
        place = f"view '{self.name}'"
        self._check_names(place)
        self._check_dimensions(place)
        for name, measure in self.measures.items():
            self._check_measure(f"{place}: measure '{name}'", measure)
        if len({(m.columns, m.where) for m in self.measures.values() if m.kind == "quantiles"}) > 1:
            raise DeclarationError(f"{place}: quantiles of two columns; make a second view for the other one")
        check_constants(place, self.constants, self.show)
        for name in self.show:
            with expression_at(f"{place} '{name}'"):
                self._shown(name)

    def _check_names(self, place: str) -> None:
        if not NAME.fullmatch(self.name) or not self.streams or not self.measures:
            raise DeclarationError(f"{place}: needs a lower-case name, a stream and a measure")
        if self.every is not None and self.every not in GRAINS:
            raise DeclarationError(f"{place}: every '{self.every}' is none of {', '.join(GRAINS)}")
        names = [*self.by, *self.measures, *self.show, *(("window_start", "window_end") if self.every else ())]
        if len(set(names)) != len(names):
            raise DeclarationError(f"{place}: a name occurs twice among dimensions, measures and shown columns")
        for name in (*self.measures, *self.show):
            if not NAME.fullmatch(name) or "__" in name or name in SQL_WORDS:
                raise DeclarationError(
                    f"{place} '{name}': a lower-case identifier without '__', no SQL word, is wanted"
                )

    def _check_dimensions(self, place: str) -> None:
        if self.explode and (self.explode[1] not in self.by or self.type_of(self.explode[0]) != "ARRAY<STRING>"):
            raise DeclarationError(
                f"{place}: explode {self.explode} must be an ARRAY<STRING> column and one of its dimensions"
            )
        for dimension in self.by:
            if self.dimension_type(dimension) == "ARRAY<STRING>":
                raise DeclarationError(f"{place}: dimension '{dimension}' is an array; name it in explode")

    def _check_measure(self, place: str, measure: Measure) -> None:
        with expression_at(place):
            self._condition(measure)
        kind = kind_of(place, measure)
        kind.check(place, measure, [self.type_of(column) for column in measure.columns])

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
        return {name: with_constants(sql, self.constants) for name, sql in self.show.items()}

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
        columns = [(column, self.type_of(column)) for column in measure.columns]
        return MEASURE_KINDS[measure.kind].value_type(columns)

    def _condition(self, measure: Measure) -> Said | None:
        if measure.where is None:
            return None
        shared = set.intersection(*({*stream.columns.items()} for stream in self.streams))
        fields = [field for field in self.streams[0].columns.items() if field in shared]
        return expressions.condition(measure.where, (*fields, *TIMES, ("topic", "STRING")))

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
        return self.stored_hash or hash_of(
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
