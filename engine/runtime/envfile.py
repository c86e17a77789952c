"""What does `.env` say? Its one reader, for the scripts and for the stack, by the rules of Docker Compose.

Compose gives the same file to the containers, so whatever is accepted here means there what it means here
(compose-spec/compose-go, dotenv/parser.go; tests/unit/test_envfile.py has its answers). What Compose would take for
something that nobody means, such as a comment as a part of a value, is refused. Needs the standard library alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

ENV_FILE = Path(os.environ.get("HIGHWATER_ENV_FILE") or Path(__file__).resolve().parents[2] / ".env")

_NOTHING = re.compile(r"\s*(?:#[^\n]*\n?\s*)*")
_STATEMENT = re.compile(
    r"""(?:export[^\S\n]+)? ([\w.\[\]-]+) [^\S\n]*
    (?: [=:] (?P<gap>[^\S\n]*) (?: "(?P<double>(?:[^"\\]|\\.)*)" | '(?P<single>(?:[^'\\]|\\.)*)' | (?P<bare>(?!["'])[^\n]*) ) )?
    [^\S\n]* (?:\#[^\n]*)? (?:\n|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_IN_A_VALUE = re.compile(r"\s#")
_ESCAPED = re.compile(r'\\([abfnrtv\\"$])')
_ESCAPES = dict(zip('abfnrtv\\"$', ["\a", "\b", "\f", "\n", "\r", "\t", "\v", "\\", '"', "$$"], strict=True))
_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?)-([^{}$]*))?\}|(?=(\{)))", re.ASCII)


class SettingsError(ValueError):
    """A setting has a wrong value; one line: the name, the value, what is allowed. Scripts print it and exit 2.

    Of a line of the file that cannot be read the number is named, not the text: it may hold a password.
    """


def read(path: Path | None = ENV_FILE, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    r"""Return name → value of every line; {} where there is no file.

    `export PORT = "80${NUMBER:-10}"  # api` is `{"PORT": "8010"}`. Quotes may hold ` #` and line ends, single ones also
    `$`.

    Args:
        environ: instead of the environment of this process; it wins over the file where a value names a variable.

    Raises:
        SettingsError: the file is not UTF-8, or has a line that is no KEY=VALUE.
    """
    known = os.environ if environ is None else environ
    text = _text(path)
    values: dict[str, str] = {}
    start = _end(_NOTHING.match(text))
    while start < len(text):
        where = f"{path} line {text.count(chr(10), 0, start) + 1}"
        statement = _STATEMENT.match(text, start)
        if statement is None:
            raise SettingsError(f"{where}: allowed is KEY=VALUE, KEY='VALUE' or a # comment")
        value = _value(statement, {**values, **known}, where)
        if value is not None:
            values[statement[1]] = value
        start = _end(_NOTHING.match(text, statement.end()))
    return values


def given(path: Path | None = ENV_FILE, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what the environment and the file give; the environment wins, and an empty text counts as not given."""
    known = os.environ if environ is None else environ
    both = (read(path, known), known)
    return {name: value for values in both for name, value in values.items() if value.strip()}


def _text(path: Path | None) -> str:
    try:
        data = path.read_bytes() if path is not None and path.is_file() else b""
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a byte order mark is UTF-8 with zeros in between
        raise SettingsError(
            f"{path}: is not UTF-8; save it again in that encoding (PowerShell writes UTF-16 by itself)"
        )
    return text


def _end(match: re.Match[str] | None) -> int:
    return match.end() if match else 0


def _value(statement: re.Match[str], known: Mapping[str, str], where: str) -> str | None:
    """Return the value of a line; None for a name alone, which Compose takes from the environment."""
    if statement["single"] is not None:
        return statement["single"].replace("\\'", "'")
    if statement["double"] is not None:
        text = _ESCAPED.sub(lambda escape: _ESCAPES[escape[1]], statement["double"])
    elif statement["bare"] is not None:
        text = statement["bare"].partition(" #")[0].rstrip()
        if _COMMENT_IN_A_VALUE.search(statement["gap"] + text):
            raise SettingsError(f"{where}: a # is a comment after a value and a space; else put the value in quotes")
    else:
        return None

    def variable(match: re.Match[str]) -> str:
        literal, plain, braced, or_empty, default, unknown = match.groups()
        if unknown:
            raise SettingsError(f"{where}: allowed are $NAME, ${{NAME}} and ${{NAME:-default}}, or $ in single quotes")
        value = known.get(plain or braced)
        return literal or (value if value is not None and (value or not or_empty) else default or "")

    return _VARIABLE.sub(variable, text)
