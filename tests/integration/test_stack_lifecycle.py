"""Does the native stack come up, heal, keep its data and leave nothing behind? With its real servers, on free ports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from stack import doctor, lifecycle, ports, probes, process
from stack.services import DATANODE, KAFKA, SERVICES, Service
from stack.settings import Settings, load


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A running stack of this module alone."""
    env = {"HIGHWATER_VAR": str(tmp_path_factory.mktemp("stack"))}
    up = lifecycle.up(load(env), free=True)
    yield up
    lifecycle.down(up)


def run(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line on this stack; its ports must come from what `up` saved."""
    env = {**os.environ, "HIGHWATER_VAR": str(settings.var)}
    command = [sys.executable, "-m", "stack", *arguments]
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def pids(settings: Settings) -> dict[str, int | None]:
    return {service.name: process.running_pid(service.pid_file(settings)) for service in SERVICES}


def processes_of(settings: Settings) -> list[str]:
    """The command lines of all processes that name this stack's folder."""
    found = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline")]
    lines = [ports.command(int(path.name)) for path in found if str(settings.var).encode() in _cmdline(path)]
    return [line for line in lines if "pytest" not in line]


def _cmdline(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


def ask_kafka(settings: Settings, question: Callable[[Any], Any]) -> Any:
    admin = KafkaAdminClient(bootstrap_servers=f"localhost:{settings.port('KAFKA_PORT')}", bootstrap_timeout_ms=5000)
    try:
        return question(admin)
    finally:
        admin.close()


def kill(service: Service, settings: Settings) -> None:
    pid = process.running_pid(service.pid_file(settings))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while process.running_pid(service.pid_file(settings)) == pid:
        time.sleep(0.01)


def test_all_services_answer_and_the_doctor_finds_nothing_in_them(settings: Settings) -> None:
    done = run(settings, "status")
    assert done.returncode == 0, done.stdout
    assert len(re.findall(r" ready$", done.stdout, re.MULTILINE)) == len(SERVICES)
    ours = [f for f in doctor.examine(settings) if not f.what.startswith(("memory", "disk"))]
    assert ours == []


def test_the_folders_of_the_layers_are_there(settings: Settings) -> None:
    client = probes.hdfs_client(settings)
    assert client.get_file_info("/data").isdir
    assert client.get_file_info("/checkpoints").isdir


def test_a_second_up_starts_nothing(settings: Settings) -> None:
    before = pids(settings)
    done = run(settings, "up")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already running") == len(SERVICES)
    assert pids(settings) == before


def test_every_listener_is_on_loopback(settings: Settings) -> None:
    found = {name: ports.listening(pid) for name, pid in pids(settings).items() if pid}
    assert len(found) == len(SERVICES)
    assert all(found.values())
    assert {address for pairs in found.values() for address, _ in pairs} == {"127.0.0.1"}


def test_the_printed_environment_leads_a_spark_job_to_this_stack(settings: Settings) -> None:
    code = (
        "from pyspark.sql import SparkSession as S; import os;"
        "s = S.builder.master(os.environ['SPARK_MASTER']).getOrCreate();"
        "s.range(1000).write.parquet(os.environ['HDFS_URL'] + '/data/numbers');"
        "print('rows', s.read.parquet(os.environ['HDFS_URL'] + '/data/numbers').count(), s.version)"
    )
    exports = run(settings, "env").stdout
    shell = f'{exports}\nexec {sys.executable} -c "{code}"'
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "JAVA_HOME")}
    done = subprocess.run(
        ["bash", "-c", shell], env=clean, capture_output=True, text=True, check=False, cwd=settings.var
    )
    assert "rows 1000" in done.stdout, done.stderr
    assert "NativeCodeLoader" not in done.stderr


@pytest.mark.parametrize("service", [KAFKA, DATANODE], ids=lambda service: service.name)
def test_up_heals_a_service_that_was_killed(service: Service, settings: Settings) -> None:
    before = pids(settings)
    kill(service, settings)
    assert run(settings, "status").returncode == 1
    assert [f.what for f in doctor.examine(settings) if f.what == f"{service.name}: died"]
    done = run(settings, "up")
    assert done.returncode == 0, done.stderr
    after = pids(settings)
    assert {name for name in after if after[name] != before[name]} == {service.name}
    assert run(settings, "status").returncode == 0


def test_data_survives_down_and_up_and_down_leaves_no_process(settings: Settings) -> None:
    client = probes.hdfs_client(settings)
    with client.create("/data/kept") as file:
        file.write(b"still here")
    ask_kafka(settings, lambda admin: admin.create_topics([NewTopic("kept", 3, 1)]))
    done = run(settings, "down")
    assert done.returncode == 0, done.stdout
    assert processes_of(settings) == []
    assert set(pids(settings).values()) == {None}
    done = run(settings, "up")
    assert done.returncode == 0, done.stderr
    assert probes.hdfs_client(settings).read("/data/kept").read() == b"still here"
    assert "kept" in ask_kafka(settings, lambda admin: admin.list_topics())


def test_two_stacks_live_side_by_side_and_reset_wipes_one(settings: Settings, tmp_path: Path) -> None:
    other = lifecycle.up(load({"HIGHWATER_VAR": str(tmp_path)}), free=True)
    try:
        assert not set(other.ports.values()) & set(settings.ports.values())
        assert run(other, "status").returncode == 0
        done = run(other, "reset", "--yes")
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / "data").exists()
        assert processes_of(other) == []
        assert run(settings, "status").returncode == 0
    finally:
        lifecycle.down(other)


def test_up_names_the_datanode_when_its_blocks_belong_to_another_namenode(settings: Settings) -> None:
    version = settings.data / "dn" / "current" / "VERSION"
    assert run(settings, "down").returncode == 0
    kept = version.read_text()
    version.write_text(re.sub(r"clusterID=.*", "clusterID=CID-other", kept))
    try:
        began = time.monotonic()
        done = run(settings, "up")
        assert done.returncode == 2
        assert re.search(r"^datanode: ended while starting; see .*datanode\.log", done.stderr, re.MULTILINE)
        assert "Incompatible clusterIDs" in done.stderr
        assert time.monotonic() - began < lifecycle.DEADLINE
    finally:
        version.write_text(kept)
    assert run(settings, "up").returncode == 0
