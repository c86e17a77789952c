"""Chain and horizon under random schedules.

Version ⊕ epochs after it counts every offset below coverage exactly once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.batch.horizon import choose_horizon
from engine.runtime.kafka import PartitionState, TopicState
from engine.speed import chain_log
from engine.storage.chains import Chain, Epoch, fits, speaks_of
from engine.storage.log import Partition, Position, Segment, offset_in, overlay
from engine.storage.versions import Manifest, version_zero

TOPIC = "t"
# Nothing that had no record when it was read has one now.
SAME_AS_READ = SimpleNamespace(records_at=lambda wanted: {})
Row = tuple[str, str, int]  # log, partition, offset


class Pipeline(RuleBasedStateMachine):
    """Kafka, raw and typed heads, chains and versions as plain positions; the layers' own functions decide."""

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.log = "A"
        self.kafka: dict[str, dict[str, int]] = {"A": {"0": 0, "1": 0}}
        self.typed: dict[str, dict[str, int]] = {}
        self.chains: list[tuple[Chain, list[Epoch]]] = []
        self.versions: list[Manifest] = []
        self.stream: int | None = None  # index of the chain that the running stream job extends

    # what the world does

    @rule(partition=st.sampled_from("01"), events=st.integers(1, 9))
    def produce(self, partition: str, events: int) -> None:
        self.kafka[self.log][partition] = self.kafka[self.log].get(partition, 0) + events

    @rule()
    def add_partition(self) -> None:
        self.kafka[self.log].setdefault("2", 0)

    @rule(data=st.data())
    def ingest(self, data: st.DataObject) -> None:
        for partition, end in self.kafka[self.log].items():
            head = self.typed.get(self.log, {}).get(partition, 0)
            reached = data.draw(st.integers(head, end))
            if reached:
                self.typed.setdefault(self.log, {})[partition] = reached

    @rule(seconds=st.sampled_from([1, 30, 90]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @precondition(lambda self: len(self.kafka) < 3)
    @rule()
    def recreate_topic(self) -> None:
        self.log = chr(ord(self.log) + 1)
        self.kafka[self.log] = {"0": 0, "1": 0}
        self.stream = None  # a layer that meets a new topic id ends and is started again

    @rule()
    def delete_speed_data(self) -> None:
        self.chains, self.stream = [], None

    @rule()
    def kill_stream(self) -> None:
        self.stream = None

    # what the layers do

    @precondition(lambda self: self.stream is None)
    @rule()
    def start_stream(self) -> None:
        newest = self.newest()
        logs = {TOPIC: self.log}
        partitions = {int(p): PartitionState(0, 0, end) for p, end in self.kafka[self.log].items()}
        origins = {TOPIC: {self.log: {str(p): 0 for p in partitions}}}
        start = chain_log._start_at(newest, origins)
        raw, state = self.raw(), {TOPIC: TopicState(self.log, partitions)}
        for index, (chain, epochs) in reversed(list(enumerate(self.chains))):
            if (
                speaks_of(chain, TOPIC, self.log)
                and fits(chain, epochs, newest.horizon, newest.version) is not None
                and not chain_log._lost(chain, epochs, logs, raw, start, SAME_AS_READ, state)  # type: ignore[arg-type]
            ):
                self.stream = index
                return
        number = max((chain.number for chain, _ in self.chains), default=0) + 1
        self.chains.append((Chain("d", number, newest.version, start, "h", self.now.isoformat(), origins), []))
        self.stream = len(self.chains) - 1

    @precondition(lambda self: self.stream is not None)
    @rule(data=st.data())
    def epoch(self, data: st.DataObject) -> None:
        chain, epochs = self.chains[self.stream]  # type: ignore[index]
        newest = self.newest()
        if newest.version and fits(chain, epochs, newest.horizon, newest.version) is None:
            self.stream = None  # NewChain
            return
        start = epochs[-1].end if epochs else chain.start
        ends = {
            p: data.draw(st.integers(offset_in(start, TOPIC, self.log, p, 0), end))
            for p, end in self.kafka[self.log].items()
        }
        end = overlay(
            start, {TOPIC: {self.log: {p: o for p, o in ends.items() if o > offset_in(start, TOPIC, self.log, p, 0)}}}
        )
        if end != start:
            epochs.append(Epoch(len(epochs), start, end, "h", created_at=self.now.isoformat()))

    @rule()
    def batch(self) -> None:
        parent = self.newest()
        chain, epochs = self.chains[-1] if self.chains else (None, [])
        typed: Position = {TOPIC: {log: dict(by) for log, by in self.typed.items()}}
        horizon = choose_horizon(typed, parent.horizon, chain, epochs, self.now)
        if horizon != parent.horizon:
            self.versions.append(Manifest("d", parent.version + 1, parent.version, horizon, "h", "", {}))

    # what must hold

    @invariant()
    def every_answer_counts_each_offset_below_coverage_once(self) -> None:
        for version in (self.zero(), *self.versions):
            for chain, epochs in self.chains:
                below = fits(chain, epochs, version.horizon, version.version)
                if below is None:
                    continue
                counted = self.rows_below(version.horizon)
                coverage = version.horizon
                for epoch in epochs[below:]:
                    counted.update(self.rows_between(epoch.start, epoch.end))
                    coverage = overlay(coverage, epoch.end)
                coverage = overlay(coverage, chain.start) if not epochs[below:] else coverage
                wanted = self.rows_below(overlay(coverage, version.horizon) if not epochs[below:] else coverage)
                assert counted == wanted, (version.horizon, chain, epochs[below:])

    @invariant()
    def horizons_never_fall_and_never_pass_the_typed_log(self) -> None:
        for parent, version in zip(self.versions, self.versions[1:], strict=False):
            for log, by in parent.horizon.get(TOPIC, {}).items():
                for partition, offset in by.items():
                    assert offset_in(version.horizon, TOPIC, log, partition, 0) >= offset
        for version in self.versions:
            for log, by in version.horizon.get(TOPIC, {}).items():
                for partition, offset in by.items():
                    assert offset <= self.typed.get(log, {}).get(partition, 0)

    @invariant()
    def a_running_stream_lies_within_kafka(self) -> None:
        for chain, epochs in self.chains:
            assert all(a.end == b.start for a, b in itertools.pairwise(epochs))
            assert not epochs or epochs[0].start == chain.start

    def newest(self) -> Manifest:
        return self.versions[-1] if self.versions else self.zero()

    def zero(self) -> Manifest:
        return version_zero("d", "h", {})

    def raw(self) -> dict[str, dict[str, dict[str, Partition]]]:
        return {
            TOPIC: {
                log: {p: Partition((Segment("", 0, head, 1),), 0, head) for p, head in by.items()}
                for log, by in self.typed.items()
            }
        }

    def rows_below(self, position: Position) -> Counter[Row]:
        return self.rows_between({}, position)

    def rows_between(self, start: Position, end: Position) -> Counter[Row]:
        rows: Counter[Row] = Counter()
        for log, by in end.get(TOPIC, {}).items():
            for partition, offset in by.items():
                rows.update((log, partition, o) for o in range(offset_in(start, TOPIC, log, partition, 0), offset))
        return rows


TestPipeline = Pipeline.TestCase
TestPipeline.settings = settings(max_examples=600, stateful_step_count=40, deadline=None)
