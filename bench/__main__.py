"""What does each stage cost? CPU seconds per million events of the whole process tree, on one run over the same events.

    python -m bench --events 2000000        on a stack of its own, on free ports, wiped afterwards

Wall times on a shared machine say little; CPU seconds of the processes that a stage started say more. Servers (Kafka,
HDFS) are counted apart, over the whole run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stack import demo, layers, lifecycle, process
from stack import settings as stack_settings
from stack.services import SERVICES

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
DEADLINE = 1800.0


class Meter:
    """CPU seconds of every process of one session, sampled; a process that ends keeps its last reading."""

    def __init__(self, session: int) -> None:
        self.session = session
        self._seen: dict[tuple[int, str], float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            self._sample()

    def _sample(self) -> None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.session:  # proc(5): session, utime, stime, starttime
                    self._seen[int(entry.name), fields[19]] = (int(fields[11]) + int(fields[12])) / TICKS

    def seconds(self) -> float:
        """Stop sampling; return the sum."""
        self._sample()
        self._stop.set()
        self._thread.join()
        return sum(self._seen.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--domain", default="learning")
    args = parser.parse_args()
    var = Path(tempfile.mkdtemp(prefix="highwater-bench-"))
    os.environ["HIGHWATER_VAR"] = str(var)
    settings = lifecycle.up(stack_settings.load(), free=True)
    port = str(stack_settings.free_ports(["serving"])["serving"])
    env = layers.client_environment(settings, {"SPARK_MASTER": "local[2]", "SERVING_PORT": port, "DOMAIN": args.domain})
    million = args.events / 1e6
    try:
        url = f"http://127.0.0.1:{port}"
        serving = start(env, var, "serving_layer.py")
        report(
            "producer", million, *timed(env, var, "producer.py", "--rate", "0", "--count", str(args.events), *SETTINGS)
        )
        ingest, began = start(env, var, "ingest_layer.py", "--trigger-interval", "1s"), time.monotonic()
        meter = Meter(ingest.pid)
        until(lambda: lag(url, "ingest") == 0)
        report("ingest", million, meter.seconds(), time.monotonic() - began)
        ingest.terminate()
        ingest.wait()
        report("batch", million, *timed(env, var, "batch_layer.py"))
        report("batch --full", million, *timed(env, var, "batch_layer.py", "--full"))
        stream, began = start(env, var, "stream_layer.py"), time.monotonic()
        meter = Meter(stream.pid)
        timed(env, var, "producer.py", "--rate", "0", "--count", str(args.events // 10), *SETTINGS)
        until(lambda: lag(url, "stream") == 0)
        report("stream (a tenth)", million / 10, meter.seconds(), time.monotonic() - began)
        report("verify", million, *timed(env, var, "-m", "engine.verify", "--url", url))
        for service in SERVICES:
            pid = process.running_pid(service.pid_file(settings))
            if pid is not None:
                report(f"server {service.name}", million, Meter(pid).seconds(), 0.0)
        for child in (stream, serving):
            child.terminate()
            child.wait()
    finally:
        lifecycle.down(settings, lambda line: None)
        shutil.rmtree(var, ignore_errors=True)
    return 0


SETTINGS = (
    "--seed",
    "7",
    "--metrics-port",
    "0",
    "--duplicates",
    "0.02",
    "--late",
    "0.01",
    "--broken",
    "0.005",
    "--future",
    "0.001",
)


def start(env: dict[str, str], folder: Path, *command: str) -> subprocess.Popen[bytes]:
    """Start a script of the project in a session of its own, its output in <script>.log."""
    script = command if command[0] == "-m" else (str(ROOT / command[0]), *command[1:])
    with (folder / f"{Path(command[0]).stem}.log").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, *script], env=env, cwd=folder, stdout=out, stderr=out, start_new_session=True
        )


def timed(env: dict[str, str], folder: Path, *command: str) -> tuple[float, float]:
    """Run a script to its end; return CPU seconds and wall seconds."""
    began = time.monotonic()
    child = start(env, folder, *command)
    meter = Meter(child.pid)
    code = child.wait()
    if code:
        log = (folder / f"{Path(command[0]).stem}.log").read_text()[-3000:]
        raise SystemExit(f"{' '.join(command)}: exit {code}\n{log}")
    if command[0] == "-m":
        print((folder / f"{Path(command[0]).stem}.log").read_text().splitlines()[-1])
    return meter.seconds(), time.monotonic() - began


def report(stage: str, million: float, cpu: float, wall: float) -> None:
    print(f"{stage:<20} {cpu / million:8.1f} cpu-s/M   {cpu:8.1f} cpu s   {wall:7.1f} s wall", flush=True)


def lag(url: str, layer: str) -> int:
    try:
        return demo.behind(demo.get(f"{url}/v1/ledger"), layer)
    except (KeyError, urllib.request.HTTPError):
        return -1


def until(reached: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not reached():
        if time.monotonic() > deadline:
            raise SystemExit(f"not done after {DEADLINE:.0f} s")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
