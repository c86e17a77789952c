"""What does each server read? Renders var/conf from hadoop.env and conf/, the very files that Compose uses.

Only host names, ports and folders differ from those files; every other value is taken as it stands.

    python -m stack.config container FOLDER     Spark's configuration for the containers; the Dockerfile runs this
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from stack.settings import HOST, ROOT, Settings, StackError

HADOOP_FILES = ("core-site.xml", "hdfs-site.xml")
SERVER_LOG = "log4j.rootLogger=INFO, console\n"
TOOLS_LOG = "log4j.rootLogger=ERROR, console\n"  # an INFO line would garble the tables that tools print
APPENDER = (
    "log4j.appender.console=org.apache.log4j.ConsoleAppender\n"
    "log4j.appender.console.target=System.err\n"
    "log4j.appender.console.layout=org.apache.log4j.PatternLayout\n"
    "log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n\n"
)
CASSANDRA_LOG = """<configuration>
  <appender name="STDERR" class="ch.qos.logback.core.ConsoleAppender">
    <target>System.err</target>
    <encoder><pattern>%date{ISO8601} %level %logger{20}: %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="STDERR"/></root>
</configuration>
"""


def write_config(settings: Settings) -> None:
    """Write the configuration of all services below var/conf."""
    for name, text in render(settings).items():
        path = settings.conf / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            partial = path.with_name(path.name + ".partial")
            partial.write_text(text)
            partial.replace(path)


def render(settings: Settings) -> dict[str, str]:
    """Return path below var/conf → content."""
    hadoop = hadoop_properties((settings.root / "hadoop.env").read_text(), settings)
    spark = settings.root / "conf"
    return {
        "kafka/zoo.cfg": _properties(zookeeper_properties(settings)),
        "kafka/server.properties": _properties(
            kafka_properties((settings.root / "conf" / "kafka.env").read_text(), settings)
        ),
        "kafka/log4j.properties": SERVER_LOG + APPENDER,
        "tools/log4j.properties": TOOLS_LOG + APPENDER,
        **{f"hadoop/{name}": _xml(hadoop[name]) for name in HADOOP_FILES},
        "hadoop/log4j.properties": SERVER_LOG + APPENDER,
        "cassandra/cassandra.yaml": json.dumps(cassandra_properties(settings), indent=1),  # JSON is YAML
        "cassandra/logback.xml": CASSANDRA_LOG,
        "spark/spark-defaults.conf": spark_defaults((spark / "spark-defaults.conf").read_text(), settings),
        "spark/log4j2.properties": (spark / "log4j2.properties").read_text(),
        "spark/metrics.properties": (spark / "metrics.properties").read_text(),
        # A user who was chosen stays: the layers find this file also when they work for the containers of Compose.
        "spark/spark-env.sh": "".join(
            f'export {name}="${{{name}:-{value}}}"\n' if name == "HADOOP_USER_NAME" else f"export {name}='{value}'\n"
            for name, value in spark_environment(settings).items()
        ),
    }


def hadoop_properties(text: str, settings: Settings) -> dict[str, dict[str, str]]:
    """Read hadoop.env and put native addresses and folders in. Returns file → key → value.

    Raises:
        StackError: a line that the apache/hadoop image would not understand.
    """
    files: dict[str, dict[str, str]] = {name: {} for name in HADOOP_FILES}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"([A-Z-]+\.XML)_([^=]+)=(.*)", line.strip())
        if not match or match[1].lower() not in files:
            raise StackError(
                f"hadoop.env line {number}: {line!r} is not CORE-SITE.XML_key=value or HDFS-SITE.XML_key=value"
            )
        files[match[1].lower()][match[2]] = match[3]
    files["core-site.xml"] |= {
        "fs.defaultFS": settings.hdfs_url,
        "hadoop.tmp.dir": str(settings.tmp / "hadoop"),
    }
    files["hdfs-site.xml"] |= {
        "dfs.namenode.name.dir": (settings.data / "nn").as_uri(),
        "dfs.datanode.data.dir": (settings.data / "dn").as_uri(),
        "dfs.namenode.rpc-bind-host": HOST,
        "dfs.namenode.http-address": f"{HOST}:{settings.port('NAMENODE_UI_PORT')}",
        "dfs.datanode.address": f"{HOST}:{settings.port('DATANODE_PORT')}",
        "dfs.datanode.http.address": f"{HOST}:{settings.port('DATANODE_HTTP_PORT')}",
        "dfs.datanode.ipc.address": f"{HOST}:{settings.port('DATANODE_IPC_PORT')}",
        "dfs.datanode.hostname": "localhost",
    }
    return files


def kafka_properties(text: str, settings: Settings) -> dict[str, str]:
    """Read conf/kafka.env (KAFKA_A_B=v is a.b=v) and put native addresses and folders in."""
    pairs = (line.split("=", 1) for line in text.splitlines() if line.startswith("KAFKA_"))
    properties = {name.removeprefix("KAFKA_").lower().replace("_", "."): value.strip() for name, value in pairs}
    return properties | {
        "zookeeper.connect": f"{HOST}:{settings.port('ZOOKEEPER_PORT')}",
        "listeners": f"PLAINTEXT://{HOST}:{settings.port('KAFKA_PORT')}",
        "advertised.listeners": f"PLAINTEXT://localhost:{settings.port('KAFKA_PORT')}",
        "log.dirs": str(settings.data / "kafka"),
    }


def zookeeper_properties(settings: Settings) -> dict[str, str]:
    """ZooKeeper on loopback. Its admin server would take 8080 on all addresses, so it is off."""
    return {
        "dataDir": str(settings.data / "zk"),
        "clientPort": str(settings.port("ZOOKEEPER_PORT")),
        "clientPortAddress": HOST,
        "tickTime": "1000",  # ZooKeeper grants no session timeout below 2 ticks; Kafka asks for 3000 ms
        "admin.enableServer": "false",
        "4lw.commands.whitelist": "srvr,ruok",
        "autopurge.snapRetainCount": "3",
        "autopurge.purgeInterval": "24",
    }


def cassandra_properties(settings: Settings) -> dict[str, Any]:
    """One node on loopback. A write is answered once the commit log is on disk, so a pointer that moved stays moved."""
    folder = settings.data / "cassandra"
    seeds = {"seeds": f"{HOST}:{settings.port('CASSANDRA_INTERNODE_PORT')}"}
    return {
        "cluster_name": "highwater",
        "num_tokens": 4,
        "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
        "endpoint_snitch": "SimpleSnitch",
        "seed_provider": [{"class_name": "org.apache.cassandra.locator.SimpleSeedProvider", "parameters": [seeds]}],
        "listen_address": HOST,
        "storage_port": settings.port("CASSANDRA_INTERNODE_PORT"),
        "rpc_address": HOST,
        "start_native_transport": True,
        "native_transport_port": settings.port("CASSANDRA_PORT"),
        "data_file_directories": [str(folder / "data")],
        "commitlog_directory": str(folder / "commitlog"),
        "saved_caches_directory": str(folder / "saved_caches"),
        "hints_directory": str(folder / "hints"),
        "commitlog_sync": "batch",
        "commitlog_segment_size": "32MiB",
        "commitlog_total_space": "256MiB",
        "memtable_heap_space": "96MiB",
        "memtable_offheap_space": "96MiB",
        "concurrent_reads": 8,
        "concurrent_writes": 8,
        "auto_snapshot": False,
    }


def spark_defaults(template: str, settings: Settings) -> str:
    """The template with absolute paths, temporary folders below var/ and this stack's HDFS."""
    changed = {
        "spark.jars": ",".join(str(jar) for jar in sorted((settings.lib / "spark").glob("*.jar"))),
        "spark.hadoop.fs.defaultFS": settings.hdfs_url,
        "spark.executorEnv.PYTHONPATH": str(settings.root),
        "spark.executorEnv.HADOOP_USER_NAME": "hadoop",
        "spark.local.dir": str(settings.tmp / "spark"),
    }
    lines = []
    for line in template.splitlines():
        key, _, value = line.partition(" ")
        if key in changed:
            line = f"{key}  {changed.pop(key)}"
        elif key.endswith(".extraJavaOptions"):
            line = f"{key}  {value.strip()} -Djava.io.tmpdir={settings.tmp / 'spark-local'}"
        lines.append(line)
    return "\n".join([*lines, *(f"{key}  {value}" for key, value in changed.items()), ""])


def container_spark_defaults(template: str, lib: Path) -> str:
    """The template for containers: absolute jars, a driver that its executors reach, memory from the environment.

    Executors there share 2 GB: without the optimising compiler each needs some 50 MB less and is warm sooner.
    """
    # Without these two Spark takes the container's own address; without the others, SPARK_DRIVER_MEMORY and
    # SPARK_EXECUTOR_MEMORY.
    left_out = ("spark.driver.host", "spark.driver.bindAddress", "spark.driver.memory", "spark.executor.memory")
    jars = ",".join(str(jar) for jar in sorted((lib / "spark").glob("*.jar")))
    lines = [line for line in template.splitlines() if line.partition(" ")[0] not in (*left_out, "spark.jars")]
    lines = [
        f"{line} -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=160m"
        if line.startswith("spark.executor.extraJava")
        else line
        for line in lines
    ]
    own = (
        f"spark.jars  {jars}",
        "spark.master  spark://spark-master:7077",
        "spark.hadoop.fs.defaultFS  hdfs://namenode:9000",
    )
    return "\n".join([*lines, *own, ""])


def spark_environment(settings: Settings) -> dict[str, str]:
    """What Spark's scripts and daemons need in their environment, also when a user starts them by hand."""
    return {
        "SPARK_LOCAL_IP": HOST,  # the web pages would listen on all addresses without it
        "SPARK_LOCAL_DIRS": str(settings.tmp / "spark"),
        "SPARK_WORKER_DIR": str(settings.tmp / "spark-work"),
        "PYSPARK_PYTHON": settings.python,
        "HADOOP_USER_NAME": "hadoop",
    }


def spark_home() -> Path:
    """The folder of the installed PySpark, found without importing it.

    Raises:
        StackError: PySpark is not installed for this Python.
    """
    spec = importlib.util.find_spec("pyspark")
    if spec is None or not spec.submodule_search_locations:
        raise StackError("PySpark: not installed for this Python; run: make setup")
    return Path(spec.submodule_search_locations[0])


def main(argv: list[str]) -> int:
    """Write Spark's configuration for the containers into a folder."""
    if len(argv) != 2 or argv[0] != "container":
        print("python -m stack.config container FOLDER", file=sys.stderr)
        return 2
    source, target = ROOT / "conf", Path(argv[1])
    target.mkdir(parents=True, exist_ok=True)
    defaults = (source / "spark-defaults.conf").read_text()
    (target / "spark-defaults.conf").write_text(container_spark_defaults(defaults, ROOT / "lib"))
    for name in ("log4j2.properties", "metrics.properties"):
        (target / name).write_text((source / name).read_text())
    return 0


def _properties(pairs: dict[str, str]) -> str:
    return "".join(f"{key}={value}\n" for key, value in pairs.items())


def _xml(pairs: dict[str, str]) -> str:
    rows = (f"  <property><name>{escape(k)}</name><value>{escape(v)}</value></property>\n" for k, v in pairs.items())
    return f'<?xml version="1.0"?>\n<configuration>\n{"".join(rows)}</configuration>\n'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
