"""Two replicas on Cassandra, under load and kills.

Each answer is right at its own `as_of`, and coverage never goes back.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.storage.log import covers
from stack import lifecycle, process
from stack import settings as stack_settings
from stack.services import CASSANDRA
from stack.settings import free_ports
from tests.conftest import Stack
from tests.e2e.conftest import PATIENCE, SHARES, Pipeline, Recorder

MATERIALISE = ("-m", "engine.materialise")


def beside(pipeline: Pipeline, folder: Path, env: dict[str, str]) -> Pipeline:
    """The same layers, seen through another serving process."""
    other = copy.copy(pipeline)
    other.folder, other.running, other.port = folder, {}, free_ports(["serving"])["serving"]
    folder.mkdir()
    other.url = f"http://127.0.0.1:{other.port}"
    other.env = {**pipeline.env, **env, "SERVING_PORT": str(other.port)}
    return other


def ready(replica: Pipeline) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(replica.url + "/health/ready", timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def drilled(
    pipeline: Pipeline, cassandra: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pipeline, Pipeline, Pipeline, list[Recorder]]]:
    """The drill; yields materialiser, two replicas and what was recorded of them."""
    folder = tmp_path_factory.mktemp("cassandra")
    env = {"CASSANDRA_CONTACT_POINTS": cassandra.env["CASSANDRA_CONTACT_POINTS"], "CASSANDRA_KEYSPACE": "drill"}
    writer = beside(pipeline, folder / "writer", env)
    one, two = (beside(pipeline, folder / name, {**env, "SERVING_STORE": "cassandra"}) for name in ("one", "two"))
    recorders = [Recorder(replica, replica.folder / "answers.jsonl", 1.0) for replica in (one, two)]
    try:
        for replica in (one, two):
            replica.spawn("serving", "serving_layer.py")
        with recorders[0], recorders[1]:
            drill(pipeline, cassandra, writer, one, two)
            time.sleep(6)
        yield writer, one, two, recorders
    finally:
        for each in (writer, one, two):
            each.finish()


def drill(pipeline: Pipeline, cassandra: Stack, writer: Pipeline, one: Pipeline, two: Pipeline) -> None:
    pipeline.spawn("producer-drill", "producer.py", "--rate", "50", "--seed", "5", *SHARES)
    writer.spawn("materialise", *MATERIALISE)
    for replica in (one, two):
        replica.wait(
            "what the materialiser wrote", lambda replica=replica: replica.ledger().get("as_of", {}).get("coverage")
        )
    before = pipeline.ledger().get("version") or 0
    batch = pipeline.spawn("batch", "batch_layer.py")
    del pipeline.running["batch"]  # it may end while others are waited for
    for pause in (0.3, 1.1):  # killed in whatever it is doing, and another one at work before the first is gone
        writer.spawn("materialise-second", *MATERIALISE)
        time.sleep(4 + pause)
        writer.kill("materialise")
        writer.spawn("materialise", *MATERIALISE)
        time.sleep(4)
        writer.kill("materialise-second")
    assert batch.wait(PATIENCE) == 0, pipeline.log("batch")
    for replica in (one, two):
        replica.wait(
            "the version at a replica", lambda replica=replica: (replica.ledger().get("version") or 0) > before
        )

    settings = stack_settings.load({**os.environ, **cassandra.env})
    pid = process.running_pid(CASSANDRA.pid_file(settings))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    child = writer.running.pop("materialise")
    assert child.wait(PATIENCE) == 75, writer.log("materialise")
    _, said = one.wait("a replica that says why", lambda: (found := ready(one))[0] == 503 and found)
    assert any(reason.startswith("Cassandra has not answered") for reason in said["reasons"]), said
    assert one.get("/v1/views/daily_logins?every=all") is not None, "the last snapshot is served on"
    lifecycle.up(settings)
    writer.spawn("materialise", *MATERIALISE)
    assert pipeline.stop("producer-drill") == 0
    for each in (pipeline, one, two):
        each.wait("all is covered", lambda each=each: each.lag("stream") == 0)


Drilled = tuple[Pipeline, Pipeline, Pipeline, list[Recorder]]


def test_each_replica_answers_what_the_recount_of_the_raw_log_says(drilled: Drilled, pipeline: Pipeline) -> None:
    pipeline.wait("ingest has all", lambda: pipeline.lag("ingest") == 0)
    for replica in drilled[1:3]:
        assert "exact: merged answer = recount of the raw log" in replica.verify()
        assert ready(replica)[0] == 200


def test_every_recorded_answer_of_a_replica_is_right_at_its_own_as_of(drilled: Drilled) -> None:
    for recorder in drilled[3]:
        assert len(recorder.answers) > 20
        assert len({json.dumps(answer["answer"]["as_of"]) for answer in recorder.answers}) > 5
        recorder.pipeline.verify("--answers", str(recorder.file))


def test_coverage_never_goes_back_in_one_replica(drilled: Drilled) -> None:
    for recorder in drilled[3]:
        coverages = [answer["answer"]["as_of"]["coverage"] for answer in recorder.answers]
        assert all(covers(after, before) for before, after in itertools.pairwise(coverages))


def test_a_cursor_of_one_replica_goes_on_at_the_other(drilled: Drilled, pipeline: Pipeline) -> None:
    _, one, two, _ = drilled
    path = "/v1/views/student_submissions?every=all&course_id=C001&course_id=C002&order=user_id,course_id&limit=20"
    whole = one.get(path.replace("limit=20", "limit=10000"))
    first = one.get(path)
    assert whole["next_cursor"] is None and first["next_cursor"]
    pipeline.run("producer.py", "--rate", "0", "--count", "200", "--seed", "6")  # the snapshot is left behind
    wanted = whole["as_of"]["coverage"]
    two.wait("a later snapshot", lambda: two.get(path)["as_of"]["coverage"] != wanted)
    rows, cursor, replicas = first["rows"], first["next_cursor"], itertools.cycle((two, one))
    while cursor:
        page = next(replicas).get(f"{path}&cursor={cursor}")
        assert page["as_of"] == first["as_of"]
        rows, cursor = rows + page["rows"], page["next_cursor"]
    assert rows == whole["rows"] and len(rows) > 40
