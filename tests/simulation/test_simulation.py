"""Thousands of schedules of two processes of every layer (`SIMULATE`: how many), and that they are what they seem."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.simulation.__main__ import BLOCK, failing
from tests.simulation.shrink import Case, outcome, shrunk, told

SCHEDULES = int(os.environ.get("SIMULATE", "2000"))
BLOCKS = [range(first, min(first + BLOCK, SCHEDULES)) for first in range(0, SCHEDULES, BLOCK)]


@pytest.mark.parametrize("seeds", BLOCKS, ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}")
def test_no_schedule_gives_a_wrong_answer_loses_a_row_or_stays_down(seeds: range) -> None:
    cases = failing(seeds)
    assert not cases, "\n\n".join(f"seed {case.seed}\n{told(case)}" for case in cases)


def test_a_seed_takes_the_same_steps_in_every_process() -> None:
    script = "import sys; from tests.simulation.shrink import Case, outcome; print(*(outcome(Case.of(s)).digest for s in range(5)))"
    told = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert told == {" ".join(outcome(Case.of(seed)).digest for seed in range(5)) + "\n"}


def test_what_is_left_of_a_schedule_fails_by_the_same_steps_again() -> None:
    """Where nothing fails, something that the simulator always does stands for a failure: a fault that kills."""

    def kills(case: Case) -> bool:
        return any("KILLED" in line for line in outcome(case).trace)

    case = next(case for case in map(Case.of, range(100)) if kills(case))
    small = shrunk(case, kills)
    assert kills(small) and len(small.faults or ()) == 1 and len(small.moves) <= 1
    assert outcome(small) == outcome(small)
    assert small.command() in told(small)
