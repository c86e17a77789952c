"""Speed layer: counts what came after the batch horizon, one small epoch at a time.

    spark-submit stream_layer.py --domain learning          (or: python stream_layer.py --domain learning)

Reads    every topic of the domain from Kafka, from the end of its chain; typed events, once, for the keys below it.
Writes   /data/speed_views/<domain>/<chain>/<epoch, 12 digits>.parquet: the partials of all views and the unique keys.
Keeps    /checkpoints/speed/<domain>/<process>, Spark's own notes, made anew at every start; the chain is the truth.
Promises trim to the chain's end → decode → rules → duplicates → partial aggregates → one file, one rename. No Spark
         state, no watermark: late events land in their window. Two stream jobs, a crash at any line or a lost
         checkpoint neither lose nor double an event. It never writes for a version of another definition.
         What is damaged of its chains is set aside, and a new chain begun. A domain with a fault does not stop the
         others.
Shows    /metrics and /health on :8084.
Exit     0 stopped; 1 a named fault of every domain; 2 a wrong setting; 75 start again (definition_changed, HDFS or
         Kafka away, anything unforeseen).
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import pyarrow as pa
import structlog
from pyspark.sql import DataFrame, SparkSession

import domains
from engine.domain import DeclarationError, Domain
from engine.fold import micro_batch
from engine.runtime import kafka, metrics, observe
from engine.runtime.progress import Progress
from engine.runtime.queries import Queries
from engine.runtime.session import file_writer, spark_session, with_any_time
from engine.runtime.settings import Settings, SettingsError, add_flags, environment, from_args
from engine.speed.chain_log import NewChain, NextEpoch, SpeedLog
from engine.storage import versions
from engine.storage.checkpoints import Checkpoint, Reading
from engine.storage.commit import OffsetGap
from engine.storage.continuity import DataExpired, LogReplaced
from engine.storage.hdfs import Hdfs, HdfsUnavailable
from engine.storage.log import MasterWentBack
from engine.storage.versions import VersionUnknown

CHECKPOINTS = "/checkpoints/speed"
FAULTS = (DataExpired, LogReplaced, OffsetGap, MasterWentBack, VersionUnknown)
RESTARTS = (observe.StartAgain, HdfsUnavailable, kafka.KafkaUnreachable)

_log = structlog.get_logger("stream")


class Speed:
    """One domain's streaming query: what a micro-batch needs to know."""

    def __init__(
        self,
        spark: SparkSession,
        domain: Domain,
        settings: Settings,
        ending: observe.Ending,
        shown: metrics.QueryMetrics,
    ) -> None:
        self.spark, self.domain, self.settings, self.ending, self.shown = spark, domain, settings, ending, shown
        kafka.ensure_topics(settings, domain.streams)
        self.kafka = kafka.consumer(settings)
        self.log = SpeedLog.open(Hdfs(settings.hdfs_url, settings.hadoop_user_name), domain, self.kafka)
        shown.set_aside(domain.name, self.log.set_aside)
        self.write = file_writer(spark)

    def micro_batch(self, rows: DataFrame, batch: int) -> None:
        """Commit one micro-batch as one epoch; the loser of a race reads the chain's end again and trims."""
        if self.ending:
            return
        with self.ending.watching():
            started = time.monotonic()
            planned = self.reading.planned(batch)
            self.log.follow_versions()
            judged = with_any_time(rows, self.kafka, planned, self.judge)
            self.log.check_topics()
            lost = 0
            while (epoch := self.log.next_epoch(self.positions(judged), planned)) is not None:
                if self.log.append(epoch, self.partials(judged, epoch), self.write):
                    self.report(batch, epoch, lost, started)
                    break
                lost += 1

    def judge(self, rows: DataFrame) -> dict[str, pa.Table]:
        """Read, decode and judge in the tasks; return topic → its rows, in the driver."""
        text = "try_validate_utf8(CAST(value AS STRING))"
        # A task per core, not one per partition of Kafka: a small micro-batch would wait for its tasks alone.
        raw = rows.coalesce(self.spark.sparkContext.defaultParallelism).selectExpr(
            "topic",
            "CAST(partition AS STRING) AS partition",
            "offset",
            "timestamp",
            f"{text} AS value",
            f"CASE WHEN {text} IS NULL THEN value END AS value_bytes",
        )
        judged = raw.mapInArrow(micro_batch.judge_domain(self.domain), micro_batch.judged_schema(self.domain))
        return micro_batch.rows_of_topics(judged.toArrow(), self.domain, self.log.logs)

    def positions(self, judged: dict[str, pa.Table]) -> pa.Table:
        """Return what `SpeedLog.next_epoch` asks of every row, before duplicates are named."""
        columns = ["topic", "log", "partition", "offset", "ukey", "problem", "event_time", "kafka_time", "crc"]
        return pa.concat_tables(rows.select(columns) for rows in judged.values())

    def partials(self, judged: dict[str, pa.Table], epoch: NextEpoch) -> dict[str, pa.Table]:
        """Fold the rows that count to the stored columns of every view."""
        good = {}
        for topic, rows in judged.items():
            of_log = topic, self.log.logs[topic]
            good[topic] = micro_batch.good_rows(rows, epoch.first(*of_log), epoch.repeated(*of_log))
            if self.settings.show_previews:
                print(good[topic].slice(0, 5).to_pylist())
        return micro_batch.partials(self.domain.views, good)

    def report(self, batch: int, epoch: NextEpoch, lost: int, started: float) -> None:
        ends = {
            topic: {int(p): o for p, o in epoch.end.get(topic, {}).get(lg, {}).items()}
            for topic, lg in self.log.logs.items()
        }
        kafka.publish_lag(self.kafka.admin, f"highwater.stream.{self.domain.name}", ends)
        seconds = time.monotonic() - started
        self.shown.committed(self.domain.name, epoch.rows, 1, ends, lost, seconds)
        self.shown.epoch(self.domain.name, self.log.chain.number, epoch.number, epoch.counts)
        _log.info(
            "epoch",
            domain=self.domain.name,
            batch=batch,
            chain=self.log.chain.number,
            epoch=epoch.number,
            **epoch.summary,
            ms=round(seconds * 1000),
        )

    def close(self) -> None:
        self.checkpoint.close()

    def start(self) -> Any:
        """Start the query at the chain's end."""
        self.checkpoint = Checkpoint(self.log.fs, f"{CHECKPOINTS}/{self.domain.name}")
        self.reading = Reading(self.log.fs, self.checkpoint.path, self.log.next_offsets())
        return (
            self.spark.readStream.format("kafka")
            .option("kafka.bootstrap.servers", self.settings.kafka_bootstrap_servers)
            .option("subscribe", ",".join(self.domain.topics))
            .option("startingOffsets", self.reading.starting_offsets())
            .option("maxOffsetsPerTrigger", self.settings.stream_max_offsets_per_trigger)
            .option("failOnDataLoss", "true")
            # Records of aborted transactions are none; an open transaction is waited for.
            .option("kafka.isolation.level", "read_committed")
            # A fetch at the end of the log blocks the consumer's next one for this long, partition after partition.
            .option("kafka.fetch.max.wait.ms", "10")
            .load()
            .writeStream.queryName(f"stream-{self.domain.name}")
            .option("checkpointLocation", f"{self.settings.hdfs_url}{self.checkpoint.path}")
            .trigger(processingTime=f"{int(self.settings.stream_trigger_interval * 1000)} milliseconds")
            .foreachBatch(self.micro_batch)
            .start()
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, ("domain", "stream_trigger_interval", "stream_max_offsets_per_trigger", "show_previews"))
    with observe.exit_codes((SettingsError, DeclarationError, kafka.TopicRefused), FAULTS, RESTARTS):
        settings = from_args(parser.parse_args(argv))
        chosen = domains.named(settings.domain, environment())
        observe.start_logging(settings)
        kafka.ensure_topics(settings, [stream for domain in chosen for stream in domain.streams])
        fs = Hdfs(settings.hdfs_url, settings.hadoop_user_name)
        stop = observe.Stop()
        shown = metrics.QueryMetrics("stream", chosen, settings.stream_trigger_interval)
        host, port = settings.metrics_host, settings.stream_metrics_port
        metrics.serve("stream", shown.registry, shown.life.told, host, port)
        # Small jobs, many of them: adaptive planning would cost more than it saves.
        spark = spark_session(
            "highwater-stream", settings, {"spark.sql.adaptive.enabled": "false", "spark.driver.maxResultSize": "0"}
        )
        spark.streams.addListener(Progress(shown))
        Queries(
            chosen,
            # A version is completed by epochs of its own definition, whatever the domain's file says by now.
            lambda domain, ending: Speed(spark, versions.definition_followed(fs, domain), settings, ending, shown),
            lambda speeds: _log.info("started", chains={speed.domain.name: speed.log.chain.number for speed in speeds}),
            shown.life.beat,
            FAULTS,
            RESTARTS,
            anew=(NewChain,),
        ).run(stop)
        _log.info("stopped")
        observe.stop_spark(spark)


if __name__ == "__main__":
    main(sys.argv[1:])
