"""How fast are the generators, against a loop that asks Faker for every field of every event?

    python bench/generate.py [--domain learning] [--events 20000]

Prints CPU microseconds per event, JSON encoding included, and the ratio. The two sides take turns and the best of
their rounds counts, so other load on the machine matters little.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
from faker import Faker

import domains
from engine.domain import Maker, Stream, decimal_of
from engine.produce.validate import checker
from engine.runtime.settings import environment

ROUNDS = 3


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="learning")
    parser.add_argument("--events", type=int, default=20_000)
    args = parser.parse_args(argv)
    encode = msgspec.json.Encoder().encode
    for domain in domains.named(args.domain, environment()):
        ours_total = faker_total = weights = 0.0
        for stream in domain.streams:
            if stream.generator is None:
                continue
            make, check = stream.generator(Random(1), stream.options), checker(stream)
            fields = faker_fields(stream)
            make(1_767_225_600_000)  # builds the pools

            def ours(make: Maker = make) -> bytes:
                return encode(make(1_767_225_600_000))

            def by_faker(fields: Any = fields) -> bytes:
                return json.dumps({name: make() for name, make in fields}, ensure_ascii=False).encode()

            fast, slow, checks = [], [], []
            for _ in range(ROUNDS):
                fast.append(microseconds(ours, args.events))
                slow.append(microseconds(by_faker, max(1, args.events // 20)))
                value = ours()
                checks.append(microseconds(lambda check=check, value=value: check(value), args.events))  # type: ignore[misc]
            line = f"{stream.topic:<20} ours {min(fast):6.2f} µs   schema check {min(checks):5.2f} µs"
            print(f"{line}   Faker per field {min(slow):7.1f} µs   {min(slow) / min(fast):5.0f} x")
            ours_total += stream.weight * min(fast)
            faker_total += stream.weight * min(slow)
            weights += stream.weight
        print(
            f"{domain.name}, topics by weight: ours {ours_total / weights:.2f} µs, "
            f"Faker per field {faker_total / weights:.1f} µs, ratio {faker_total / ours_total:.0f} x"
        )
    return 0


def faker_fields(stream: Stream) -> list[tuple[str, Callable[[], Any]]]:
    """What the usual demo does: one call of Faker for each field."""
    faker = Faker("vi_VN")
    faker.seed_instance(1)
    texts: dict[str, Callable[[], Any]] = {
        "full_name": faker.name,
        "email": faker.email,
        "province": faker.administrative_unit,
        "school": faker.company,
        "course_title": faker.sentence,
        "event_id": faker.uuid4,
    }
    by_type: dict[str, Callable[[], Any]] = {
        "STRING": faker.word,
        "TIMESTAMP": lambda: faker.date_time_this_year().isoformat() + "Z",
        "BOOLEAN": faker.boolean,
        "ARRAY<STRING>": faker.words,
    }
    return [
        (
            name,
            texts.get(name)
            or by_type.get(sql_type)
            or (
                (lambda: faker.pyfloat(min_value=0, max_value=5, right_digits=2))
                if decimal_of(sql_type) or sql_type == "DOUBLE"
                else (lambda: faker.random_int(0, 5000))
            ),
        )
        for name, sql_type in stream.columns.items()
    ]


def microseconds(make: Callable[[], Any], events: int) -> float:
    """CPU µs per call."""
    start = time.process_time()
    for _ in range(events):
        make()
    return (time.process_time() - start) / events * 1e6


if __name__ == "__main__":
    sys.exit(main())
