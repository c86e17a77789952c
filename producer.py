"""Sends the events of a domain to Kafka, or writes them to a file.

    python producer.py --domain learning --rate 100 --count 10000 --seed 7
    python producer.py --duplicates 0.02 --late 0.01 --broken 0.01 --future 0.001
    python producer.py --to csv --out events.csv --count 1000 --start 2026-01-01T00:00:00Z

Reads:      nothing but the generators of `domains/`.
Writes:     the topics of the domain (created when missing), key = the stream's key field, value = one JSON object in
            UTF-8; or a file: csv (UTF-8 with BOM, no formulas), json (one array), jsonl (one event a line).
Guarantees: idempotent, acks=all, so an event is once in the log and in order within its key, or it is reported as
            failed (exit 1; whether the log has it is then unknown). Counts are acknowledgements. Each event was
            checked against the schema, except those broken on purpose. With --seed and --start the same events come
            out, byte for byte.
            SIGINT and SIGTERM stop, flush within SEND_TIMEOUT_SEC, print the summary and exit 0.
Shows:      /metrics and /health on :8082; a progress line each second, or every 5 s when not on a terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, NamedTuple

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2

import domains
from engine.domain import DeclarationError, Domain, Stream
from engine.produce.sends import FILE_FORMATS, FileSink, Tally, report_progress, serve_metrics
from engine.produce.validate import BREAKAGES, checker
from engine.runtime import kafka, settings
from engine.runtime.observe import Stop, exit_codes
from engine.runtime.settings import Settings, SettingsError

RECENT = 1_000  # a duplicate repeats one of the last good events: never farther back than any W
UNACKNOWLEDGED = 20_000  # back-pressure: kafka-python itself would buffer without end
LATE_MS, FUTURE_MS = (0, 3 * 86_400_000), (3_600_000, 24 * 3_600_000)

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


class Message(NamedTuple):
    """What is sent; `event` is what `value` said before it was broken, if it was."""

    stream: Stream
    key: bytes
    value: bytes
    event: dict[str, Any]


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


def shares(domain: Domain) -> list[Stream]:
    """The streams of a domain, weighted so that every domain gets as many events as another."""
    total = sum(stream.weight for stream in domain.streams)
    return [dataclasses.replace(stream, weight=stream.weight / total) for stream in domain.streams]


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


def mix(streams: list[Stream], chosen: Settings, rng: Random, clock: Callable[[int], int]) -> Iterator[Message]:
    """Endless messages: topics by weight; duplicate, late, future and broken ones in their shares, the others good."""
    makers = {
        stream.topic: (stream, stream.generator(rng, stream.options), checker(stream))
        for stream in streams
        if stream.generator is not None
    }
    total = sum(stream.weight for stream in streams)
    pool = [
        makers[s.topic] for s in streams if s.topic in makers for _ in range(max(1, round(2048 * s.weight / total)))
    ]
    until_duplicate = chosen.duplicate_share
    until_late = until_duplicate + chosen.late_share
    until_future = until_late + chosen.future_share
    until_broken = until_future + chosen.broken_share
    encode = msgspec.json.Encoder().encode
    breakages = tuple(BREAKAGES.values())
    recent: deque[Message] = deque(maxlen=min(RECENT, *(stream.duplicate_window for stream in streams)))
    random, size = rng.random, len(pool)
    number = 0
    while True:
        kind = random()
        stream, make, check = pool[int(random() * size)]
        now_ms = clock(number)
        number += 1
        if kind < until_duplicate and recent:
            yield recent[int(random() * len(recent))]
            continue
        if until_duplicate <= kind < until_late:
            now_ms -= rng.randint(*LATE_MS)
        elif until_late <= kind < until_future:
            now_ms += rng.randint(*FUTURE_MS)
        event = make(now_ms)
        if event is None:
            continue
        value = encode(event)
        check(value)
        message = Message(stream, str(event[stream.key]).encode(), value, event)
        if until_future <= kind < until_broken:
            yield message._replace(value=rng.choice(breakages)(stream, event, value, rng))
        else:
            recent.append(message)
            yield message


def event_clock(start: datetime | None, rate: float, simulated: bool) -> Callable[[int], int]:
    """Event number → event time in ms: the wall clock, or steps of 1/rate (1 ms at full speed) from `start`."""
    if start is None and not simulated:
        return lambda _: time.time_ns() // 1_000_000
    first_ms = int((start or datetime.now(UTC)).timestamp() * 1000)
    step_ms = 1000 / rate if rate else 1.0
    return lambda number: first_ms + int(number * step_ms)


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


def abandon(producer: KafkaProducer) -> None:
    """Close a client and fail what it still holds; its own close() raises and stays open while answers are missing."""
    producer._sender.force_close()
    producer._sender.join(5)
    with contextlib.suppress(KafkaError):
        producer.close(timeout=1)


def to_kafka(
    args: argparse.Namespace, chosen: Settings, streams: list[Stream], tally: Tally, stop: Stop
) -> tuple[Callable[[Message], None], Callable[[], None]]:
    """Connect, and return how to send one message and how to flush and close."""
    kafka.ensure_topics(chosen, streams)
    producer = connect(chosen)
    partitions = {stream.topic: len(producer.partitions_for(stream.topic)) for stream in streams}
    serve_metrics(tally, chosen.metrics_host, chosen.producer_metrics_port)
    journal = Path(args.journal).open("a", encoding="utf-8", buffering=1) if args.journal else None  # noqa: SIM115
    patience = 1.5 * chosen.send_timeout_sec + 5
    finished, moved, look_at = 0, time.monotonic(), 0.0

    def note(event: dict[str, Any], unique: tuple[str, ...], record: Any) -> None:
        tally.ack(record)
        event_id = "|".join(str(event[name]) for name in unique)
        line = {"topic": record.topic, "partition": record.partition, "offset": record.offset, "event_id": event_id}
        journal.write(msgspec.json.encode(line).decode() + "\n")  # type: ignore[union-attr]

    @functools.lru_cache(maxsize=100_000)
    def partition_of(topic: str, key: bytes) -> int:
        """What Kafka's default partitioner says; remembered, since murmur2 in Python is slow."""
        return int(murmur2(key) & 0x7FFFFFFF) % partitions[topic]

    def heal() -> None:
        """Replace a client that neither acknowledges nor fails: kafka-python 3.0 may lose its producer id for good."""
        nonlocal producer, finished, moved, look_at
        now = look_at = time.monotonic()
        look_at += 0.5
        if tally.finished != finished or not tally.unfinished:
            finished, moved = tally.finished, now
        elif now - moved > patience:
            print(f"producer: no answer for {now - moved:.0f} s; connecting anew", file=sys.stderr, flush=True)
            abandon(producer)
            producer, moved = connect(chosen), time.monotonic()

    def send(message: Message) -> None:
        topic, key = message.stream.topic, message.key
        while tally.unfinished > UNACKNOWLEDGED and not stop:
            time.sleep(0.002)
            heal()
        if time.monotonic() > look_at:
            heal()
        tally.handed[topic] += 1
        acked = functools.partial(note, message.event, message.stream.unique) if journal else tally.ack
        try:
            future = producer.send(topic, message.value, key, partition=partition_of(topic, key))
        except KafkaError as error:
            tally.fail(topic, key, error)
        else:
            future.add_callback(acked)
            future.add_errback(functools.partial(tally.fail, topic, key))

    def close() -> None:
        try:
            producer.flush(timeout=chosen.send_timeout_sec)
        except KafkaError as error:
            print(f"producer: not everything was flushed in {chosen.send_timeout_sec:g} s: {error}", file=sys.stderr)
        abandon(producer)
        tally.give_up()
        if journal:
            journal.close()

    return send, close


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
