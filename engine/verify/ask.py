"""What does serving say? Whole answers over its REST API, or answers that were recorded."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from engine.verify.answers import BadQuestion, Row
from engine.verify.compare import Answer

# Rows of a page, and how often something is asked for that is not there yet, or not any more.
PAGE, ATTEMPTS = 10_000, 5


class Unanswered(RuntimeError):
    """Serving, Kafka or HDFS gives no usable answer; one line with the address."""


def get_json(url: str) -> dict[str, Any]:
    """Return the JSON of a URL, asking again while it says 503. Raises Unanswered, LookupError for 410."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for attempt in range(ATTEMPTS):
        try:
            with opener.open(url, timeout=60) as reply:
                answer: dict[str, Any] = json.loads(reply.read(), parse_float=Decimal)
                return answer
        except urllib.error.HTTPError as error:
            reason = error.read(2000).decode("utf-8", "replace")
            if error.code == 410:
                raise LookupError(reason) from None
            if error.code != 503 or attempt == ATTEMPTS - 1:
                raise Unanswered(f"{url}: HTTP {error.code}: {reason}") from None
            time.sleep(2)
        except (OSError, ValueError) as error:
            raise Unanswered(f"{url}: {error}; is serving_layer.py running?") from None
    raise AssertionError("unreachable")


def whole_answer(base: str, path: str, name: str) -> Answer:
    """Page through a whole list of one snapshot; begins again when the snapshot is gone. Raises Unanswered."""
    for _ in range(ATTEMPTS):
        rows: list[Row] = []
        at, cursor = time.time(), None
        try:
            while True:
                page = get_json(f"{base}{path}?" + urlencode({"limit": PAGE, **({"cursor": cursor} if cursor else {})}))
                rows += page["rows"]
                cursor = page.get("next_cursor")
                if not cursor:
                    return Answer(name, (), rows, page["as_of"], page["complete"], page["missing"], at=at)
        except LookupError:
            continue
    raise Unanswered(f"{base}{path}: its snapshot was gone before the last page, {ATTEMPTS} times")


def recorded(lines: Iterable[str]) -> list[Answer]:
    """Read recorded answers; "query" may be a mapping, pairs or a query string, else it is that of "url".

    Raises BadQuestion.
    """
    answers = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, parse_float=Decimal)
            query, body = entry.get("query"), entry["answer"]
            if query is None:
                query = urlsplit(entry.get("url", "")).query
            params = _pairs(query)
            name = entry.get("view") or entry.get("report") or urlsplit(entry["url"]).path.rsplit("/", 1)[-1]
            first = not any(name == "cursor" for name, _ in params)
            answers.append(
                Answer(
                    name,
                    params,
                    body["rows"],
                    body["as_of"],
                    body["complete"],
                    body["missing"],
                    first,
                    not body.get("next_cursor"),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadQuestion(f"line {number} is no recorded answer: {error!r}") from None
    return answers


def _pairs(query: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(query, str):
        return tuple(parse_qsl(query.lstrip("?"), keep_blank_values=True))
    items = query.items() if isinstance(query, dict) else query
    return tuple((name, str(text)) for name, given in items for text in (given if isinstance(given, list) else [given]))
