"""Which values may a user set, and what are they now? The only reader of the environment.

`.env` is read by `engine.runtime.envfile`. `load()` gives one frozen `Settings`; a flag wins over the environment, the
environment over `.env`, `.env` over the default, and an empty text counts as not given. `python -m engine.settings`
prints the list of docs/reference.md.
"""

from __future__ import annotations

import argparse
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.runtime import envfile
from engine.runtime.envfile import ENV_FILE
from engine.runtime.envfile import SettingsError as SettingsError  # callers know it from here

_UNITS = {"ms": 0.001, "millisecond": 0.001, "s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0}
_UNITS |= {"minute": 60.0, "h": 3600.0, "hour": 3600.0, "d": 86400.0, "day": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")
_ADDRESSES = re.compile(r"[^\s,:/]+:\d{1,5}(,[^\s,:/]+:\d{1,5})*")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_USER_INFO = re.compile(r"(?<=//)[^/@\s]+@")


@dataclass(frozen=True)
class Kind:
    """A type of setting: its name in the table, what it allows in words, and text → value (ValueError when wrong)."""

    type: str
    allowed: str
    parse: Callable[[str], Any]


@dataclass(frozen=True)
class Setting:
    """One row of the table: the name in the environment, the default as a user would write it, and its meaning."""

    name: str
    default: str
    kind: Kind
    sentence: str

    @property
    def attribute(self) -> str:
        """Name in `Settings`, and of the flag with `-` for `_`."""
        return self.name.lower()


def seconds_of(text: str) -> float:
    """Seconds of a duration such as `30 seconds`, `500ms` or `1m`; ValueError for anything else."""
    found = _DURATION.fullmatch(text.strip().lower())
    unit = found and (_UNITS.get(found[2]) or _UNITS.get(found[2].removesuffix("s")))
    if not found or not unit:
        raise ValueError(text)
    return float(found[1]) * unit


def _checked(value: float, low: float, high: float) -> float:
    if not low <= value <= high:  # also refuses NaN
        raise ValueError(value)
    return value


def _integer(low: int, high: int, allowed: str = "") -> Kind:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise ValueError(text)
        _checked(int(text), low, high)
        return int(text)

    return Kind("integer", allowed or f"a whole number from {low} to {high}", parse)


def _number(low: float, high: float, allowed: str, type_name: str = "number") -> Kind:
    def parse(text: str) -> float:
        if not _NUMBER.fullmatch(text):
            raise ValueError(text)
        return _checked(float(text), low, high)

    return Kind(type_name, allowed, parse)


def _duration(low: float, allowed: str) -> Kind:
    return Kind("duration", allowed, lambda text: _checked(seconds_of(text), low, 31 * 86400))


def _choice(*names: str) -> Kind:
    lowered = {name.lower(): name for name in names}

    def parse(text: str) -> str:
        if text.lower() not in lowered:
            raise ValueError(text)
        return lowered[text.lower()]

    return Kind("choice", "one of " + ", ".join(names), parse)


def _matching(pattern: str | re.Pattern[str], allowed: str) -> Kind:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text.rstrip("/") if "//" in text else text

    return Kind("text", allowed, parse)


def _yes_or_no(text: str) -> bool:
    return {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}[
        text.lower()
    ]


_TEXT = _matching(r"\S(.*\S)?", "any text")
_SWITCH = Kind("switch", "true or false", _yes_or_no)
_SHARE = _number(0, 1, "a number from 0 to 1", "share")
_PORT = _integer(0, 65535, "a port from 0 to 65535 (0 = off)")
_INTERVAL = _duration(0, "a duration such as 30 seconds, 500ms or 1m, from 0 to 31 days")


def _is(default: str, kind: Kind, sentence: str) -> Any:
    value = kind.parse(default) if default else None
    return field(default=value, metadata={"default": default, "kind": kind, "sentence": sentence})


@dataclass(frozen=True, repr=False)
class Settings:
    """Every setting, checked; durations in seconds. Printing hides user names and passwords inside addresses."""

    kafka_bootstrap_servers: str = _is(
        "localhost:9092",
        _matching(_ADDRESSES, "host:port, several by comma"),
        "Where Kafka answers; between containers `kafka:29092`.",
    )
    hdfs_url: str = _is(
        "hdfs://localhost:9000",
        _matching(r"hdfs://[^\s/]+/?", "hdfs://host:port"),
        "Where the NameNode answers; between containers `hdfs://namenode:9000`.",
    )
    spark_master: str = _is(
        "local[2]", _TEXT, "Where Spark runs when `python` starts a layer, such as `spark://localhost:7077`."
    )
    domain: str = _is("learning", _TEXT, "Domain to work on; several by comma, or `all`.")
    hadoop_user_name: str = _is(
        "hadoop", _matching(r"[A-Za-z_][\w.-]*", "a user name"), "User to whom the files on HDFS belong."
    )

    msgs_per_sec: float = _is(
        "10",
        _number(0, 1e7, "a number from 0 to 10000000"),
        "Events per second of the producer; 0 = as fast as possible.",
    )
    producer_limit: int = _is("0", _integer(0, 10**15), "Events after which the producer stops; 0 = endless.")
    send_timeout_sec: float = _is(
        "30", _number(1, 3600, "a number from 1 to 3600"), "Seconds within which Kafka must acknowledge an event."
    )
    producer_metrics_port: int = _is("8082", _PORT, "Port of the producer's `/metrics` and `/health`; 0 = off.")
    seed: int | None = _is(
        "",
        _integer(-(10**17), 10**17, "a whole number, or empty"),
        "Start value of the generators; empty = a new one, which is printed.",
    )
    duplicate_share: float = _is("0", _SHARE, "Share of events that are sent again.")
    late_share: float = _is("0", _SHARE, "Share of events whose event time lies up to 3 days back.")
    broken_share: float = _is("0", _SHARE, "Share of events that are broken on purpose.")
    future_share: float = _is("0", _SHARE, "Share of events whose event time lies 1 to 24 hours ahead.")

    trigger_interval: float = _is("30 seconds", _INTERVAL, "Pause between two micro-batches of ingest.")
    stream_trigger_interval: float = _is("1 second", _INTERVAL, "Pause between two micro-batches of the speed layer.")
    max_offsets_per_trigger: int = _is("500000", _integer(1, 10**9), "Most events that a micro-batch of ingest takes.")
    stream_max_offsets_per_trigger: int = _is(
        "50000", _integer(1, 10**9), "Most events that a micro-batch of the speed layer takes."
    )
    starting_offsets: str = _is(
        "earliest",
        _choice("earliest", "latest"),
        "Where ingest starts in a log that it has never seen; afterwards the master dataset decides.",
    )
    show_previews: bool = _is("false", _SWITCH, "Print a few rows of each micro-batch.")
    batch_interval: float | None = _is(
        "",
        _duration(1, "a duration such as 10m, from 1 second to 31 days, or empty"),
        "Repeat the batch run this often; empty = run once.",
    )
    keep_versions: int = _is("5", _integer(1, 1000), "Batch versions that are kept, besides those in use.")

    serving_host: str = _is(
        "127.0.0.1", _matching(r"[^\s/]+", "a host name or address"), "Address on which the serving layer listens."
    )
    serving_port: int = _is(
        "8000", _integer(1, 65535, "a port from 1 to 65535"), "Port of the REST interface and the dashboard."
    )
    serving_poll_ms: int = _is(
        "300", _integer(10, 60_000), "Milliseconds between two looks for new versions and epochs."
    )
    ready_staleness: float = _is(
        "0",
        _number(0, 31 * 86_400, "a number from 0 to 2678400"),
        "Seconds behind Kafka beyond which serving says that it is not ready; 0 = however old.",
    )
    serving_store: str = _is(
        "hdfs",
        _choice("hdfs", "cassandra"),
        "Where serving reads versions and epochs; `cassandra` needs `python -m engine.materialise`.",
    )
    cassandra_contact_points: str = _is(
        "localhost:9042",
        _matching(_ADDRESSES, "host:port, several by comma"),
        "Where Cassandra answers; between containers `cassandra:9042`.",
    )
    cassandra_keyspace: str = _is(
        "highwater",
        _matching(r"[a-z][a-z0-9_]{0,47}", "lower-case letters, digits and _, at most 48"),
        "Keyspace of the serving store; made where it is missing.",
    )
    cassandra_replication: int = _is(
        "1", _integer(1, 100), "Copies that each data centre of Cassandra keeps; counts when the keyspace is made."
    )
    metrics_host: str = _is(
        "127.0.0.1", _matching(r"[^\s/]+", "a host name or address"), "Address on which the metrics ports listen."
    )
    ingest_metrics_port: int = _is("8083", _PORT, "Port of ingest's `/metrics` and `/health`; 0 = off.")
    stream_metrics_port: int = _is("8084", _PORT, "Port of the speed layer's `/metrics` and `/health`; 0 = off.")
    batch_metrics_port: int = _is("8085", _PORT, "Port of the batch layer's `/metrics` and `/health`; 0 = off.")
    log_format: str = _is("console", _choice("console", "json"), "How log lines look.")
    log_level: str = _is(
        "INFO", _choice("DEBUG", "INFO", "WARNING", "ERROR"), "From which level on log lines are printed."
    )

    def __repr__(self) -> str:
        values = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"Settings({', '.join(_USER_INFO.sub('***@', value) for value in values)})"


SETTINGS = tuple(
    Setting(f.name.upper(), f.metadata["default"], f.metadata["kind"], f.metadata["sentence"]) for f in fields(Settings)
)
_BY_ATTRIBUTE = {setting.attribute: setting for setting in SETTINGS}


def load(
    overrides: Mapping[str, Any] | None = None,
    *,
    names: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    env_file: Path | None = ENV_FILE,
) -> Settings:
    """Return the settings in force.

    Args:
        overrides: setting → value, in either case of letters; None and "" count as not given.
        names: setting → what to call it in an error, such as its flag.
        environ: instead of the environment of this process.
        env_file: KEY=VALUE lines; may be missing. Other names in it are ignored, since Compose reads the same file.

    Raises:
        SettingsError: one line with the name, the value and what is allowed.
    """
    given = {name.lower(): value for name, value in (overrides or {}).items() if value is not None}
    unknown = [name for name in given if name not in _BY_ATTRIBUTE]
    if unknown:
        raise SettingsError(f"{unknown[0].upper()}: no such setting; known: {', '.join(s.name for s in SETTINGS)}")
    called = {name.lower(): text for name, text in (names or {}).items()}
    environment = os.environ if environ is None else environ
    file_values = envfile.read(env_file, environment)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        sources = (
            (str(given.get(setting.attribute, "")), called.get(setting.attribute, setting.name)),
            (environment.get(setting.name, ""), setting.name),
            (file_values.get(setting.name, ""), f"{setting.name} in {env_file}"),
        )
        text, where = next(((text.strip(), where) for text, where in sources if text.strip()), ("", ""))
        if text:
            values[setting.attribute] = _parsed(setting, text, where)
    return Settings(**values)


def environment(environ: Mapping[str, str] | None = None, env_file: Path | None = ENV_FILE) -> dict[str, str]:
    """Return every name of the environment and of `.env`, for what a domain declares (`Domain.settings`)."""
    return envfile.given(env_file, environ)


def add_flags(parser: argparse.ArgumentParser, flags: Iterable[str] | Mapping[str, str | tuple[str, ...]]) -> None:
    """Give `parser` flags for settings; a flag that is not given leaves the environment's value in force.

    Args:
        parser: read its result with `from_args`.
        flags: names of settings (`msgs_per_sec` becomes `--msgs-per-sec`), or setting → its flags (`"--rate"`).
    """
    chosen = dict(flags) if isinstance(flags, Mapping) else dict.fromkeys(flags, ())
    labels: dict[str, str] = {}
    for name, own in chosen.items():
        setting = _BY_ATTRIBUTE[name.lower()]
        words = (own,) if isinstance(own, str) else own
        long = f"--{setting.attribute.replace('_', '-')}"
        options = list(dict.fromkeys((*words, long)))
        labels[setting.attribute] = next(word for word in options if word.startswith("--"))
        default = f"default {setting.default}" if setting.default else "empty by default"
        text = f"{setting.sentence} [{setting.name}, {default}]".replace("`", "").replace("%", "%%")
        if setting.kind is _SWITCH:
            parser.add_argument(
                *options, dest=setting.attribute, default=None, help=text, action=argparse.BooleanOptionalAction
            )
        else:
            parser.add_argument(
                *options, dest=setting.attribute, default=None, help=text, metavar=setting.kind.type.upper()
            )
    parser.set_defaults(_settings_flags=labels | (parser.get_default("_settings_flags") or {}))


def from_args(args: argparse.Namespace) -> Settings:
    """Settings from what `add_flags` parsed; an error names the flag or the variable that is wrong."""
    labels: dict[str, str] = args._settings_flags
    return load({name: getattr(args, name) for name in labels}, names=labels)


def listing() -> str:
    """The settings as a Markdown list; the rows of a table would be too long to be read or compared."""
    lines = []
    for s in SETTINGS:
        default = f"`{s.default}`" if s.default else "empty"
        lines += textwrap.wrap(f"- `{s.name}` = {default}: {s.sentence}", 120, subsequent_indent="  ")
        lines.append(f"  Allowed: {s.kind.allowed}.")
    return "\n".join(lines)


def _parsed(setting: Setting, text: str, where: str) -> Any:
    try:
        return setting.kind.parse(text)
    except (ValueError, KeyError):
        shown = _USER_INFO.sub("***@", text)
        raise SettingsError(f"{where}={shown!r}: allowed is {setting.kind.allowed}") from None
