"""The commit protocol under crashes, second writers and lost answers, at every step of the file system."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.storage import log
from engine.storage.commit import WRITER_PATIENCE_SECONDS, Piece, StartsAbove, TooSlow, commit
from engine.storage.hdfs import Entry
from engine.storage.log import Place, Range

ROOT = "/data/master_dataset"
TOPIC, LOG = "t", "L"
END = 12  # offsets of each of the two partitions that the source holds


class Crash(BaseException):
    """The process is gone: nothing after this line runs, not even a handler for Exception."""


class MemoryHdfs:
    """HDFS as the protocol sees it: rename refuses an existing target. `plan` says what goes wrong at which call."""

    def __init__(self) -> None:
        self.files: dict[str, range] = {}
        self.calls = 0
        self.plan: dict[int, Any] = {}

    def _call(self) -> Any:
        self.calls += 1
        action = self.plan.pop(self.calls, None)
        if action == "crash":
            raise Crash
        if callable(action):
            action()
        return action

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        self._call()
        return [
            Entry(name, False, len(rows), 0) for name, rows in sorted(self.files.items()) if name.startswith(f"{path}/")
        ]

    def status(self, path: str) -> Entry | None:
        self._call()
        return Entry(path, False, len(self.files[path]), 0) if path in self.files else None

    def mkdirs(self, path: str) -> None:
        self._call()

    def delete(self, path: str, recursive: bool = False) -> bool:
        self._call()
        gone = [name for name in self.files if name == path or name.startswith(f"{path}/")]
        for name in gone:
            del self.files[name]
        return bool(gone)

    def rename(self, source: str, target: str) -> None:
        action = self._call()
        if action == "lost request":
            raise OSError("connection reset")
        if target in self.files:
            raise FileExistsError(target)
        if source not in self.files:
            raise FileNotFoundError(source)
        self.files[target] = self.files.pop(source)
        if action == "lost answer":
            raise OSError("connection reset")

    def open_parquet(self, path: str) -> Any:
        raise NotImplementedError

    def create(self, path: str, data: bytes) -> None:
        raise NotImplementedError

    def heads(self) -> dict[tuple[str, str, str], int]:
        heads: dict[tuple[str, str, str], int] = {}
        for entry in self.list(ROOT, recursive=True):
            partition = entry.path.split("partition=")[1].split("/")[0]
            key = (TOPIC, LOG, partition)
            heads[key] = max(heads.get(key, 0), self.files[entry.path].stop if entry.path in self.files else 0)
        return heads


def write(fs: MemoryHdfs, batches: Mapping[str, tuple[int, int]], pieces_each: int = 1) -> list[Piece]:
    """Run one writer that holds the micro-batch {partition: [start, end)} of the source."""

    def stage(todo: Mapping[Place, Range], staging: str) -> list[Piece]:
        pieces = []
        for (_, _, partition), (begin, end) in todo.items():
            borders = sorted({begin, *(begin + (end - begin) * n // pieces_each for n in range(1, pieces_each)), end})
            for number, (low, high) in enumerate(itertools.pairwise(borders)):
                path = f"{staging}/{partition}-{number}"
                fs._call()
                fs.files[path] = range(low, high)
                pieces.append(Piece(TOPIC, LOG, partition, path, low, high, high - low))
        return pieces

    ranges = {(TOPIC, LOG, partition): covered for partition, covered in batches.items() if covered[0] < covered[1]}
    return commit(fs, ROOT, ranges, fs.heads, stage, "writer")


def assert_exact(fs: MemoryHdfs, end: int) -> None:
    """Every partition is one gap-free run from 0, each offset once, each segment named by the head it continues."""
    for partition in ("0", "1"):
        folder = log.partition_folder(ROOT, TOPIC, LOG, partition)
        at = 0
        for path, rows in sorted((p, r) for p, r in fs.files.items() if p.startswith(f"{folder}/")):
            assert path == f"{folder}/{at:020d}.parquet"
            assert rows.start == at
            at = rows.stop
        assert at == end


ACTIONS = st.sampled_from(["crash", "lost request", "lost answer", "other writer"])


@settings(max_examples=600, deadline=None)
@given(
    plan=st.dictionaries(st.integers(1, 60), ACTIONS, max_size=5),
    ends=st.lists(st.tuples(st.integers(0, END), st.integers(0, END)), min_size=1, max_size=4),
    other=st.tuples(st.integers(0, END), st.integers(0, END)),
    pieces=st.integers(1, 3),
)
def test_any_schedule_leaves_each_offset_once(
    plan: dict[int, str], ends: list[tuple[int, int]], other: tuple[int, int], pieces: int
) -> None:
    fs = MemoryHdfs()

    def other_writer() -> None:
        # Another driver reads the same source with other borders and runs to its end in the middle of our step.
        plan_left, fs.plan = fs.plan, {}
        heads = fs.heads()
        write(fs, {p: (min(heads.get((TOPIC, LOG, p), 0), end), end) for p, end in zip("01", other, strict=True)}, 2)
        fs.plan = plan_left

    fs.plan = {step: other_writer if action == "other writer" else action for step, action in plan.items()}
    for end in (*ends, (END, END)):
        try:
            # Like Spark after a restart, the micro-batch begins anywhere at or below the heads: a replay.
            write(fs, {"0": (0, end[0]), "1": (0, end[1])}, pieces)
        except Crash:
            continue
    fs.plan = {}
    write(fs, {"0": (0, END), "1": (0, END)})
    assert_exact(fs, END)


def test_a_crash_at_every_single_step_is_healed_by_the_replay() -> None:
    counting = MemoryHdfs()
    write(counting, {"0": (0, END), "1": (0, END)}, 3)
    assert counting.calls > 10
    for step in range(1, counting.calls + 1):
        fs = MemoryHdfs()
        fs.plan = {step: "crash"}
        with pytest.raises(Crash):
            write(fs, {"0": (0, END), "1": (0, END)}, 3)
        write(fs, {"0": (0, END), "1": (0, END)})
        assert_exact(fs, END)


def test_commit_returns_only_when_the_loser_wrote_the_rest() -> None:
    for step in range(1, 12):
        fs = MemoryHdfs()
        fs.plan = {step: lambda fs=fs: write_quietly(fs, {"0": (0, 5), "1": (0, 7)})}
        write(fs, {"0": (0, END), "1": (0, END)})
        assert_exact(fs, END)


def write_quietly(fs: MemoryHdfs, batches: Mapping[str, tuple[int, int]]) -> None:
    plan_left, fs.plan = fs.plan, {}
    write(fs, batches)
    fs.plan = plan_left


def test_a_range_that_begins_above_the_head_is_left_to_who_starts_again() -> None:
    fs = MemoryHdfs()
    write(fs, {"0": (0, 4)})
    with pytest.raises(StartsAbove, match="ends at 4, what was read begins at 6"):
        write(fs, {"0": (6, 9)})
    assert [path for path in fs.files if path.startswith(log.STAGING)] == []


class Clock:
    """Seconds that pass only while something is staged: so many per offset."""

    def __init__(self, seconds_per_offset: float) -> None:
        self.now, self.cost = 0.0, seconds_per_offset

    def __call__(self) -> float:
        return self.now


def write_slowly(fs: MemoryHdfs, clock: Clock, ends: Mapping[str, int], limit: int | None = None) -> list[int]:
    """Commit [0, end) of each partition; return how many offsets each staging held."""
    staged: list[int] = []

    def stage(todo: Mapping[Place, Range], staging: str) -> list[Piece]:
        staged.append(sum(end - start for start, end in todo.values()))
        clock.now += clock.cost * staged[-1]
        pieces = []
        for (_, _, p), (start, end) in todo.items():
            fs.files[f"{staging}/{p}"] = range(start, end)
            pieces.append(Piece(TOPIC, LOG, p, f"{staging}/{p}", start, end, end - start))
        return pieces

    ranges = {(TOPIC, LOG, p): (0, end) for p, end in ends.items()}
    commit(fs, ROOT, ranges, fs.heads, stage, "writer", limit=limit, clock=clock)
    return staged


def test_work_that_took_too_long_is_done_in_smaller_pieces_and_what_was_committed_stays() -> None:
    """A slow machine: one piece of all 6,000 offsets takes 1,200 s and would be thrown away at every try."""
    fs, clock = MemoryHdfs(), Clock(0.2)
    staged = write_slowly(fs, clock, {"0": 3000, "1": 3000})
    assert staged[0] == 6000 and max(staged[1:]) * clock.cost <= WRITER_PATIENCE_SECONDS
    assert fs.heads() == {(TOPIC, LOG, "0"): 3000, (TOPIC, LOG, "1"): 3000}
    assert clock.now < 2 * 1200 + 10, "each offset is staged twice at most"


def test_the_limit_counts_the_offsets_of_all_partitions() -> None:
    fs = MemoryHdfs()
    staged = write_slowly(fs, Clock(0.0), {"0": 1000, "1": 3000}, limit=400)
    assert max(staged) <= 400
    assert fs.heads() == {(TOPIC, LOG, "0"): 1000, (TOPIC, LOG, "1"): 3000}


def test_a_machine_on_which_even_one_offset_takes_too_long_is_told_so() -> None:
    fs, clock = MemoryHdfs(), Clock(WRITER_PATIENCE_SECONDS + 1)
    with pytest.raises(TooSlow, match="1 offsets took 601 s, 600 s are allowed"):
        write_slowly(fs, clock, {"0": 5})


def test_a_writer_that_was_stopped_too_long_throws_its_staging_away() -> None:
    fs, clock = MemoryHdfs(), Clock(0.0)
    attempts = []

    def stage(todo: Mapping[Place, Range], staging: str) -> list[Piece]:
        attempts.append(dict(todo))
        clock.now += WRITER_PATIENCE_SECONDS + 1 if len(attempts) == 1 else 0
        pieces = []
        for (_, _, p), (start, end) in todo.items():
            fs.files[f"{staging}/{p}"] = range(start, end)
            pieces.append(Piece(TOPIC, LOG, p, f"{staging}/{p}", start, end, end - start))
        return pieces

    commit(fs, ROOT, {(TOPIC, LOG, p): (0, 3) for p in "01"}, fs.heads, stage, "writer", clock=clock)
    assert len(attempts) > 1 and attempts[1] != attempts[0]
    assert fs.heads() == {(TOPIC, LOG, "0"): 3, (TOPIC, LOG, "1"): 3}
    assert [path for path in fs.files if path.startswith(log.STAGING)] == []
