"""Does docs/add-a-domain.md work as written?

Its blocks are followed in a copy of the repository, up to proven answers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from domains import DOMAINS
from engine.domain import DeclarationError, Domain, Report, Stream, View, measure
from engine.fold.measures import all_parts
from tests.conftest import Stack
from tests.e2e.conftest import ROOT, SHARES, Pipeline, copy_repository

GUIDE = (ROOT / "docs/add-a-domain.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.M | re.S)
NAME = "parcels"
TESTS = ("conftest.py", "unit/test_domain_contract.py", "unit/test_domain_answers.py", "unit/test_decode.py")


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCKS if found == kind]


def lines(start: str) -> list[str]:
    """Commands of the guide that begin like this."""
    whole = (block.replace("\\\n", " ") for block in blocks("sh"))
    return [line for block in whole for line in block.splitlines() if line.startswith(start)]


def rows(heading: str) -> list[list[str]]:
    """Cells of the table under these headings."""
    table = GUIDE.partition(f"| {heading} |\n")[2].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table]


def unfolded(text: str) -> str:
    """A text whose folded lines, those that begin with spaces, stand with the line before again."""
    return re.sub(r"\n +", " ", text)


def code(cell: str) -> str:
    """What stands in the first code marks of a cell."""
    return cell.split("`")[1]


def declared(source: str) -> Domain:
    """The domain that the text of a domain file declares."""
    values: dict[str, Any] = {"__name__": f"domains.{NAME}"}
    exec(compile(source, f"{NAME}.py", "exec"), values)
    return next(value for value in values.values() if isinstance(value, Domain))


# What the guide says --------------------------------------------------------------------------------------------------


def test_the_guide_s_domain_is_whole_and_its_own() -> None:
    domain = declared(blocks("python")[0])
    assert (domain.name, len(domain.streams), len(domain.reports)) == (NAME, 1, 1)
    assert [bool(view.every) for view in domain.views] == [True, False]
    assert not names_of(domain) & {name for other in DOMAINS for name in names_of(other)}


def names_of(domain: Domain) -> set[str]:
    return {domain.name, *domain.topics, *(view.name for view in domain.views), *(r.name for r in domain.reports)}


def test_every_field_of_a_declaration_is_explained() -> None:
    for kind in (Domain, Stream, View, Report):
        section = GUIDE.partition(f"\n`{kind.__name__}`, ")[2] or GUIDE.partition(f"\n`{kind.__name__}`: ")[2]
        for field in dataclasses.fields(kind):
            place = "\n- `{}`: " if kind is not Domain else "`{}`"
            if not field.compare:
                continue  # it travels with a stored definition; nobody declares it
            assert place.format(field.name) in section.partition("\n#")[0], f"{kind.__name__}.{field.name}"


def test_the_table_of_measures_names_each_of_them_and_what_it_stores() -> None:
    kinds = set()
    table = rows("measure | stores | shows | exact")
    stream = declared(blocks("python")[0]).streams[0]
    for name, stored, *_ in table:
        arguments = {"count": (), "quantile": ("weight_kg", "0.5")}.get(code(name), ("weight_kg",))
        made = getattr(measure, code(name))(*arguments)
        view = View("v", (stream,), (), {"m": made})
        kinds.add(made.kind)
        assert [part.name for part in all_parts(view, "duckdb")] == re.findall(r"`(\w+)`", stored)
    assert kinds == set(measure.MEASURE_KINDS)


# What stands there, what is written instead, and what is said then.
MISTAKES = [
    (right, wrong, unfolded(said).strip())
    for right, wrong, said in re.findall(r"^(.+)  →  (.+)((?:\n    .+)+)", blocks("text")[0], re.M)
]


@pytest.mark.parametrize(("right", "wrong", "said"), MISTAKES, ids=[wrong for _, wrong, _ in MISTAKES])
def test_a_mistake_gets_the_sentence_that_the_guide_shows(right: str, wrong: str, said: str) -> None:
    source = blocks("python")[0]
    assert right in source
    with pytest.raises(DeclarationError) as refused:
        declared(source.replace(right, wrong, 1))
    assert str(refused.value) == said


def test_the_guide_s_tests_exist() -> None:
    sources = "".join((ROOT / "tests" / path).read_text(encoding="utf-8") for path in TESTS)
    others = re.findall(r"^- .*", unfolded(GUIDE.partition("\nOthers the suite finds:\n")[2]), re.M)
    assert len(MISTAKES) > 8 and len(others) > 8
    for other in others:
        (test,) = re.findall(r"`(test_\w+)`", other)
        assert f"def {test}(" in sources


# What the guide does --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the guide's file and lines in it."""
    root = tmp_path_factory.mktemp("copy")
    copy_repository(root, *(f"tests/{name}" for name in TESTS))
    file = re.findall(r"^Make the file \*\*(\S+)\*\*", GUIDE, re.M)[0]
    (root / file).write_text(blocks("python")[0], encoding="utf-8")
    changed = re.findall(r"^Name it in `(\S+)`:$", GUIDE, re.M)[0]
    text = (root / changed).read_text(encoding="utf-8")
    for block in blocks("diff"):
        before, after = (
            "".join(f"{line[1:]}\n" for line in block.splitlines() if line[0] in kept) for kept in (" -", " +")
        )
        assert text.count(before) == 1, f"{changed} does not hold:\n{before}"
        text = text.replace(before, after)
    (root / changed).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def began() -> float:
    return time.monotonic()


def run(line: str, root: Path) -> str:
    """Run a command of the guide in the copy; returns what it printed."""
    program, *arguments = shlex.split(line)
    assert program == ".venv/bin/python"
    env = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_the_contract_suite_covers_the_new_domain(copy: Path, began: float) -> None:
    (line,) = lines(".venv/bin/python -m pytest")
    passed = re.search(r"(\d+) passed", run(line, copy))
    assert passed and int(passed[1]) > 20


def test_the_producer_prints_the_events_of_the_guide(copy: Path) -> None:
    (line,) = lines(".venv/bin/python producer.py")
    assert run(line, copy) == blocks("json")[0].replace("\n  ", "")


def test_the_new_domain_gives_exact_answers(
    copy: Path, began: float, stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `make demo DOMAIN=parcels` does, with fewer events, on the stack of the tests."""
    assert lines("make demo") == [f"make demo DOMAIN={NAME}"]
    pipeline = Pipeline(stack, tmp_path, root=copy, domain=NAME)
    try:
        pipeline.run("producer.py", "--rate", "0", "--count", "2000", "--seed", "1", *SHARES)
        pipeline.start("serving", "ingest")
        pipeline.wait("all events in the master dataset", lambda: pipeline.lag("ingest") == 0)
        pipeline.run("batch_layer.py")
        pipeline.start("stream")
        pipeline.run("producer.py", "--rate", "0", "--count", "300", "--seed", "2", *SHARES)
        pipeline.wait("the version and the epochs after it", lambda: covered(pipeline, speed=200))
        assert "exact: merged answer = recount of the raw log" in pipeline.verify()
        ledger = pipeline.ledger()
        assert (ledger["balanced"], ledger["complete"]) == (True, True)
        assert ledger["events"]["batch"] > 1_500
        for line in lines("curl "):
            url = shlex.split(line)[1]
            answer = pipeline.get(url.removeprefix("http://localhost:8000"))
            assert answer and answer["rows"], (line, json.dumps(answer)[:500])
    finally:
        pipeline.finish()
    with capsys.disabled():
        print(f"\nfrom a new file to exact answers: {time.monotonic() - began:.0f} s")


def covered(pipeline: Pipeline, speed: int) -> bool:
    """Whether a version and more events than `speed` after it are served.

    Lag alone is known of the end last asked for.
    """
    ledger = pipeline.ledger()
    return (
        bool(ledger.get("version"))
        and ledger["events"]["speed"] > speed
        and pipeline.lag("stream") == 0
        and pipeline.lag("ingest") == 0
    )
