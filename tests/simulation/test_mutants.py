"""Does the simulator find the faults that it was made for, put back one at a time? (`tests/simulation/mutants.py`)"""

from __future__ import annotations

import pytest

from tests.simulation.mutants import FOUND_BY, Patch, found_by

NEXT = 60


@pytest.mark.parametrize("mutant", FOUND_BY, ids=lambda mutant: mutant.__name__)
def test_a_fault_of_old_is_found(mutant: Patch) -> None:
    _, first = FOUND_BY[mutant]
    seed, error = found_by(mutant, range(first, first + NEXT))
    assert seed is not None and error
