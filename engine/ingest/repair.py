"""What does an operator do about a log that ended, or offsets that are gone? Ingest's `--new-log` and `--accept-gap`."""

from __future__ import annotations

from collections.abc import Sequence

from engine.domain import Domain
from engine.ingest.mirror import Mirror
from engine.runtime import kafka
from engine.runtime.settings import Settings, SettingsError
from engine.storage import log
from engine.storage.hdfs import Hdfs

# Why a partition of a new log begins where it does.
PROOFS = {
    "continues": "Kafka's log is the one that was mirrored, it goes on at its head",
    "cut": "Kafka's log is the one that was mirrored, cut short here; what HDFS holds above stays",
    "other": "Kafka's log is another one, it is mirrored from its start",
    "unproven": "nothing is stored, or Kafka no longer holds what could be compared",
    None: "it is new",
}


def opened(domain: Domain, settings: Settings, reader: kafka.Reader) -> Mirror:
    """Return the raw logs of a domain, and what Kafka says of them."""
    fs = Hdfs(settings.hdfs_url, settings.hadoop_user_name)
    return Mirror(fs, reader, domain, settings.starting_offsets == "latest")


def repair(chosen: Sequence[Domain], settings: Settings, new_log: str | None, accept_gaps: bool) -> None:
    """Do what an operator asks for after ingest named a fault, and print what was done; none of it needs Spark.

    Args:
        new_log: the topic whose present log is closed, and another one begun.
        accept_gaps: put on record what Kafka deleted before it was ingested.

    Raises:
        SettingsError: no chosen domain has the topic.
    """
    owner = next((domain for domain in chosen if new_log in domain.topics), None)
    if new_log and owner is None:
        raise SettingsError(
            f"--new-log {new_log}: no such topic; known: {', '.join(t for d in chosen for t in d.topics)}"
        )
    if new_log and owner is not None:
        mirror = opened(owner, settings, kafka.consumer(settings))
        present = mirror.logs[new_log]
        if origins := mirror.new_log(new_log):
            print(f"topic '{new_log}': log {present} is closed, {log.next_log(present)} begins:")
        else:
            print(f"topic '{new_log}': Kafka continues log {present}, nothing is to be done")
        for p, origin in sorted(origins.items(), key=lambda item: int(item[0])):
            print(f"  partition {p} at offset {origin.offset}: {PROOFS[origin.proof]}")
    for domain in chosen if accept_gaps else ():
        for (topic, _, p), start, end, ours in opened(domain, settings, kafka.consumer(settings)).accept_gaps():
            done = "accepted" if ours else "was committed by somebody else"
            print(f"topic '{topic}' partition {p}: gap [{start}, {end}) {done}")
