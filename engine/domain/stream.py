"""What is a stream? A topic with the schema of its events: what makes one malformed, invalid or a duplicate.

From it come the JSON Schema, the producer's check, the decoders and the schema hash of everything typed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from engine.domain import expressions
from engine.domain.operators import Engine, Said, decimal_of
from engine.domain.sql import NAME, TIMES, DeclarationError, check_columns, expression_at, hash_of

# Part of every schema hash: raise it when `engine.fold.decode` starts to read the same bytes differently, or a
# rule to say another thing.
DECODE_VERSION = 3

# A field that a schema does not know is counted by its name if it looks like one, else under the second text.
FIELD_NAME, OTHER_FIELDS = r"[A-Za-z_][A-Za-z0-9_.-]{0,62}", "(other)"
# So many names are kept, of a row and of a topic, the shortest ones; what is left counts under the text below. A name
# among the shortest of all was among the shortest of any part, so counts add up to the same however the log was split.
UNKNOWN_FIELDS, FURTHER_FIELDS = 100, "(others)"

# Event time may run ahead of Kafka's receive time by this much (the default rule of every stream).
FUTURE_LIMIT_MINUTES = 5
FUTURE_RULE = "from_the_future"

_TOPIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")

# Makes the event of a moment (epoch ms); None where there is nothing to tell just now.
Maker = Callable[[int], dict[str, Any] | None]
# (random source, the stream's options) → a maker, which may remember what it made before.
Generator = Callable[[Random, Mapping[str, str]], Maker]


def each(generate: Callable[[Random, int], dict[str, Any]]) -> Generator:
    """Make a generator of a function that remembers nothing between two events."""
    return lambda rng, _options: partial(generate, rng)


def unknown_order(name: str) -> tuple[Any, ...]:
    """Sort key of unknown fields' names: those first that are kept."""
    return name != OTHER_FIELDS, len(name), name


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
        place = f"stream '{self.topic}'"
        if not _TOPIC.fullmatch(self.topic):
            raise DeclarationError(f"{place}: a topic name is letters, digits, '.', '_' and '-'")
        check_columns(place, self.columns)
        self._check_roles(place)
        self._check_numbers(place)
        self._check_rules(place)

    def _check_roles(self, place: str) -> None:
        """Key, time, unique and required must be columns, the time one of times."""
        for name in (*self._essential, *self.required):
            if name not in self.columns:
                raise DeclarationError(f"{place}: '{name}' is not one of its columns: {', '.join(self.columns)}")
        if self.time and self.columns[self.time] != "TIMESTAMP":
            raise DeclarationError(
                f"{place}: event time '{self.time}' must be TIMESTAMP, not {self.columns[self.time]}"
            )

    def _check_numbers(self, place: str) -> None:
        if not self.unique or self.duplicate_window < 1 or self.partitions < 1:
            raise DeclarationError(f"{place}: unique, duplicate_window and partitions must not be empty or below 1")
        if not 0 < self.weight < 1e6:
            raise DeclarationError(f"{place}: weight {self.weight} is not above 0 and below a million")

    def _check_rules(self, place: str) -> None:
        for rule, sql in self.rules.items():
            if not NAME.fullmatch(rule) or rule in ("malformed", "duplicate", FUTURE_RULE):
                raise DeclarationError(f"{place} rule '{rule}': reserved or not a lower-case identifier")
            with expression_at(f"{place} rule '{rule}'"):
                self._condition(sql)

    @property
    def _essential(self) -> tuple[str, ...]:
        return (self.key, *self.unique, *((self.time,) if self.time else ()))

    @property
    def needed(self) -> tuple[str, ...]:
        """Fields whose absence makes an event malformed, in the order of the columns."""
        must = {*self._essential, *self.required}
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
        return expressions.condition(sql, (*self.columns.items(), *TIMES))

    @property
    def problems(self) -> tuple[str, ...]:
        """Every value that `problem` can take, in the order of precedence."""
        return ("malformed", *self.all_rules, "duplicate")

    @property
    def schema_hash(self) -> str:
        """16 hex digits; equal exactly when the same bytes give the same typed rows."""
        return self.stored_hash or hash_of(
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
