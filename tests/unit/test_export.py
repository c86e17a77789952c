"""Does an export hold exactly the rows that were asked for, in a file that opens, or no file at all?"""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

import domains
from engine.export import extract
from engine.export.__main__ import main
from engine.export.outfile import opened
from engine.runtime.settings import load
from engine.serving.service import Service
from engine.storage import hdfs, versions
from engine.storage.commit import gap_segment
from engine.storage.compact import compact
from engine.storage.log import EVENTS, RANGE_END, segment_path
from serving_layer import create_app
from tests.unit.localfs import LocalFs
from tests.unit.serving_data import (
    LOG,
    MINUTES,
    SALES,
    SHOP,
    end_of,
    events,
    good_in,
    parquet,
    partials,
    shown,
    write_chain,
    write_epochs,
    write_logs,
    write_version,
)

ROWS = events(Random(5), 600)
NOON, EVENING = datetime(2026, 1, 31, 23, 0, tzinfo=UTC), datetime(2026, 2, 1, 0, 30, tzinfo=UTC)
DAYS = pa.array([datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)], pa.timestamp("us", "UTC"))
TOPS = pa.table({"shop": ["north", "=1+1", None], "day": DAYS, "share": pa.array([Decimal("1.10")] * 3)})
TYPED = f"{EVENTS}/{SALES.schema_hash}"


@pytest.fixture(autouse=True)
def only_the_shop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domains, "DOMAINS", (SHOP,))


@pytest.fixture
def fs(tmp_path: Path) -> LocalFs:
    """A version over 400 of the 600 rows, a report, and all rows in the logs."""
    made = LocalFs(tmp_path / "hdfs")
    write_version(made, SHOP, 1, ROWS.slice(0, 400), end_of(ROWS.slice(0, 400)), TOPS)
    write_logs(made, ROWS, segments=7)
    return made


Export = Callable[..., int]


@pytest.fixture
def run(fs: LocalFs) -> Export:
    """Run the command line on a file system; return its exit code."""

    def called(*arguments: str, on: Any = None, domain: str = "shop") -> int:
        try:
            return main(["--domain", domain, *arguments], lambda url, user: on or fs)
        except SystemExit as left:
            assert isinstance(left.code, int)
            return left.code

    return called


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file, decimals with their digits."""
    return [json.loads(line, parse_float=Decimal) for line in path.read_text(encoding="utf-8").splitlines()]


def iso(when: datetime | None) -> str | None:
    return None if when is None else when.replace(tzinfo=UTC).isoformat().replace("+00:00", "Z")


def good(rows: pa.Table = ROWS) -> pa.Table:
    return rows.filter(pc.is_null(rows["problem"]))


def bad(rows: pa.Table = ROWS) -> pa.Table:
    return rows.filter(pc.is_valid(rows["problem"]))


# What is in it --------------------------------------------------------------------------------------------------------


def test_a_view_has_every_row_with_its_shown_columns_and_none_that_are_only_stored(run: Export, tmp_path: Path) -> None:
    assert run("--what", "view", "sales_minutes", "--out", str(tmp_path / "v.jsonl")) == 0
    found = rows_of(tmp_path / "v.jsonl")
    wanted = shown(MINUTES, partials(MINUTES, ROWS.slice(0, 400)))
    assert list(found[0]) == [*MINUTES.keys, *MINUTES.measures, *MINUTES.show]
    assert not any("__" in name for row in found for name in row)
    by_key = {(row["shop"], row["size"], row["window_start"]): row for row in found}
    assert len(by_key) == len(found) == wanted.num_rows
    for row in wanted.to_pylist():
        other = by_key[row["shop"], row["size"], iso(row["window_start"])]
        for name in ("sales", "revenue", "least", "buyers", "opening"):
            assert other[name] == row[name], name
        assert other["share"] == pytest.approx(row["share"]) and other["window_end"] == iso(row["window_end"])


def test_a_spreadsheet_opens_the_csv_with_its_text_intact_and_no_formula(run: Export, tmp_path: Path) -> None:
    assert run("--what", "events", SALES.topic, "--out", str(tmp_path / "e.csv")) == 0
    written = (tmp_path / "e.csv").read_bytes()
    assert written.startswith(b"\xef\xbb\xbftopic,log,partition,offset,kafka_time,event_time,id,")
    assert written.count(b"\xef\xbb\xbf") == 1
    rows = list(csv.DictReader(io.StringIO(written.decode("utf-8-sig"), newline="")))
    wanted = {row["id"]: row for row in good().to_pylist()}
    assert len(rows) == len(wanted)
    for row in rows:
        event = wanted[row["id"]]
        assert row["shop"] == {"=cmd()": "'=cmd()", None: ""}.get(event["shop"], event["shop"])
        assert row["amount"] == ("" if event["amount"] is None else format(event["amount"], ".2f"))
        assert row["event_time"] == iso(event["event_time"])
        assert json.loads(row["tags"]) == event["tags"]
    assert {"'=cmd()", "Hà Nội"} <= {row["shop"] for row in rows}


def test_json_is_unescaped_with_all_digits_and_times_in_utc(run: Export, tmp_path: Path) -> None:
    assert run("--what", "events", SALES.topic, "--out", str(tmp_path / "e.json")) == 0
    text = (tmp_path / "e.json").read_text(encoding="utf-8")
    assert "Hà Nội" in text and "\\u" not in text and text.startswith("[\n{") and text.endswith("}\n]\n")
    found = {row["id"]: row for row in json.loads(text, parse_float=str)}
    for event in good().to_pylist():
        row = found.pop(event["id"])
        assert row["amount"] == (None if event["amount"] is None else format(event["amount"], ".2f"))
        assert row["ts"] == iso(event["ts"]) and row["offset"] == event["offset"]
    assert not found


def test_parquet_keeps_the_types_and_says_that_times_are_utc(run: Export, tmp_path: Path) -> None:
    assert run("--what", "events", SALES.topic, "--out", str(tmp_path / "e.parquet")) == 0
    assert run("--what", "view", "sales_minutes", "--out", str(tmp_path / "v.parquet")) == 0
    found = pq.read_table(tmp_path / "e.parquet")
    utc = pa.timestamp("us", "UTC")
    wanted = {
        "partition": pa.string(), "offset": pa.int64(), "event_time": utc, "ts": utc, "size": pa.int32(),
        "amount": pa.decimal128(12, 2), "tags": pa.list_(pa.string()), "shop": pa.string(),
    }  # fmt: skip
    assert {name: found.schema.field(name).type for name in wanted} == wanted
    same = [name for name in found.column_names if name not in ("kafka_time", "event_time", "ts")]
    order = [("partition", "ascending"), ("offset", "ascending")]
    assert found.select(same).sort_by(order).to_pylist() == good().select(same).sort_by(order).to_pylist()
    view = pq.read_table(tmp_path / "v.parquet")
    assert view.schema.field("window_start").type == utc
    assert view.schema.field("revenue").type == pa.decimal128(38, 2)


def test_a_report_comes_from_the_version_that_holds_its_last_good_rows(
    run: Export, fs: LocalFs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(fs, SHOP, 2, ROWS, end_of(ROWS))
    path = fs.root / versions.folder("shop", 2).lstrip("/") / "manifest.json"
    newer = json.loads(path.read_text())
    held = {"rows": 3, "files": ["part-0.parquet"], "status": "held", "failed_checks": {"c": {"passed": False}}}
    held |= {"version": 1, "held_since": 2}
    path.write_text(json.dumps({**newer, "reports": {"tops": held}}))
    assert run("--what", "report", "tops", "--out", str(tmp_path / "r.csv")) == 0
    assert (tmp_path / "r.csv").read_text(encoding="utf-8-sig").splitlines() == [
        "shop,day,share", "north,2026-01-01T00:00:00Z,1.10", "'=1+1,2026-01-02T00:00:00Z,1.10", ",2026-01-03T00:00:00Z,1.10",
    ]  # fmt: skip
    assert "version 1 (held back since version 2)" in capsys.readouterr().err


def test_the_quarantine_keeps_the_raw_value_and_bytes_that_are_no_text(run: Export, tmp_path: Path) -> None:
    assert run("--what", "quarantine", SALES.topic, "--out", str(tmp_path / "q.jsonl")) == 0
    found = {(row["partition"], row["offset"]): row for row in rows_of(tmp_path / "q.jsonl")}
    wanted = bad().to_pylist()
    assert len(found) == len(wanted) and any(row["value_bytes"] for row in wanted)
    for row in wanted:
        other = found[row["partition"], row["offset"]]
        assert (other["problem"], other["value"]) == (row["problem"], row["value"])
        encoded = other["value_base64"]
        assert (base64.b64decode(encoded) if encoded else None) == row["value_bytes"]


@pytest.mark.parametrize(("start", "end"), [(NOON, None), (None, EVENING), (NOON, EVENING)])
def test_from_and_to_cut_windows_reports_and_events(
    run: Export, tmp_path: Path, start: datetime | None, end: datetime | None
) -> None:
    def within(text: str, low: datetime | None = start, high: datetime | None = end) -> bool:
        when = datetime.fromisoformat(text)
        return (low is None or when >= low) and (high is None or when < high)

    borders = [f"{flag}={time.isoformat()}" for flag, time in (("--from", start), ("--to", end)) if time]
    for what, name, column in (("view", "sales_minutes", "window_start"), ("events", SALES.topic, "event_time")):
        assert run("--what", what, name, "--out", str(tmp_path / "all.jsonl")) == 0
        assert run("--what", what, name, "--out", str(tmp_path / "cut.jsonl"), *borders) == 0
        everything, cut = rows_of(tmp_path / "all.jsonl"), rows_of(tmp_path / "cut.jsonl")
        assert cut == [row for row in everything if within(row[column])]
        assert 0 < len(cut) < len(everything)
    days = ["--from", "2026-01-02T07:00:00+07:00", "--to", "2026-01-03"]
    assert run("--what", "report", "tops", "--out", str(tmp_path / "r.jsonl"), *days) == 0
    assert [row["day"] for row in rows_of(tmp_path / "r.jsonl")] == ["2026-01-02T00:00:00Z"]


def test_row_groups_that_cannot_hold_a_wanted_time_are_not_read(run: Export, fs: LocalFs, tmp_path: Path) -> None:
    groups: list[Any] = []

    class Watched(LocalFs):
        def open_parquet(self, path: str) -> pq.ParquetFile:
            opened = super().open_parquet(path)
            read = opened.iter_batches
            opened.iter_batches = lambda *a, **k: (groups.append(path), read(*a, **k))[1]
            return opened

    span = ["--from", "2027-01-01", "--to", "2027-01-02"]
    assert run("--what", "events", SALES.topic, "--out", str(tmp_path / "e.jsonl"), *span, on=Watched(fs.root)) == 0
    assert rows_of(tmp_path / "e.jsonl") == [] and groups == []


def test_nothing_in_the_span_is_still_a_file_that_opens(run: Export, tmp_path: Path) -> None:
    for form in ("csv", "json", "jsonl", "parquet"):
        out = tmp_path / f"e.{form}"
        assert run("--what", "view", "sales_minutes", "--out", str(out), "--from", "2030-01-01") == 0
    assert (tmp_path / "e.csv").read_text(encoding="utf-8-sig").count("\n") == 1
    assert json.loads((tmp_path / "e.json").read_text()) == []
    assert (tmp_path / "e.jsonl").read_bytes() == b""
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 0


# How it is read -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1, 3_000, 64_000_000])
def test_a_batch_is_bounded_in_bytes_whatever_a_row_holds(
    fs: LocalFs, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "BATCH_BYTES", bound)
    for kind, name in (("events", SALES.topic), ("view", "sales_minutes"), ("quarantine", SALES.topic)):
        found = extract.find(fs, [SHOP], kind, name, extract.Span())
        tables = list(found.tables())
        wanted = {"events": good().num_rows, "quarantine": bad().num_rows, "view": found.planned}[kind]
        assert sum(table.num_rows for _, table in tables) == wanted
        assert sum(rows for rows, _ in tables) == found.planned
        # One row more than the bound may be held, and none is left out for being too long.
        assert max(table.num_rows for _, table in tables) <= max(1, bound // 20)


def test_a_row_group_of_parquet_is_bounded_in_bytes(tmp_path: Path) -> None:
    table = pa.table({"text": ["x" * 1_000_000] * 20})
    with opened(str(tmp_path / "t.parquet"), "parquet", table.schema) as out:
        for _ in range(15):
            out.write(table)
    assert pq.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3


def test_events_are_streamed_one_segment_at_a_time(fs: LocalFs) -> None:
    opened: list[str] = []

    class Counted(LocalFs):
        def open_parquet(self, path: str) -> pq.ParquetFile:
            opened.append(path)
            return super().open_parquet(path)

    found = extract.find(Counted(fs.root), (SHOP,), "events", SALES.topic, extract.Span())
    listed = len(opened)
    tables = found.tables()
    assert isinstance(tables, Iterator)
    for number in range(1, 8):
        next(tables)
        assert len(opened) == listed + number
    assert found.planned == ROWS.num_rows


def test_segments_that_compaction_takes_away_meanwhile_are_found_again(
    run: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = events(Random(8), 900)
    fresh = LocalFs(tmp_path / "other")
    write_version(fresh, SHOP, 1, rows, end_of(rows))
    write_logs(fresh, rows, segments=20)

    class Compacted(LocalFs):
        """Merges everything when all segments were listed and some of the first partition were read."""

        looks = 0

        def open_parquet(self, path: str) -> pq.ParquetFile:
            self.looks += 1
            if self.looks == 75:
                assert compact(LocalFs(self.root), TYPED, [SALES.topic], settled_seconds=-10) > 30
            return super().open_parquet(path)

    on = Compacted(fresh.root)
    assert run("--what", "events", SALES.topic, "--out", str(tmp_path / "e.jsonl"), on=on) == 0
    found = [(row["partition"], row["offset"]) for row in rows_of(tmp_path / "e.jsonl")]
    wanted = zip(*(good(rows)[name].to_pylist() for name in ("partition", "offset")), strict=True)
    assert sorted(found) == sorted(wanted)
    assert on.looks > 75 and "begins again" not in capsys.readouterr().err


def test_a_version_that_is_pruned_meanwhile_is_replaced_by_the_one_that_is_served_then(
    run: Export, fs: LocalFs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Pruned(LocalFs):
        looks = 0

        def open_parquet(self, path: str) -> pq.ParquetFile:
            self.looks += 1
            if self.looks == 3:  # the first file of the version was read, the second one goes
                write_version(fs, SHOP, 2, ROWS, end_of(ROWS))
                fs.delete(versions.folder("shop", 1), recursive=True)
            return super().open_parquet(path)

    assert run("--what", "view", "sales_minutes", "--out", str(tmp_path / "v.jsonl"), on=Pruned(fs.root)) == 0
    assert len(rows_of(tmp_path / "v.jsonl")) == partials(MINUTES, ROWS).num_rows
    said = capsys.readouterr().err
    assert "begins again" in said and "version 2" in said


def test_an_accepted_gap_in_the_typed_log_is_no_damage(run: Export, fs: LocalFs, tmp_path: Path) -> None:
    head = end_of(ROWS)[SALES.topic][LOG]["1"]
    schema = fs.open_parquet(fs.list(f"{TYPED}/topic={SALES.topic}/log={LOG}/partition=1")[0].path).schema_arrow
    data = gap_segment(head, head + 50, schema)
    assert RANGE_END in data
    fs.create(segment_path(TYPED, SALES.topic, LOG, "1", head), data)
    assert run("--what", "events", SALES.topic, "--out", str(tmp_path / "e.jsonl")) == 0
    assert len(rows_of(tmp_path / "e.jsonl")) == good_in(ROWS)


# Whole or not at all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_ctrl_c_leaves_no_file_and_exits_130(run: Export, fs: LocalFs, tmp_path: Path, form: str) -> None:
    class Interrupted(LocalFs):
        looks = 0

        def open_parquet(self, path: str) -> pq.ParquetFile:
            self.looks += 1
            if self.looks == 30:
                assert [p.name for p in folder.iterdir()] == [f"e.{form}.{os.getpid()}.part"]
                signal.raise_signal(signal.SIGINT)
            return super().open_parquet(path)

    folder = tmp_path / "out"
    folder.mkdir()
    on = Interrupted(fs.root)
    assert run("--what", "events", SALES.topic, "--out", str(folder / f"e.{form}"), on=on) == 130
    assert on.looks == 30 and list(folder.iterdir()) == []


def test_what_was_there_stays_until_the_new_file_is_whole(run: Export, fs: LocalFs, tmp_path: Path) -> None:
    out = tmp_path / "e.jsonl"
    out.write_text("before")
    part = fs.root / fs.list(f"{TYPED}/topic={SALES.topic}/log={LOG}/partition=2")[0].path.lstrip("/")
    part.write_bytes(parquet(pq.read_table(part, partitioning=None).slice(1)))
    assert run("--what", "events", SALES.topic, "--out", str(out)) == 1
    assert out.read_text() == "before" and not list(tmp_path.glob("*.part"))


def test_two_exports_to_one_file_do_not_mix(tmp_path: Path) -> None:
    """One of them begins and ends while the other, in a process of its own, is half-way.

    Each file is whole, the later one stays.
    """
    out, schema = str(tmp_path / "e.csv"), pa.schema([("n", pa.int64())])
    program = (
        "import sys, pyarrow as pa; from engine.export import outfile\n"
        "with outfile.opened(sys.argv[1], 'csv', pa.schema([('n', pa.int64())])) as out:\n"
        "    out.write(pa.table({'n': [7, 8]}))"
    )
    with opened(out, "csv", schema) as first:
        first.write(pa.table({"n": [1]}))
        subprocess.run([sys.executable, "-c", program, out], cwd=Path(__file__).resolve().parents[2], check=True)
        assert Path(out).read_text(encoding="utf-8-sig").split() == ["n", "7", "8"]
        first.write(pa.table({"n": [2]}))
    assert Path(out).read_text(encoding="utf-8-sig").split() == ["n", "1", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["e.csv"]


def test_a_full_disk_is_one_line_and_leaves_nothing(
    run: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode="r", **k: plain(Path("/dev/full"), mode) if self.suffix == ".part" else plain(self, mode, **k))  # fmt: skip
    for form in ("csv", "parquet"):
        assert run("--what", "events", SALES.topic, "--out", str(tmp_path / f"e.{form}")) == 1
        said = capsys.readouterr().err
        assert "No space left" in said and said.count("\n") == 1
    assert not list(tmp_path.glob("e.*"))


def test_standard_output_gets_the_rows_and_standard_error_the_words(
    run: Export, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run("--what", "view", "shops", "--out", "-", "--format", "csv") == 0
    out, said = capfdbinary.readouterr()
    rows = list(csv.DictReader(io.StringIO(out.decode("utf-8-sig"), newline="")))
    assert len(rows) == 5 and rows[0].keys() >= {"shop", "sales", "mean"}
    assert said.startswith(b"export: 5 rows, ") and b"version 1, horizon {" in said and said.count(b"\n") == 1
    assert run("--what", "view", "shops", "--out", "-", "--format", "parquet") == 0
    assert pq.read_table(pa.BufferReader(capfdbinary.readouterr().out)).num_rows == 5


def test_a_reader_that_leaves_ends_it_without_a_word(fs: LocalFs) -> None:
    program = (
        "import sys, domains; from engine.export.__main__ import main; from tests.unit.localfs import LocalFs; from pathlib import Path;"
        "from tests.unit.serving_data import SHOP; domains.DOMAINS = (SHOP,);"
        f"sys.exit(main(['--domain', 'shop', '--what', 'events', '{SALES.topic}', '--out', '-', '--format', 'jsonl'],"
        f" lambda url, user: LocalFs(Path({str(fs.root)!r}))))"
    )
    root = Path(__file__).resolve().parents[2]
    left = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -c 10; exit $?', sys.executable, program],
        cwd=root, capture_output=True, timeout=120,
    )  # fmt: skip
    assert (left.returncode, left.stdout[:8], left.stderr) == (141, b'{"topic"', b"")


def test_a_report_that_was_never_good_says_which_check_failed(
    run: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on = LocalFs(tmp_path / "other")
    write_version(on, SHOP, 1, ROWS, end_of(ROWS), held={"most": {"passed": False, "largest": "9"}})
    assert run("--what", "report", "tops", "--out", str(tmp_path / "r.csv"), on=on) == 1
    said = capsys.readouterr().err
    assert 'held back since version 1, no version of it is there yet; check most: passed false, largest "9"' in said


def test_progress_is_a_line_every_few_seconds_where_there_is_no_terminal(
    run: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.export.__main__.LINE_SECONDS", 0.0)
    assert run("--what", "events", SALES.topic, "--out", str(tmp_path / "e.csv")) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 10 and f"600 of 600 rows read, {good_in(ROWS)} written" in lines[-2]
    assert f"{good_in(ROWS)} rows, {(tmp_path / 'e.csv').stat().st_size:,} bytes" in lines[-1]


# What cannot be -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--what", "table", "shops", "--out", "x.csv"], "known are view, report, events, quarantine"),
        (["--what", "view", "shop", "--out", "x.csv"], "known: sales_minutes, shops, tag_days"),
        (["--what", "report", "shops", "--out", "x.csv"], "known: tops"),
        (["--what", "events", "sales", "--out", "x.csv"], "known: sales-topic"),
        (["--what", "view", "shops", "--out", "x.xlsx"], "csv, json, jsonl, parquet"),
        (["--what", "view", "shops", "--out", "x.csv", "--format", "xml"], "csv, json, jsonl, parquet"),
        (["--what", "view", "shops", "--out", "-"], "--format"),
        (["--what", "view", "shops", "--out", "no/such/folder/x.csv"], "No such file"),
        (["--what", "view", "shops", "--out", ".", "--format", "csv"], "no plain file"),
        (["--what", "view", "shops", "--out", "/dev/null", "--format", "csv"], "no plain file"),
        (["--what", "view", "shops", "--out", "x.csv", "--from", "2026-01-01"], "has no windows"),
        (["--what", "view", "sales_minutes", "--out", "x.csv", "--from", "yesterday"], "ISO-8601"),
        (["--what", "view", "sales_minutes", "--out", "x.csv", "--from", "2026-02-01", "--to", "2026-01-01"], "before"),
        (["--what", "quarantine", SALES.topic, "--out", "x.csv", "--to", "2026-01-01"], "quarantine"),
        (["--what", "events", SALES.topic, "--out", "x.csv", "--url", "http://127.0.0.1:1"], "merged answer"),
        (["--what", "view", "shops", "--out", "x.csv", "--url", "file:///etc/hosts"], "an address"),
    ],
)
def test_a_wrong_flag_or_name_is_one_line_with_what_is_known(
    run: Export,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert not list((tmp_path / "here").iterdir())


def test_an_unknown_domain_names_the_known_ones(run: Export, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--what", "view", "shops", "--out", "x.csv", domain="store") == 2
    assert "allowed: shop" in capsys.readouterr().err


@pytest.mark.parametrize(("what", "name"), [("view", "shops"), ("report", "tops"), ("events", SALES.topic)])
def test_before_the_first_batch_run_its_command_is_named(
    run: Export, tmp_path: Path, what: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    on = LocalFs(tmp_path / "empty")
    assert run("--what", what, name, "--out", str(tmp_path / "x.csv"), on=on) == 1
    assert "batch_layer.py --domain shop" in capsys.readouterr().err
    assert not list(tmp_path.glob("x.csv*"))


def test_a_view_whose_files_lost_rows_is_not_exported(run: Export, fs: LocalFs, tmp_path: Path) -> None:
    part = fs.root / versions.folder("shop", 1).lstrip("/") / "shops" / "part-1.parquet"
    part.write_bytes(parquet(pq.read_table(part).slice(1)))
    assert run("--what", "view", "shops", "--out", str(tmp_path / "v.csv")) == 1
    part.write_bytes(b"no parquet")
    assert run("--what", "view", "shops", "--out", str(tmp_path / "v.csv")) == 1
    assert not list(tmp_path.glob("v.csv*"))


def test_silence_of_hdfs_means_start_again(
    run: Export, fs: LocalFs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Silent(LocalFs):
        """Lists, and then answers nothing any more; a read that breaks off asks whether the file is still there."""

        def open_parquet(self, path: str) -> pq.ParquetFile:
            raise OSError("connection reset")

        def status(self, path: str) -> Any:
            raise hdfs.HdfsUnavailable("cannot ask")

    assert run("--what", "view", "shops", "--out", str(tmp_path / "v.csv"), on=Silent(fs.root)) == 75
    assert capsys.readouterr().err == "start again: cannot ask\n"


# The merged answer ----------------------------------------------------------------------------------------------------


@pytest.fixture
def serving(fs: LocalFs) -> Iterator[str]:
    """A real server on version 1 and the epochs after it."""
    horizon = end_of(ROWS.slice(0, 400))
    chain = write_chain(fs, SHOP, 1, 1, horizon)
    write_epochs(fs, SHOP, chain, [ROWS.slice(400, 100), ROWS.slice(500)])
    service = Service(load(env_file=None), [SHOP], fs)
    service.poll()
    service.look()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(create_app(service), "127.0.0.1", port, interface=Interfaces.ASGI, log_level=LogLevels.error)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve()), daemon=True)
    thread.start()
    for _ in range(100):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/live", timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(server.stop)
    thread.join(10)


def test_with_a_url_batch_and_speed_are_merged_and_paged(
    run: Export, serving: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "PAGE_ROWS", 50)
    out = tmp_path / "v.parquet"
    assert run("--what", "view", "sales_minutes", "--url", serving, "--out", str(out)) == 0
    found = pq.read_table(out)
    wanted = partials(MINUTES, ROWS)
    assert found.num_rows == wanted.num_rows > 100
    assert found.schema.field("window_start").type == pa.timestamp("us", "UTC")
    assert pc.sum(found["sales"]).as_py() == good_in(ROWS)
    assert pc.sum(found["revenue"]) == pc.sum(wanted["revenue"])
    assert 'version 1, coverage {"sales-topic":' in capsys.readouterr().err
    borders = ["--from", iso(NOON) or "", "--to", iso(EVENING) or ""]
    assert run("--what", "view", "sales_minutes", "--url", serving, "--out", str(tmp_path / "v.jsonl"), *borders) == 0
    cut = [row["window_start"] for row in rows_of(tmp_path / "v.jsonl")]
    assert len(cut) == sum(NOON <= time.replace(tzinfo=UTC) < EVENING for time in wanted["window_start"].to_pylist())


def test_what_the_interface_refuses_is_told_in_its_words(
    run: Export, serving: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "v.csv"), "--url", serving]
    assert run("--what", "view", "sails", *out) == 2
    assert "known: sales_minutes, shops, tag_days" in capsys.readouterr().err
    assert run("--what", "view", "sales_minutes", *out, "--from", "2026-01-31T22:00:30Z") == 2
    assert "border" in capsys.readouterr().err
    assert run("--what", "view", "shops", "--out", str(tmp_path / "v.csv"), "--url", "http://127.0.0.1:1") == 75
    assert "is serving_layer.py running?" in capsys.readouterr().err


def test_a_snapshot_that_is_gone_begins_the_export_again(
    run: Export, serving: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "PAGE_ROWS", 50)
    page, calls = extract._page, []

    def forgetful(url: str) -> Any:
        calls.append(url)
        if len(calls) == 3:  # as the server says it after five minutes
            monkeypatch.setattr("engine.serving.service.HOLD_SECONDS", -1.0)
        elif len(calls) == 4:
            monkeypatch.setattr("engine.serving.service.HOLD_SECONDS", 300.0)
        return page(url)

    monkeypatch.setattr(extract, "_page", forgetful)
    assert run("--what", "view", "sales_minutes", "--url", serving, "--out", str(tmp_path / "v.jsonl")) == 0
    assert len(rows_of(tmp_path / "v.jsonl")) == partials(MINUTES, ROWS).num_rows
    assert "begins again" in capsys.readouterr().err and len(calls) > 4
