"""Several domains in one process of ingest or stream: one that has a fault is left out, and the others go on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.runtime import observe, queries
from engine.runtime.queries import LEFT_OUT_SECONDS, Queries
from engine.storage.commit import OffsetGap

FAULT = OffsetGap("OFFSET_GAP topic 'a'")
DOMAINS: Any = [SimpleNamespace(name=name) for name in "ab"]


class Layer:
    """What a layer and Spark do: domains in `failing` fail when they are opened, started, or in a micro-batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: str) -> None:
        self.fails_at, self.failing, self.now = fails_at, {"a"}, 0.0
        self.started: list[str] = []
        self.closed: list[str] = []
        monkeypatch.setattr(queries.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(observe, "await_queries", self.await_queries)
        self.queries = Queries(
            DOMAINS, self.make, lambda running: None, lambda: None, (OffsetGap,), (), anew=(InterruptedError,)
        )

    def make(self, domain: Any, ending: Any) -> Any:
        if self.fails_at == "open":
            self.fail(domain.name)
        return SimpleNamespace(
            domain=domain, start=lambda: self.start(domain.name), close=lambda: self.closed.append(domain.name)
        )

    def start(self, name: str) -> Any:
        if self.fails_at == "start":
            self.fail(name)
        self.started.append(name)
        return SimpleNamespace(exception=lambda: FAULT if name in self.failing else None)

    def fail(self, name: str) -> None:
        if name in self.failing:
            raise FAULT

    def await_queries(self, running: list[Any], ending: Any, beat: Any) -> None:
        if any(query.exception() for query in running):
            raise FAULT
        beat()
        self.failing.clear()
        self.now += LEFT_OUT_SECONDS
        beat()
        assert len(running) == 2, "one that joins later is waited for, too"

    def run_once(self) -> None:
        self.queries.run_once(observe.Ending(False))  # type: ignore[arg-type]


@pytest.mark.parametrize("fails_at", ["open", "start", "micro-batch"])
def test_a_domain_with_a_fault_is_left_out_and_tried_again_while_the_others_go_on(
    fails_at: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = Layer(monkeypatch, fails_at)
    layer.run_once()
    if fails_at == "micro-batch":
        assert layer.started == ["a", "b"] and layer.queries.left_out == {"a": LEFT_OUT_SECONDS}
        layer.started.clear()
        layer.run_once()
    assert layer.started == ["b", "a"] and layer.queries.left_out == {}
    assert capsys.readouterr().err == "fault: OFFSET_GAP topic 'a'\n"
    assert sorted(set(layer.closed)) == ["a", "b"]
    layer.failing |= {"a", "b"}
    if fails_at == "micro-batch":
        with pytest.raises(OffsetGap):
            layer.run_once()
    else:
        with pytest.raises(SystemExit) as left:
            layer.run_once()
        assert left.value.code == observe.EXIT_FAULT


def test_what_a_new_start_heals_starts_them_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(monkeypatch, "open")
    layer.failing.clear()

    def interrupted(*_: Any) -> None:
        raise InterruptedError("a new chain")

    monkeypatch.setattr(observe, "await_queries", interrupted)
    layer.run_once()
    layer.run_once()
    assert layer.started == ["a", "b", "a", "b"] == layer.closed
