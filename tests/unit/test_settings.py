"""The one reader of the environment: precedence, types, one-line errors, and the texts that derive from the table."""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from engine.runtime.settings import (
    SETTINGS,
    Settings,
    SettingsError,
    add_flags,
    from_args,
    listing,
    load,
    seconds_of,
)

ROOT = Path(__file__).resolve().parents[2]


def clean(overrides: Mapping[str, object] | None = None, /, **environ: str) -> Settings:
    return load(overrides, environ=environ, env_file=None)


def parsed(flags: str, names: dict[str, str | tuple[str, ...]]) -> Settings:
    parser = argparse.ArgumentParser()
    add_flags(parser, names)
    return from_args(parser.parse_args(flags.split()))


def test_nothing_given_gives_the_defaults() -> None:
    assert clean() == Settings()
    assert Settings().trigger_interval == 30.0
    assert Settings().seed is None
    assert Settings().batch_interval is None


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("MSGS_PER_SEC=1\nKEEP_VERSIONS=7\nSEED=3\n")
    got = load({"msgs_per_sec": "5"}, environ={"MSGS_PER_SEC": "2", "KEEP_VERSIONS": "8"}, env_file=file)
    assert (got.msgs_per_sec, got.keep_versions, got.seed) == (5.0, 8, 3)


def test_an_empty_text_counts_as_not_given() -> None:
    assert clean({"seed": None}, MSGS_PER_SEC="", SEED="  ") == Settings()


def test_the_file_may_hold_comments_quotes_exports_and_other_names(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "# note\n\nexport LOG_LEVEL=debug # why\nSPARK_MASTER='local[*]'\nIMAGE_TAG=1.2#3\nHDFS_URL=\"hdfs://nn:9000\"\n"
    )
    got = load(environ={}, env_file=file)
    assert (got.log_level, got.spark_master, got.hdfs_url) == ("DEBUG", "local[*]", "hdfs://nn:9000")


def test_a_broken_line_of_the_file_is_named_without_its_text(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("SEED=1\nhunter2 is my password\n")
    with pytest.raises(SettingsError, match="line 2: allowed is KEY=VALUE") as caught:
        load(environ={}, env_file=file)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30 seconds", 30),
        ("1 second", 1),
        ("500 milliseconds", 0.5),
        ("30s", 30),
        ("500ms", 0.5),
        ("1m", 60),
        ("10 min", 600),
        ("2 hours", 7200),
        ("1d", 86400),
        ("0 seconds", 0),
        ("1.5s", 1.5),
        ("2 Minutes", 120),
    ],
)
def test_a_duration_is_read_as_spark_would_write_it(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert clean(TRIGGER_INTERVAL=text).trigger_interval == seconds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MSGS_PER_SEC", "fast"),
        ("MSGS_PER_SEC", "-1"),
        ("MSGS_PER_SEC", "nan"),
        ("MSGS_PER_SEC", "inf"),
        ("PRODUCER_LIMIT", "1.5"),
        ("DUPLICATE_SHARE", "1.01"),
        ("SERVING_PORT", "65536"),
        ("SERVING_PORT", "0"),
        ("STARTING_OFFSETS", "newest"),
        ("SHOW_PREVIEWS", "perhaps"),
        ("TRIGGER_INTERVAL", "30"),
        ("TRIGGER_INTERVAL", "soon"),
        ("BATCH_INTERVAL", "0s"),
        ("KAFKA_BOOTSTRAP_SERVERS", "localhost"),
        ("HDFS_URL", "http://localhost:9000"),
        ("KEEP_VERSIONS", "0"),
        ("SEED", "seven"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_is_one_line_with_name_value_and_what_is_allowed(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(environ={name: value}, env_file=None)
    message = str(caught.value)
    assert message.startswith(f"{name}={value!r}: allowed is ")
    assert "\n" not in message


def test_an_error_names_the_flag_when_the_flag_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"^--rate='x': allowed is a number"):
        parsed("--rate x", {"msgs_per_sec": ("-r", "--rate")})
    monkeypatch.setenv("MSGS_PER_SEC", "y")
    with pytest.raises(SettingsError, match=r"^MSGS_PER_SEC='y'"):
        parsed("", {"msgs_per_sec": ("-r", "--rate")})


def test_a_flag_that_is_not_given_leaves_the_environment_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSGS_PER_SEC", "77")
    monkeypatch.setenv("SHOW_PREVIEWS", "true")
    names: dict[str, str | tuple[str, ...]] = {"msgs_per_sec": "--rate", "show_previews": (), "keep_versions": ()}
    assert parsed("", names).msgs_per_sec == 77
    assert parsed("--msgs-per-sec 5", names).msgs_per_sec == 5
    assert parsed("", names).show_previews is True
    assert parsed("--no-show-previews --keep-versions 9", names) == dataclasses.replace(
        Settings(), msgs_per_sec=77.0, show_previews=False, keep_versions=9
    )


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(SettingsError, match="MSG_PER_SEC: no such setting; known: KAFKA_BOOTSTRAP_SERVERS"):
        clean({"MSG_PER_SEC": 1})


def test_printing_hides_what_stands_before_an_at_sign() -> None:
    got = dataclasses.replace(Settings(), spark_master="spark://me:secret@host:7077")
    assert "secret" not in repr(got)
    assert "secret" not in str(got)
    with pytest.raises(SettingsError) as caught:
        clean(HDFS_URL="http://me:secret@host:9000")
    assert "secret" not in str(caught.value)


def test_every_setting_has_a_sentence_and_a_default_that_is_its_own_value() -> None:
    for setting in SETTINGS:
        assert re.fullmatch(r"[A-Z].*\.", setting.sentence), setting.name
        value = setting.kind.parse(setting.default) if setting.default else None
        assert value == getattr(Settings(), setting.attribute), setting.name
        assert f"- `{setting.name}` = " in listing()


def test_the_example_file_names_every_setting_with_its_default() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    assert [s.name for s in SETTINGS if f"#{s.name}={s.default}" not in lines] == []


def test_importing_the_settings_loads_no_library() -> None:
    heavy = ("pyspark", "kafka", "pydantic", "pyarrow")
    code = f"import sys, engine.settings; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")
