"""How does an answer look? JSON, CSV or Parquet bodies, problem documents (RFC 9457), signed cursors."""

from __future__ import annotations

import base64
import csv
import hmac
import io
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.runtime.notation import BadQuery, cell, encode

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


class Cursors:
    """Seals and opens what `next_cursor` carries, with a key that replicas share, or that lives as long as the process."""

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
    return (_parquet(rows) if form == "parquet" else _csv(columns, rows)), headers


def _parquet(rows: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(rows, out, compression="zstd")
    return bytes(out.getvalue())


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """UTF-8 with a byte-order mark, so that spreadsheets read it; text that looks like a formula gets a quote."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([cell(value) for value in row] for row in rows)
    return out.getvalue().encode("utf-8-sig", "replace")
