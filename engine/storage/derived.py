"""What holds for all that can be made again: versions, chains, epochs, choices?

Their numbers only grow: the newest one that was taken lies as the name of an empty file beside them, so that none comes
back when folders are deleted by hand. What cannot be read is left out by readers, and set aside by the layer that owns
it. A read of several steps that loses a file on its way begins again at its listing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

import structlog

from engine.runtime.observe import StartAgain
from engine.storage.hdfs import HdfsUnavailable
from engine.storage.log import LISTINGS, STAGING, FileSystem

# What is set aside stays beside its old place under this name, for a person to look at or to delete.
ASIDE = "_damaged-"
_NUMBER_ASIDE = re.compile(rf"{ASIDE}(\d+)")

T = TypeVar("T")
_log = structlog.get_logger("engine.storage.derived")


class Damaged(ValueError):
    """A file of ours is there and does not hold what it should; `path` is what would be set aside."""

    def __init__(self, path: str, reason: object) -> None:
        super().__init__(f"{path}: damaged: {reason}")
        self.path = path


def newest_taken(fs: FileSystem, record: str, folder: str = "") -> int:
    """Return the newest number that the record holds, or that something bears which was set aside in `folder`.

    It is 0 if there is none.
    """
    taken = [int(entry.name) for entry in fs.list(record) if entry.name.isdigit()]
    aside = (_NUMBER_ASIDE.match(entry.name) for entry in fs.list(folder)) if folder else ()
    return max([0, *taken, *(int(found[1]) for found in aside if found)])


def take(fs: FileSystem, record: str, number: int) -> bool:
    """Take a number for ever; False if it, or a later one, was taken before.

    Of all callers, at any time, one gets True. It is called before what bears the number gets its name: a crash in
    between costs the number and nothing else.

    Args:
        record: folder with one empty file, whose name is the newest number.

    Raises:
        HdfsUnavailable: it is not known whether the number was taken; the next one will do.
    """
    staged = f"{STAGING}/number-{number}-{os.getpid()}-{time.time_ns()}"
    fs.create(staged, b"")
    fs.mkdirs(record)
    try:
        fs.rename(staged, f"{record}/{number:010d}")
    except FileExistsError:
        return False
    except (OSError, RuntimeError) as error:
        raise HdfsUnavailable(f"in doubt whether number {number} of {record} is taken: {error}") from error
    finally:
        fs.delete(staged)
    # Our own name may have been free because a later one had already replaced it.
    newest = newest_taken(fs, record)
    for entry in fs.list(record):
        if entry.name.isdigit() and int(entry.name) < newest:
            fs.delete(entry.path)
    return newest == number


@cache
def tell_damaged(path: str, reason: str) -> None:
    """Name what a reader leaves out, once in the life of a process."""
    _log.error("damaged", path=path, reason=reason)


def left_out(damage: Damaged) -> None:
    """What a reader does with damage: it goes on without it."""
    tell_damaged(damage.path, str(damage))


def set_aside(fs: FileSystem, path: str, reason: object) -> None:
    """Rename what is damaged out of the way, for the layer that owns it; fine if another process did so first."""
    folder, _, name = path.rpartition("/")
    aside = f"{folder}/{ASIDE}{name}-{time.time_ns()}"
    try:
        fs.rename(path, aside)
    except FileNotFoundError:
        return
    _log.error("set aside", path=path, now=aside, reason=str(reason)[:300])


def known_fields(kind: Any, said: Any) -> dict[str, Any]:
    """Return the entries of a JSON object that `kind` has a field for: newer code may have written more.

    Raises:
        TypeError: it is no object.
    """
    if not isinstance(said, Mapping):
        raise TypeError(f"an object is wanted, not {type(said).__name__}")
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in said.items() if name in names}


def listed_again(read: Callable[[], T]) -> T:
    """Return what a read of several steps returns; it begins again where a file went away between two of its steps.

    Raises:
        StartAgain: files kept going away.
    """
    gone: FileNotFoundError | None = None
    for _ in range(LISTINGS):
        try:
            return read()
        except FileNotFoundError as error:
            gone = error
    raise StartAgain(f"files went away {LISTINGS} times while they were read: {gone}")
