"""Do the answers equal a recount of the raw log? The independent oracle: `python -m engine.verify --domain learning`.

Reads:   the serving layer's answers, raw segments on HDFS, and Kafka from their head up to the answers' coverage.
Writes:  nothing.
Promise: every group of every answer is recounted at the answer's own `as_of` by code that shares nothing with the
         layers but the declarations (`engine.verify.rawlog`, `engine.verify.rows`, `engine.verify.answers`).

What may differ by how much is said in `engine.verify.compare`, for all answers and for the proof of one alike.

With `--answers FILE` recorded answers are judged (JSON lines of {"url", "view", "query", "answer"}), with
`--as-of FILE` the recount at that `as_of` is printed, and with `--proof` one JSON request is read and answered (see
`engine.verify.prove`).

Exit codes: 0 equal, 1 a difference or a hole in the raw log, 2 wrong usage or something does not answer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import domains
from engine.domain import DeclarationError
from engine.runtime.settings import SettingsError, environment
from engine.runtime.settings import load as load_settings
from engine.verify.answers import BadQuestion
from engine.verify.ask import Unanswered, recorded
from engine.verify.compare import Difference
from engine.verify.judge import judge_each, live
from engine.verify.prove import BrokenLog, json_text, prove, recounted

SHOWN_DIFFERENCES = 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m engine.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", help="domains to verify, by comma, or all [DOMAIN, default learning]")
    parser.add_argument(
        "--url", help="of the serving layer [SERVING_HOST, SERVING_PORT, default http://127.0.0.1:8000]"
    )
    parser.add_argument("--view", help="only this view")
    parser.add_argument(
        "--answers", metavar="FILE", help="judge recorded answers instead of asking; - is standard input"
    )
    parser.add_argument(
        "--as-of", metavar="FILE", help="print the recount at this as_of (JSON) instead; - is standard input"
    )
    parser.add_argument(
        "--proof", action="store_true", help="answer one request of the proof route, JSON on standard input"
    )
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (BadQuestion, Unanswered, DeclarationError, SettingsError, OSError, json.JSONDecodeError) as error:
        sys.stderr.write(f"verify: {error}\n")
        return 2
    except BrokenLog as error:
        sys.stderr.write(f"verify: the raw log is broken: {error}\n")
        return 1


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks.

    Raises BadQuestion, Unanswered, BrokenLog, DeclarationError, SettingsError, OSError.
    """
    settings = load_settings()
    if args.proof:
        sys.stdout.write(json_text(prove(settings, json.load(sys.stdin, parse_float=Decimal))) + "\n")
        return 0
    chosen = domains.named(args.domain or settings.domain, environment())
    if args.view:
        chosen = tuple(domain for domain in chosen if any(view.name == args.view for view in domain.views))
        if not chosen:
            raise BadQuestion(f"no domain of --domain has a view '{args.view}'")
    if args.as_of:
        request = json.loads("\n".join(_lines(args.as_of)))
        for domain in chosen:
            for answer in recounted(settings, domain, args.view, request.get("as_of", request)):
                sys.stdout.write(json_text(answer) + "\n")
        return 0
    base = (args.url or f"http://{settings.serving_host}:{settings.serving_port}").rstrip("/")
    answers = recorded(_lines(args.answers)) if args.answers else []
    differences: list[Difference] = []
    rows = 0
    for domain in chosen:
        names = {view.name for view in domain.views} | {report.name for report in domain.reports}
        own = [answer for answer in answers if answer.name in names and args.view in (None, answer.name)]
        of_domain, number = (
            judge_each(settings, domain, own) if args.answers else live(settings, domain, base, args.view)
        )
        differences, rows = [*differences, *of_domain], rows + number
    return _exit_code(differences, rows)


def _exit_code(differences: Sequence[Difference], rows: int) -> int:
    """Print what differs, and return the exit code."""
    for difference in differences[:SHOWN_DIFFERENCES]:
        group = "" if difference.group is None else f" {json_text(difference.group)}"
        served, recounted = (json_text(value)[:500] for value in (difference.served, difference.recounted))
        sys.stdout.write(
            f"DIFFERENT {difference.where}{group} {difference.column or 'rows'}: served {served}, recounted {recounted}\n"
        )
    if differences:
        sys.stdout.write(f"{len(differences):,} differences among {rows:,} events\n")
        return 1
    sys.stdout.write(f"exact: merged answer = recount of the raw log, {rows:,} events\n")
    return 0


def _lines(path: str) -> list[str]:
    return (sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")).splitlines()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a thread of Kafka's client may live on, and then DuckDB complains at a plain exit
