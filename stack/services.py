"""Which processes make the stack, how is each started, and what tells a client where they are?"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stack import probes
from stack.config import spark_environment, spark_home
from stack.java import find_java
from stack.settings import HOST, USER, Settings, load


@dataclass(frozen=True)
class Service:
    """One server process: its name in logs and commands, the settings of its ports, its probe and its web page."""

    name: str
    ports: tuple[str, ...]
    ready: Callable[[Settings], str]
    page: str = ""
    heap_mb: int = 512

    def pid_file(self, settings: Settings) -> Path:
        return settings.run / f"{self.name}.json"

    def log_file(self, settings: Settings) -> Path:
        return settings.log / f"{self.name}.log"

    def folder(self, settings: Settings) -> Path:
        """Its current and temporary folder: killed JVMs leave files there, and `reset` wipes them."""
        return settings.tmp / self.name

    def url(self, settings: Settings) -> str:
        """Its web page, or the address that clients use."""
        return self.page.format(**settings.ports)


ZOOKEEPER = Service("zookeeper", ("ZOOKEEPER_PORT",), probes.zookeeper, "localhost:{ZOOKEEPER_PORT}", heap_mb=256)
KAFKA = Service("kafka", ("KAFKA_PORT", "KAFKA_METRICS_PORT"), probes.kafka, "localhost:{KAFKA_PORT}")
NAMENODE = Service(
    "namenode", ("HDFS_PORT", "NAMENODE_UI_PORT"), probes.namenode, "http://localhost:{NAMENODE_UI_PORT}"
)
DATANODE = Service(
    "datanode",
    ("DATANODE_PORT", "DATANODE_HTTP_PORT", "DATANODE_IPC_PORT"),
    probes.datanode,
    "http://localhost:{DATANODE_HTTP_PORT}",
)
MASTER = Service(
    "spark-master",
    ("SPARK_MASTER_PORT", "SPARK_MASTER_UI_PORT"),
    probes.spark_master,
    "http://localhost:{SPARK_MASTER_UI_PORT}",
)
WORKER = Service(
    "spark-worker", ("SPARK_WORKER_UI_PORT",), probes.spark_worker, "http://localhost:{SPARK_WORKER_UI_PORT}"
)

CASSANDRA = Service(
    "cassandra", ("CASSANDRA_PORT", "CASSANDRA_INTERNODE_PORT"), probes.cassandra, "localhost:{CASSANDRA_PORT}"
)

SERVICES = (ZOOKEEPER, KAFKA, NAMENODE, DATANODE, MASTER, WORKER)
# Names of the shell that would lead a client of this stack to another Spark, Hadoop or Python.
LEFT_OVER = (
    "SPARK_HOME",
    "SPARK_DIST_CLASSPATH",
    "PYSPARK_DRIVER_PYTHON",
    "PYSPARK_DRIVER_PYTHON_OPTS",
    "PYSPARK_SUBMIT_ARGS",
    "HADOOP_HOME",
    "HADOOP_CONF_DIR",
    "YARN_CONF_DIR",
)
# For servers that only keep books: a quick start and few threads count more than peak speed.
SMALL_JVM = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
# Inside a chain the later needs the earlier; the chains know nothing of each other.
CHAINS = ((ZOOKEEPER, KAFKA), (NAMENODE, DATANODE), (MASTER, WORKER))

# What Cassandra 5 reaches into on Java 17: the JPMS part of its own conf/jvm17-server.options.
CASSANDRA_EXPORTS = (
    "java.base/java.lang.ref java.base/jdk.internal.misc java.management.rmi/com.sun.jmx.remote.internal.rmi "
    "java.rmi/sun.rmi.registry java.rmi/sun.rmi.server java.sql/java.sql jdk.attach/sun.tools.attach "
    "jdk.compiler/com.sun.tools.javac.file jdk.unsupported/sun.misc"
)
CASSANDRA_OPENS = (
    "java.base/java.io java.base/java.lang java.base/java.lang.module java.base/java.lang.reflect java.base/java.util "
    "java.base/jdk.internal.loader java.base/jdk.internal.math java.base/jdk.internal.module java.base/jdk.internal.ref "
    "java.base/jdk.internal.reflect java.base/jdk.internal.util.jar java.base/sun.nio.ch "
    "jdk.compiler/com.sun.tools.javac jdk.management/com.sun.management.internal"
)
# One node knows at once that nobody else is there, so it waits for no gossip.
CASSANDRA_OPTIONS = (
    *(f"--add-exports={package}=ALL-UNNAMED" for package in CASSANDRA_EXPORTS.split()),
    *(f"--add-opens={package}=ALL-UNNAMED" for package in CASSANDRA_OPENS.split()),
    "-Djdk.attach.allowAttachSelf=true",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dcassandra-foreground=yes",
    "-Dcassandra.native.epoll.enabled=false",
    "-Dcassandra.skip_wait_for_gossip_to_settle=0",
    "-Dcassandra.ring_delay_ms=1000",
)


def services(settings: Settings) -> tuple[Service, ...]:
    """The services of this stack."""
    return (*SERVICES, CASSANDRA) if settings.cassandra else SERVICES


def service_chains(settings: Settings) -> tuple[tuple[Service, ...], ...]:
    """The chains of this stack."""
    return (*CHAINS, (CASSANDRA,)) if settings.cassandra else CHAINS


def command(service: Service, settings: Settings) -> list[str]:
    """The command line of a service."""
    if service in (MASTER, WORKER):
        return [str(spark_home() / "bin" / "spark-class"), *_spark_arguments(service, settings)]
    arguments = {
        ZOOKEEPER: ("org.apache.zookeeper.server.quorum.QuorumPeerMain", str(settings.conf / "kafka/zoo.cfg")),
        KAFKA: ("kafka.Kafka", str(settings.conf / "kafka/server.properties")),
        NAMENODE: ("org.apache.hadoop.hdfs.server.namenode.NameNode",),
        DATANODE: ("org.apache.hadoop.hdfs.server.datanode.DataNode",),
        CASSANDRA: ("org.apache.cassandra.service.CassandraDaemon",),
    }[service]
    return [find_java().executable, *_java_options(service, settings), *arguments]


def format_command(settings: Settings) -> list[str]:
    """The command that makes an empty NameNode; it refuses to touch an existing one."""
    return [*command(NAMENODE, settings), "-format", "-nonInteractive"]


def service_environment(service: Service, settings: Settings) -> dict[str, str]:
    """The environment of a server: the caller's, less what would lead Spark or Hadoop elsewhere."""
    strange = ("SPARK_", "PYSPARK_", "HADOOP_", "HDFS_", "KAFKA_", "CASSANDRA_", "CLASSPATH", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    options = f"{SMALL_JVM} -Djava.net.preferIPv4Stack=true -Djava.io.tmpdir={service.folder(settings)}"
    return (
        kept
        | spark_environment(settings)
        | {
            "HADOOP_USER_NAME": USER,
            "SPARK_HOME": str(spark_home()),
            "SPARK_CONF_DIR": str(settings.conf / "spark"),
            "SPARK_DAEMON_MEMORY": f"{service.heap_mb}m",
            "SPARK_DAEMON_JAVA_OPTS": options,
            "SPARK_NO_DAEMONIZE": "1",
        }
    )


def left_over() -> list[str]:
    """Return the names of another Spark or Hadoop that are set in the environment."""
    return [name for name in LEFT_OVER if os.environ.get(name)]


def inherited() -> dict[str, str]:
    """Return the environment without what leads elsewhere; what `environment` gives comes on top."""
    return {name: value for name, value in os.environ.items() if name not in LEFT_OVER}


def environment(settings: Settings | None = None) -> dict[str, str]:
    """What a client of this stack needs in its environment; `python -m stack env` prints it."""
    settings = settings or load()
    return {
        "HIGHWATER_VAR": str(settings.var),
        "KAFKA_BOOTSTRAP_SERVERS": f"localhost:{settings.port('KAFKA_PORT')}",
        "HDFS_URL": settings.hdfs_url,
        "SPARK_MASTER": f"spark://localhost:{settings.port('SPARK_MASTER_PORT')}",
        "SPARK_CONF_DIR": str(settings.conf / "spark"),
        **{name: value for name, value in spark_environment(settings).items() if name != "SPARK_WORKER_DIR"},
        **({"CASSANDRA_CONTACT_POINTS": f"localhost:{settings.port('CASSANDRA_PORT')}"} if settings.cassandra else {}),
    }


def _java_options(service: Service, settings: Settings) -> list[str]:
    families = {ZOOKEEPER: "kafka", KAFKA: "kafka", CASSANDRA: "cassandra"}
    family = families.get(service, "hdfs")
    conf = settings.conf / ("hadoop" if family == "hdfs" else family)
    return [
        f"-Xmx{service.heap_mb}m",
        *(SMALL_JVM.split() if service in (ZOOKEEPER, CASSANDRA) else ()),
        *((_prometheus_agent(settings),) if service == KAFKA else ()),
        *(_cassandra_options(settings) if service == CASSANDRA else ()),
        "-Djava.net.preferIPv4Stack=true",
        f"-Djava.io.tmpdir={service.folder(settings)}",
        f"-Dhighwater.service={service.name}",  # tells a reader of `ps` whose java this is
        "-cp",
        f"{conf}:{settings.lib / family}/*",
    ]


def _prometheus_agent(settings: Settings) -> str:
    """Kafka has no page for Prometheus of its own; this agent serves its JMX numbers from inside, on loopback."""
    jar = max((settings.lib / "monitoring").glob("jmx_prometheus_javaagent-*.jar"))
    page = f"{HOST}:{settings.port('KAFKA_METRICS_PORT')}"
    return f"-javaagent:{jar}={page}:{settings.root / 'monitoring' / 'kafka-jmx.yml'}"


def _cassandra_options(settings: Settings) -> list[str]:
    """What its start script would say."""
    return [
        *CASSANDRA_OPTIONS,
        f"-Dcassandra.config={(settings.conf / 'cassandra' / 'cassandra.yaml').as_uri()}",
        f"-Dcassandra.storagedir={settings.data / 'cassandra'}",
        f"-Dcassandra.logdir={settings.log}",
    ]


def _spark_arguments(service: Service, settings: Settings) -> list[str]:
    port = str(settings.port("SPARK_MASTER_PORT"))
    if service == MASTER:
        page = str(settings.port("SPARK_MASTER_UI_PORT"))
        kind = "org.apache.spark.deploy.master.Master"
        return [kind, "--host", "localhost", "--port", port, "--webui-port", page]
    return [
        "org.apache.spark.deploy.worker.Worker",
        *("--host", "localhost"),
        *("--cores", str(settings.worker_cores)),
        *("--memory", settings.worker_memory),
        *("--webui-port", str(settings.port("SPARK_WORKER_UI_PORT"))),
        f"spark://localhost:{port}",
    ]
