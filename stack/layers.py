"""How do the layers run in the background of the native stack? Each under `stack.supervise`, with log and pid file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from stack import process
from stack.services import environment, inherited
from stack.settings import ROOT, Settings
from stack.supervise import FAULT

LAYERS = {
    "ingest": "ingest_layer.py",
    "stream": "stream_layer.py",
    "serving": "serving_layer.py",
    "batch": "batch_layer.py",
    "producer": "producer.py",
}
PATIENCE = 60.0  # a layer may finish its micro-batch


def pid_file(settings: Settings, name: str) -> Path:
    return settings.run / f"layer-{name}.pid"


def log_file(settings: Settings, name: str) -> Path:
    return settings.log / f"{name}.log"


def state_file(settings: Settings, name: str) -> Path:
    return settings.run / f"layer-{name}.state"


def client_environment(settings: Settings, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which the scripts find this stack."""
    return {**inherited(), **environment(settings), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(more or {})}


def start(settings: Settings, name: str, arguments: Sequence[str] = (), more: Mapping[str, str] | None = None) -> int:
    """Start a layer in the background; returns the pid of its supervisor."""
    state = state_file(settings, name)
    state.unlink(missing_ok=True)  # what an earlier one said
    options = ("--state", str(state), "--fault-retry", str(settings.fault_retry))
    return process.start(
        [sys.executable, "-m", "stack.supervise", *options, LAYERS[name], *arguments],
        pid_file=pid_file(settings, name),
        log=log_file(settings, name),
        folder=settings.tmp / name,
        env=client_environment(settings, more),
    )


def running(settings: Settings) -> dict[str, int]:
    """Return layer → pid of the supervisors that run."""
    pids = {name: process.running_pid(pid_file(settings, name)) for name in LAYERS}
    return {name: pid for name, pid in pids.items() if pid is not None}


def status(settings: Settings) -> list[tuple[str, int | None, str]]:
    """Return (layer, pid of its supervisor, what is wrong) of every layer that was started and not stopped."""
    found = []
    for name in LAYERS:
        try:
            state = json.loads(state_file(settings, name).read_text())
        except FileNotFoundError:
            continue
        pid, code = process.running_pid(pid_file(settings, name)), state.get("exit")
        if code is None:
            wrong = "" if pid else "is not running: its supervisor was killed"
        else:
            how = "named fault (exit 1)" if code == FAULT else f"exit {code}"
            end = f"again at {state['again']}" if pid and "again" in state else "ended for good"
            wrong = f"{how}, {end}; see: python -m stack logs {name}" if code or pid else ""
        if pid or wrong:
            found.append((name, pid, wrong))
    return found


def stop(settings: Settings, names: Sequence[str] = tuple(LAYERS)) -> list[str]:
    """Stop layers that run, the producer first; returns one line for each."""
    order = [name for name in ("producer", "batch", "stream", "ingest", "serving") if name in names]
    stopped = [
        f"{name:<13} {process.stop(pid_file(settings, name), PATIENCE)}" for name in order if name in running(settings)
    ]
    for name in order:
        state_file(settings, name).unlink(missing_ok=True)
    return stopped
