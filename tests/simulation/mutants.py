"""Faults of old, put back one at a time: what the simulator must find.

Each is a function that patches the product; the name says what is wrong, the number is the row of the list that it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine import build, commit, continuity, derived, events, log, mirror, snapshot, speed
from engine.log import Partition
from engine.mirror import Mirror

Patch = Callable[[pytest.MonkeyPatch], None]


def a_cut_partition_is_mirrored_again_from_its_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        mirror, "_continued", lambda present, verdict, lost: log.Origin(verdict.kafka.start, present, "other")
    )


def nobody_proves_that_kafka_continues_what_is_stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mirror, "check_continuity", lambda *_: None)
    patch.setattr(speed, "check_continuity", lambda *_: None)


def any_typed_segment_makes_the_folder_it_goes_into(patch: pytest.MonkeyPatch) -> None:
    real = commit.publish

    def publish(fs: Any, piece: Any, target: str) -> bool:
        fs.mkdirs(target.rsplit("/", 1)[0])
        return real(fs, piece, target)

    patch.setattr(commit, "publish", publish)
    patch.setattr(events, "torn", lambda *_: "")
    patch.setattr(build, "torn", lambda *_: "")


def a_number_comes_back_when_its_folder_is_deleted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(derived, "newest_taken", lambda *_: 0)
    patch.setattr(derived, "take", lambda *_: True)
    patch.setattr(snapshot.versions.Manifest, "identity", property(lambda self: self.version))


def an_accepted_gap_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "gaps_between", lambda self, start, end: 0)


def holes_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "holes_between", lambda self, start, end: 0)


def coverage_never_falls(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "fallen", lambda coverage, chain, later, topics: coverage)
    patch.setattr(snapshot, "needed", lambda fs, coverage, chain, later, topics: coverage)


def a_chain_is_continued_whatever_kafka_has_by_now(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(speed, "_lost", lambda *_: {})


def kafkas_ends_are_asked_before_the_heads(patch: pytest.MonkeyPatch) -> None:
    def prove(self: Mirror) -> None:
        state = self._state()
        partitions = self._partitions()
        self._refuse_changes(state)
        self.known = state
        self._begin(partitions, state)
        found = continuity.verdicts(self.fs, self.kafka, continuity.lineages(self.logs, partitions), state)
        for topic, by in mirror.by_topic(found).items():
            mirror.check_continuity(topic, by, "sim")

    patch.setattr(Mirror, "prove", prove)


def a_staged_file_that_went_away_is_a_hole(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commit, "_check_ascending", lambda *_: None)
    real = commit.staged_pieces

    def forgetful(fs: Any, staging: str, ranges: Any, *more: Any) -> Any:
        for entry in fs.list(staging, recursive=True)[-1:]:
            if entry.name == "part-0.parquet" and fs.world.random.random() < 0.2:
                fs.delete(entry.path)
        return real(fs, staging, ranges, *more)

    patch.setattr(mirror, "staged_pieces", forgetful)
    patch.setattr(mirror.Mirror, "commit", _without_counting(mirror.Mirror.commit))


def _without_counting(real: Any) -> Any:
    def committed(self: Mirror, planned: Any, write: Any, name: str) -> Any:
        class Any_(int):
            def __ne__(self, other: object) -> bool:
                return False

            __hash__ = int.__hash__

        return real(self, planned, lambda ranges, staging: Any_(write(ranges, staging)), name)

    return committed


# Mutant → a schedule that finds it (or one of the next few, since every step of the product moves what follows).
FOUND_BY: dict[Patch, int] = {
    a_cut_partition_is_mirrored_again_from_its_start: 0,
    nobody_proves_that_kafka_continues_what_is_stored: 0,
    any_typed_segment_makes_the_folder_it_goes_into: 184,
    a_number_comes_back_when_its_folder_is_deleted: 53,
    an_accepted_gap_is_not_counted: 10,
    holes_are_not_counted: 0,
    coverage_never_falls: 5,
    a_chain_is_continued_whatever_kafka_has_by_now: 34,
    kafkas_ends_are_asked_before_the_heads: 10,
    a_staged_file_that_went_away_is_a_hole: 22,
}
