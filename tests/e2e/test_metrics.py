"""Do the metrics of running layers say what the ledger says?"""

from __future__ import annotations

import re
import urllib.error
import urllib.request

from tests.e2e.conftest import SHARES, Pipeline
from tests.unit.test_monitoring import names_of, ours


def page(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return bytes(answer.read())


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError:  # nobody listens yet, or 503: starting, or silent
        return False


def by_topic(text: bytes, name: str, **labels: str) -> dict[str, float]:
    """Topic → value of one metric of the learning domain."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = re.findall(rf"^{name}\{{([^}}]*)\}} (\S+)$", text.decode(), re.M)
    found = [(held, number) for held, number in lines if all(one in held for one in wanted)]
    return {re.search(r'topic="([^"]+)"', held)[1]: float(number) for held, number in found}  # type: ignore[index]


def heads_of(pipeline: Pipeline) -> dict[str, float]:
    """Topic → offsets of its newest log that are in the master dataset."""
    heads: dict[str, float] = {}
    for row in pipeline.ledger().get("partitions", []):
        if row["kafka_end"] is not None:
            heads[row["topic"]] = heads.get(row["topic"], 0) + row["raw_head"]
    return heads


def test_the_metrics_of_the_layers_say_what_the_ledger_says(pipeline: Pipeline) -> None:
    for layer in ("ingest", "stream"):
        pipeline.wait(f"health of {layer}", lambda layer=layer: healthy(pipeline.ports[layer]))
    wanted = sum(heads_of(pipeline).values()) + 2000
    pipeline.run("producer.py", "--rate", "0", "--count", "2000", "--seed", "77", *SHARES)
    pipeline.wait("all mirrored", lambda: sum(heads_of(pipeline).values()) >= wanted and pipeline.lag("ingest") == 0)
    pipeline.wait("all counted", lambda: pipeline.lag("stream") == 0)
    heads = heads_of(pipeline)
    # A layer writes its numbers an instant after its commit.
    for layer in ("ingest", "stream"):
        name = f"highwater_{layer}_committed_offsets"
        pipeline.wait(name, lambda layer=layer, name=name: by_topic(page(pipeline.ports[layer]), name) == heads)
        told = page(pipeline.ports[layer])
        assert sum(by_topic(told, f"highwater_{layer}_rows_total").values()) >= 2000
        assert {name for name in names_of(told) if name.startswith("highwater_")} <= ours()
    serving = page(pipeline.port)
    for layer in ("ingest", "stream"):
        lags = by_topic(serving, "highwater_serving_lag_offsets", layer=layer)
        assert set(lags) == set(heads) and not any(lags.values())
    assert b'highwater_serving_balanced{domain="learning"} 1.0' in serving
    assert b'highwater_serving_complete{domain="learning"} 1.0' in serving
