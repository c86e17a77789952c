"""Is Kafka's log still the log that we mirrored? Proved per partition, against the last stored row that Kafka may hold.

Whoever goes on reading Kafka asks here first: ingest and stream when they open, and again when Kafka's leaders changed
(a broker was away meanwhile, and may have come back without its disk). The record at the last stored offset below
min(head, Kafka's end) must equal the stored row. Then it is the same log, whole or cut short; else it is another one,
and where the two part is found by halving, since two copies of one log are equal up to the point where one was cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import structlog

from engine.runtime.kafka import KafkaLogs, PartitionState, Record, TopicState, stored_ms
from engine.storage.log import FileSystem, Partition, Partitions, opened, present_log

# So many offsets without a row at the end of a log are looked at; a transaction leaves one, an aborted one its records,
# too.
HOLES_COMPARED = 16

_log = structlog.get_logger("engine.storage.continuity")


class LogReplaced(RuntimeError):
    """Kafka holds another log under the same topic id; names the command that goes on in a new log."""


class DataExpired(RuntimeError):
    """Kafka deleted offsets that were not ingested; names the range and the two ways out."""


@dataclass(frozen=True)
class Verdict:
    """How Kafka's partition relates to the stored one.

    Args:
        proof: "continues": the same log; "cut": the same log, cut short at `common`; "other": another log; "unproven":
            nothing is stored yet, or Kafka does not hold any more what could be compared.
        common: up to here (exclusive) the two are known to be equal, where they are the same log.
        compared: the offset that was compared last, None where none could be.
    """

    proof: Literal["continues", "cut", "other", "unproven"]
    head: int
    kafka: PartitionState
    common: int
    compared: int | None = None


# What is stored of one partition of Kafka, newest log first: each log goes on where Kafka's was cut, or ended, below
# it.
Lineage = tuple[Partition, ...]


def verdicts(
    fs: FileSystem,
    kafka: KafkaLogs,
    mirrored: Mapping[tuple[str, int], Lineage],
    state: Mapping[str, TopicState],
    find_cut: bool = False,
) -> dict[tuple[str, int], Verdict]:
    """Judge partitions of the present logs.

    Args:
        mirrored: (topic, partition) → what the master dataset has of it (`lineages`), read before `state`.
        find_cut: look for the offset at which two different logs part, which costs some thirty reads; otherwise a
            difference is "other".
    """
    stored = {}
    for (topic, p), lineage in mirrored.items():
        at = state[topic].partitions[p] if topic in state and p in state[topic].partitions else None
        row = stored_row(fs, lineage, min(lineage[0].head, at.end)) if at else None
        if row is not None:
            stored[topic, p] = row
    live = kafka.records_at({place: row[0] for place, row in stored.items()}) if stored else {}
    filled = _filled_holes(kafka, mirrored, stored, state)
    # Retention may have taken what was asked for since `state` was: where a log starts is asked again, after the
    # records.
    absent = {topic for topic, p in stored if (topic, p) not in live}
    later = kafka.state(absent) if absent else {}
    found: dict[tuple[str, int], Verdict] = {}
    for place, lineage in mirrored.items():
        topic, p = place
        at = state[topic].partitions.get(p) if topic in state else None
        if at is None:
            continue
        row = stored.get(place)
        head = lineage[0].head
        short = at.end < head
        if place in filled:
            common = _parting(fs, kafka, place, lineage, at) if find_cut else None
            found[place] = Verdict("other" if common is None else "cut", head, at, common or 0, filled[place])
        elif row is None or (place not in live and not _start(later, place, at) <= row[0] < at.end):
            found[place] = Verdict("unproven", head, at, min(head, at.end), None)
        elif live.get(place) == row:
            found[place] = Verdict("cut" if short else "continues", head, at, min(head, at.end), row[0])
        else:
            common = _parting(fs, kafka, place, lineage, at) if find_cut else None
            found[place] = Verdict("other" if common is None else "cut", head, at, common or 0, row[0])
    return found


def _start(later: Mapping[str, TopicState], place: tuple[str, int], before: PartitionState) -> int:
    now = later[place[0]].partitions.get(place[1], before) if place[0] in later else before
    return max(now.start, before.start)


def check_continuity(topic: str, found: Mapping[int, Verdict], domain: str) -> None:
    """Refuse to go on where Kafka's log is not the stored one. Raises LogReplaced."""
    replaced = f"if the broker lost data, go on in a new log: ingest_layer.py --domain {domain} --new-log {topic}"
    for p, verdict in found.items():
        where, at, head = f"topic '{topic}' partition {p}", verdict.kafka, verdict.head
        if verdict.proof == "other":
            raise LogReplaced(
                f"LOG_REPLACED {where}: Kafka's record at {verdict.compared} is not the stored row; {replaced}"
            )
        if at.end < head:
            raise LogReplaced(f"LOG_REPLACED {where}: Kafka ends at {at.end}, the master dataset at {head}; {replaced}")
        if verdict.compared is None and head > at.start:
            _log.warning("continuity unproven", topic=topic, partition=p, offset=head - 1)


def check_expiry(topic: str, found: Mapping[int, Verdict], domain: str) -> None:
    """Refuse to go on where Kafka has deleted offsets that are not stored. Raises DataExpired."""
    for p, verdict in found.items():
        head, start = verdict.head, verdict.kafka.start
        if start > head:
            raise DataExpired(
                f"DATA_EXPIRED topic '{topic}' partition {p} [{head}, {start}): Kafka deleted {start - head} offsets before they were ingested; restore "
                f"the topic, or accept the loss, which stays on record: ingest_layer.py --domain {domain} --accept-gap"
            )


def stored_row(fs: FileSystem, lineage: Lineage, below: int) -> Record | None:
    """Return the last stored row below an offset as (offset, timestamp in ms, key, value), None where there is none."""
    for partition in lineage:
        if (row := _last_row(fs, partition, below)) is not None:
            return row
        below = min(below, partition.origin)
    return None


def _last_row(fs: FileSystem, partition: Partition, below: int) -> Record | None:
    for segment in reversed(partition.segments_between(partition.origin, below)):
        parquet = opened(fs, segment.path)
        for group in reversed(range(parquet.metadata.num_row_groups)):
            columns = ["offset", "timestamp", "key", "key_bytes", "value", "value_bytes"]
            rows = parquet.read_row_group(group, columns=columns)
            at = int(np.searchsorted(rows["offset"].to_numpy(), below)) - 1
            if at < 0:
                continue
            # As integers: a sender may have set a time that no datetime holds.
            micros = pc.cast(rows["timestamp"], "int64")[at].as_py()
            row = rows.drop_columns(["timestamp"]).slice(at, 1).to_pylist()[0]
            return row["offset"], stored_ms(micros // 1000), _bytes(row, "key"), _bytes(row, "value")
    return None


def _parting(
    fs: FileSystem, kafka: KafkaLogs, place: tuple[str, int], lineage: Lineage, at: PartitionState
) -> int | None:
    """Return the offset up to which Kafka's log equals the stored one, None if not even its beginning does."""

    def equal(row: Record | None) -> bool:
        return row is not None and kafka.records_at({place: row[0]}).get(place) == row

    low, high = max(at.start, lineage[-1].origin), min(lineage[0].head, at.end)
    first = low + 1
    while first < high and ((row := stored_row(fs, lineage, first)) is None or row[0] < low):
        first += 1  # holes
    if not equal(stored_row(fs, lineage, first)):
        return None
    equal_below, different_below = first, high
    while different_below - equal_below > 1:
        middle = (equal_below + different_below) // 2
        if equal(stored_row(fs, lineage, middle)):
            equal_below = middle
        else:
            different_below = middle
    last = stored_row(fs, lineage, equal_below)
    # What lies behind the last common row and has no row may have been lost, too, and be records now.
    return last[0] + 1 if last else None


def _filled_holes(
    kafka: KafkaLogs,
    mirrored: Mapping[tuple[str, int], Lineage],
    stored: Mapping[tuple[str, int], Record],
    state: Mapping[str, TopicState],
) -> dict[tuple[str, int], int]:
    """Return an offset of each partition behind the last stored row at which Kafka has a record now, and had none then."""
    behind: dict[tuple[str, int], range] = {}
    for (topic, p), lineage in mirrored.items():
        at = state[topic].partitions.get(p) if topic in state else None
        if at is not None:
            begin = stored[topic, p][0] + 1 if (topic, p) in stored else lineage[-1].origin
            behind[topic, p] = range(max(begin, at.start), min(lineage[0].head, at.end))
    return filled_holes(kafka, behind)


def filled_holes(kafka: KafkaLogs, holes: Mapping[tuple[str, int], range]) -> dict[tuple[str, int], int]:
    """Return an offset of each partition that had no record when it was read, and has one now.

    A log that was cut within the markers at its end, and went on, differs from what was read nowhere else.

    Args:
        holes: offsets without a record at the end of what was read; the last few of them are asked for.
    """
    holes = {place: offsets[-HOLES_COMPARED:] for place, offsets in holes.items()}
    found: dict[tuple[str, int], int] = {}
    for number in range(max(map(len, holes.values()), default=0)):
        wanted = {place: offsets[number] for place, offsets in holes.items() if number < len(offsets)}
        found |= {place: record[0] for place, record in kafka.records_at(wanted).items()}
    return found


def lineages(logs: Mapping[str, str], partitions: Partitions) -> dict[tuple[str, int], Lineage]:
    """Return (topic, partition) → what is stored of it in the present logs, and in those that they go on from."""
    found: dict[tuple[str, int], Lineage] = {}
    for topic, log in logs.items():
        for p, partition in partitions.get(topic, {}).get(log, {}).items():
            lineage = [partition]
            while before := partitions[topic].get(lineage[-1].continues or "", {}).get(p):
                lineage.append(before)
            found[topic, int(p)] = tuple(lineage)
    return found


def _bytes(row: Mapping[str, object], name: str) -> bytes | None:
    text, raw = row[name], row[f"{name}_bytes"]
    return text.encode() if isinstance(text, str) else raw  # type: ignore[return-value]


def present_logs(fs: FileSystem, state: Mapping[str, TopicState]) -> dict[str, str]:
    """Return topic → the log that Kafka's topic continues."""
    return {topic: present_log(fs, topic, topic_state.id) for topic, topic_state in state.items()}


def by_topic(found: Mapping[tuple[str, int], Verdict]) -> dict[str, dict[int, Verdict]]:
    """Return topic → partition → verdict."""
    split: dict[str, dict[int, Verdict]] = {}
    for (topic, partition), verdict in found.items():
        split.setdefault(topic, {})[partition] = verdict
    return split
