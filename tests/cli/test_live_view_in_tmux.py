"""The live view in tmux, which keeps a history of what is cleared."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, NamedPipe, command
from scripts import await_condition

from fanout_sync import AgentStepSpec

AGENTS = """
def wait(spec):
    with open("gate") as gate:
        gate.readline()

agents = {"wait": wait}
"""


class Tmux:
    """A session of tmux, in which a command is the first thing on the screen."""

    def __init__(self, folder: Path, command: str) -> None:
        self._socket = str(folder / "socket")
        self.call("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "24", "-c", str(folder), command)

    def call(self, *arguments: str) -> str:
        return subprocess.run(
            ["tmux", "-S", self._socket, *arguments],
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=ENVIRONMENT,
            timeout=60,
            check=True,
        ).stdout

    def seen(self) -> str:
        """Return the screen, and all that has scrolled out of it."""
        return self.call("capture-pane", "-p", "-S", "-")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[NamedPipe]:
    gate = NamedPipe(tmp_path / "gate")
    yield gate
    gate.close()


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_no_view_is_left_in_the_history_of_tmux(tmp_path: Path, gate: NamedPipe) -> None:
    """Where the view begins in the first row of the window, too, each view replaces the one before."""
    (tmp_path / "agents.py").write_text(AGENTS)
    (tmp_path / "steps.jsonl").write_text(AgentStepSpec("t0", "wait", "a step", "p").to_json())
    run = shlex.join(command("run", "steps.jsonl", "--executor", "agents.py:agents", "-o", "out.jsonl"))
    tmux = Tmux(tmp_path, f"{run}; cat")
    try:
        await_condition(lambda: "2 s  t0 (wait)" in tmux.seen())
        assert tmux.seen().count("step (") == 1
        gate.open()
        await_condition(lambda: "outcomes: out.jsonl" in tmux.seen())
        assert tmux.seen().count("step (") == 1
    finally:
        tmux.call("kill-server")
