"""How do raw rows become typed events? One row per raw row, with its problem, in a log with heads of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pyarrow as pa
import structlog
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from engine import log
from engine.decode import decode_stream, decoded_columns
from engine.domain import Domain, Stream
from engine.hdfs import Hdfs
from engine.log import EVENTS, MASTER, LogReader, MasterWentBack, Partition, Piece
from engine.quality import judged, with_duplicates
from engine.session import RAW_SCHEMA

# Offsets of one partition that one pass types at most: bounds memory and the work that a crash repeats.
PASS_OFFSETS = 2_000_000

Ranges = dict[tuple[str, str], tuple[int, int]]

_log = structlog.get_logger("engine.events")


class RowsDiffer(RuntimeError):
    """A reader got other rows than the offsets it planned: list again, then fail."""


def typed_root(stream: Stream) -> str:
    return f"{EVENTS}/{stream.schema_hash}"


def typed_schema(stream: Stream) -> str:
    """Return the Spark schema of a typed segment; topic, log and partition come from the path."""
    columns = {**decoded_columns(stream), "topic": "STRING", "log": "STRING", "partition": "STRING"}
    return ", ".join(f"`{name}` {sql_type}" for name, sql_type in columns.items())


def extend_typed(spark: SparkSession, fs: Hdfs, stream: Stream, url: str) -> int:
    """Type every raw row that is there now and not typed yet; return the number of rows committed by us.

    What ingest adds meanwhile waits for the next run: where a pass takes as long as ingest's pause, following the head
    would never end.

    Raises:
        MasterWentBack: the typed log is further than the raw log.
        OffsetGap: raw rows are missing in the middle of the log.
    """
    raw_reader, typed_reader = LogReader(fs), LogReader(fs, typed_root(stream))
    rows = 0
    goal: dict[tuple[str, str], int] | None = None
    while True:
        raw = raw_reader.partitions([stream.topic])[stream.topic]
        typed = typed_reader.partitions([stream.topic])[stream.topic]
        goal = goal or {(log_id, p): partition.head for log_id, by in raw.items() for p, partition in by.items()}
        ranges, gaps = _pending(stream.topic, raw, typed, goal)
        for (log_id, partition), (start, end) in gaps.items():
            _commit_gap(fs, stream, log_id, partition, start, end)
        if not ranges:
            if not gaps:
                return rows
            continue
        rows += _type_ranges(spark, fs, stream, url, raw, ranges)


def read_raw(
    spark: SparkSession, url: str, partitions: Mapping[str, Mapping[str, Partition]], ranges: Ranges
) -> DataFrame:
    """Return the raw rows of one topic in the given ranges of (log, partition)."""
    return _read(spark, url, MASTER, RAW_SCHEMA, partitions, ranges)


def read_typed(
    spark: SparkSession, url: str, stream: Stream, partitions: Mapping[str, Mapping[str, Partition]], ranges: Ranges
) -> DataFrame:
    """Return the typed rows of one stream in the given ranges of (log, partition)."""
    return _read(spark, url, typed_root(stream), typed_schema(stream), partitions, ranges)


def _read(
    spark: SparkSession,
    url: str,
    root: str,
    schema: str,
    partitions: Mapping[str, Mapping[str, Partition]],
    ranges: Ranges,
) -> DataFrame:
    paths = [
        f"{url}{s.path}"
        for (log_id, p), (start, end) in ranges.items()
        for s in partitions[log_id][p].segments_between(start, end)
    ]
    if not paths:
        return spark.createDataFrame([], schema)
    rows = spark.read.schema(schema).option("basePath", f"{url}{root}").parquet(*paths)
    wanted = " ".join(
        f"WHEN '{log_id}/{p}' THEN `offset` >= {start} AND `offset` < {end}"
        for (log_id, p), (start, end) in ranges.items()
    )
    return rows.where(f"CASE concat(log, '/', `partition`) {wanted} ELSE false END")


def _pending(
    topic: str,
    raw: dict[str, dict[str, Partition]],
    typed: dict[str, dict[str, Partition]],
    goal: Mapping[tuple[str, str], int],
) -> tuple[Ranges, Ranges]:
    """Return the ranges to type and the gaps to accept, by log and partition, below the goal."""
    ranges: Ranges = {}
    gaps: Ranges = {}
    for log_id, partitions in raw.items():
        for p, partition in partitions.items():
            done = typed.get(log_id, {}).get(p)
            head = done.head if done else partition.origin
            if head > partition.head:
                raise MasterWentBack(
                    f"MASTER_WENT_BACK topic '{topic}' log {log_id} partition {p}: typed up to {head}, raw segments end at {partition.head}; "
                    f"restore {log.partition_folder(MASTER, topic, log_id, p)} from a copy"
                )
            if head >= goal.get((log_id, p), 0):
                continue
            here = next((gap for gap in partition.gaps if gap[0] <= head < gap[1]), None)
            if here:
                gaps[log_id, p] = (head, here[1])
            else:
                next_gap = min((gap[0] for gap in partition.gaps if gap[0] > head), default=partition.head)
                ranges[log_id, p] = (head, min(next_gap, goal[log_id, p], head + PASS_OFFSETS))
    return ranges, gaps


def _commit_gap(fs: Hdfs, stream: Stream, log_id: str, partition: str, start: int, end: int) -> None:
    data = log.gap_segment(start, end, pa.schema([("offset", pa.int64())]))
    target = log.segment_path(typed_root(stream), stream.topic, log_id, partition, start)
    staged = f"{log.STAGING}/typed-gap-{stream.topic}-{log_id}-{partition}-{start}.parquet"
    fs.delete(staged)
    fs.create(staged, data)
    fs.mkdirs(target.rsplit("/", 1)[0])
    log.publish(fs, Piece(stream.topic, log_id, partition, staged, start, end, len(data)), target)


def _type_ranges(
    spark: SparkSession, fs: Hdfs, stream: Stream, url: str, raw: dict[str, dict[str, Partition]], ranges: Ranges
) -> int:
    reader = LogReader(fs, typed_root(stream))

    def heads() -> dict[tuple[str, str, str], int]:
        typed = reader.partitions([stream.topic])[stream.topic]
        return {
            (stream.topic, lg, p): (typed[lg][p].head if p in typed.get(lg, {}) else start)
            for (lg, p), (start, _) in ranges.items()
        }

    def stage(at: Mapping[tuple[str, str, str], int], staging: str) -> list[Piece]:
        todo = {
            (lg, p): (at[stream.topic, lg, p], end)
            for (lg, p), (_, end) in ranges.items()
            if at[stream.topic, lg, p] < end
        }
        if not todo:
            return []
        typed = reader.partitions([stream.topic])[stream.topic]
        rows = typed_rows(
            spark, url, stream, read_raw(spark, url, raw, todo), earlier_keys(spark, url, stream, typed, todo)
        )
        ordered = rows.repartition("log", "partition").sortWithinPartitions("log", "partition", "offset")
        ordered.withColumn("topic", F.lit(stream.topic)).write.partitionBy("topic", "log", "partition").parquet(
            f"{url}{staging}"
        )
        pieces = log.staged_pieces(fs, staging)
        ends = {(piece.log, piece.partition): piece.end for piece in pieces}
        for key, (start, end) in todo.items():
            if ends.get(key) != end:
                raise RowsDiffer(
                    f"topic '{stream.topic}' log {key[0]} partition {key[1]}: offsets [{start}, {end}) planned, rows end at {ends.get(key)}"
                )
        return pieces

    done = log.commit(fs, typed_root(stream), heads, stage, f"typed-{stream.topic}")
    return sum(piece.end - piece.first for piece in done)


def typed_rows(spark: SparkSession, url: str, stream: Stream, raw: DataFrame, earlier: DataFrame | None) -> DataFrame:
    """Decode, apply the rules, name the duplicates; keep the raw value only where there is a problem."""
    schema = {"log": "STRING", "partition": "STRING", **decoded_columns(stream)}
    ddl = ", ".join(f"`{name}` {sql_type}" for name, sql_type in schema.items())
    decoded = raw.select("log", "partition", "offset", "timestamp", "value", "value_bytes").mapInArrow(
        decode_stream(stream), ddl
    )
    typed = with_duplicates(judged(decoded, stream), earlier, stream.duplicate_window)
    for name in ("value", "value_bytes"):
        typed = typed.withColumn(name, F.when(F.col("problem").isNotNull(), F.col(name)))
    return typed.select("log", "partition", *decoded_columns(stream))


def earlier_keys(
    spark: SparkSession, url: str, stream: Stream, typed: dict[str, dict[str, Partition]], ranges: Ranges
) -> DataFrame | None:
    """Return log, partition, offset, ukey of the valid typed rows within the duplicate window before each range."""
    before = {
        (lg, p): (max(typed[lg][p].origin, start - stream.duplicate_window), start)
        for (lg, p), (start, _) in ranges.items()
        if p in typed.get(lg, {}) and start > typed[lg][p].origin
    }
    if not before:
        return None
    rows = read_typed(spark, url, stream, typed, before)
    return rows.where("problem IS NULL OR problem = 'duplicate'").select("log", "partition", "offset", "ukey")


def forget_typed(fs: Hdfs, domain: Domain) -> None:
    """Take the typed log of a domain away, so that the next run parses the raw log anew."""
    for stream in domain.streams:
        root = f"{typed_root(stream)}/topic={stream.topic}"
        if fs.status(root):
            fs.mkdirs(log.STAGING)
            fs.rename(root, f"{log.STAGING}/typed-old-{stream.topic}-{time.time_ns()}")
