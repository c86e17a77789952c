"""What of a schedule makes it fail? Moves, faults and processes are left out as long as it still fails.

python -m tests.simulation 1234                          run a seed, shrink it if it fails, print what is left
python -m tests.simulation 1234 --moves 60:append,120:cut --faults 77,81 --without batch-2    run just that
python -m tests.simulation --count 100000 [--first 0] [--jobs 2]                          search for seeds that fail
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tests.simulation.schedule import Move, Schedule

LAYERS = ("compaction", "ingest", "stream", "batch")
PROCESSES = (*(f"{layer}-{number}" for layer in LAYERS for number in (1, 2)), "operator")
TAIL = 40  # of the steps, so many are printed

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A schedule with parts left out; `faults` are the steps at which one may happen, None for any."""

    seed: int
    moves: tuple[Move, ...]
    faults: tuple[int, ...] | None = None
    without: tuple[str, ...] = ()

    @classmethod
    def of(cls, seed: int) -> Case:
        return cls(seed, Schedule(seed).moves)

    def schedule(self) -> Schedule:
        return Schedule(self.seed, self.moves, self.faults, self.without)

    def command(self) -> str:
        """What runs it again."""
        told = [f"python -m tests.simulation {self.seed}"]
        told += ["--moves", ",".join(f"{step}:{move.replace(' ', '-')}" for step, move in self.moves) or "none"]
        told += ["--faults", ",".join(map(str, self.faults)) or "none"] if self.faults is not None else []
        told += ["--without", ",".join(self.without)] if self.without else []
        return " ".join(told)


@dataclass(frozen=True)
class Outcome:
    """What a run showed; `error` is empty where everything held."""

    error: str
    steps: int
    digest: str
    struck: tuple[int, ...]
    trace: tuple[str, ...]


def outcome(case: Case) -> Outcome:
    schedule, error = case.schedule(), ""
    try:
        schedule.run()
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    world = schedule.world
    return Outcome(error, world.steps, world.digest(), tuple(world.struck), tuple(world.trace))


def shrunk(case: Case, still: Callable[[Case], bool] | None = None) -> Case:
    """Return a smaller case that fails, too.

    Args:
        still: whether a case fails as the given one does; by default, with an error of the same kind.
    """
    first = outcome(case)
    kind = _kind(first.error)
    fails = still or (lambda smaller: _kind(outcome(smaller).error) == kind)
    if case.faults is None and fails(fixed := replace(case, faults=first.struck)):
        case = fixed
    while True:
        before = case
        case = replace(case, moves=_fewer(case.moves, lambda m: fails(replace(case, moves=m))))  # noqa: B023
        if case.faults:
            case = replace(case, faults=_fewer(case.faults, lambda f: fails(replace(case, faults=f))))  # noqa: B023
        for name in PROCESSES:
            if name not in case.without and fails(fewer := replace(case, without=(*case.without, name))):
                case = fewer
        if case == before:
            return case


def _fewer(parts: Sequence[T], fails: Callable[[tuple[T, ...]], bool]) -> tuple[T, ...]:
    """Leave out halves, quarters and so on down to single parts."""
    kept, size = tuple(parts), (len(parts) + 1) // 2
    while size:
        start = 0
        while start < len(kept):
            fewer = kept[:start] + kept[start + size :]
            if fails(fewer):
                kept = fewer
            else:
                start += size
        size //= 2
    return kept


def _kind(error: str) -> str:
    """An error without its numbers."""
    return "".join(c for c in error[:60] if not c.isdigit()).partition("[")[0]


def told(case: Case, whole: bool = False) -> str:
    """What happens in a case, for a person: its moves, its faults, the steps that changed something, and what failed.

    Args:
        whole: every step, also those that only read.
    """
    run = outcome(case)
    lines = [line for line in run.trace if whole or _changes(line)]
    dropped = 0 if whole else max(0, len(lines) - TAIL)
    shown = [f"  … {dropped} more (--steps)"] if dropped else []
    shown += [f"  {_short(line)}" for line in lines[dropped:]]
    verdict = run.error or "everything held"
    return "\n".join([*shown, f"{run.steps} steps, digest {run.digest}", verdict, case.command()])


def _changes(line: str) -> bool:
    """A move, a fault, or a step that publishes, deletes or reads from Kafka; staging is nobody's business."""
    if line.startswith("MOVE") or line.isupper() or "KILLED" in line or "PAUSED" in line or "kafka read" in line:
        return True
    _, _, what = line.partition(": ")
    return what.startswith("rename ") or (what.startswith("delete ") and ".staging" not in what)


def _short(line: str) -> str:
    what, _, rest = line.partition(": ")
    words = ["staged" if word.startswith("/data/.staging") else word.removeprefix("/data/") for word in rest.split()]
    return f"{what}: {' '.join(words)}" if rest else line
