"""See `tests.simulation.shrink` for what can be asked."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from os import cpu_count
from typing import Any

from tests.simulation import shrink
from tests.simulation.mutants import FOUND_BY, found_by
from tests.simulation.schedule import MOVES
from tests.simulation.shrink import Case, outcome, shrunk, told

BLOCK = 50
SEARCHED = 300


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=shrink.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("seed", type=int, nargs="?", help="the schedule to run")
    parser.add_argument("--moves", help="step:move,… instead of those of the seed; `none`")
    parser.add_argument("--faults", help="the steps at which faults may happen; `none`")
    parser.add_argument("--without", default="", help="processes that are not started")
    parser.add_argument("--steps", action="store_true", help="print every step")
    parser.add_argument("--count", type=int, default=0, help="run so many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=cpu_count() or 1)
    parser.add_argument("--mutants", action="store_true", help="look for a seed that finds each mutant, among --count")
    args = parser.parse_args()
    if args.mutants:
        return mutants_found(args.count or SEARCHED, args.jobs)
    if args.count:
        return searched(range(args.first, args.first + args.count), args.jobs)
    if args.seed is None:
        parser.error("a seed or --count is wanted")
    case = Case.of(args.seed)
    if args.moves is not None:
        case = Case(args.seed, tuple(_moves(args.moves)))
    if args.faults is not None:
        case = Case(case.seed, case.moves, tuple(_numbers(args.faults)))
    case = Case(case.seed, case.moves, case.faults, tuple(filter(None, args.without.split(","))))
    failed = bool(outcome(case).error)
    if failed and args.moves is None:
        case = shrunk(case)
    print(told(case, args.steps))
    return int(failed)


def searched(seeds: range, jobs: int) -> int:
    """Run seeds, print those that fail, shrunk; return 1 if any did."""
    begun, failed, done = time.monotonic(), 0, 0
    blocks = [seeds[at : at + BLOCK] for at in range(0, len(seeds), BLOCK)]
    with ProcessPoolExecutor(jobs) as pool:
        for block, cases in zip(blocks, pool.map(failing, blocks), strict=True):
            done += len(block)
            for case in cases:
                failed += 1
                print(f"--- seed {case.seed}\n{told(case)}", flush=True)
    print(f"{done} schedules in {time.monotonic() - begun:.0f} s, {failed} failed")
    return int(failed > 0)


def failing(seeds: Iterable[int]) -> list[Case]:
    """Return the shrunk cases of those seeds that fail."""
    return [shrunk(case) for case in map(Case.of, seeds) if outcome(case).error]


def mutants_found(count: int, jobs: int) -> int:
    """Print the first seed that finds each mutant, and how; return 1 if one was found by none."""
    missed = 0
    with ProcessPoolExecutor(jobs) as pool:
        found = pool.map(_found_by, FOUND_BY, [count] * len(FOUND_BY))
        for (mutant, (row, _)), (seed, error) in zip(FOUND_BY.items(), found, strict=True):
            missed += seed is None
            print(
                f"row {row:2}  seed {'none' if seed is None else seed:>5}  {mutant.__name__}: {error[:100]}", flush=True
            )
    return int(missed > 0)


def _found_by(mutant: Callable[[Any], None], count: int) -> tuple[int | None, str]:
    return found_by(mutant, range(count))


def _moves(text: str) -> Iterator[tuple[int, str]]:
    for part in filter(None, text.replace("none", "").split(",")):
        step, _, move = part.partition(":")
        name = move.replace("-", " ")
        if name not in MOVES:
            raise SystemExit(f"no move '{name}'; there are {', '.join(MOVES)}")
        yield int(step), name


def _numbers(text: str) -> Iterator[int]:
    return map(int, filter(None, text.replace("none", "").split(",")))


if __name__ == "__main__":
    sys.exit(main())
