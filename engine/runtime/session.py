"""How does a layer get its Spark? One session, in UTC, with our code on the executors.

What a user may override stands in `conf/spark-defaults.conf`; only what correctness needs is set here.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import structlog
from pyspark.sql import DataFrame, SparkSession

from engine.runtime import kafka
from engine.runtime.settings import Settings

ROOT = Path(__file__).resolve().parents[2]

# Pieces of one run that are under way at once: while the driver plans one, the executors work on another.
AT_ONCE = 3

T = TypeVar("T")
_HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
_log = structlog.get_logger("engine.runtime.session")


def spark_session(name: str, settings: Settings, conf: dict[str, str] | None = None) -> SparkSession:
    """Start (or join, under spark-submit) a Spark application whose sessions run in UTC."""
    os.environ.setdefault("HADOOP_USER_NAME", settings.hadoop_user_name)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName(name)
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # started by `python`, not by spark-submit
        if "SPARK_CONF_DIR" not in os.environ and (ROOT / "var/conf/spark/spark-defaults.conf").exists():
            os.environ["SPARK_CONF_DIR"] = str(ROOT / "var/conf/spark")
        jars = sorted(map(str, (ROOT / "lib/spark").glob("*.jar")))
        if jars:
            builder = builder.config("spark.jars", ",".join(jars))
        builder = builder.master(settings.spark_master)
    fixed = {
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
        "spark.sql.parquet.compression.codec": "zstd",
        "spark.sql.sources.partitionColumnTypeInference.enabled": "false",
        "spark.hadoop.mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
        "spark.hadoop.fs.defaultFS": settings.hdfs_url,
        "spark.hadoop.dfs.client.use.datanode.hostname": "true",
        # A file is complete once its DataNode has reported the block, a few ms after the last byte; the client's first
        # question comes too early nearly every time, and by default it waits 400 ms before the second.
        "spark.hadoop.dfs.client.block.write.locateFollowingBlock.initial.delay.ms": "10",
        "spark.hadoop.dfs.client.block.write.locateFollowingBlock.retries": "12",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.warehouse.dir": _warehouse(),
        "spark.ui.showConsoleProgress": "false",
        **(conf or {}),
    }
    for key, value in fixed.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    if spark.conf.get("spark.sql.shuffle.partitions") == "200":  # nobody chose: as many tasks as there are cores
        spark.conf.set("spark.sql.shuffle.partitions", str(max(2, spark.sparkContext.defaultParallelism)))
    spark.sparkContext.addPyFile(_our_code())
    return spark


def with_any_time(
    rows: DataFrame,
    reader: kafka.Reader,
    ranges: Mapping[tuple[str, int], tuple[int | None, int]],
    work: Callable[[DataFrame], T],
) -> T:
    """Return what `work` makes of a micro-batch, whatever times its records have.

    Spark's source turns a record's milliseconds into microseconds, and ends the job where these need more than 64 bits:
    a sender of nanoseconds would stop a layer for good. Such a micro-batch is read again without Spark's source, and
    the time is stored as the longest there is.

    Args:
        rows: as Spark's Kafka source gives them.
        ranges: (topic, partition) → start (None: where Kafka begins) and end of what they hold.
    """
    try:
        return work(rows)
    except Exception as error:
        if "long overflow" not in str(error):
            raise
    told = reader.state({topic for topic, _ in ranges})
    starts = {
        place: told[place[0]].partitions[place[1]].start if start is None else start
        for place, (start, _) in ranges.items()
    }
    _log.warning("a record's time is beyond Spark's", topics=sorted(told))
    records = [
        record for (topic, p), (_, end) in ranges.items() for record in reader.records(topic, p, starts[topic, p], end)
    ]
    return work(rows.sparkSession.createDataFrame(as_source(records)))


def as_source(records: Sequence[Any]) -> pa.Table:
    """Return kafka-python's records in the columns of Spark's Kafka source."""
    return pa.table(
        {
            "key": pa.array([record.key for record in records], pa.binary()),
            "value": pa.array([record.value for record in records], pa.binary()),
            "topic": pa.array([record.topic for record in records], pa.string()),
            "partition": pa.array([record.partition for record in records], pa.int32()),
            "offset": pa.array([record.offset for record in records], pa.int64()),
            "timestamp": pa.array(
                [kafka.stored_ms(record.timestamp) * 1000 for record in records], pa.timestamp("us", "UTC")
            ),
            "timestampType": pa.array([record.timestamp_type for record in records], pa.int32()),
            "headers": pa.array(
                [[{"key": name, "value": value} for name, value in record.headers] or None for record in records],
                _HEADERS,
            ),
        }
    )


def side_by_side(*work: Callable[[], Any]) -> list[Any]:
    """Run independent pieces of work, each of which may run Spark jobs; return what they returned, in their order.

    Raises:
        The first failure in their order, once no piece is at work any more.
    """
    with ThreadPoolExecutor(AT_ONCE, "jobs") as pool:
        running = [pool.submit(piece) for piece in work]
        try:
            return [piece.result() for piece in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def file_writer(spark: SparkSession) -> Callable[[str, bytes], None]:
    """Return a function that creates a small file on HDFS through Spark's JVM.

    hdfs-native asks whether a file is complete once, then sleeps 500 ms; here the pause is the one set above.
    """
    jvm: Any = spark.sparkContext._jvm
    files = jvm.org.apache.hadoop.fs.FileSystem.get(spark.sparkContext._jsc.hadoopConfiguration())

    def create(path: str, data: bytes) -> None:
        out = files.create(jvm.org.apache.hadoop.fs.Path(path), False)
        try:
            out.write(data)
        finally:
            out.close()

    return create


@cache  # a process may start one session after the other
def _warehouse() -> str:
    """An empty folder: unused, but Spark makes one."""
    return tempfile.mkdtemp(prefix="highwater-warehouse-")


@cache
def _our_code() -> str:
    """Zip engine and domains, so that Python tasks find them on any executor."""
    path = str(Path(tempfile.mkdtemp(prefix="highwater-code-")) / "highwater.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for package in ("engine", "domains"):
            for source in sorted((ROOT / package).rglob("*.py")):
                archive.write(source, source.relative_to(ROOT).as_posix())
    return path
