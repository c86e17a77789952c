"""Do alerts and dashboards ask for metrics that exist, do alerts fire when they should, do the layers count rightly?"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from pyspark.sql import SparkSession

from domains import DOMAINS
from engine.produce.sends import Tally
from engine.runtime import metrics
from engine.runtime.metrics import BatchMetrics, Life, QueryMetrics
from engine.runtime.progress import Progress, offsets_behind
from engine.runtime.settings import Settings
from engine.serving.answers import Measured
from engine.storage.versions import version_zero
from stack import monitoring
from stack import settings as stack_settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "monitoring"
BOARDS = sorted((FOLDER / "grafana" / "dashboards").glob("*.json"))
LEARNING = next(domain for domain in DOMAINS if domain.name == "learning")


def promtool(*arguments: str) -> str:
    """Run promtool; without one the test is skipped, but never where `.ci/run` says that all tools are there."""
    program = shutil.which("promtool")
    if program is None:
        assert "HIGHWATER_ALL_TOOLS" not in os.environ, "promtool is absent; .ci/run installs it (package `prometheus`)"
        pytest.skip("promtool is not installed (package `prometheus`): alerts and queries were NOT checked")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def panels() -> list[tuple[str, dict[str, Any]]]:
    return [(path.name, panel) for path in BOARDS for panel in json.loads(path.read_text())["panels"]]


def queries() -> dict[str, str]:
    """Where it stands → PromQL, of every alert and every panel."""
    found = {f"alert {name}": str(rule["expr"]) for name, rule in alerts().items()}
    for board, panel in panels():
        for target in panel["targets"]:
            found[f"{board} {panel['title']} {target['refId']}"] = target["expr"].replace("$domain", ".*")
    return found


def names_in(query: str) -> set[str]:
    """The metrics that a PromQL query names."""
    text = re.sub(r'"[^"]*"', "", query)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left)\s*\([^)]*\)", " ", text)
    words = set(re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*(?![\w:]*\s*\()", text))
    return words - {"and", "or", "unless", "offset"}


def names_of(page: bytes) -> set[str]:
    """The metrics that a page declares; a histogram by its three series, without the client's `_created`."""
    found = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page.decode(), re.M):
        found |= {f"{name}_{end}" for end in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return {name for name in found if not name.endswith("_created")}


def ours() -> set[str]:
    nothing: Any = SimpleNamespace(heard={}, loaders={}, clock=time.time)
    registries = [QueryMetrics(layer, [LEARNING], 1.0).registry for layer in ("ingest", "stream")]
    registries.append(BatchMetrics([LEARNING], 600).registry)
    producer = CollectorRegistry()
    producer.register(Tally(["a"]))
    pages = [generate_latest(registry) for registry in (*registries, producer)]
    return set().union(*map(names_of, (*pages, Measured(nothing).text())))


def theirs() -> set[str]:
    lines = (ROOT / "tests/unit/metric_names.txt").read_text().splitlines()
    return {line for line in lines if line and line[0] not in "#["} | {"up", "ALERTS"}


# Alerts and dashboards ------------------------------------------------------------------------------------------------


def test_a_query_is_taken_apart_into_its_metrics() -> None:
    query = (
        'time() - a_b{x=~"c|d"} > on (domain) 2 * max by (e) (max_over_time(f:g[1d] offset 5m)) and h / scalar(i) > 5e9'
    )
    assert names_in(query) == {"a_b", "f:g", "h", "i"}


@pytest.mark.parametrize("place", queries())
def test_every_metric_that_is_asked_for_exists(place: str) -> None:
    named = names_in(queries()[place])
    assert named, place
    assert named <= ours() | theirs(), f"{place}: nobody serves {named - ours() - theirs()}"


def test_the_configuration_and_the_rules_are_valid() -> None:
    promtool("check", "config", str(FOLDER / "prometheus.yml"))
    promtool("check", "rules", str(FOLDER / "alerts.yml"))


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", str(FOLDER / "alerts_test.yml"))


def test_every_alert_has_a_case_that_fires_one_that_is_silent_and_an_item_in_the_operations() -> None:
    cases: dict[str, set[bool]] = {name: set() for name in alerts()}
    for test in yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            cases[case["alertname"]].add(bool(case["exp_alerts"]))
    assert {name for name, found in cases.items() if found != {True, False}} == set()
    operations = (ROOT / "docs/operations.md").read_text()
    assert [name for name in cases if f"\n- `{name}`: " not in operations] == []


def test_every_query_parses(tmp_path: Path) -> None:
    rules = [{"record": f"q:{number}", "expr": query} for number, query in enumerate(queries().values())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", str(file))


def test_there_are_three_dashboards_of_the_provisioned_source_and_each_panel_says_what_it_shows() -> None:
    provisioning = FOLDER / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert yaml.safe_load((provisioning / "dashboards" / "highwater.yml").read_text())["providers"]
    boards = [json.loads(path.read_text()) for path in BOARDS]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == 3
    for board in boards:
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        titles = [panel["title"] for panel in board["panels"]]
        assert len(set(titles)) == len(titles)
        variables = {variable["name"] for variable in board["templating"]["list"]}
        cells: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"] and panel["targets"], panel["title"]
            for one in (panel, *panel["targets"]):
                assert one["datasource"]["uid"] in {source["uid"] for source in sources}, panel["title"]
            used = {name for target in panel["targets"] for name in re.findall(r"\$(\w+)", target["expr"])}
            assert used <= variables, panel["title"]
            at = panel["gridPos"]
            mine = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
            assert not mine & cells and at["x"] + at["w"] <= 24, f"{panel['title']} lies over another panel"
            cells |= mine


# The native stack -----------------------------------------------------------------------------------------------------


def test_the_ports_that_prometheus_asks_are_those_of_the_scripts() -> None:
    scripts = {name: getattr(Settings(), name.lower()) for name in stack_settings.LAYER_PORTS}
    assert scripts == dict(stack_settings.LAYER_PORTS)


def test_natively_prometheus_asks_this_stack_and_leaves_out_what_is_off(tmp_path: Path) -> None:
    environ = {"HIGHWATER_VAR": str(tmp_path), "KAFKA_METRICS_PORT": "15556", "BATCH_METRICS_PORT": "0"}
    settings = stack_settings.load(environ, env_file=tmp_path / "none")
    file = monitoring.write_scrape_config(settings)
    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"]
        for job in yaml.safe_load(file.read_text())["scrape_configs"]
    }
    assert jobs["kafka"] == ["localhost:15556"]
    assert jobs["ingest"] == ["localhost:8083"]
    assert jobs["batch"] == []
    assert all(target.startswith("localhost:") for targets in jobs.values() for target in targets)
    promtool("check", "config", str(file))


# What the layers count ------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_a_commit_is_counted_by_domain_and_topic_from_zero() -> None:
    shown = QueryMetrics("ingest", [LEARNING], 30.0)
    rows = {"domain": "learning", "topic": "auth_topic"}
    assert value(shown.registry, "highwater_ingest_rows_total", **rows) == 0
    started = value(shown.registry, "highwater_ingest_last_commit_timestamp_seconds", domain="learning")
    assert started and abs(started - time.time()) < 5
    shown.committed("learning", {"auth_topic": 5}, 2, {"auth_topic": {0: 10, 1: 7}}, 1, 0.7)
    shown.committed("learning", {"auth_topic": 3}, 1, {"auth_topic": {0: 12, 1: 8}}, 0, 0.2)
    told = {
        "highwater_ingest_rows_total": (8, rows),
        "highwater_ingest_committed_offsets": (20, rows),
        "highwater_ingest_segments_total": (3, {"domain": "learning"}),
        "highwater_ingest_lost_races_total": (1, {"domain": "learning"}),
        "highwater_ingest_micro_batch_seconds_count": (2, {"domain": "learning"}),
        "highwater_ingest_trigger_interval_seconds": (30, {"domain": "learning"}),
    }
    assert {name: value(shown.registry, name, **labels) for name, (_, labels) in told.items()} == {
        name: number for name, (number, _) in told.items()
    }


def test_a_micro_batch_that_committed_nothing_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = QueryMetrics("ingest", [LEARNING], 30.0)
    before = value(shown.registry, "highwater_ingest_last_commit_timestamp_seconds", domain="learning")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    shown.committed("learning", {"auth_topic": 0}, 0, {}, 0, 0.1)
    assert value(shown.registry, "highwater_ingest_last_commit_timestamp_seconds", domain="learning") == before
    shown.committed("learning", {"auth_topic": 1}, 1, {}, 0, 0.1)
    assert value(shown.registry, "highwater_ingest_last_commit_timestamp_seconds", domain="learning") == 4e9


def test_an_epoch_tells_its_number_and_its_problems() -> None:
    shown = QueryMetrics("stream", [LEARNING], 1.0)
    counts = {"auth_topic": {"log": {"0": {"good": 5, "malformed": 2}, "1": {"good": 1, "malformed": 1}}}}
    shown.epoch("learning", 3, 17, counts)
    problem = {"domain": "learning", "topic": "auth_topic", "problem": "malformed"}
    assert value(shown.registry, "highwater_stream_problems_total", **problem) == 3
    assert value(shown.registry, "highwater_stream_problems_total", **problem | {"problem": "good"}) is None
    assert value(shown.registry, "highwater_stream_chain", domain="learning") == 3
    assert value(shown.registry, "highwater_stream_epoch", domain="learning") == 17


def test_a_batch_run_tells_how_it_ended_and_what_it_left() -> None:
    shown = BatchMetrics([LEARNING], 600.0)
    with shown.run("learning"):
        assert shown.health()[1]["running"] == "learning"
        shown.typed("learning", {"auth_topic": 9})
        shown.version("learning", version_zero("learning", "hash", {"auth_topic": {"log": {"0": 4, "1": 5}}}))
    with pytest.raises(ValueError), shown.run("learning"):
        raise ValueError
    assert shown.health()[1]["running"] is None
    runs = [value(shown.registry, "highwater_batch_runs_total", domain="learning", outcome=o) for o in ("ok", "failed")]
    assert runs == [1, 1]
    assert value(shown.registry, "highwater_batch_interval_seconds", domain="learning") == 600
    horizon = {"domain": "learning", "topic": "auth_topic"}
    assert value(shown.registry, "highwater_batch_horizon_offsets", **horizon) == 9
    assert value(shown.registry, "highwater_batch_typed_rows_total", **horizon) == 9
    end, good = (
        value(shown.registry, f"highwater_batch_{name}_timestamp_seconds", domain="learning")
        for name in ("run_end", "last_success")
    )
    assert end and good and end >= good
    once = BatchMetrics([LEARNING], None)
    assert value(once.registry, "highwater_batch_interval_seconds", domain="learning") is None, "0 would be an interval"


def test_health_is_503_before_the_queries_run_and_when_they_fall_silent(port: int) -> None:
    now = [100.0]
    life = Life(clock=lambda: now[0])
    metrics.serve("ingest", metrics.new_registry(), life.told, "127.0.0.1", port)

    def health() -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    assert health() == (503, {"status": "starting"})
    life.beat()
    now[0] += 10
    assert health() == (200, {"status": "ok"})
    now[0] += 10
    assert health() == (503, {"status": "silent", "seconds": 20})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"process_start_time_seconds" in answer.read()


def test_a_busy_port_names_the_setting_and_0_opens_none(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        taken = busy.getsockname()[1]
        metrics.serve("stream", metrics.new_registry(), Life().told, "127.0.0.1", taken)
    assert capsys.readouterr().err.endswith("; set STREAM_METRICS_PORT\n")
    metrics.serve("stream", metrics.new_registry(), Life().told, "no such host", 0)
    assert capsys.readouterr().err == ""


def test_what_a_micro_batch_left_behind_is_kafkas_end_less_its_own() -> None:
    behind = offsets_behind('{"a": {"0": 10, "1": 7}, "b": {"0": 3}}', '{"a": {"0": 4, "1": 7}}')
    assert behind == {"a": {"0": 6, "1": 0}, "b": {}}
    assert offsets_behind(None, None) == offsets_behind("7", "5") == {}


@pytest.fixture
def heard(spark: SparkSession) -> Iterator[QueryMetrics]:
    """The metrics of a query named stream-learning, filled by Spark's listener."""
    shown = QueryMetrics("stream", [LEARNING], 1.0)
    listener = Progress(shown)
    spark.streams.addListener(listener)
    yield shown
    spark.streams.removeListener(listener)


def test_spark_tells_of_each_micro_batch_and_of_the_end_of_a_query(spark: SparkSession, heard: QueryMetrics) -> None:
    source = spark.readStream.format("rate").option("rowsPerSecond", 50).load()
    query = source.writeStream.queryName("stream-learning").foreachBatch(lambda rows, _: rows.count()).start()  # type: ignore[arg-type,func-returns-value]
    labels = {"domain": "learning"}
    wait(lambda: value(heard.registry, "highwater_stream_input_rows_total", **labels))
    assert value(heard.registry, "highwater_stream_query_active", **labels) == 1
    assert value(heard.registry, "highwater_stream_phase_seconds_total", phase="addBatch", **labels)
    triggers = value(heard.registry, "highwater_stream_triggers_total", **labels)
    assert triggers and triggers >= 1
    query.stop()
    wait(lambda: value(heard.registry, "highwater_stream_query_active", **labels) == 0)


def wait(reached: Any) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)
