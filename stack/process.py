"""Which process is this, does it still run, and how does it start and stop?

A pid file holds the pid and the start time of the process, so that a number the kernel has given to a stranger
since is never mistaken for ours, and never killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

KEEP_LOG_BYTES = 20 << 20


def start(command: list[str], *, pid_file: Path, log: Path, folder: Path, env: Mapping[str, str]) -> int:
    """Start a process that outlives its caller: own session, no stdin, output appended to `log`.

    Args:
        folder: its current and temporary folder; Spark needs a writable one.
        env: its whole environment.
    """
    for path in (pid_file.parent, log.parent, folder):
        path.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > KEEP_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(env),
            start_new_session=True,
        )
    child.returncode = 0  # it is meant to outlive us: no ResourceWarning, `alive` reaps it
    partial = pid_file.with_suffix(".partial")
    partial.write_text(json.dumps({"pid": child.pid, "started": start_time(child.pid)}) + "\n")
    partial.replace(pid_file)
    return child.pid


def running_pid(pid_file: Path) -> int | None:
    """The pid of the process that wrote this file, if that very process still runs."""
    try:
        noted = json.loads(pid_file.read_text())
        pid, started = int(noted["pid"]), str(noted["started"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return pid if alive(pid, started) else None


def alive(pid: int, started: str) -> bool:
    """Whether the process `pid` runs and is the one that started at `started`; a zombie does not run."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return started != "" and start_time(pid) == started


def start_time(pid: int) -> str:
    """A text that only this process has, or "" when it does not run (any more)."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] in "ZX" else fields[19]  # proc(5): state is field 3, starttime field 22
    ps = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, began = ps.stdout.strip().partition(" ")
    return "" if not state or state.startswith("Z") else "-".join(began.split())


def stop(pid_file: Path, patience: float) -> str:
    """End the process of a pid file: SIGTERM, after `patience` seconds SIGKILL. Returns how it went."""
    pid = running_pid(pid_file)
    if pid is None:
        pid_file.unlink(missing_ok=True)
        return "was not running"
    began = time.monotonic()
    for sign, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            if running_pid(pid_file) is None:
                pid_file.unlink(missing_ok=True)
                return f"stopped after {time.monotonic() - began:.1f} s" + (
                    " by SIGKILL" if sign is signal.SIGKILL else ""
                )
            time.sleep(0.05)
    return f"pid {pid} does not end, not even by SIGKILL; look at its state with: ps -o pid,stat,wchan,args -p {pid}"


def tail(log: Path, lines: int, start: int = 0) -> str:
    """The last lines of a log, from byte `start` on at most."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= size else 0, size - 64_000))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
