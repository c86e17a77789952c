"""Runs a notebook as a reader would: top to bottom, in a kernel of its own; an error in a cell fails the test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def read(name: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def execute(name: str, folder: Path, environ: Mapping[str, str], seconds: int = 120) -> dict[str, str]:
    """Execute a notebook in a copy that nobody keeps.

    Args:
        folder: the kernel's current folder.
        environ: added to the environment of this process.
        seconds: that one cell may take.

    Returns:
        Cell id → what the cell said as text; a warning in it fails.
    """
    notebook = read(name)
    client = NotebookClient(notebook, timeout=seconds, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute(env={**os.environ, **environ})
    said = {cell.id: _text(cell) for cell in notebook.cells if cell.cell_type == "code"}
    warned = {cell: text for cell, text in said.items() if "Warning" in text}
    assert not warned, warned
    return said


def _text(cell: NotebookNode) -> str:
    parts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in cell.outputs]
    return "\n".join(parts)
