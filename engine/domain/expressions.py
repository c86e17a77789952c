"""What does an expression of a declaration say? Rules, `where` and `show`, read once, written for Spark and for DuckDB.

The language is the part of SQL that both engines have alike: comparisons, IN, BETWEEN, LIKE, CASE, arithmetic, casts
and a list of functions. `engine.domain.operators` knows what each of them says; anything else is refused by name, when
it is declared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from engine.domain.operators import (
    ARITHMETIC,
    MONTHS,
    MOST_DIGITS,
    UNITS,
    ExpressionError,
    Said,
    added,
    alike,
    called,
    cast,
    chosen,
    combined,
    compared,
    conditions,
    digits_of,
    interval_of,
    moment_of,
    negated,
    number_of,
    of_kind,
    places,
    text_of,
)

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<text>'(?:[^']|'')*')|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|<>|!=|\|\||::|[-+*/%=<>(),.]))",
    re.ASCII,
)
_SIGNS = {"=": "=", "<>": "<>", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
# Words of an expression that no field can be meant by.
_WORDS = frozenset("AND OR NOT IN BETWEEN LIKE IS NULL TRUE FALSE CASE WHEN THEN ELSE END AS FROM DISTINCT".split())
_TYPES = {"VARCHAR": "STRING", "INTEGER": "INT", "LONG": "BIGINT"}


@lru_cache(maxsize=4096)
def condition(expression: str, fields: tuple[tuple[str, str], ...]) -> Said:
    """Read a condition over fields of (name, SQL type). Raises ExpressionError."""
    said = value(expression, fields)
    if said.kind not in ("BOOLEAN", "NULL"):
        raise ExpressionError(f"{expression!r} is a {said.kind}; a condition is wanted, such as a comparison")
    return said


@lru_cache(maxsize=4096)
def value(expression: str, fields: tuple[tuple[str, str], ...]) -> Said:
    """Read an expression over fields of (name, SQL type). Raises ExpressionError."""
    return _Reader(expression, dict(fields)).read()


class _Reader:
    """Reads from left to right; each method takes one level of precedence, the loosest first."""

    def __init__(self, expression: str, fields: Mapping[str, str]) -> None:
        self._fields = {name.lower(): (name, sql_type) for name, sql_type in fields.items()}
        self._tokens = _tokens(expression)
        self._at = 0

    def read(self) -> Said:
        said = self._or()
        if self._at < len(self._tokens):
            raise ExpressionError(f"nothing may follow before {self._tokens[self._at][1]!r}")
        return said

    # Tokens

    def _next(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "its end")

    def _take(self, *wanted: str) -> str | None:
        """Step over the next token if it is one of these signs or words."""
        kind, text = self._next()
        if kind in ("sign", "name") and text.upper() in wanted:
            self._at += 1
            return text.upper()
        return None

    def _expect(self, *wanted: str) -> str:
        found = self._take(*wanted)
        if found is None:
            raise ExpressionError(f"{' or '.join(wanted)} is wanted before {self._next()[1]!r}")
        return found

    def _number(self) -> int:
        kind, text = self._next()
        text = text.strip("'") if kind in ("number", "text") else ""
        if not text.isdigit():
            raise ExpressionError(f"a whole number is wanted before {self._next()[1]!r}")
        self._at += 1
        return int(text)

    # Conditions

    def _or(self) -> Said:
        said = self._and()
        while self._take("OR"):
            said = combined("BOOLEAN", "({0} OR {1})", *conditions(said, self._and()))
        return said

    def _and(self) -> Said:
        said = self._not()
        while self._take("AND"):
            said = combined("BOOLEAN", "({0} AND {1})", *conditions(said, self._not()))
        return said

    def _not(self) -> Said:
        if self._take("NOT"):
            return combined("BOOLEAN", "(NOT {0})", *conditions(self._not()))
        return self._compared()

    def _compared(self) -> Said:
        said = self._sum()
        while True:
            if sign := self._take(*_SIGNS):
                said = compared(_SIGNS[sign], said, self._sum())
            elif self._take("IS"):
                said = self._is(said)
            elif self._next()[1].upper() in ("NOT", "IN", "BETWEEN", "LIKE"):
                negated = self._take("NOT")
                said = self._among(said, self._expect("IN", "BETWEEN", "LIKE"))
                said = combined("BOOLEAN", "(NOT {0})", said) if negated else said
            else:
                return said

    def _is(self, said: Said) -> Said:
        template = "({0} IS NOT NULL)" if self._take("NOT") else "({0} IS NULL)"
        negated = "NOT" in template
        word = self._expect("NULL", "TRUE", "FALSE", "DISTINCT")
        if word == "NULL":
            return combined("BOOLEAN", template, said)
        if word == "DISTINCT":
            self._expect("FROM")
            left, right = alike(said, self._sum())
            negated = not negated
        else:
            left, right = conditions(said)[0], Said("BOOLEAN", word, word)
        same = ("({0} <=> {1})", "({0} IS NOT DISTINCT FROM {1})")
        found = combined("BOOLEAN", same, left, right)
        return combined("BOOLEAN", "(NOT {0})", found) if negated else found

    def _among(self, said: Said, word: str) -> Said:
        if word == "BETWEEN":
            least = self._sum()
            self._expect("AND")
            return combined("BOOLEAN", "({0} AND {1})", compared(">=", said, least), compared("<=", said, self._sum()))
        if word == "LIKE":
            pattern = self._sum()
            if said.kind not in ("STRING", "NULL") or pattern.text is None or "\\" in pattern.text:
                raise ExpressionError("LIKE compares a text field with a text in single quotes that has no backslash")
            return combined("BOOLEAN", "({0} LIKE {1})", said, pattern)
        self._expect("(")
        left, *others = alike(said, *self._list())
        if not others:
            raise ExpressionError("IN wants at least one value")
        return combined("BOOLEAN", f"({{0}} IN ({places(len(others), 1)}))", left, *others)

    # Values

    def _sum(self) -> Said:
        said = self._product()
        while sign := self._take("+", "-", "||"):
            other = self._product()
            if sign == "||":
                said = combined("STRING", "({0} || {1})", *(of_kind("STRING", part, "||") for part in (said, other)))
            else:
                said = added(sign, said, other)
        return said

    def _product(self) -> Said:
        said = self._signed()
        while sign := self._take("*", "/", "%"):
            said = ARITHMETIC[sign](said, self._signed())
        return said

    def _signed(self) -> Said:
        if self._take("+"):
            return self._signed()
        if self._take("-"):
            return negated(self._signed())
        return self._cast_after()

    def _cast_after(self) -> Said:
        said = self._single()
        while self._take("::"):
            said = cast(said, self._type())
        return said

    def _single(self) -> Said:
        kind, text = self._next()
        self._at += 1
        if kind == "number":
            return number_of(text)
        if kind == "text":
            return text_of(text[1:-1].replace("''", "'"))
        if text == "(":
            said = self._or()
            self._expect(")")
            return said
        if kind != "name":
            raise ExpressionError(f"a value is wanted before {text!r}")
        word = text.upper()
        if word in ("TRUE", "FALSE"):
            return Said("BOOLEAN", word, word)
        if word == "NULL":
            return Said("NULL", "NULL", "NULL")
        if word == "CASE":
            return self._case()
        if word == "INTERVAL" and self._next()[0] in ("number", "text"):
            return interval_of(self._number(), self._unit())
        if word == "TIMESTAMP" and self._next()[0] == "text":
            return moment_of(self._single().text or "")
        if self._take("("):
            return self._cast(word) if word in ("CAST", "TRY_CAST") else called(text.lower(), self._list())
        if word in _WORDS:
            raise ExpressionError(f"a value is wanted before {text!r}")
        return self._field(text)

    def _field(self, name: str) -> Said:
        if name.lower() not in self._fields:
            raise ExpressionError(f"no field '{name}'; known are {', '.join(n for n, _ in self._fields.values())}")
        name, kind = self._fields[name.lower()]
        said = Said(kind, f"`{name}`", f'"{name}"', digits_of(kind))
        while self._take("."):
            inner = self._next()[1]
            self._at += 1
            types = {n.lower(): (n, t) for n, t in fields_of(said.kind).items()}
            if inner.lower() not in types:
                raise ExpressionError(f"'{name}' has no field '{inner}'; known are {', '.join(types) or 'none'}")
            inner, kind = types[inner.lower()]
            place = (f"{{0}}.`{inner}`", f"struct_extract({{0}}, '{inner}')")
            said = replace(combined(kind, place, said), digits=digits_of(kind))
        return said

    def _list(self) -> list[Said]:
        found: list[Said] = []
        while not self._take(")"):
            if found:
                self._expect(",")
            found.append(self._or())
        return found

    def _case(self) -> Said:
        subject = None if self._next()[1].upper() == "WHEN" else self._or()
        whens, values = [], []
        while self._take("WHEN"):
            test = self._or()
            whens.append(conditions(test)[0] if subject is None else compared("=", subject, test))
            self._expect("THEN")
            values.append(self._or())
        if not whens:
            self._expect("WHEN")
        values.append(self._or() if self._take("ELSE") else Said("NULL", "NULL", "NULL"))
        self._expect("END")
        return chosen(whens, values)

    def _cast(self, word: str) -> Said:
        said = self._or()
        self._expect("AS")
        found = cast(said, self._type())
        self._expect(")")
        return found

    def _type(self) -> str:
        text = self._next()[1]
        self._at += 1
        name = _TYPES.get(text.upper(), text.upper())
        if name == "DECIMAL" and self._take("("):
            precision = self._number()
            scale = self._number() if self._take(",") else 0
            self._expect(")")
            if not 0 <= scale <= precision <= MOST_DIGITS or not precision:
                raise ExpressionError(f"DECIMAL({precision},{scale}): 0 <= scale <= precision <= 38 is wanted")
            return f"DECIMAL({precision},{scale})"
        return name

    def _unit(self) -> str:
        unit = self._next()[1].upper()
        self._at += 1
        unit = unit if unit in UNITS or unit in MONTHS else unit.removesuffix("S")
        if unit not in UNITS and unit not in MONTHS:
            raise ExpressionError(f"INTERVAL in {unit}: known units are {', '.join([*UNITS, *MONTHS])}")
        return unit


def fields_of(sql_type: str) -> dict[str, str]:
    """Return name → SQL type of the fields of a STRUCT type, none of any other."""
    if not sql_type.startswith("STRUCT<"):
        return {}
    fields, depth, start = [], 0, 7
    for position, letter in enumerate(sql_type[:-1]):
        depth += (letter in "<(") - (letter in ">)")
        if letter == "," and depth == 1:
            fields.append(sql_type[start:position])
            start = position + 1
    pairs = (field.strip().split(": ", 1) for field in [*fields, sql_type[start:-1]])
    return dict(pairs)


def _tokens(expression: str) -> list[tuple[str, str]]:
    found, at, text = [], 0, expression.rstrip()
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            rest = text[at:].lstrip()
            why = (
                "texts stand in single quotes, fields without" if rest[:1] in ('"', "`") else "no sign of an expression"
            )
            raise ExpressionError(f"{rest[:20]!r}: {why}")
        assert token.lastgroup
        found.append((token.lastgroup, token[token.lastgroup]))
        at = token.end()
    return found
