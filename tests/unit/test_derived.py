"""A number is given once, whatever is paused, killed or deleted by hand; a read that loses a file begins again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.runtime.observe import StartAgain
from engine.storage import derived
from engine.storage.log import STAGING
from tests.unit.localfs import LocalFs

RECORD, PLACE = "/data/_taken/things", "/data/things"


class Crash(BaseException):
    """kill -9."""


class Interrupted:
    """A file system at whose n-th call something else happens first.

    Another process, an operator, the end of this one.
    """

    def __init__(self, fs: LocalFs, plan: dict[int, Callable[[], None]]) -> None:
        self.fs, self.plan, self.calls = fs, plan, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.fs, name)

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            self.plan.pop(self.calls, lambda: None)()
            return call(*args, **kwargs)

        return interrupted


class Numbers:
    """Writers that make numbered folders, each in its own time; `made` is what every number was given to."""

    def __init__(self, folder: Path) -> None:
        self.fs, self.made, self.writers = LocalFs(folder), {}, 0
        self.made: dict[int, int]
        self.fs.mkdirs(STAGING)
        self.fs.mkdirs(PLACE)

    def write(self, plan: dict[int, Callable[[], None]] | None = None, number: int | None = None) -> None:
        """One run: choose a number (or come with one that was chosen long ago), take it, rename what bears it."""
        fs: Any = Interrupted(self.fs, plan or {})
        self.writers += 1
        me = self.writers
        number = number or self.next()
        if not derived.take(fs, RECORD, number):
            return
        fs.create(f"{STAGING}/{me}/content", b"")
        try:
            fs.rename(f"{STAGING}/{me}", f"{PLACE}/{number}")
        except FileExistsError:
            raise AssertionError(f"number {number} was taken by {me} and used by {self.made[number]}") from None
        assert number not in self.made, f"number {number} of {self.made[number]} came back for {me}"
        self.made[number] = me

    def next(self) -> int:
        there = [int(entry.name) for entry in self.fs.list(PLACE)]
        return 1 + max([0, *there, derived.newest_taken(self.fs, RECORD)])

    def delete_newest(self) -> None:
        for entry in sorted(self.fs.list(PLACE), key=lambda e: -int(e.name))[:1]:
            self.fs.delete(entry.path, recursive=True)

    def delete_all(self) -> None:
        self.fs.delete(PLACE, recursive=True)
        self.fs.mkdirs(PLACE)


def crash() -> None:
    raise Crash


EVENTS = st.sampled_from(["write", "delete newest", "delete all", "crash", "paused"])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.integers(1, 12), st.lists(EVENTS, max_size=3), max_size=3), min_size=1, max_size=5))
def test_no_number_is_given_twice(
    tmp_path_factory: pytest.TempPathFactory, schedule: list[dict[int, list[str]]]
) -> None:
    numbers = Numbers(tmp_path_factory.mktemp("numbers"))

    def happens(events: list[str], chosen: int) -> Callable[[], None]:
        def now() -> None:
            for event in events:
                {
                    "write": numbers.write,
                    "delete newest": numbers.delete_newest,
                    "delete all": numbers.delete_all,
                    "crash": crash,
                    "paused": lambda: numbers.write(number=chosen),  # chose when the interrupted one did
                }[event]()

        return now

    for plan in schedule:
        chosen = numbers.next()
        try:
            numbers.write({step: happens(events, chosen) for step, events in plan.items()}, chosen)
        except Crash:
            continue
    before = set(numbers.made)
    numbers.write()
    assert len(numbers.made) == len(before) + 1, "a run that is left alone gets a number"
    assert len(numbers.fs.list(RECORD)) == 1, "the record does not grow"


def test_what_is_set_aside_stays_beside_its_place_and_a_second_process_is_fine(tmp_path: Path) -> None:
    fs = LocalFs(tmp_path)
    fs.create("/data/things/7/manifest.json", b"{")
    derived.set_aside(fs, "/data/things/7", "why")
    derived.set_aside(fs, "/data/things/7", "why")
    (entry,) = fs.list("/data/things")
    assert entry.name.startswith(f"{derived.ASIDE}7-") and fs.read(f"{entry.path}/manifest.json") == b"{"


@pytest.mark.parametrize("lost", [0, 1, derived.LISTINGS - 1, derived.LISTINGS])
def test_a_read_that_loses_a_file_lists_again_and_at_last_asks_to_be_restarted(lost: int) -> None:
    listings = 0

    def read() -> str:
        nonlocal listings
        listings += 1
        if listings <= lost:
            raise FileNotFoundError("000000000007.parquet")
        return "whole"

    if lost < derived.LISTINGS:
        assert derived.listed_again(read) == "whole"
    else:
        with pytest.raises(StartAgain, match=r"files went away 5 times while they were read: 000000000007.parquet"):
            derived.listed_again(read)
