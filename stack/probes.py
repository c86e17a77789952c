"""Does a service answer a real request? An open port is not an answer: servers open it long before they can serve.

Each probe returns "" when the service is ready, else one line saying what it said instead. None of them raises.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from stack.settings import HOST, USER, Settings

PATIENCE = 3.0  # seconds for one request
LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the shell names


def zookeeper(settings: Settings) -> str:
    """Ask `ruok`, expect `imok`."""
    return _said(lambda: "" if _four_letters(settings, b"ruok") == b"imok" else "does not answer imok to ruok")


def kafka(settings: Settings) -> str:
    """Ask the broker to describe its cluster."""
    return _said(lambda: "" if kafka_brokers(settings) else "knows no broker yet")


def namenode(settings: Settings) -> str:
    """Read the file system's state over JMX; Operational means out of safe mode."""

    def ask() -> str:
        state = namenode_state(settings)
        return "" if state["FSState"] == "Operational" else f"is in safe mode ({state['FSState']})"

    return _said(ask)


def datanode(settings: Settings) -> str:
    """Write, read and delete a small file: the NameNode calls a dead DataNode live for another 40 s."""

    def ask() -> str:
        if namenode_state(settings)["NumLiveDataNodes"] < 1:
            return "is not registered at the NameNode yet"
        if refused := _said(lambda: _connect(HOST, settings.port("DATANODE_PORT"))):
            return refused
        client, path, content = hdfs_client(settings), f"/.stack-probe-{uuid.uuid4().hex}", uuid.uuid4().bytes
        try:
            with client.create(path) as file:
                file.write(content)
            return "" if client.read(path).read() == content else "gave back another probe file than was written"
        finally:
            with suppress(Exception):
                client.delete(path)

    return _said(ask)


def spark_master(settings: Settings) -> str:
    """Read the master's own JSON page."""

    def ask() -> str:
        status = _json(settings.port("SPARK_MASTER_UI_PORT"), "/json/")["status"]
        return "" if status == "ALIVE" else f"says {status}"

    return _said(ask)


def spark_worker(settings: Settings) -> str:
    """Ask the master whether it has a worker, and the worker whether it runs."""

    def ask() -> str:
        if _json(settings.port("SPARK_MASTER_UI_PORT"), "/json/")["aliveworkers"] < 1:
            return "is not registered at the master yet"
        worker = _json(settings.port("SPARK_WORKER_UI_PORT"), "/json/")
        return "" if worker["masterurl"].endswith(f":{settings.port('SPARK_MASTER_PORT')}") else "serves another master"

    return _said(ask)


def cassandra(settings: Settings) -> str:
    """Ask, in CQL, which release it is."""

    def ask() -> str:
        _connect(HOST, settings.port("CASSANDRA_PORT"))  # the client below would log while the port is closed
        from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile  # only needed here
        from cassandra.policies import RoundRobinPolicy

        profile = ExecutionProfile(RoundRobinPolicy(), request_timeout=PATIENCE)
        with _quiet("cassandra"):
            cluster = Cluster(
                [HOST],
                port=settings.port("CASSANDRA_PORT"),
                connect_timeout=PATIENCE,
                control_connection_timeout=PATIENCE,
                execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            )
            try:
                row = cluster.connect().execute("SELECT release_version FROM system.local").one()
                return "" if row else "does not know its release yet"
            finally:
                cluster.shutdown()

    return _said(ask)


def namenode_state(settings: Settings) -> dict[str, Any]:
    """The NameNode's FSNamesystemState bean: FSState, NumLiveDataNodes, CapacityRemaining and more."""
    beans = _json(settings.port("NAMENODE_UI_PORT"), "/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState")["beans"]
    if not beans:
        raise OSError("does not publish its state yet")
    state: dict[str, Any] = beans[0]
    return state


def namenode_safe_mode(settings: Settings) -> str:
    """The NameNode's own sentence on why it is in safe mode, "" when it is not."""
    beans = _json(settings.port("NAMENODE_UI_PORT"), "/jmx?qry=Hadoop:service=NameNode,name=NameNodeInfo")["beans"]
    return str(beans[0]["Safemode"]) if beans else ""


def kafka_brokers(settings: Settings) -> list[tuple[str, int]]:
    """The addresses that the broker advertises. Connects by loopback, whatever they are."""
    port = settings.port("KAFKA_PORT")
    _connect(HOST, port)  # the client below would wait, and log, while the port is closed
    from kafka import KafkaAdminClient  # slow to import, and only needed here

    with _quiet("kafka"):
        admin = KafkaAdminClient(
            bootstrap_servers=f"{HOST}:{port}",
            bootstrap_timeout_ms=1000,
            request_timeout_ms=int(PATIENCE * 1000),
        )
        try:
            return [(broker["host"], int(broker["port"])) for broker in admin.describe_cluster()["brokers"]]
        finally:
            admin.close()


def hdfs_client(settings: Settings) -> Any:
    """A client of this stack's HDFS, as the user that owns it."""
    os.environ["HADOOP_USER_NAME"] = USER  # the only way to tell hdfs-native
    from hdfs_native import Client  # only needed here

    return Client(settings.hdfs_url, {"dfs.client.use.datanode.hostname": "true", "dfs.replication": "1"})


def reachable(host: str, port: int) -> str:
    """Whether a TCP connection to this name and port succeeds: "" or why not."""
    return _said(lambda: _connect(host, port))


def _said(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except ConnectionRefusedError:
        return "refuses connections"
    except Exception as error:  # whatever a half-started server does, it is not ready
        return f"does not answer ({type(error).__name__}: {' '.join(str(error).split())[:160]})"


def _connect(host: str, port: int) -> str:
    socket.create_connection((host, port), timeout=PATIENCE).close()
    return ""


def _four_letters(settings: Settings, word: bytes) -> bytes:
    with socket.create_connection((HOST, settings.port("ZOOKEEPER_PORT")), timeout=PATIENCE) as connection:
        connection.sendall(word)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def _json(port: int, path: str) -> Any:
    with LOOPBACK.open(f"http://{HOST}:{port}{path}", timeout=PATIENCE) as answer:
        return json.load(answer)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
