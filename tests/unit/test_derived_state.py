"""What can be made again: numbers that never come back, damage that is set aside, domains that fail alone. Real batch runs in a folder."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import SparkSession

import batch_layer
from engine import build, derived, domain, settings, versions
from engine import chain as chains
from engine.domain import Domain, Report, count
from engine.events import typed_root
from engine.hdfs import HdfsUnavailable
from engine.log import MASTER, MasterWentBack, segment_path
from engine.metrics import BatchMetrics
from engine.plan import planned
from engine.versions import Manifest, VersionUnknown
from tests.unit.localfs import LocalFs
from tests.unit.test_reports import BUSIEST, DEAREST, ORDERS, SHOP, SHOPS, ingest, newest, rows

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


# Numbers ---------------------------------------------------------------------------------------------------------------


def test_the_number_of_a_version_deleted_by_hand_never_comes_back(fs: LocalFs, run: Run) -> None:
    for at in range(3):
        ingest(fs, at, ("north", 1))
        assert run().version == at + 1
    fs.delete(versions.folder("tiny", 3), recursive=True)
    made = run()
    assert (made.version, made.parent, made.events) == (4, 2, 3)
    fs.delete(versions.VERSIONS, recursive=True)
    made = run()
    assert (made.version, made.parent, made.events) == (5, 0, 3)
    assert [e.name for e in fs.list(f"{versions.TAKEN_VERSIONS}/tiny")] == ["0000000005"], "only the newest is kept"


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


# Digests ---------------------------------------------------------------------------------------------------------------


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


# Prune -----------------------------------------------------------------------------------------------------------------


def test_prune_keeps_the_rows_of_a_report_that_a_pinned_version_shows(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 1))
    run()
    ingest(fs, 1, ("north", 200))  # the report is held back from version 2 on
    assert run().reports["dearest"]["version"] == 1
    versions.choose(fs, "tiny", 2, follow=False)
    for at in range(2, 6):
        ingest(fs, at, ("north", 1))
        run(replace(SHOP, reports=(replace(DEAREST, checks={}), BUSIEST)))
    assert versions.numbers(fs, "tiny") == [1, 2, 5, 6]
    assert [str(row["price"]) for row in rows(fs, 1, "dearest")] == ["1.00"]


def test_a_version_that_is_chosen_while_it_is_pruned_stays_or_is_refused(
    fs: LocalFs, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(4):
        ingest(fs, at, ("north", 1))
        run(replace(SHOP, reports=(BUSIEST,)))
    assert versions.numbers(fs, "tiny") == [3, 4]
    rename = fs.rename

    def chosen_first(source: str, target: str) -> None:
        if source == versions.folder("tiny", 3):
            monkeypatch.setattr(fs, "rename", rename)
            versions.choose(fs, "tiny", 3, follow=False)
        rename(source, target)

    monkeypatch.setattr(fs, "rename", chosen_first)
    build.prune(fs, SHOP, 1)  # type: ignore[arg-type]
    assert versions.numbers(fs, "tiny") == [3, 4]

    def pruned_meanwhile(source: str, target: str) -> None:
        rename(source, target)
        if target.startswith(versions.SERVED):
            fs.delete(versions.folder("tiny", 4), recursive=True)

    monkeypatch.setattr(fs, "rename", pruned_meanwhile)
    with pytest.raises(VersionUnknown, match="version 4 was pruned meanwhile; there are 3"):
        versions.choose(fs, "tiny", 4, follow=False)
    chosen = versions.choice(fs, "tiny")
    assert chosen and chosen.version == 3


# Topics that leave -----------------------------------------------------------------------------------------------------

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
    with pytest.raises(MasterWentBack, match="version 1 lies beyond the typed log"):
        run()


# Reports that raise, domains that fail ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        (
            "SELECT shop, sum(9223372036854775807 * CAST(price AS BIGINT)) AS price FROM orders GROUP BY shop",
            "OVERFLOW",
        ),
        ("SELECT shop, 1 / (price - price) AS price FROM orders", "DIVIDE_BY_ZERO"),
        ("SELECT shop, no_such_column AS price FROM orders", "UNRESOLVED_COLUMN"),
        ("SELEC shop", "PARSE_SYNTAX_ERROR"),
        ("SELECT shop, raise_error('by hand') AS price FROM orders", "by hand"),
    ],
)
def test_a_report_that_raises_is_held_back_with_its_error_as_reason(fs: LocalFs, run: Run, sql: str, why: str) -> None:
    ingest(fs, 0, ("north", 2), ("south", 2))
    good = run()
    reads_it = Report("reads_it", ("shop",), "SELECT shop FROM dearest")
    broken = replace(SHOP, reports=(Report("dearest", ("shop",), sql), reads_it, BUSIEST))
    made = run(broken)
    held = made.reports["dearest"]
    assert (made.version, made.events, held["status"], held["version"], held["held_since"]) == (2, 2, "held", 1, 2)
    assert why in held["error"]
    assert made.reports["busiest"]["status"] == "ok" and made.reports["reads_it"]["status"] == "held"
    assert fs.list(f"{versions.folder('tiny', 2)}/dearest") == [] and len(rows(fs, 1, "dearest")) == 2
    said = versions.held_back(made)["dearest"]
    assert said.startswith("held back since version 2, version 1 of it is served; it fails: ") and why in said
    ingest(fs, 2, ("north", 2))
    mended = run(replace(SHOP, reports=(replace(DEAREST, checks={}), BUSIEST)))
    assert (
        mended.reports["dearest"]["status"] == "ok" and "error" not in mended.reports["dearest"] and good.version == 1
    )


def test_a_check_that_raises_holds_its_report_back(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 2))
    made = run(replace(SHOP, reports=(replace(DEAREST, checks={"c": "SELECT 1 / 0 > 1 FROM report"}),)))
    assert made.reports["dearest"]["status"] == "held" and "DIVIDE_BY_ZERO" in made.reports["dearest"]["error"]


def test_a_service_that_is_away_is_no_fault_of_a_report(fs: LocalFs, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyspark.errors import PySparkException

    ingest(fs, 0, ("north", 2))

    def away(*_: Any) -> Any:
        raise PySparkException("Job aborted: java.net.ConnectException: Connection refused")

    monkeypatch.setattr(build.fold, "report_rows", away)
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
        ([], [KeyError("a bug")], 1, 1),
        (["--every", "10m"], [MasterWentBack("MASTER_WENT_BACK domain learning")], 0, 2),
        (["--every", "10m"], [HdfsUnavailable("away")], 75, 1),
        (["--every", "10m"], [KeyError("a bug")], 0, 2),
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
    assert capsys.readouterr().err.count(str(errors[0])) == rounds


# Damage ----------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("how", ["cut", "gone", "fewer rows", "garbled page"])
def test_damaged_rows_of_the_parent_are_set_aside_and_folded_anew(fs: LocalFs, run: Run, how: str) -> None:
    ingest(fs, 0, ("north", 1), ("south", 1))
    run()
    path = part_of(fs, 1, "shop_orders")
    if how == "cut":
        garble(fs, path)
    elif how == "gone":
        fs.delete(path)
    elif how == "fewer rows":
        from tests.unit.serving_data import parquet

        table = fs.open_parquet(path).read().slice(0, 1)
        fs.delete(path)
        fs.create(path, parquet(table))
    else:
        data = bytearray(fs.read(path))
        data[4:40] = b"\xff" * 36
        fs.delete(path)
        fs.create(path, bytes(data))
        for entry in fs.list(path.rpartition("/")[0]):
            if entry.name.endswith(".crc"):
                fs.delete(entry.path)
    ingest(fs, 2, ("south", 1))
    made = run()
    assert (made.version, made.parent, made.events) == (2, 0, 3)
    assert rows(fs, 2, "shop_orders") == [{"shop": "north", "orders": 1}, {"shop": "south", "orders": 2}]


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'"x"', b"{}", b'{"version": "two"}', b"\xff\xfe"])
def test_of_a_damaged_choice_the_one_before_it_counts_and_its_number_does_not_come_back(
    fs: LocalFs, run: Run, text: bytes
) -> None:
    for at in range(2):
        ingest(fs, at, ("north", 1))
        run()
    versions.choose(fs, "tiny", 1, follow=True)
    versions.choose(fs, "tiny", 2, follow=False)
    fs.delete(f"{versions.SERVED}/tiny/2.json")
    fs.create(f"{versions.SERVED}/tiny/2.json", text)
    chosen = versions.choice(fs, "tiny")
    assert chosen and (chosen.number, chosen.version) == (1, 1)
    ingest(fs, 2, ("north", 1))
    assert (run().parent, aside(run)) == (2, 1)
    assert [e.name.split("-")[0] for e in fs.list(f"{versions.SERVED}/tiny")] == ["1.json", "_damaged"]
    assert versions.choose(fs, "tiny", 3, follow=True).number == 3


def test_a_promoted_version_that_is_damaged_is_replaced_by_what_was_built_on_it(fs: LocalFs, run: Run) -> None:
    for at in range(2):
        ingest(fs, at, ("north", 1))
        run()
    versions.choose(fs, "tiny", 1, follow=True)
    garble(fs, f"{versions.folder('tiny', 1)}/manifest.json")
    ingest(fs, 2, ("north", 1))
    assert (run().parent, newest(fs).events) == (2, 3)
    versions.choose(fs, "tiny", 3, follow=False)
    garble(fs, f"{versions.folder('tiny', 3)}/manifest.json")
    with pytest.raises(VersionUnknown, match="version 3 was chosen to be served and is gone"):
        run()


def test_a_manifest_of_newer_code_is_read(fs: LocalFs, run: Run) -> None:
    ingest(fs, 0, ("north", 1))
    made = run()
    said = {**json.loads(made.to_json()), "a field of tomorrow": 1}
    assert versions.parsed(json.dumps(said).encode(), "").identity == made.identity


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


# Code of another version -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["DECODE_VERSION", "MEASURES_VERSION"])
def test_a_stored_definition_keeps_its_hash_when_the_code_gets_another(
    fs: LocalFs, run: Run, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(fs, 0, ("north", 1))
    old = run()
    monkeypatch.setattr(domain, number, getattr(domain, number) + 1)
    assert SHOP.definition_hash != old.definition_hash
    for definition in (old.definition, without_hashes(old.definition)):  # as it was written before it held hashes
        stored = versions.definition_of(replace(old, definition=definition))
        assert stored.definition_hash == old.definition_hash and not stored.is_of_this_code
        assert {s.topic: s.schema_hash for s in stored.streams} == old.schema_hashes
        assert [v.definition_hash for v in stored.views] == [entry["hash"] for entry in old.views.values()]
        assert stored.declared_anew() == SHOP and stored.declared_anew().definition_hash == SHOP.definition_hash
    followed = versions.definition_followed(fs, SHOP)
    assert followed.definition_hash == old.definition_hash
    new = run()
    assert (new.version, new.definition_hash, new.events) == (2, SHOP.definition_hash, 1)
    assert versions.definition_followed(fs, SHOP).is_of_this_code
    told = "\n".join(planned(fs, SHOP, old))  # type: ignore[arg-type]
    assert ("its schema changed: the decoder" if number == "DECODE_VERSION" else "it changed: its arithmetic") in told


def test_a_chosen_line_is_built_anew_by_code_that_reads_its_definition_otherwise(
    fs: LocalFs, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(fs, 0, ("north", 1))
    run()
    versions.choose(fs, "tiny", 1, follow=True)
    monkeypatch.setattr(domain, "DECODE_VERSION", domain.DECODE_VERSION + 1)
    other = replace(SHOP, views=(replace(SHOPS, measures={"orders": count(), "dear": count("price > 9")}),))
    made = run(other)
    assert (made.version, made.definition_hash) == (2, replace(SHOP).definition_hash)
    assert list(versions.definition_of(made).view("shop_orders").measures) == ["orders"], "as the line declares it"


def without_hashes(definition: dict[str, Any]) -> dict[str, Any]:
    bare = {name: value for name, value in definition.items() if name != "hash"}
    for part in ("streams", "views"):
        bare[part] = [{name: value for name, value in one.items() if name != "hash"} for one in bare[part]]
    return bare


def test_a_definition_that_is_changed_after_it_was_stored_gets_a_hash_of_its_own() -> None:
    stored = Domain.from_json(json.loads(json.dumps(SHOP.to_json())))
    assert (
        stored == SHOP
        and stored.is_of_this_code
        and dataclasses.replace(stored).definition_hash == SHOP.definition_hash
    )


# Chains ----------------------------------------------------------------------------------------------------------------


def test_the_number_of_a_chain_never_comes_back(fs: LocalFs) -> None:
    for number in (1, 2):
        assert chains.next_number(fs, "tiny") == number
        assert chains.begin(fs, SHOP, number, 0, {}, {}, "now")
    assert chains.begin(fs, SHOP, 2, 0, {}, {}, "now") is None
    fs.delete(f"{chains.SPEED}/tiny", recursive=True)
    assert chains.begin(fs, SHOP, 1, 0, {}, {}, "now") is None, "of a paused process"
    assert chains.begin(fs, SHOP, 2, 0, {}, {}, "now") is None
    assert chains.next_number(fs, "tiny") == 3
