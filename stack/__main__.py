"""The command line of the native stack.

python -m stack up          start ZooKeeper, Kafka, HDFS and Spark (--with cassandra: that, too); start again what died
python -m stack status      one line per service; exit 1 unless all answer
python -m stack env         lines for a shell: eval "$(python -m stack env)"
python -m stack down        stop all; data stays
python -m stack jars        fetch what is missing in lib/, verify all of it
python -m stack doctor      find what would fail, and the command that mends it
python -m stack reset       stop all and wipe data, checkpoints and topics together
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stack import jars, lifecycle
from stack.process import tail
from stack.services import environment, services
from stack.settings import Settings, StackError, load


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 if all is well, 1 if not, 2 for something the operator must mend."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(load(), args)
    except StackError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def _up(settings: Settings, args: argparse.Namespace) -> int:
    began = time.monotonic()
    settings = settings.with_cassandra() if args.extra else settings
    settings = lifecycle.up(settings, free=args.free_ports, say=_say)
    _say(f"all ready after {time.monotonic() - began:.1f} s; next: python -m stack status, or make demo")
    return 0


def _down(settings: Settings, args: argparse.Namespace) -> int:
    return 0 if lifecycle.down(settings, _say) else 1


def _status(settings: Settings, args: argparse.Namespace) -> int:
    found = lifecycle.status(settings)
    _say(f"{'SERVICE':<13} {'PID':<8} {'PORT':<6} {'URL':<24} READY?")
    for service, pid, wrong in found:
        port = settings.port(service.ports[0])
        _say(f"{service.name:<13} {pid or '-':<8} {port:<6} {service.url(settings):<24} {wrong or 'ready'}")
    if all(wrong for _, _, wrong in found):
        _say("next: python -m stack up")
    return 1 if any(wrong for _, _, wrong in found) else 0


def _env(settings: Settings, args: argparse.Namespace) -> int:
    for name, value in environment(settings).items():
        _say(f"export {name}={shlex.quote(value)}")
    return 0


def _jars(settings: Settings, args: argparse.Namespace) -> int:
    began = time.monotonic()
    fetched = jars.ensure(settings.root, lifecycle.jars_of(settings.with_cassandra() if args.extra else settings))
    _say(f"jars: {'fetched and verified' if fetched else 'all there'} after {time.monotonic() - began:.1f} s")
    return 0


def _logs(settings: Settings, args: argparse.Namespace) -> int:
    for service in services(settings):
        _say(f"==> {service.log_file(settings)} <==\n{tail(service.log_file(settings), args.lines)}\n")
    return 0


def _doctor(settings: Settings, args: argparse.Namespace) -> int:
    from stack.doctor import examine  # the other commands do not need it

    findings = examine(settings)
    for finding in findings:
        _say(f"{finding.what}\n  evidence: {finding.evidence}\n  fix:      {finding.fix}")
    _say(f"doctor: {len(findings)} finding{'' if len(findings) == 1 else 's'}" if findings else "doctor: all is well")
    return 1 if findings else 0


def _reset(settings: Settings, args: argparse.Namespace) -> int:
    for folder, meaning in (
        (settings.data, "Kafka topics, ZooKeeper, HDFS with all data, views and checkpoints"),
        (settings.tmp, "temporary files"),
    ):
        _say(f"{'would wipe' if not args.yes else 'wipes'} {folder} ({_megabytes(folder)} MB): {meaning}")
    if not args.yes:
        if not sys.stdin.isatty():
            raise StackError("reset: not confirmed, nothing was wiped; confirm with: python -m stack reset --yes")
        if input("type reset to go on: ").strip() != "reset":
            raise StackError("reset: not confirmed, nothing was wiped")
    lifecycle.reset(settings, _say)
    _say("next: python -m stack up")
    return 0


def _megabytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) >> 20


def _say(line: str) -> None:
    print(line, flush=True)


def _add_with(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--with", dest="extra", choices=("cassandra",), help=text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start what does not run, wait until all answer")
    up.add_argument("--free-ports", action="store_true", help="choose free ports, kept until reset")
    _add_with(up, "also start this optional service; it then belongs to the stack until down, or with free ports reset")
    up.set_defaults(run=_up)
    fetch = commands.add_parser("jars", help="fetch the pinned jars into lib/ and verify them")
    _add_with(fetch, "also fetch the jars of this optional service")
    fetch.set_defaults(run=_jars)
    logs = commands.add_parser("logs", help="the last lines of every service's log")
    logs.add_argument("--lines", type=int, default=15, help="per service, default 15")
    logs.set_defaults(run=_logs)
    reset = commands.add_parser("reset", help="stop all and wipe data, checkpoints and topics together")
    reset.add_argument("--yes", action="store_true", help="do not ask")
    reset.set_defaults(run=_reset)
    for name, run, text in (
        ("down", _down, "stop all services; data stays"),
        ("status", _status, "one line per service; exit 1 unless all answer"),
        ("env", _env, "print export lines for clients"),
        ("doctor", _doctor, "find what would fail and the fix; changes nothing; exit 1 if it finds something"),
    ):
        commands.add_parser(name, help=text).set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
