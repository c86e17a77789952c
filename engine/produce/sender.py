"""How does an event get into Kafka once and in order, or else be reported, also when brokers come and go?"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2

from engine.domain import Stream
from engine.produce.messages import Message
from engine.produce.sends import Tally
from engine.runtime.observe import Stop

UNACKNOWLEDGED = 20_000  # back-pressure: kafka-python itself would buffer without end
# How often it is looked whether answers still come.
LOOK_SECONDS = 0.5
PARTITIONS_REMEMBERED = 100_000


class Sender:
    """Sends messages, and replaces a client that neither acknowledges nor fails.

    kafka-python may lose its producer id for good.

    Args:
        connect: makes a client; again where one has to be replaced.
        send_timeout: seconds within which a client answers.
        journal: a file that gets topic, partition, offset and id of each acknowledged event, if any.
    """

    def __init__(
        self,
        connect: Callable[[], KafkaProducer],
        streams: Sequence[Stream],
        tally: Tally,
        stop: Stop,
        send_timeout: float,
        journal: str | None = None,
    ) -> None:
        self._connect, self._tally, self._stop, self._send_timeout = connect, tally, stop, send_timeout
        self._client = connect()
        self._partitions = {stream.topic: len(self._client.partitions_for(stream.topic)) for stream in streams}
        self._journal = Path(journal).open("a", encoding="utf-8", buffering=1) if journal else None  # noqa: SIM115
        self._finished, self._moved, self._look_at = 0, time.monotonic(), 0.0
        # What Kafka's default partitioner says; remembered, since murmur2 in Python is slow.
        self._partition_of = functools.lru_cache(maxsize=PARTITIONS_REMEMBERED)(self._default_partition)

    def send(self, message: Message) -> None:
        """Hand a message to the client, once few enough are unacknowledged."""
        topic, key, tally = message.stream.topic, message.key, self._tally
        while tally.unfinished > UNACKNOWLEDGED and not self._stop:
            time.sleep(0.002)
            self._heal()
        if time.monotonic() > self._look_at:
            self._heal()
        tally.handed[topic] += 1
        acked = functools.partial(self._note, message.event, message.stream.unique) if self._journal else tally.ack
        try:
            future = self._client.send(topic, message.value, key, partition=self._partition_of(topic, key))
        except KafkaError as error:
            tally.fail(topic, key, error)
        else:
            future.add_callback(acked)
            future.add_errback(functools.partial(tally.fail, topic, key))

    def close(self) -> None:
        """Wait for what is unacknowledged, as long as a client may take; the rest counts as failed."""
        try:
            self._client.flush(timeout=self._send_timeout)
        except KafkaError as error:
            print(f"producer: not everything was flushed in {self._send_timeout:g} s: {error}", file=sys.stderr)
        self._abandon()
        self._tally.give_up()
        if self._journal:
            self._journal.close()

    def _default_partition(self, topic: str, key: bytes) -> int:
        return int(murmur2(key) & 0x7FFFFFFF) % self._partitions[topic]

    def _note(self, event: dict[str, Any], unique: tuple[str, ...], record: Any) -> None:
        self._tally.ack(record)
        event_id = "|".join(str(event[name]) for name in unique)
        line = {"topic": record.topic, "partition": record.partition, "offset": record.offset, "event_id": event_id}
        assert self._journal is not None
        self._journal.write(msgspec.json.encode(line).decode() + "\n")

    def _heal(self) -> None:
        now = time.monotonic()
        self._look_at = now + LOOK_SECONDS
        if self._tally.finished != self._finished or not self._tally.unfinished:
            self._finished, self._moved = self._tally.finished, now
        elif now - self._moved > 1.5 * self._send_timeout + 5:
            print(f"producer: no answer for {now - self._moved:.0f} s; connecting anew", file=sys.stderr, flush=True)
            self._abandon()
            self._client, self._moved = self._connect(), time.monotonic()

    def _abandon(self) -> None:
        """Close the client and fail what it still holds.

        Its own close() raises and stays open while answers are missing.
        """
        self._client._sender.force_close()
        self._client._sender.join(5)
        with contextlib.suppress(KafkaError):
            self._client.close(timeout=1)
