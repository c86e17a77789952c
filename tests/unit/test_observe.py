"""What a process does when it is told to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from pyspark.errors import PySparkException, StreamingQueryException

from engine.build import fresh_listing
from engine.events import RowsDiffer
from engine.observe import Ending, Stop, await_queries, exit_codes

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """
import time
from engine.observe import Stop
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


@pytest.mark.parametrize(
    ("error", "code"),
    [(PySparkException(SPARK_SAYS), 75), (PySparkException("bad plan"), None), (ValueError(SPARK_SAYS), None)],
)
def test_a_service_that_was_away_in_the_middle_of_a_job_is_start_me_again(
    error: Exception, code: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit if code else type(error)) as caught, exit_codes((), (), ()):
        raise error
    if code:
        assert caught.value.code == code
        assert capsys.readouterr().err == "start again: : java.net.ConnectException: Call to namenode:9000 failed\n"


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
