"""All layers as processes on a native stack, and what a drill does to them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.runtime.observe import STOP_SECONDS
from engine.storage.hdfs import Hdfs
from stack.demo import behind
from stack.settings import free_ports
from tests.conftest import Stack

ROOT = Path(__file__).resolve().parents[2]
SHARES = ("--duplicates", "0.03", "--late", "0.02", "--broken", "0.01", "--future", "0.005")
# Seconds after which something hangs for sure: no test is about speed, and CI machines differ in it.
PATIENCE = 900
SCRIPTS = {"ingest": "ingest_layer.py", "stream": "stream_layer.py", "serving": "serving_layer.py"}
# A micro-batch costs the same for few rows as for many: with shorter pauses two cores do nothing else.
PAUSES = {"TRIGGER_INTERVAL": "8s", "STREAM_TRIGGER_INTERVAL": "3s"}
COPIED = (
    "*.py",
    "engine/**/*.py",
    "domains/*.py",
    "stack/*",
    "conf/*",
    "web/*",
    "docs/*.md",
    "README.md",
    "pyproject.toml",
)


def copy_repository(root: Path, *more: str) -> None:
    """Copy what runs of the repository, and more files by pattern, into a folder, for a test that changes it."""
    for path in (path for pattern in (*COPIED, *more) for path in ROOT.glob(pattern) if path.is_file()):
        target = root / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


class Pipeline:
    """The layers of one domain, run from `root`; a killed one is started again by hand, as an operator would."""

    def __init__(self, stack: Stack, folder: Path, root: Path = ROOT, domain: str = "learning") -> None:
        self.folder, self.root, self.domain = folder, root, domain
        self.ports = free_ports(["serving", "ingest", "stream"])
        self.port = self.ports["serving"]
        self.url = f"http://127.0.0.1:{self.port}"
        # local[2]: the layers start faster without an executor each; `make demo` runs them on the Spark master.
        self.env = {**os.environ, **stack.env, "SPARK_MASTER": "local[2]", "SERVING_PORT": str(self.port)}
        self.env |= {f"{layer.upper()}_METRICS_PORT": str(self.ports[layer]) for layer in ("ingest", "stream")}
        self.env |= {"PRODUCER_METRICS_PORT": "0", "BATCH_METRICS_PORT": "0", **PAUSES}
        self.env |= {"PYTHONUNBUFFERED": "1", "DOMAIN": domain, "PYTHONPATH": str(root)}
        # Short runs over few events: on two cores the optimising compiler would cost more than the work itself.
        self.env["JDK_JAVA_OPTIONS"] = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=160m -XX:+UseSerialGC"
        self.hdfs = Hdfs(stack.env["HDFS_URL"], "hadoop")
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def spawn(self, name: str, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a script, or with `-m` a module, in a session of its own, its output appended to <name>.log."""
        with (self.folder / f"{name}.log").open("ab") as out:
            command = [sys.executable, script if script == "-m" else str(self.root / script), *arguments]
            child = subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdout=out, stderr=out, start_new_session=True
            )
        self.running[name] = child
        return child

    def start(self, *names: str) -> None:
        for name in names:
            self.spawn(name, SCRIPTS[name])

    def kill(self, name: str) -> None:
        """kill -9 the Python driver and its JVM at once, in whatever they are doing."""
        child = self.running.pop(name)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def stop(self, name: str) -> int:
        """SIGTERM the Python process alone; returns its exit code."""
        child = self.running.pop(name)
        child.send_signal(signal.SIGTERM)
        return child.wait(STOP_SECONDS)

    def run(self, script: str, *arguments: str, wanted: int = 0) -> str:
        """Run a script, or with `-m` a module, to its end and check its exit code; returns what it printed."""
        command = [sys.executable, script if script == "-m" else str(self.root / script), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        said = done.stdout + done.stderr
        assert done.returncode == wanted, (
            f"{script} {arguments}: exit {done.returncode}\n{said[:3000]}\n…\n{said[-3000:]}"
        )
        return said

    def verify(self, *arguments: str, wanted: int = 0) -> str:
        command = [sys.executable, "-m", "engine.verify", "--domain", self.domain, "--url", self.url, *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == wanted, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def get(self, path: str) -> Any:
        """Return a JSON answer, or None while there is none (503, or nobody listens)."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return json.load(answer)
        except (urllib.error.URLError, OSError):
            return None

    def ledger(self) -> dict[str, Any]:
        found = self.get("/v1/ledger")
        return dict(found["domains"][0]) if found and found["domains"] else {}

    def lag(self, layer: str) -> float:
        ledger = self.ledger()
        return behind({"domains": [ledger] if ledger else []}, layer)

    def heads(self, name: str) -> dict[tuple[str, str], int]:
        """A column of the ledger by topic and partition, 0 where it is not known."""
        return {(p["topic"], p["partition"]): p[name] or 0 for p in self.ledger().get("partitions", [])}

    def wait(self, what: str, reached: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        """Wait until something is true; a layer that died meanwhile fails the test with its log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := reached():
                return found
            for name, child in self.running.items():
                assert child.poll() is None or name.startswith("producer"), f"{name} ended:\n{self.log(name)}"
            time.sleep(0.3)
        logs = "\n".join(f"== {name}\n{self.log(name, 1500)}" for name in self.running)
        raise AssertionError(f"not within {seconds:.0f} s: {what}\n{json.dumps(self.ledger())[:3000]}\n{logs}")

    def log(self, name: str, size: int = 3000) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-size:]

    def finish(self) -> None:
        for child in self.running.values():
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


class Recorder:
    """Asks the API again and again and keeps every answer, as JSON lines that `engine.verify --answers` judges."""

    QUERIES = (
        ("daily_logins", "limit=10000"),
        ("activity_minutes", "every=all&by=topic&limit=10000"),
        ("course_popularity", "every=all&by=&limit=10000"),
        ("course_minutes", "every=1d&by=course_id&limit=10000"),
        ("student_submissions", "every=all&by=course_id&limit=10000"),
    )

    def __init__(
        self,
        pipeline: Pipeline,
        file: Path,
        seconds: float = 2.0,
        queries: tuple[tuple[str, str], ...] = QUERIES,
    ) -> None:
        self.pipeline, self.file, self.seconds, self.queries = pipeline, file, seconds, queries
        self.answers: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with self.file.open("w") as out:
            for answer in self.answers:
                out.write(json.dumps(answer) + "\n")

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(self.seconds):
            view, query = self.queries[number % len(self.queries)]
            number += 1
            answer = self.pipeline.get(f"/v1/views/{view}?{query}")
            if answer is not None:
                self.answers.append({"url": self.pipeline.url, "view": view, "query": query, "answer": answer})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that use the shared pipeline come last: its layers would take cores from the others'."""

    def module(item: pytest.Item) -> str:
        return item.nodeid.partition("::")[0]

    shared = {module(item) for item in items if "pipeline" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: module(item) in shared)


@pytest.fixture(scope="session")
def pipeline(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Serving, ingest and stream of the learning domain, with a first batch of events answered."""
    running = Pipeline(stack, tmp_path_factory.mktemp("pipeline"))
    try:
        running.run("producer.py", "--rate", "0", "--count", "3000", "--seed", "1", *SHARES)
        running.start("serving", "ingest", "stream")
        running.wait("first events in the master dataset", lambda: running.lag("ingest") == 0)
        yield running
    finally:
        running.finish()


@pytest.fixture(scope="module")
def serving_url(pipeline: Pipeline) -> Iterator[str]:
    """A live serving layer with a batch version while a producer runs."""
    if not pipeline.ledger().get("version"):
        pipeline.run("batch_layer.py")
    pipeline.spawn("producer-gentle", "producer.py", "--rate", "20", *SHARES)
    pipeline.wait("a version", lambda: pipeline.ledger().get("version"))
    yield pipeline.url
    pipeline.stop("producer-gentle")
