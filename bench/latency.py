"""How long until an event is in the answers? Against a running system, while `producer.py` sends at a steady rate.

    python -m bench.latency [--domain learning] [--rate 1000] [--seconds 60] [--url http://127.0.0.1:8000]

Ten times a second the end offsets of Kafka are noted; as soon as an answer's `as_of.coverage` has reached them,
everything that was in Kafka then is served. Prints the median, the 95th percentile and the maximum of that delay in
seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import domains
from engine.runtime import kafka
from engine.runtime.settings import environment, load
from stack.probes import LOOPBACK

ROOT = Path(__file__).resolve().parent.parent
WARM_UP_SECONDS = 5.0
Ends = dict[tuple[str, str], int]


def covered(url: str, view: str) -> Ends:
    """Coverage of an answer: (topic, partition) → offset of the newest log, exclusive."""
    with LOOPBACK.open(f"{url}/v1/views/{view}?limit=1", timeout=10) as answer:
        coverage: dict[str, Any] = json.load(answer)["as_of"]["coverage"]
    return {(topic, p): end for topic, logs in coverage.items() for by in logs.values() for p, end in by.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="learning")
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    args = parser.parse_args(argv)
    (domain,) = domains.named(args.domain, environment())
    consumer = kafka.consumer(load())
    count = str(int(args.rate * (args.seconds + WARM_UP_SECONDS)))
    command = [sys.executable, str(ROOT / "producer.py"), "--domain", domain.name, "--rate", str(args.rate)]
    producer = subprocess.Popen([*command, "--count", count, "--metrics-port", "0"], stderr=subprocess.DEVNULL)
    noted: deque[tuple[float, Ends]] = deque()
    delays: list[float] = []

    def note() -> None:
        while producer.poll() is None:
            ranges = kafka.log_ranges(consumer, domain.topics)
            ends = {(topic, str(p)): end for topic, by in ranges.items() for p, (_, end) in by.items()}
            noted.append((time.monotonic(), ends))
            time.sleep(0.1)

    began = time.monotonic()
    noting = threading.Thread(target=note, daemon=True)
    noting.start()
    while noting.is_alive() or noted:
        have = covered(args.url, domain.views[0].name)
        now = time.monotonic()
        while noted and all(have.get(place, 0) >= end for place, end in noted[0][1].items()):
            at, _ = noted.popleft()
            if at - began > WARM_UP_SECONDS:
                delays.append(now - at)
        if noted and now - noted[0][0] > 120:
            print(f"not served after 120 s; coverage {have}", file=sys.stderr)
            return 1
        time.sleep(0.05)
    producer.wait()
    print(
        f"{len(delays)} moments at {args.rate:g} events/s: median {statistics.median(delays):.2f} s, "
        f"p95 {statistics.quantiles(delays, n=20)[18]:.2f} s, max {max(delays):.2f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
