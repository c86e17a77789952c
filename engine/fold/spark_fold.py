"""How do typed rows become view rows in Spark? The fold of a batch range; a micro-batch has `engine.fold.micro_batch`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from engine.domain import Report, View, table_name
from engine.fold.measures import merge_query, partial_query, rows_query, show_query


def register_good_rows(good: Mapping[str, DataFrame], prefix: str = "") -> None:
    """Make the good rows of each topic known to SQL as `<prefix><table name>`."""
    for topic, rows in good.items():
        rows.createOrReplaceTempView(f"{prefix}{table_name(topic)}")


def partials(spark: SparkSession, view: View, prefix: str = "") -> DataFrame:
    """Fold the registered good rows of a view's streams to its stored columns, one row per key.

    Args:
        prefix: that the good rows were registered with.
    """
    return spark.sql(partial_query(view, rows_query(view, prefix, "spark"), "spark"))


def merged(spark: SparkSession, view: View, parent: DataFrame | None, fresh: DataFrame) -> DataFrame:
    """Merge stored rows of an earlier version with fresh partials and add the shown columns."""
    stored = fresh if parent is None else parent.select(*fresh.columns).unionByName(fresh)
    stored.createOrReplaceTempView(f"stored_{view.name}")
    table = (
        f"stored_{view.name}" if parent is None else f"({merge_query(view, f'stored_{view.name}', 'spark')}) AS merged"
    )
    return spark.sql(show_query(view, table, "spark"))


def report_rows(spark: SparkSession, report: Report) -> tuple[DataFrame, dict[str, dict[str, Any]]]:
    """Compute a report over the registered good rows and earlier reports.

    Returns:
        Its rows, and for each check that failed {"passed": False or None, further column: its value as text}.

    Raises:
        What Spark raises for SQL or data that it refuses.
    """
    spark.catalog.dropTempView(report.name)  # of another domain or run: what reads a report that fails must fail, too
    rows = spark.sql(report.query).persist()
    rows.createOrReplaceTempView(report.name)
    rows.createOrReplaceTempView("report")
    told = {name: _told(spark.sql(sql)) for name, sql in report.checks.items()}
    return rows, {name: said for name, said in told.items() if said["passed"] is not True}


def _told(check: DataFrame) -> dict[str, Any]:
    """What the first row of a check says; no row is as good as NULL."""
    row = check.first() or [None] * len(check.columns)
    texts = (None if value is None else str(value) for value in row[1:])
    return {"passed": row[0] if isinstance(row[0], bool) else None, **dict(zip(check.columns[1:], texts, strict=True))}
