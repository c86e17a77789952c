"""The main job, natively: starts the stack and all layers, sends events, runs a batch, proves the answers equal.

    make demo                  or: python -m stack.demo [--domain learning] [--events 20000]

Leaves everything running with a gentle producer; `make down` stops it, `make reset` wipes it too.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from typing import Any

from stack import layers, lifecycle
from stack.probes import LOOPBACK
from stack.services import SERVICES
from stack.settings import ROOT, Settings, StackError, load
from stack.steps import Steps

SHARES = ("--duplicates", "0.02", "--late", "0.01", "--broken", "0.005", "--future", "0.001")
INGEST_EVERY = "5 seconds"
BATCH_EVERY = "10m"
DEADLINE = 240.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", help="domain; several by comma, or all [DOMAIN]")
    parser.add_argument("--events", type=int, default=20_000, help="events sent at full speed before the batch run")
    parser.add_argument("--free-ports", action="store_true", help="choose free ports instead of the usual ones")
    parser.add_argument("--once", action="store_true", help="stop everything at the end instead of leaving it running")
    args = parser.parse_args(argv)
    try:
        return run(args)
    except StackError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what runs keeps running: make status, make down", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    steps = Steps()
    with steps.step("stack"):
        settings = lifecycle.up(load(), free=args.free_ports, say=steps.say)
    for line in layers.stop(settings):
        steps.say(line)
    chosen = args.domain or settings.domain
    domain = ("--domain", chosen)
    url = f"http://127.0.0.1:{settings.layer_ports['SERVING_PORT']}"
    # They start on the Spark master while the first events are sent.
    layers.start(settings, "serving", domain)
    layers.start(settings, "ingest", (*domain, "--trigger-interval", INGEST_EVERY))
    # Each domain is a query of its own: several of them take turns on a small machine.
    several = "," in chosen or chosen == "all"
    layers.start(settings, "stream", (*domain, *(("--stream-trigger-interval", "4 seconds") if several else ())))
    with steps.step(f"sending {args.events:,} events at full speed, with duplicates, late, broken and future ones"):
        script(
            settings,
            steps,
            "producer.py",
            *domain,
            "--rate",
            "0",
            "--count",
            str(args.events),
            "--metrics-port",
            "0",
            *SHARES,
        )
    with steps.step("ingest: Kafka to the master dataset") as note:
        wait_for(url, "ingest", settings, note)
    with steps.step("batch: the master dataset to version 1 of every view"):
        # 1: a report is held back, which does no harm to the rest, or a fault, at which what follows does not get there.
        held = script(settings, steps, "batch_layer.py", *domain, going_on=1)
    with steps.step("sending 2,000 more, which only the speed layer has seen"):
        script(
            settings, steps, "producer.py", *domain, "--rate", "1000", "--count", "2000", "--metrics-port", "0", *SHARES
        )
    with steps.step("stream: Kafka to the speed views") as note:
        wait_for(url, "stream", settings, note, lambda ledger: all(d["version"] for d in ledger["domains"]))
    with steps.step("proof: every view recounted from the raw log with DuckDB"):
        exact = script(settings, steps, "-m", "engine.verify", *domain, "--url", url, going_on=1)
    if not args.once:
        layers.start(settings, "producer", (*domain, *SHARES))
        layers.start(settings, "batch", (*domain, "--every", BATCH_EVERY))
    board(settings, steps, url, chosen, get(f"{url}/v1/ledger"))
    if args.once:
        layers.stop(settings)
        lifecycle.down(settings, steps.say)
    return 1 if exact or held else 0


def script(settings: Settings, steps: Steps, *command: str, going_on: int = 0) -> int:
    """Run a script of the project to its end, its lines among those of the steps.

    Returns its exit code, 0 or `going_on`. Raises StackError for any other.
    """
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=layers.client_environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            steps.say(line.rstrip())
    if process.returncode not in (0, going_on):
        raise StackError(f"{' '.join(command)}: exit {process.returncode}")
    return process.returncode


def wait_for(
    url: str,
    layer: str,
    settings: Settings,
    note: Callable[[str], None],
    also: Callable[[dict[str, Any]], bool] = lambda ledger: True,
) -> None:
    """Ask the ledger until a layer has done every offset, and `also`; StackError with its log after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        ledger = get(f"{url}/v1/ledger")
        if ledger.get("domains"):
            lag = behind(ledger, layer)
            if lag == 0 and also(ledger):
                note("")
                return
            note(f"{lag:,.0f} events to go" if math.isfinite(lag) else "")
        time.sleep(0.5)
    raise StackError(f"{layer} did not get there within {DEADLINE:.0f} s; see {layers.log_file(settings, layer)}")


def behind(ledger: dict[str, Any], layer: str) -> float:
    """Return the offsets that a layer still has to do, over all partitions; infinite while one is not known."""
    lags = [p["lag"].get(layer) for d in ledger["domains"] for p in d["partitions"]]
    return math.inf if not lags or None in lags else sum(lags)


def get(url: str) -> dict[str, Any]:
    """Return a JSON answer, or {} while nobody answers."""
    try:
        with LOOPBACK.open(url, timeout=10) as answer:
            return dict(json.load(answer))
    except (urllib.error.URLError, OSError, ValueError):
        return {}


def board(settings: Settings, steps: Steps, url: str, domains: str, ledger: dict[str, Any]) -> None:
    """Print where everything is, and what to do next."""
    steps.say("")
    steps.say(f"{'service':<14}url")
    for service in SERVICES:
        steps.say(f"{service.name:<14}{service.url(settings)}")
    steps.say(f"{'dashboard':<14}{url}/")
    for layer in ("producer", "ingest", "stream", "batch"):
        if metrics := settings.layer_ports[f"{layer.upper()}_METRICS_PORT"]:
            steps.say(f"{layer:<14}http://localhost:{metrics}/metrics")
    for domain in ledger.get("domains", []):
        events = domain["events"]
        steps.say(
            f"\n{domain['domain']}: version {domain['version']}, {events['merged']:,} events = {events['batch']:,} by batch + {events['speed']:,} by speed; "
            f"quarantine {sum(domain['quarantined'].values()):,}; ledger {'balanced' if domain['balanced'] else 'NOT BALANCED'}"
        )
    steps.say(f"\nall this took {steps.seconds():.0f} s. Next:")
    views = get(f"{url}/v1/views").get("views") or [{"view": "daily_logins"}]
    steps.say(f"  curl '{url}/v1/views/{views[0]['view']}?limit=5'      an answer, and up to which offset it is true")
    steps.say(f"  python -m engine.verify --domain {domains} --url {url}      prove every view again, now")
    steps.say("  make down                                          stop (data stays); make reset wipes it")


if __name__ == "__main__":
    sys.exit(main())
