"""How do the layers run in the background of the native stack? Each under `stack.supervise`, with log and pid file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from stack import process
from stack.services import environment
from stack.settings import ROOT, Settings

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


def client_environment(settings: Settings, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which the scripts find this stack."""
    return {**os.environ, **environment(settings), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(more or {})}


def start(settings: Settings, name: str, arguments: Sequence[str] = (), more: Mapping[str, str] | None = None) -> int:
    """Start a layer in the background; returns the pid of its supervisor."""
    command = [sys.executable, "-m", "stack.supervise", LAYERS[name], *arguments]
    return process.start(
        command,
        pid_file=pid_file(settings, name),
        log=log_file(settings, name),
        folder=settings.tmp / name,
        env=client_environment(settings, more),
    )


def running(settings: Settings) -> dict[str, int]:
    """Return layer → pid of the supervisors that run."""
    pids = {name: process.running_pid(pid_file(settings, name)) for name in LAYERS}
    return {name: pid for name, pid in pids.items() if pid is not None}


def stop(settings: Settings, names: Sequence[str] = tuple(LAYERS)) -> list[str]:
    """Stop layers that run, the producer first; returns one line for each."""
    order = [name for name in ("producer", "batch", "stream", "ingest", "serving") if name in names]
    return [
        f"{name:<13} {process.stop(pid_file(settings, name), PATIENCE)}" for name in order if name in running(settings)
    ]
