"""Which keys were seen before? The speed layer's memory: the valid keys of the last W offsets of each partition.

The memory is a copy of what epochs and typed log hold; it is rebuilt from them at every start. What a duplicate is, the
batch layer's `engine.fold.quality.with_duplicates` says, and this finds the same ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

Place = tuple[str, str, str]  # topic, log, partition
Keyed = tuple[int, str]  # offset, hash of the unique key


class KeyWindow:
    """Unique key → newest offset, per partition, for the last W offsets.

    Args:
        windows: topic → W.
    """

    def __init__(self, windows: Mapping[str, int]) -> None:
        self._windows = windows
        self._newest: dict[Place, dict[str, int]] = {}
        self._order: dict[Place, deque[Keyed]] = {}

    def __len__(self) -> int:
        return sum(len(keys) for keys in self._newest.values())

    def duplicates(self, place: Place, valid: Iterable[Keyed]) -> list[int]:
        """Return the offsets of valid rows (ascending, newer than all remembered) that repeat a key within W."""
        window = self._windows[place[0]]
        remembered = self._newest.get(place, {})
        seen: dict[str, int] = {}
        found = []
        for offset, key in valid:
            before = seen.get(key, remembered.get(key))
            if before is not None and offset - before <= window:
                found.append(offset)
            seen[key] = offset
        return found

    def remember(self, place: Place, valid: Iterable[Keyed]) -> None:
        """Take valid rows (in offset order) into the memory and forget what no coming row can repeat."""
        newest = self._newest.setdefault(place, {})
        order = self._order.setdefault(place, deque())
        for offset, key in valid:
            newest[key] = offset
            order.append((offset, key))
        while order and order[0][0] < order[-1][0] - self._windows[place[0]]:
            offset, key = order.popleft()
            if newest[key] == offset:
                del newest[key]
