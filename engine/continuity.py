"""Is Kafka's log still the log that we mirrored? Asked at start and with every micro-batch of ingest."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from engine.log import FileSystem, Partition

# offset, timestamp in ms, key, value
Record = tuple[int, int, bytes | None, bytes | None]

_log = structlog.get_logger("engine.continuity")


class LogReplaced(RuntimeError):
    """Kafka holds another log under the same topic id; names the command that goes on in a new log."""


class DataExpired(RuntimeError):
    """Kafka deleted offsets that were not ingested; names the range and the two ways out."""


def check_continuity(
    fs: FileSystem,
    topic: str,
    mirrored: Mapping[str, Partition],
    kafka: Mapping[int, tuple[int, int]],
    records: Mapping[tuple[str, int], Record],
    domain: str,
) -> None:
    """Compare the present log of one topic with Kafka.

    Args:
        mirrored: partition → what the master dataset has of the present log.
        kafka: partition → (earliest offset, end offset).
        records: (topic, partition) → Kafka's record at head − 1, where Kafka still has it.

    Raises:
        LogReplaced: Kafka ends below the head, or its record at head − 1 is not the stored row.
        DataExpired: Kafka starts above the head.
    """
    replaced = f"if the broker lost its disk, go on in a new log: ingest_layer.py --domain {domain} --new-log {topic}"
    for name, partition in mirrored.items():
        head = partition.head
        if head <= partition.origin:
            continue
        start, end = kafka.get(int(name), (0, 0))
        where = f"topic '{topic}' partition {name}"
        if end < head:
            raise LogReplaced(f"LOG_REPLACED {where}: Kafka ends at {end}, the master dataset at {head}; {replaced}")
        if start > head:
            raise DataExpired(
                f"DATA_EXPIRED {where} [{head}, {start}): Kafka deleted {start - head} offsets before they were ingested; restore the topic, "
                f"or accept the loss, which stays on record: ingest_layer.py --domain {domain} --accept-gap"
            )
        if any(gap_end == head for _, gap_end in partition.gaps):
            continue
        live = records.get((topic, int(name)))
        if live is None:
            _log.warning("continuity unproven", topic=topic, partition=name, offset=head - 1)
        elif live[1:] != stored_row(fs, partition):
            raise LogReplaced(f"LOG_REPLACED {where}: Kafka's record at {head - 1} is not the stored row; {replaced}")


def stored_row(fs: FileSystem, partition: Partition) -> tuple[int, bytes | None, bytes | None]:
    """Return (timestamp in ms, key, value) of the last row of a partition."""
    parquet = fs.open_parquet(partition.segments[-1].path)
    columns = ["timestamp", "key", "key_bytes", "value", "value_bytes"]
    rows = parquet.read_row_group(parquet.metadata.num_row_groups - 1, columns=columns)
    row: dict[str, Any] = rows.slice(rows.num_rows - 1).to_pylist()[0]
    moment: datetime = row["timestamp"]
    epoch = datetime(1970, 1, 1, tzinfo=UTC if moment.tzinfo else None)
    return (moment - epoch) // timedelta(milliseconds=1), _bytes(row, "key"), _bytes(row, "value")


def _bytes(row: Mapping[str, Any], name: str) -> bytes | None:
    text: str | None = row[name]
    raw: bytes | None = row[f"{name}_bytes"]
    return text.encode() if text is not None else raw
