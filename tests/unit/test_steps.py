"""What a long command shows, in a log and in a terminal, and what setting up does with a command that fails."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from stack import setup, steps
from stack.steps import Steps
from tests.conftest import ROOT

SECONDS = re.compile(r"\[ *\d+ s\]|\(\d+\.\d s\)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDRAW_SECONDS", "FIRST_LINE_SECONDS", "LINE_SECONDS"):
        monkeypatch.setattr(steps, name, 0.01)


def test_in_a_log_a_step_that_takes_long_is_named_meanwhile_and_has_a_line_at_its_end() -> None:
    out = io.StringIO()
    with Steps(out).step("jars") as note:
        note("3 of 9")
        time.sleep(0.1)
        note("9")
    lines = [SECONDS.sub("", line).strip() for line in out.getvalue().splitlines()]
    assert lines[-1] == "jars: 9" and len(lines) > 2 and set(lines[:-1]) <= {"… jars", "… jars: 3 of 9", "… jars: 9"}
    assert "\r" not in out.getvalue() and "\033" not in out.getvalue()


def test_in_a_terminal_one_line_moves_and_lines_that_stay_are_never_written_into_it() -> None:
    out = Terminal()
    shown = Steps(out)
    with shown.step("packages") as note, shown.step("jars"):
        note("duckdb")
        time.sleep(0.1)
        shown.say("a line that stays")
        time.sleep(0.05)
    drawn = out.getvalue()
    assert "packages: duckdb | jars" in drawn
    stays = [line.rpartition(steps.CLEAR_LINE)[2] for line in drawn.split("\n") if line]
    assert [SECONDS.sub("", line).strip() for line in stays] == ["a line that stays", "jars", "packages: duckdb"]


def test_a_step_that_fails_has_no_line_that_says_it_is_done_and_leaves_no_thread() -> None:
    out, before = io.StringIO(), threading.active_count()
    with pytest.raises(ValueError, match="no"), Steps(out).step("stack"):
        raise ValueError("no")
    assert out.getvalue() == "" and threading.active_count() == before


def test_pyspark_is_taken_from_the_lock_with_its_hashes() -> None:
    found = setup.entry((ROOT / "requirements.lock").read_text(encoding="utf-8"), "pyspark")
    assert re.fullmatch(r"pyspark==[\d.]+ \\\n( +--hash=sha256:[0-9a-f]{64}( \\)?\n)+", found)
    assert not found.rstrip().endswith("\\")
    with pytest.raises(setup.Failed, match=r"requirements\.lock: no spark in it; run: make lock"):
        setup.entry(found, "spark")


def test_a_command_of_the_setup_that_fails_says_what_it_printed_last(tmp_path: Path) -> None:
    script = "import sys; [print(n) for n in range(99)]; sys.exit('no route')"
    with pytest.raises(setup.Failed, match=r"exit 1\n(?s:.*)98\n") as failed:
        setup._run([sys.executable, "-c", script], tmp_path, lambda line: None)
    assert "no route" in str(failed.value) and "\n50\n" not in str(failed.value)


def test_everything_is_compared_with_hashes() -> None:
    assert "--require-hashes" in setup.PIP
