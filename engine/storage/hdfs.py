"""How do we speak to HDFS? A few verbs with bounded retries, through hdfs-native (no JVM).

`rename` is the RPC `rename2` without the OVERWRITE option, the same call as `FileContext.rename(…, Rename.NONE)`:
it refuses an existing target, file or folder. It is never retried here, because its answer can be lost after it
happened; who publishes has to look (see `engine.storage.commit.publish`).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import hdfs_native
import pyarrow as pa
import pyarrow.parquet as pq

RETRY_SECONDS = 40.0


class HdfsUnavailable(RuntimeError):
    """HDFS did not answer within the retries; a restart heals once it is back."""


@dataclass(frozen=True)
class Entry:
    """One file or folder: absolute path, whether it is a folder, bytes, modification time in epoch ms."""

    path: str
    is_folder: bool
    length: int
    modified_ms: int

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[1]


class Hdfs:
    """A connection to one HDFS, as the user in HADOOP_USER_NAME."""

    def __init__(self, url: str, user: str) -> None:
        self.url = url
        os.environ.setdefault("HADOOP_USER_NAME", user)
        self._client = hdfs_native.Client(url, {"dfs.client.use.datanode.hostname": "true"})

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        """Return what lies in a folder, sorted by path; a folder that is not there is empty."""
        try:
            found = self._retry(f"list {path}", lambda: list(self._client.list_status(path, recursive)))
        except FileNotFoundError:
            return []
        return sorted((_entry(status) for status in found), key=lambda entry: entry.path)

    def status(self, path: str) -> Entry | None:
        """Return the entry of a path, or None if nothing is there."""
        try:
            return _entry(self._retry(f"status of {path}", lambda: self._client.get_file_info(path)))
        except FileNotFoundError:
            return None

    def read(self, path: str) -> bytes:
        """Return a whole file. Raises FileNotFoundError."""
        return bytes(self._retry(f"read {path}", lambda: self._client.read(path).read()))

    def open_parquet(self, path: str) -> pq.ParquetFile:
        """Open a Parquet file; only what is asked for is read.

        Raises FileNotFoundError, or ValueError for a damaged footer.
        """

        def opened() -> pq.ParquetFile:
            try:
                return pq.ParquetFile(pa.PythonFile(self._client.read(path), mode="r"))
            except OSError as error:
                if "thrift" in str(error):  # what Arrow says of bytes that are no footer: no silence of HDFS
                    raise pa.ArrowInvalid(f"{path}: {error}") from error
                raise

        return self._retry(f"open {path}", opened)

    def create(self, path: str, data: bytes) -> None:
        """Write a new file with its parent folders. Raises FileExistsError; a half-written file is never left open."""
        parent = path.rsplit("/", 1)[0]

        def write() -> None:
            self.mkdirs(parent)
            with self._client.create(path) as out:
                out.write(data)

        self._retry(f"write {path}", write)

    def mkdirs(self, path: str) -> None:
        """Make a folder and its parents; one that is there already is fine."""
        # The group's bits are the mask of an access list (POSIX.1e): without w, no list of `grant` would reach below.
        self._retry(f"mkdir {path}", lambda: self._client.mkdirs(path, 0o775, True))

    def grant(self, path: str, owner: str, mode: int, writers: Iterable[str], inherited: Iterable[str] = ()) -> None:
        """Make a folder that `owner` and `writers` may write in; new folders below it let `inherited` in, too.

        Only for HDFS's superuser; PermissionError for others.
        """
        self.mkdirs(path)
        self._retry(f"chown {path}", lambda: self._client.set_owner(path, owner))
        bits = [_rwx(mode >> 6), _rwx(mode >> 3), _rwx(mode)]
        entries = []
        for scope, names in (("access", writers), ("default", inherited)):
            if named := [hdfs_native.AclEntry("user", scope, "rwx", name) for name in sorted(names)]:
                base = zip(("user", "group", "other"), bits, strict=True)
                entries += [*named, *(hdfs_native.AclEntry(kind, scope, rights) for kind, rights in base)]
        if entries:
            self._retry(f"setfacl {path}", lambda: self._client.set_acl(path, entries))
        else:
            self._retry(f"chmod {path}", lambda: self._client.set_permission(path, mode))

    def delete(self, path: str, recursive: bool = False) -> bool:
        """Delete; False if nothing was there."""
        try:
            return bool(self._retry(f"delete {path}", lambda: self._client.delete(path, recursive)))
        except FileNotFoundError:
            return False

    def rename(self, source: str, target: str) -> None:
        """Move without overwriting. Raises FileExistsError, FileNotFoundError, or OSError/RuntimeError if in doubt."""
        try:
            self._client.rename(source, target, overwrite=False)
        except Exception as error:
            # Some refusals come as a plain RuntimeError that carries the Java exception; "must both be" is what the
            # NameNode says of a file moved onto a folder or the other way round.
            if any(sign in str(error) for sign in ("FileAlreadyExists", "must both be")):
                raise FileExistsError(target) from error
            raise

    def _retry(self, what: str, call: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + RETRY_SECONDS
        pause = 0.1
        while True:
            try:
                return call()
            except (FileNotFoundError, FileExistsError, PermissionError):
                raise
            except (OSError, RuntimeError) as error:
                if "AccessControlException" in str(error):
                    reason = str(error).splitlines()[0][:300]
                    raise PermissionError(f"HDFS_URL={self.url}: cannot {what}: {reason}") from error
                if "AlreadyBeingCreated" in str(error) or "FileAlreadyExists" in str(error):
                    raise FileExistsError(what) from error
                if time.monotonic() + pause > deadline:
                    reason = str(error).splitlines()[0][:200]
                    raise HdfsUnavailable(
                        f"HDFS_URL={self.url}: cannot {what}: {reason}; see `python -m stack status`"
                    ) from error
            time.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, 5.0)


def _entry(status: Any) -> Entry:
    return Entry("/" + status.path.lstrip("/"), bool(status.isdir), int(status.length), int(status.modification_time))


def _rwx(bits: int) -> str:
    return "".join(letter if bits & value else "-" for letter, value in (("r", 4), ("w", 2), ("x", 1)))
