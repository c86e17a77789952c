"""Which typed events are the newest? Rows of the typed log from the heads backwards, with bounded work per request.

Within a partition rows come in descending offsets; partitions are merged by Kafka's time. Segments never change, so a
cursor is simply the offset that each partition has come down to.
"""

from __future__ import annotations

import base64
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.log import FileSystem, Partition, Position, Segment
from engine.query import jsonable

# Rows of segments that one request looks at before it hands back a cursor instead of looking further.
WORK_ROWS = 2_000_000
# What opening a segment costs, in such rows.
SEGMENT_ROWS = 2_000

Key = tuple[str, str, str]


@dataclass
class Tail:
    """A walk from the heads downwards.

    Args:
        keep: Arrow table of one row group → mask of the wanted rows.
        worth: statistics of a row group → False if none of its rows can be wanted.
    """

    fs: FileSystem
    partitions: Mapping[Key, Partition]
    columns: Mapping[str, Sequence[str]]
    keep: Callable[[pa.Table], pa.ChunkedArray | pa.Array | None]
    worth: Callable[[Any], bool] = lambda group: True
    looked_at: int = field(default=0, init=False)

    def newest(self, limit: int, below: Position | None = None) -> tuple[list[dict[str, Any]], Position | None]:
        """Return at most `limit` rows, and where to go on, None at the end of the log.

        Args:
            below: start under these offsets; a partition it does not name is finished.
        """
        tops = {
            key: part.head if below is None else int(below.get(key[0], {}).get(key[1], {}).get(key[2], part.origin))
            for key, part in self.partitions.items()
        }
        walks = {key: self._walk(key, top) for key, top in tops.items()}
        heads: list[tuple[float, Key, dict[str, Any]]] = []
        for key, walk in walks.items():
            self._push(heads, key, walk, tops)
        rows: list[dict[str, Any]] = []
        while heads and len(rows) < limit:
            _, key, row = heapq.heappop(heads)
            rows.append(row)
            tops[key] = row["offset"]
            self._push(heads, key, walks[key], tops)
        left: Position = {}
        for (topic, log, partition), top in tops.items():
            if top > self.partitions[topic, log, partition].origin:
                left.setdefault(topic, {}).setdefault(log, {})[partition] = top
        return rows, left or None

    def _push(
        self, heads: list[tuple[float, Key, dict[str, Any]]], key: Key, walk: Iterator[Any], tops: dict[Key, int]
    ) -> None:
        for found in walk:
            if isinstance(found, int):
                tops[key] = found  # nothing wanted above this offset
                continue
            heapq.heappush(heads, (-found["kafka_time"].timestamp() if found["kafka_time"] else 0.0, key, found))
            return

    def _walk(self, key: Key, top: int) -> Iterator[dict[str, Any] | int]:
        """Yield wanted rows downwards, and offsets that the walk has come down to."""
        part = self.partitions[key]
        for segment in reversed(part.segments_between(part.origin, top)):
            if self.looked_at >= WORK_ROWS:
                return
            yield from self._of_segment(key, segment, top)
            yield segment.base

    def _of_segment(self, key: Key, segment: Segment, top: int) -> Iterator[dict[str, Any] | int]:
        self.looked_at += SEGMENT_ROWS
        opened = self.fs.open_parquet(segment.path)
        names = [name for name in self.columns[key[0]] if name in opened.schema_arrow.names]
        for number in reversed(range(opened.metadata.num_row_groups)):
            group = opened.metadata.row_group(number)
            if not self.worth(group):
                continue
            self.looked_at += group.num_rows
            table = opened.read_row_group(number, columns=names)
            mask = pc.less(table["offset"], top)
            wanted = self.keep(table)
            table = table.filter(mask if wanted is None else pc.and_(mask, wanted))
            for start in reversed(range(0, table.num_rows, 1000)):
                for row in reversed(table.slice(start, 1000).to_pylist()):
                    yield {"topic": key[0], "log": key[1], "partition": key[2], **row}


def problems_only(group: Any) -> bool:
    """False if every row of a row group is good."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "problem" and column.statistics is not None and column.statistics.has_null_count:
            return bool(column.statistics.null_count < group.num_rows)
    return True


def quarantine_row(domain: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with a problem as the API shows it; bytes that are not UTF-8 appear as base64."""
    shown = {"domain": domain, **{name: row[name] for name in ("topic", "log", "partition", "offset", "problem")}}
    shown |= {name: jsonable(row[name]) for name in ("kafka_time", "event_time")} | {"value": row["value"]}
    if row.get("value_bytes") is not None:
        shown["value_base64"] = base64.b64encode(row["value_bytes"]).decode()
    return shown
