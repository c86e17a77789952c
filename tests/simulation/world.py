"""An HDFS, a Kafka, a clock and a scheduler of their own making, in which the product's own functions run.

Every call of a file system or of Kafka is a step. At each the scheduler decides who goes on: it may switch to another
process, pause one for any time, kill it, show it an old listing, or lose the answer of a rename. What it decides
depends on the seed and the number of the step alone, so a fault can be left out and all the others stay where they are.
Nothing here knows the product's protocol; HDFS's part is what the NameNode promises (a rename refuses an existing
target and a missing parent).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from greenlet import getcurrent, greenlet

from engine.runtime.kafka import Generation, Record, TopicState
from engine.storage.hdfs import Entry
from tests.unit.memorykafka import MemoryKafka

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
STEP_SECONDS = 0.02
PAUSES = (1, 30, 400, 900, 2000, 5000)


class Killed(BaseException):
    """kill -9: nothing after this line runs, not even a handler for Exception."""


class LostAnswer(RuntimeError):
    """What hdfs-native says when the NameNode's answer did not come: nobody knows whether it happened."""


class Stuck(AssertionError):
    """The schedule did not come to rest."""


@dataclass
class Process:
    """One process of a layer: `work` is run again whenever it ends, as a supervisor does."""

    name: str
    work: Callable[[Process], None]
    greenlet: Any = None
    runnable_at: float = 0.0
    dying: bool = False
    starts: int = 0
    alive: bool = True


@dataclass
class Faults:
    """How often, per step, something happens to whoever takes it."""

    kill: float = 0.0
    pause: float = 0.0
    lost_answer: float = 0.0
    old_listing: float = 0.0


@dataclass
class World:
    """The state of everything outside the processes, and who runs.

    Args:
        only: the steps at which faults may happen, None for any; `struck` are those at which one did.
    """

    random: Random
    seed: int = 0
    only: frozenset[int] | None = None
    struck: list[int] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    now: float = 0.0
    steps: int = 0
    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=lambda: {"/": 0})
    kafka: MemoryKafka = field(default_factory=MemoryKafka)
    processes: list[Process] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    # What an operator is asked to do, and raw segments that were damaged, of which there are copies.
    orders: list[Callable[[Hdfs], object]] = field(default_factory=list)
    broken: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    _parsed: dict[bytes, Any] = field(default_factory=dict)
    _running: Process | None = None

    def __post_init__(self) -> None:
        self.hub = getcurrent()
        self._serial = 0

    # time ----------------------------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        self._serial += 1  # two calls are never the same moment
        return int(self.now * 1e9) * 1000 + self._serial

    def pid(self) -> int:
        process = self.current()
        return self.processes.index(process) * 1000 + process.starts if process else 0

    def time(self) -> float:
        return EPOCH.timestamp() + self.now

    def sleep(self, seconds: float) -> None:
        self.rest(seconds)

    def utc(self) -> datetime:
        return EPOCH + timedelta(seconds=self.now)

    # chance ---------------------------------------------------------------------------------------------------------

    def chance(self, what: str) -> float:
        """A number in [0, 1) that only the seed, the number of the step and `what` decide."""
        told = hashlib.blake2b(f"{self.seed} {self.steps} {what}".encode(), digest_size=7).digest()
        return int.from_bytes(told) / 2**56

    def strikes(self, fault: str, probability: float) -> bool:
        """True if a fault happens in this step."""
        if (
            not probability
            or self.chance(fault) >= probability
            or (self.only is not None and self.steps not in self.only)
        ):
            return False
        self.struck.append(self.steps)
        return True

    # scheduling ----------------------------------------------------------------------------------------------------

    def add(self, name: str, work: Callable[[Process], None]) -> Process:
        process = Process(name, work)
        self.processes.append(process)
        return process

    def current(self) -> Process | None:
        return self._running

    def step(self, what: str) -> None:
        """A process is about to ask the outside: let the scheduler decide."""
        process = self.current()
        if process is None:
            return
        if process.dying:
            raise Killed
        self.trace.append(f"{process.name}: {what}")
        self.hub.switch()
        if process.dying:
            raise Killed

    def rest(self, seconds: float) -> None:
        """A process waits."""
        if (process := self.current()) is not None:
            process.runnable_at = self.now + seconds
            self.step(f"rest {seconds:g}")

    def run(self, steps: int) -> None:
        """Take so many steps, of whichever process may run."""
        for _ in range(steps):
            self.one_step()

    def one_step(self) -> None:
        ready = [p for p in self.processes if p.alive and p.runnable_at <= self.now]
        if not ready:
            waiting = [p.runnable_at for p in self.processes if p.alive]
            self.now = max(self.now, min(waiting, default=self.now))
            ready = [p for p in self.processes if p.alive and p.runnable_at <= self.now]
            if not ready:
                return
        process = ready[int(self.chance("who") * len(ready))]
        self.steps += 1
        self.now += STEP_SECONDS
        if process.greenlet is not None and self.strikes("kill", self.faults.kill):
            process.dying = True
            self.trace.append(f"{process.name}: KILLED")
        elif self.strikes("pause", self.faults.pause):
            process.runnable_at = self.now + PAUSES[int(self.chance("how long") * len(PAUSES))]
            self.trace.append(f"{process.name}: PAUSED until {process.runnable_at:.0f}")
            return
        if process.greenlet is None:
            process.starts += 1
            process.greenlet = greenlet(lambda: self._life(process))
        self._switch(process)
        if process.greenlet.dead:
            process.greenlet, process.dying = None, False
            process.runnable_at = max(process.runnable_at, self.now + 1)

    def _switch(self, process: Process) -> None:
        self._running = process
        try:
            process.greenlet.switch()
        finally:
            self._running = None

    def _life(self, process: Process) -> None:
        with suppress(Killed):
            process.work(process)

    def kill_all(self) -> None:
        """End every process, so that nothing of a schedule goes on."""
        for process in self.processes:
            process.alive = False
            if process.greenlet is not None and not process.greenlet.dead:
                process.dying = True
                self._switch(process)

    def digest(self) -> str:
        """What the schedule did, step by step."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()[:16]

    # HDFS ----------------------------------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        return int(self.now * 1000)

    def exists(self, path: str) -> bool:
        return path in self.files or path in self.folders

    def parsed(self, data: bytes) -> Any:
        """A Parquet file of these bytes, opened once."""
        if data not in self._parsed:
            self._parsed[data] = Opened(pa.BufferReader(data))
        return self._parsed[data]


class Opened(pq.ParquetFile):
    """A Parquet file that reads each set of columns once: its bytes never change."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._tables: dict[Any, Any] = {}

    def read(self, columns: Any = None, **options: Any) -> Any:
        key = tuple(columns or ())
        if key not in self._tables:
            self._tables[key] = super().read(columns=columns, use_threads=False, **options)
        return self._tables[key]

    def read_row_group(self, i: int, columns: Any = None, **options: Any) -> Any:
        key = i, *(columns or ())
        if key not in self._tables:
            self._tables[key] = super().read_row_group(i, columns=columns, use_threads=False, **options)
        return self._tables[key]


class Hdfs:
    """What `engine.storage.hdfs.Hdfs` offers, over the files of a world."""

    def __init__(self, world: World) -> None:
        self.world = world

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        """A recursive listing asks folder by folder, so it is not always one moment."""
        self.world.step(f"list {path}")
        found = self._below(path, recursive)
        if recursive and len(found) > 1 and self._strikes("old listing", self.world.faults.old_listing):
            middle = found[int(self.world.chance("where") * len(found))].path
            self.world.step(f"list on {path}")
            later = self._below(path, recursive)
            found = [e for e in found if e.path <= middle] + [e for e in later if e.path > middle]
        return found

    def _below(self, path: str, recursive: bool) -> list[Entry]:
        world, prefix = self.world, path.rstrip("/") + "/"
        found = [
            Entry(name, False, len(data), at)
            for name, (data, at) in world.files.items()
            if name.startswith(prefix) and (recursive or "/" not in name[len(prefix) :])
        ]
        found += [
            Entry(name, True, 0, at)
            for name, at in world.folders.items()
            if name.startswith(prefix) and (recursive or "/" not in name[len(prefix) :])
        ]
        return sorted(found, key=lambda entry: entry.path)

    def status(self, path: str) -> Entry | None:
        self.world.step(f"status {path}")
        if path in self.world.files:
            data, at = self.world.files[path]
            return Entry(path, False, len(data), at)
        return Entry(path, True, 0, self.world.folders[path]) if path in self.world.folders else None

    def read(self, path: str) -> bytes:
        self.world.step(f"read {path}")
        if path not in self.world.files:
            raise FileNotFoundError(path)
        return self.world.files[path][0]

    def open_parquet(self, path: str) -> Any:
        return self.world.parsed(self.read(path))

    def create(self, path: str, data: bytes) -> None:
        self.world.step(f"create {path}")
        if self.world.exists(path):
            raise FileExistsError(path)
        self._folders(path.rsplit("/", 1)[0])
        self._touch(path)
        self.world.files[path] = (data, self.world.now_ms)

    def mkdirs(self, path: str) -> None:
        self.world.step(f"mkdirs {path}")
        self._folders(path)

    def _folders(self, path: str) -> None:
        while path and path not in self.world.folders:
            self.world.folders[path] = self.world.now_ms
            self._touch(path)
            path = path.rsplit("/", 1)[0]

    def _touch(self, path: str) -> None:
        """A folder's time is that of the last entry that came or went."""
        if (parent := path.rsplit("/", 1)[0]) in self.world.folders:
            self.world.folders[parent] = self.world.now_ms

    def delete(self, path: str, recursive: bool = False) -> bool:
        self.world.step(f"delete {path}")
        return remove(self.world, path)

    def rename(self, source: str, target: str) -> None:
        self.world.step(f"rename {source} {target}")
        lost = self._strikes("lost answer", self.world.faults.lost_answer)
        if lost and self.world.chance("which way") < 0.5:
            self.world.trace.append("THE REQUEST WAS LOST")
            raise LostAnswer("connection reset")
        self._rename(source, target)
        if lost:
            self.world.trace.append("THE ANSWER WAS LOST")
            raise LostAnswer("connection reset")

    def _strikes(self, fault: str, probability: float) -> bool:
        """Whoever is no process, such as the oracle and the operator's moves, meets no faults."""
        return self.world.current() is not None and self.world.strikes(fault, probability)

    def _rename(self, source: str, target: str) -> None:
        world = self.world
        if world.exists(target):
            raise FileExistsError(target)
        if not world.exists(source) or target.rsplit("/", 1)[0] not in world.folders:
            raise FileNotFoundError(source)
        self._touch(source)
        self._touch(target)
        if source in world.files:
            world.files[target] = world.files.pop(source)
            return
        for name in [n for n in world.files if n.startswith(f"{source}/")]:
            world.files[target + name[len(source) :]] = world.files.pop(name)
        for name in [n for n in world.folders if n == source or n.startswith(f"{source}/")]:
            world.folders[target + name[len(source) :]] = world.folders.pop(name)


def remove(world: World, path: str) -> bool:
    """Delete a file or a folder with all that is in it."""
    gone = [name for name in world.files if name == path or name.startswith(f"{path}/")]
    folders = [name for name in world.folders if name == path or name.startswith(f"{path}/")]
    for name in gone:
        del world.files[name]
    for name in folders:
        del world.folders[name]
    return bool(gone or folders)


class Kafka:
    """What `engine.runtime.kafka.KafkaLogs` offers, each question a step; and what Spark's source reads."""

    def __init__(self, world: World) -> None:
        self.world = world

    def state(self, topics: Iterable[str]) -> dict[str, TopicState]:
        self.world.step("kafka state")
        return self.world.kafka.state(topics)

    def generations(self, topics: Iterable[str]) -> dict[str, Generation]:
        self.world.step("kafka generations")
        return self.world.kafka.generations(topics)

    def records_at(self, wanted: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], Record]:
        self.world.step("kafka record")
        return self.world.kafka.records_at(wanted)

    def read(self, topic: str, p: int, start: int, end: int) -> list[Record]:
        self.world.step(f"kafka read {p} [{start}, {end})")
        return self.world.kafka.read(topic, p, start, end)
