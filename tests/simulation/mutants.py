"""Faults of old, put back one at a time: what the simulator must find.

Each is a function that patches the product; the name says what is wrong, the number is the row of the list that it came
from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from engine.batch import build, events
from engine.ingest import mirror
from engine.ingest.mirror import Mirror
from engine.serving import snapshot
from engine.speed import chain_log
from engine.storage import chains, commit, compact, continuity, derived, log, versions
from engine.storage.log import Partition
from tests.simulation.schedule import CHUNK
from tests.simulation.shrink import Case, outcome

Patch = Callable[[pytest.MonkeyPatch], None]


def a_cut_partition_is_mirrored_again_from_its_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        mirror, "_continued", lambda present, verdict, lost: log.Origin(verdict.kafka.start, present, "other")
    )


def nobody_proves_that_kafka_continues_what_is_stored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mirror, "check_continuity", lambda *_: None)
    patch.setattr(chain_log, "check_continuity", lambda *_: None)


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
    patch.setattr(chain_log, "_lost", lambda *_: {})


def kafkas_ends_are_asked_before_the_heads(patch: pytest.MonkeyPatch) -> None:
    def prove(self: Mirror) -> None:
        state = self._state()
        partitions = self._partitions()
        self._refuse_changes(state)
        self.known = state
        self._begin(partitions, state)
        found = continuity.verdicts(self.fs, self.kafka, continuity.lineages(self.logs, partitions), state)
        for topic, by in continuity.by_topic(found).items():
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


def a_wider_name_covers_whatever_begins_inside_it(patch: pytest.MonkeyPatch) -> None:
    def chosen(found: Any) -> Any:
        kept: list[Any] = []
        for segment in sorted(found, key=lambda s: (s.base, -(s.end or s.base))):
            if not kept or kept[-1].end is None or segment.base >= kept[-1].end:
                kept.append(segment)
        ended = [replace(s, end=s.end if s.end is not None else after.base) for s, after in itertools.pairwise(kept)]
        return [*ended, kept[-1]], [s for s in found if s.path not in {k.path for k in kept}]

    def delete_all(fs: Any, reader: Any, partition: Partition) -> int:
        for segment in partition.superfluous:
            fs.delete(segment.path)
        return len(partition.superfluous)

    patch.setattr(log, "chain_of_segments", chosen)
    patch.setattr(log, "_first_break", lambda *_: "")
    patch.setattr(compact, "_delete_superfluous", delete_all)
    real = compact._merge

    def merge(fs: Any, *more: Any) -> int:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(fs, "status", lambda path: True)  # the members are not looked at again
            return real(fs, *more)

    patch.setattr(compact, "_merge", merge)


def whoever_comes_last_says_where_a_log_begins(patch: pytest.MonkeyPatch) -> None:
    real = mirror.commit_origin

    def commit_origin(fs: Any, root: str, place: Any, origin: log.Origin) -> log.Origin:
        fs.delete(f"{log.partition_folder(root, *place)}/{log.ORIGIN_FILE}")
        return real(fs, root, place, origin)

    patch.setattr(mirror, "commit_origin", commit_origin)


def a_chain_begins_where_kafka_begins(patch: pytest.MonkeyPatch) -> None:
    real = chain_log._start_at

    def start_at(newest: Any, origins: Any) -> Any:
        zero = {t: {lg: dict.fromkeys(by, 0) for lg, by in logs.items()} for t, logs in origins.items()}
        return real(newest, zero)

    patch.setattr(chain_log, "_start_at", start_at)


def a_log_begins_at_the_first_segment_that_is_there(patch: pytest.MonkeyPatch) -> None:
    real = log.LogReader._partition

    def partition(self: Any, listed: Any) -> Partition:
        found = real(self, listed)
        first = found.segments[0].base if found.segments else found.origin
        return replace(found, origin=first, damage="" if found.damage.startswith("it begins") else found.damage)

    patch.setattr(log.LogReader, "_partition", partition)


def a_read_of_several_steps_gives_up_where_a_file_went_away(patch: pytest.MonkeyPatch) -> None:
    def once(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except FileNotFoundError as error:
            raise AssertionError(f"a layer ends: {error!r}") from error

    patch.setattr(derived, "listed_again", once)


def damage_ends_whoever_reads_it(patch: pytest.MonkeyPatch) -> None:
    def end(damage: Exception) -> None:
        raise damage

    for read in (chains.chains, chains.epochs, versions.manifests, versions.choice):
        patch.setattr(read, "__defaults__", (end,))


def what_another_stream_counted_is_counted_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chain_log.NextEpoch, "first", lambda *_: {})


def epochs_newer_than_kafkas_answer_are_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(chain_log, "_asked_again", lambda kafka, state: state)


def a_version_adds_to_its_parent_what_the_parent_has(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        build, "_since", lambda stream, parent, log_, horizon, full: build._ranges(log_["t"], "t", horizon, {})
    )
    patch.setattr(build, "_check_rows", lambda *_: None)


# Mutant → the row of the list, and a schedule that finds it; where a change of the product moved its steps, another one
# does, which `python -m tests.simulation --mutants` looks for. Row 20, a shared checkpoint, is Spark's alone.
FOUND_BY: dict[Patch, tuple[int, int]] = {
    a_cut_partition_is_mirrored_again_from_its_start: (1, 95),
    nobody_proves_that_kafka_continues_what_is_stored: (2, 0),
    any_typed_segment_makes_the_folder_it_goes_into: (3, 79),
    a_number_comes_back_when_its_folder_is_deleted: (4, 19),
    a_wider_name_covers_whatever_begins_inside_it: (5, 1),
    whoever_comes_last_says_where_a_log_begins: (6, 10),
    a_chain_begins_where_kafka_begins: (7, 3),
    a_log_begins_at_the_first_segment_that_is_there: (8, 31),
    an_accepted_gap_is_not_counted: (9, 66),
    holes_are_not_counted: (13, 0),
    a_staged_file_that_went_away_is_a_hole: (13, 1),
    coverage_never_falls: (15, 40),
    a_chain_is_continued_whatever_kafka_has_by_now: (15, 40),
    a_read_of_several_steps_gives_up_where_a_file_went_away: (21, 2),
    damage_ends_whoever_reads_it: (23, 41),
    kafkas_ends_are_asked_before_the_heads: (24, 18),
    epochs_newer_than_kafkas_answer_are_lost: (24, 1),
    what_another_stream_counted_is_counted_again: (20, 2),
    a_version_adds_to_its_parent_what_the_parent_has: (4, 3),
}


# What random moves bring about too seldom: of each seed of these mutants this happens, in this order.
STORIES: dict[Patch, tuple[str, ...]] = {
    a_wider_name_covers_whatever_begins_inside_it: (*("append",) * 20, *("overtake", "append", "append") * 5),
    a_log_begins_at_the_first_segment_that_is_there: ("append", "append", "raw", "retype", "append") * 3,
}


def case_of(mutant: Patch, seed: int) -> Case:
    story = STORIES.get(mutant)
    return Case.of(seed) if story is None else Case(seed, tuple((30 + CHUNK * n, m) for n, m in enumerate(story)))


def found_by(mutant: Patch, seeds: Iterable[int]) -> tuple[int | None, str]:
    """Return the first seed that fails with a mutant and not without it, and how; None if there is none."""
    for case in (case_of(mutant, seed) for seed in seeds):
        with pytest.MonkeyPatch.context() as patch:
            mutant(patch)
            error = outcome(case).error
        if error and not outcome(case).error:
            return case.seed, error
    return None, ""
