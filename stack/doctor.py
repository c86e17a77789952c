"""What would fail, or already does, and which one command mends it? Looks only; changes nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stack import clusters, jars, lifecycle, ports, probes, process
from stack.java import JavaError, find_java
from stack.services import DATANODE, KAFKA, NAMENODE, ZOOKEEPER, Service, left_over, services
from stack.settings import Settings

OLDEST_PYTHON = (3, 11)
LEAST_MEMORY_GB = 4.0  # six servers take about 1.5 GB, each layer's driver and executor about 1 GB
LEAST_DISK_GB = 5.0
RESET = "python -m stack reset    # wipes all data; keep a copy of the folder if it matters"


@dataclass(frozen=True)
class Finding:
    """Something wrong: what, how we know, and the one command that mends it."""

    what: str
    evidence: str
    fix: str


def examine(settings: Settings) -> list[Finding]:
    """Return all findings, those that cause others first."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        check_java,
        check_python,
        check_driver,
        check_paths,
        check_left_over,
        check_jars,
        check_ports,
        check_memory,
        check_disk,
        check_cluster_ids,
        check_broker_id,
        check_services,
        check_safe_mode,
        check_listener,
    )
    return [finding for check in checks for finding in check(settings)]


def check_java(settings: Settings) -> Iterator[Finding]:
    """Java is there and new enough for Spark 4."""
    try:
        find_java()
    except JavaError as error:
        evidence, _, fix = str(error).rpartition("; ")
        yield Finding("Java: missing or too old", evidence, fix)


def check_python(settings: Settings, version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    """Python is new enough."""
    if version < OLDEST_PYTHON:
        found = ".".join(map(str, version))
        yield Finding("Python: too old", f"{sys.executable} is {found}, needed is 3.11", "make setup PYTHON=python3.11")


def check_driver(settings: Settings) -> Iterator[Finding]:
    """Whoever has Cassandra in the stack has its driver."""
    if reason := lifecycle.driver_missing(settings):
        what, _, fix = reason.partition("; run: ")
        yield Finding(what, f"no package cassandra for {sys.executable}", fix)


def check_paths(settings: Settings) -> Iterator[Finding]:
    """Java can work in the folders of the stack."""
    if reason := lifecycle.path_refused(settings):
        evidence, _, fix = reason.rpartition("; ")
        yield Finding("folders: not for Java", evidence, fix.removeprefix("run: "))


def check_left_over(settings: Settings) -> Iterator[Finding]:
    """A script that is started by hand finds the installed Spark."""
    python = os.environ.get("PYSPARK_PYTHON", settings.python)
    for name in [*left_over(), *(["PYSPARK_PYTHON"] if python != settings.python else [])]:
        evidence = f"{name}={os.environ[name]}; spark-submit, and a script started by hand, would follow it"
        yield Finding(f"environment: {name} is of another system", evidence, f"unset {name}")


def check_jars(settings: Settings) -> Iterator[Finding]:
    """Every jar of the lock is in lib/, and nothing else."""
    lock = jars.read_lock()
    try:
        jars.verify(settings.lib, lock, stamp=False)
    except jars.JarError as error:
        evidence, _, fix = str(error).rpartition("; ")
        yield Finding("jars: a file in lib/ is not the one in stack/jars.lock", evidence, fix.partition(": ")[2])
    if absent := jars.missing(settings.lib, jars.wanted(lock, lifecycle.jars_of(settings))):
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        yield Finding("jars: missing", f"{settings.lib / absent[0]} is not there{more}", "python -m stack jars")


def check_ports(settings: Settings) -> Iterator[Finding]:
    """Services that do not run would get their ports."""
    for service, name, port in lifecycle.port_conflicts(settings):
        holder = ports.owner(port)
        who = f"pid {holder[0]}: {holder[1]}" if holder else "a process that this user may not look at"
        fix = f"kill {holder[0]}" if holder else f"export {name}=<a free port>"
        yield Finding(
            f"{service.name}: its port is taken",
            f"{name}={port} is held by {who}",
            f"{fix}    # or: python -m stack up --free-ports",
        )


def check_memory(settings: Settings, meminfo: Path = Path("/proc/meminfo")) -> Iterator[Finding]:
    """Enough memory for the services that do not run yet."""
    if not _stopped(settings) or not meminfo.exists():
        return
    lines = (line.split() for line in meminfo.read_text().splitlines())
    free = next((int(words[1]) / 2**20 for words in lines if words[0] == "MemAvailable:"), LEAST_MEMORY_GB)
    if free < LEAST_MEMORY_GB:
        yield Finding(
            "memory: too little",
            f"{free:.1f} GB available, needed are {LEAST_MEMORY_GB:.0f}",
            "ps aux --sort -rss | head",
        )


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Enough disk where the data goes."""
    folder = next(path for path in (settings.var, *settings.var.parents) if path.exists())
    free = shutil.disk_usage(folder).free / 2**30
    if free < LEAST_DISK_GB:
        evidence = f"{free:.1f} GB free below {settings.var}, needed are {LEAST_DISK_GB:.0f}"
        yield Finding("disk: too little", evidence, "export HIGHWATER_VAR=<a folder on a larger disk>")


def check_services(settings: Settings) -> Iterator[Finding]:
    """No service died: a pid file without its process is the trace of a crash, `down` removes it."""
    for service in services(settings):
        if service.pid_file(settings).exists() and not _runs(service, settings):
            said = lifecycle.complaints(process.tail(service.log_file(settings), 200))
            last = said[-1] if said else "nothing"
            yield Finding(
                f"{service.name}: died", f"{service.log_file(settings)} ends with: {last[:200]}", "python -m stack up"
            )
        elif _runs(service, settings) and service is not NAMENODE and (reason := service.ready(settings)):
            evidence = f"see {service.log_file(settings)}"
            yield Finding(f"{service.name}: runs, but {reason}", evidence, "python -m stack down && python -m stack up")


def check_safe_mode(settings: Settings) -> Iterator[Finding]:
    """The NameNode takes writes."""
    if not _runs(NAMENODE, settings) or not (reason := probes.namenode(settings)):
        return
    if "safe mode" not in reason:
        yield Finding(f"namenode: runs, but {reason}", f"see {NAMENODE.log_file(settings)}", "python -m stack up")
        return
    if not _runs(DATANODE, settings):
        yield Finding(
            "namenode: in safe mode, it waits for a DataNode", f"it {reason}; no datanode runs", "python -m stack up"
        )
        return
    said = " ".join(probes.namenode_safe_mode(settings).split())
    if "manually" not in said:  # leaving it now would hide lost blocks, or a full disk
        fix = (
            f"df -h {settings.data}    (free 1 GB)"
            if "resources" in said
            else f"tail -50 {DATANODE.log_file(settings)}"
        )
        yield Finding("namenode: in safe mode, it waits for blocks or space", f"it {reason}: {said[:250]}", fix)
        return
    conf, lib = settings.conf / "hadoop", settings.lib / "hdfs"
    fix = f"java -cp '{conf}:{lib}/*' org.apache.hadoop.hdfs.tools.DFSAdmin -safemode leave"
    yield Finding("namenode: in safe mode, nothing can be written", f"it {reason}", f"HADOOP_USER_NAME=hadoop {fix}")


def check_cluster_ids(settings: Settings) -> Iterator[Finding]:
    """The DataNode's blocks belong to this NameNode."""
    name, data = clusters.hdfs_ids(settings)
    folders = f"{settings.data / 'nn'} and {settings.data / 'dn'}"
    if data and not name:
        yield Finding(
            "hdfs: the NameNode's folder is empty, the DataNode's is not", f"current/VERSION in {folders}", RESET
        )
    elif data and name != data:
        evidence = f"clusterID is {name} in the first and {data} in the second of {folders}"
        yield Finding("hdfs: the blocks belong to another NameNode, the DataNode will not start", evidence, RESET)


def check_broker_id(settings: Settings) -> Iterator[Finding]:
    """Kafka's log belongs to the cluster that ZooKeeper knows; else the broker refuses to start."""
    ours, folders = clusters.kafka_id(settings), f"{settings.data / 'kafka'} and {settings.data / 'zk'}"
    if not ours:
        return
    if clusters.zookeeper_is_empty(settings):
        yield Finding("kafka: ZooKeeper's folder is empty, Kafka's log is not", f"see {folders}", RESET)
    elif _runs(ZOOKEEPER, settings):
        with suppress(OSError):  # a ZooKeeper that does not answer is a finding of check_services
            known = clusters.zookeeper_kafka_id(settings)
            if known != ours:
                evidence = f"cluster.id is {ours} in the first and {known or 'not known'} in the second of {folders}"
                yield Finding("kafka: its log belongs to another cluster, it will not start", evidence, RESET)


def check_listener(settings: Settings) -> Iterator[Finding]:
    """The address that the broker tells its clients can be reached."""
    if not _runs(KAFKA, settings):
        return
    try:
        brokers = clusters.kafka_advertised(settings)
    except OSError:  # a ZooKeeper that does not answer is a finding of check_services
        return
    for host, port in brokers:
        if wrong := probes.reachable(host, port):
            file = settings.conf / "kafka" / "server.properties"
            evidence = f"the broker tells its clients {host}:{port} (advertised.listeners in {file}), which {wrong}"
            yield Finding(
                "kafka: its advertised listener is out of reach", evidence, "python -m stack down && python -m stack up"
            )


def _runs(service: Service, settings: Settings) -> bool:
    return process.running_pid(service.pid_file(settings)) is not None


def _stopped(settings: Settings) -> list[Service]:
    return [service for service in services(settings) if not _runs(service, settings)]
