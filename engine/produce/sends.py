"""What became of everything that was sent? Counts by topic for the console and for Prometheus; and events as files.

The sending thread and the thread that hears acknowledgements each write their own numbers, so nothing needs a lock.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.domain import Stream
from engine.runtime import metrics
from engine.runtime.notation import BYTE_ORDER_MARK, csv_lines

FILE_FORMATS = ("csv", "json", "jsonl")
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Tally(Collector):
    """Events handed over, acknowledged and failed, by topic."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.acked = dict.fromkeys(topics, 0)
        self.failed = dict.fromkeys(self.acked, 0)
        self.failed_keys: dict[str, set[bytes]] = {topic: set() for topic in self.acked}
        self.handed = dict.fromkeys(self.acked, 0)  # given to the Kafka client; the sending thread adds to it
        self._latency_counts = [0] * (len(LATENCY_BUCKETS) + 1)
        self._latency_sum = 0.0
        self._latest = (-1, 0, 0.0)  # timestamp, bucket and seconds of the latest acknowledgement
        self._started = time.monotonic()
        self._complained = 0.0

    def ack(self, record: Any) -> None:
        """Count one acknowledged record (kafka-python's RecordMetadata); those of one ms share a look at the clock."""
        self.acked[record.topic] += 1
        timestamp, bucket, seconds = self._latest
        if record.timestamp != timestamp:
            seconds = max(0.0, time.time() - record.timestamp / 1000)
            bucket = bisect_left(LATENCY_BUCKETS, seconds)
            self._latest = (record.timestamp, bucket, seconds)
        self._latency_counts[bucket] += 1
        self._latency_sum += seconds

    def written(self, topic: str) -> None:
        """Count one event written to a file."""
        self.handed[topic] += 1
        self.acked[topic] += 1

    def fail(self, topic: str, key: bytes, error: BaseException) -> None:
        """Count one event that Kafka did not acknowledge, and say so at most once a second."""
        self.failed[topic] += 1
        self.failed_keys[topic].add(key)
        if time.monotonic() - self._complained >= 1:
            self._complained = time.monotonic()
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            print(f"producer: failed so far: {self._failures()}; last: {reason}", file=sys.stderr, flush=True)

    def give_up(self) -> None:
        """Count as failed what has no answer although the client is closed."""
        for topic, handed in self.handed.items():
            self.failed[topic] = max(self.failed[topic], handed - self.acked[topic])

    @property
    def finished(self) -> int:
        """Events acknowledged or failed."""
        return sum(self.acked.values()) + sum(self.failed.values())

    @property
    def unfinished(self) -> int:
        """Events handed over and neither acknowledged nor failed."""
        return sum(self.handed.values()) - self.finished

    @property
    def any_failed(self) -> bool:
        return any(self.failed.values())

    def summary(self) -> str:
        """One line: acknowledged events by topic, seconds, rate, failures."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        total = sum(self.acked.values())
        topics = ", ".join(f"{topic} {count}" for topic, count in self.acked.items())
        failures = f"; FAILED: {self._failures()}" if self.any_failed else "; none failed"
        return f"{total} events acknowledged in {seconds:.1f} s, {total / seconds:.0f}/s ({topics}){failures}"

    def progress(self, seconds: float, before: int) -> str:
        """One short line: totals now, and the rate since `before` events."""
        total = sum(self.acked.values())
        topics = " ".join(f"{topic}={count}" for topic, count in self.acked.items())
        return (
            f"acked {total} ({(total - before) / seconds:.0f}/s) waiting {self.unfinished} "
            f"failed {sum(self.failed.values())} | {topics}"
        )

    def collect(self) -> Iterator[Metric]:
        """The same numbers for Prometheus."""
        for name, text, counts in (
            ("messages_sent", "Events that Kafka acknowledged.", self.acked),
            ("messages_failed", "Events that Kafka did not acknowledge.", self.failed),
        ):
            counter = CounterMetricFamily(name, text, labels=["topic"])
            for topic, count in counts.items():
                counter.add_metric([topic], count)
            yield counter
        cumulated, buckets = 0, []
        for bound, count in zip((*map(str, LATENCY_BUCKETS), "+Inf"), tuple(self._latency_counts), strict=True):
            cumulated += count
            buckets.append((bound, cumulated))
        histogram = HistogramMetricFamily("send_latency_seconds", "From handing an event over to its acknowledgement.")
        histogram.add_metric([], buckets, self._latency_sum)
        yield histogram

    def _failures(self) -> str:
        failed = {topic: count for topic, count in self.failed.items() if count}
        return ", ".join(f"{topic} {n} events of {len(self.failed_keys[topic])} keys" for topic, n in failed.items())


@contextmanager
def report_progress(tally: Tally) -> Iterator[None]:
    """Print a progress line to standard error meanwhile: in place each second on a terminal, else every 5 s."""
    live = sys.stderr.isatty()
    pause = 1.0 if live else 5.0
    done = threading.Event()

    def report() -> None:
        before = 0
        while not done.wait(pause):
            line = tally.progress(pause, before)
            before = sum(tally.acked.values())
            print(f"\r\x1b[K{line[:150]}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)

    thread = threading.Thread(target=report, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if live:
            print(file=sys.stderr)


def serve_metrics(tally: Tally, host: str, port: int) -> None:
    """Serve the counts at `/metrics` and `/health`; see `engine.runtime.metrics.serve`."""
    registry = metrics.new_registry()
    registry.register(tally)

    def health() -> tuple[bool, dict[str, Any]]:
        state = {"acknowledged": sum(tally.acked.values()), "failed": sum(tally.failed.values())}
        return True, {"status": "ok", **state, "waiting": tally.unfinished}

    metrics.serve("producer", registry, health, host, port)


class FileSink:
    """Writes events as csv (UTF-8 with BOM, formula-safe), json (one unescaped array) or jsonl; all name the topic."""

    def __init__(self, kind: str, path: str, streams: Iterable[Stream]) -> None:
        if path == "-":
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends us silently, like any tool
        self._kind = kind
        self._file = sys.stdout.buffer if path == "-" else Path(path).open("wb")  # noqa: SIM115
        self._columns = ["topic", *dict.fromkeys(name for stream in streams for name in stream.columns)]
        if kind == "csv":
            self._file.write(BYTE_ORDER_MARK + csv_lines([self._columns]))
        self._before = b"[\n" if kind == "json" else b""

    def write(self, topic: str, value: bytes, event: dict[str, Any]) -> None:
        """Write one event, its JSON as sent."""
        if self._kind == "csv":
            row = {**event, "topic": topic}
            self._file.write(csv_lines([[row.get(name) for name in self._columns]]))
            return
        self._file.write(self._before + b'{"topic":' + json.dumps(topic).encode() + b"," + value[1:])
        if self._kind == "json":
            self._before = b",\n"
        else:
            self._file.write(b"\n")

    def close(self) -> None:
        """Finish the file; an array that holds nothing is still an array."""
        if self._kind == "json":
            self._file.write((self._before if self._before == b"[\n" else b"\n") + b"]\n")
        self._file.flush()
        if self._file is not sys.stdout.buffer:
            self._file.close()
