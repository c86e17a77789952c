"""What a process does when it is told to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = """
import time
from engine.observe import Stop
stop = Stop()
print("ready", flush=True)
while True:
    time.sleep(0.05)
    if stop:
        print("asked", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_asks_and_a_second_one_ends_it(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", ENDLESS]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"
        assert process.poll() is None
        assert process.stderr.readline().startswith("stopping when the work at hand is done")
        process.send_signal(number)
        assert process.wait(10) == code
