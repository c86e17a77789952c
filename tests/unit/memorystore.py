"""A serving store in memory that speaks the verbs of `engine.serving.cassandra.Cassandra`.

`plan` says what goes wrong, and when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.serving.store import Cell, Place


class Crash(BaseException):
    """The process is gone: nothing after this line runs, not even a handler for Exception."""


class MemoryStore:
    """Cells are written one by one.

    Before each step the action of `plan` for its number runs, or the process crashes.
    """

    def __init__(self) -> None:
        self.pointers: dict[str, tuple[int, bytes]] = {}
        self.names: dict[tuple[str, str], bytes] = {}
        self.registered: set[Place] = set()
        self.cells: dict[Place, dict[tuple[int, str, int], bytes]] = {}
        self.calls = 0
        self.plan: dict[int, Any] = {}
        self.written: list[Place] = []
        self.away = False

    def _call(self) -> None:
        if self.away:
            raise ConnectionError("nobody answers")
        self.calls += 1
        action = self.plan.pop(self.calls, None)
        if action == "crash":
            raise Crash
        if action is not None:
            action()

    def cursor_key(self) -> bytes:
        self._call()
        return b"k" * 32

    def pointer(self, domain: str, settled: bool = False) -> tuple[int, bytes] | None:
        self._call()
        return self.pointers.get(domain)

    def advance(self, domain: str, serial: int, body: bytes) -> bool:
        self._call()
        if self.pointers.get(domain, (0, b""))[0] != serial - 1:
            return False
        self.pointers[domain] = serial, body
        return True

    def name(self, domain: str, name: str, body: bytes) -> None:
        self._call()
        self.names[domain, name] = body

    def named(self, domain: str, name: str) -> bytes | None:
        self._call()
        return self.names.get((domain, name))

    def register(self, place: Place) -> None:
        self._call()
        self.registered.add(place)

    def places(self, domain: str) -> list[Place]:
        self._call()
        return sorted(place for place in self.registered if place.domain == domain)

    def write(self, place: Place, cells: Sequence[Cell]) -> None:
        for cell in cells:
            self._call()
            self.cells.setdefault(place, {})[cell.item, cell.digest, cell.number] = cell.data
            self.written.append(place)

    def read(self, place: Place, item: int = 0) -> list[Cell]:
        self._call()
        found = sorted(self.cells.get(place, {}).items())
        return [Cell(*key, data) for key, data in found if key[0] >= item]

    def drop(self, place: Place) -> None:
        self._call()
        self.cells.pop(place, None)
        self._call()
        self.registered.discard(place)
