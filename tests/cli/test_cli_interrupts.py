"""The command line, interrupted while it writes, writes whole lines, each step that was done, and a true summary.

These tests show item 1 of section 2 of issue 9, "One way to end", for the command line; the exit status is 130. Those
with a journal also show item 3 there, and the last one item 4.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import early_ends
import pytest
from attrs import define
from command_line import ENVIRONMENT, LIMIT_S, Folder, command, summary_in
from early_ends import CALM_LOOKS, Marks, in_order, scripted_specs
from processes import eventually

from fanout_sync import SqliteJournal, StepOutcome

TESTS = Path(early_ends.__file__).parent

PIPE_SIZE = 4096
"""Bytes in the smallest pipe that the system makes: less than one of most outcomes here."""

AGENTS = f"""
import signal, sys
sys.path.insert(0, {str(TESTS)!r})
from early_ends import ScriptedExecutor

executor = ScriptedExecutor(".")
slow_to_end = ScriptedExecutor(".", is_slow_to_end=True)

def note(number, frame):
    executor.marks.ledger.note("pressed:ctrl-c")
    raise KeyboardInterrupt

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, note)
"""
"""Its steps leave marks in the folder, and so does each Ctrl-C, which otherwise has its usual effect."""

INTERRUPTED = re.compile(
    r"Interrupted: (\d+) of (\d+) outcomes were written(; cancelled: [^\n]+)?\n"
    r"(  outcomes: [^\n]+\n)?(  resume: [^\n]+\n)?"
)

SIGNALS = {
    "SIGINT": [signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
    "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM],
    "SIGINT and SIGTERM": [signal.SIGINT, signal.SIGTERM],
    "SIGTERM and SIGINT": [signal.SIGTERM, signal.SIGINT],
}
PATIENCE_S = 1.5
"""Seconds after which another interrupt means that the user wants the command to end at once."""

LINES = {"long": (40, 100_000), "short": (300, 30)}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "agents.py").write_text(AGENTS)
    return Folder(tmp_path)


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path)


def write_steps(folder: Folder, agents: Sequence[str], size: int = 10) -> None:
    """Write a step for each agent; the outcomes of those that answer are a little longer than `size`."""
    prompts = [agent if " " in agent else f"{agent} {'x' * size}" for agent in agents]
    lines = [f"{spec.to_json()}\n" for spec in scripted_specs(*prompts)]
    (folder / "steps.jsonl").write_text("".join(lines))


# The reader and the command -------------------------------------------------------------------------------------------


@define
class Reader:
    """The reading end of a small pipe, from which nothing is read before the test reads it."""

    descriptor: int

    def waiting(self) -> int:
        """Return how many bytes wait to be read."""
        count = bytearray(4)
        fcntl.ioctl(self.descriptor, termios.FIONREAD, count)
        return int.from_bytes(count, "little")

    def read_all(self) -> str:
        os.set_blocking(self.descriptor, True)
        with os.fdopen(os.dup(self.descriptor), encoding="utf-8") as file:
            return file.read()


@define
class Command:
    """A command line that runs.

    Attributes:
        process: The process.
        reader: Where its outcomes go; `None` for a file.
        marks: Where its steps leave marks.
        opened: The descriptors that the test closes in the end.
    """

    process: subprocess.Popen[str]
    reader: Reader | None
    marks: Marks
    opened: list[int]

    def is_stuck(self) -> Callable[[], bool]:
        """Return a function: whether all steps that have begun are done, and the command waits for its reader."""
        is_at_rest, calm = self.marks.at_rest(), 0

        def is_stuck() -> bool:
            nonlocal calm
            assert self.reader is not None
            is_calm = is_at_rest() and self._sleeps() and self.reader.waiting() > 0
            calm = calm + 1 if is_calm else 0
            return calm >= CALM_LOOKS

        return is_stuck

    def _sleeps(self) -> bool:
        text = Path(f"/proc/{self.process.pid}/stat").read_text()
        return text[text.rindex(")") + 2] == "S"

    def send(self, signals: Sequence[signal.Signals]) -> None:
        """Send signals, each when the one before has arrived; it may end after the first."""
        for number in signals:
            pressed = len(self.marks.named("pressed"))
            self.process.send_signal(number)
            if number == signal.SIGINT:
                assert eventually(partial(self._was_pressed, pressed + 1))
            else:
                assert eventually(partial(self._has_taken, number))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; the command must not end before."""
        assert eventually(lambda: condition() or self.process.poll() is not None)
        assert condition() or self.process.poll() is None, self.end()

    def end(self) -> str:
        """Wait until the command ends; return what it wrote to the standard error."""
        assert self.process.wait(LIMIT_S) is not None
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def _was_pressed(self, times: int) -> bool:
        return self.process.poll() is not None or len(self.marks.named("pressed")) >= times

    def _has_taken(self, number: signal.Signals) -> bool:
        if self.process.poll() is not None:
            return True
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return not int(status.partition("ShdPnd:")[2].split()[0], 16) & 1 << (number - 1)


@contextmanager
def running(folder: Folder, *options: str, to: str = "pipe", target: str = "agents.py:executor") -> Iterator[Command]:
    """Run the steps, writing outcomes to a "pipe", a "fifo" that `-o` names, a "file" or where `-o` "option" says."""
    reader, stdout = None, subprocess.DEVNULL
    opened: list[int] = []
    if to == "pipe":
        source, stdout = os.pipe()
        opened, reader = [source, stdout], Reader(source)
    elif to == "fifo":
        os.mkfifo(folder / "fifo")
        source = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        opened, reader = [source], Reader(source)
        options = (*options, "-o", "fifo")
    elif to == "file":
        stdout = os.open(folder / "out.jsonl", os.O_WRONLY | os.O_CREAT)
        opened = [stdout]
    else:
        options = (*options, "-o", "out.jsonl")
    if reader is not None:
        fcntl.fcntl(reader.descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    process = subprocess.Popen(
        command("run", "steps.jsonl", "--executor", target, *options),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=folder.path,
        env=ENVIRONMENT,
        encoding="utf-8",
    )
    guard = threading.Timer(LIMIT_S, process.kill)
    guard.start()
    if stdout in opened:
        os.close(stdout)
        opened.remove(stdout)
    try:
        with process:
            try:
                yield Command(process, reader, Marks(folder.path), opened)
            finally:
                process.kill()
    finally:
        guard.cancel()
        for descriptor in opened:
            os.close(descriptor)


def task_ids_in(text: str) -> list[str]:
    """Return the task ids of the outcomes in the text, which must consist of whole lines."""
    assert text.endswith("\n") or not text
    return [StepOutcome.from_json(line).task_id for line in text.splitlines()]


def assert_told(process: subprocess.Popen[str], said: str, written: int, total: int) -> None:
    """The exit status and the summary say what happened."""
    numbers = INTERRUPTED.fullmatch(summary_in(said))
    assert numbers is not None, said
    assert (int(numbers[1]), int(numbers[2])) == (written, total)
    assert (numbers[3] is None) == (written == total)
    assert (numbers[4] is None) == (written == 0)
    assert process.returncode == 130


# While it waits for its reader ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pressed", "lines", "backend"),
    [
        ("SIGINT", "long", "thread"),
        ("SIGTERM", "short", "thread"),
        ("SIGINT twice", "short", "thread"),
        ("SIGTERM twice", "long", "thread"),
        ("SIGINT and SIGTERM", "long", "thread"),
        ("SIGINT", "short", "process"),
        ("SIGTERM", "long", "process"),
    ],
)
def test_an_interrupt_while_a_line_is_written(
    pressed: str, lines: str, backend: str, folder: Folder, marks: Marks
) -> None:
    """Every step that was done is written when the reader reads on: exactly once, in order, in whole lines."""
    count, size = LINES[lines]
    write_steps(folder, ["quick"] * count, size)
    with running(folder, "--backend", backend, "-j", "3") as run:
        run.wait_until(run.is_stuck())
        done = in_order(marks.named("done"))
        assert len(done) < count
        run.send(SIGNALS[pressed])
        assert run.reader is not None
        written = task_ids_in(run.reader.read_all())
        said = run.end()
    assert written == done
    assert in_order(marks.named("begun")) == done, "no step begins after an interrupt"
    assert_told(run.process, said, len(written), count)


@pytest.mark.parametrize(
    ("pressed", "to", "backend"),
    [("SIGINT", "pipe", "process"), ("SIGINT", "fifo", "thread"), ("SIGTERM and SIGINT", "pipe", "thread")],
)
def test_what_is_written_and_what_is_journalled_agree(
    pressed: str, to: str, backend: str, folder: Folder, marks: Marks
) -> None:
    """With a journal, each step that was done is written and journalled; the same command runs only the rest."""
    write_steps(folder, ["quick"] * 300, 3_000)
    with running(folder, "--backend", backend, "-j", "3", "--journal", "run.db", to=to) as run:
        run.wait_until(run.is_stuck())
        done = in_order(marks.named("done"))
        run.send(SIGNALS[pressed])
        assert run.reader is not None
        written = task_ids_in(run.reader.read_all())
        said = run.end()
    assert written == done
    assert_told(run.process, said, len(written), 300)
    assert re.search(r"\n  resume: .* -m fanout_sync run steps\.jsonl .*--journal run\.db", said)
    kept = [record.task_id for record in SqliteJournal(folder / "run.db").records("default")]
    assert kept == done
    again = folder.run("--journal", "run.db")
    assert again.returncode == 0
    assert task_ids_in(again.stdout) == [f"t{number}" for number in range(300)]
    assert sorted(marks.named("begun")) == sorted(f"t{number}" for number in range(300)), "each ran once"


@pytest.mark.parametrize(("number", "backend"), [(signal.SIGINT, "thread"), (signal.SIGTERM, "process")])
def test_another_interrupt_while_the_rest_is_written(
    number: signal.Signals, backend: str, folder: Folder, marks: Marks
) -> None:
    """Steps done after an unfinished one are written at the first interrupt; a second interrupt loses none of them."""
    write_steps(folder, ["quick", "held", *["quick"] * 6, "held", "held", "quick"], 100_000)
    with running(folder, "--backend", backend, "-j", "3") as run:
        assert run.reader is not None
        run.wait_until(marks.have_begun("t0", "t1"))
        first = os.read(run.reader.descriptor, 1)
        while (line := os.read(run.reader.descriptor, 65536)) and not line.endswith(b"\n"):
            first += line
        first += line
        run.wait_until(marks.have_begun("t8", "t9"))
        run.process.send_signal(number)
        run.wait_until(lambda: run.reader is not None and run.reader.waiting() >= PIPE_SIZE)
        run.process.send_signal(number)
        text = first.decode() + run.reader.read_all()
        said = run.end()
    written = task_ids_in(text)
    assert written == ["t0", "t2", "t3", "t4", "t5", "t6", "t7"]
    assert in_order(marks.named("begun")) == [f"t{n}" for n in range(10)]
    assert_told(run.process, said, len(written), 11)


def test_a_later_interrupt_ends_a_command_that_nobody_reads(folder: Folder, marks: Marks) -> None:
    """Ctrl-C again, after some time, ends the command though nobody reads; the summary counts what was written."""
    write_steps(folder, ["quick"] * 300, 30)
    with running(folder, "-j", "3") as run:
        run.wait_until(run.is_stuck())
        for _ in range(5):
            run.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                run.process.wait(PATIENCE_S)
                break
        said = run.end()
        assert run.reader is not None
        whole, _, _ = run.reader.read_all().rpartition("\n")
    written = task_ids_in(f"{whole}\n" if whole else "")
    assert written == [f"t{number}" for number in range(len(written))]
    assert run.process.returncode == 130
    assert f"Interrupted: {len(written)} of 300 outcomes were written" in said


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_an_interrupt_that_ends_the_reader_too(backend: str, folder: Folder, marks: Marks) -> None:
    """Ctrl-C in a pipeline ends the program that reads as well: status and summary are those of an interrupt."""
    write_steps(folder, ["quick"] * 300, 30)
    with running(folder, "--backend", backend, "-j", "3") as run:
        run.wait_until(run.is_stuck())
        run.send([signal.SIGINT])
        assert run.reader is not None
        os.close(run.reader.descriptor)
        run.opened.remove(run.reader.descriptor)
        said = run.end()
    numbers = re.fullmatch(
        r"Interrupted: (\d+) of 300 outcomes were written\n(  outcomes: standard output\n)?", summary_in(said)
    )
    assert numbers is not None, said
    assert int(numbers[1]) < len(marks.named("done"))
    assert run.process.returncode == 130


# At any moment --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "to", "number"),
    [
        (1, "file", signal.SIGTERM),
        (5, "option", signal.SIGINT),
        (8, "file", signal.SIGINT),
        (90, "option", signal.SIGTERM),
    ],
)
def test_an_interrupt_at_any_moment(after: int, to: str, number: signal.Signals, folder: Folder, marks: Marks) -> None:
    """On threads, the steps that are written are those that were done, whenever the interrupt comes."""
    write_steps(folder, ["quick"] * 400, 2000)
    with running(folder, "-j", "4", "--journal", "run.db", to=to) as run:
        run.wait_until(lambda: len(marks.named("done")) >= after)
        run.process.send_signal(number)
        said = run.end()
    written = task_ids_in((folder / "out.jsonl").read_text())
    assert written == in_order(marks.named("done"))
    assert written == [record.task_id for record in SqliteJournal(folder / "run.db").records("default")]
    if len(written) < 400:
        assert_told(run.process, said, len(written), 400)


@pytest.mark.parametrize("after", [1, 40])
def test_an_interrupt_at_any_moment_on_processes(after: int, folder: Folder, marks: Marks) -> None:
    """As on threads, but a worker that is killed may lose its last outcome; then that is not journalled either."""
    write_steps(folder, ["quick"] * 400, 2000)
    with running(folder, "--backend", "process", "-j", "2", "--journal", "run.db", to="file") as run:
        run.wait_until(lambda: len(marks.named("done")) >= after)
        run.process.send_signal(signal.SIGINT)
        said = run.end()
    written = task_ids_in((folder / "out.jsonl").read_text())
    assert written == in_order(set(written))
    assert set(written) <= set(marks.named("done"))
    assert len(set(marks.named("begun")) - set(written)) <= 2
    assert written == [record.task_id for record in SqliteJournal(folder / "run.db").records("default")]
    if len(written) < 400:
        assert_told(run.process, said, len(written), 400)


@pytest.mark.parametrize(
    ("number", "backend", "options"),
    [
        (signal.SIGINT, "thread", []),
        (signal.SIGTERM, "thread", ["--journal", "run.db"]),
        (signal.SIGINT, "process", ["--journal", "run.db"]),
    ],
)
def test_an_interrupt_while_workers_are_shut_down(
    options: list[str], number: signal.Signals, backend: str, folder: Folder, marks: Marks
) -> None:
    """All steps are done and written; the summary says so, and that the command was interrupted."""
    write_steps(folder, ["quick"] * 5)
    with running(folder, "--backend", backend, "-j", "1", *options, to="option", target="agents.py:slow_to_end") as run:
        run.wait_until(lambda: bool(marks.named("ending")))
        run.process.send_signal(number)
        said = run.end()
    marks.release()
    assert task_ids_in((folder / "out.jsonl").read_text()) == ["t0", "t1", "t2", "t3", "t4"]
    assert_told(run.process, said, 5, 5)
