"""In a Jupyter kernel: errors that nobody else sees appear in the output of the cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_jupyter import kernel

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # jupyter_client's own

LISTENER = """
from fanout_sync import EventChannel, TextDelta
channel = EventChannel()
channel.listen(lambda event: event.nonsense)
for number in range(20):
    channel.send(TextDelta("t", str(number)))
channel.close()
"""

TEARDOWN = """
class Torn(FunctionExecutor):
    def teardown(self):
        raise ValueError("torn")

specs = [AgentStepSpec(f"t{n}", "answer", "", "") for n in range(4)]
assert len(Runner(Torn({"answer": lambda spec: "done"}), backend="process").run(specs).succeeded) == 4
"""


def standard_error_of(client: Any, cell: str) -> str:
    """Run a cell; return what it shows on its standard error."""
    shown = []

    def note(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and message["content"]["name"] == "stderr":
            shown.append(message["content"]["text"])

    reply = client.execute_interactive(cell, timeout=60, output_hook=note)
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(shown)


def test_errors_in_listeners_and_teardown_are_shown(tmp_path: Path) -> None:
    """Each is shown once for each execution of its cell, with its traceback."""
    with kernel(tmp_path) as (_, client):
        for cell, error in [
            (LISTENER, "AttributeError: 'TextDelta' object has no attribute 'nonsense'"),
            (TEARDOWN, "ValueError: torn"),
            (LISTENER, "AttributeError: 'TextDelta' object has no attribute 'nonsense'"),
        ]:
            shown = standard_error_of(client, cell)
            assert shown.count("Traceback (most recent call last):") == 1, shown
            assert error in shown
        shown = standard_error_of(client, f"import logging\nlogging.basicConfig()\n{LISTENER}")
        assert shown.count(error) == 20
        assert "shown once" not in shown
