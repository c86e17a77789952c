"""Pieces of a batch run at once: in order, all of them ended before a failure is told."""

from __future__ import annotations

import threading
import time

import pytest
from pyspark.sql import SparkSession

from engine.runtime.session import AT_ONCE, side_by_side


def test_pieces_run_at_once_and_their_values_keep_the_order() -> None:
    together = threading.Barrier(2, timeout=20)  # breaks unless both are under way

    def piece(name: str) -> str:
        together.wait()
        return name

    assert side_by_side(lambda: piece("a"), lambda: piece("b")) == ["a", "b"]
    assert side_by_side() == []


def test_a_failure_waits_for_what_is_at_work_and_starts_nothing_more() -> None:
    ended, begun = [], []

    def slow() -> None:
        time.sleep(0.3)
        ended.append("slow")

    def fails() -> None:
        raise ValueError("no such file")

    later = [lambda: (time.sleep(0.2), begun.append(1)) for _ in range(5 * AT_ONCE)]
    with pytest.raises(ValueError, match="no such file"):
        side_by_side(fails, slow, *later)
    assert ended == ["slow"]
    assert len(begun) <= AT_ONCE


def test_spark_jobs_of_several_threads_leave_no_thread_behind(spark: SparkSession) -> None:
    """Each Python thread has a twin in the JVM, which must end with it: a batch layer runs for months."""

    def twins() -> int:
        names = [str(t.getName()) for t in spark._jvm.Thread.getAllStackTraces().keySet()]  # type: ignore[union-attr]
        return sum("lient" in name or name.startswith("Thread-") for name in names)

    def job() -> int:
        return spark.range(10).count()

    side_by_side(job, job, job)
    before = twins()
    for _ in range(5):
        assert side_by_side(job, job, job) == [10, 10, 10]
    deadline = time.monotonic() + 20
    while twins() > before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert twins() <= before
