"""Does the interface answer only what /openapi.json says, and does that say all that is served?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from engine.serving import openapi, proof
from serving_layer import ROUTES
from tests.unit.serving_data import SHOP
from tests.unit.test_serving_api import Api

KNOWN = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
# What a recount of no rows says.
RECOUNT = {
    "rows": [],
    "offsets": {},
    "segments": ["a"],
    "from_kafka": {"t": {"0": [1, 2]}},
    "events": [{"offset": 1}],
    "differences": [],
}
SCHEMA = schemathesis.openapi.from_dict(openapi.document(ROUTES, [SHOP]))
SCHEMA.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    found = Api(tmp_path_factory.mktemp("openapi"))
    found.fill()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "COMMAND", ("sh", "-c", f"cat > /dev/null; echo '{json.dumps(RECOUNT)}'"))
        yield found


@SCHEMA.parametrize()
@settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_no_request_is_answered_otherwise_than_described(case: Any, filled: Api) -> None:
    sent = case.as_transport_kwargs(base_url="http://testserver")
    response = filled.client.request(**{name: sent[name] for name in ("method", "url", "params", "headers")})
    if case.method not in ("GET", "HEAD"):
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    else:
        case.validate_response(response, checks=KNOWN)


def described() -> set[tuple[str, str, str]]:
    """Path, status and content type of all that the interface says it may answer."""
    return {
        (path, status, media)
        for path, item in SCHEMA.raw_schema["paths"].items()
        for status, response in item["get"]["responses"].items()
        for media in response["content"]
    }


def test_all_that_is_described_is_answered(filled: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each answer that was brought about is of the body described."""
    seen: set[tuple[str, str, str]] = set()

    def ask(api: Api, path: str, query: str) -> Any:
        response = api.get(f"{path}?{query}" if query else path)
        SCHEMA[path]["GET"].Case().validate_response(response, checks=KNOWN)
        seen.add((path, str(response.status_code), response.headers["content-type"].partition(";")[0]))
        return response

    empty = Api(tmp_path)
    empty.now += 1000  # nobody has answered for so long
    for path in SCHEMA.raw_schema["paths"]:
        rows = path.startswith(("/v1/views/", "/v1/reports/", "/v1/events/", "/v1/quarantine"))
        for query in ("", "nope=1", *(("format=csv", "format=parquet", "limit=1") if rows else ())):
            ask(filled, path, query)
        ask(filled, path, "domain=nope" if path in ("/v1/quarantine", "/v1/ledger") else "")
        ask(empty, path, "")
        if path.endswith("/proof"):
            few = "by=tag&every=all" if "tag_days" in path else "every=all&by=" if "minutes" in path else "by="
            ask(filled, path, few)
            with monkeypatch.context() as patch:
                patch.setattr(proof, "_running", SimpleNamespace(locked=lambda: True))
                ask(filled, path, few)
        elif rows:
            cursor = filled.json(f"{path}?limit=1")["next_cursor"]
            filled.now += 1000
            ask(filled, path, f"limit=1&cursor={cursor}")
            filled.now -= 1000
    assert seen == described()


def test_every_route_is_described_and_answers_head_as_it_answers_get(filled: Api) -> None:
    assert [route.path for route in ROUTES if route.operations is None] == ["/static/{path:path}"]
    served = {route.path for route in filled.client.app.routes}  # type: ignore[attr-defined]
    assert served == {route.path for route in ROUTES}
    for path in (*SCHEMA.raw_schema["paths"], "/static/docs.js", "/static/nix", "/nix", "/v1/views/nix"):
        for headers in ({"Accept-Encoding": "identity"}, {"Accept-Encoding": "gzip", "Accept": "text/csv"}):
            get, head = (filled.client.request(method, path, headers=headers) for method in ("GET", "HEAD"))
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert list(get.headers) == list(head.headers), path
            if not path.endswith(("/proof", "/metrics")):
                assert get.headers == head.headers, path
    assert filled.client.head("/v1/views/shops?limit=0").status_code == 422


def test_a_path_that_is_none_is_answered_with_those_that_there_are(filled: Api) -> None:
    known = filled.json("/nix", 404)["known"]
    assert known == sorted(route.template for route in ROUTES) and "/health/ready" in known
