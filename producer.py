"""Sends the events of a domain to Kafka, or writes them to a file.

    python producer.py --domain learning --rate 100 --count 10000 --seed 7
    python producer.py --duplicates 0.02 --late 0.01 --broken 0.01 --future 0.001
    python producer.py --to csv --out events.csv --count 1000 --start 2026-01-01T00:00:00Z

Reads    nothing but the generators of `domains/`.
Writes   the topics of the domain (created when missing), key = the stream's key field, value = one JSON object in
         UTF-8; or a file: csv (UTF-8 with BOM, no formulas), json (one array), jsonl (one event a line).
Keeps    nothing.
Promises idempotent, acks=all, so an event is once in the log and in order within its key, or it is reported as failed
         (whether the log has it is then unknown). Counts are acknowledgements. Each event was checked against the
         schema, except those broken on purpose. With --seed and --start the same events come out, byte for byte.
Shows    /metrics and /health on :8082; a progress line each second, or every 5 s when not on a terminal.
Exit     0 all was sent, or SIGINT and SIGTERM stopped it and what was under way was flushed within SEND_TIMEOUT_SEC; 1
         events were not acknowledged; 2 a wrong setting or file; 75 start again (Kafka is away).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from random import Random, SystemRandom

from kafka import KafkaProducer
from kafka.errors import KafkaError

import domains
from engine.domain import DeclarationError, Stream
from engine.produce.messages import Message, event_clock, mix, shares
from engine.produce.sender import Sender
from engine.produce.sends import FILE_FORMATS, FileSink, Tally, report_progress, serve_metrics
from engine.runtime import kafka, settings
from engine.runtime.observe import Stop, exit_codes
from engine.runtime.settings import Settings, SettingsError

FLAGS: dict[str, str | tuple[str, ...]] = {
    "domain": (),
    "msgs_per_sec": ("-r", "--rate"),
    "producer_limit": ("-n", "--count"),
    "seed": (),
    "duplicate_share": "--duplicates",
    "late_share": "--late",
    "broken_share": "--broken",
    "future_share": "--future",
    "kafka_bootstrap_servers": (),
    "send_timeout_sec": (),
    "producer_metrics_port": "--metrics-port",
}


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    chosen = settings.from_args(args)
    given = settings.environment() | dict(args.option)
    streams = [stream for domain in domains.named(chosen.domain, given) for stream in shares(domain)]
    if (chosen.duplicate_share + chosen.late_share + chosen.broken_share + chosen.future_share) > 1:
        raise SettingsError("--duplicates + --late + --broken + --future: allowed is a sum of at most 1")
    if args.to != "kafka" and chosen.broken_share:
        raise SettingsError(
            f"--broken={chosen.broken_share:g}: allowed is 0 with --to {args.to}; files hold whole events"
        )
    seed = chosen.seed if chosen.seed is not None else SystemRandom().getrandbits(48)
    print(f"producer: {', '.join(s.topic for s in streams)}; to {args.to}; seed {seed}", file=sys.stderr, flush=True)
    messages = mix(streams, chosen, Random(seed), event_clock(args.start, chosen.msgs_per_sec, args.to != "kafka"))

    stop = Stop()
    tally = Tally(stream.topic for stream in streams)
    send, close = to_kafka(args, chosen, streams, tally, stop) if args.to == "kafka" else to_file(args, streams, tally)
    rate = chosen.msgs_per_sec if args.to == "kafka" else 0.0
    with report_progress(tally):
        run(messages, send, tally, stop, rate, chosen.producer_limit)
        close()
    print(f"producer: {tally.summary()}", file=sys.stderr, flush=True)
    return 1 if tally.any_failed else 0


def run(
    messages: Iterator[Message], send: Callable[[Message], None], tally: Tally, stop: Stop, rate: float, limit: int
) -> None:
    """Send at an even rate until the limit or a stop signal; after a stall it goes on, without catching up."""
    pause = 1 / rate if rate else 0.0
    due = time.monotonic()
    for number, message in enumerate(messages, 1):
        if pause:
            early = due - time.monotonic()
            if early > 0.001:
                stop.sleep(early)
            elif early < -0.1:
                due -= early
            due += pause
        if stop:
            return
        send(message)
        if number == limit:
            return


def connect(chosen: Settings) -> KafkaProducer:
    timeout_ms = int(chosen.send_timeout_sec * 1000)
    try:
        return KafkaProducer(
            bootstrap_servers=chosen.kafka_bootstrap_servers.split(","),
            enable_idempotence=True,
            acks="all",
            compression_type="lz4",  # half the bytes; gzip costs more than it saves
            linger_ms=20,
            batch_size=256 * 1024,
            request_timeout_ms=timeout_ms - 100,
            delivery_timeout_ms=timeout_ms,
            max_block_ms=timeout_ms,
            bootstrap_timeout_ms=timeout_ms,
            reconnect_backoff_max_ms=2000,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
    except KafkaError as error:
        raise kafka.KafkaUnreachable(f"Kafka does not answer at {chosen.kafka_bootstrap_servers}: {error}") from None


def to_kafka(
    args: argparse.Namespace, chosen: Settings, streams: list[Stream], tally: Tally, stop: Stop
) -> tuple[Callable[[Message], None], Callable[[], None]]:
    """Connect, and return how to send one message and how to flush and close."""
    kafka.ensure_topics(chosen, streams)
    sender = Sender(partial(connect, chosen), streams, tally, stop, chosen.send_timeout_sec, args.journal)
    serve_metrics(tally, chosen.metrics_host, chosen.producer_metrics_port)
    return sender.send, sender.close


def to_file(
    args: argparse.Namespace, streams: list[Stream], tally: Tally
) -> tuple[Callable[[Message], None], Callable[[], None]]:
    """Open the file (`-` is standard output), and return how to write one message and how to close."""
    sink = FileSink(args.to, args.out, streams)

    def write(message: Message) -> None:
        sink.write(message.stream.topic, message.value, message.event)
        tally.written(message.stream.topic)

    return write, sink.close


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; settings that it leaves out come from the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings.add_flags(parser, FLAGS)
    parser.add_argument("--to", choices=("kafka", *FILE_FORMATS), default="kafka", help="where events go")
    parser.add_argument("--out", default="-", metavar="FILE", help="file for csv, json and jsonl; - is standard output")
    parser.add_argument("--start", type=start_time, metavar="ISO", help="event time of the first event; default: now")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=option,
        metavar="NAME=VALUE",
        help="a setting of the domain, such as TICKERS=AAPL,MSFT or IMDB_BASICS=title.basics.tsv.gz; repeatable",
    )
    parser.add_argument(
        "--live",
        dest="option",
        action="append_const",
        const=("LIVE", "true"),
        help="stocks: quotes as they are now (needs yfinance)",
    )
    parser.add_argument(
        "--journal", metavar="FILE", help="append topic, partition, offset and id of each acknowledged event"
    )
    return parser.parse_args(argv)


def option(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is NAME=VALUE")
    return name.upper(), value


def start_time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


if __name__ == "__main__":
    no_such_file = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
    with exit_codes(
        (SettingsError, DeclarationError, kafka.TopicRefused, *no_such_file), (), (kafka.KafkaUnreachable,)
    ):
        sys.exit(main())
