"""Does the simulator find the faults that it was made for, put back one at a time? (`tests/simulation/mutants.py`)"""

from __future__ import annotations

import pytest

from tests.simulation.mutants import FOUND_BY, Patch
from tests.simulation.shrink import Case, outcome

NEXT = 60


@pytest.mark.parametrize("mutant", FOUND_BY, ids=lambda mutant: mutant.__name__)
def test_a_fault_of_old_is_found(mutant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    _, first = FOUND_BY[mutant]
    assert any(outcome(Case.of(seed)).error for seed in range(first, first + NEXT))
