"""What a process does when it is told to stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from py4j.protocol import Py4JNetworkError
from pyspark.errors import PySparkException, StreamingQueryException
from pyspark.sql import SparkSession

from engine.batch.build import fresh_listing
from engine.batch.events import RowsDiffer
from engine.runtime.observe import Ending, Stop, await_queries, exit_codes
from engine.runtime.settings import SettingsError
from engine.storage.continuity import LogReplaced

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """
import time
from engine.runtime.observe import Stop
stop = Stop()
print("ready", flush=True)
while True:
    time.sleep(0.05)
    if stop:
        print("asked", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_asks_and_a_second_one_ends_it(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"
        assert process.poll() is None
        assert process.stderr.readline().startswith("stopping when the work at hand is done")
        process.send_signal(number)
        assert process.wait(10) == code


SPARK_SAYS = "An error occurred while calling o93.parquet.\n: java.net.ConnectException: Call to namenode:9000 failed"
FAILED = "[STREAM_FAILED] Query [id = 5f1e, runId = 77ab] terminated with exception: "
ABORTED = "org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 7.0 failed 1 times"


def ended(error: Exception, **classes: tuple[type[Exception], ...]) -> int:
    """The exit code with which a process ends that raised this error."""
    with pytest.raises(SystemExit) as caught, exit_codes(**{"usage": (), "faults": (), "again": (), **classes}):
        raise error
    return int(caught.value.code)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            StreamingQueryException(
                f"{FAILED}Failed to construct\nCaused by: java.util.concurrent.ExecutionException: …\n"
                "Caused by: org.apache.kafka.common.errors.UnknownTopicOrPartitionException: This server does not host it."
            ),
            "org.apache.kafka.common.errors.UnknownTopicOrPartitionException: This server does not host it.",
        ),
        (KeyError("auth_topic"), "KeyError: 'auth_topic'"),  # its id was asked while it was unknown
        (
            StreamingQueryException(
                f"{FAILED}All datanodes are bad.\nCaused by: java.io.IOException: All datanodes "
                "[DatanodeInfoWithStorage[127.0.0.1:9866,DS-1,DISK]] are bad. Aborting..."
            ),
            "java.io.IOException: All datanodes [DatanodeInfoWithStorage[127.0.0.1:9866,DS-1,DISK]] are bad. Aborting...",
        ),
        (
            PySparkException(f"{ABORTED}\nCaused by: java.io.IOException: No space left on device\n\t... 3 more"),
            "java.io.IOException: No space left on device",
        ),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (
            PySparkException(
                f"{ABORTED}\nCaused by: org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)\n"
                "Caused by: java.io.EOFException"
            ),
            "java.io.EOFException",
        ),
        (
            StreamingQueryException(
                f"{FAILED}x\nCaused by: org.apache.spark.SparkException: [CONCURRENT_STREAM_LOG_UPDATE] "
                "Concurrent update to the log."
            ),
            "org.apache.spark.SparkException: [CONCURRENT_STREAM_LOG_UPDATE] Concurrent update to the log.",
        ),
        (Py4JNetworkError("Answer from Java side is empty"), "Py4JNetworkError: Answer from Java side is empty"),
        (
            FileNotFoundError(2, "No such file", "/data/x.parquet"),
            "FileNotFoundError: [Errno 2] No such file: '/data/x.parquet'",
        ),
        (RuntimeError("one\ntwo"), "RuntimeError: one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_nobody_foresaw_is_start_me_again_with_its_traceback_and_its_cause_in_one_line(
    error: Exception, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error) == 75
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert said.endswith(f"\nstart again: unforeseen {cause}\n")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (SPARK_SAYS, ": java.net.ConnectException: Call to namenode:9000 failed"),
        (
            f"{FAILED}x\norg.apache.spark.sql.kafka010.KafkaIllegalStateException: [KAFKA_DATA_LOSS.PARTITION_OFFSET_CHANGED] "
            "Some data may have been lost\nPartition auth_topic-0 offset was changed from 990 to 12.",
            "org.apache.spark.sql.kafka010.KafkaIllegalStateException: [KAFKA_DATA_LOSS.PARTITION_OFFSET_CHANGED] "
            "Some data may have been lost",
        ),
    ],
)
def test_a_service_that_was_away_in_the_middle_of_a_job_is_start_me_again_in_one_line(
    said: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(PySparkException(said)) == 75
    assert capsys.readouterr().err == f"start again: {line}\n"


def test_only_a_named_fault_is_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(LogReplaced("LOG_REPLACED topic 'a' partition 0"), faults=(LogReplaced,)) == 1
    assert capsys.readouterr().err == "fault: LOG_REPLACED topic 'a' partition 0\n"
    refused = "org.apache.hadoop.security.AccessControlException: Permission denied: user=stream, access=WRITE"
    assert ended(StreamingQueryException(f"{FAILED}no\nCaused by: {refused}")) == 1
    assert capsys.readouterr().err == f"fault: Caused by: {refused}\n"
    assert ended(PermissionError(refused)) == 1
    assert ended(SettingsError("SEED='x'"), usage=(SettingsError,)) == 2


def test_an_error_of_a_jvm_that_has_gone_is_start_me_again(capsys: pytest.CaptureFixture[str]) -> None:
    class Gone(Py4JNetworkError):
        def __str__(self) -> str:
            raise ConnectionRefusedError  # as Py4JJavaError, which asks the JVM

    assert ended(Gone()) == 75
    assert capsys.readouterr().err.endswith("\nstart again: unforeseen Gone: its text died with the JVM\n")


def test_a_log_on_a_full_disk_makes_no_named_fault() -> None:
    code = "from engine.runtime.observe import exit_codes\nwith exit_codes((), (), ()):\n    raise OSError(28, 'full')"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=full, check=False)
    assert done.returncode in (75, 120)  # 120: Python's own, where its last words found no room; started again, too


def test_a_python_worker_that_is_killed_is_start_me_again(
    spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(batches: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from batches

    with pytest.raises(SystemExit) as caught, exit_codes((), (), ()):
        spark.range(1).mapInArrow(die, "id long").collect()
    assert caught.value.code == 75
    assert "Python worker exited unexpectedly" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["ingest_layer", "stream_layer", "batch_layer", "producer"])
def test_no_layer_takes_an_error_of_a_whole_family_for_a_named_fault(script: str) -> None:
    """A streaming query fails for any reason, and an OSError may be a full disk: their causes decide."""
    source = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    assert not re.search(r"\b(StreamingQueryException|OSError|RuntimeError|Exception)\b[,)]", source)


class Query:
    """A streaming query that fails at once, or runs until it is stopped."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure, self.isActive = failure, True
        self.status = {"isTriggerActive": False}

    def awaitTermination(self, _seconds: float) -> None:
        if self.failure:
            self.isActive = False
            raise self.failure

    def stop(self) -> None:
        self.isActive = False

    def exception(self) -> Exception | None:
        return self.failure


def ending() -> Ending:
    stop = Stop.__new__(Stop)  # without its signal handlers
    stop._asked = False
    return Ending(stop)


def test_when_a_query_fails_the_others_are_stopped_before_it_is_told() -> None:
    """The speed layer begins a new chain by starting all of its queries again, under their names."""
    running, why = [Query(), Query()], ending()

    def beat() -> None:
        with suppress(KeyError), why.watching():
            raise KeyError("a new chain")

    with pytest.raises(KeyError, match="a new chain"):
        await_queries([Query(StreamingQueryException("foreach batch")), *running], why, beat)
    assert not any(query.isActive for query in running)


def test_spark_s_own_failure_is_told_after_all_are_stopped() -> None:
    running = [Query(), Query()]
    with pytest.raises(StreamingQueryException, match="disk"):
        await_queries([Query(StreamingQueryException("disk")), *running], ending(), lambda: None)
    assert not any(query.isActive for query in running)


@pytest.mark.parametrize(
    "said",
    ["[PATH_NOT_FOUND] Path does not exist: hdfs://n/a.parquet", "java.io.FileNotFoundException: File does not exist"],
)
def test_a_file_that_went_away_while_spark_planned_is_listed_again(said: str) -> None:
    with pytest.raises(RowsDiffer, match="a file went away"), fresh_listing():
        raise PySparkException(said)
