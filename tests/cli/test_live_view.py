"""The live view of the command line: what a person sees on a terminal.

These tests show the third point of section 1 of "Progress": the view, its limits and its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import NamedPipe
from scripts import Launcher, each_backend
from terminals import Window

from fanout_sync import AgentStepSpec

AGENTS = """
import os, subprocess, sys, time
from fanout_sync import FunctionExecutor, current_step

def ok(spec):
    return spec.prompt

def bad(spec):
    raise ValueError(spec.prompt)

def wait(spec):
    gate = os.open(spec.prompt, os.O_RDONLY)
    os.read(gate, len("opened by the test\\n"))  # no more than was written for one step
    os.close(gate)
    return "waited"

def paid(spec):
    current_step().add_usage(prompt_tokens=12_345, completion_tokens=678, cost_usd=0.25)
    return "paid"

def chat(spec):
    # In one call, so that the lines of two steps are not mixed by the programs that write them.
    os.write(1, f"{spec.task_id} says one\\n{spec.task_id} says two\\n".encode())
    os.write(2, f"{spec.task_id} to the error\\n".encode())
    subprocess.run(["echo", spec.task_id + " has a program"])
    os.write(1, f"\\x1b[2J\\x1b[5;5H\\x1b[31m{spec.task_id} moves\\x1b[A\\x1b]0;title\\x07 the cursor\\r\\n".encode())
    os.write(1, f"0 %\\r50 %\\r{spec.task_id} 100 %\\n".encode())
    return wait(spec)

def ask(spec):
    print("what now? ", end="", flush=True)
    return wait(spec)

def flaky(spec):
    if current_step().attempt == 1:
        raise ValueError("not yet")
    return wait(spec)

agents = FunctionExecutor(
    {name: value for name, value in list(globals().items()) if callable(value) and value.__module__ == __name__},
    concurrency=4,
)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENTS)
    return tmp_path


@pytest.fixture
def gate(folder: Path) -> Iterator[NamedPipe]:
    gate = NamedPipe(folder / "gate")
    yield gate
    gate.close()


def write_steps(folder: Path, *steps: tuple[str, str]) -> None:
    """Write one step for each agent and prompt, with the task ids `"t0"`, `"t1"`, …."""
    specs = [AgentStepSpec(f"t{n}", agent, "a step", prompt) for n, (agent, prompt) in enumerate(steps)]
    (folder / "steps.jsonl").write_text("".join(f"{spec.to_json()}\n" for spec in specs))


def start(launch: Launcher, *options: str, columns: int = 100, rows: int = 30, **environment: str) -> Window:
    """Run the steps in a window."""
    arguments = ["-m", "fanout_sync", "run", "steps.jsonl", "--executor", "agents.py:agents", *options]
    variables = {"TERM": "xterm-256color", "NO_COLOR": "", **environment}
    return Window.of(launch.program(*arguments, **variables), columns, rows)


def only(rows: list[str], text: str) -> str:
    """Return the only row with this text."""
    (row,) = [row for row in rows if text in row]
    return row


# What is seen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 100, 200])
def test_a_run_is_seen_from_its_start_to_its_end(columns: int, folder: Path, launch: Launcher, gate: NamedPipe) -> None:
    """Counts, what runs longest and why steps failed, while the run goes on; in the end the bar and the summary."""
    write_steps(folder, ("ok", "a"), ("bad", "no number 7"), ("bad", "no number 8"), ("wait", "gate"))
    window = start(launch, "-o", "out.jsonl", columns=columns)
    rows = window.until_text("3/4 steps (75 %)", "t3 (wait)")
    assert len(rows[-1]) < columns
    text = "\n".join(rows)
    assert "1 ok · 2 failed · 0 retried · 0 reused" in text
    assert "1 running · 0 waiting" in text
    assert re.search(r"\d+/min", text)
    assert re.search(r"running longest\n +\d+ s  t3 \(wait\)", text)
    assert re.search(r"last failures\n +2 × ValueError: no number [78]", text)
    assert window.cursor_is_visible
    gate.open()
    ended = window.end()
    assert window.script.process.returncode == 1
    assert "running longest" not in "\n".join(ended)
    assert "4/4 steps (100 %)" in ended[0]
    assert re.fullmatch(r"4 steps in .* s: 2 succeeded, 2 fail(ed)?", only(ended, "4 steps in"))
    assert ended[-1] == "  outcomes: out.jsonl"
    assert window.cursor_is_visible


def test_a_run_is_seen_before_its_first_step_has_ended(folder: Path, launch: Launcher, gate: NamedPipe) -> None:
    """The view is there as soon as the run begins, and goes on while nothing happens."""
    write_steps(folder, ("wait", "gate"))
    window = start(launch, "-o", "out.jsonl")
    window.until_text("0/1 step (0 %)", "0 ok · 0 failed", "1 s  t0 (wait)")
    window.until_text("2 s  t0 (wait)")
    gate.open()
    assert "1/1 step (100 %)" in window.end()[0]


def test_tokens_and_cost_are_seen(folder: Path, launch: Launcher, gate: NamedPipe) -> None:
    """What was used so far, and what the whole will cost at that rate; what the journal has costs nothing."""
    write_steps(folder, ("paid", ""), ("paid", ""), ("wait", "gate"), ("ok", ""))
    window = start(launch, "-o", "out.jsonl", "-j", "1")
    window.until_text("24.7k tokens in, 1356 out · $0.50 so far · $1.00 projected")
    gate.open()
    assert "24.7k tokens in, 1356 out · $0.50 so far" in window.end()


def test_what_was_reused_and_retried_is_seen(folder: Path, launch: Launcher, gate: NamedPipe) -> None:
    """Steps from the journal count as reused, and attempts that were made again as retried."""
    write_steps(folder, ("ok", ""), ("ok", ""), ("flaky", "gate"))
    options = ("-o", "out.jsonl", "--journal", "run.db")
    assert "1 failed" in "\n".join(start(launch, *options, "--no-progress").end())
    window = start(launch, *options, "--retry", "2")
    window.until_text("2 ok · 0 failed · 1 retried · 2 reused · 1 running · 0 waiting")
    gate.open()
    window.end()
    assert window.script.process.returncode == 0


def test_the_limit_that_holds_steps_back_is_seen(folder: Path, launch: Launcher) -> None:
    """While steps wait for a rate limit, the view names it; Ctrl-C ends the wait."""
    write_steps(folder, *[("ok", "")] * 5)
    window = start(launch, "-o", "out.jsonl", "--rpm", "1")
    rows = window.until_text("held back by", "4 waiting")
    assert "1 requests per minute" in only(rows, "held back by")
    window.script.press_ctrl_c()
    window.end()
    assert window.script.process.returncode == 130


def test_texts_of_steps_are_only_text(folder: Path, launch: Launcher, gate: NamedPipe) -> None:
    """Neither rich's markup nor control characters in a task id, an agent or a reason do anything but appear."""
    nasty = "[bold]x[/bold][link=http://evil]\x1b[2J\x07\x9b31m\u202e:smile:"
    specs = [AgentStepSpec(nasty, "wait", "d", "gate"), AgentStepSpec("b", "bad", "d", f"{nasty}\nsecond line")]
    (folder / "steps.jsonl").write_text("".join(f"{spec.to_json()}\n" for spec in specs))
    window = start(launch, "-o", "out.jsonl", columns=150)
    escaped = r"[bold]x[/bold][link=http://evil]\x1b[2J\x07\x9b31m\u202e:smile:"
    window.until_text(f"  {escaped} (wait)"[:60], f"1 × ValueError: {escaped} …")
    gate.open()
    window.end()
    assert b"\x1b[2J" not in window.raw
    assert b"\x07" not in window.raw


# The window -----------------------------------------------------------------------------------------------------------


def test_a_window_that_is_resized(folder: Path, launch: Launcher, gate: NamedPipe) -> None:
    """After each resize there is one whole view, which fits into the window, and nothing is left of the one before."""
    write_steps(folder, ("bad", "x" * 300), ("wait", "gate"), *[("ok", "")] * 5)
    window = start(launch, "-o", "out.jsonl", columns=120, rows=30)
    window.until_text("6/7 steps (85 %)", "t1 (wait)")
    for columns, lines in ((40, 30), (200, 12), (60, 6), (120, 40)):
        window.resize(columns, lines)
        drawn_before = len(window.raw)
        window.until(lambda _, size=drawn_before: window.raw.count(b"\x1b[J", size) >= 2)  # type: ignore[misc]
        rows = window.until(lambda rows: "6/7 steps (85 %)" in "\n".join(rows))
        text = "\n".join(rows)
        assert [text.count(part) for part in ("6/7 steps", "5 ok · 1 failed")] == [1, 1]
        assert text.count("running longest") == (lines > 6)
        assert all(len(row) < columns for row in rows)
    gate.open()
    ended = window.end()
    assert "7/7 steps (100 %)" in ended[0]


def test_colours_only_where_they_are_wanted(folder: Path, launch: Launcher) -> None:
    """With NO_COLOR the view is drawn without colours."""
    write_steps(folder, ("ok", ""), ("bad", "no"))
    coloured, plain = start(launch, "-o", "out.jsonl"), start(launch, "-o", "out2.jsonl", NO_COLOR="1")
    for window in (coloured, plain):
        assert "2/2 steps (100 %)" in window.end()[0]
    colour = re.compile(rb"\x1b\[[0-9;]*(3[0-9]|38;5;[0-9]+)[0-9;]*m")
    assert colour.search(coloured.raw)
    assert not colour.search(plain.raw)


@pytest.mark.parametrize("term", ["dumb", "unknown", ""])
def test_a_terminal_that_cannot_draw_gets_plain_lines(term: str, folder: Path, launch: Launcher) -> None:
    """With `TERM=dumb`, there are no control sequences at all."""
    write_steps(folder, ("ok", ""), ("bad", "no"))
    window = start(launch, "-o", "out.jsonl", "--progress", TERM=term)
    rows = window.end()
    assert rows[0].startswith("2/2 steps (100 %): 1 ok, 1 failed, 0 retried")
    assert b"\x1b" not in window.raw


def test_no_progress_draws_nothing(folder: Path, launch: Launcher) -> None:
    """With --no-progress, a terminal gets the summary only."""
    write_steps(folder, ("ok", ""))
    window = start(launch, "-o", "out.jsonl", "--no-progress")
    assert re.fullmatch(r"1 step in .*\n  outcomes: out\.jsonl", "\n".join(window.end()))
    assert b"\x1b" not in window.raw


def test_many_short_steps_are_drawn_seldom(folder: Path, launch: Launcher, gate: NamedPipe) -> None:
    """However fast steps end and print, there are at most four draws in each second of the run."""
    write_steps(folder, *[("chat", "open")] * 200, ("wait", "gate"))
    (folder / "open").write_text("open\n")
    window = start(launch)
    window.until_text("200/201 steps", "3 s  t200 (wait)")
    gate.open()
    text = "\n".join(window.end())
    found = re.search(r"201 steps in ([0-9.]+) s", text)
    assert found is not None
    # The view and what is printed are drawn at their own times, and both have a first and a last draw.
    assert window.raw.count(b"\x1b[J") <= 2 * (4 * float(found[1]) + 2)


# What steps print -----------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("to", ["terminal", "file"])
def test_steps_that_print_do_not_tear_the_view(
    to: str, backend: str, folder: Path, launch: Launcher, gate: NamedPipe
) -> None:
    """Each line that is printed, and each outcome, stands above the view, once and whole; sequences do nothing."""
    write_steps(folder, *[("chat", "gate")] * 3)
    window = start(launch, "--backend", backend, *["-o", "out.jsonl"] * (to == "file"), columns=120, rows=40)
    rows = window.until_text("t0 100 %", "t1 100 %", "t2 100 %", "t0 (chat)", "t1 (chat)", "t2 (chat)")
    printed = rows[: rows.index(only(rows, "0/3 steps (0 %)"))]
    assert sorted(printed) == sorted(
        line
        for task_id in ("t0", "t1", "t2")
        for line in (
            f"{task_id} says one",
            f"{task_id} says two",
            f"{task_id} to the error",
            f"{task_id} has a program",
            f"{task_id} moves the cursor",
            f"{task_id} 100 %",
        )
    )
    for _ in range(3):
        gate.open()
    ended = window.end()
    assert window.script.process.returncode == 0
    assert ended[:18] == printed
    outcomes = [json.loads(row)["task_id"] for row in ended if row.startswith("{")]
    assert outcomes == (["t0", "t1", "t2"] if to == "terminal" else [])
    assert len([row for row in ended if "steps (" in row]) == 1


def test_a_line_without_its_end_is_seen(folder: Path, launch: Launcher, gate: NamedPipe) -> None:
    """A question that a step prints, and whose line does not end, is shown after a moment."""
    write_steps(folder, ("ask", "gate"))
    window = start(launch, "-o", "out.jsonl")
    assert window.until_text("what now?", "0/1 step (0 %)")[0] == "what now?"
    gate.open()
    window.end()


def test_much_that_is_printed_comes_through(folder: Path, launch: Launcher) -> None:
    """A program that prints more than a terminal holds has all of its lines shown, in order."""
    lines = 20_000
    (folder / "agents.py").write_text(
        f"agents = {{'print': lambda spec: [print('line', n) for n in range({lines})]}}\n"
    )
    write_steps(folder, ("print", ""))
    window = start(launch, "-o", "out.jsonl")
    window.end()
    assert re.findall(rb"line (\d+)\r\n", window.raw) == [b"%d" % number for number in range(lines)]


def test_an_error_that_ends_the_run_is_seen(folder: Path, launch: Launcher) -> None:
    """What is said after the view is gone goes to the terminal itself."""
    write_steps(folder, ("ok", ""))
    (folder / "agents.py").write_text("import threading\nagents = {'ok': threading.Lock().acquire}\n")
    window = start(launch, "--backend", "process")
    assert "cannot be sent to a worker process" in "".join(window.end())
    assert window.cursor_is_visible


# The end --------------------------------------------------------------------------------------------------------------


@each_backend
def test_ctrl_c_leaves_a_clean_screen(backend: str, folder: Path, launch: Launcher, gate: NamedPipe) -> None:
    """After Ctrl-C stand the bar and the summary, each once, and the cursor below them, where the shell goes on."""
    write_steps(folder, ("ok", ""), *[("wait", "gate")] * 3)
    window = start(launch, "--backend", backend, "-o", "out.jsonl", "--journal", "run.db")
    window.until_text("1/4 steps (25 %)", "t1 (wait)", "3 running")
    window.script.press_ctrl_c()
    ended = window.end()
    assert window.script.process.returncode == 130
    assert window.cursor_is_visible
    text = "\n".join(ended)
    assert text.count("1/4 steps (25 %)") == 1
    assert "running longest" not in text
    assert "1 ok · 0 failed · 0 retried · 0 reused · 0 running · 0 waiting · 3 cancelled" in ended
    assert "Interrupted: 1 of 4 outcomes were written; cancelled: t1, t2, t3" in ended
    assert "  outcomes: out.jsonl" in ended
    assert window.screen.cursor.x == 0
    assert not window.screen.display[window.screen.cursor.y].strip()
