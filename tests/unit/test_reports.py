"""What happens to a report whose check fails? Real batch runs of a small domain on local Spark, in a folder."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

import batch_layer
from engine.domain import Domain, Report, Stream, View, count
from engine.runtime import settings
from engine.runtime.metrics import BatchMetrics
from engine.storage import versions
from engine.storage.log import MASTER, segment_path
from engine.storage.versions import Manifest
from tests.unit.localfs import LocalFs
from tests.unit.serving_data import parquet
from tests.unit.test_decode import NOW

ORDERS = Stream(
    "orders",
    {"id": "STRING", "shop": "STRING", "price": "DECIMAL(10,2)", "moment": "TIMESTAMP"},
    key="id",
    unique=("id",),
    time="moment",
)
SHOPS = View("shop_orders", (ORDERS,), ("shop",), {"orders": count()})
DEAREST = Report(
    "dearest",
    ("shop",),
    "SELECT shop, max(price) AS price FROM orders GROUP BY shop",
    checks={
        "not_above_100": "SELECT max(price) <= 100, max(price) AS largest, count(*) AS shops FROM report",
        "has_rows": "SELECT count(*) > 0 FROM report",
    },
)
BUSIEST = Report("busiest", ("shop",), "SELECT shop, count(*) AS orders FROM orders GROUP BY shop")
SHOP = Domain("tiny", (ORDERS,), (SHOPS,), (DEAREST, BUSIEST))
WHY = 'check not_above_100: passed false, largest "250.00", shops "2"'

Run = Callable[[Domain], dict[str, str]]


@pytest.fixture
def fs(tmp_path: Path) -> LocalFs:
    return LocalFs(tmp_path)


@pytest.fixture
def run(spark: SparkSession, fs: LocalFs) -> Run:
    """One run of batch_layer.py without its process; returns the reports it says are held."""
    config = replace(settings.load(env_file=None), hdfs_url=f"file://{fs.root}")

    def once(domain: Domain) -> dict[str, str]:
        flags, shown = Namespace(full=False, typed=False, candidate=False), BatchMetrics([domain], None)
        made = batch_layer.run(spark, fs, domain, config, flags, shown, False)  # type: ignore[arg-type]
        assert made is not None
        return versions.held_back(made)

    return once


def ingest(fs: LocalFs, first: int, *orders: tuple[str, float]) -> None:
    """Write orders of (shop, price) as the raw segment that begins at an offset."""
    values = [
        json.dumps({"id": f"o{first + n}", "shop": shop, "price": price, "moment": "2026-01-01T00:00:00Z"})
        for n, (shop, price) in enumerate(orders)
    ]
    nothing = pa.array([None] * len(values), pa.binary())
    headers = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
    segment = pa.table(
        {
            "key": pa.array([f"o{first + n}" for n in range(len(values))]),
            "value": values,
            "key_bytes": nothing,
            "value_bytes": nothing,
            "offset": pa.array(range(first, first + len(values)), pa.int64()),
            "timestamp": pa.array([NOW] * len(values), pa.timestamp("us", tz="UTC")),
            "headers": pa.array([None] * len(values), headers),
        }
    )
    fs.create(segment_path(MASTER, "orders", "L", "0", first), parquet(segment))


def newest(fs: LocalFs) -> Manifest:
    return versions.manifests(fs, "tiny")[-1]


def rows(fs: LocalFs, version: int, name: str) -> list[dict[str, Any]]:
    folder = f"{versions.folder('tiny', version)}/{name}"
    files = [entry.path for entry in fs.list(folder) if entry.name.endswith(".parquet")]
    found = [row for path in files for row in fs.open_parquet(path).read().to_pylist()]
    return sorted(found, key=lambda row: str(row["shop"]))


def test_a_failed_check_holds_back_that_report_until_it_is_mended(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 20), ("south", 30))
    assert run(SHOP) == {}
    assert newest(fs).reports["dearest"]["failed_checks"] == {}
    good = rows(fs, 1, "dearest")

    ingest(fs, 2, ("south", 250))
    told = f"held back since version 2, version 1 of it is served; {WHY}"
    assert run(SHOP) == {"dearest": told}
    second = newest(fs)
    assert (second.version, second.events, second.reports["busiest"]["status"]) == (2, 3, "ok")
    assert rows(fs, 2, "busiest") == [{"shop": "north", "orders": 1}, {"shop": "south", "orders": 2}]
    assert rows(fs, 2, "shop_orders") == rows(fs, 2, "busiest")
    held = second.reports["dearest"]
    assert (held["status"], held["version"], held["held_since"]) == ("held", 1, 2)
    assert rows(fs, held["version"], "dearest") == good and rows(fs, 2, "dearest") == []

    assert run(SHOP) == {"dearest": told} and newest(fs).version == 2, "nothing new does not make it good"
    ingest(fs, 3, ("north", 1))
    assert run(SHOP) == {"dearest": told} and newest(fs).version == 3

    mended = replace(DEAREST, checks={"not_above_1000": "SELECT max(price) <= 1000 FROM report"})
    assert run(replace(SHOP, reports=(mended, BUSIEST))) == {}
    last = newest(fs)
    assert (last.version, last.reports["dearest"]["status"]) == (4, "ok") and "held_since" not in last.reports[
        "dearest"
    ]
    assert [str(row["price"]) for row in rows(fs, 4, "dearest")] == ["20.00", "250.00"]


def test_a_report_that_never_passed_is_held_without_rows(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 200), ("south", 250))
    told = f"held back since version 1, no version of it is there yet; {WHY}"
    assert run(SHOP) == {"dearest": told}
    assert newest(fs).reports["dearest"]["version"] is None


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ("SELECT CAST(NULL AS BOOLEAN) FROM report LIMIT 1", {"passed": None}),
        ("SELECT true, 1 AS one FROM report WHERE false", {"passed": None, "one": None}),
        ("SELECT max(price) < 0, CAST(NULL AS INT) AS nothing FROM report", {"passed": False, "nothing": None}),
    ],
)
def test_only_true_passes(fs: LocalFs, run: Run, check: str, said: dict[str, Any]) -> None:
    ingest(fs, 0, ("north", 20))
    run(replace(SHOP, reports=(replace(DEAREST, checks={"c": check}),)))
    assert newest(fs).reports["dearest"]["failed_checks"] == {"c": said}


class StopAfterTwo:
    """A stop signal that comes while the process sleeps for the second time."""

    sleeps = 0

    def __bool__(self) -> bool:
        return self.sleeps == 2

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1


@pytest.mark.parametrize(("flags", "rounds"), [([], 1), (["--every", "10m"], 2)])
def test_a_single_run_exits_1_for_a_held_report_and_a_repeating_one_goes_on(
    flags: list[str], rounds: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("Hdfs", "spark_session", "clean_staging"):
        monkeypatch.setattr(batch_layer, name, lambda *_: None)
    for name, fake in (("Stop", StopAfterTwo), ("stop_spark", lambda _: None), ("start_logging", lambda _: None)):
        monkeypatch.setattr(batch_layer.observe, name, fake)
    monkeypatch.setenv("BATCH_METRICS_PORT", "0")
    told = {"learning": {"bands": WHY}, "iot": {}}
    monkeypatch.setattr(
        batch_layer, "run", lambda spark, fs, domain, *_, again: SimpleNamespace(domain=domain.name, events=1)
    )
    monkeypatch.setattr(batch_layer, "held_back", lambda version: told[version.domain])
    command = ["--domain", "learning,iot", *flags]
    if rounds == 1:
        with pytest.raises(SystemExit) as left:
            batch_layer.main(command)
        assert left.value.code == 1
    else:
        batch_layer.main(command)
    assert capsys.readouterr().err == f"held: learning report 'bands': {WHY}\n" * rounds
