"""What does a micro-batch give? Rows decoded and judged in Spark's tasks; view rows folded in the driver, by DuckDB.

Spark reads Kafka and hands rows on; it plans nothing per view, so a micro-batch is one small job whatever the number of
views is. The stored rows are those that `engine.fold.spark_fold` makes of a batch range: the same measures, in the
other engine's words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.domain import Domain, Stream, View, table_name
from engine.fold.decode import decode_rows, decoded_columns, spark_arrow
from engine.fold.measures import partial_query, register, rows_query, stored_schema

# What batch keeps of a decoded row, and no view or rule speaks of.
NOT_FOLDED = ("unknown", "value", "value_bytes")
# Before a topic's table name, which may be a word of DuckDB's own.
GOOD_ROWS = "good_"


def judged_columns(stream: Stream) -> dict[str, str]:
    """Return name → SQL type of a judged row (topic, log and partition aside)."""
    return {name: sql_type for name, sql_type in decoded_columns(stream).items() if name not in NOT_FOLDED}


def judged_schema(domain: Domain) -> str:
    """Return the Spark schema of what `judge_domain` yields."""
    fields = [
        f"t{n} STRUCT<{', '.join(f'`{name}`: {sql_type}' for name, sql_type in judged_columns(stream).items())}>"
        for n, stream in enumerate(domain.streams)
    ]
    return ", ".join(["topic STRING", "`partition` STRING", *fields])


def judge_domain(domain: Domain) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return a function for `mapInArrow` that decodes and judges raw rows of all topics of a domain.

    Each output row has topic, partition and one nullable struct per topic (named t0, t1 … in the order of the streams)
    with the judged columns; the struct of the row's own topic is set.
    """
    streams = [replace(stream, generator=None) for stream in domain.streams]  # not the domain's module
    schemas = [pa.schema([(n, spark_arrow(t)) for n, t in judged_columns(stream).items()]) for stream in streams]

    def batches(source: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in source:
            raw = pa.Table.from_batches([batch])
            for own, stream in enumerate(streams):
                rows = raw.filter(pc.equal(raw["topic"], stream.topic))
                if rows.num_rows == 0:
                    continue
                judged = judge(decode_rows(stream, rows), stream).select(schemas[own].names).cast(schemas[own])
                columns = {"topic": rows["topic"], "partition": rows["partition"]}
                for n, schema in enumerate(schemas):
                    empty = pa.nulls(rows.num_rows, pa.struct(list(schema)))
                    columns[f"t{n}"] = judged.to_struct_array() if n == own else empty
                yield from pa.table(columns).combine_chunks().to_batches()

    return batches


def judge(rows: pa.Table, stream: Stream) -> pa.Table:
    """Give decoded rows the name of the first rule that is not TRUE as their problem."""
    if not (rules := stream.rules_in("duckdb")):
        return rows
    cases = " ".join(f"WHEN NOT coalesce(({sql}), false) THEN '{name}'" for name, sql in rules.items())
    with database().cursor() as cursor:
        cursor.register("decoded", without_zones(rows))
        problems = cursor.sql(f"SELECT CASE WHEN problem IS NOT NULL THEN problem {cases} END AS problem FROM decoded")
        return rows.set_column(rows.schema.get_field_index("problem"), "problem", problems.to_arrow_table()["problem"])


def rows_of_topics(collected: pa.Table, domain: Domain, logs: Mapping[str, str]) -> dict[str, pa.Table]:
    """Return topic → its judged rows, with topic, log and partition, of what a job has collected.

    Args:
        logs: topic → its present log.
    """
    found = {}
    for n, stream in enumerate(domain.streams):
        own = collected.filter(pc.equal(collected["topic"], stream.topic))
        rows = pa.Table.from_struct_array(own[f"t{n}"])
        rows = rows.add_column(0, "partition", own["partition"])
        rows = rows.add_column(0, "log", pa.repeat(pa.scalar(logs[stream.topic]), len(own)))
        found[stream.topic] = rows.add_column(0, "topic", own["topic"])
    return found


def good_rows(rows: pa.Table, first: Mapping[str, int], duplicates: Mapping[str, set[int]]) -> pa.Table:
    """Return the rows of one topic that count.

    Args:
        first: partition → the first offset that is not counted yet; all of a partition that it does not name.
        duplicates: partition → offsets of the rows that repeat a key.
    """
    good = rows["problem"].is_null().to_numpy(zero_copy_only=False)
    offsets = rows["offset"].to_numpy()
    for partition in pc.unique(rows["partition"]).to_pylist():
        here = pc.equal(rows["partition"], partition).to_numpy(zero_copy_only=False)
        good[here] &= offsets[here] >= first.get(partition, 0)
        good[here] &= ~np.isin(offsets[here], list(duplicates.get(partition, ())))
    return rows.filter(pa.array(good))


def partials(views: tuple[View, ...], good: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Fold the good rows of each topic to the stored columns of every view, one row per key."""
    with database().cursor() as cursor:
        for topic, rows in good.items():
            cursor.register(f"{GOOD_ROWS}{table_name(topic)}", without_zones(rows))
        folded = {}
        for view in views:
            query = partial_query(view, rows_query(view, GOOD_ROWS, "duckdb"), "duckdb")
            folded[view.name] = cursor.sql(query).to_arrow_table().cast(stored_schema(view))
        return folded


@functools.cache
def database() -> duckdb.DuckDBPyConnection:
    """Return this process's DuckDB with the measures' functions; each piece of work takes a cursor of its own."""
    connection = duckdb.connect(":memory:", config={"threads": "1", "autoinstall_known_extensions": "false"})
    register(connection)
    return connection


def without_zones(rows: pa.Table) -> pa.Table:
    """Return rows whose UTC times are without a zone, as the measures' SQL and stored rows have them."""
    return rows.cast(
        pa.schema([f.with_type(pa.timestamp("us")) if pa.types.is_timestamp(f.type) else f for f in rows.schema])
    )
