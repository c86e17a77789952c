"""Ingest layer: mirrors Kafka's log into the master dataset, each record exactly once.

    spark-submit ingest_layer.py --domain learning          (or: python ingest_layer.py --domain learning)

Reads    every topic of the domain from Kafka, as bytes; nothing is interpreted here.
Writes   /data/master_dataset/topic=<T>/log=<L>/partition=<P>/<base offset, 20 digits>.parquet with the columns
         key, value, key_bytes, value_bytes, offset, timestamp, headers.
         …/partition=<P>/_origin: where the partition begins, once and before anything else.
Keeps    /checkpoints/ingest/<domain>/<process>, Spark's own notes, made anew at every start; the heads on HDFS are the
         truth.
Promises source → trim to the head → stage → check → publish by a rename that refuses an existing name. A crash at any
         line, a second writer or a lost checkpoint neither loses nor doubles a record. Offsets without a record, such
         as a transaction's marker, are counted as holes. Offsets that Kafka deleted too early, a replaced log and a
         compacted topic are refused by name.
Shows    /metrics and /health on :8083.
Exit     0 stopped; 1 a named fault; 2 a wrong setting; 75 start again (HDFS or Kafka away, topic made anew, anything
         unforeseen).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping

import structlog
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

import domains
from engine.domain import DeclarationError, Domain
from engine.ingest.repair import opened, repair
from engine.runtime import kafka, metrics, observe
from engine.runtime.progress import Progress
from engine.runtime.queries import Queries
from engine.runtime.session import spark_session, with_any_time
from engine.runtime.settings import Settings, SettingsError, add_flags, environment, from_args
from engine.storage.checkpoints import Checkpoint, Reading
from engine.storage.commit import OffsetGap, Piece, StartsAbove, TooSlow
from engine.storage.continuity import DataExpired, LogReplaced
from engine.storage.hdfs import HdfsUnavailable
from engine.storage.log import MasterWentBack, Place, Range

CHECKPOINTS = "/checkpoints/ingest"
RAW_COLUMNS = (
    "try_validate_utf8(CAST(key AS STRING)) AS key",
    "try_validate_utf8(CAST(value AS STRING)) AS value",
    # Bytes that are no UTF-8 go here untouched: in a STRING they would make the file unreadable for other engines.
    "CASE WHEN try_validate_utf8(CAST(key AS STRING)) IS NULL THEN key END AS key_bytes",
    "CASE WHEN try_validate_utf8(CAST(value AS STRING)) IS NULL THEN value END AS value_bytes",
    "offset",
    "timestamp",
    "headers",
    "topic",
    "CAST(partition AS STRING) AS partition",
)

FAULTS = (DataExpired, LogReplaced, OffsetGap, MasterWentBack)
RESTARTS = (observe.StartAgain, StartsAbove, TooSlow, HdfsUnavailable, kafka.KafkaUnreachable)

_log = structlog.get_logger("ingest")


class Ingest:
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
        self.kafka = kafka.consumer(settings)
        self.mirror = opened(domain, settings, self.kafka)

    def start(self) -> object:
        """Start the query at the heads."""
        self.mirror.prove()
        self.checkpoint = Checkpoint(self.mirror.fs, f"{CHECKPOINTS}/{self.domain.name}")
        heads = {(topic, int(p)): head for (topic, _, p), head in self.mirror.heads().items()}
        self.reading = Reading(self.mirror.fs, self.checkpoint.path, heads)
        return (
            self.spark.readStream.format("kafka")
            .option("kafka.bootstrap.servers", self.settings.kafka_bootstrap_servers)
            .option("subscribe", ",".join(self.domain.topics))
            .option("startingOffsets", self.reading.starting_offsets())
            .option("maxOffsetsPerTrigger", self.settings.max_offsets_per_trigger)
            .option("failOnDataLoss", "true")
            .option("includeHeaders", "true")
            # Records of aborted transactions are none; an open transaction is waited for.
            .option("kafka.isolation.level", "read_committed")
            # A fetch at the end of the log blocks the consumer's next one for this long, partition after partition.
            .option("kafka.fetch.max.wait.ms", "10")
            .load()
            .writeStream.queryName(f"ingest-{self.domain.name}")
            .option("checkpointLocation", f"{self.settings.hdfs_url}{self.checkpoint.path}")
            .trigger(processingTime=f"{int(self.settings.trigger_interval * 1000)} milliseconds")
            .foreachBatch(self.micro_batch)
            .start()
        )

    def close(self) -> None:
        self.checkpoint.close()

    def micro_batch(self, rows: DataFrame, batch: int) -> None:
        """Commit one micro-batch; returns only when every head has reached its end."""
        if self.ending:
            return
        with self.ending.watching():
            started = time.monotonic()
            attempts = 0

            def write(ranges: Mapping[Place, Range], staging: str) -> int:
                nonlocal attempts
                attempts += 1
                return self.write(rows, ranges, staging)

            planned = self.reading.planned(batch)
            self.mirror.prove()
            pieces = self.mirror.commit(planned, write, f"ingest-{self.domain.name}")
            self.report(batch, pieces, max(0, attempts - 1), started)

    def write(self, rows: DataFrame, ranges: Mapping[Place, Range], staging: str) -> int:
        """Write the rows of the given ranges below `staging`, one file per partition; return how many were read."""
        planned = {(topic, int(p)): offsets for (topic, _, p), offsets in ranges.items()}
        return with_any_time(rows, self.kafka, planned, lambda readable: self.stage(readable, ranges, staging))

    def stage(self, rows: DataFrame, ranges: Mapping[Place, Range], staging: str) -> int:
        if self.settings.show_previews:
            rows.selectExpr("topic", "partition", "offset", "CAST(value AS STRING) AS value").show(5, truncate=100)
        wanted = " ".join(
            f"WHEN '{topic}/{p}' THEN offset >= {start} AND offset < {end}"
            for (topic, _, p), (start, end) in ranges.items()
        )
        chosen = rows.where(f"CASE concat(topic, '/', partition) {wanted} ELSE false END")
        staged = chosen.selectExpr(*RAW_COLUMNS).sortWithinPartitions("topic", "partition", "offset")
        read = Observation()
        counted = staged.observe(read, F.count(F.lit(1)).alias("rows"))
        counted.write.mode("overwrite").partitionBy("topic", "partition").parquet(f"{self.settings.hdfs_url}{staging}")
        return int(read.get["rows"])

    def report(self, batch: int, pieces: list[Piece], lost: int, started: float) -> None:
        ends: dict[str, dict[int, int]] = {topic: {} for topic in self.domain.topics}
        for (topic, _, p), head in self.mirror.heads().items():
            ends[topic][int(p)] = head
        kafka.publish_lag(self.kafka.admin, f"highwater.ingest.{self.domain.name}", ends)
        rows = {topic: sum(piece.rows for piece in pieces if piece.topic == topic) for topic in self.domain.topics}
        seconds = time.monotonic() - started
        self.shown.committed(self.domain.name, rows, len(pieces), ends, lost, seconds)
        _log.info(
            "committed",
            domain=self.domain.name,
            batch=batch,
            rows=sum(rows.values()),
            topics=rows,
            ms=round(seconds * 1000),
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, ("domain", "trigger_interval", "max_offsets_per_trigger", "starting_offsets", "show_previews"))
    parser.add_argument(
        "--accept-gap",
        action="store_true",
        help="put on record that Kafka deleted offsets before they were ingested, then leave",
    )
    parser.add_argument(
        "--new-log", metavar="TOPIC", help="close the present log of a topic whose broker lost its data, then leave"
    )
    usage = (SettingsError, DeclarationError, kafka.TopicRefused)
    with observe.exit_codes(usage, FAULTS, RESTARTS):
        args = parser.parse_args(argv)
        settings = from_args(args)
        chosen = domains.named(settings.domain, environment())
        observe.start_logging(settings)
        kafka.ensure_topics(settings, [stream for domain in chosen for stream in domain.streams])
        if args.new_log or args.accept_gap:
            repair(chosen, settings, args.new_log, args.accept_gap)
            return
        stop = observe.Stop()
        shown = metrics.QueryMetrics("ingest", chosen, settings.trigger_interval)
        host, port = settings.metrics_host, settings.ingest_metrics_port
        metrics.serve("ingest", shown.registry, shown.life.told, host, port)
        spark = spark_session("highwater-ingest", settings)
        spark.streams.addListener(Progress(shown))
        every = settings.trigger_interval
        Queries(
            chosen,
            lambda domain, ending: Ingest(spark, domain, settings, ending, shown),
            lambda ingests: _log.info("started", domains=[i.domain.name for i in ingests], every_seconds=every),
            shown.life.beat,
            FAULTS,
            RESTARTS,
        ).run(stop)
        _log.info("stopped")
        observe.stop_spark(spark)


if __name__ == "__main__":
    main(sys.argv[1:])
