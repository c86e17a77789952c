"""Keeps one layer running: again after a crash or exit 75 with growing pauses, after a named fault every few minutes.

python -m stack.supervise stream_layer.py --domain learning
python -m stack.supervise spark-submit stream_layer.py        as in the containers: any program

Docker's own pauses begin anew once a container has run for ten seconds, and Spark alone takes as long: a fault would be
a hot loop. Kubernetes' pauses grow up to five minutes and begin anew after ten, so nothing stands between it and a
layer.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from stack.settings import FAULT_RETRY, ROOT

FAULT, START_AGAIN = 1, 75
# Done, a wrong setting, and ended at once by a second signal: somebody wanted that.
FINAL = (0, 2, 130, 143)
LONGEST_PAUSE = 60.0
HEALTHY_AFTER = 300.0  # a layer that ran this long is started again after the shortest pause


def main(argv: Sequence[str] | None = None) -> int:
    """Run a program until it ends for good or a signal comes; returns its exit code."""
    args = _arguments(argv)
    command = _command(args.command)
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    pause, code = 0.0, 0
    while not stopping:
        began = time.monotonic()
        try:
            child = subprocess.Popen(command)
        except OSError as error:  # no memory, no process left
            code, how = START_AGAIN, f"could not be started ({error.strerror})"
        else:
            _note(args.state, {})
            if stopping:  # the signal came before there was somebody to pass it on to
                child.terminate()
            code = child.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit {code}"
        if stopping:
            break
        if code in FINAL or (code == FAULT and not (args.fault_retry and _repeats(command))):
            _note(args.state, {"exit": code})
            return code
        if code == FAULT:
            wait, how = args.fault_retry, f"{how}, a named fault, which may have been mended"
        else:
            wait = pause = longer(pause, time.monotonic() - began)
        _note(args.state, {"exit": code, "again": _moment(wait)})
        with suppress(OSError):  # a full disk must not end what restarts the layer once there is room
            print(f"{_moment()} supervise: {' '.join(args.command[:2])} {how}; again in {wait:.0f} s", flush=True)
        code, deadline = 0, time.monotonic() + wait
        while not stopping and time.monotonic() < deadline:
            time.sleep(0.1)
    _note(args.state, {"exit": 0})
    return max(code, 0)


def longer(pause: float, ran: float) -> float:
    """Return the pause after a program that ran for `ran` seconds.

    It is 1 s, doubled up to a minute while it does not run long.
    """
    return 1.0 if ran > HEALTHY_AFTER or not pause else min(pause * 2, LONGEST_PAUSE)


def _command(words: Sequence[str]) -> list[str]:
    """A script of the project is run by this very Python, anything else as it stands."""
    if words[0].endswith(".py"):
        return [sys.executable, str(ROOT / words[0]), *words[1:]]
    return list(words)


def _repeats(command: Sequence[str]) -> bool:
    """False for a single batch run, whose caller waits for its exit code."""
    batch = any(Path(word).name == "batch_layer.py" for word in command)
    return not batch or any(word.partition("=")[0] in ("--every", "--batch-interval") for word in command)


def _note(state: Path | None, said: dict[str, Any]) -> None:
    """Leave what `python -m stack status` tells."""
    if state is not None:
        with suppress(OSError):
            partial = state.with_suffix(".partial")
            partial.write_text(json.dumps(said) + "\n")
            partial.replace(state)


def _moment(later: float = 0.0) -> str:
    return f"{datetime.now(UTC) + timedelta(seconds=later):%Y-%m-%dT%H:%M:%SZ}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stack.supervise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--state", type=Path, metavar="FILE", help="where to leave what python -m stack status tells")
    parser.add_argument(
        "--fault-retry",
        type=float,
        default=FAULT_RETRY,
        metavar="SECONDS",
        help=f"pause after a named fault, default {FAULT_RETRY:.0f}; 0 = a fault is final",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="PROGRAM …", help="a script or program, its flags")
    args = parser.parse_args(argv)
    if not args.command:
        parser.error("which program?")
    return args


if __name__ == "__main__":
    sys.exit(main())
