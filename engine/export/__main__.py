"""How do users get data out? `python -m engine.export --domain learning --what view daily_logins --out logins.csv`.

Reads:   the served version, the typed log, or with --url the merged answer of the serving layer.
Writes:  one file, CSV (UTF-8 with a byte-order mark, no cell a spreadsheet takes for a formula), JSON, JSON lines or
         Parquet; `-` is standard output, and all that is said goes to standard error.
Promise: the file appears whole under its name or not at all; nothing is ever held in memory but a batch of rows.

    view NAME         rows of a batch view: dimensions, windows, measures; with --url batch and speed merged
    report NAME       rows of a report of the served version, or of the last one whose checks held
    events TOPIC      good events of a topic, typed, in the order of the log
    quarantine TOPIC  rows with a problem and their raw value; bytes that are not UTF-8 as base64 in value_base64

--from and --to cut [from, to): windows by their start, reports by their time column, events by event time.

Exit codes: 0 done, 1 there is nothing yet, or what is there is damaged, or the disk is full, 2 a wrong flag or name,
75 HDFS or the serving layer does not answer, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import domains
from engine.domain import DeclarationError
from engine.export import extract, outfile
from engine.export.extract import BadRequest, Damaged, Extract, NothingYet, Span, TakenAway, Unanswered
from engine.export.outfile import STDOUT, BadTarget, NotWritten, OutFile, ReaderLeft
from engine.runtime import settings
from engine.runtime.notation import BadQuery, time_of
from engine.runtime.observe import exit_codes
from engine.storage import versions
from engine.storage.hdfs import Hdfs, HdfsUnavailable

LINE_SECONDS = 5.0
# After a signal, for what was begun to be removed in order.
UNWIND_SECONDS = 2.0
EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_READER_LEFT = 130, 143, 141  # 128 and the signal, as a shell says it


def main(argv: Sequence[str] | None = None, connect: Callable[[str, str], Any] = Hdfs) -> int:
    """The command line; returns the exit code, or leaves with it."""
    args = parsed(argv)
    wrong = (settings.SettingsError, DeclarationError, BadRequest, BadTarget)
    faults = (NothingYet, Damaged, NotWritten, versions.VersionUnknown)
    try:
        with exit_codes(wrong, faults, (HdfsUnavailable, Unanswered, TakenAway)):
            try:
                run(args, connect)
            except ReaderLeft:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the process's end
                return EXIT_READER_LEFT
        return 0
    except KeyboardInterrupt:
        say("interrupted; no file was written" if args.out != STDOUT else "interrupted")
        return EXIT_INTERRUPTED


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help="of the view or report, or the topic")
    parser.add_argument("--domain", help="domains to look in, by comma, or all [DOMAIN, default learning]")
    parser.add_argument("--what", required=True, metavar="KIND", help=f"what NAME is: {', '.join(extract.KINDS)}")
    parser.add_argument("--out", required=True, metavar="FILE", help="where to; - is standard output")
    parser.add_argument("--format", help=f"{', '.join(outfile.FORMATS)}; default: by the file's ending")
    parser.add_argument("--from", dest="start", metavar="TIME", help="ISO-8601, inclusive; no zone means UTC")
    parser.add_argument("--to", dest="end", metavar="TIME", help="ISO-8601, exclusive")
    parser.add_argument(
        "--url", help="of the serving layer, such as http://127.0.0.1:8000: a view, batch and speed merged"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace, connect: Callable[[str, str], Any]) -> None:
    """Do what the command line asks; raises what `main` turns into exit codes."""
    if args.what not in extract.KINDS:
        raise BadRequest(f"--what={args.what!r}: known are {', '.join(extract.KINDS)}")
    form = outfile.format_of(args.out, args.format)
    span = Span(moment(args.start, "--from"), moment(args.end, "--to"))
    if span.start and span.end and span.start >= span.end:
        raise BadRequest(f"--from={args.start!r}: lies not before --to={args.end!r}")
    chosen = settings.load()
    named = domains.named(args.domain or chosen.domain, settings.environment())
    if args.url:
        if args.what != "view":
            raise BadRequest(f"--url: the merged answer is of a view; leave it out for --what {args.what}")
        if not args.url.startswith(("http://", "https://")):
            raise BadRequest(f"--url={args.url!r}: an address such as http://127.0.0.1:8000 is wanted")

    def find() -> Extract:
        if args.url:
            return extract.ask(args.url, args.name, span)
        return extract.find(fs, named, args.what, args.name, span)

    fs = None if args.url else connect(chosen.hdfs_url, chosen.hadoop_user_name)
    for attempt in range(extract.ATTEMPTS):
        try:
            write(find(), args.out, form)
            return
        except TakenAway as error:
            # What went to standard output cannot be taken back.
            if attempt == extract.ATTEMPTS - 1 or args.out == STDOUT:
                raise
            say(f"begins again: {error}")


def write(found: Extract, path: str, form: str) -> None:
    """Write an extract to its file, showing how far it is."""
    began = time.monotonic()
    with outfile.opened(path, form, found.schema) as out, shown_progress(found, out, path) as looked_at:
        for rows, table in found.tables():
            out.write(table)
            looked_at(rows)
    seconds = time.monotonic() - began
    say(f"{out.rows:,} rows, {out.bytes:,} bytes, {seconds:.1f} s to {path}: {found.what}")


def moment(text: str | None, flag: str) -> datetime | None:
    """Return a time in UTC. Raises BadRequest naming the flag."""
    if text is None:
        return None
    try:
        return time_of(text, flag).replace(tzinfo=UTC)
    except BadQuery:
        raise BadRequest(f"{flag}={text!r}: an ISO-8601 time such as 2026-01-31T07:00:00Z is wanted") from None


@contextmanager
def shown_progress(found: Extract, out: OutFile, path: str) -> Iterator[Callable[[int], None]]:
    """Yield what is told of rows looked at: a bar on a terminal, else a line every few seconds."""
    console = Console(stderr=True)
    if console.is_terminal and not (path == STDOUT and sys.stdout.isatty()):
        size = TextColumn("rows {task.fields[size]}")
        columns = (BarColumn(), MofNCompleteColumn(), size, TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("export", total=found.planned, size="")
            yield lambda rows: bar.update(task, advance=rows, size=f"{out.bytes / 1e6:,.1f} MB")
        return
    total = f" of {found.planned:,}" if found.planned is not None else ""
    told, sum_of_rows = time.monotonic(), 0

    def line(rows: int) -> None:
        nonlocal told, sum_of_rows
        sum_of_rows += rows
        if time.monotonic() - told >= LINE_SECONDS:
            told = time.monotonic()
            say(f"{sum_of_rows:,}{total} rows read, {out.rows:,} written, {out.bytes / 1e6:,.1f} MB")

    yield line


def say(text: str) -> None:
    print(f"export: {text}", file=sys.stderr, flush=True)


def heed_signals(path: str) -> None:
    """Leave on SIGINT and SIGTERM even while the HDFS client waits in native code, where Python raises nothing."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # an exception, so that the usual way is gone
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)

    def leave() -> None:
        number = os.read(heard, 1)[0]
        time.sleep(UNWIND_SECONDS)
        if path != STDOUT:
            outfile.part_of(path).unlink(missing_ok=True)
        Console(stderr=True).show_cursor()
        say("interrupted while nothing answered")
        os._exit(128 + number)

    threading.Thread(target=leave, name="signals", daemon=True).start()


if __name__ == "__main__":
    heed_signals(parsed(None).out)
    code = main()
    # All files are closed. Threads of pyarrow may still let go of Python's buffers, which in an interpreter that is
    # ending aborts the process: "terminate called without an active exception", and a good export would end with 134.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
