"""What a real kernel sends for the last line of a cell: HTML of a run, an outcome, a record and a stream."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import frozen
from bounds import HANG_BOUND_S
from command_line import ENVIRONMENT

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # jupyter_client's own

FIRST_CELL = """
    from fanout_sync import FanoutInterrupted, FunctionExecutor, Runner
    from fanout_sync.testing import make_specs

    mended = False

    def work(spec):
        if spec.prompt == "1" and not mended:
            raise ValueError("<script>alert(1)</script>")
        return spec.prompt

    runner = Runner(FunctionExecutor({"tester": work}))
    run = runner.run(make_specs(3))
"""


@frozen
class Notebook:
    """A notebook that runs."""

    client: Any

    def run(self, cell: str) -> dict[str, str]:
        """Run a cell; return what is displayed of its last line, by media type."""
        shown: dict[str, str] = {}

        def note(message: dict[str, Any]) -> None:
            if message["msg_type"] == "execute_result":
                shown.update(message["content"]["data"])

        reply = self.client.execute_interactive(textwrap.dedent(cell), timeout=HANG_BOUND_S, output_hook=note)
        assert reply["content"]["status"] == "ok", reply["content"]
        return shown


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", env=ENVIRONMENT)
    try:
        notebook = Notebook(client)
        notebook.run(FIRST_CELL)
        yield notebook
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("shown", ["run", "run[1]", "run.records[1]"])
def test_a_cell_displays_a_table(shown: str, notebook: Notebook) -> None:
    """Besides the text; what a step has answered is no markup."""
    data = notebook.run(shown)
    assert "</table>" in data["text/html"]
    assert "ValueError: &lt;script&gt;" in data["text/html"]
    assert "<script" not in data["text/html"]
    assert "<table" not in data["text/plain"]


def test_a_stream_is_displayed_while_it_is_read(notebook: Notebook) -> None:
    """With the steps so far; displaying it reads nothing."""
    notebook.run("stream = runner.stream(make_specs(3)); first = next(stream)")
    shown = notebook.run("stream")["text/html"]
    assert shown.count("✓ succeeded") == 1
    assert notebook.run("len(list(stream))")["text/plain"] == "2"


def test_failed_steps_are_retried_in_another_cell(notebook: Notebook) -> None:
    """Once the cell with the function was corrected: on threads the runner calls the function that it has."""
    notebook.run("mended = True")
    shown = notebook.run("again = run.retry_failed()\nagain")["text/html"]
    assert shown.count("✓ succeeded") == 3
    assert "✗" not in shown
