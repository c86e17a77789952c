"""Are the notebooks clean as files, and does the one that needs no service run?"""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from domains import DOMAINS
from tests.notebook import NOTEBOOKS, execute, read

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
EACH = pytest.mark.parametrize("name", NAMES)


def test_there_are_the_two_notebooks() -> None:
    assert NAMES == ["explore", "generate_fake_data"]


@EACH
def test_a_notebook_holds_its_source_and_nothing_of_a_run(name: str) -> None:
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, f"{name} cell '{cell.id}' has outputs; clear them before saving"
            assert cell.execution_count is None, f"{name} cell '{cell.id}' has an execution count; clear it"
        assert not cell.metadata, f"{name} cell '{cell.id}' has metadata: {cell.metadata}"
        assert not cell.get("attachments"), f"{name} cell '{cell.id}' has attachments"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}


@EACH
def test_a_notebook_is_valid_and_written_one_way(name: str) -> None:
    """What `nbformat.write` gives, so that a saved change shows in a diff and nothing else does."""
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = read(name)
    nbformat.validate(notebook)
    assert text == nbformat.writes(notebook) + "\n"
    assert json.loads(text)["nbformat_minor"] >= 5  # from here on cells have ids


@EACH
def test_every_cell_has_a_name_of_its_own(name: str) -> None:
    ids = [cell.id for cell in read(name).cells]
    assert len(set(ids)) == len(ids)
    unnamed = [one for one in ids if not re.fullmatch(r"[a-z]+(-[a-z]+)*", one)]
    assert not unnamed, f"{name}: give cells a word as id instead of {unnamed}"


@EACH
def test_no_notebook_names_a_path_or_a_host_of_some_machine(name: str) -> None:
    source = "\n".join(cell.source for cell in read(name).cells)
    assert not re.findall(r"(?<![\w.$}])/(?:work|home|root|tmp|Users|opt|mnt|usr|var|etc|data)/\S*|[A-Z]:\\\S*", source)
    assert set(re.findall(r"\w+://([\w.]+)", source)) <= {"localhost"}


@EACH
def test_cells_are_small_and_come_after_a_heading(name: str) -> None:
    cells = read(name).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert [cell.id for cell in cells if len(cell.source.splitlines()) > 30] == []


@pytest.mark.parametrize(("domain", "root"), [("learning", False), ("movies", True)])
def test_fake_data_is_made_looked_at_and_exported(domain: str, root: bool, tmp_path: Path) -> None:
    """From either folder; learning has five topics and Vietnamese text, movies arrays and no event time."""
    folder = NOTEBOOKS.parent if root else NOTEBOOKS
    said = execute("generate_fake_data", folder, {"DOMAIN": domain, "HIGHWATER_VAR": str(tmp_path)})
    assert re.search(r"[1-9]\d* of 5000 events are broken, and all of them were found", said["broken"])
    assert "5000 events in both" in said["compare"]
    topics = next(one.topics for one in DOMAINS if one.name == domain)
    assert all(topic in said["typed"] for topic in topics)
    assert (tmp_path / "fake_data" / f"{domain}.csv").read_bytes().startswith(b"\xef\xbb\xbftopic,")
    events = json.loads((tmp_path / "fake_data" / f"{domain}.json").read_text(encoding="utf-8"))
    assert len(events) == 5000 and {event["topic"] for event in events} == set(topics)
    if domain == "learning":
        assert any("Trường" in str(event.get("school")) for event in events)
        assert "Trường" in (tmp_path / "fake_data" / "learning.csv").read_text(encoding="utf-8-sig")
