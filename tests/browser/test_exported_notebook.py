"""The example notebook as a page: it makes no sound on the console and asks nothing of the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, browser
from exporting import exported
from kernels import EXAMPLE, execute, notebook_of, read_notebook
from nbformat import NotebookNode

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # jupyter_client's own

DISPLAY = ".jp-OutputArea-output .mathjax_ignore"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    notebook = read_notebook(EXAMPLE)
    execute(notebook, tmp_path_factory.mktemp("reviews"), with_widgets=False)
    return notebook


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_silent(theme: str, executed: NotebookNode, chromium: Browser, tmp_path: Path) -> None:
    """No message, no request; the table of the run is in it."""
    page = chromium.open(exported(executed, theme), tmp_path / "page.html", width=900)
    assert page.messages == []
    assert page.requests == []
    assert page.run("return document.querySelectorAll(arguments[0]).length", DISPLAY) == 1
    assert page.run("return document.querySelector(arguments[0]).innerText", DISPLAY).startswith("12 steps in ")
    page.run("document.querySelectorAll('[data-mime-type$=stderr]').forEach(bar => bar.remove())")  # red, as all errors
    page.store_picture(f"notebook-run-{theme}.png", f".jp-Cell:has({DISPLAY})", margin=0)


def test_displays_add_no_request_to_those_of_the_template(
    executed: NotebookNode, chromium: Browser, tmp_path: Path
) -> None:
    """With the template of nbconvert as it is, whose pages load libraries for formulas and scripts."""
    empty = chromium.open(exported(notebook_of({}), template=""), tmp_path / "empty.html")
    page = chromium.open(exported(executed, template=""), tmp_path / "page.html")
    assert sorted(page.requests) == sorted(empty.requests)
    assert sorted(page.messages) == sorted(empty.messages)
