"""Do the data folders belong together? Each cluster has an id, and servers refuse folders of another one.

Half of a stack that was wiped, or restored from a backup, shows here before any data is lost.
"""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path

from stack.settings import HOST, Settings

ZOOKEEPER_GET_DATA = 4  # request types of ZooKeeper's protocol, from its ZooDefs.OpCode
ZOOKEEPER_NO_NODE = -101


def hdfs_ids(settings: Settings) -> tuple[str, str]:
    """The cluster ids in the folders of NameNode and DataNode, "" for an empty folder."""
    name, data = (_property(settings.data / d / "current" / "VERSION", "clusterID") for d in ("nn", "dn"))
    return name, data


def kafka_id(settings: Settings) -> str:
    """The cluster id in the broker's folder, "" for an empty one."""
    return _property(settings.data / "kafka" / "meta.properties", "cluster.id")


def zookeeper_is_empty(settings: Settings) -> bool:
    """Whether ZooKeeper's folder holds neither a snapshot nor a transaction log."""
    return not any((settings.data / "zk" / "version-2").glob("*"))


def zookeeper_kafka_id(settings: Settings) -> str:
    """The cluster id that ZooKeeper holds for Kafka, "" if it holds none.

    Raises:
        OSError: ZooKeeper does not answer.
    """
    text = read_node(settings.port("ZOOKEEPER_PORT"), "/cluster/id").decode()
    return text.partition('"id":"')[2].partition('"')[0]


def kafka_advertised(settings: Settings) -> list[tuple[str, int]]:
    """The addresses that the broker registered and tells its clients, also those that no client could use.

    Not from the broker's metadata: its own controller cannot reach a dead address either, and then serves none.

    Raises:
        OSError: ZooKeeper does not answer.
    """
    broker = _property(settings.data / "kafka" / "meta.properties", "broker.id")
    registered = json.loads(read_node(settings.port("ZOOKEEPER_PORT"), f"/brokers/ids/{broker}") or b"{}")
    addresses = (endpoint.partition("://")[2].rpartition(":") for endpoint in registered.get("endpoints", []))
    return [(host, int(port)) for host, _, port in addresses]


def read_node(port: int, path: str) -> bytes:
    """Return the data of a ZooKeeper node, b"" if it is not there; the protocol's connect and getData, nothing else."""
    with socket.create_connection((HOST, port), timeout=3) as connection:
        _send(connection, struct.pack(">iqiq", 0, 0, 5000, 0) + _buffer(bytes(16)))
        _receive(connection)
        _send(connection, struct.pack(">ii", 1, ZOOKEEPER_GET_DATA) + _buffer(path.encode()) + b"\0")
        answer = _receive(connection)
    _, _, error = struct.unpack(">iqi", answer[:16])
    if error == ZOOKEEPER_NO_NODE:
        return b""
    if error:
        raise OSError(f"ZooKeeper answers error {error} for {path}")
    (length,) = struct.unpack(">i", answer[16:20])
    return answer[20 : 20 + max(length, 0)]


def _buffer(content: bytes) -> bytes:
    return struct.pack(">i", len(content)) + content


def _send(connection: socket.socket, content: bytes) -> None:
    connection.sendall(_buffer(content))


def _receive(connection: socket.socket) -> bytes:
    (length,) = struct.unpack(">i", _exactly(connection, 4))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        piece = connection.recv(count - len(content))
        if not piece:
            raise ConnectionError("ZooKeeper closed the connection")
        content += piece
    return content


def _property(path: Path, key: str) -> str:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return ""
    return next((line.partition("=")[2].strip() for line in lines if line.startswith(f"{key}=")), "")
