"""Random events, cut at random into a batch version and epochs, written as the layers write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.domain import (
    Domain,
    Report,
    Stream,
    View,
    avg,
    count,
    distinct,
    first,
    last,
    max_of,
    min_of,
    stddev,
    sum_of,
)
from engine.fold.measures import arrow_type, partial_query, show_query, stored_schema
from engine.serving.query import open_database
from engine.storage import chains, versions
from engine.storage.chains import Chain, Epoch
from engine.storage.log import EVENTS, MASTER, Position, segment_path
from tests.unit.localfs import LocalFs

LOG = "logA"
START = datetime(2026, 1, 31, 22, 0)

SALES = Stream(
    "sales-topic",
    {
        "id": "STRING",
        "shop": "STRING",
        "size": "INT",
        "amount": "DECIMAL(12,2)",
        "buyer": "STRING",
        "tags": "ARRAY<STRING>",
        "ts": "TIMESTAMP",
    },
    key="id",
    unique=("id",),
    time="ts",
    rules={"amount_given": "amount IS NOT NULL"},
)
_MEASURES = {
    "sales": count(),
    "big": count("size > 1"),
    "revenue": sum_of("amount"),
    "units": sum_of("size"),
    "least": min_of("amount"),
    "most": max_of("amount"),
    "mean": avg("amount"),
    "spread": stddev("amount"),
    "opening": first("amount"),
    "closing": last("amount", "buyer"),
    "buyers": distinct("buyer"),
}
MINUTES = View("sales_minutes", (SALES,), ("shop", "size"), _MEASURES, "1 minute", {"share": "try_divide(big, sales)"})
SHOPS = View("shops", (SALES,), ("shop",), _MEASURES)
TAGS = View(
    "tag_days",
    (SALES,),
    ("tag", "shop"),
    {"sales": count(), "most": max_of("amount")},
    "1 day",
    explode=("tags", "tag"),
)
TOPS = Report("tops", ("shop", "day"), "SELECT 1", time="day")
SHOP = Domain("shop", (SALES,), (MINUTES, SHOPS, TAGS), (TOPS,), title="Corner shops")
_DATABASE = open_database()
PROBLEMS = ("malformed", "amount_given", "duplicate")


def events(random: Random, number: int) -> pa.Table:
    """Typed rows, good and bad, of three partitions, in log order of each; NULL dimensions and values among them."""
    offsets = {"0": 7, "1": 0, "2": 100}
    rows: list[dict[str, Any]] = []
    for n in range(number):
        partition = random.choice("012")
        good = random.random() < 0.9
        when = START + timedelta(seconds=random.randrange(0, 4 * 3600, 7))
        rows.append(
            {
                "topic": SALES.topic,
                "log": LOG,
                "partition": partition,
                "offset": offsets[partition],
                "kafka_time": START + timedelta(seconds=n),
                "event_time": when,
                "problem": None if good else random.choice(PROBLEMS),
                "value": None if good else f"raw {n}",
                "value_bytes": b"\xff\xfe" if not good and n % 5 == 0 else None,
                "id": f"id{n}",
                "shop": random.choice(["north", "south", "=cmd()", "Hà Nội", None]),
                "size": random.choice([1, 2, 3, None]),
                "amount": random.choice([None, Decimal(random.randrange(-(10**9), 10**9)) / 100]),
                "buyer": random.choice([None, f"b{random.randrange(50)}"]),
                "tags": random.choice([[], ["a"], ["a", "b"], ["b", "c", "c"]]),
                "ts": when,
            }
        )
        offsets[partition] += 1
    names = ("topic", "log", "partition")
    schema = pa.schema(
        [
            *((name, pa.string()) for name in names),
            ("offset", pa.int64()),
            *((name, pa.timestamp("us")) for name in ("kafka_time", "event_time")),
            *((name, pa.string()) for name in ("problem", "value")),
            ("value_bytes", pa.binary()),
            *((name, arrow_type(kind)) for name, kind in SALES.columns.items()),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def partials(view: View, rows: pa.Table) -> pa.Table:
    """Fold good rows as batch and speed do."""
    with _DATABASE.cursor() as database:
        database.register("typed", rows.filter(pa.compute.is_null(rows["problem"])))
        folded = database.sql(partial_query(view, "typed", "duckdb")).to_arrow_table()
        return folded.cast(stored_schema(view))


def shown(view: View, merged: pa.Table) -> pa.Table:
    """Add the columns that a reader is shown, as batch does; stored rows of a version are merged already."""
    with _DATABASE.cursor() as database:
        database.register("merged", merged)
        found = database.sql(show_query(view, "merged", "duckdb")).to_arrow_table()
    for name in found.column_names[merged.num_columns :]:
        merged = merged.append_column(name, found[name])
    return merged


def end_of(rows: pa.Table, below: Position | None = None) -> Position:
    """End offsets of rows in log order; where there are none, `below` stands."""
    ends: Position = json.loads(json.dumps(below or {}))
    for topic, log, partition, offset in zip(
        *(rows[c].to_pylist() for c in ("topic", "log", "partition", "offset")), strict=True
    ):
        ends.setdefault(topic, {}).setdefault(log, {})[partition] = offset + 1
    return ends


def counts_of(rows: pa.Table) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for topic, log, partition, problem in zip(
        *(rows[c].to_pylist() for c in ("topic", "log", "partition", "problem")), strict=True
    ):
        here = counts.setdefault(topic, {}).setdefault(log, {}).setdefault(partition, {"good": 0})
        here[problem or "good"] = here.get(problem or "good", 0) + 1
    return counts


def good_in(rows: pa.Table) -> int:
    return int(rows["problem"].null_count)


ORIGINS: Position = {SALES.topic: {LOG: {"0": 7, "1": 0, "2": 100}}}


def write_version(
    fs: LocalFs,
    domain: Domain,
    version: int,
    rows: pa.Table,
    horizon: Position,
    report: pa.Table | None = None,
    line: int = 0,
    held: dict[str, Any] | None = None,
) -> None:
    """Write a version of the rows below its horizon, in two files per view, as Spark would (times with a zone).

    Args:
        report: rows of the report.
        held: the checks that hold the report back; what is served of it are the rows of version 1, if that has some.
    """
    folder = versions.folder(domain.name, version)
    views = {}
    for view in domain.views:
        table = shown(view, partials(view, rows))
        zoned = table.cast(pa.schema([_zoned(column) for column in table.schema]))
        half = table.num_rows // 2
        for name, part in (("part-0.parquet", zoned.slice(0, half)), ("part-1.parquet", zoned.slice(half))):
            fs.create(
                f"{folder}/{view.name}/{name}", parquet(part.append_column("extra", pa.array([1.0] * part.num_rows)))
            )
        views[view.name] = {
            "hash": view.definition_hash,
            "rows": table.num_rows,
            "files": ["part-0.parquet", "part-1.parquet"],
            "bytes": 1,
        }
    reports = {}
    if report is not None:
        fs.create(f"{folder}/tops/part-0.parquet", parquet(report))
        reports["tops"] = {
            "rows": report.num_rows,
            "files": ["part-0.parquet"],
            "status": "ok",
            "failed_checks": {},
            "version": version,
        }
    if held is not None:
        good = fs.status(f"{versions.folder(domain.name, 1)}/tops")
        last = {"files": ["part-0.parquet"], "version": 1} if good else {"files": [], "version": None}
        reports["tops"] = {**last, "status": "held", "failed_checks": held, "held_since": version}
    manifest = versions.Manifest(
        domain.name, version, version - 1, horizon, domain.definition_hash, domain.report_hash, {}, views, reports,
        counts_of(rows), {}, good_in(rows), "2026-02-01T00:00:00Z", datetime.now(UTC).isoformat(), line, domain.to_json(),
    )  # fmt: skip
    fs.create(f"{folder}/manifest.json", manifest.to_json())


def write_chain(
    fs: LocalFs, domain: Domain, number: int, version: int, start: Position, created: str = "2026-02-01T00:00:00Z"
) -> Chain:
    chain = Chain(domain.name, number, version, start, domain.definition_hash, created, start)
    fs.create(f"{chain.folder}/chain.json", json.dumps(vars(chain)).encode())
    return chain


def write_epoch(fs: LocalFs, domain: Domain, chain: Chain, number: int, start: Position, rows: pa.Table) -> Position:
    """Write an epoch of these rows; return its end."""
    end = end_of(rows, start)
    epoch = Epoch(
        number, start, end, domain.definition_hash, counts_of(rows), good_in(rows), None, datetime.now(UTC).isoformat()
    )
    views = {view.name: partials(view, rows) for view in domain.views}
    data = chains.epoch_file(domain, epoch, views, pa.Table.from_pylist([], pa.schema(list(chains.KEYS_TYPE))))
    fs.create(chains.epoch_path(domain.name, chain.number, number), data)
    return end


def write_epochs(
    fs: LocalFs, domain: Domain, chain: Chain, pieces: Sequence[pa.Table], first: int = 0
) -> list[Position]:
    """Write consecutive epochs from the chain's start; return their ends."""
    ends, at = [], chain.start
    for number, rows in enumerate(pieces, first):
        at = write_epoch(fs, domain, chain, number, at, rows)
        ends.append(at)
    return ends


def write_logs(fs: LocalFs, rows: pa.Table, segments: int = 3) -> None:
    """Write the raw and the typed segments of these rows."""
    for root in (MASTER, f"{EVENTS}/{SALES.schema_hash}"):
        for partition in sorted(set(rows["partition"].to_pylist())):
            part = rows.filter(pa.compute.equal(rows["partition"], partition)).drop_columns(
                ["topic", "log", "partition"]
            )
            step = max(1, -(-part.num_rows // segments))
            for at in range(0, part.num_rows, step):
                piece = part.slice(at, step)
                base = piece["offset"][0].as_py()
                zoned = piece.cast(pa.schema([_zoned(column) for column in piece.schema]))
                fs.create(segment_path(root, SALES.topic, LOG, partition, base), parquet(zoned))


def parquet(table: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(table, out)
    return bytes(out.getvalue())


def cut(random: Random, rows: pa.Table, pieces: int) -> list[pa.Table]:
    """Cut rows in log order at random."""
    borders = sorted(random.randrange(rows.num_rows + 1) for _ in range(pieces - 1))
    return [rows.slice(a, b - a) for a, b in zip([0, *borders], [*borders, rows.num_rows], strict=True)]


def _zoned(column: pa.Field) -> pa.Field:
    return column.with_type(_zoned_type(column.type))


def _zoned_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC")
    if pa.types.is_struct(kind):
        return pa.struct([_zoned(kind.field(n)) for n in range(kind.num_fields)])
    return kind
