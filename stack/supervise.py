"""Keeps one layer running: starts it again when it asks for that (exit 75) or was killed, as Compose does.

python -m stack.supervise stream_layer.py --domain learning
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from types import FrameType

from stack.settings import ROOT

START_AGAIN = 75
LONGEST_PAUSE = 30.0
HEALTHY_AFTER = 60.0  # a layer that ran this long starts again without a pause


def main(argv: list[str] | None = None) -> int:
    """Run `argv` as a script of the project until it ends by itself; returns its exit code."""
    command = [sys.executable, str(ROOT / (argv or sys.argv[1:])[0]), *(argv or sys.argv[1:])[1:]]
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    pause = 1.0
    while True:
        began = time.monotonic()
        child = subprocess.Popen(command)
        code = child.wait()
        if stopping or (code >= 0 and code != START_AGAIN):
            return max(code, 0) if stopping else code
        pause = 1.0 if time.monotonic() - began > HEALTHY_AFTER else min(pause * 2, LONGEST_PAUSE)
        how = f"killed by signal {-code}" if code < 0 else "asked to be started again"
        print(
            f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} supervise: {command[1]} {how}; again in {pause:.0f} s", flush=True
        )
        deadline = time.monotonic() + pause
        while not stopping and time.monotonic() < deadline:
            time.sleep(0.1)
        if stopping:
            return 0


if __name__ == "__main__":
    sys.exit(main())
