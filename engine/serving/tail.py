"""Which typed events are the newest? Rows of the typed log from the heads backwards, with bounded work per request.

Within a partition rows come in descending offsets; partitions are merged by Kafka's time. Segments never change, so a
cursor is simply the offset that each partition has come down to.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.runtime.notation import size_of, writable
from engine.storage.log import FileSystem, Partition, Position, Segment

# Rows of segments that one request looks at before it hands back a cursor instead of looking further.
WORK_ROWS = 2_000_000
# What opening a segment costs, in such rows.
SEGMENT_ROWS = 2_000
# And bytes, as long as one row of them is enough: that one request reads, that a page holds, and that a walk has at
# hand.
WORK_BYTES, PAGE_BYTES, HAND_BYTES = 512_000_000, 16_000_000, 2_000_000

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
    read_bytes: int = field(default=0, init=False)
    _begun: set[Key] = field(default_factory=set, init=False)

    def newest(self, limit: int, below: Position | None = None) -> tuple[list[dict[str, Any]], Position | None]:
        """Return at most `limit` rows, or `PAGE_BYTES`, and where to go on, None at the end of the log.

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
        page_bytes = 0
        while heads and len(rows) < limit and page_bytes < PAGE_BYTES:
            _, key, row = heapq.heappop(heads)
            rows.append(row)
            page_bytes += size_of(row)
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
            if self._has_worked_enough(key):
                return
            yield from self._of_segment(key, segment, top)

    def _has_worked_enough(self, key: Key) -> bool:
        """True where the walk of a partition should not read on.

        Each may read once, or those that come last would starve.
        """
        return key in self._begun and (self.looked_at >= WORK_ROWS or self.read_bytes >= WORK_BYTES)

    def _of_segment(self, key: Key, segment: Segment, top: int) -> Iterator[dict[str, Any] | int]:
        self.looked_at += SEGMENT_ROWS
        opened = self.fs.open_parquet(segment.path)
        names = [name for name in self.columns[key[0]] if name in opened.schema_arrow.names]
        for number in reversed(range(opened.metadata.num_row_groups)):
            group = opened.metadata.row_group(number)
            if not self.worth(group):
                continue
            if self._has_worked_enough(key):
                return
            self._begun.add(key)
            table = opened.read_row_group(number, columns=names)
            self.looked_at += group.num_rows
            self.read_bytes += table.nbytes
            lowest = table["offset"][0].as_py() if table.num_rows else top
            mask = pc.less(table["offset"], top)
            wanted = self.keep(table)
            table = writable(table.filter(mask if wanted is None else pc.and_(mask, wanted)))
            step = rows_within(HAND_BYTES, table, 1000)
            for end in range(table.num_rows, 0, -step):
                for row in reversed(table.slice(max(0, end - step), min(step, end)).to_pylist()):
                    yield {"topic": key[0], "log": key[1], "partition": key[2], **row}
            yield min(lowest, top)
        yield segment.base


def rows_within(limit: int, table: pa.Table, most: int) -> int:
    """Number of average rows of a table that hold about so many bytes, at least one and at most `most`."""
    fitting: int = limit * table.num_rows // max(1, table.nbytes)
    return max(1, min(most, fitting))


def rows_of_page(rows: Any, limit: int) -> int:
    """Number of rows (tuples, or of an Arrow table) that make a page.

    As many as were asked for, or about `PAGE_BYTES`.
    """
    if isinstance(rows, pa.Table):
        return rows_within(PAGE_BYTES, rows, limit)
    page_bytes = 0
    for number, row in enumerate(rows[:limit], 1):
        page_bytes += size_of(row)
        if page_bytes >= PAGE_BYTES:
            return number
    return limit
