"""The typed log follows the raw log, pass by pass; Spark's part is left out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine import events
from engine.domain import Stream
from engine.log import MASTER, segment_path
from tests.unit.localfs import LocalFs
from tests.unit.serving_data import parquet

STREAM = Stream("a_topic", columns={"one_id": "STRING"}, key="one_id", unique=("one_id",))


def write(fs: LocalFs, root: str, start: int, end: int) -> None:
    rows = pa.table({"offset": pa.array(range(start, end), pa.int64())})
    fs.create(segment_path(root, STREAM.topic, "log1", "0", start), parquet(rows))


def test_a_run_types_what_was_there_when_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ingest adds a segment during each pass, so a run that followed the head would never end."""
    fs = LocalFs(tmp_path)
    write(fs, MASTER, 0, 10)
    write(fs, MASTER, 10, 25)
    passes: list[tuple[int, int]] = []

    def one_pass(spark: Any, fs: LocalFs, stream: Stream, url: str, raw: Any, ranges: Any) -> int:
        assert len(passes) < 5, "it follows the head"
        ((start, end),) = ranges.values()
        passes.append((start, end))
        write(fs, events.typed_root(stream), start, end)
        head = raw["log1"]["0"].head
        write(fs, MASTER, head, head + 3)
        return end - start

    monkeypatch.setattr(events, "_type_ranges", one_pass)
    monkeypatch.setattr(events, "PASS_OFFSETS", 20)
    assert events.extend_typed(None, fs, STREAM, "") == 25  # type: ignore[arg-type]
    assert passes == [(0, 20), (20, 25)]
    assert events.extend_typed(None, fs, STREAM, "") == 6, "the next run takes the rest"  # type: ignore[arg-type]
