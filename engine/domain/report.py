"""What is a report? SQL over all good rows, for what does not merge: batch alone computes it, with checks before it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.domain.sql import NAME, DeclarationError, check_constants, with_constants


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
        place = f"report '{self.name}'"
        if not NAME.fullmatch(self.name):
            raise DeclarationError(f"{place}: a lower-case identifier is wanted")
        if self.time and self.time not in self.by:
            raise DeclarationError(f"{place}: time '{self.time}' is not one of {', '.join(self.by)}")
        check_constants(place, self.constants, {"sql": self.sql})

    @property
    def query(self) -> str:
        """The SQL with the constants in it."""
        return with_constants(self.sql, self.constants)
