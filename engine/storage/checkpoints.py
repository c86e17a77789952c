"""Where does a streaming query keep Spark's notes? In a folder of its process alone: two of a layer never share one.

Checkpoints are caches: a process begins a new one at every start, from the heads or the chain's end, and deletes it at its
end. What killed processes left goes away with the next start of the domain a day later. A living process, however idle,
marks its folder every hour, so it is never taken for a dead one, wherever it runs; ages are told by the file system's clock.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import structlog

from engine.storage.hdfs import HdfsUnavailable

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
