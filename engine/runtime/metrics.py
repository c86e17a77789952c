"""What do the layers show Prometheus? Their numbers, and the thread that serves `/metrics` and `/health`.

A layer sets its numbers from what it knows anyway after a commit, and Spark's listener (`engine.runtime.progress`) adds
what Spark knows of a micro-batch; nothing here asks HDFS, Kafka or Spark. Names follow Prometheus:
`highwater_<layer>_<what>_<unit>`, base units, `_total` where a number only grows. Everything known by name starts at 0,
so that a rate sees the first event.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, make_wsgi_app

from engine.domain import Domain

MICRO_BATCH_BUCKETS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SILENCE_SECONDS = 15.0

# (healthy, what /health says)
Health = Callable[[], tuple[bool, dict[str, Any]]]


def new_registry() -> CollectorRegistry:
    """Return a registry that tells CPU, memory and start time of this process (on Linux)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


class Life:
    """Whether a process does its work: it says so about once a second, and silence means no."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None

    def beat(self) -> None:
        self._last = self._clock()

    def told(self) -> tuple[bool, dict[str, Any]]:
        """What `/health` answers: starting, ok, or silent for how many seconds."""
        if self._last is None:
            return False, {"status": "starting"}
        silent = self._clock() - self._last
        if silent > SILENCE_SECONDS:
            return False, {"status": "silent", "seconds": round(silent)}
        return True, {"status": "ok"}


class QueryMetrics:
    """Ingest or stream: what its streaming queries committed, and how long each part of a micro-batch took.

    Args:
        layer: `ingest` commits segments, `stream` commits epochs.
        every: the trigger interval in seconds.
    """

    def __init__(self, layer: str, domains: Iterable[Domain], every: float) -> None:
        self.registry, self.life = new_registry(), Life()
        files = "segments" if layer == "ingest" else "epochs"

        def of(kind: Any, name: str, text: str, *labels: str, **more: Any) -> Any:
            return kind(f"highwater_{layer}_{name}", text, ["domain", *labels], registry=self.registry, **more)

        self._rows = of(Counter, "rows_total", "Rows that were committed", "topic")
        self._files = of(Counter, f"{files}_total", f"Committed {files}")
        self._problems = of(Counter, "problems_total", "Committed rows with a problem", "topic", "problem")
        self._ends = of(Gauge, "committed_offsets", "Sum of the end offsets of what is committed", "topic")
        self._lost = of(Counter, "lost_races_total", "Commits that another writer won, or in doubt; made again")
        self._seconds = of(
            Histogram, "micro_batch_seconds", "From reading a micro-batch to its commit", buckets=MICRO_BATCH_BUCKETS
        )
        self._commit = of(Gauge, "last_commit_timestamp_seconds", "Last commit; at first, the start of the process")
        self._every = of(Gauge, "trigger_interval_seconds", "Pause between two micro-batches")
        self._number = of(Gauge, "epoch", "Number of the newest epoch in the chain") if layer == "stream" else None
        self._chain = of(Gauge, "chain", "Number of the chain") if layer == "stream" else None
        damaged = "Damaged chains and epochs that were set aside"
        self._aside = of(Counter, "set_aside_total", damaged) if layer == "stream" else None
        # From Spark, by its listener.
        self._triggers = of(Counter, "triggers_total", "Micro-batches that Spark finished")
        self._read = of(Counter, "input_rows_total", "Rows that Spark read; a race or a replay reads some again")
        self._phases = of(Counter, "phase_seconds_total", "Where the time of the micro-batches went", "phase")
        self._behind = of(Gauge, "behind_offsets", "Kafka's ends minus the end of the last micro-batch", "topic")
        self._active = of(Gauge, "query_active", "1 while the streaming query runs")
        for domain in domains:
            self._begin(domain, every)

    def _begin(self, domain: Domain, every: float) -> None:
        for metric in (self._files, self._lost, self._seconds, self._triggers, self._read, self._active):
            metric.labels(domain.name)
        for topic in domain.topics:
            self._rows.labels(domain.name, topic)
        self._commit.labels(domain.name).set_to_current_time()
        self._every.labels(domain.name).set(every)
        self.set_aside(domain.name, 0)

    def committed(
        self,
        domain: str,
        rows: Mapping[str, int],
        files: int,
        ends: Mapping[str, Mapping[Any, int]],
        lost: int,
        seconds: float,
    ) -> None:
        """Note one micro-batch of foreachBatch.

        Args:
            rows: topic → rows that this process committed; those of another writer are its own.
            files: segments or epochs.
            ends: topic → partition → head or end of the chain, exclusive.
            lost: commits that somebody else won.
            seconds: from the call to the commit.
        """
        for topic, number in rows.items():
            self._rows.labels(domain, topic).inc(number)
        for topic, offsets in ends.items():
            self._ends.labels(domain, topic).set(sum(offsets.values()))
        self._files.labels(domain).inc(files)
        self._lost.labels(domain).inc(lost)
        self._seconds.labels(domain).observe(seconds)
        if files:
            self._commit.labels(domain).set_to_current_time()

    def set_aside(self, domain: str, damaged: int) -> None:
        if self._aside:
            self._aside.labels(domain).inc(damaged)

    def epoch(self, domain: str, chain: int, number: int, counts: Mapping[str, Any]) -> None:
        """Note what an epoch says of itself: {topic: {log: {partition: {"good": n, problem: n}}}}."""
        assert self._chain and self._number
        self._chain.labels(domain).set(chain)
        self._number.labels(domain).set(number)
        for topic, logs in counts.items():
            for problems in (found for by in logs.values() for found in by.values()):
                for problem, rows in problems.items():
                    if problem != "good":
                        self._problems.labels(domain, topic, problem).inc(rows)

    def active(self, domain: str, running: bool) -> None:
        self._active.labels(domain).set(running)

    def progressed(
        self, domain: str, rows: int, phases: Mapping[str, float], behind: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Note what Spark says of a finished micro-batch.

        Args:
            rows: read from Kafka.
            phases: name → seconds.
            behind: topic → partition → offsets that Kafka already had beyond its end.
        """
        self._triggers.labels(domain).inc()
        self._read.labels(domain).inc(rows)
        for phase, seconds in phases.items():
            self._phases.labels(domain, phase).inc(seconds)
        for topic, offsets in behind.items():
            self._behind.labels(domain, topic).set(sum(offsets.values()))


class BatchMetrics:
    """The last batch run of each domain, and what it left.

    Args:
        every: seconds between the end of one run and the start of the next; None for a single run.
    """

    def __init__(self, domains: Iterable[Domain], every: float | None) -> None:
        self.registry, self._running = new_registry(), ""

        def of(kind: Any, name: str, text: str, *labels: str) -> Any:
            return kind(f"highwater_batch_{name}", text, ["domain", *labels], registry=self.registry)

        self._runs = of(Counter, "runs_total", "Runs by how they ended", "outcome")
        self._start = of(Gauge, "run_start_timestamp_seconds", "Start of the last run")
        self._end = of(Gauge, "run_end_timestamp_seconds", "End of the last run")
        self._success = of(Gauge, "last_success_timestamp_seconds", "End of the last run without a fault")
        self._seconds = of(Gauge, "run_seconds", "Duration of the last run")
        self._interval = of(Gauge, "interval_seconds", "Pause after a run; absent if it does not repeat")
        self._version = of(Gauge, "version", "Newest version of the line that the last run built on")
        self._created = of(Gauge, "version_timestamp_seconds", "When that version was made")
        self._events = of(Gauge, "events", "Good events below that version's horizon")
        self._horizon = of(Gauge, "horizon_offsets", "Sum of the offsets of its horizon", "topic")
        self._held = of(Gauge, "held_reports", "Reports that a check held back in that version")
        self._typed = of(Counter, "typed_rows_total", "Rows added to the typed log", "topic")
        self._compacted = of(Counter, "compacted_segments_total", "Small segments that were merged away")
        self._aside = of(Counter, "set_aside_total", "Damaged versions and choices that were set aside")
        for domain in domains:
            for outcome in ("ok", "failed"):
                self._runs.labels(domain.name, outcome)
            self._compacted.labels(domain.name)
            self._aside.labels(domain.name)
            for topic in domain.topics:
                self._typed.labels(domain.name, topic)
            if every:
                self._interval.labels(domain.name).set(every)

    @contextmanager
    def run(self, domain: str) -> Iterator[None]:
        """Note when a run began, when it ended and how."""
        began, self._running = time.time(), domain
        self._start.labels(domain).set(began)
        outcome = "failed"
        try:
            yield
            outcome = "ok"
            self._success.labels(domain).set_to_current_time()
        finally:
            self._running = ""
            self._runs.labels(domain, outcome).inc()
            self._end.labels(domain).set_to_current_time()
            self._seconds.labels(domain).set(time.time() - began)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """What `/health` answers; how runs end is counted, and the process tries again or ends."""
        return True, {"status": "ok", "running": self._running or None}

    def typed(self, domain: str, rows: Mapping[str, int]) -> None:
        """Note the rows that the run added to the typed log, by topic."""
        for topic, number in rows.items():
            self._typed.labels(domain, topic).inc(number)

    def compacted(self, domain: str, segments: int) -> None:
        self._compacted.labels(domain).inc(segments)

    def set_aside(self, domain: str, damaged: int) -> None:
        self._aside.labels(domain).inc(damaged)

    def version(self, domain: str, manifest: Any) -> None:
        """Note the manifest of the version that is the newest after the run."""
        self._version.labels(domain).set(manifest.version)
        self._events.labels(domain).set(manifest.events)
        self._held.labels(domain).set(sum(report["status"] == "held" for report in manifest.reports.values()))
        if (created := unix_seconds(manifest.created_at)) is not None:
            self._created.labels(domain).set(created)
        for topic, logs in manifest.horizon.items():
            self._horizon.labels(domain, topic).set(sum(offset for by in logs.values() for offset in by.values()))


def unix_seconds(text: str) -> float | None:
    """Seconds since 1970 of an ISO-8601 time, None for an empty text: version 0 was never made."""
    return datetime.fromisoformat(text).timestamp() if text else None


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: a scrape every few seconds is no news."""


def serve(who: str, registry: CollectorRegistry, health: Health, host: str, port: int) -> None:
    """Serve `/metrics` and `/health` (200 or 503) from a thread; a port that is taken costs the metrics, not the run.

    Args:
        who: the layer, whose setting is named if its port is taken.
        port: 0 = off.
    """
    if not port:
        return
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/health":
            return metrics(environ, start_response)  # type: ignore[no-any-return]
        healthy, told = health()
        start_response("200 OK" if healthy else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps(told).encode()]

    try:
        server = make_server(host, port, answer, _Server, _Quiet)
    except OSError as error:
        reason = error.strerror or error
        print(f"{who}: no metrics on {host}:{port} ({reason}); set {who.upper()}_METRICS_PORT", file=sys.stderr)
        return
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
