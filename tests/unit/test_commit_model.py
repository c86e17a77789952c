"""The commit protocol under crashes, second writers and lost answers, at every step of the file system."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import log
from engine.hdfs import Entry
from engine.log import Piece

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

    def stage(heads: Mapping[tuple[str, str, str], int], staging: str) -> list[Piece]:
        pieces = []
        for partition, (start, end) in batches.items():
            begin = max(start, heads.get((TOPIC, LOG, partition), 0))
            if begin >= end:
                continue
            borders = sorted({begin, *(begin + (end - begin) * n // pieces_each for n in range(1, pieces_each)), end})
            for number, (low, high) in enumerate(itertools.pairwise(borders)):
                path = f"{staging}/{partition}-{number}"
                fs._call()
                fs.files[path] = range(low, high)
                pieces.append(Piece(TOPIC, LOG, partition, path, low, high, high - low))
        return pieces

    return log.commit(fs, ROOT, fs.heads, stage, "writer")


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


def test_rows_that_do_not_continue_the_head_are_refused_by_the_first_missing_offset() -> None:
    fs = MemoryHdfs()
    write(fs, {"0": (0, 4)})

    def stage(heads: Mapping[tuple[str, str, str], int], staging: str) -> list[Piece]:
        fs.files[f"{staging}/x"] = range(6, 9)
        return [Piece(TOPIC, LOG, "0", f"{staging}/x", 6, 9, 3)]

    with pytest.raises(log.OffsetGap, match="first missing offset 4"):
        log.commit(fs, ROOT, fs.heads, stage, "writer")
    assert [path for path in fs.files if path.startswith(log.STAGING)] == []


def test_a_writer_that_was_stopped_too_long_throws_its_staging_away() -> None:
    fs = MemoryHdfs()
    times = iter([0.0, 0.0, log.WRITER_PATIENCE_SECONDS + 1, 2000.0, 2000.0, 2000.0, 2000.0])
    attempts = []

    def stage(heads: Mapping[tuple[str, str, str], int], staging: str) -> list[Piece]:
        attempts.append(dict(heads))
        pieces = []
        for partition in "01":
            if heads.get((TOPIC, LOG, partition), 0) < 3:
                fs.files[f"{staging}/{partition}"] = range(0, 3)
                pieces.append(Piece(TOPIC, LOG, partition, f"{staging}/{partition}", 0, 3, 3))
        return pieces

    log.commit(fs, ROOT, fs.heads, stage, "writer", clock=lambda: next(times))
    assert len(attempts) == 2
    assert attempts[1] == {(TOPIC, LOG, "0"): 3}
    assert fs.heads() == {(TOPIC, LOG, "0"): 3, (TOPIC, LOG, "1"): 3}
