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
from pyspark.sql import functions as F

import domains
from engine.domain import FRESH_ROWS, DeclarationError, Domain
from engine.fold import spark_fold
from engine.fold.decode import decode_domain, decoded_columns
from engine.fold.measures import stored_ddl
from engine.fold.quality import judged
from engine.runtime import kafka, metrics, observe
from engine.runtime.progress import Progress
from engine.runtime.queries import Queries
from engine.runtime.session import file_writer, spark_session, with_any_time
from engine.runtime.settings import Settings, SettingsError, add_flags, environment, from_args
from engine.speed.chain_log import NewChain, NextEpoch, SpeedLog
from engine.storage import chains, versions
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
        fields = [
            (f"t{n}", ", ".join(f"`{c}`: {t}" for c, t in decoded_columns(s).items()))
            for n, s in enumerate(domain.streams)
        ]
        self.decoded_schema = "topic STRING, log STRING, `partition` STRING, " + ", ".join(
            f"{n} STRUCT<{inner}>" for n, inner in fields
        )

    def micro_batch(self, rows: DataFrame, batch: int) -> None:
        """Commit one micro-batch as one epoch; the loser of a race reads the chain's end again and trims."""
        if self.ending:
            return
        with self.ending.watching():
            started = time.monotonic()
            planned = self.reading.planned(batch)
            self.log.follow_versions()
            decoded, typed, positions = with_any_time(rows, self.kafka, planned, self.looked_at)
            self.log.check_topics()
            lost = 0
            while (epoch := self.log.next_epoch(positions, planned)) is not None:
                partials = self.partials(typed, epoch.trim, epoch.duplicates)
                if self.log.append(epoch, partials, self.write):
                    self.report(batch, epoch, lost, started)
                    break
                lost += 1
            decoded.unpersist()

    def looked_at(self, rows: DataFrame) -> tuple[DataFrame, dict[str, DataFrame], pa.Table]:
        """Decode and judge rows, kept for the next job; return them, each topic's, and their positions."""
        decoded = self.decode(rows).persist()
        typed = self.judge(decoded)
        return decoded, typed, self.positions(typed)

    def decode(self, rows: DataFrame) -> DataFrame:
        logs = " ".join(f"WHEN '{topic}' THEN '{lg}'" for topic, lg in self.log.logs.items())
        text = "try_validate_utf8(CAST(value AS STRING))"
        # One task: a micro-batch is small, and a single partition needs no shuffle for any view.
        raw = rows.coalesce(1).selectExpr(
            "topic",
            f"CASE topic {logs} END AS log",
            "CAST(partition AS STRING) AS partition",
            "offset",
            "timestamp",
            f"{text} AS value",
            f"CASE WHEN {text} IS NULL THEN value END AS value_bytes",
        )
        return raw.mapInArrow(decode_domain(self.domain), self.decoded_schema)

    def judge(self, decoded: DataFrame) -> dict[str, DataFrame]:
        """Return the judged rows of each topic."""
        streams = enumerate(self.domain.streams)
        own = {
            s.topic: decoded.where(f"topic = '{s.topic}'").select("topic", "log", "partition", f"t{n}.*")
            for n, s in streams
        }
        return {topic: judged(rows, self.domain.stream(topic)) for topic, rows in own.items()}

    def positions(self, typed: dict[str, DataFrame]) -> pa.Table:
        """Return what `SpeedLog.next_epoch` asks of every row, before duplicates are named."""
        columns = ("topic", "log", "partition", "offset", "ukey", "problem", "event_time", "kafka_time", "crc")
        parts = [rows.select(*columns) for rows in typed.values()]
        union = parts[0]
        for part in parts[1:]:
            union = union.unionByName(part)
        return union.toArrow()

    def partials(self, typed: dict[str, DataFrame], trim: str | None, duplicates: pa.Table) -> dict[str, pa.Table]:
        """Fold the good rows to the stored columns of every view, in one job."""
        spark = next(iter(typed.values())).sparkSession  # a micro-batch has a session of its own
        good = {}
        for topic, rows in typed.items():
            counted = rows.where("problem IS NULL")
            if trim:
                counted = counted.where(trim)
            if duplicates.num_rows:
                doubles = F.broadcast(spark.createDataFrame(duplicates))
                counted = counted.join(doubles, ["topic", "partition", "offset"], "left_anti")
            good[topic] = counted
        spark_fold.register_good_rows(good, FRESH_ROWS)
        union: DataFrame | None = None
        for view in self.domain.views:
            found = spark_fold.partials(spark, view, FRESH_ROWS, one_task=True)
            one = found.select(
                F.lit(view.name).alias("kind"), F.struct(*found.columns).cast(stored_ddl(view)).alias(view.name)
            )
            union = one if union is None else union.unionByName(one, allowMissingColumns=True)
        assert union is not None
        table = union.toArrow()
        if self.settings.show_previews:
            print(table.slice(0, 5).to_pylist())
        return {view.name: chains.rows_of(table, view.name) for view in self.domain.views}

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
            "highwater-stream", settings, {"spark.sql.adaptive.enabled": "false", "spark.sql.shuffle.partitions": "2"}
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
