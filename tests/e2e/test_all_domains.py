"""All domains at once, every layer killed, a definition changed, promoted and rolled back under load.

Every answer stays right.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from domains import DOMAINS
from stack.demo import behind
from tests.conftest import Stack
from tests.e2e.conftest import PATIENCE, ROOT, Pipeline, Recorder
from tests.notebook import execute

SHARES = ("--duplicates", "0.02", "--late", "0.01", "--broken", "0.005", "--future", "0.001")
SCORES = ("movie_scores", "limit=10000")
QUERIES = (
    SCORES,
    ("genre_counts", "limit=10000"),
    ("device_type_minutes", "every=1h&limit=10000"),
    SCORES,
    ("merchant_hours", "every=1d&by=category&limit=10000"),
    ("price_minutes", "every=all&limit=10000"),
)


# A rollback is served, and noticed by the stream, in seconds: nothing is computed anew. The rest is for a slow machine.
CHANGE_SECONDS = 120
# Five queries a layer, each with the price of a micro-batch.
PAUSES = {"TRIGGER_INTERVAL": "15s", "STREAM_TRIGGER_INTERVAL": "5s"}


class All(Pipeline):
    """Every domain in the same processes."""

    def ledgers(self) -> list[dict[str, Any]]:
        found = self.get("/v1/ledger")
        return list(found["domains"]) if found else []

    def lag(self, layer: str) -> float:
        """Over all domains."""
        told = self.ledgers()
        return behind({"domains": told if len(told) == len(DOMAINS) else []}, layer)

    def versions(self) -> list[int]:
        return [ledger["version"] for ledger in self.ledgers()]

    def movie_version(self) -> int:
        answer = self.get("/v1/views/movie_scores?limit=1")
        return int(answer["as_of"]["version"]) if answer else -1

    def restart(self, name: str) -> None:
        """Start a layer again that left with 75, as its supervisor would."""
        child = self.running.pop(name)
        assert child.wait(CHANGE_SECONDS) == 75, self.log(name)
        self.start(name)


@pytest.fixture(scope="module")
def drilled(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[All, Path, list[dict[str, Any]]]]:
    """The drill; returns the running system and the recorded answers."""
    pipeline = All(stack, tmp_path_factory.mktemp("all"), domain="all")
    pipeline.env |= PAUSES
    file = pipeline.folder / "answers.jsonl"
    try:
        pipeline.run("producer.py", "--rate", "0", "--count", "5000", "--seed", "1", *SHARES)
        pipeline.start("serving", "ingest", "stream")
        pipeline.wait("ingest has all", lambda: pipeline.lag("ingest") == 0)
        pipeline.run("batch_layer.py")
        pipeline.wait("every domain has a version", lambda: pipeline.versions() and min(pipeline.versions()) >= 1)
        pipeline.wait("the stream has all", lambda: pipeline.lag("stream") == 0)
        with Recorder(pipeline, file, seconds=1.0, queries=QUERIES) as recorder:
            pipeline.spawn("producer", "producer.py", "--rate", "60", "--seed", "2", *SHARES)
            names = ["ingest", "stream", "serving"]
            random.Random(3).shuffle(names)
            for name in names:
                pipeline.kill(name)
                pipeline.start(name)
            pipeline.spawn("batch", "batch_layer.py")
            pipeline.kill("batch")
            change_promote_roll_back(pipeline)
            assert pipeline.stop("producer") == 0
            pipeline.wait("ingest has all", lambda: pipeline.lag("ingest") == 0)
            pipeline.run("batch_layer.py")
            pipeline.wait("the stream has all", lambda: pipeline.lag("stream") == 0)
        yield pipeline, file, recorder.answers
    finally:
        pipeline.finish()


def change_promote_roll_back(pipeline: All) -> None:
    """Build movie scores with another mean beside the served ones, promote them, roll back."""
    plain = pipeline.wait("serving is back", lambda: max(pipeline.movie_version(), 0))
    pipeline.env["GLOBAL_MEAN_RATING"] = "7.5"
    told = pipeline.run("batch_layer.py", "--domain", "movies", "--dry-run")
    assert "view movie_scores: all history, it changed: constants (global_mean_rating)" in told
    pipeline.run("batch_layer.py", "--domain", "movies", "--candidate")
    del pipeline.env["GLOBAL_MEAN_RATING"]
    listed = pipeline.run("-m", "engine.versions", "list", "movies")
    candidate = max(int(number) for number in re.findall(r"^ *(\d+) ", listed, re.M))
    assert pipeline.movie_version() == plain
    different = pipeline.run("-m", "engine.versions", "diff", "movies", str(candidate), "--limit", "3", wanted=1)
    assert re.search(r"view movie_scores: [\d,]+ groups changed, 0 added, 0 removed", different)
    assert "view genre_counts: 0 groups changed, 0 added, 0 removed" in different

    pipeline.run("-m", "engine.versions", "promote", "movies", str(candidate))
    pipeline.restart("stream")
    pipeline.wait("the promoted version is served", lambda: pipeline.movie_version() == candidate)

    # A plain run goes on in the promoted line, whatever the file says; its horizon needs an epoch of the new chain.
    def goes_on() -> bool:
        pipeline.run("batch_layer.py", "--domain", "movies")
        return pipeline.movie_version() > candidate

    pipeline.wait("the line goes on", goes_on)
    pipeline.run("-m", "engine.versions", "rollback", "movies", str(plain))
    pipeline.wait("the old version is served", lambda: pipeline.movie_version() == plain, CHANGE_SECONDS)
    pipeline.restart("stream")


def test_all_domains_are_equal_to_the_recount(drilled: tuple[All, Path, Any]) -> None:
    said = drilled[0].verify()
    assert re.search(r"exact: merged answer = recount of the raw log, ([\d,]+) events", said)
    assert all(ledger["balanced"] and ledger["complete"] for ledger in drilled[0].ledgers())


def test_every_recorded_answer_is_right_for_the_definition_it_names(
    drilled: tuple[All, Path, list[dict[str, Any]]],
) -> None:
    pipeline, file, answers = drilled
    scores = [answer["answer"] for answer in answers if answer["view"] == "movie_scores"]
    numbers = [answer["as_of"]["version"] for answer in scores]
    changes = [b for a, b in itertools.pairwise(numbers) if a != b]
    assert len(changes) >= 2 and numbers[-1] in numbers[: numbers.index(changes[0])], f"versions served: {numbers}"
    by_version = {}
    for answer in scores:
        for row in answer["rows"]:
            by_version.setdefault((row["tconst"], row["updates"]), {})[answer["as_of"]["version"]] = row
    told_twice = [rows for rows in by_version.values() if len(rows) > 1]
    assert any(len({row["weighted_score"] for row in rows.values()}) > 1 for rows in told_twice)
    said = pipeline.verify("--answers", str(file))
    assert "exact" in said


@pytest.mark.parametrize("domain", ["movies", "iot"])
def test_explore_runs_for_other_domains_from_the_repository_s_folder(
    drilled: tuple[All, Path, Any], domain: str
) -> None:
    """Views without windows, and many measures.

    `tests/e2e/test_notebook_explore.py` runs it for learning, from its own folder.
    """
    said = execute("explore", ROOT, {**drilled[0].env, "DOMAIN": domain}, seconds=PATIENCE)
    assert re.search(rf"^{domain}: topic \S+, view \w+ of version [1-9]", said["choose"], re.M)
    rows = re.findall(r"^(?:master|typed|view) +(.*)$", said["counts"], re.M)
    assert len(rows) == 3 and all(len(set(row.split()[1:])) == 1 for row in rows), said["counts"]
    assert "balanced True" in said["ledger"]


def test_a_wrong_score_is_found(drilled: tuple[All, Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    answer = json.loads(json.dumps(next(a for a in drilled[2] if a["view"] == "movie_scores" and a["answer"]["rows"])))
    answer["answer"]["rows"][0]["weighted_score"] += 0.001
    file = tmp_path / "wrong.jsonl"
    file.write_text(json.dumps(answer) + "\n")
    drilled[0].verify("--answers", str(file), wanted=1)
