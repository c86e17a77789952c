"""What a PySpark shell begins with: `spark`, and the master dataset as `master`. `make spark-shell` starts it.

PYTHONSTARTUP=stack/shell.py pyspark        runs this once `spark` is there
"""

from __future__ import annotations

from typing import Any

MASTER = "/data/master_dataset"


def open_master(spark: Any) -> Any:
    """Return the master dataset as a DataFrame with text for path columns; None while nothing was ingested."""
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    spark.conf.set("spark.sql.sources.partitionColumnTypeInference.enabled", "false")
    try:
        return spark.read.parquet(MASTER)
    except Exception as error:
        if getattr(error, "getCondition", str)() != "PATH_NOT_FOUND":
            raise
        return None


if "spark" in globals():
    master = open_master(globals()["spark"])
    if master is None:
        print(f"{MASTER} is empty: start ingest and a producer, then: master = spark.read.parquet('{MASTER}')")
    else:
        master.createOrReplaceTempView("master")
        print(
            "ready: master (DataFrame and SQL view), e.g. spark.sql('SELECT topic, count(*) FROM master GROUP BY 1').show()"
        )
