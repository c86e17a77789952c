"""How do rows become a file, whole or not at all? CSV, JSON, JSON lines or Parquet, row by row.

What is written goes to `<file>.<process id>.part`, which gets its name at the end; `-` is standard output.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from engine.runtime.notation import BYTE_ORDER_MARK, csv_lines, encode, writable

FORMATS = ("csv", "json", "jsonl", "parquet")
STDOUT = "-"
# Rows, or bytes, of a row group of Parquet, as long as a batch does not bring more.
GROUP_ROWS, GROUP_BYTES = 200_000, 128_000_000


class BadTarget(ValueError):
    """The file cannot be written under that name or in that format; one line with what is possible."""


class NotWritten(RuntimeError):
    """The disk is full or refuses; nothing is left under the file's name."""


class ReaderLeft(RuntimeError):
    """Whoever read standard output has gone, as `head` does."""


def format_of(path: str, asked: str | None) -> str:
    """Return the format asked for, else that of the file's ending. Raises BadTarget."""
    known = ", ".join(FORMATS)
    if asked is not None:
        if asked not in FORMATS:
            raise BadTarget(f"--format={asked!r}: known are {known}")
        return asked
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise BadTarget(f"--out={path!r}: its ending names no format; give --format with one of {known}")
    return ending


def part_of(path: str) -> Path:
    """Return what a file is called while this process writes it: of two at once each ends whole.

    A link keeps leading to the file.
    """
    return Path(f"{os.path.realpath(path)}.{os.getpid()}.part")


class OutFile:
    """Takes tables of one schema; `rows` and `bytes` say what was written so far."""

    def __init__(self, file: BinaryIO, form: str, schema: pa.Schema) -> None:
        self.rows = 0
        self._sink = _Sink(file)
        self._writer = _WRITERS[form](self._sink, schema)

    @property
    def bytes(self) -> int:
        return self._sink.position

    def write(self, table: pa.Table) -> None:
        if table.num_rows:
            self._writer.write(table)
            self.rows += table.num_rows

    def close(self) -> None:
        """Write what ends the file; the file itself stays open."""
        self._writer.close()
        self._sink.flush()

    def abandon(self) -> None:
        """End without writing anything more."""
        self._sink.silent = True
        with suppress(pa.ArrowException):  # a writer that failed at its end does not end twice
            self._writer.close()


@contextmanager
def opened(path: str, form: str, schema: pa.Schema) -> Iterator[OutFile]:
    """Yield a file to write to; it has its name when the block ends well, and else nothing is left of it.

    Raises:
        BadTarget: nothing can be written at the path.
        NotWritten: a write failed.
        ReaderLeft: standard output was closed by its reader.
    """
    if path == STDOUT:
        yield from _written(sys.stdout.buffer, form, schema)
        return
    part = part_of(path)
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise BadTarget(f"--out={path!r}: is there and no plain file; {STDOUT} is standard output")
    try:
        file = part.open("wb")
    except OSError as error:
        raise BadTarget(f"--out={path!r}: cannot be written: {error.strerror}") from None
    try:
        yield from _written(file, form, schema)
        file.close()
        try:
            part.replace(target)
        except OSError as error:
            raise NotWritten(f"{path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            file.close()
        part.unlink(missing_ok=True)


def _written(file: BinaryIO, form: str, schema: pa.Schema) -> Iterator[OutFile]:
    out = OutFile(file, form, schema)
    try:
        yield out
        out.close()
    except BaseException:
        out.abandon()
        raise


class _Sink:
    """Counts bytes, since a pipe knows no position, and tells a failed write from a failed read."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0
        self.silent = False

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if not self.silent:
            with self._told():
                self._file.write(data)
            self.position += size
        return size

    def tell(self) -> int:
        return self.position

    def flush(self) -> None:
        if not self.silent:
            with self._told():
                self._file.flush()

    def close(self) -> None:
        """Who opened the file closes it."""

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise ReaderLeft from None
        except OSError as error:
            raise NotWritten(f"{self._file.name}: {error.strerror}") from error


class _Csv:
    """UTF-8 with a byte-order mark, so that spreadsheets read it."""

    def __init__(self, sink: _Sink, schema: pa.Schema) -> None:
        self._sink = sink
        self._sink.write(BYTE_ORDER_MARK + csv_lines([schema.names]))

    def write(self, table: pa.Table) -> None:
        columns = [column.to_pylist() for column in writable(table).columns]
        self._sink.write(csv_lines(zip(*columns, strict=True)))

    def close(self) -> None:
        """A table needs no end."""


class _Json:
    """One unescaped object per line: an array of them, or lines alone."""

    def __init__(self, sink: _Sink, first: bytes, between: bytes, last: bytes) -> None:
        self._sink = sink
        self._before, self._between, self._last = first, between, last
        self._begun = False

    def write(self, table: pa.Table) -> None:
        self._sink.write(self._before + self._between.join(map(encode, writable(table).to_pylist())))
        self._before, self._begun = self._between, True

    def close(self) -> None:
        # An array that holds nothing is still an array.
        self._sink.write(self._last if self._begun else self._before + self._last.lstrip(b"\n"))


class _Parquet:
    """Row groups of a useful size, whatever the batches bring."""

    def __init__(self, sink: _Sink, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(sink, schema, compression="zstd")
        self._waiting: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        rows, held = sum(one.num_rows for one in self._waiting), sum(one.nbytes for one in self._waiting)
        if rows >= GROUP_ROWS or held >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._writer.write_table(pa.concat_tables(waiting))


_WRITERS: Mapping[str, Callable[[_Sink, pa.Schema], Any]] = {
    "csv": _Csv,
    "json": lambda sink, _: _Json(sink, b"[\n", b",\n", b"\n]\n"),
    "jsonl": lambda sink, _: _Json(sink, b"", b"\n", b"\n"),
    "parquet": _Parquet,
}
