"""Does the simulator find the faults that it was made for, put back one at a time? (`tests/simulation/mutants.py`)"""

from __future__ import annotations

import pytest

from tests.simulation.mutants import FOUND_BY, Patch, found_by

SEARCHED = 1000


@pytest.mark.parametrize("mutant", FOUND_BY, ids=lambda mutant: mutant.__name__)
def test_a_fault_of_old_is_found(mutant: Patch) -> None:
    """By the schedule that is known; where the product's steps have moved since, by another one."""
    _, known = FOUND_BY[mutant]
    seed, _ = found_by(mutant, (known, *range(SEARCHED)))
    assert seed is not None, f"none of {SEARCHED} schedules fails"
