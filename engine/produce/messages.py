"""Which messages are sent? Endless ones: topics by weight; duplicate, late, future and broken ones in their shares."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any, NamedTuple

import msgspec

from engine.domain import Domain, Stream
from engine.produce.validate import BREAKAGES, checker
from engine.runtime.settings import Settings

RECENT = 1_000  # a duplicate repeats one of the last good events: never farther back than any W
LATE_MS, FUTURE_MS = (0, 3 * 86_400_000), (3_600_000, 24 * 3_600_000)


class Message(NamedTuple):
    """What is sent; `event` is what `value` said before it was broken, if it was."""

    stream: Stream
    key: bytes
    value: bytes
    event: dict[str, Any]


def shares(domain: Domain) -> list[Stream]:
    """The streams of a domain, weighted so that every domain gets as many events as another."""
    total = sum(stream.weight for stream in domain.streams)
    return [dataclasses.replace(stream, weight=stream.weight / total) for stream in domain.streams]


def mix(streams: list[Stream], chosen: Settings, rng: Random, clock: Callable[[int], int]) -> Iterator[Message]:
    """Yield messages of these streams for ever, in the shares that the settings name."""
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
