"""The Compose stack on a real engine: the one that runs here, or Debian's in a network namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from stack.demo import behind
from tests.compose import engine as engines
from tests.compose.engine import OWN, ROOT, Engine, EngineMissing

FOLDER = ROOT / ".cache" / "engine"
# More events than a user's default, with everything that can be wrong with them; short pauses.
SETTINGS = {
    "COMPOSE_PROJECT_NAME": "highwater-test",
    "MSGS_PER_SEC": "40",
    "SEED": "7",
    "DUPLICATE_SHARE": "0.02",
    "LATE_SHARE": "0.01",
    "BROKEN_SHARE": "0.005",
    "FUTURE_SHARE": "0.001",
    "TRIGGER_INTERVAL": "5 seconds",
    "STREAM_TRIGGER_INTERVAL": "3 seconds",
    "BATCH_INTERVAL": "10m",
}


@dataclass
class Compose:
    """The stack: `docker compose` in front of its words, and a way to its published ports."""

    engine: Engine
    seconds: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)  # settings of the shell, besides those of all tests

    @property
    def environment(self) -> dict[str, str]:
        return {**self.engine.environment, **SETTINGS, **self.chosen}

    def __call__(self, *words: str, wanted: int = 0, timeout: float = 900) -> str:
        """Run `docker compose …`; returns what it printed."""
        command = ["docker", "compose", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == wanted, (
            f"{' '.join(command)}: exit {done.returncode}\n{said[-4000:]}\n{self.report()}"
        )
        return said

    def up(self, *services: str, profile: str = "") -> None:
        """`docker compose up -d --wait`, of all or of some services."""
        first = ("--profile", profile) if profile else ()
        images = ("--pull", "never", "--no-build") if self.engine.own else ("--build",)
        self(*first, "up", "-d", "--wait", *images, *services)

    @contextmanager
    def profile(self, name: str, *services: str) -> Iterator[None]:
        """Services of a profile beside the others, removed at the end."""
        try:
            self.up(*services, profile=name)
            yield
        finally:
            self("--profile", name, "rm", "--stop", "--force", "--volumes", *services)

    def report(self) -> str:
        """What runs, and the last words of all, for the message of a failing test."""
        words = (["ps", "-a"], ["logs", "--no-color", "--tail", "25"])
        return "\n".join(
            subprocess.run(
                ["docker", "compose", *w], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
            ).stdout
            for w in words
        )[-25_000:]

    def docker(self, *words: str) -> str:
        """Run `docker …`; returns what it printed."""
        return self.engine.docker(*words).stdout

    def states(self) -> dict[str, dict[str, Any]]:
        """Service → its container, as `docker compose ps` tells it."""
        lines = self("ps", "-a", "--format", "json").splitlines()
        return {entry["Service"]: entry for entry in map(json.loads, lines)}

    def inspect(self, service: str) -> dict[str, Any]:
        return dict(json.loads(self.docker("inspect", self.container(service)))[0])

    def container(self, service: str) -> str:
        return self("ps", "-a", "-q", service).split()[0]

    def crash(self, service: str) -> None:
        """Kill the first process of a container as the kernel would: `docker kill` counts as stopped by hand."""
        pid = str(self.inspect(service)["State"]["Pid"])
        words = ("--rm", "--pid=host", "--network=none", "--user=0", "--entrypoint=sh")
        self.docker("run", *words, OWN["highwater"], "-c", f"kill -9 {pid}")

    def on_host(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command where the published ports are."""
        return subprocess.run(self.engine.inside(command), capture_output=True, text=True, check=False, **options)

    def get(self, path: str, port: int = 8000) -> tuple[int, str]:
        """Ask a published port; status 0 while nobody answers."""
        url = f"http://127.0.0.1:{port}{path}"
        done = self.on_host(["curl", "-s", "-m", "10", "-w", "\n%{http_code}", url])
        body, _, status = done.stdout.rpartition("\n")
        return int(status or 0), body

    def ledger(self) -> dict[str, Any]:
        status, body = self.get("/v1/ledger")
        domains = json.loads(body).get("domains") if status == 200 else None
        return dict(domains[0]) if domains else {}

    def lag(self, layer: str) -> float:
        ledger = self.ledger()
        return behind({"domains": [ledger] if ledger else []}, layer)

    def wait(self, what: str, reached: Callable[[], Any], seconds: float = 600) -> Any:
        """Wait until something is true; else fail with the words of all containers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := reached():
                return found
            time.sleep(1)
        pytest.fail(f"not within {seconds:.0f} s: {what}\n{json.dumps(self.ledger())[:2000]}\n{self.report()}")

    def verify(self) -> str:
        """The oracle, in a container of its own image."""
        return self("exec", "-T", "serving", "python", "-m", "engine.verify", "--url", "http://localhost:8000")


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    profiles = any(item.get_closest_marker("profile") for item in request.session.items)
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        running = engines.up(FOLDER, profiles)
    except EngineMissing as error:
        reason = f"SKIPPED, no container was started: {error}"
        print(f"\n{reason}", file=sys.stderr)
        pytest.skip(reason)
    try:
        yield running
    finally:
        engines.down(running)


@pytest.fixture(scope="session")
def compose(engine: Engine) -> Iterator[Compose]:
    """The stack, up and healthy; taken down with its volumes at the end."""
    stack = Compose(engine)
    stack("--profile", "*", "down", "--volumes", "--remove-orphans")
    began = time.monotonic()
    try:
        stack.up()
        stack.seconds["up --wait"] = time.monotonic() - began
        stack.wait("the first merged answer", lambda: stack.ledger().get("events", {}).get("batch"))
        stack.seconds["up to the first merged answer"] = time.monotonic() - began
        yield stack
    finally:
        stack("--profile", "*", "down", "--volumes", "--remove-orphans")
