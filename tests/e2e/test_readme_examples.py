"""Every curl and export line of README.md and docs/reference.md, run as written against a serving layer with data."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Pipeline

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/reference.md")]
BLOCKS = [block for text in TEXTS for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)]
COMMANDS = list(dict.fromkeys(line for block in BLOCKS for line in block.splitlines()))  # both may say the same
EXPORTS = [line for line in COMMANDS if line.startswith("python -m engine.export ")]
LINES = [line for line in COMMANDS if line.startswith("curl ")]

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="no curl on this machine")


def test_there_are_examples() -> None:
    assert len(LINES) > 15 and len(EXPORTS) > 5


@pytest.mark.parametrize("line", LINES)
def test_the_example_is_answered_as_written(line: str, serving_url: str, tmp_path: Path) -> None:
    words = shlex.split(line.replace("http://localhost:8000", serving_url), comments=True)
    assert serving_url in line.replace("http://localhost:8000", serving_url), "the example asks somebody else"
    if "-o" in words:
        words[words.index("-o") + 1] = "answer"
    else:
        words += ["-o", "answer"]
    # 429 and 503 say "not now": curl waits as long as Retry-After wants, as a user would.
    words += ["-sS", "--retry", "3", "--max-time", "120", "--write-out", "%{http_code} %{content_type}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    answer = tmp_path / "answer"
    assert done.returncode == 0, done.stderr
    status, _, kind = done.stdout.partition(" ")
    assert status == "200", f"{done.stdout}: {answer.read_bytes()[:2000]!r}"
    if kind.startswith("text/csv"):
        header, *rows = csv.reader(io.StringIO(answer.read_bytes().decode("utf-8-sig"), newline=""))
        assert rows
        assert all(len(row) == len(header) for row in rows)
    elif "parquet" in kind:
        assert pq.read_table(answer).num_rows > 0
    else:
        body = json.loads(answer.read_text(encoding="utf-8"))
        assert body
        assert "/proof" not in line or body["match"] is True, body


@pytest.mark.parametrize("line", EXPORTS)
def test_the_export_is_written_as_the_line_says(
    line: str, serving_url: str, pipeline: Pipeline, tmp_path: Path
) -> None:
    words = shlex.split(line.replace("http://localhost:8000", serving_url))
    command, env = [sys.executable, *words[1:]], {**pipeline.env, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    name = words[words.index("--out") + 1]
    data = done.stdout if name == "-" else (tmp_path / name).read_bytes()
    assert len(data) > 100
    if name.endswith(".csv"):
        assert data.startswith(b"\xef\xbb\xbf")
        header, *rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        assert rows and all(len(row) == len(header) for row in rows)
    elif name.endswith(".parquet"):
        assert pq.read_table(io.BytesIO(data)).num_rows >= 0
    else:
        assert json.loads(data if name.endswith(".json") else data.splitlines()[0])
    assert not list(tmp_path.glob("*.part"))
