"""The rename contract on real HDFS: the whole commit protocol stands on it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from engine.storage.hdfs import Hdfs


@pytest.fixture
def fs(stack: Any) -> Hdfs:
    return Hdfs(stack.env["HDFS_URL"], "hadoop")


@pytest.fixture
def folder(fs: Hdfs) -> str:
    path = f"/data/.staging/rename-{time.time_ns()}"
    fs.mkdirs(path)
    return path


def test_a_file_is_renamed_once_and_never_over_another(fs: Hdfs, folder: str) -> None:
    fs.create(f"{folder}/a", b"first")
    fs.create(f"{folder}/b", b"second")
    fs.rename(f"{folder}/a", f"{folder}/target")
    with pytest.raises(FileExistsError):
        fs.rename(f"{folder}/b", f"{folder}/target")
    assert fs.read(f"{folder}/target") == b"first"
    assert fs.read(f"{folder}/b") == b"second"


def test_a_file_is_never_moved_into_a_folder_of_the_target_name(fs: Hdfs, folder: str) -> None:
    fs.create(f"{folder}/a", b"x")
    fs.mkdirs(f"{folder}/target")
    with pytest.raises(FileExistsError):
        fs.rename(f"{folder}/a", f"{folder}/target")
    assert fs.list(f"{folder}/target") == []


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_is_never_renamed_onto_another(fs: Hdfs, folder: str, full: bool) -> None:
    fs.create(f"{folder}/new/manifest.json", b"new")
    fs.mkdirs(f"{folder}/old")
    if full:
        fs.create(f"{folder}/old/manifest.json", b"old")
    with pytest.raises(FileExistsError):
        fs.rename(f"{folder}/new", f"{folder}/old")
    assert [entry.name for entry in fs.list(f"{folder}/old")] == (["manifest.json"] if full else [])


def test_a_missing_source_or_parent_is_named(fs: Hdfs, folder: str) -> None:
    with pytest.raises(FileNotFoundError):
        fs.rename(f"{folder}/nothing", f"{folder}/target")
    fs.create(f"{folder}/a", b"x")
    with pytest.raises(FileNotFoundError):
        fs.rename(f"{folder}/a", f"{folder}/no-such-folder/target")


def test_of_many_writers_exactly_one_wins_each_name(fs: Hdfs, folder: str) -> None:
    wins: list[tuple[int, int]] = []

    def race(writer: int) -> None:
        for number in range(10):
            fs.create(f"{folder}/stage-{writer}-{number}", str(writer).encode())
            try:
                fs.rename(f"{folder}/stage-{writer}-{number}", f"{folder}/target-{number}")
                wins.append((number, writer))
            except FileExistsError:
                pass

    threads = [threading.Thread(target=race, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in wins) == list(range(10))
    for number, writer in wins:
        assert fs.read(f"{folder}/target-{number}") == str(writer).encode()


def test_create_refuses_an_existing_file_and_an_absent_folder_lists_empty(fs: Hdfs, folder: str) -> None:
    fs.create(f"{folder}/a", b"x")
    with pytest.raises(FileExistsError):
        fs.create(f"{folder}/a", b"y")
    assert fs.read(f"{folder}/a") == b"x"
    assert fs.list(f"{folder}/nowhere") == []
    assert fs.status(f"{folder}/nowhere") is None
    assert fs.delete(f"{folder}/nowhere") is False
