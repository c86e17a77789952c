"""The command line of the native stack.

python -m stack up          start ZooKeeper, Kafka, HDFS and Spark (--with cassandra: that, too); start again what died
python -m stack status      one line per service, and per layer that make demo started; exit 1 unless all is well
python -m stack health      has the serving layer something right to say? Prints its reasons; exit 1 if not
python -m stack env         lines for a shell: eval "$(python -m stack env)"
python -m stack down        stop all; data stays
python -m stack jars        fetch what is missing in lib/, verify all of it
python -m stack tail TOPIC  print the records of a topic as they come
python -m stack shell       PySpark with the connector, HDFS and the master dataset ready
python -m stack doctor      find what would fail, and the command that mends it
python -m stack monitor     watch it: runs the installed Prometheus on this stack's addresses
python -m stack reset       stop all and wipe data, checkpoints and topics together
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import urllib.error
from collections.abc import Sequence
from pathlib import Path

from stack import jars, layers, lifecycle, monitoring
from stack.config import spark_home
from stack.layers import LAYERS, log_file
from stack.probes import LOOPBACK
from stack.process import tail
from stack.services import environment, inherited, left_over, services
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
    layers_found = layers.status(settings)
    for name, pid, wrong in layers_found:
        port = settings.layer_ports["SERVING_PORT" if name == "serving" else f"{name.upper()}_METRICS_PORT"]
        page = f"http://localhost:{port}" if port else ""
        _say(f"{name:<13} {pid or '-':<8} {port:<6} {page:<24} {wrong or 'running'}")
    return 1 if any(wrong for *_, wrong in (*found, *layers_found)) else 0


def _health(settings: Settings, args: argparse.Namespace) -> int:
    url = f"http://127.0.0.1:{settings.layer_ports['SERVING_PORT']}/health/ready"
    try:
        with LOOPBACK.open(url, timeout=10) as answer:
            _say(answer.read().decode())
    except urllib.error.HTTPError as error:
        _say(error.read().decode("utf-8", "replace"))
        return 1
    except OSError as error:
        _say(f"serving: no answer from {url} ({error}); see: python -m stack status")
        return 1
    return 0


def _env(settings: Settings, args: argparse.Namespace) -> int:
    if names := left_over():
        _say(f"unset {' '.join(names)}")
    for name, value in environment(settings).items():
        _say(f"export {name}={shlex.quote(value)}")
    return 0


def _jars(settings: Settings, args: argparse.Namespace) -> int:
    began = time.monotonic()
    more = settings.with_cassandra() if args.extra else settings
    fetched = jars.ensure(settings.root, args.only or lifecycle.jars_of(more))
    _say(f"jars: {'fetched and verified' if fetched else 'all there'} after {time.monotonic() - began:.1f} s")
    return 0


def _logs(settings: Settings, args: argparse.Namespace) -> int:
    files = {service.name: service.log_file(settings) for service in services(settings)}
    files |= {name: log_file(settings, name) for name in LAYERS if log_file(settings, name).exists()}
    if args.service and args.service not in files:
        raise StackError(f"logs {args.service}: unknown; known: {', '.join(files)}")
    for name, file in files.items():
        if args.service in (None, name):
            _say(f"==> {file} <==\n{tail(file, args.lines)}\n")
    return 0


def _tail(settings: Settings, args: argparse.Namespace) -> int:
    from kafka import KafkaConsumer, TopicPartition  # slow to import, and only needed here

    # Between containers the environment knows the address, and there is no native stack.
    address = os.environ.get("KAFKA_BOOTSTRAP_SERVERS") or environment(settings)["KAFKA_BOOTSTRAP_SERVERS"]
    consumer = KafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest" if args.beginning else "latest")
    if not (partitions := consumer.partitions_for_topic(args.topic)):
        raise StackError(f"topic '{args.topic}': unknown; known: {', '.join(sorted(consumer.topics()))}")
    consumer.assign([TopicPartition(args.topic, number) for number in sorted(partitions)])
    for record in consumer:
        _say(f"{record.partition}/{record.offset}  {(record.value or b'').decode('utf-8', 'backslashreplace')}")
    return 0


def _shell(settings: Settings, args: argparse.Namespace) -> int:
    own = {**environment(settings), "PYTHONSTARTUP": str(settings.root / "stack" / "shell.py")}
    home = spark_home()
    os.execve(home / "bin" / "pyspark", ["pyspark", "--master", own["SPARK_MASTER"]], {**inherited(), **own})


def _doctor(settings: Settings, args: argparse.Namespace) -> int:
    from stack.doctor import examine  # the other commands do not need it

    findings = examine(settings)
    for finding in findings:
        _say(f"{finding.what}\n  evidence: {finding.evidence}\n  fix:      {finding.fix}")
    _say(f"doctor: {len(findings)} finding{'' if len(findings) == 1 else 's'}" if findings else "doctor: all is well")
    return 1 if findings else 0


def _monitor(settings: Settings, args: argparse.Namespace) -> int:
    monitoring.run(settings)
    return 0  # not reached: this process has become Prometheus


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
    logs = commands.add_parser("logs", help="the last lines of every service's and layer's log")
    logs.add_argument("service", nargs="?", help="one service or layer alone")
    logs.add_argument("--lines", type=int, default=15, help="per service, default 15")
    logs.set_defaults(run=_logs)
    records = commands.add_parser("tail", help="print the records of a topic as they come, until Ctrl-C")
    records.add_argument("topic")
    records.add_argument("--beginning", action="store_true", help="from the first record that Kafka still has")
    records.set_defaults(run=_tail)
    sets = commands.add_parser(
        "jars", help="fetch the pinned jars into lib/ and verify them; nothing to do if they are there"
    )
    sets.add_argument("--only", nargs="+", choices=jars.CONFS, help="some sets, for an image")
    _add_with(sets, "also fetch the jars of this optional service")
    sets.set_defaults(run=_jars)
    reset = commands.add_parser("reset", help="stop all and wipe data, checkpoints and topics together")
    reset.add_argument("--yes", action="store_true", help="do not ask")
    reset.set_defaults(run=_reset)
    for name, run, text in (
        ("down", _down, "stop all services; data stays"),
        ("status", _status, "one line per service and layer; exit 1 unless all answer"),
        ("health", _health, "what the serving layer says of itself; exit 1 unless it is ready"),
        ("shell", _shell, "PySpark with the connector, HDFS and the master dataset ready"),
        ("monitor", _monitor, "run the installed Prometheus on this stack's addresses"),
        ("env", _env, "print export lines for clients"),
        ("doctor", _doctor, "find what would fail and the fix; changes nothing; exit 1 if it finds something"),
    ):
        commands.add_parser(name, help=text).set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
