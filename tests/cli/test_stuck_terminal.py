"""A terminal that takes no more text, such as one that Ctrl-S has stopped: the run goes on, and can be ended."""

from __future__ import annotations

import os
import re
import signal
import termios
import time
from pathlib import Path

import pytest
from bounds import HANG_BOUND_S
from command_line import NamedPipe
from scripts import EXIT_BOUND_S, Launcher, each_backend
from terminals import Window

from fanout_sync import AgentStepSpec

AGENTS = """
import time
from pathlib import Path
from fanout_sync import FunctionExecutor

def short(spec):
    time.sleep(0.01)
    return "done"

def bad(spec):
    time.sleep(0.01)
    raise ValueError("x" * 140 + "abcdef"[int(spec.task_id[1:])])

def chat(spec):
    with open("gate") as gate:
        gate.readline()
    for number in range(400):
        print(spec.task_id, "line", number)
    return "said"

def blocked(spec):
    Path("begun").touch()
    for number in range(100_000):
        print(spec.task_id, "line", number)

executor = FunctionExecutor({"short": short, "bad": bad, "chat": chat, "blocked": blocked}, concurrency=4)
"""

STOP, GO_ON = b"\x13", b"\x11"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENTS)
    return tmp_path


def start(folder: Path, launch: Launcher, agents: list[str], *options: str, term: str = "xterm-256color") -> Window:
    specs = [AgentStepSpec(f"t{n}", agent, "a step", "p") for n, agent in enumerate(agents)]
    (folder / "steps.jsonl").write_text("".join(f"{spec.to_json()}\n" for spec in specs))
    arguments = ["-m", "fanout_sync", "run", "steps.jsonl", "--executor", "agents.py:executor", *options]
    window = Window.of(launch.program(*arguments, TERM=term, NO_COLOR=""), 200, 30)
    settings = termios.tcgetattr(window.script.terminal)
    settings[1] |= termios.OPOST  # as any terminal has it: part of what is written fits in
    termios.tcsetattr(window.script.terminal, termios.TCSANOW, settings)
    return window


def await_lines(path: Path, count: int) -> None:
    """Wait until a file has so many lines."""
    deadline = time.monotonic() + HANG_BOUND_S
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.01)  # another process writes it


@each_backend
def test_a_run_goes_on_while_nobody_reads_its_terminal(backend: str, folder: Path, launch: Launcher) -> None:
    """As when the connection of a terminal is gone: all steps run, and the end is shown when somebody reads again."""
    window = start(
        folder, launch, [*["bad"] * 5, *["short"] * 1000], "-o", "out.jsonl", "--backend", backend, "-j", "2"
    )
    await_lines(folder / "out.jsonl", 1005)
    text = "\n".join(window.end())
    assert "1005/1005 steps (100 %)" in text
    assert "1005 steps in" in text


def test_a_stopped_terminal_holds_up_only_steps_that_print(folder: Path, launch: Launcher) -> None:
    """While it is stopped by Ctrl-S, other steps run; after Ctrl-Q each line is there, once, whole and in order."""
    gate = NamedPipe(folder / "gate")
    options = ["-o", "out.jsonl", "-j", "2", "--events", "events.jsonl"]
    window = start(folder, launch, ["chat", *["short"] * 300], *options)
    window.until_text("steps (")
    os.write(window.script.terminal, STOP)
    gate.open()
    await_lines(folder / "events.jsonl", 600)
    os.write(window.script.terminal, GO_ON)
    text = "\n".join(window.end())
    gate.close()
    assert re.findall(r"t0 line (\d+)", text) == [str(number) for number in range(400)]
    assert text.count("301/301 steps (100 %)") == 1
    assert window.script.process.returncode == 0


@pytest.mark.parametrize(
    ("agent", "options", "term", "backend"),
    [
        ("blocked", ["-o", "out.jsonl"], "xterm", "process"),
        ("short", ["-o", "out.jsonl"], "xterm", "thread"),
        ("short", [], "xterm", "process"),  # the outcomes go to the terminal
        ("short", ["-o", "out.jsonl"], "dumb", "thread"),
        ("short", ["-o", "out.jsonl", "--no-progress"], "xterm", "process"),
    ],
)
def test_an_interrupt_ends_a_run_whose_terminal_is_stuck(
    agent: str, options: list[str], term: str, backend: str, folder: Path, launch: Launcher
) -> None:
    """Whatever is to be written to the terminal, nobody waits for it for more than seconds."""
    window = start(
        folder, launch, [agent] * 5000, *options, "--backend", backend, "--events", "events.jsonl", term=term
    )
    window.fill()
    await_lines(folder / "events.jsonl", 3)
    window.script.process.send_signal(signal.SIGINT)
    assert window.script.process.wait(EXIT_BOUND_S) == 130
