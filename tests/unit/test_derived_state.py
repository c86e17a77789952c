"""What can be made again: numbers that never come back, damage that is set aside, domains that fail alone.

Real batch runs in a folder.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import SparkSession

import batch_layer
from engine.batch import build
from engine.batch.plan import planned
from engine.domain import Domain, Report
from engine.runtime import settings
from engine.runtime.metrics import BatchMetrics
from engine.storage import chains, derived, versions
from engine.storage.hdfs import HdfsUnavailable
from engine.storage.log import MASTER, MasterWentBack, segment_path, typed_root
from engine.storage.versions import Manifest, VersionUnknown
from tests.unit.localfs import LocalFs
from tests.unit.serving_data import parquet
from tests.unit.test_reports import BUSIEST, ORDERS, SHOP, SHOPS, ingest, rows

Run = Callable[..., Manifest]


@pytest.fixture
def fs(tmp_path: Path) -> LocalFs:
    return LocalFs(tmp_path)


@pytest.fixture
def run(spark: SparkSession, fs: LocalFs) -> Run:
    """One run of batch_layer.py without its process; what it showed is `run.shown`."""
    config = replace(settings.load(env_file=None), hdfs_url=f"file://{fs.root}", keep_versions=2)

    def once(domain: Domain = SHOP, **flags: bool) -> Manifest:
        given = Namespace(**{"full": False, "typed": False, "candidate": False, **flags})
        once.shown = BatchMetrics([domain], None)  # type: ignore[attr-defined]
        made = batch_layer.run_listed_again(spark, fs, domain, config, given, once.shown, False)  # type: ignore[attr-defined]
        assert made is not None
        return made

    return once


def aside(run: Run) -> float:
    """What the last run says that it set aside."""
    return run.shown.registry.get_sample_value("highwater_batch_set_aside_total", {"domain": "tiny"})  # type: ignore[attr-defined,no-any-return]


def garble(fs: LocalFs, path: str, keep: int = 20) -> None:
    """Cut a file short, as a crash of its disk does."""
    data = fs.read(path)[:keep]
    fs.delete(path)
    fs.create(path, data)


def part_of(fs: LocalFs, version: int, name: str) -> str:
    folder = f"{versions.folder('tiny', version)}/{name}"
    return next(entry.path for entry in fs.list(folder) if entry.name.endswith(".parquet"))


# Numbers --------------------------------------------------------------------------------------------------------------


def test_the_number_of_a_version_deleted_by_hand_never_comes_back(fs: LocalFs, run: Run) -> None:
    for at in range(2):
        ingest(fs, at, ("north", 1))
        assert run().version == at + 1
    fs.delete(versions.folder("tiny", 2), recursive=True)
    made = run()
    assert (made.version, made.parent, made.events) == (3, 1, 2)
    fs.delete(versions.VERSIONS, recursive=True)
    made = run()
    assert (made.version, made.parent, made.events) == (4, 0, 2)
    assert [e.name for e in fs.list(f"{versions.TAKEN_VERSIONS}/tiny")] == ["0000000004"], "only the newest is kept"


def test_of_two_runs_with_one_number_one_wins_even_where_its_version_was_deleted_since(
    fs: LocalFs, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run is paused before its rename, while versions come, are pruned, and are deleted by hand."""
    ingest(fs, 0, ("north", 1))
    assert run().version == 1
    ingest(fs, 1, ("north", 1))
    take, paused = derived.take, [True]

    def overtaken(file_system: Any, record: str, number: int) -> bool:
        if paused.pop() if paused else False:
            assert run().version == 2
            ingest(fs, 2, ("north", 1))
            assert run().version == 3
            for version in (2, 3):
                fs.delete(versions.folder("tiny", version), recursive=True)
        return take(file_system, record, number)

    monkeypatch.setattr(derived, "take", overtaken)
    with pytest.raises(AssertionError):  # the paused run says that another one was first
        run()
    assert versions.numbers(fs, "tiny") == []
    assert run().version == 4


def test_a_plain_folder_is_of_a_version_and_not_of_its_number(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 1))
    run()
    fs.delete(versions.VIEWS, recursive=True)  # with all that is remembered of numbers
    plain = LocalFs(fs.root)
    ingest(fs, 1, ("north", 1))
    again = run()
    assert again.version == 1
    (file,) = (e for e in plain.list(f"{versions.VIEWS}/shop_orders") if e.name.endswith(".parquet"))
    assert plain.open_parquet(file.path).read().to_pylist() == [{"shop": "north", "orders": 2}]
    older = replace(again, created_at="2026-01-01T00:00:00+00:00")
    fs.delete(f"{versions.folder('tiny', 1)}/manifest.json")
    fs.create(f"{versions.folder('tiny', 1)}/manifest.json", older.to_json())
    build.refresh_plain_folders(fs, SHOP)  # type: ignore[arg-type]
    assert plain.read(f"{versions.VIEWS}/shop_orders/_version-0000000001").decode() == older.created_at


# Digests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{"full": True}, {"full": True, "typed": True}])
def test_a_refold_of_other_rows_than_those_of_the_parent_is_refused_by_name(
    fs: LocalFs, run: Run, flags: dict[str, bool]
) -> None:
    ingest(fs, 0, ("north", 1), ("north", 2))
    ingest(fs, 2, ("south", 3))
    run()
    assert run(**flags).version == 2
    for root in (MASTER, typed_root(ORDERS)) if "typed" not in flags else (MASTER,):
        first = next(e.path for e in fs.list(root, recursive=True) if e.name == f"{0:020d}.parquet")
        fs.delete(first)
    ingest(fs, 0, ("north", 1), ("north", 3))
    with pytest.raises(
        MasterWentBack, match=r"MASTER_WENT_BACK topic 'orders' log L partition 0: the rows \[\d, 3\) .* 2 "
    ):
        run(**flags)
    assert versions.numbers(fs, "tiny") == [1, 2]


def test_the_first_raw_segment_removed_by_hand_is_missed_by_a_full_run(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 1), ("north", 2))
    ingest(fs, 2, ("south", 3))
    run()
    fs.delete(segment_path(MASTER, "orders", "L", "0", 0))
    with pytest.raises(
        MasterWentBack, match=r"partition 0: the rows \[2, 3\) are not those of which version 1 was made"
    ):
        run(full=True, typed=True)


def test_a_changed_rule_does_not_change_the_digest(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 1), ("north", 2))
    before = run()
    stream = replace(ORDERS, rules={"price_above_1": "price > 1"})
    changed = replace(SHOP, streams=(stream,), views=(replace(SHOPS, streams=(stream,)),))
    after = run(changed)
    assert (after.version, after.events, after.digests) == (2, 1, before.digests)


# Topics that leave ----------------------------------------------------------------------------------------------------

RETURNS = replace(ORDERS, topic="returns")
RETURNED = replace(SHOPS, name="shop_returns", streams=(RETURNS,))
BOTH = Domain("tiny", (ORDERS, RETURNS), (SHOPS, RETURNED), ())


def copied(fs: LocalFs, source: str, target: str) -> None:
    """Give another topic the log of one."""
    for entry in fs.list(f"{MASTER}/topic={source}", recursive=True):
        if not entry.is_folder:
            fs.create(entry.path.replace(f"topic={source}", f"topic={target}"), fs.read(entry.path))


def test_a_topic_that_is_removed_or_renamed_stops_no_run(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 1), ("south", 2))
    copied(fs, "orders", "returns")
    first = run(BOTH)
    assert set(first.horizon) == {"orders", "returns"} and first.events == 4
    alone = replace(BOTH, streams=(ORDERS,), views=(SHOPS,))
    assert any("topic returns: no longer declared" in line for line in planned(fs, alone, first))  # type: ignore[arg-type]
    second = run(alone)
    assert (second.version, set(second.horizon), set(second.counts), second.events) == (2, {"orders"}, {"orders"}, 2)
    ingest(fs, 2, ("north", 3))
    assert run(alone).events == 3, "and what is there is added to"
    moved = replace(ORDERS, topic="purchases")
    copied(fs, "orders", "purchases")
    renamed = run(Domain("tiny", (moved,), (replace(SHOPS, streams=(moved,)),), ()))
    assert (set(renamed.horizon), renamed.events) == ({"purchases"}, 3)
    assert run(BOTH).events == 5, "a topic that comes back is folded from its beginning"


def test_a_topic_of_the_definition_that_lost_rows_still_stops_the_run(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 1))
    ingest(fs, 1, ("north", 1))
    run()
    for root in (MASTER, typed_root(ORDERS)):
        fs.delete(segment_path(root, "orders", "L", "0", 1))
    for entry in fs.list(typed_root(ORDERS), recursive=True):
        if entry.name.endswith(".parquet"):
            fs.delete(entry.path)
    with pytest.raises(MasterWentBack, match="version 1 lies beyond the raw log"):
        run()


# Reports that raise, domains that fail --------------------------------------------------------------------------------


BROKEN = {
    "overflows": (
        "SELECT shop, sum(9223372036854775807 * CAST(price AS BIGINT)) AS p FROM orders GROUP BY shop",
        "OVERFLOW",
    ),
    "divides": ("SELECT shop, 1 / (price - price) AS p FROM orders", "DIVIDE_BY_ZERO"),
    "misspelt": ("SELECT shop, no_such_column AS p FROM orders", "UNRESOLVED_COLUMN"),
    "no_sql": ("SELEC shop", "PARSE_SYNTAX_ERROR"),
    "raises": ("SELECT shop, raise_error('by hand') AS p FROM orders", "by hand"),
    "reads_another": ("SELECT shop FROM divides", "DIVIDE_BY_ZERO"),
}


def test_a_report_that_raises_is_held_back_with_its_error_as_reason(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 2), ("south", 2))
    sound = [Report(name, ("shop",), "SELECT shop, price AS p FROM orders") for name in BROKEN]
    run(replace(SHOP, reports=(*sound, BUSIEST)))
    broken = [Report(name, ("shop",), sql) for name, (sql, _) in BROKEN.items()]
    checked = Report("checked", ("shop",), "SELECT shop FROM orders", checks={"c": "SELECT 1 / 0 > 1 FROM report"})
    made = run(replace(SHOP, reports=(*broken, checked, BUSIEST)))
    assert (made.version, made.events, made.reports["busiest"]["status"]) == (2, 2, "ok")
    for name, (_, why) in BROKEN.items():
        held = made.reports[name]
        assert (held["status"], held["version"], held["held_since"]) == ("held", 1, 2) and why in held["error"]
        assert fs.list(f"{versions.folder('tiny', 2)}/{name}") == [] and len(rows(fs, 1, name)) == 2
        said = versions.held_back(made)[name]
        assert said.startswith("held back since version 2, version 1 of it is served; it fails: ") and why in said
    assert made.reports["checked"]["version"] is None and "DIVIDE_BY_ZERO" in made.reports["checked"]["error"]
    mended = run(replace(SHOP, reports=(*sound, BUSIEST)))
    assert {(entry["status"], "error" in entry) for entry in mended.reports.values()} == {("ok", False)}


def test_a_service_that_is_away_is_no_fault_of_a_report(fs: LocalFs, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyspark.errors import PySparkException

    ingest(fs, 0, ("north", 2))

    def away(*_: Any) -> Any:
        raise PySparkException("Job aborted: java.net.ConnectException: Connection refused")

    monkeypatch.setattr(build.spark_fold, "report_rows", away)
    with pytest.raises(PySparkException):
        run()
    assert versions.numbers(fs, "tiny") == []


class StopAfterTwo:
    """A stop signal that comes while the process sleeps for the second time."""

    sleeps = 0

    def __bool__(self) -> bool:
        return self.sleeps == 2

    def sleep(self, seconds: float) -> None:
        self.sleeps += 1


@pytest.mark.parametrize(
    ("flags", "errors", "code", "rounds"),
    [
        ([], [MasterWentBack("MASTER_WENT_BACK domain learning")], 1, 1),
        ([], [HdfsUnavailable("away")], 75, 1),
        ([], [HdfsUnavailable("away"), VersionUnknown("gone")], 1, 1),
        ([], [KeyError("a bug")], 75, 1),
        (["--every", "10m"], [MasterWentBack("MASTER_WENT_BACK domain learning")], 0, 2),
        (["--every", "10m"], [HdfsUnavailable("away")], 75, 1),
        (["--every", "10m"], [KeyError("a bug")], 75, 1),
    ],
)
def test_a_domain_that_fails_stops_no_other_and_the_worst_code_is_told(
    flags: list[str],
    errors: list[Exception],
    code: int,
    rounds: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("Hdfs", "spark_session", "clean_staging"):
        monkeypatch.setattr(batch_layer, name, lambda *_: None)
    for name, fake in (("Stop", StopAfterTwo), ("stop_spark", lambda _: None), ("start_logging", lambda _: None)):
        monkeypatch.setattr(batch_layer.observe, name, fake)
    monkeypatch.setenv("BATCH_METRICS_PORT", "0")
    monkeypatch.setattr(batch_layer, "held_back", lambda _: {})
    ran: list[str] = []
    failing = dict(zip(("learning", "iot"), errors, strict=False))

    def one(spark: Any, fs: Any, domain: Domain, *_: Any, again: bool) -> Any:
        ran.append(domain.name)
        if domain.name in failing:
            raise failing[domain.name]
        return SimpleNamespace(domain=domain.name, events=1)

    monkeypatch.setattr(batch_layer, "run", one)
    command = ["--domain", "learning,iot,movies", *flags]
    if code:
        with pytest.raises(SystemExit) as left:
            batch_layer.main(command)
        assert left.value.code == code
    else:
        batch_layer.main(command)
    assert ran == ["learning", "iot", "movies"] * rounds
    assert capsys.readouterr().err.count(str(errors[0])) >= rounds


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_manifest_is_set_aside_and_the_next_version_is_built_on_another(
    fs: LocalFs, run: Run, damaged: int
) -> None:
    for at in range(2):
        ingest(fs, at, ("north", 1))
        run()
    garble(fs, f"{versions.folder('tiny', damaged)}/manifest.json")
    assert [m.version for m in versions.manifests(fs, "tiny")] == [3 - damaged], "readers leave it out"
    ingest(fs, 2, ("south", 2))
    made = run()
    assert (made.version, made.parent, made.events, aside(run)) == (3, 3 - damaged, 3, 1)
    assert rows(fs, 3, "shop_orders") == [{"shop": "north", "orders": 2}, {"shop": "south", "orders": 1}]
    assert [e.name[:19] for e in fs.list(f"{versions.VERSIONS}/tiny") if e.name.startswith("_")] == [
        f"_damaged-{damaged:010d}"
    ]
    assert run().version == 3 and aside(run) == 0


def test_damaged_rows_of_the_parent_are_set_aside_and_folded_anew(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 1), ("south", 1))
    entry = run().views["shop_orders"]
    folder, path = f"{versions.folder('tiny', 1)}/shop_orders", part_of(fs, 1, "shop_orders")
    data, table = fs.read(path), fs.open_parquet(path).read()
    for broken in (data[:-9], parquet(table.slice(0, 1)), None):
        fs.delete(path)
        if broken is not None:
            fs.create(path, broken)
        with pytest.raises(build.VersionDamaged):
            build._check_files(fs, folder, entry)  # type: ignore[arg-type]
    fs.create(path, data[:4] + b"\xff" * 36 + data[40:])  # only Spark sees that
    build._check_files(fs, folder, entry)  # type: ignore[arg-type]
    for file in fs.list(folder):
        if file.name.endswith(".crc"):
            fs.delete(file.path)
    ingest(fs, 2, ("south", 1))
    made = run()
    assert (made.version, made.parent, made.events, aside(run)) == (2, 0, 3, 1)
    assert rows(fs, 2, "shop_orders") == [{"shop": "north", "orders": 1}, {"shop": "south", "orders": 2}]


def test_a_damaged_version_is_made_again_although_nothing_is_new(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 1), ("south", 1))
    run()
    assert run().version == 1
    fs.delete(part_of(fs, 1, "shop_orders"))
    made = run()
    assert (made.version, made.events, aside(run)) == (2, 2, 1)
    assert rows(fs, 2, "shop_orders") == [{"shop": "north", "orders": 1}, {"shop": "south", "orders": 1}]


def test_a_run_that_loses_a_file_on_its_way_lists_again_and_then_asks_to_be_restarted(
    fs: LocalFs, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(fs, 0, ("north", 1))
    refresh, lost = build.refresh_plain_folders, [1, 1]

    def loses(*work: Any) -> None:
        if lost:
            lost.pop()
            raise FileNotFoundError("part-0.parquet")
        refresh(*work)

    monkeypatch.setattr(build, "refresh_plain_folders", loses)
    assert run().version == 1 and not lost
    lost += [1] * 3
    with pytest.raises(build.RowsDiffer, match="a file went away"):
        run()


# Chains ---------------------------------------------------------------------------------------------------------------


def test_the_number_of_a_chain_never_comes_back(fs: LocalFs) -> None:
    for number in (1, 2):
        assert chains.next_number(fs, "tiny") == number
        assert chains.begin(fs, SHOP, number, 0, {}, {}, "now")
    assert chains.begin(fs, SHOP, 2, 0, {}, {}, "now") is None
    fs.delete(f"{chains.SPEED}/tiny", recursive=True)
    assert chains.begin(fs, SHOP, 1, 0, {}, {}, "now") is None, "of a paused process"
    assert chains.begin(fs, SHOP, 2, 0, {}, {}, "now") is None
    assert chains.next_number(fs, "tiny") == 3


def test_copies_that_overlap_what_was_read_again_count_each_offset_once(fs: LocalFs, run: Run) -> None:
    """Segments were lost, ingest read their offsets again in other pieces, and an operator put the copies back."""
    orders = [("north", n) for n in range(9)]
    ingest(fs, 0, *orders[:3])
    ingest(fs, 3, *orders[3:5])
    first = segment_path(MASTER, "orders", "L", "0", 0)
    copy = fs.read(first)
    fs.delete(first)
    ingest(fs, 0, orders[0])
    ingest(fs, 1, *orders[1:8])
    ingest(fs, 8, orders[8])
    fs.delete(first)
    fs.create(first, copy)
    assert run().events == 9
    assert run(full=True, typed=True).events == 9
    names = [int(entry.name[:20]) for entry in fs.list(first.rpartition("/")[0]) if entry.name.endswith(".parquet")]
    assert names == [0, 1, 8], "the copy that others hold whole went away"
