"""Which version is served, compared, planned.

Lines of versions, choices by hand, and what a definition change means.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.batch import build, changes
from engine.batch.plan import planned
from engine.domain import Domain, count, max_of
from engine.domain.stream import DECODE_VERSION
from engine.storage import versions
from engine.storage.versions import Choice, Manifest, VersionUnknown
from tests.unit.localfs import LocalFs
from tests.unit.serving_data import ORIGINS, SHOP, end_of, events, write_chain, write_version


def a_version(number: int, line: int = 0, parent: int | None = None) -> Manifest:
    return Manifest("shop", number, number - 1 if parent is None else parent, {}, "h", "", {}, line=line)


def put(fs: LocalFs, *manifests: Manifest) -> None:
    for one in manifests:
        fs.create(f"{versions.folder('shop', one.version)}/manifest.json", one.to_json())


@pytest.fixture
def fs(tmp_path: Path) -> LocalFs:
    return LocalFs(tmp_path)


def numbers(found: list[Manifest]) -> list[int]:
    return [one.version for one in found]


# 3 and 6 are candidates beside the line of 1, 2, 4, 5; 7 was built on 6.
KNOWN = [
    a_version(1),
    a_version(2),
    a_version(3, 3),
    a_version(4, parent=2),
    a_version(5),
    a_version(6, 6),
    a_version(7, 6),
]


@pytest.mark.parametrize(
    ("chosen", "served", "built_on"),
    [
        (None, [5, 4, 2, 1], 5),
        (Choice(1, 6, True, ""), [7, 6], 7),
        (Choice(1, 3, True, ""), [3], 3),
        (Choice(1, 4, True, ""), [5, 4], 5),
        (Choice(2, 2, False, ""), [2], 5),
        (Choice(2, 6, False, ""), [6], 7),
    ],
)
def test_a_candidate_is_served_only_when_promoted_and_a_rollback_serves_one_alone(
    chosen: Choice | None, served: list[int], built_on: int
) -> None:
    assert numbers(versions.allowed(KNOWN, chosen)) == served
    assert versions.line_of(KNOWN, chosen)[0].version == built_on


def test_a_chosen_version_that_is_gone_is_named_with_the_way_out() -> None:
    with pytest.raises(VersionUnknown, match=r"version 9 was chosen .* there are 1, 2, 3, 4, 5, 6, 7; .* promote"):
        versions.allowed(KNOWN, Choice(1, 9, True, ""))


def test_the_newest_choice_counts_and_two_at_once_both_get_a_number(fs: LocalFs) -> None:
    put(fs, *KNOWN)
    assert versions.choice(fs, "shop") is None
    threads = [threading.Thread(target=versions.choose, args=(fs, "shop", n, n % 2 == 0)) for n in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.name for entry in fs.list(f"{versions.SERVED}/shop")) == [f"{n}.json" for n in (1, 2, 3, 4)]
    made = versions.choose(fs, "shop", 6, follow=True)
    assert versions.choice(fs, "shop") == made and made.number == 5
    for _ in range(6):  # 11 is newer than 9
        made = versions.choose(fs, "shop", 2, follow=False)
    assert versions.choice(fs, "shop") == made and made.number == 11
    with pytest.raises(VersionUnknown, match="no version 12"):
        versions.choose(fs, "shop", 12, follow=True)


def test_a_manifest_keeps_the_definition_it_was_built_from(fs: LocalFs) -> None:
    put(fs, dataclasses.replace(a_version(1), definition=SHOP.to_json(), definition_hash=SHOP.definition_hash))
    assert Domain.from_json(versions.manifest(fs, "shop", 1).definition).definition_hash == SHOP.definition_hash


def changed_shop() -> Domain:
    """The shop, with one measure more in its first view and another condition in it."""
    view = SHOP.views[0]
    measures = {**view.measures, "top": max_of("amount"), "sales": count("amount > 5")}
    return dataclasses.replace(SHOP, views=(dataclasses.replace(view, measures=measures), *SHOP.views[1:]))


def test_a_run_goes_by_the_file_until_a_version_was_chosen_by_hand(fs: LocalFs) -> None:
    rows = events(Random(1), 50)
    write_version(fs, SHOP, 1, rows, end_of(rows, ORIGINS))
    file = changed_shop()
    assert [x.definition_hash for x in build.basis(fs, file, False)[:2]] == [file.definition_hash, SHOP.definition_hash]
    versions.choose(fs, "shop", 1, follow=True)
    domain, parent, number = build.basis(fs, file, False)
    assert (domain.definition_hash, parent.version, number) == (SHOP.definition_hash, 1, 2)
    domain, parent, number = build.basis(fs, file, True)
    assert (domain.definition_hash, parent.version, number) == (file.definition_hash, 1, 2)


def test_a_candidate_needs_a_version_beside_which_it_stands(fs: LocalFs) -> None:
    with pytest.raises(VersionUnknown, match="has no version yet"):
        build.basis(fs, SHOP, True)


# Comparing ------------------------------------------------------------------------------------------------------------


def two_versions(fs: LocalFs, edit: Any) -> list[changes.Changes]:
    """Compare a version with a copy whose rows of the first view were edited; both written as Spark shows them."""
    view = SHOP.views[0]
    rows = pa.table(
        {
            "shop": ["north", "south", None],
            "size": [1, 1, 2],
            **({"window_start": [0, 0, 0], "window_end": [60, 60, 60]} if view.every else {}),
            **{name: [1, 2, 3] for name in view.measures},
            **{name: [0.5, 1.0, 1.5] for name in view.show},
        }
    )
    rows = rows.select([*view.keys, *view.measures, *view.show])
    found = []
    for number, table in ((1, rows), (2, edit(rows))):
        folder = versions.folder("shop", number)
        entries = {}
        for one in SHOP.views:
            out = pa.BufferOutputStream()
            shown = (
                table
                if one is view
                else pa.table({k: pa.array([], pa.string()) for k in (*one.keys, *one.measures, *one.show)})
            )
            pq.write_table(shown, out)
            fs.create(f"{folder}/{one.name}/part-0.parquet", bytes(out.getvalue()))
            entries[one.name] = {"files": ["part-0.parquet"], "rows": shown.num_rows, "hash": "", "bytes": 1}
        found.append(Manifest("shop", number, number - 1, {}, "h", "", {}, entries, definition=SHOP.to_json()))
    return list(changes.changes(fs, found[0], found[1], limit=5))


def test_equal_versions_have_no_changes(fs: LocalFs) -> None:
    assert not any(one.any for one in two_versions(fs, lambda rows: rows))


def test_changed_added_and_removed_groups_are_told_with_their_amounts(fs: LocalFs) -> None:
    measure = next(iter(SHOP.views[0].measures))

    def edit(rows: pa.Table) -> pa.Table:
        edited = rows.to_pylist()
        edited[2][measure] += 40  # the group of NULL
        edited[0]["shop"] = "west"
        return pa.Table.from_pylist(edited, rows.schema)

    first = two_versions(fs, edit)[0]
    assert (first.changed, first.added, first.removed) == (1, 1, 1)
    text = "\n".join(changes.told(first))
    assert f"{measure} 3 → 43 (+40)" in text and "shop=None" in text
    assert "shop=west" in text and "added" in text and "shop=north" in text and "removed" in text


def test_views_that_came_or_have_other_dimensions_are_said_not_compared() -> None:
    view = SHOP.views[0]
    other = dataclasses.replace(view, name="other")
    before = Manifest("shop", 1, 0, {}, "h", "", {}, definition=dataclasses.replace(SHOP, views=(view,)).to_json())
    after = Manifest("shop", 2, 1, {}, "h", "", {}, definition=dataclasses.replace(SHOP, views=(other,)).to_json())
    notes = {one.view: one.note for one in changes.changes(None, before, after)}
    assert notes == {view.name: "the view is gone", "other": "the view is new"}
    assert json.dumps(notes)


# Planning -------------------------------------------------------------------------------------------------------------


def test_a_plan_for_an_empty_log_promises_no_version(fs: LocalFs) -> None:
    (said,) = planned(fs, SHOP, versions.followed(fs, SHOP))  # type: ignore[arg-type]
    assert "no events yet" in said


def test_a_plan_says_what_would_be_rebuilt_and_why(fs: LocalFs) -> None:
    rows = events(Random(1), 50)
    write_version(fs, SHOP, 1, rows, end_of(rows, ORIGINS))
    parent = versions.followed(fs, SHOP)
    parent = dataclasses.replace(parent, schema_hashes={s.topic: s.schema_hash for s in SHOP.streams})
    same = "\n".join(planned(fs, SHOP, parent))  # type: ignore[arg-type]
    assert "all history" not in same.replace("computed anew from all history", "")
    told = planned(fs, changed_shop(), parent)  # type: ignore[arg-type]
    first, second = SHOP.views[0].name, SHOP.views[1].name
    assert f"  view {first}: all history, it changed: measures (sales, top)" in told
    assert any(line.startswith(f"  view {second}: what came after version 1 is added to its") for line in told)
    stream = dataclasses.replace(SHOP.streams[0], rules={**SHOP.streams[0].rules, "new_rule": "amount > 0"})
    views = tuple(dataclasses.replace(view, streams=(stream,)) for view in SHOP.views)
    mended = planned(fs, dataclasses.replace(SHOP, streams=(stream,), views=views), parent)  # type: ignore[arg-type]
    assert any("its schema changed: rules (new_rule)" in line for line in mended)
    assert any("all history, the schema of sales-topic changed" in line for line in mended)
    assert any("because of --full" in line for line in planned(fs, SHOP, parent, full=True))  # type: ignore[arg-type]


# Deleted, damaged, pruned ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'"x"', b"{}", b'{"version": "two"}', b"\xff\xfe"])
def test_of_a_damaged_choice_the_one_before_it_counts_and_its_number_does_not_come_back(
    fs: LocalFs, text: bytes
) -> None:
    put(fs, *KNOWN)
    versions.choose(fs, "shop", 1, follow=True)
    versions.choose(fs, "shop", 2, follow=False)
    fs.delete(f"{versions.SERVED}/shop/2.json")
    fs.create(f"{versions.SERVED}/shop/2.json", text)
    chosen = versions.choice(fs, "shop")
    assert chosen and (chosen.number, chosen.version) == (1, 1)
    assert versions.set_aside(fs, "shop") == [f"{versions.SERVED}/shop/2.json"]
    assert versions.set_aside(fs, "shop") == [] and versions.choice(fs, "shop") == chosen
    fs.delete(versions.TAKEN_CHOICES, recursive=True)  # as on a system that has had none yet
    assert versions.choose(fs, "shop", 3, follow=True).number == 3


def test_a_choice_that_was_deleted_by_hand_does_not_give_its_number_back(fs: LocalFs) -> None:
    """A store obeys a choice only where its number is newer than that of the last one it obeyed."""
    put(fs, *KNOWN)
    assert versions.choose(fs, "shop", 1, follow=False).number == 1
    fs.delete(versions.SERVED, recursive=True)
    assert versions.choose(fs, "shop", 2, follow=False).number == 2


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"domain": "shop"}', b"\xff", a_version(4).to_json()])
def test_a_damaged_manifest_is_left_out_by_readers_and_set_aside_by_its_owner(fs: LocalFs, text: bytes) -> None:
    put(fs, a_version(1), a_version(2))
    fs.create(f"{versions.folder('shop', 3)}/manifest.json", text)
    assert numbers(versions.manifests(fs, "shop")) == [1, 2] and versions.followed(fs, SHOP).version == 2
    assert versions.set_aside(fs, "shop") == [versions.folder("shop", 3)]
    assert versions.numbers(fs, "shop") == [1, 2] and build.basis(fs, SHOP, False)[1:][1] == 4


def test_a_promoted_version_that_is_damaged_is_replaced_by_what_was_built_on_it(fs: LocalFs) -> None:
    put(fs, *KNOWN)
    versions.choose(fs, "shop", 6, follow=True)
    fs.delete(versions.folder("shop", 6), recursive=True)
    assert versions.followed(fs, SHOP).version == 7
    versions.choose(fs, "shop", 7, follow=False)
    fs.delete(versions.folder("shop", 7), recursive=True)
    with pytest.raises(VersionUnknown, match="version 7 was chosen to be served and is gone"):
        versions.followed(fs, SHOP)


def test_a_manifest_of_newer_code_is_read() -> None:
    said = {**json.loads(a_version(1).to_json()), "a field of tomorrow": 1}
    assert versions.parsed(json.dumps(said).encode(), "").identity == (1, "")


def with_report(manifest: Manifest, shows: int) -> Manifest:
    return dataclasses.replace(manifest, reports={"tops": {"status": "held", "version": shows, "files": ["f"]}})


@pytest.mark.parametrize(
    ("chosen", "started_from", "kept"),
    [
        (None, 0, [3, 7, 8]),  # 7 shows a report of 3
        ((4, False), 0, [1, 3, 4, 7, 8]),  # and 4 one of 1
        ((4, True), 0, [1, 3, 4, 7, 8]),
        (None, 5, [2, 3, 5, 7, 8]),  # a chain starts from 5, which shows one of 2
    ],
)
def test_prune_keeps_whatever_a_version_in_use_names(
    fs: LocalFs, chosen: tuple[int, bool] | None, started_from: int, kept: list[int]
) -> None:
    put(fs, *(with_report(a_version(n), {4: 1, 5: 2, 7: 3}.get(n, n)) for n in range(1, 9)))
    if chosen:
        versions.choose(fs, "shop", *chosen)
    if started_from:
        write_chain(fs, SHOP, 1, started_from, {})
    build.prune(fs, SHOP, 2)  # type: ignore[arg-type]
    assert versions.numbers(fs, "shop") == kept


def test_a_version_that_is_chosen_while_it_is_pruned_stays_or_is_refused(
    fs: LocalFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(fs, *(a_version(n) for n in (1, 2, 3)))
    rename = fs.rename

    def chosen_first(source: str, target: str) -> None:
        if source == versions.folder("shop", 1):
            monkeypatch.setattr(fs, "rename", rename)
            versions.choose(fs, "shop", 1, follow=False)
        rename(source, target)

    monkeypatch.setattr(fs, "rename", chosen_first)
    build.prune(fs, SHOP, 1)  # type: ignore[arg-type]
    assert versions.numbers(fs, "shop") == [1, 3]

    def pruned_meanwhile(source: str, target: str) -> None:
        rename(source, target)
        if target.startswith(f"{versions.SERVED}/"):
            fs.delete(versions.folder("shop", 3), recursive=True)

    monkeypatch.setattr(fs, "rename", pruned_meanwhile)
    with pytest.raises(VersionUnknown, match="version 3 was pruned meanwhile; there are 1"):
        versions.choose(fs, "shop", 3, follow=False)
    chosen = versions.choice(fs, "shop")
    assert chosen and chosen.version == 1


# Code of another version ----------------------------------------------------------------------------------------------


def without_hashes(definition: dict[str, Any]) -> dict[str, Any]:
    """A definition as it was stored before it held hashes."""
    bare = {name: value for name, value in definition.items() if name != "hash"}
    for part in ("streams", "views"):
        bare[part] = [{name: value for name, value in one.items() if name != "hash"} for one in bare[part]]
    return bare


def stored_version(fs: LocalFs) -> Manifest:
    rows = events(Random(1), 50)
    write_version(fs, SHOP, 1, rows, end_of(rows, ORIGINS))
    schemas = {s.topic: s.schema_hash for s in SHOP.streams}
    return dataclasses.replace(versions.followed(fs, SHOP), schema_hashes=schemas)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        ("engine.domain.stream.DECODE_VERSION", "its schema changed: the decoder"),
        ("engine.domain.view.MEASURES_VERSION", "it changed: its arithmetic"),
    ],
)
def test_a_stored_definition_keeps_its_hashes_when_the_code_would_give_others(
    fs: LocalFs, number: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = stored_version(fs)
    monkeypatch.setattr(number, 99)
    assert SHOP.definition_hash != old.definition_hash
    for definition in (old.definition, without_hashes(old.definition)):
        stored = versions.definition_of(dataclasses.replace(old, definition=definition))
        assert stored.definition_hash == old.definition_hash and not stored.is_of_this_code
        assert {s.topic: s.schema_hash for s in stored.streams} == old.schema_hashes
        assert [v.definition_hash for v in stored.views] == [entry["hash"] for entry in old.views.values()]
        assert stored.declared_anew() == SHOP and stored.declared_anew().definition_hash == SHOP.definition_hash
    assert versions.definition_followed(fs, SHOP).definition_hash == old.definition_hash
    assert build.basis(fs, SHOP, False)[0].definition_hash == SHOP.definition_hash, "a run builds anew"
    told = "\n".join(planned(fs, SHOP, old))  # type: ignore[arg-type]
    assert why in told


def test_a_chosen_line_is_built_anew_by_code_that_reads_its_definition_otherwise(
    fs: LocalFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_version(fs)
    versions.choose(fs, "shop", 1, follow=True)
    monkeypatch.setattr("engine.domain.stream.DECODE_VERSION", DECODE_VERSION + 1)
    domain = build.basis(fs, changed_shop(), False)[0]
    assert domain == SHOP and domain.definition_hash == SHOP.definition_hash, "as the line declares it"


def test_a_definition_comes_back_as_it_was_stored() -> None:
    stored = Domain.from_json(json.loads(json.dumps(SHOP.to_json())))
    assert stored == SHOP and stored.is_of_this_code and stored.definition_hash == SHOP.definition_hash
