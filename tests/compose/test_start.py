"""What a user does first: docker compose up -d --wait; and what comes next: down, and up again."""

from __future__ import annotations

import json
import time

import pytest

from tests.compose.conftest import Compose

ONE_SHOT = {"create-topics", "hdfs-setup"}
PAGES = {  # port → a page and a word of it
    8000: ("/", "<title>"),
    8082: ("/metrics", "messages_sent_total"),
    8080: ("/json/", "ALIVE"),
    8081: ("/json/", "spark-master:7077"),
    9870: ("/dfshealth.html", "Namenode"),
    9864: ("/jmx", "DataNodeInfo"),
    4040: ("/api/v1/applications", "highwater-ingest"),
    4041: ("/api/v1/applications", "highwater-stream"),
}


def test_all_is_up_and_stays_up(compose: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    first = compose.states()
    time.sleep(10)  # some faults show only after a green --wait
    for name, state in compose.states().items():
        if name in ONE_SHOT:
            assert (state["State"], state["ExitCode"]) == ("exited", 0), name
        else:
            assert state["State"] == "running" and state["Health"] in ("healthy", ""), (name, state["Status"])
            assert state["ID"] == first[name]["ID"]
            assert compose.inspect(name)["RestartCount"] == 0, compose("logs", name)
    with capsys.disabled():
        print()
        for what, seconds in compose.seconds.items():
            print(f"{what}: {seconds:.0f} s")
        print(compose.docker("stats", "--no-stream", "--format", "table {{.Name}}\t{{.MemUsage}}"))
        print(compose.docker("images", "--format", "table {{.Repository}}:{{.Tag}}\t{{.Size}}"))


@pytest.mark.parametrize("port", PAGES)
def test_a_page_of_the_readme_answers_on_the_host(compose: Compose, port: int) -> None:
    path, word = PAGES[port]
    compose.wait(f"port {port}", lambda: compose.get(path, port)[0] == 200)
    assert word in compose.get(path, port)[1]


def test_nothing_listens_beyond_loopback(compose: Compose) -> None:
    bound = [
        (port, binding["HostIp"])
        for name in compose.states()
        for port, bindings in compose.inspect(name)["NetworkSettings"]["Ports"].items()
        for binding in bindings or []
    ]
    assert len(bound) > 8 and {address for _, address in bound} == {"127.0.0.1"}


def test_answers_are_exact(compose: Compose) -> None:
    assert "exact: merged answer = recount of the raw log" in compose.verify()


def test_down_and_up_keep_everything(compose: Compose) -> None:
    before = compose.ledger()
    compose("--profile", "*", "down")
    compose.up()
    compose.wait("the version of before", lambda: (compose.ledger().get("version") or 0) >= before["version"])
    after = compose.wait("all events of before", lambda: covers(compose.ledger(), before))
    assert after["balanced"] and after["complete"], json.dumps(after)[:2000]
    assert "exact" in compose.verify()


def covers(ledger: dict, before: dict) -> dict | None:
    return ledger if ledger.get("events", {}).get("merged", 0) >= before["events"]["merged"] else None
