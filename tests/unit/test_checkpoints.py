"""Two processes of a layer stand beside each other.

Neither takes the other's checkpoint away, whoever starts or ends.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from pyspark.sql import SparkSession

from engine.runtime.settings import Settings
from engine.storage import checkpoints
from engine.storage.checkpoints import ABANDONED_SECONDS, Checkpoint
from ingest_layer import Ingest
from stream_layer import Speed
from tests.unit.localfs import LocalFs

FOLDER = "/checkpoints/ingest/learning"


@pytest.fixture
def fs(tmp_path: Path) -> LocalFs:
    return LocalFs(tmp_path)


def aged(fs: LocalFs, path: str, hours: float) -> None:
    """Let everything in a folder be as old as that."""
    then = time.time() - 3600 * hours
    top = fs.root / path.lstrip("/")
    for item in [*top.rglob("*"), top]:
        os.utime(item, (then, then))


def start(layer: Any, fs: LocalFs) -> str:
    """Run a layer's `start` as a process would, with everything but the file system made up; returns its checkpoint."""
    process = MagicMock()
    process.fs = process.log.fs = fs
    process.domain.name, process.domain.topics, process.settings = "learning", ("auth_topic",), Settings()
    process.starting_offsets.return_value = process.log.starting_offsets.return_value = {}
    given: dict[str, Any] = {}

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            return self if name in ("readStream", "writeStream") else lambda *words, **_: self._note(name, words)

        def _note(self, name: str, words: tuple[Any, ...]) -> Recorder:
            if name == "option":
                given[words[0]] = words[1]
            return self

    process.spark = Recorder()
    layer.start(process)
    path: str = given["checkpointLocation"].removeprefix(Settings().hdfs_url)
    assert path == process.checkpoint.path
    return path


@pytest.mark.parametrize(("layer", "name"), [(Ingest, "ingest"), (Speed, "speed")])
def test_a_second_process_leaves_the_checkpoint_of_the_first_alone(fs: LocalFs, layer: Any, name: str) -> None:
    first = start(layer, fs)
    fs.create(f"{first}/offsets/0", b"v1")
    second = start(layer, fs)
    assert first != second and first.startswith(f"/checkpoints/{name}/learning/")
    assert fs.status(f"{first}/offsets/0") is not None


def test_a_process_deletes_its_own_at_its_end(fs: LocalFs) -> None:
    one, two = Checkpoint(fs, FOLDER), Checkpoint(fs, FOLDER)
    fs.create(f"{one.path}/offsets/0", b"v1")
    one.close()
    assert fs.status(one.path) is None and fs.status(two.path) is not None
    two.close()


def test_what_a_killed_process_left_goes_away_a_day_later(fs: LocalFs) -> None:
    killed, old_layout = f"{FOLDER}/host-7-1", f"{FOLDER}/offsets"
    for path in (killed, old_layout):
        fs.create(f"{path}/0", b"v1")
        aged(fs, path, 23)
    Checkpoint(fs, FOLDER).close()
    assert fs.status(killed) is not None
    for path in (killed, old_layout):
        aged(fs, path, 25)
    Checkpoint(fs, FOLDER).close()
    assert fs.list(FOLDER) == []


def test_a_process_without_events_for_days_marks_that_it_lives(fs: LocalFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle query writes nothing to its checkpoint."""
    monkeypatch.setattr(checkpoints, "RENEW_SECONDS", 0.05)
    living = Checkpoint(fs, FOLDER)
    fs.create(f"{living.path}/offsets/0", b"v1")
    aged(fs, living.path, 72)
    deadline = time.monotonic() + 20
    while (status := fs.status(f"{living.path}/alive")) is None or status.modified_ms < 1000 * (time.time() - 3600):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    Checkpoint(fs, FOLDER).close()
    assert fs.status(f"{living.path}/offsets/0") is not None
    living.close()


def test_ages_are_told_by_the_clock_of_the_file_system(fs: LocalFs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock runs days ahead takes nobody for dead."""
    living = Checkpoint(fs, FOLDER)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    monkeypatch.setattr(time, "time_ns", lambda: 4 * 10**18)
    Checkpoint(fs, FOLDER).close()
    assert fs.status(living.path) is not None


def test_an_end_does_not_wait_for_an_hdfs_that_is_away(fs: LocalFs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "CLOSE_SECONDS", 0.1)
    own = Checkpoint(fs, FOLDER)
    monkeypatch.setattr(fs, "delete", lambda *_, **__: time.sleep(30))
    began = time.monotonic()
    own.close()
    assert time.monotonic() - began < 5


def test_a_leftover_of_another_user_is_no_reason_not_to_begin(fs: LocalFs, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.create(f"{FOLDER}/strange/0", b"")
    aged(fs, f"{FOLDER}/strange", 1 + ABANDONED_SECONDS / 3600)

    def refuse(path: str, recursive: bool = False) -> bool:
        if "strange" in path:
            raise PermissionError(path)
        return False

    monkeypatch.setattr(fs, "delete", refuse)
    assert fs.status(Checkpoint(fs, FOLDER).path) is not None


def test_with_real_spark_a_query_goes_on_while_another_of_its_domain_starts_and_ends(
    spark: SparkSession, fs: LocalFs
) -> None:
    """With one checkpoint for both: CONCURRENT_STREAM_LOG_UPDATE, or "Parent directory doesn't exist"."""

    def run(own: Checkpoint, ids: list[int]) -> Any:
        source = spark.readStream.format("rate-micro-batch").option("rowsPerBatch", 1).load()
        writer = source.writeStream.foreachBatch(lambda rows, number: ids.append(number)).trigger(
            processingTime="0 seconds"
        )
        return writer.option("checkpointLocation", f"file://{fs.root}{own.path}").start()

    def waits(ids: list[int], number: int) -> None:
        deadline = time.monotonic() + 60
        while len(ids) < number:
            assert time.monotonic() < deadline, "a query stands still"
            time.sleep(0.05)

    first_ids: list[int] = []
    second_ids: list[int] = []
    one = Checkpoint(fs, FOLDER)
    first = run(one, first_ids)
    try:
        waits(first_ids, 2)
        two = Checkpoint(fs, FOLDER)
        second = run(two, second_ids)
        waits(second_ids, 2)
        second.stop()
        two.close()
        waits(first_ids, len(first_ids) + 2)
        assert first.isActive and first.exception() is None
    finally:
        for query in spark.streams.active:
            query.stop()
    one.close()
    assert fs.list(FOLDER) == []
