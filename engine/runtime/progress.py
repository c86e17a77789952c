"""What does Spark say about each micro-batch? A listener that hands it to the layer's metrics.

Spark calls it beside the query, not within it; what it costs stands in docs/decisions.md.
"""

from __future__ import annotations

import json
from typing import Any

from pyspark.sql.streaming.listener import (
    QueryProgressEvent,
    QueryStartedEvent,
    QueryTerminatedEvent,
    StreamingQueryListener,
)

from engine.runtime.metrics import QueryMetrics


class Progress(StreamingQueryListener):
    """Hears of the queries named `<layer>-<domain>`."""

    def __init__(self, shown: QueryMetrics) -> None:
        self._shown = shown
        self._domains: dict[Any, str] = {}  # run id → domain: the last event of a query has no name

    def onQueryStarted(self, event: QueryStartedEvent) -> None:
        domain = domain_of(event.name)
        self._domains[event.runId] = domain
        self._shown.active(domain, True)

    def onQueryProgress(self, event: QueryProgressEvent) -> None:
        told = event.progress
        phases = {phase: ms / 1000 for phase, ms in told.durationMs.items()}
        behind: dict[str, dict[str, int]] = {}
        for source in told.sources:
            behind |= offsets_behind(source.latestOffset, source.endOffset)
        self._shown.progressed(domain_of(told.name), told.numInputRows or 0, phases, behind)

    def onQueryTerminated(self, event: QueryTerminatedEvent) -> None:
        if event.runId in self._domains:
            self._shown.active(self._domains.pop(event.runId), False)


def domain_of(query: str | None) -> str:
    """The domain of a query by its name."""
    return (query or "").partition("-")[2]


def offsets_behind(latest: str | None, end: str | None) -> dict[str, dict[str, int]]:
    """Return topic → partition → offsets that Kafka had beyond the end of a micro-batch, from Spark's two JSON texts.

    Nothing for a source that is not Kafka: its offsets have no topics.
    """
    newest, read = (json.loads(text or "null") for text in (latest, end))
    if not isinstance(newest, dict) or not isinstance(read, dict):
        return {}
    return {
        topic: {p: max(0, offset - read[topic][p]) for p, offset in by.items() if p in read.get(topic, {})}
        for topic, by in newest.items()
    }
