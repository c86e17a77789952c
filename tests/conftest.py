"""What all tiers share: a local Spark, and one native stack on free ports for the tests that need services."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parent.parent
# Of Spark, Hadoop, Kafka and Cassandra, whose clients and servers read the environment by themselves.
STRANGE = ("SPARK_", "PYSPARK_", "HADOOP_", "HDFS_", "KAFKA_", "CASSANDRA_")


def forget_surroundings() -> None:
    """Let no test, and no process of a test, inherit what the shell, `.env` or the parent say of another system.

    A shell may have run `eval "$(python -m stack env)"`; nohup, `&` in a script and some runners of CI ignore SIGINT,
    and so would all children. A proxy stays for those tests that build images, but not for loopback.
    """
    os.environ["HIGHWATER_ENV_FILE"] = os.devnull  # read where the settings are imported, below
    from domains import DOMAINS
    from engine.runtime.settings import SETTINGS
    from stack.settings import LAYER_PORTS, PORTS

    ours = {setting.name for setting in SETTINGS} | {name for domain in DOMAINS for name in domain.settings}
    ours |= {*PORTS, *LAYER_PORTS, "HIGHWATER_VAR", "STACK_CASSANDRA", "FAULT_RETRY_SECONDS"}
    for name in list(os.environ):
        if name in ours or (name.startswith(STRANGE) and not name.endswith("_IMAGE")):
            del os.environ[name]
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "localhost,127.0.0.1,::1")))
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


forget_surroundings()


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """A Spark without any service, set up like the layers' own."""
    from engine.runtime import settings
    from engine.runtime.session import spark_session

    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    os.environ["SPARK_CONF_DIR"] = str(ROOT / "conf")
    conf = {
        "spark.hadoop.fs.defaultFS": "file:///",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.jars": "",
    }
    session = spark_session("unit", settings.load({"spark_master": "local[2]"}, environ={}, env_file=None), conf)
    yield session
    session.stop()
    # A later session of this process (integration tests start the layers as processes) must not inherit this one.
    os.environ.pop("SPARK_CONF_DIR", None)


@dataclass(frozen=True)
class Stack:
    """A running native stack: the environment in which clients find it, and its folder."""

    env: dict[str, str]
    var: Path


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Real ZooKeeper, Kafka, HDFS and Spark on free ports; stopped and wiped at the end."""
    from stack import lifecycle
    from stack import settings as stack_settings
    from stack.services import environment

    var = tmp_path_factory.mktemp("stack")
    environ = {**os.environ, "HIGHWATER_VAR": str(var)}
    running = lifecycle.up(stack_settings.load(environ), free=True)
    try:
        yield Stack({**environment(running), "HIGHWATER_VAR": str(var), "PYTHONPATH": str(ROOT)}, var)
    finally:
        lifecycle.down(running)
        shutil.rmtree(var, ignore_errors=True)


@pytest.fixture(scope="session")
def cassandra(stack: Stack) -> Iterator[Stack]:
    """The same stack with a real Cassandra beside it, stopped at the end.

    Its jars are fetched where they are missing.
    """
    from stack import lifecycle, process
    from stack import settings as stack_settings
    from stack.services import CASSANDRA, environment

    settings = stack_settings.load({**os.environ, **stack.env}).with_cassandra()
    running = lifecycle.up(settings, free=True)
    try:
        yield replace(stack, env={**stack.env, **environment(running)})
    finally:
        process.stop(CASSANDRA.pid_file(running), lifecycle.PATIENCE)
