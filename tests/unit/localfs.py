"""A folder that speaks the verbs of `engine.storage.hdfs.Hdfs`, so that unit tests need no HDFS."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq

from engine.storage.hdfs import Entry


class LocalFs:
    """The verbs of `Hdfs` below one folder; paths are absolute, as on HDFS; `rename` refuses an existing target."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.reads: list[str] = []

    def list(self, path: str, recursive: bool = False) -> list[Entry]:
        folder = self._at(path)
        if not folder.is_dir():
            return []
        entries = []
        for item in folder.rglob("*") if recursive else folder.iterdir():
            with suppress(FileNotFoundError):  # HDFS lists in one step
                entries.append(self._entry(item))
        return sorted(entries, key=lambda entry: entry.path)

    def status(self, path: str) -> Entry | None:
        return self._entry(self._at(path)) if self._at(path).exists() else None

    def read(self, path: str) -> bytes:
        self.reads.append(path)
        return self._at(path).read_bytes()

    def open_parquet(self, path: str) -> pq.ParquetFile:
        self.reads.append(path)
        return pq.ParquetFile(self._at(path))

    def create(self, path: str, data: bytes) -> None:
        self.mkdirs(path.rsplit("/", 1)[0])
        with self._at(path).open("xb") as out:
            out.write(data)

    def mkdirs(self, path: str) -> None:
        self._at(path).mkdir(parents=True, exist_ok=True)

    def delete(self, path: str, recursive: bool = False) -> bool:
        target = self._at(path)
        if not target.exists():
            return False
        if target.is_dir():
            shutil.rmtree(target) if recursive else target.rmdir()
        else:
            target.unlink()
        return True

    def rename(self, source: str, target: str) -> None:
        old, new = self._at(source), self._at(target)
        if not old.exists() or not new.parent.is_dir():
            raise FileNotFoundError(source)
        if old.is_dir():
            if new.exists():
                raise FileExistsError(target)
            old.rename(new)
            return
        os.link(old, new)  # refuses an existing target in one step
        old.unlink()

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _entry(self, item: Path) -> Entry:
        status = item.stat()
        path = "/" + str(item.relative_to(self.root))
        return Entry(path, item.is_dir(), 0 if item.is_dir() else status.st_size, int(status.st_mtime * 1000))
