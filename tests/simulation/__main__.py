"""Replay one schedule and print its steps: `python -m tests.simulation SEED [--shrink]`."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.schedule import Schedule, fails, shrunk


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--shrink", action="store_true", help="leave out the moves that a failure does not need")
    args = parser.parse_args()
    moves = Schedule(args.seed).moves
    if args.shrink and fails(args.seed):
        moves = shrunk(args.seed, moves)
    schedule = Schedule(args.seed, moves)
    reason = ""
    try:
        schedule.run()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    print("\n".join(schedule.world.trace))
    print(f"seed {args.seed}, moves {moves}, steps {schedule.world.digest()}: {reason or 'all held'}")
    return int(bool(reason))


if __name__ == "__main__":
    sys.exit(main())
