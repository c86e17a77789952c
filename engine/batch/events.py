"""How do raw rows become typed events? One row per raw row, with its problem, in a log with heads of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import pyarrow as pa
import structlog
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from engine.domain import Domain, Stream
from engine.fold.decode import decode_stream, decoded_columns
from engine.fold.quality import judged, with_duplicates
from engine.storage import log
from engine.storage.commit import Piece, StartsAbove, commit, commit_empty, gap_segment, staged_pieces
from engine.storage.log import (
    MASTER,
    RAW_SCHEMA,
    DamagedSegment,
    FileSystem,
    LogReader,
    MasterWentBack,
    Partition,
    Place,
    Range,
    typed_root,
)

# What one pass types at most, over all partitions: bounds memory, and the work that a crash repeats. A pass that takes
# long makes the next one smaller (`engine.storage.commit`).
PASS_OFFSETS = 1_000_000
PASS_BYTES = 256 * 1024 * 1024  # of raw segments
TYPED_GAP = pa.schema([("offset", pa.int64())])

Ranges = dict[tuple[str, str], tuple[int, int]]

_log = structlog.get_logger("engine.batch.events")


class RowsDiffer(RuntimeError):
    """A reader got other rows than the offsets it planned: list again, then fail."""


# Writes the typed rows of ranges of offsets below a staging folder, as `topic=/log=/partition=/….parquet`.
# Args: the raw partitions, the typed ones, the ranges by place, the folder.
WriteTyped = Callable[[Mapping[str, Mapping[str, Partition]], Mapping[str, Mapping[str, Partition]], Ranges, str], None]


def typed_schema(stream: Stream) -> str:
    """Return the Spark schema of a typed segment; topic, log and partition come from the path."""
    columns = {**decoded_columns(stream), "topic": "STRING", "log": "STRING", "partition": "STRING"}
    return ", ".join(f"`{name}` {sql_type}" for name, sql_type in columns.items())


def extend_typed(fs: FileSystem, stream: Stream, write: WriteTyped) -> int:
    """Type every raw row that is there now and not typed yet; return the number of rows committed by us.

    What ingest adds meanwhile waits for the next run: where a pass takes as long as ingest's pause, following the head
    would never end. A typed log that does not begin where the raw one does is no log: it is taken away and made again.

    Raises:
        MasterWentBack: the raw log is damaged, or the typed log is further than it.
        RowsDiffer: other rows were read than the raw log has.
    """
    raw_reader, typed_reader = LogReader(fs), LogReader(fs, typed_root(stream))
    rows = 0
    goal: dict[tuple[str, str], int] | None = None
    while True:
        # Typed rows come from raw ones, so the raw log is listed last: both may grow meanwhile.
        try:
            typed = typed_reader.partitions([stream.topic])[stream.topic]
        except DamagedSegment as damage:
            _log.error("typed log taken away", topic=stream.topic, reason=str(damage))
            forget_topic(fs, stream)
            continue
        raw = raw_reader.sound([stream.topic])[stream.topic]
        goal = goal or {(log_id, p): partition.head for log_id, by in raw.items() for p, partition in by.items()}
        if reason := torn(stream.topic, raw, typed):
            _log.warning("typed log taken away", topic=stream.topic, reason=reason)
            forget_topic(fs, stream)
            continue
        ranges, gaps = _pending(stream.topic, raw, typed, goal)
        for (log_id, partition), (start, end) in gaps.items():
            place = stream.topic, log_id, partition
            if start == raw[log_id][partition].origin:
                fs.mkdirs(log.partition_folder(typed_root(stream), *place))
            commit_empty(fs, typed_root(stream), place, start, gap_segment(start, end, TYPED_GAP), end)
        if not ranges:
            if not gaps:
                return rows
            continue
        rows += _type_ranges(fs, stream, raw_reader, typed_reader, ranges, write)


def spark_writer(spark: SparkSession, stream: Stream, url: str) -> WriteTyped:
    """Return a function that decodes, judges and writes raw rows with Spark."""

    def write(
        raw: Mapping[str, Mapping[str, Partition]],
        typed: Mapping[str, Mapping[str, Partition]],
        ranges: Ranges,
        staging: str,
    ) -> None:
        earlier = earlier_keys(spark, url, stream, typed, ranges)
        rows = typed_rows(spark, url, stream, read_raw(spark, url, raw, ranges), earlier)
        ordered = rows.repartition("log", "partition").sortWithinPartitions("log", "partition", "offset")
        named = ordered.withColumn("topic", F.lit(stream.topic))
        named.write.partitionBy("topic", "log", "partition").parquet(f"{url}{staging}")

    return write


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
    segments = [
        s for (log_id, p), (start, end) in ranges.items() for s in partitions[log_id][p].segments_between(start, end)
    ]
    if not segments:
        return spark.createDataFrame([], schema)
    rows = spark.read.schema(schema).option("basePath", f"{url}{root}").parquet(*(f"{url}{s.path}" for s in segments))
    for segment in segments:
        if not segment.whole:
            here = F.col("_metadata.file_path").endswith(segment.path)
            rows = rows.where(~here | (F.col("offset") < F.lit(segment.end)))
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
                ranges[log_id, p] = (head, min(next_gap, goal[log_id, p]))
    return ranges, gaps


def torn(topic: str, raw: Mapping[str, Mapping[str, Partition]], typed: Mapping[str, Mapping[str, Partition]]) -> str:
    """Say why a typed log is none: what it holds would be counted, and what it lacks would be missed for ever.

    Raises:
        MasterWentBack: it is the raw log that lacks its beginning.
    """
    for log_id, by in typed.items():
        for p, partition in by.items():
            source = raw.get(log_id, {}).get(p)
            if partition.damage:
                return f"log {log_id} partition {p}: {partition.damage}"
            if source is not None and partition.origin < source.origin:
                raise MasterWentBack(
                    f"MASTER_WENT_BACK topic '{topic}' log {log_id} partition {p}: typed from {partition.origin}, raw segments begin at "
                    f"{source.origin}; restore {log.partition_folder(MASTER, topic, log_id, p)} from a copy"
                )
            if source is not None and partition.origin != source.origin:
                return f"log {log_id} partition {p} begins at {partition.origin}, the raw log at {source.origin}"
    return ""


def _type_ranges(
    fs: FileSystem, stream: Stream, raw_reader: LogReader, typed_reader: LogReader, ranges: Ranges, write: WriteTyped
) -> int:
    topic, root = stream.topic, typed_root(stream)
    raw = raw_reader.sound([topic])[topic]

    def heads() -> dict[Place, int]:
        typed = typed_reader.partitions([topic])[topic]
        return {
            (topic, lg, p): (typed[lg][p].head if p in typed.get(lg, {}) else raw[lg][p].origin) for lg, p in ranges
        }

    def stage(todo: Mapping[Place, Range], staging: str) -> list[Piece]:
        typed = typed_reader.partitions([topic])[topic]
        for _, lg, p in todo:
            start, done = todo[topic, lg, p][0], typed.get(lg, {}).get(p)
            # The keys before a range tell its duplicates: without the typed log that it continues, copies would count.
            if (done.head if done else raw[lg][p].origin) != start or (done is not None and done.damage):
                raise RowsDiffer(f"topic '{topic}' log {lg} partition {p}: the typed log no longer ends at {start}")
        write(raw, typed, {(lg, p): covered for (_, lg, p), covered in todo.items()}, staging)
        pieces = staged_pieces(fs, staging, todo, TYPED_GAP)
        for (_, lg, p), (start, end) in todo.items():
            planned = raw[lg][p].rows_between(start, end)
            got = sum(piece.rows for piece in pieces if piece.place == (topic, lg, p))
            if got != planned:
                raise RowsDiffer(
                    f"topic '{topic}' log {lg} partition {p}: offsets [{start}, {end}) hold {planned} raw rows, {got} were typed"
                )
        return pieces

    wanted = {(topic, lg, p): covered for (lg, p), covered in ranges.items()}
    origins = {(topic, lg, p): raw[lg][p].origin for lg, p in ranges}
    offsets = sum(end - start for start, end in ranges.values())
    size = sum(s.length for (lg, p), covered in ranges.items() for s in raw[lg][p].segments_between(*covered))
    limit = min(PASS_OFFSETS, max(1, offsets * PASS_BYTES // max(size, 1)))
    try:
        done = commit(fs, root, wanted, heads, stage, f"typed-{topic}", origins, limit)
    except StartsAbove as error:  # the typed log was taken away meanwhile
        raise RowsDiffer(str(error)) from error
    return sum(piece.rows for piece in done)


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
    spark: SparkSession, url: str, stream: Stream, typed: Mapping[str, Mapping[str, Partition]], ranges: Ranges
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


def forget_typed(fs: FileSystem, domain: Domain) -> None:
    """Take the typed log of a domain away, so that the next run parses the raw log anew."""
    for stream in domain.streams:
        forget_topic(fs, stream)


def forget_topic(fs: FileSystem, stream: Stream) -> None:
    """Take the typed log of a topic away; whoever still writes to it finds no folder to publish into."""
    fs.mkdirs(log.STAGING)
    with suppress(FileNotFoundError):
        fs.rename(
            f"{typed_root(stream)}/topic={stream.topic}", f"{log.STAGING}/typed-old-{stream.topic}-{time.time_ns()}"
        )
