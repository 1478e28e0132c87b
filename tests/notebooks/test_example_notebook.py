"""The notebook of examples/ does in a real kernel what it says, and its stored outputs are those of today."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernels import EXAMPLE, WIDGET, WIDGETS, execute, read_notebook
from nbformat import NotebookNode

from fanout_sync import SqliteJournal

pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning"),  # jupyter_client's own
    pytest.mark.xdist_group("notebooks"),  # so that a kernel serves all tests of a module
]

TIMES = re.compile(r"< 0\.001 s|[\d.]+ s\b|\d+:\d+<\S+ +[\d.?]+(?:step/s|s/step)")


def shown_by(notebook: NotebookNode) -> Iterator[str]:
    """Yield the text of each output, without times and layout."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            markup = output.get("data", {}).get("text/html", "")
            text = markup or output.get("text") or output["data"]["text/plain"]
            yield f"{cell['id']}: {TIMES.sub('(time)', readable(text, is_html=bool(markup)))}"


def readable(text: str, *, is_html: bool) -> str:
    if is_html:
        text = html.unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", text, flags=re.DOTALL))
    return " ".join(text.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reviews")


@pytest.fixture(scope="module")
def executed(folder: Path) -> NotebookNode:
    notebook = read_notebook(EXAMPLE)
    execute(notebook, folder, with_widgets=False)
    return notebook


def test_the_stored_outputs_are_what_the_notebook_shows(executed: NotebookNode) -> None:
    """But for times; `python tests/store_notebook.py` stores them anew."""
    assert list(shown_by(read_notebook(EXAMPLE))) == list(shown_by(executed))


def test_the_example_shows_what_it_says(executed: NotebookNode) -> None:
    """A bar to its end, failed reviews first, all of them rated in the end, and the journal read."""
    shown = list(shown_by(executed))
    bar, failed, retried, count, frame, reused, journal = shown
    assert bar.endswith("100%|██████████| 12/12 [(time), failed=3]")
    assert "12 steps in (time): 9 succeeded, 3 raised" in failed
    assert re.findall(r"✗ raised (\d+)", failed) == ["3", "7", "9"]
    assert failed.index("✗ raised 9") < failed.index("✓ succeeded 0")
    assert "ValueError: no word is known in 'Leider nach einem Monat kaputt.'" in failed
    assert "100%|██████████| 3/3 [" in retried
    assert count.endswith(": 0")
    assert frame.endswith("11 toaster We love the bagel setting. 4")
    assert "12/12 [(time), reused=12]" in reused
    assert journal.endswith(": 12")


def test_the_journal_has_every_rating(executed: NotebookNode, folder: Path) -> None:
    """It is the file that the notebook names."""
    journal = SqliteJournal(folder / "reviews.db")
    (workflow_id,) = journal.workflows()
    records = journal.records(workflow_id)
    ratings = {int(record.outcome.task_id): record.outcome.structured for record in records}
    assert [ratings[index] for index in range(12)] == [5, 1, 1, 3, 5, 1, 3, 1, 5, 4, 3, 4]
    assert {record.status for record in records} == {"succeeded"}


def test_the_example_can_be_run_again_with_widgets(executed: NotebookNode, folder: Path) -> None:
    """The journal answers all that it has; the bars are widgets."""
    notebook = read_notebook(EXAMPLE)
    execute(notebook, folder, with_widgets=True)
    *_, frame, bar, journal = shown_by(notebook)
    assert frame.endswith("11 toaster We love the bagel setting. 4")
    assert journal.endswith(": 12")
    bars = [output for cell in notebook.cells for output in cell.get("outputs", ()) if WIDGET in output.get("data", {})]
    assert len(bars) == 2
    assert "0/12" in bar
    assert WIDGETS in notebook.metadata.widgets
