"""How does an answer look? JSON, CSV or Parquet bodies, problem documents (RFC 9457), signed cursors."""

from __future__ import annotations

import base64
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from starlette.datastructures import URL
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.runtime.notation import BYTE_ORDER_MARK, BadQuery, csv_lines, encode

MEDIA = {"json": "application/json", "csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
TITLES = {
    404: "Not found",
    405: "Method not allowed",
    410: "Gone",
    422: "Parameter not usable",
    429: "Too many requests",
    503: "Nothing right to say now",
}


class Problem(Exception):
    """An answer that is an error: status, a sentence for a person, the known names, seconds to wait."""

    def __init__(
        self, status: int, detail: str, *, known: Iterable[str] = (), retry_after: int = 0, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {
            "type": "about:blank",
            "title": TITLES.get(status, "Error"),
            "status": status,
            "detail": detail,
            **more,
        }
        if status == 404:
            self.body["known"] = sorted(known)
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}


class HeadAsGet:
    """HEAD is answered as GET is, on every path there is, and the body left out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_no_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, send_no_body)
        else:
            await self._app(scope, receive, send)


class Cursors:
    """Seals and opens what `next_cursor` carries, with a key that replicas share, or that lives with the process."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(32)

    def seal(self, value: Mapping[str, Any]) -> str:
        text = base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")
        return f"{text}.{self._sign(text)}"

    def open(self, token: str, wanted: str) -> dict[str, Any]:
        """Return the value of a token for the list `wanted`. Raises BadQuery if it is forged or for another list."""
        text, _, signature = token.partition(".")
        if len(token) > 16_384 or not hmac.compare_digest(
            signature.encode("utf-8", "replace"), self._sign(text).encode()
        ):
            raise BadQuery("cursor", "not a cursor of this server; begin again without it")
        value: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if value.get("list") != wanted:
            raise BadQuery("cursor", "belongs to a request with other parameters")
        return value

    def _sign(self, text: str) -> str:
        digest = hmac.digest(self._key, text.encode("utf-8", "replace"), "sha256")
        return base64.urlsafe_b64encode(digest[:18]).decode()


def body(form: str, columns: Sequence[str], rows: Any, facts: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """Return the bytes of an answer and its headers.

    Args:
        form: json, csv or parquet.
        rows: tuples in the order of `columns`, for parquet an Arrow table.
        facts: as_of, complete, missing, staleness_seconds, next_cursor and what else the answer says of itself; in
            the body of JSON, else in headers.
    """
    headers = {"Content-Type": MEDIA[form], "Cache-Control": "no-store"}
    if form == "json":
        return encode({"rows": [dict(zip(columns, row, strict=True)) for row in rows], **facts}), headers
    for name, value in facts.items():
        label = "-".join(part.capitalize() for part in name.split("_"))
        headers[f"X-Highwater-{label}"] = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return (_parquet(rows) if form == "parquet" else BYTE_ORDER_MARK + csv_lines([columns, *rows])), headers


def _parquet(rows: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(rows, out, compression="zstd")
    return bytes(out.getvalue())


def preferred(accept: str) -> str:
    """Return the format that an Accept header ranks first (RFC 9110, 12.5.1); JSON where none ranks higher.

    >>> preferred("text/csv, application/json;q=0.5"), preferred("text/html, */*;q=0.8")
    ('csv', 'json')
    """
    ranks: dict[str, float] = {}
    for part in accept.lower().split(","):
        media, *options = (text.strip() for text in part.split(";"))
        weight = next((text[2:] for text in options if text.startswith("q=")), "1")
        ranks[media] = float(weight) if re.fullmatch(r"[01](\.[0-9]{0,3})?", weight) else 0.0

    def rank(form: str) -> float:
        media = MEDIA[form].partition(";")[0]
        return next((ranks[name] for name in (media, f"{media.partition('/')[0]}/*", "*/*") if name in ranks), 0.0)

    return max(MEDIA, key=rank)


def rows_reply(content: bytes, headers: Mapping[str, str], form: str, url: URL, page: int) -> Response:
    """Return an answer of rows. What is saved as a file says in its name whether it is a part, and a link leads on."""
    more = {"Vary": "Accept"}
    if form != "json":
        cursor = headers["X-Highwater-Next-Cursor"]
        part = "" if page == 1 else f"-page-{page}-last"
        if cursor != "null":
            part = f"-page-{page}"
            following = url.include_query_params(cursor=cursor, format=form)
            more["Link"] = f'<{following.path}?{following.query}>; rel="next"'
        more["Content-Disposition"] = f'attachment; filename="{PurePath(url.path).name}{part}.{form}"'
    return Response(content, headers={**headers, **more})
