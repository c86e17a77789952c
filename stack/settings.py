"""Where does this stack live, and on which ports? The only reader of the environment in this package; `.env` is read by
`engine.runtime.envfile`, as for the scripts.

A port comes from the ports saved by a running stack (`var/run/ports.json`), else the environment, else `.env`, else
the default. The saved ones win because they are what the processes really listen on.
"""

from __future__ import annotations

import json
import random
import re
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engine.runtime import envfile
from engine.runtime.envfile import ENV_FILE

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
USER = "hadoop"  # of every process and client: another user may not create a folder under / of HDFS

# Setting → default. The name in the environment is the name everywhere.
PORTS: Mapping[str, int] = MappingProxyType(
    {
        "ZOOKEEPER_PORT": 2181,
        "KAFKA_PORT": 9092,
        "KAFKA_METRICS_PORT": 5556,
        "HDFS_PORT": 9000,
        "NAMENODE_UI_PORT": 9870,
        "DATANODE_PORT": 9866,
        "DATANODE_HTTP_PORT": 9864,
        "DATANODE_IPC_PORT": 9867,
        "SPARK_MASTER_PORT": 7077,
        "SPARK_MASTER_UI_PORT": 8080,
        "SPARK_WORKER_UI_PORT": 8081,
        "PROMETHEUS_PORT": 9090,
        "CASSANDRA_PORT": 9042,
        "CASSANDRA_INTERNODE_PORT": 7000,
    }
)
# Of the scripts, which read them themselves (engine/runtime/settings.py): what Prometheus asks. 0 = off.
LAYER_PORTS: Mapping[str, int] = MappingProxyType(
    {
        "SERVING_PORT": 8000,
        "PRODUCER_METRICS_PORT": 8082,
        "INGEST_METRICS_PORT": 8083,
        "STREAM_METRICS_PORT": 8084,
        "BATCH_METRICS_PORT": 8085,
    }
)

FAULT_RETRY = 300.0  # seconds after which a layer that ended at a named fault is tried again


class StackError(Exception):
    """Something the operator can mend: what is wrong, its value, the way out. Printed as is, without a traceback."""


@dataclass(frozen=True)
class Settings:
    """One stack: its folders, its ports, the size of its Spark worker, and the domain that its layers work on."""

    var: Path
    root: Path = ROOT
    ports: Mapping[str, int] = field(default_factory=lambda: PORTS)
    layer_ports: Mapping[str, int] = field(default_factory=lambda: LAYER_PORTS)
    worker_cores: int = 8  # virtual: several small streaming applications share them
    worker_memory: str = "8g"
    python: str = sys.executable  # executors need the very packages of this one
    fault_retry: float = FAULT_RETRY
    cassandra: bool = False  # whether the optional serving store belongs to this stack
    domain: str = "learning"

    @property
    def lib(self) -> Path:
        return self.root / "lib"

    @property
    def data(self) -> Path:
        return self.var / "data"

    @property
    def conf(self) -> Path:
        return self.var / "conf"

    @property
    def log(self) -> Path:
        return self.var / "log"

    @property
    def run(self) -> Path:
        return self.var / "run"

    @property
    def tmp(self) -> Path:
        return self.var / "tmp"

    @property
    def ports_file(self) -> Path:
        return self.run / "ports.json"

    def port(self, name: str) -> int:
        """The port of a setting such as `KAFKA_PORT`."""
        return self.ports[name]

    @property
    def hdfs_url(self) -> str:
        return f"hdfs://localhost:{self.port('HDFS_PORT')}"

    def with_ports(self, ports: Mapping[str, int]) -> Settings:
        """The same stack on other ports; names that are not given keep theirs."""
        return replace(self, ports=MappingProxyType({**self.ports, **ports}))

    def with_cassandra(self) -> Settings:
        """The same stack with the optional serving store."""
        return replace(self, cassandra=True)


def load(environ: Mapping[str, str] | None = None, env_file: Path = ENV_FILE, saved: bool = True) -> Settings:
    """Return the settings in force.

    Args:
        environ: instead of the environment of this process.
        env_file: KEY=VALUE lines, may be missing; other names in it belong to others.
        saved: whether ports saved by an earlier `up` win.

    Raises:
        StackError: one line with the setting, its value and what is allowed.
    """
    try:
        values = envfile.given(env_file, environ)
    except envfile.SettingsError as error:
        raise StackError(str(error)) from None
    var = Path(values.get("HIGHWATER_VAR", "") or ROOT / "var")
    settings = Settings(
        var=(var if var.is_absolute() else ROOT / var).resolve(),
        ports=MappingProxyType({name: _port(name, values.get(name, str(PORTS[name]))) for name in PORTS}),
        layer_ports=MappingProxyType(
            {name: _port(name, values.get(name, str(LAYER_PORTS[name])), lowest=0) for name in LAYER_PORTS}
        ),
        worker_cores=_cores(values.get("SPARK_WORKER_CORES", "8")),
        worker_memory=_memory(values.get("SPARK_WORKER_MEMORY", "8g")),
        fault_retry=_seconds("FAULT_RETRY_SECONDS", values.get("FAULT_RETRY_SECONDS", f"{FAULT_RETRY:.0f}")),
        cassandra=_switch("STACK_CASSANDRA", values.get("STACK_CASSANDRA", "false")),
        domain=values.get("DOMAIN", "learning"),
    )
    if saved and settings.ports_file.exists():
        settings = settings.with_ports(saved_ports(settings)[0])
        if _saved(settings).get("cassandra"):
            settings = settings.with_cassandra()
    doubles = [name for name in PORTS if list(settings.ports.values()).count(settings.port(name)) > 1]
    if doubles:
        raise StackError(f"{' and '.join(doubles)}: both are {settings.port(doubles[0])}; give each its own port")
    return settings


def saved_ports(settings: Settings) -> tuple[dict[str, int], bool]:
    """Return the ports that the last `up` used, and whether `--free-ports` chose them."""
    try:
        saved = _saved(settings)
        ports = saved["ports"] if saved else {}
        return {name: int(ports[name]) for name in PORTS if name in ports}, bool(saved and saved["free"])
    except (ValueError, KeyError, TypeError) as error:
        raise StackError(
            f"{settings.ports_file}: not readable ({error!r}); delete it and run: python -m stack up"
        ) from error


def save_ports(settings: Settings, free: bool) -> None:
    """Remember the ports, and whether Cassandra belongs to the stack, for the next command."""
    settings.run.mkdir(parents=True, exist_ok=True)
    partial = settings.ports_file.with_suffix(".partial")
    said = {"free": free, "cassandra": settings.cassandra, "ports": dict(settings.ports)}
    partial.write_text(json.dumps(said, indent=2) + "\n")
    partial.replace(settings.ports_file)


def free_ports(names: list[str]) -> dict[str, int]:
    """Return an unused loopback port for each name.

    Below the ports that the kernel gives to outgoing connections (from 32768): else a client that tries a dead server
    again and again would sooner or later get that very port for itself, and the server could never start again.

    Raises:
        StackError: so many ports are taken that none was found.
    """
    candidates = random.sample(range(15_000, 32_000), 1_000)
    chosen: dict[str, int] = {}
    with ExitStack() as held:  # all held open together, so they differ
        for name in names:
            while name not in chosen:
                if not candidates:
                    raise StackError(f"{name}: no free port found between 15000 and 32000; set {name} to one by hand")
                with suppress(OSError):
                    port = candidates.pop()
                    held.enter_context(socket.create_server((HOST, port)))
                    chosen[name] = port
    return chosen


def _saved(settings: Settings) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads(settings.ports_file.read_text())
    except FileNotFoundError:
        return {}
    return saved


def _port(name: str, text: str, lowest: int = 1) -> int:
    if not text.isdigit() or not lowest <= int(text) < 65536:
        raise StackError(f"{name}: {text!r} is not a port; give a number from {lowest} to 65535")
    return int(text)


def _switch(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise StackError(f"{name}: {text!r} is not a switch; give true or false")
    return text.lower() == "true"


def _cores(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise StackError(f"SPARK_WORKER_CORES: {text!r} is not a number of cores; give 1 or more, such as 8")
    return int(text)


def _seconds(name: str, text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        raise StackError(f"{name}: {text!r} is not a number of seconds; give 0 or more, such as 300")
    return float(text)


def _memory(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[mgMG]", text):
        raise StackError(f"SPARK_WORKER_MEMORY: {text!r} is not a size; write it as 2048m or 8g")
    return text
