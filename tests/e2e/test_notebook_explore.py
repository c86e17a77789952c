"""notebooks/explore.ipynb on the real stack, while events arrive: it compares three readers and proves an answer."""

from __future__ import annotations

import re

from tests.e2e.conftest import Pipeline
from tests.notebook import NOTEBOOKS, execute


def test_explore_runs_on_a_live_system_from_top_to_bottom(pipeline: Pipeline, serving_url: str) -> None:
    said = execute("explore", NOTEBOOKS, pipeline.env, seconds=300)
    assert re.search(r"view course_minutes of version [1-9]", said["choose"])
    for dataset in ("master", "typed", "view"):
        found = re.search(rf"^{dataset} +(.*)$", said["counts"], re.M)
        assert found, said["counts"]
        files, promised, spark, duckdb, pyarrow = map(int, found[1].split())
        assert files > 0 and promised == spark == duckdb == pyarrow > 0
    assert "malformed" in said["spark-problems"] and "duplicate" in said["spark-problems"]
    assert "balanced True" in said["ledger"]
