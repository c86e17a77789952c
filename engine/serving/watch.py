"""How fresh and how complete is an answer? Kafka's ends and the logs on HDFS, held against a snapshot's coverage.

`Watch` holds what two background threads last saw of one domain; the functions below compare, they ask nobody.
Staleness speaks of what lies above coverage, `missing` of what lies below.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from engine.domain import UNKNOWN_FIELDS, Domain
from engine.serving.snapshot import Snapshot
from engine.storage.chains import HOLE
from engine.storage.log import (
    EVENTS,
    LogReader,
    Partition,
    Partitions,
    Position,
    covers,
    each,
    next_log,
    offset_in,
    present_log,
)

# How many of Kafka's answers (one a second) are remembered to judge snapshots that a cursor still holds.
REMEMBERED = 600

Ranges = dict[str, dict[str, dict[str, tuple[int, int]]]]


@dataclass(frozen=True)
class Seen:
    """The raw and the typed log on HDFS, typed listed first, so that typed <= raw."""

    raw: Partitions
    typed: Partitions


@dataclass
class Watch:
    """What is known of the logs of one domain besides the snapshot; written by threads, each field swapped whole.

    Args:
        asked: (epoch seconds before asking, {topic: {log: {partition: (start, end)}}}) of Kafka, newest last.
        logs: (topic, topic id) → the log that continues it.
    """

    domain: Domain
    seen: Seen | None = None
    asked: deque[tuple[float, Ranges]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    logs: dict[tuple[str, str], str] = field(default_factory=dict)
    _covered_at: float | None = None

    def look(self, raw: LogReader, ids: Mapping[str, str]) -> None:
        """List the raw and typed logs, and find the present log of each topic id."""
        typed: Partitions = {}
        for stream in self.domain.streams:
            reader = self._typed.setdefault(stream.topic, LogReader(raw.fs, f"{EVENTS}/{stream.schema_hash}"))
            typed |= reader.partitions((stream.topic,))
        self.seen = Seen(raw.partitions(self.domain.topics), typed)
        self.logs = {(t, ids[t]): present_log(raw.fs, t, ids[t]) for t in self.domain.topics if t in ids}

    def __post_init__(self) -> None:
        self._typed: dict[str, LogReader] = {}
        self._before: Partitions = {}  # the raw log as it was listed before Kafka was asked last

    def note(self, at: float, ids: Mapping[str, str], ranges: Mapping[str, Mapping[int, tuple[int, int]]]) -> None:
        """Remember Kafka's answer, under the names of the logs.

        A partition that ends below the head that HDFS had before Kafka was asked has begun anew under the same id, and
        goes by a name that nothing covers until ingest has been told so (`--new-log`).
        """
        told: Ranges = {}
        for topic in (t for t in self.domain.topics if t in ids and t in ranges):
            name = self.logs.get((topic, ids[topic]), ids[topic])
            heads = {p: part.head for p, part in self._before.get(topic, {}).get(name, {}).items()}
            for number, (start, end) in ranges[topic].items():
                shown = name if end >= heads.get(str(number), 0) else f"{name} begun anew"
                told.setdefault(topic, {}).setdefault(shown, {})[str(number)] = (start, end)
        self.asked.append((at, told))
        self._before = self.seen.raw if self.seen else {}

    def take_over(self, other: Watch) -> None:
        """Go on where the watch of another definition of this domain stands."""
        self.asked.extend(other.asked)
        self._covered_at = other._covered_at

    @property
    def kafka(self) -> Ranges:
        """Kafka's last answer, empty before the first."""
        return self.asked[-1][1] if self.asked else {}

    def staleness(self, snapshot: Snapshot, now: float) -> float:
        """Seconds since the last moment at which all of Kafka's ends were covered by the snapshot.

        Where no such moment was seen, the time since the newest piece of the snapshot was made.
        """
        known = {topic for topic, *_, offset in each(snapshot.coverage) if offset > 0}
        for at, ranges in reversed(list(self.asked)):
            if known <= ranges.keys() and covers(snapshot.coverage, ends(ranges)):
                self._covered_at = max(at, self._covered_at or at)
                return max(0.0, now - at)
        return max(0.0, now - (self._covered_at or _epoch_seconds(snapshot.created_at) or now))

    def rows_below(self, coverage: Position, topics: Sequence[str]) -> int:
        """Rows of the topics' logs below coverage, counted from the origins."""
        raw = self.seen.raw if self.seen else {}
        seen = {key[:3]: key[3] for key in each(raw)}
        total = 0
        for topic, log, partition, offset in each({t: coverage.get(t, {}) for t in topics}):
            part = seen.get((topic, log, partition))
            total += part.rows_between(part.origin, offset) if part else 0
        return total

    def missing(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """Ranges below coverage that are in no answer: accepted gaps, and partitions that nothing covers yet."""
        found = []
        raw = self.seen.raw if self.seen else {}
        for topic, log, partition, seen in each(raw):
            head = offset_in(snapshot.coverage, topic, log, partition, -1)
            found += [
                _missing(topic, log, partition, start, min(end, head), "accepted gap")
                for start, end in seen.gaps
                if start < head
            ]
            if head < 0 and seen.head > seen.origin:
                found.append(_missing(topic, log, partition, seen.origin, seen.head, "not covered"))
        for topic, log, partition, (start, end) in each(self.kafka):
            silent = offset_in(snapshot.coverage, topic, log, partition, -1) < 0
            if silent and end > start and partition not in raw.get(topic, {}).get(log, {}):
                found.append(_missing(topic, log, partition, start, end, "not covered"))
        return found

    def ledger(self, snapshot: Snapshot, now: float) -> dict[str, Any]:
        """Return the balance of one domain; see docs of `/v1/ledger` for what each field counts."""
        rows = [self._balance(snapshot, *key) for key in sorted(self._partitions(snapshot))]
        missing = self.missing(snapshot)
        batch, speed = snapshot.manifest.events, snapshot.events_speed
        return {
            "domain": self.domain.name,
            "version": snapshot.manifest.version,
            "created_at": snapshot.manifest.created_at,
            "events": {"batch": batch, "speed": speed, "merged": batch + speed},
            "balanced": all(row["balanced"] for row in rows),
            "complete": not missing,
            "missing": missing,
            "staleness_seconds": round(self.staleness(snapshot, now), 3),
            "quarantined": snapshot.quarantined,
            "unknown_fields": {t: _most(names) for t, names in snapshot.manifest.unknown.items()},
            "as_of": snapshot.as_of,
            "partitions": rows,
        }

    def _only_hdfs(self, topic: str, log: str, partition: str, raw: Partition) -> int:
        """Rows of a log that Kafka lost after they were mirrored: those above the point where its next log begins."""
        logs = self.seen.raw.get(topic, {}) if self.seen else {}
        following = _successor(log, logs)
        after = logs[following].get(partition) if following else None
        return raw.rows_between(after.origin, raw.head) if after else 0

    def _lost(self, snapshot: Snapshot, topic: str, log: str, partition: str) -> dict[str, int] | None:
        """Where the speed layer had counted on in a log before Kafka lost it: rows that are in no log any more."""
        losses = snapshot.chain.lost if snapshot.chain else []
        starts = [offset_in(position, topic, log, partition, -1) for _, position in losses]
        return next(({"from": start} for start in starts if start >= 0), None)

    def _partitions(self, snapshot: Snapshot) -> set[tuple[str, str, str]]:
        seen = self.seen.raw if self.seen else {}
        return {key[:3] for where in (seen, self.kafka, snapshot.coverage) for key in each(where)}

    def _balance(self, snapshot: Snapshot, topic: str, log: str, partition: str) -> dict[str, Any]:
        coverage = offset_in(snapshot.coverage, topic, log, partition, -1)
        kafka = self.kafka.get(topic, {}).get(log, {}).get(partition)
        seen = self.seen or Seen({}, {})
        started = max(coverage, 0) if kafka is None else kafka[0]
        origin = offset_in(snapshot.manifest.horizon, topic, log, partition, started)
        none = Partition((), origin, origin)
        raw = seen.raw.get(topic, {}).get(log, {}).get(partition, none)
        typed = seen.typed.get(topic, {}).get(log, {}).get(partition) or Partition((), raw.origin, raw.origin)
        horizon = offset_in(snapshot.manifest.horizon, topic, log, partition, raw.origin)
        speed_end = max(coverage, horizon)
        batch, speed = (
            dict(c.get(topic, {}).get(log, {}).get(partition, {})) for c in (snapshot.manifest.counts, snapshot.counts)
        )
        good, speed_good, speed_holes = batch.pop("good", 0), speed.pop("good", 0), speed.pop(HOLE, 0)
        end = raw.head if kafka is None else kafka[1]
        balanced = (
            not raw.damage
            and not typed.damage
            and typed.origin == raw.origin
            and raw.rows_between(raw.origin, horizon) == good + sum(batch.values())
            and speed_end - horizon - raw.gaps_between(horizon, speed_end)
            == speed_good + speed_holes + sum(speed.values())
            and raw.rows_between(raw.origin, typed.head) == typed.rows_between(typed.origin, typed.head)
            and horizon <= typed.head <= raw.head <= end
        )
        return {
            "topic": topic,
            "log": log,
            "partition": partition,
            "kafka_start": kafka[0] if kafka else None,
            "kafka_end": kafka[1] if kafka else None,
            "origin": raw.origin,
            "raw_head": raw.head,
            "typed_head": typed.head,
            "raw": raw.rows_between(raw.origin, raw.head),
            "typed": typed.rows_between(typed.origin, typed.head),
            "good": good,
            "problems": batch,
            "gaps": raw.gaps_between(raw.origin, horizon),
            "holes": raw.holes_between(raw.origin, raw.head),
            "speed": {"good": speed_good, "problems": speed},
            "pending": max(0, end - typed.head),
            "horizon": horizon,
            "speed_end": speed_end,
            "only_hdfs": self._only_hdfs(topic, log, partition, raw),
            "lost": self._lost(snapshot, topic, log, partition),
            "lag": {
                "ingest": max(0, end - raw.head),
                "typed": raw.head - typed.head,
                "stream": max(0, end - speed_end),
            },
            "balanced": balanced,
        }


def _successor(log: str, logs: Mapping[str, Any]) -> str | None:
    following = next_log(log)
    return following if following in logs else None


def ends(ranges: Ranges) -> Position:
    """End offsets of the partitions that hold records."""
    return {
        topic: {log: {p: end for p, (start, end) in parts.items() if end > start} for log, parts in logs.items()}
        for topic, logs in ranges.items()
    }


def _most(names: Mapping[str, int]) -> dict[str, int]:
    """The most frequent names first, at most as many as a manifest holds."""
    return dict(sorted(names.items(), key=lambda item: (-item[1], item[0]))[: UNKNOWN_FIELDS + 1])


def _missing(topic: str, log: str, partition: str, start: int, end: int, reason: str) -> dict[str, Any]:
    return {"topic": topic, "log": log, "partition": partition, "start": start, "end": end, "reason": reason}


def _epoch_seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None
