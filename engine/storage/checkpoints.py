"""Where does a streaming query keep Spark's notes? In a folder of its process alone: two of a layer never share one.

Checkpoints are caches: a process begins a new one at every start, from the heads or the chain's end, and deletes it at
its end. What killed processes left goes away with the next start of the domain a day later. A living process, however
idle, marks its folder every hour, so it is never taken for a dead one, wherever it runs; ages are told by the file
system's clock.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from engine.runtime.observe import StartAgain
from engine.storage.hdfs import HdfsUnavailable
from engine.storage.log import FileSystem

RENEW_SECONDS = 3600.0
ABANDONED_SECONDS = 86_400.0
# At its end a process does not wait longer for an HDFS that is away; the folder is then one that a killed process left.
CLOSE_SECONDS = 5.0

_log = structlog.get_logger("engine.storage.checkpoints")


class Checkpoint:
    """A new folder for the notes of one query; `path` is for Spark.

    Args:
        fs: `engine.storage.hdfs.Hdfs`.
        folder: of all checkpoints of this layer and domain.
    """

    def __init__(self, fs: Any, folder: str) -> None:
        host = re.sub(r"[^\w.-]", "_", socket.gethostname())
        self.path = f"{folder}/{host}-{os.getpid()}-{time.time_ns()}"
        self._fs, self._ended = fs, threading.Event()
        _sweep(fs, folder, self._mark())
        threading.Thread(target=self._renew, name="checkpoint", daemon=True).start()

    def close(self) -> None:
        """Delete it; nothing is left to say if that fails."""
        self._ended.set()
        work = threading.Thread(target=self._delete, name="checkpoint", daemon=True)
        work.start()
        work.join(CLOSE_SECONDS)

    def _mark(self) -> int:
        """Say that its process lives; returns now, in ms, by the file system's clock."""
        mark = f"{self.path}/alive"
        self._fs.delete(mark)
        self._fs.create(mark, b"")
        return int(self._fs.status(mark).modified_ms)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            with suppress(OSError, HdfsUnavailable):
                self._mark()

    def _delete(self) -> None:
        with suppress(OSError, HdfsUnavailable):
            self._fs.delete(self.path, recursive=True)


def _sweep(fs: Any, folder: str, now_ms: int) -> None:
    """Delete the checkpoints of processes that have not said for a day that they live."""
    newest: dict[str, int] = {}
    for entry in fs.list(folder, recursive=True):
        name = entry.path[len(folder) + 1 :].partition("/")[0]
        newest[name] = max(newest.get(name, 0), entry.modified_ms)
    for name, modified_ms in newest.items():
        if now_ms - modified_ms > 1000 * ABANDONED_SECONDS:
            try:
                fs.delete(f"{folder}/{name}", recursive=True)
            except PermissionError as error:  # of another user: no reason not to begin
                _log.warning("checkpoint not deleted", path=f"{folder}/{name}", reason=str(error))


@dataclass
class Reading:
    """Which offsets each micro-batch of a query reads.

    Args:
        at: (topic, partition) → where the next micro-batch begins; a partition that Spark finds later begins at its
            origin.
    """

    fs: FileSystem
    checkpoint: str
    at: dict[tuple[str, int], int]

    def starting_offsets(self) -> str:
        """Return them as Spark's startingOffsets."""
        told: dict[str, dict[str, int]] = {}
        for (topic, p), offset in self.at.items():
            told.setdefault(topic, {})[str(p)] = offset
        return json.dumps(told)

    def planned(self, batch: int) -> dict[tuple[str, int], tuple[int | None, int]]:
        """Return start (None: where the partition begins) and end of what a micro-batch reads, as Spark noted before.

        Spark's offset log: `<checkpoint>/offsets/<batch>` holds a version, metadata, and a line of JSON per source.
        Ranges are taken from here and not from the rows, which leave out what is no record.

        Raises:
            StartAgain: the note is not there.
        """
        path = f"{self.checkpoint}/offsets/{batch}"
        try:
            told = json.loads(self.fs.read(path).decode().splitlines()[-1])
        except (FileNotFoundError, ValueError, IndexError) as error:
            raise StartAgain(f"{path} cannot be read: {error}") from None
        ends = {(topic, int(p)): int(end) for topic, by in told.items() for p, end in by.items()}
        planned = {place: (self.at.get(place), end) for place, end in ends.items()}
        self.at = {**self.at, **ends}
        return planned
