"""Translate ZOOKEEPER_* or KAFKA_* into a properties file as Confluent's images do, then become that server."""

import os
from pathlib import Path

# Names of the images' own start scripts, which are no properties.
NOT_PROPERTIES = (
    "KAFKA_HEAP_OPTS",
    "KAFKA_OPTS",
    "KAFKA_JVM_PERFORMANCE_OPTS",
    "KAFKA_JMX_PORT",
    "KAFKA_JMX_HOSTNAME",
    "KAFKA_JMX_OPTS",
)
# ZooKeeper's properties are camel case; the image's template knows them one by one.
CAMEL = {
    "CLIENT_PORT": "clientPort",
    "TICK_TIME": "tickTime",
    "AUTOPURGE_SNAP_RETAIN_COUNT": "autopurge.snapRetainCount",
    "AUTOPURGE_PURGE_INTERVAL": "autopurge.purgeInterval",
}


def zookeeper() -> tuple[str, dict[str, str]]:
    given = {CAMEL[k.removeprefix("ZOOKEEPER_")]: v for k, v in os.environ.items() if k.startswith("ZOOKEEPER_")}
    folders = {"dataDir": "/var/lib/zookeeper/data", "dataLogDir": "/var/lib/zookeeper/log"}
    return "org.apache.zookeeper.server.quorum.QuorumPeerMain", folders | given


def kafka() -> tuple[str, dict[str, str]]:
    names = [name for name in os.environ if name.startswith("KAFKA_") and name not in NOT_PROPERTIES]
    given = {name.removeprefix("KAFKA_").lower().replace("_", "."): os.environ[name] for name in names}
    return "kafka.Kafka", {"log.dirs": "/var/lib/kafka/data"} | given


server, properties = zookeeper() if "ZOOKEEPER_CLIENT_PORT" in os.environ else kafka()
file = Path("/tmp/server.properties")
file.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
options = f"{os.environ.get('KAFKA_HEAP_OPTS', '')} {os.environ.get('KAFKA_OPTS', '')}".split()
if port := os.environ.get("KAFKA_JMX_PORT"):
    host = os.environ.get("KAFKA_JMX_HOSTNAME", "localhost")
    jmx = {"port": port, "rmi.port": port, "authenticate": "false", "ssl": "false"}
    options += [
        f"-Djava.rmi.server.hostname={host}",
        *(f"-Dcom.sun.management.jmxremote.{k}={v}" for k, v in jmx.items()),
    ]
os.execvp("java", ["java", *options, "-cp", "/etc/standin:/usr/share/java/kafka/*", server, str(file)])
