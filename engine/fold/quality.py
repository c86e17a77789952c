"""Which rows count? Rules in their declared order, then duplicates within the offset window.

A duplicate is a valid row (it decodes and passes every rule) whose unique key stood in a valid row of the same log and
partition at most W offsets before: with W = 100 and one key at 7, 107 and 208, offset 107 is a duplicate and 208 is an
event. The speed layer finds the same ones in `engine.fold.duplicates`, the recount in `engine.verify.rows`.

A row's problem depends on the row and on earlier offsets of its partition only, never on the clock, on segment
borders or on the order of work, so batch, speed and recount agree and two runs at once write the same bytes.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from engine.domain import Stream


def judged(rows: DataFrame, stream: Stream) -> DataFrame:
    """Give decoded rows the name of the first rule that is not TRUE as their problem."""
    cases = " ".join(
        f"WHEN NOT coalesce({rule}, false) THEN '{name}'" for name, rule in stream.rules_in("spark").items()
    )
    return rows.withColumn("problem", F.expr(f"coalesce(problem, CASE {cases} END)"))


def with_duplicates(rows: DataFrame, earlier: DataFrame | None, window: int) -> DataFrame:
    """Name the duplicates among judged rows of one topic.

    Args:
        rows: judged rows with log, partition, offset, ukey, problem.
        earlier: log, partition, offset, ukey of valid rows (good or duplicate) within `window` before them.
        window: W, in offsets: a copy at this distance is a duplicate, one farther is an event.
    """
    fresh = rows.withColumn("_fresh", F.lit(True))
    if earlier is not None:
        fresh = fresh.unionByName(earlier.withColumn("_fresh", F.lit(False)), allowMissingColumns=True)
    valid = F.col("problem").isNull()
    same_key = Window.partitionBy("log", "partition", "ukey", valid).orderBy("offset")
    distance = F.col("offset") - F.lag("offset").over(same_key)
    return (
        fresh.withColumn("_distance", distance)
        .where("_fresh")
        .withColumn("problem", F.when(valid & (F.col("_distance") <= window), "duplicate").otherwise(F.col("problem")))
        .drop("_fresh", "_distance")
    )
