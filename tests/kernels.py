"""Executes notebooks in a real kernel through nbclient, as `jupyter execute` does."""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
from bounds import HANG_BOUND_S
from command_line import ENVIRONMENT
from nbclient import NotebookClient
from nbformat import NotebookNode

_nbformat: Any = nbformat  # half of its functions have no types

EXAMPLE = Path(__file__).parents[1] / "examples" / "notebooks" / "rate_reviews.ipynb"

INTERRUPT_NOW = "interrupt the kernel now"
"""When a cell prints this, the kernel is interrupted, as by the button of Jupyter."""

WIDGET = "application/vnd.jupyter.widget-view+json"
"""The media type of an output that is a widget."""

WIDGETS = "application/vnd.jupyter.widget-state+json"
"""Under this name the metadata of a notebook have the state of its widgets."""


def notebook_of(cells: Mapping[str, str]) -> NotebookNode:
    """Return a notebook of cells with code, each of which has its name as its id."""
    make_cell = _nbformat.v4.new_code_cell
    made = [make_cell(textwrap.dedent(source).strip(), id=name) for name, source in cells.items()]
    notebook: NotebookNode = _nbformat.v4.new_notebook(cells=made)
    return notebook


def read_notebook(path: Path) -> NotebookNode:
    notebook: NotebookNode = _nbformat.read(path, as_version=4)
    return notebook


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    _nbformat.write(notebook, path)


def execute(notebook: NotebookNode, folder: Path, *, with_widgets: bool) -> Callable[[str], list[dict[str, Any]]]:
    """Execute a notebook, which has its outputs afterwards; a cell that raises is an error unless it is tagged.

    Args:
        notebook: The notebook.
        folder: Where its cells run.
        with_widgets: Whether the kernel finds ipywidgets.

    Returns:
        A function that returns what an output of a handle, or of anything else that is updated, has shown one after
        the other, given the id of the first cell that has shown it.
    """
    client = _Client(
        notebook,
        timeout=HANG_BOUND_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=ENVIRONMENT if with_widgets else _without_widgets(folder))
    _nbformat.validate(notebook)
    return client.updates_of


def _without_widgets(folder: Path) -> dict[str, str]:
    """Return an environment in which ipywidgets cannot be imported."""
    blocked = folder / "blocked"
    blocked.mkdir()
    (blocked / "ipywidgets.py").write_text('raise ImportError("blocked by the test")', encoding="utf-8")
    searched = [str(blocked), ENVIRONMENT["PYTHONPATH"]]
    return {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, searched))}


class _Client(NotebookClient):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._displayed: dict[str, list[dict[str, Any]]] = {}
        self._owners: dict[str, str] = {}
        self._interrupts: list[asyncio.Future[Any]] = []

    def updates_of(self, cell_id: str) -> list[dict[str, Any]]:
        return self._displayed[self._owners[cell_id]]

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        content = msg["content"]
        display = (content.get("transient") or {}).get("display_id")
        if display is not None:
            self._owners.setdefault(cell["id"], display)
            self._displayed.setdefault(display, []).append(content["data"])
        if msg["msg_type"] == "stream" and INTERRUPT_NOW in content["text"]:
            manager: Any = self.km  # one whose methods are coroutines
            self._interrupts.append(asyncio.ensure_future(manager.interrupt_kernel()))
        return super().process_message(msg, cell, cell_index)
