"""What of a domain's topics is on HDFS, and may Kafka be read on from there? The protocol of ingest, without Spark.

A `Mirror` knows the present log of each topic, commits the origin of each partition before anything is counted from it,
proves that Kafka continues what is stored, and commits planned ranges of offsets. What it was told of Kafka holds for
one *generation* of a topic (its id and the epochs of its leaders); when that changes, everything is asked again by who
starts again, with clients that remember nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import structlog

from engine.domain import Domain
from engine.runtime.kafka import KafkaLogs, TopicState
from engine.runtime.observe import StartAgain
from engine.storage import log
from engine.storage.commit import (
    Piece,
    closing_segment,
    commit,
    commit_empty,
    commit_origin,
    gap_segment,
    staged_pieces,
)
from engine.storage.continuity import (
    DataExpired,
    LogReplaced,
    Verdict,
    by_topic,
    check_continuity,
    check_expiry,
    lineages,
    present_logs,
    verdicts,
)
from engine.storage.log import MASTER, STAGING, FileSystem, LogReader, Origin, Partitions, Place, Range

_log = structlog.get_logger("engine.ingest.mirror")


class Mirror:
    """The raw logs of one domain and what Kafka says of them.

    Args:
        latest: a log that was never seen begins at Kafka's end, not at its start.
    """

    def __init__(self, fs: FileSystem, kafka: KafkaLogs, domain: Domain, latest: bool = False) -> None:
        self.fs, self.kafka, self.domain, self.latest = fs, kafka, domain, latest
        self.reader = LogReader(fs)
        self.known = self._state()
        self.logs = present_logs(fs, self.known)

    def prove(self) -> None:
        """Commit the origins that are missing, then refuse to go on in a log that is not the one we mirrored.

        Raises:
            StartAgain: a topic, its present log or a leader changed.
            LogReplaced, DataExpired, MasterWentBack: as they say.
        """
        partitions = self._partitions()
        # Kafka's ends are asked after the heads, which another process may move: the bound that must be larger is read
        # last.
        state = self._state()
        self._refuse_changes(state)
        self.known = state
        self._begin(partitions, state)
        for topic, found in by_topic(verdicts(self.fs, self.kafka, lineages(self.logs, partitions), state)).items():
            check_continuity(topic, found, self.domain.name)
            check_expiry(topic, found, self.domain.name)

    def heads(self) -> dict[Place, int]:
        """Ask HDFS for the head of every partition of the present logs.

        Raises:
            MasterWentBack: a partition does not reach from its origin to its head.
            LogReplaced: the log was closed and its successor is not there.
        """
        return self._heads(self._partitions())

    def commit(
        self,
        planned: Mapping[tuple[str, int], tuple[int | None, int]],
        write: Callable[[Mapping[Place, Range], str], int],
        name: str,
    ) -> list[Piece]:
        """Commit the planned offsets; returns only when every head has reached their end.

        Args:
            planned: (topic, partition) → the offsets that Kafka was asked for; start None where the partition begins.
            write: writes the rows of given ranges below a staging folder, as `topic=/partition=/….parquet`, and returns
                how many it read. It must fail where Kafka does not have an offset any more: what it leaves out is a
                hole, such as a transaction's marker.

        Raises:
            StartAgain: what was read does not belong to the logs that were proved, or begins above a head.
        """
        origins = {}
        for topic, lg, p, partition in log.each(self._partitions()):
            if self.logs.get(topic) == lg:
                origins[topic, lg, p] = partition.origin
        ranges = {}
        for (topic, number), (start, end) in planned.items():
            place = topic, self.logs[topic], str(number)
            ranges[place] = (origins[place] if start is None else start, end)

        def stage(ranges: Mapping[Place, Range], staging: str) -> list[Piece]:
            read = write(ranges, staging)
            pieces = staged_pieces(self.fs, staging, ranges)
            if (staged := sum(piece.rows for piece in pieces)) != read:
                # A file that went away would look like holes.
                raise StartAgain(f"{read} rows were read from Kafka, {staged} lie in {staging}")
            state = self._state()
            self._refuse_changes(state)
            if any(piece.has_holes for piece in pieces):
                self._refuse_loss(ranges, state)
            return pieces

        return commit(self.fs, MASTER, ranges, self.heads, stage, name, origins)

    def accept_gaps(self) -> list[tuple[Place, int, int, bool]]:
        """Commit a segment of zero rows for every range that Kafka deleted before it was ingested.

        Returns:
            Place, start and end of each gap, and whether we committed it (else somebody else did).
        """
        heads, state = self.heads(), self._state()
        self._refuse_changes(state)
        found = []
        for place, head in heads.items():
            topic, _, p = place
            at = state[topic].partitions.get(int(p))
            if at is not None and at.start > head:
                done = commit_empty(self.fs, MASTER, place, head, gap_segment(head, at.start), at.start)
                found.append((place, head, at.start, done))
        return found

    def new_log(self, topic: str) -> dict[str, Origin]:
        """Close the present log of a topic and begin the next, each partition where Kafka's log and ours part.

        Returns:
            Partition → its origin in the new log and what that continues; empty where Kafka continues the present log,
            which stays: closing it would take back what the stream has counted beyond its head.
        """
        present = self.logs[topic]
        following = log.next_log(present)
        partitions = self.reader.sound([topic])
        if not self._has_ended(topic, partitions):
            return {}
        for p, partition in partitions[topic].get(present, {}).items():
            self._close((topic, present, p), partition)
        stored = lineages({topic: present}, self.reader.sound([topic]))
        state = self._state()
        self._refuse_changes(state, logs=False)
        judged = verdicts(self.fs, self.kafka, stored, state, find_cut=True)
        lost_disk = any(verdict.proof == "other" for verdict in judged.values())
        origins = {}
        for number, at in state[topic].partitions.items():
            verdict = judged.get((topic, number))
            origins[str(number)] = _continued(present, verdict, lost_disk) if verdict else Origin(at.start)
        if not begin_log(self.fs, topic, following, origins):
            raise StartAgain(f"topic '{topic}': log {following} was begun by somebody else")
        return origins

    def _has_ended(self, topic: str, partitions: Partitions) -> bool:
        """True if ingest would refuse to go on in the present log of a topic."""
        if any(partition.closed for partition in partitions[topic].get(self.logs[topic], {}).values()):
            return True
        found = verdicts(self.fs, self.kafka, lineages({topic: self.logs[topic]}, partitions), self._state())
        try:
            check_continuity(topic, by_topic(found).get(topic, {}), self.domain.name)
        except LogReplaced:
            return True
        return False

    def _close(self, place: Place, partition: log.Partition) -> None:
        while not partition.closed:
            commit_empty(self.fs, MASTER, place, partition.head, closing_segment(partition.head), partition.head)
            partition = self.reader.sound([place[0]])[place[0]][place[1]][place[2]]

    def _partitions(self) -> Partitions:
        return self.reader.sound(self.domain.topics)

    def _heads(self, partitions: Partitions) -> dict[Place, int]:
        heads = {}
        for topic, lg, p, partition in log.each(partitions):
            if self.logs.get(topic) != lg:
                continue
            if partition.closed:
                if present_logs(self.fs, {topic: self.known[topic]}) != {topic: lg}:
                    raise StartAgain(f"topic '{topic}': log {lg} was closed, a new one begins")
                raise LogReplaced(
                    f"LOG_REPLACED topic '{topic}': log {lg} is closed and none follows it; finish it with "
                    f"ingest_layer.py --domain {self.domain.name} --new-log {topic}"
                )
            heads[topic, lg, p] = partition.head
        return heads

    def _state(self) -> dict[str, TopicState]:
        state = self.kafka.state(self.domain.topics)
        if absent := [topic for topic in self.domain.topics if topic not in state]:
            raise StartAgain(f"Kafka has no topic '{absent[0]}' at this moment")
        return state

    def _refuse_changes(self, state: Mapping[str, TopicState], logs: bool = True) -> None:
        for topic, now in state.items():
            before = self.known[topic]
            if now.id != before.id:
                raise StartAgain(f"topic '{topic}' was deleted or made anew; its log is closed, a new one begins")
            # A partition may be added; a leader that changed may have come back without what it had.
            epochs = {p: at.leader_epoch for p, at in now.partitions.items() if p in before.partitions}
            if epochs != {p: at.leader_epoch for p, at in before.partitions.items()}:
                raise StartAgain(f"topic '{topic}': a broker was away; whether its log continues ours is proved anew")
        if logs and present_logs(self.fs, self.known) != self.logs:
            raise StartAgain(f"a log of {self.domain.name} was closed, a new one begins")

    def _refuse_loss(self, ranges: Mapping[Place, Range], state: Mapping[str, TopicState]) -> None:
        for (topic, _, p), (start, _) in ranges.items():
            at = state[topic].partitions[int(p)]
            if at.start > start:
                raise DataExpired(
                    f"DATA_EXPIRED topic '{topic}' partition {p} [{start}, {at.start}): Kafka deleted these offsets while they were read"
                )

    def _begin(self, partitions: Partitions, state: Mapping[str, TopicState]) -> None:
        """Commit the origins that are missing.

        Those of a log that was never seen at once, so that one setting made them all.
        """
        for topic, lg in self.logs.items():
            known = partitions[topic].get(lg, {})
            origins = {}
            for number, at in state[topic].partitions.items():
                stored = known.get(str(number))
                if stored is None or not stored.begun:
                    # In the older layout a partition begins at its first segment; one that joins a log is new in Kafka,
                    # too.
                    begin = stored.origin if stored else at.end if self.latest and not known else at.start
                    origins[str(number)] = Origin(begin)
            if origins and not known:
                begin_log(self.fs, topic, lg, origins)
            for p, origin in origins.items():
                committed = commit_origin(self.fs, MASTER, (topic, lg, p), origin)
                _log.info("origin", topic=topic, log=lg, partition=p, offset=committed.offset)


def begin_log(fs: FileSystem, topic: str, lg: str, origins: Mapping[str, Origin]) -> bool:
    """Begin a log with all its origins by one rename; False if it was begun by somebody else."""
    staged = f"{STAGING}/log-{topic}-{lg}-{os.getpid()}-{time.time_ns()}"
    for p, origin in origins.items():
        fs.create(f"{staged}/partition={p}/{log.ORIGIN_FILE}", origin.to_json())
    fs.mkdirs(f"{MASTER}/topic={topic}")
    try:
        fs.rename(staged, f"{MASTER}/topic={topic}/log={lg}")
        return True
    except FileExistsError:
        return False
    finally:
        fs.delete(staged, recursive=True)


def _continued(present: str, verdict: Verdict, lost_disk: bool) -> Origin:
    """Return the origin of a partition in the log that follows a closed one.

    Args:
        lost_disk: another partition of the topic was proved to be another log; then this one, too, unless the contrary
            is proved.
    """
    at = verdict.kafka
    if verdict.proof in ("continues", "cut"):
        return Origin(verdict.common, present, verdict.proof)
    if verdict.proof == "unproven" and at.end >= verdict.head and not lost_disk:
        return Origin(max(at.start, verdict.head), present, verdict.proof)
    return Origin(at.start, present, verdict.proof)
