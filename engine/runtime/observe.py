"""What does a layer tell its operator? Log lines, a stop signal, an exit code.

Log lines carry counts and offsets, never payloads, keys or secrets.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import structlog

from engine.runtime.settings import Settings

EXIT_FAULT = 1  # a named fault: a person has to look, though a supervisor tries it again every few minutes
EXIT_USAGE = 2  # a wrong setting or flag
EXIT_AGAIN = 75  # start me again: another definition, a dead service, what nobody foresaw (EX_TEMPFAIL of sysexits.h)

# A micro-batch may take this long to finish after a stop signal.
STOP_SECONDS = 120

# What the JVM's clients say, after their own retries, of a service that is away; a restart heals it once it is back.
AWAY = (
    "java.net.ConnectException",
    "java.net.NoRouteToHostException",
    "java.net.SocketTimeoutException",
    "java.net.UnknownHostException",
    "ipc.StandbyException",
    "SafeModeException",
    "BlockMissingException",
    "could only be written to 0 of the",
    "common.errors.TimeoutException",
    "SparkContext was shut down",
    "Cannot call methods on a stopped SparkContext",
    # Kafka's log changed below the query. The next start compares it with what is stored, and names what is really
    # lost.
    "KAFKA_DATA_LOSS",
)
# What the JVM's HDFS client says where a folder belongs to somebody else; a restart does not heal it.
REFUSED = "AccessControlException"


class StartAgain(RuntimeError):
    """The process must be started again (exit 75); the message says why."""


class Stop:
    """True once SIGTERM or SIGINT asked the process to finish what it is doing and leave; a second one ends it at once.

    What is left undone then is what `kill -9` leaves undone, which the next start takes up; exit code 128 + signal.
    """

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def __bool__(self) -> bool:
        return self._asked

    def _ask(self, number: int, _frame: Any) -> None:
        # os.write: the signal may have come in the middle of a print.
        if self._asked:
            os._exit(128 + number)
        self._asked = True
        os.write(
            2, b"stopping when the work at hand is done; a second signal stops at once, and the next start goes on\n"
        )

    def sleep(self, seconds: float) -> None:
        """Sleep, but not past a stop signal."""
        deadline = time.monotonic() + seconds
        while not self._asked and time.monotonic() < deadline:
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))


def start_logging(settings: Settings) -> None:
    """Send structured log lines to standard error."""
    level = logging.getLevelName(settings.log_level)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@contextmanager
def exit_codes(
    usage: tuple[type[Exception], ...], faults: tuple[type[Exception], ...], again: tuple[type[Exception], ...]
) -> Iterator[None]:
    """Turn whatever ends a process into one line and an exit code.

    An operator's mistake is 2 and a named fault is 1. All else is 75, start me again: what nobody foresaw (a DataNode
    killed in mid-write, a full disk, a topic unknown for a moment) is healed by a restart more often than not, and a
    bug is no worse for one. Its traceback is printed before the line.
    """
    # HDFS refuses a user: see `python -m engine.prepare folders`.
    named: tuple[type[Exception], ...] = (PermissionError, *faults)
    try:
        yield
    except again as error:  # first: a service that is away is an OSError, too
        _leave("start again", str(error), EXIT_AGAIN)
    except usage as error:
        _leave("error", str(error), EXIT_USAGE)
    except named as error:
        _leave("fault", str(error), EXIT_FAULT)
    except Exception as error:
        # Spark passes on what its JVM raised as text, causes included.
        said = _text(error) if type(error).__module__.partition(".")[0] in ("py4j", "pyspark") else ""
        if refused := _line_with((REFUSED,), said):
            _leave("fault", refused, EXIT_FAULT)
        if away := _line_with(AWAY, said):
            _leave("start again", away, EXIT_AGAIN)
        with suppress(OSError):
            traceback.print_exception(error)
        first = next(iter(_text(error).splitlines()), "")[:300]
        cause = _root_cause(said) or f"{type(error).__name__}: {first}"
        _leave("start again", f"unforeseen {cause}", EXIT_AGAIN)


def _leave(what: str, why: str, code: int) -> NoReturn:
    with suppress(OSError):  # the log may lie on the disk that is full
        print(f"{what}: {why}", file=sys.stderr)
    sys.exit(code)


def _text(error: Exception) -> str:
    """What an error says; py4j asks the JVM for it, which may be gone."""
    try:
        return str(error)
    except Exception:
        return "its text died with the JVM"


def _line_with(signs: tuple[str, ...], text: str) -> str:
    return next((line.strip()[:300] for line in text.splitlines() if any(sign in line for sign in signs)), "")


def _root_cause(text: str) -> str:
    """The innermost cause that a Java stack trace names, empty if it names none."""
    causes = [line.strip() for line in text.splitlines() if line.strip().startswith("Caused by: ")]
    return causes[-1].removeprefix("Caused by: ")[:300] if causes else ""


@contextmanager
def outcome(codes: set[int], faults: tuple[type[Exception], ...], again: tuple[type[Exception], ...]) -> Iterator[None]:
    """Tell a failure as `exit_codes` does, and add its code to `codes` instead of leaving.

    What stands beside it goes on.
    """
    try:
        with exit_codes((), faults, again):
            yield
    except SystemExit as left:
        codes.add(int(left.code or 0))


def worst(codes: Iterable[int]) -> int:
    """Return the exit code that says most: a fault needs a person, "start again" a supervisor."""
    return max(codes, key=lambda code: (0, EXIT_AGAIN, EXIT_USAGE, EXIT_FAULT).index(code))


class Ending:
    """Why the streaming queries of a process come to their end: a stop signal, or what a micro-batch raised.

    Spark passes only the text of an exception on, so it is kept here. Once true, a micro-batch that begins does
    nothing: what Spark then notes as done is forgotten with its checkpoint, and the next start goes on at the heads.
    """

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.failures: list[BaseException] = []

    def __bool__(self) -> bool:
        return bool(self.stop) or bool(self.failures)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what the body of a micro-batch raises."""
        try:
            yield
        except BaseException as error:
            self.failures.append(error)
            raise


def await_queries(queries: list[Any], ending: Ending, beat: Callable[[], None]) -> None:
    """Wait until a streaming query ends or a stop signal comes; then let the others finish their micro-batch.

    Args:
        beat: called about once a second while all of them run.

    Raises:
        What the micro-batch raised, else Spark's own StreamingQueryException.
    """
    try:
        while not ending and all(query.isActive for query in queries):
            beat()
            _rest(queries[0])
        deadline = time.monotonic() + STOP_SECONDS
        while (active := [query for query in queries if query.isActive]) and time.monotonic() < deadline:
            for query in active:
                if not query.status["isTriggerActive"]:
                    query.stop()
            time.sleep(0.05)
        for query in queries:
            query.stop()
        failed = next((query.exception() for query in queries if query.exception()), None)
        if failed and not ending:
            raise failed
    except _jvm_gone():
        # The signal went to the whole process group: the JVM left first, and whatever it was doing will be replayed.
        if not ending.stop:
            raise
    except Exception:
        if ending.failures:
            raise ending.failures[0] from None
        raise
    if ending.failures:
        raise ending.failures[0]


def stop_spark(spark: Any) -> None:
    """Stop Spark; a JVM that left before is fine."""
    with suppress(*_jvm_gone()):
        spark.stop()


def _rest(query: Any) -> None:
    """Wait a second, or until the query ends; that it failed is told once the others are stopped."""
    try:
        query.awaitTermination(1)
    except Exception as error:
        if type(error).__name__ != "StreamingQueryException":  # by name: what loads this module need not load Spark
            raise


def _jvm_gone() -> tuple[type[Exception], ...]:
    from py4j.protocol import Py4JError  # the producer logs, too, and loads nothing of Spark

    return (Py4JError, ConnectionError)
