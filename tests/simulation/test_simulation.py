"""Does any schedule give a wrong number, lose or double a row, or leave a layer stuck? (`tests/simulation/schedule.py`)

`SIMULATE=100000` runs so many schedules (`make simulate N=100000`); `python -m tests.simulation SEED` replays one.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.schedule import Schedule, fails, shrunk

SCHEDULES = int(os.environ.get("SIMULATE", "2000"))
# What xdist hands out at once.
BLOCK = 25


@pytest.mark.parametrize("first", range(0, SCHEDULES, BLOCK))
def test_every_answer_is_a_count_and_everything_comes_to_rest(first: int) -> None:
    for seed in range(first, min(first + BLOCK, SCHEDULES)):
        if reason := fails(seed):
            moves = Schedule(seed).moves
            pytest.fail(
                f"seed {seed}: {reason}\n  of {moves}\n  are needed {shrunk(seed, moves)}\n"
                f"  python -m tests.simulation {seed} prints its steps"
            )


def test_a_seed_makes_the_same_steps_to_the_letter() -> None:
    for seed in (3, 14, 15, 92):
        one, two = Schedule(seed).run(), Schedule(seed).run()
        assert one.trace == two.trace and one.digest() == two.digest()
