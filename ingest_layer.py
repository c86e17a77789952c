"""Ingest layer: mirrors Kafka's log into the master dataset, each record exactly once.

    spark-submit ingest_layer.py --domain learning          (or: python ingest_layer.py --domain learning)

Reads    every topic of the domain from Kafka, as bytes; nothing is interpreted here.
Writes   /data/master_dataset/topic=<T>/log=<L>/partition=<P>/<base offset, 20 digits>.parquet with the columns
         key, value, key_bytes, value_bytes, offset, timestamp, headers.
Keeps    /checkpoints/ingest/<domain>/<process>, Spark's own notes, made anew at every start; the heads on HDFS are the truth.
Promises source → trim to the head → stage → check → publish by a rename that refuses an existing name. A crash at any
         line, a second writer or a lost checkpoint neither loses nor doubles a record. Offsets that Kafka deleted too
         early, a replaced log and a compacted topic are refused by name; so is the hole that a transaction's marker leaves.
Shows    /metrics and /health on :8083.
Exit     0 stopped; 1 a named fault; 2 a wrong setting; 75 start again (HDFS or Kafka away, topic made anew, anything unforeseen).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping

import structlog
from pyspark.sql import DataFrame, SparkSession

import domains
from engine import kafka, log, metrics, observe
from engine.checkpoints import Checkpoint
from engine.continuity import DataExpired, LogReplaced, check_continuity
from engine.domain import DeclarationError, Domain
from engine.hdfs import Hdfs, HdfsUnavailable
from engine.log import MASTER, LogReader, OffsetGap, Piece
from engine.progress import Progress
from engine.session import spark_session
from engine.settings import Settings, SettingsError, add_flags, environment, from_args

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
        self.fs = Hdfs(settings.hdfs_url, settings.hadoop_user_name)
        self.reader = LogReader(self.fs)
        self.admin, self.consumer = kafka.admin(settings), kafka.consumer(settings)
        self.ids = kafka.topic_ids(self.admin, domain.topics)
        self.logs = {topic: log.present_log(self.fs, topic, self.ids[topic]) for topic in domain.topics}

    def heads(self) -> dict[tuple[str, str, str], int]:
        """Ask HDFS for the head of every partition of the present logs; a partition without a segment has none."""
        heads = self.reader.heads(self.domain.topics)
        return {(t, lg, p): head for t, lg in self.logs.items() for p, head in heads[t].get(lg, {}).items()}

    def check(self) -> None:
        """Refuse to go on in a log that is not the one we mirrored."""
        if kafka.topic_ids(self.admin, self.domain.topics) != self.ids:
            raise observe.StartAgain(
                f"a topic of {self.domain.name} was deleted or made anew; its log is closed, a new one begins"
            )
        ranges = kafka.log_ranges(self.consumer, self.domain.topics)
        known = self.reader.partitions(self.domain.topics)
        mirrored = {topic: known[topic].get(lg, {}) for topic, lg in self.logs.items()}
        newest = {(t, int(p)): at.head - 1 for t, by in mirrored.items() for p, at in by.items() if at.head > at.origin}
        records = kafka.records_at(self.consumer, newest)
        for topic, partitions in mirrored.items():
            check_continuity(self.fs, topic, partitions, ranges[topic], records, self.domain.name)

    def starting_offsets(self) -> str:
        """Return Spark's startingOffsets: the heads, or where the settings say for a log that was never seen."""
        heads = self.heads()
        unseen = -1 if self.settings.starting_offsets == "latest" else -2
        ranges = kafka.log_ranges(self.consumer, self.domain.topics)
        return json.dumps(
            {
                topic: {
                    str(p): heads.get((topic, lg, str(p)), -2 if any(k[:2] == (topic, lg) for k in heads) else unseen)
                    for p in ranges[topic]
                }
                for topic, lg in self.logs.items()
            }
        )

    def micro_batch(self, rows: DataFrame, batch: int) -> None:
        """Commit one micro-batch; returns only when every head has reached its end."""
        if self.ending:
            return
        with self.ending.watching():
            started = time.monotonic()
            attempts = 0

            def stage(heads: Mapping[tuple[str, str, str], int], staging: str) -> list[Piece]:
                nonlocal attempts
                attempts += 1
                return self.stage(rows, heads, staging)

            self.check()
            if self.settings.show_previews:
                rows.selectExpr("topic", "partition", "offset", "CAST(value AS STRING) AS value").show(5, truncate=100)
            pieces = log.commit(
                self.fs,
                MASTER,
                self.heads,
                stage,
                f"ingest-{self.domain.name}",
            )
            self.report(batch, pieces, attempts - 1, started)

    def stage(self, rows: DataFrame, heads: Mapping[tuple[str, str, str], int], staging: str) -> list[Piece]:
        """Write the rows at or above the heads below `staging`, one file per partition, and read back what is there."""
        trim = " ".join(f"WHEN '{t}/{p}' THEN offset >= {head}" for (t, _, p), head in heads.items())
        fresh = rows.where(f"CASE concat(topic, '/', partition) {trim} ELSE true END") if trim else rows
        staged = fresh.selectExpr(*RAW_COLUMNS).sortWithinPartitions("topic", "partition", "offset")
        staged.write.partitionBy("topic", "partition").parquet(f"{self.settings.hdfs_url}{staging}")
        pieces = log.staged_pieces(self.fs, staging, self.logs)
        if kafka.topic_ids(self.admin, self.domain.topics) != self.ids:
            raise observe.StartAgain(
                f"a topic of {self.domain.name} was made anew while a micro-batch was read; nothing of it was committed"
            )
        return pieces

    def report(self, batch: int, pieces: list[Piece], lost: int, started: float) -> None:
        heads = self.heads()
        ends = {
            topic: {int(p): head for (t, _, p), head in heads.items() if t == topic} for topic in self.domain.topics
        }
        kafka.publish_lag(self.admin, f"highwater.ingest.{self.domain.name}", ends)
        rows = {
            topic: sum(piece.end - piece.first for piece in pieces if piece.topic == topic)
            for topic in self.domain.topics
        }
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

    def start(self) -> object:
        """Start the query at the heads."""
        self.check()
        self.checkpoint = Checkpoint(self.fs, f"{CHECKPOINTS}/{self.domain.name}")
        return (
            self.spark.readStream.format("kafka")
            .option("kafka.bootstrap.servers", self.settings.kafka_bootstrap_servers)
            .option("subscribe", ",".join(self.domain.topics))
            .option("startingOffsets", self.starting_offsets())
            .option("maxOffsetsPerTrigger", self.settings.max_offsets_per_trigger)
            .option("failOnDataLoss", "true")
            .option("includeHeaders", "true")
            # A fetch at the end of the log blocks the consumer's next one for this long, partition after partition.
            .option("kafka.fetch.max.wait.ms", "10")
            .load()
            .writeStream.queryName(f"ingest-{self.domain.name}")
            .option("checkpointLocation", f"{self.settings.hdfs_url}{self.checkpoint.path}")
            .trigger(processingTime=f"{int(self.settings.trigger_interval * 1000)} milliseconds")
            .foreachBatch(self.micro_batch)
            .start()
        )


def accept_gaps(ingest: Ingest) -> None:
    """Commit a segment of zero rows for every range that Kafka deleted before it was ingested."""
    ranges = kafka.log_ranges(ingest.consumer, ingest.domain.topics)
    for (topic, lg, p), head in ingest.heads().items():
        start = ranges[topic].get(int(p), (0, 0))[0]
        if start <= head:
            continue
        last = ingest.reader.partitions([topic])[topic][lg][p].segments[-1]
        data = log.gap_segment(head, start, ingest.fs.open_parquet(last.path).schema_arrow)
        staged = f"{log.STAGING}/gap-{topic}-{lg}-{p}-{head}.parquet"
        ingest.fs.delete(staged)
        ingest.fs.create(staged, data)
        target = log.segment_path(MASTER, topic, lg, p, head)
        done = log.publish(ingest.fs, Piece(topic, lg, p, staged, head, start, len(data)), target)
        print(
            f"topic '{topic}' partition {p}: gap [{head}, {start}) {'accepted' if done else 'was committed by somebody else'}"
        )


def new_log(fs: Hdfs, topic: str, present: str) -> None:
    """Close the present log of a topic; the next start goes on in a new one."""
    stem, _, number = present.partition(".")
    fs.mkdirs(f"{MASTER}/topic={topic}/log={stem}.{int(number or 1) + 1}")
    print(f"topic '{topic}': log {present} is closed, {stem}.{int(number or 1) + 1} begins at the next start")


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
    faults = (DataExpired, LogReplaced, OffsetGap)
    with observe.exit_codes(usage, faults, (observe.StartAgain, HdfsUnavailable, kafka.KafkaUnreachable)):
        args = parser.parse_args(argv)
        settings = from_args(args)
        chosen = domains.named(settings.domain, environment())
        observe.start_logging(settings)
        kafka.ensure_topics(settings, [stream for domain in chosen for stream in domain.streams])
        if args.new_log or args.accept_gap:
            admit(args, chosen, settings)
            return
        ending = observe.Ending(observe.Stop())
        shown = metrics.QueryMetrics("ingest", chosen, settings.trigger_interval)
        host, port = settings.metrics_host, settings.ingest_metrics_port
        metrics.serve("ingest", shown.registry, shown.life.told, host, port)
        spark = spark_session("highwater-ingest", settings)
        spark.streams.addListener(Progress(shown))
        ingests = [Ingest(spark, domain, settings, ending, shown) for domain in chosen]
        queries = [ingest.start() for ingest in ingests]
        _log.info("started", domains=[domain.name for domain in chosen], every_seconds=settings.trigger_interval)
        try:
            observe.await_queries(queries, ending, shown.life.beat)
        finally:
            for ingest in ingests:
                ingest.checkpoint.close()
        _log.info("stopped")
        observe.stop_spark(spark)


def admit(args: argparse.Namespace, chosen: tuple[Domain, ...], settings: Settings) -> None:
    """Carry out --accept-gap or --new-log; neither needs Spark."""
    fs = Hdfs(settings.hdfs_url, settings.hadoop_user_name)
    for domain in chosen:
        if args.accept_gap:
            accept_gaps(Ingest(None, domain, settings, None, None))  # type: ignore[arg-type]
        elif args.new_log in domain.topics:
            new_log(
                fs,
                args.new_log,
                log.present_log(fs, args.new_log, kafka.topic_ids(kafka.admin(settings), [args.new_log])[args.new_log]),
            )
            return
    if args.new_log:
        raise SettingsError(
            f"--new-log {args.new_log}: no such topic; known: {', '.join(t for d in chosen for t in d.topics)}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
