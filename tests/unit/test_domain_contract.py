"""What every domain must prove without any service. A sixth domain is covered by being listed in `domains.DOMAINS`."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import unicodedata
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import jsonschema_rs
import msgspec
import pytest

import domains
from domains import DOMAINS
from engine.domain import DeclarationError, Domain, Stream
from engine.produce.validate import BREAKAGES, EventRefused, checker

ROOT = Path(__file__).resolve().parents[2]
NOW_MS = 1_767_225_600_000
STREAMS = [pytest.param(stream, id=f"{domain.name}-{stream.topic}") for domain in DOMAINS for stream in domain.streams]
EACH_DOMAIN = pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
EACH_STREAM = pytest.mark.parametrize("stream", STREAMS)


def events(stream: Stream, count: int, seed: int = 1) -> list[dict[str, Any]]:
    assert stream.generator is not None, f"stream '{stream.topic}' has no generator"
    make = stream.generator(Random(seed), stream.options)
    made = [make(NOW_MS + number) for number in range(count)]
    assert None not in made, f"stream '{stream.topic}' made no event"
    return made  # type: ignore[return-value]


@EACH_STREAM
def test_the_json_schema_is_valid_and_accepts_what_is_generated(stream: Stream) -> None:
    jsonschema_rs.meta.validate(stream.json_schema())
    schema = jsonschema_rs.validator_for(stream.json_schema())
    check = checker(stream)
    for event in events(stream, 1_000):
        schema.validate(event)
        value = msgspec.json.encode(event)
        check(value)
        assert json.loads(value) == event


@EACH_STREAM
def test_generated_events_hold_every_declared_field_and_no_other(stream: Stream) -> None:
    for event in events(stream, 200):
        assert set(event) == set(stream.columns)


@EACH_STREAM
def test_the_json_schema_and_the_producer_refuse_events_that_are_broken_on_purpose(stream: Stream) -> None:
    schema, check, rng = jsonschema_rs.validator_for(stream.json_schema()), checker(stream), Random(2)
    for name in ("wrong_type", "missing_field"):  # the others are seen in the text alone
        for event in events(stream, 100):
            broken = BREAKAGES[name](stream, event, msgspec.json.encode(event), rng)
            assert not schema.is_valid(json.loads(broken)), (name, broken)
            with pytest.raises(EventRefused):
                check(broken)


@EACH_STREAM
@pytest.mark.parametrize("name", BREAKAGES)
def test_no_strict_reader_takes_a_broken_event_for_a_good_one(stream: Stream, name: str) -> None:
    """Each line of docs/decode.md that a breakage stands for, judged here by Python's own JSON reader."""

    def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    def no_constant(text: str) -> None:
        raise ValueError(text)

    schema, rng = jsonschema_rs.validator_for(stream.json_schema()), Random(3)
    for event in events(stream, 100):
        broken = BREAKAGES[name](stream, event, msgspec.json.encode(event), rng)
        try:
            read = json.loads(broken.decode("utf-8"), object_pairs_hook=unique_names, parse_constant=no_constant)
        except ValueError:
            continue
        assert not schema.is_valid(read), broken


@EACH_STREAM
def test_each_needed_field_is_needed_and_each_other_one_may_be_null(stream: Stream) -> None:
    schema, check = jsonschema_rs.validator_for(stream.json_schema()), checker(stream)
    event = events(stream, 1)[0]
    for name in stream.columns:
        for changed in ({**event, name: None}, {key: value for key, value in event.items() if key != name}):
            assert schema.is_valid(changed) == (name not in stream.needed), (name, changed)
            if name in stream.needed:
                with pytest.raises(EventRefused):
                    check(msgspec.json.encode(changed))
            else:
                check(msgspec.json.encode(changed))


@EACH_STREAM
def test_the_same_seed_and_time_give_the_same_bytes(stream: Stream) -> None:
    def written(seed: int) -> bytes:
        return b"\n".join(msgspec.json.encode(event) for event in events(stream, 300, seed))

    assert written(5) == written(5)
    assert written(5) != written(6)


@EACH_DOMAIN
def test_the_same_seed_gives_the_same_bytes_in_another_process(domain: Domain) -> None:
    command = [sys.executable, "producer.py", "--domain", domain.name, "--to", "jsonl", "--count", "300"]
    command += ["--seed", "7", "--start", "2026-01-01T00:00:00Z", "--duplicates", "0.1", "--late", "0.1"]
    first, second = (
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True, env={"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    )
    assert first == second
    assert first.count(b"\n") == 300


@EACH_STREAM
def test_generated_texts_are_composed_unicode(stream: Stream) -> None:
    for event in events(stream, 300):
        for value in event.values():
            assert not isinstance(value, str) or unicodedata.is_normalized("NFC", value), value


@EACH_STREAM
def test_unique_keys_do_not_repeat_by_chance(stream: Stream) -> None:
    keys = {tuple(event[name] for name in stream.unique) for event in events(stream, 1_000)}
    assert len(keys) == 1_000


@EACH_DOMAIN
def test_every_column_that_a_view_uses_exists_in_all_its_streams(domain: Domain) -> None:
    words = re.compile(r"'[^']*'|[A-Za-z_]\w*")
    for view in domain.views:
        for name in view.by:
            assert view.dimension_type(name), (view.name, name)
        for name in chain(*(measure.columns for measure in view.measures.values())):
            assert view.type_of(name), (view.name, name)
        for measure in view.measures.values():
            named = {word for word in words.findall(measure.where or "") if not word.startswith("'")}
            for stream in view.streams:
                unknown = {w for w in named if w.lower() == w} - set(stream.columns)
                assert not unknown, (view.name, measure.where, unknown)


def test_topics_and_names_belong_to_one_domain() -> None:
    for names in (
        [domain.name for domain in DOMAINS],
        [topic for domain in DOMAINS for topic in domain.topics],
        [name for d in DOMAINS for name in (*(view.name for view in d.views), *(report.name for report in d.reports))],
    ):
        assert sorted(names) == sorted(set(names))


def test_every_file_in_domains_is_listed() -> None:
    listed = {id(domain) for domain in DOMAINS}
    for module in pkgutil.iter_modules(domains.__path__):
        values = vars(importlib.import_module(f"domains.{module.name}")).values()
        found = [value for value in values if isinstance(value, Domain)]
        assert found, f"domains/{module.name}.py declares no Domain"
        assert all(id(domain) in listed for domain in found), f"add domains/{module.name}.py to DOMAINS"
        assert found[0].name == module.name


@EACH_DOMAIN
def test_a_domain_survives_the_way_through_json(domain: Domain) -> None:
    back = Domain.from_json(json.loads(json.dumps(domain.to_json())))
    assert (back.definition_hash, back.report_hash) == (domain.definition_hash, domain.report_hash)
    assert (back.topics, back.title) == (domain.topics, domain.title)
    assert [(r.query, r.checks, r.time) for r in back.reports] == [(r.query, r.checks, r.time) for r in domain.reports]
    assert [view.shown for view in back.views] == [view.shown for view in domain.views]


def test_an_unknown_domain_is_refused_with_the_known_names() -> None:
    assert domains.named("all", {}) == DOMAINS
    assert domains.named(f"{DOMAINS[0].name}, {DOMAINS[0].name}", {}) == DOMAINS[:1]
    for text in ("nosuch", "", ","):
        with pytest.raises(DeclarationError, match=f"unknown domain; allowed: {DOMAINS[0].name}"):
            domains.named(text, {})


@pytest.mark.parametrize(
    ("module", "banned"),
    [("domains", ("pyspark", "kafka", "faker", "pyarrow", "duckdb")), ("producer", ("pyspark", "faker"))],
)
def test_importing_is_silent_and_loads_neither_spark_nor_what_is_not_needed(
    module: str, banned: tuple[str, ...]
) -> None:
    code = f"import sys, {module}; print(*(name for name in {banned!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")
