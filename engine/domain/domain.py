"""What is a domain? One frozen declaration from which everything that names a field is derived.

A `Domain` holds streams (topics with a schema), views (what merges) and reports (what does not). The Spark
schema, the JSON Schema, the producer's validation, the API's parameters and the documentation all come from it.
Declarations import neither Spark nor Kafka; expressions are SQL text, which `engine.domain.expressions` reads and
writes for Spark and for DuckDB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from engine.domain.measure import Measure
from engine.domain.report import Report
from engine.domain.sql import NAME, DeclarationError, hash_of
from engine.domain.stream import Stream
from engine.domain.view import View

# What Spark's SQL calls the rows of a topic's table: all of them, and those that a batch run adds.
ALL_ROWS, NEW_ROWS = ROWS_OF = ("", "new_")


def table_name(topic: str) -> str:
    """Return the name under which reports know the good rows of a topic."""
    return topic.replace("-", "_").replace(".", "_")


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
        if not NAME.fullmatch(self.name):
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
        names += [f"stored_{view.name}" for view in self.views]
        return [*names, *(report.name for report in self.reports), "report"]

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(stream.topic for stream in self.streams)

    @property
    def definition_hash(self) -> str:
        """16 hex digits over all views and streams: what a version, an epoch and a process carry."""
        return self.stored_hash or hash_of(
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
        return hash_of([(r.name, r.by, r.query, list(r.checks.items())) for r in self.reports])

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


def _plain(declaration: Any, without: tuple[str, ...]) -> dict[str, Any]:
    """Fields of a declaration as JSON has them; mappings keep their order."""
    values = {f.name: getattr(declaration, f.name) for f in fields(declaration) if f.name not in without}
    for name, value in values.items():
        if name == "measures":
            values[name] = {measure: _plain(value[measure], ()) for measure in value}
        elif isinstance(value, Mapping):
            values[name] = dict(value)
        elif isinstance(value, tuple):
            values[name] = list(value)
    return values


def _tuples(value: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {**value, **{name: tuple(value[name]) for name in names}}


def _stored(value: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stored declaration; older manifests hold no hash in it."""
    return {**{name: held for name, held in value.items() if name != "hash"}, "stored_hash": value.get("hash", "")}
