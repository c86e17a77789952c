"""Does a spreadsheet show what was written, and run none of it?"""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.runtime.notation import csv_lines

# What a spreadsheet may drop before it looks at a cell, a quote that it takes for its own among it.
DROPPED = '\0\x01 \u00a0\u200b\ufeff"'
FORMULA = re.compile(r"[=+\-@＝＋－＠]")
NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]+)?([eE][+-]?[0-9]+)?")


def cells(written: bytes, separator: str) -> list[str]:
    """What stands in the cells: as the standard reads them where it is the comma, else cut wherever a reader could."""
    text = written.decode()
    if separator == ",":
        return [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    return re.split(rf"[{separator}\r\n]", text)


def runs(cell: str) -> bool:
    bare = cell.lstrip(DROPPED)
    return bool(FORMULA.match(bare)) and not NUMBER.fullmatch(bare.rstrip(DROPPED + ",\r\n"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("Shop;=1+1", "Shop;'=1+1"),
        ("\0=1+1", "'\0=1+1"),
        ("a;\0 =1+1", "a;'\0 =1+1"),
        ("a\n@x", "a\n'@x"),
        ('a;"=1+1"', 'a;\'"=1+1"'),
        ("＝1+1", "'＝1+1"),
        ("-5+cmd", "'-5+cmd"),
        ("-5", "-5"),
        ("+49.5", "+49.5"),
        ("-5\t*x", "'-5\t*x"),
        ("Hà Nội - 5; ok", "Hà Nội - 5; ok"),
    ],
)
def test_what_would_be_a_formula_gets_a_quote_and_nothing_else_does(text: str, shown: str) -> None:
    assert cells(csv_lines([["left", text, -5]]), ",") == ["left", shown, "-5"]


@given(st.lists(st.text(alphabet="=+-@＝;,\t\r\n\0 \"'15a\u200b", max_size=12), min_size=1, max_size=3))
@example(["north", "Shop;=1+1"])
@example(["\0=1+1"])
def test_no_cell_is_a_formula_whatever_the_separator(row: list[str]) -> None:
    written = csv_lines([row])
    for separator in (",", ";", "\t"):
        assert not [cell for cell in cells(written, separator) if runs(cell)], (separator, written)


def test_a_list_and_a_text_that_is_not_unicode_are_written_too() -> None:
    assert cells(csv_lines([[["x;=1"], "\ud800", True, None]]), ",") == ['["x;\'=1"]', "?", "true", ""]
