"""Is this value a good event of its stream, and what would a bad one look like? The producer's two questions.

`checker` looks at what an encoder wrote, by the same declaration as the layers: what it accepts, `docs/decode.md` calls
good. (Text that no encoder writes, such as a name twice, is not its business.) `BREAKAGES` spoil a good event.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from random import Random
from typing import Annotated, Any

import msgspec

from engine.domain import Stream, decimal_of

_YEAR_1_MS, _YEAR_9999_MS = -62_135_596_800_000, 253_402_300_799_999
# A time of day with a zone, as RFC 3339; msgspec itself checks the calendar. Years 1 and 9999 could leave it in UTC.
_TIME = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:?\d\d)?$")]
_decode_time = msgspec.json.Decoder(datetime).decode
_NULL = msgspec.Raw(b"null")
_JSON_NUMBER = re.compile(rb"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d{1,6})?")


class EventRefused(ValueError):
    """A generated value is not a good event; the message names the topic and the field."""


def checker(stream: Stream) -> Callable[[bytes], None]:
    """Return a function that raises EventRefused for a JSON value that is not a good event of `stream`."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    later: list[tuple[str, str, Callable[[Any], bool]]] = []
    for number, (name, sql_type) in enumerate(stream.columns.items()):
        attribute = f"c{number}"
        python_type, check = _python_type(sql_type)
        if check:
            later.append((attribute, f"{name} {sql_type}", check))
        needed = name in stream.needed
        if needed or python_type is msgspec.Raw:
            fields.append((attribute, python_type) if needed else (attribute, python_type, _NULL))
        else:
            fields.append((attribute, python_type | None, None))
    names = {f"c{number}": name for number, name in enumerate(stream.columns)}
    shape = msgspec.defstruct("Event", fields, rename=names, kw_only=True, gc=False)
    decode = msgspec.json.Decoder(shape).decode
    needed_attributes = {attribute for attribute, name in names.items() if name in stream.needed}

    def check_value(value: bytes) -> None:
        try:
            event = decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EventRefused(f"topic '{stream.topic}': {error}") from None
        for attribute, what, good in later:
            found = getattr(event, attribute)
            absent = found is None or (attribute not in needed_attributes and found == _NULL)
            if not absent and not good(found):
                raise EventRefused(
                    f"topic '{stream.topic}': {what} cannot hold {bytes(found) if isinstance(found, msgspec.Raw) else found!r}"
                )

    return check_value


def _cut(stream: Stream, event: dict[str, Any], value: bytes, rng: Random) -> bytes:
    return value[: rng.randrange(1, len(value) - 1)]


def _wrong_type(stream: Stream, event: dict[str, Any], value: bytes, rng: Random) -> bytes:
    name = rng.choice(stream.needed)
    return _text({**event, name: {"unexpected": "object"}})


def _missing_field(stream: Stream, event: dict[str, Any], value: bytes, rng: Random) -> bytes:
    absent = rng.choice(stream.needed)
    return _text({name: item for name, item in event.items() if name != absent})


def _text_after(stream: Stream, event: dict[str, Any], value: bytes, rng: Random) -> bytes:
    return value + rng.choice((b" x", b"{}", b",", b"\x00"))


def _name_twice(stream: Stream, event: dict[str, Any], value: bytes, rng: Random) -> bytes:
    name = rng.choice(tuple(event))
    return value[:-1] + b"," + _text({name: event[name]})[1:]


def _not_a_number(stream: Stream, event: dict[str, Any], value: bytes, rng: Random) -> bytes:
    return _text({**event, rng.choice(tuple(stream.columns)): float(rng.choice(("nan", "inf", "-inf")))})


def _not_utf8(stream: Stream, event: dict[str, Any], value: bytes, rng: Random) -> bytes:
    return b'{"\xff\xc3":0,' + value[1:]


def _empty(stream: Stream, event: dict[str, Any], value: bytes, rng: Random) -> bytes:
    return b""


def _text(event: dict[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


# Name → (stream, good event, its value, random source) → a malformed value.
BREAKAGES: dict[str, Callable[[Stream, dict[str, Any], bytes, Random], bytes]] = {
    "cut": _cut,
    "wrong_type": _wrong_type,
    "missing_field": _missing_field,
    "text_after": _text_after,
    "name_twice": _name_twice,
    "not_a_number": _not_a_number,
    "not_utf8": _not_utf8,
    "empty": _empty,
}


def _python_type(sql_type: str) -> tuple[Any, Callable[[Any], bool] | None]:
    dec = decimal_of(sql_type)
    if dec:
        return msgspec.Raw, _decimal_check(*dec)
    if sql_type == "TIMESTAMP":
        return Annotated[int, msgspec.Meta(ge=_YEAR_1_MS, le=_YEAR_9999_MS)] | _TIME, _is_time
    bits = {"INT": 31, "BIGINT": 63}.get(sql_type)
    if bits:
        return Annotated[int, msgspec.Meta(ge=-(2**bits), le=2**bits - 1)], None
    return {"STRING": str, "DOUBLE": float, "BOOLEAN": bool, "ARRAY<STRING>": list[str]}[sql_type], None


def _is_time(value: int | str) -> bool:
    if isinstance(value, int):
        return True
    try:
        _decode_time(f'"{value}"')
    except msgspec.DecodeError:
        return False
    return "0001" < value[:4] < "9999"


def _decimal_check(precision: int, scale: int) -> Callable[[msgspec.Raw], bool]:
    plain = re.compile(
        rb"-?(0|[1-9]\d{0,%d})" % max(0, precision - scale - 1) + (rb"(\.\d{1,%d})?" % scale if scale else b"")
    )
    bound = Decimal(10) ** (precision - scale)

    def fits(raw: msgspec.Raw) -> bool:
        text = bytes(raw)
        if precision > scale and plain.fullmatch(text):
            return True
        if len(text) > 1000 or not _JSON_NUMBER.fullmatch(text):
            return False
        value = Decimal(text.decode())
        exponent = value.normalize().as_tuple().exponent
        return abs(value) < bound and (not value or (isinstance(exponent, int) and -exponent <= scale))

    return fits
