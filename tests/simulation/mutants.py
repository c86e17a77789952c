"""Faults of old, put back one at a time: what the simulator must find.

Each is a function that patches the product; the name says what is wrong, the number is the row of the list that it came from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from engine import build, chain, commit, continuity, derived, events, log, mirror, snapshot, speed
from engine.log import Partition, replace
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


def a_wider_name_covers_whatever_begins_inside_it(patch: pytest.MonkeyPatch) -> None:
    def chosen(found: Any) -> Any:
        kept: list[Any] = []
        for segment in sorted(found, key=lambda s: (s.base, -(s.end or s.base))):
            if not kept or kept[-1].end is None or segment.base >= kept[-1].end:
                kept.append(segment)
        ended = [replace(s, end=s.end if s.end is not None else after.base) for s, after in itertools.pairwise(kept)]
        return [*ended, kept[-1]], [s for s in found if s.path not in {k.path for k in kept}]

    patch.setattr(log, "chain_of_segments", chosen)
    patch.setattr(log, "_first_break", lambda kept: None)


def each_ingest_says_for_itself_where_a_log_begins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mirror, "_begin", lambda self, partitions, state: None)


def an_accepted_gap_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "gaps_between", lambda self, start, end: 0)


def holes_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "holes_between", lambda self, start, end: 0)


def coverage_never_falls(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snapshot, "fallen", lambda coverage, chain, later, topics: coverage)
    patch.setattr(snapshot, "needed", lambda fs, coverage, chain, later, topics: coverage)


def a_chain_is_continued_whatever_kafka_has_by_now(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(speed, "_lost", lambda *_: {})


def a_damaged_epoch_is_left_where_it_is(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(derived, "set_aside", lambda fs, path, reason: None)


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


def the_raw_log_is_listed_before_the_typed_one(patch: pytest.MonkeyPatch) -> None:
    real = events.LogReader.partitions

    def partitions(self: Any, topics: Any) -> Any:
        if self.root != log.MASTER:
            before = getattr(self, "seen", None)
            self.seen = real(self, topics)
            return self.seen if before is None else self.seen
        remembered = getattr(self, "old", None)
        self.old = real(self, topics)
        return remembered or self.old

    patch.setattr(events.LogReader, "partitions", partitions)


def a_lost_answer_is_taken_for_a_success(patch: pytest.MonkeyPatch) -> None:
    def publish(fs: Any, piece: Any, target: str) -> bool:
        try:
            fs.rename(piece.path, target)
        except FileExistsError:
            return False
        except (OSError, RuntimeError):
            return True
        return True

    patch.setattr(commit, "publish", publish)
    patch.setattr(chain, "publish", publish)


# Mutant → a schedule that finds it.
FOUND_BY: dict[Patch, int] = {}
