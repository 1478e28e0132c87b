"""The command line interrupted while it writes: whole lines, every step that was done, and a summary that is true."""

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
from command_line import ENVIRONMENT, LIMIT_S, Folder, command
from early_ends import CALM_LOOKS, Stage, acting, in_order
from processes import eventually

from fanout_sync import SqliteJournal, StepOutcome

TESTS = Path(early_ends.__file__).parent

PIPE_SIZE = 4096
"""The smallest pipe there is: of most outcomes here, not even one fits."""

AGENTS = f"""
import signal, sys
sys.path.insert(0, {str(TESTS)!r})
from early_ends import Acting

executor = Acting(".")
slow_to_end = Acting(".", is_slow_to_end=True)

def note(number, frame):
    executor.stage.ledger.note("pressed:ctrl-c")
    raise KeyboardInterrupt

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, note)
"""
"""Its steps leave marks in the folder, and so does each Ctrl-C, which is else what it always is."""

INTERRUPTED = re.compile(r"Interrupted: (\d+) of (\d+) outcomes were written(; cancelled: [^\n]+?)?(; [^\n;]+)?\n")

each_backend = pytest.mark.parametrize("backend", ["thread", "process"])
SIGNALS = {
    "SIGINT": [signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
    "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM],
    "SIGINT and SIGTERM": [signal.SIGINT, signal.SIGTERM],
}
PATIENCE_S = 1.5
"""So long after the first one, another interrupt is more than a nervous finger."""

LINES = {"long": (40, 100_000), "short": (300, 30)}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "agents.py").write_text(AGENTS)
    return Folder(tmp_path)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def write_steps(folder: Folder, agents: Sequence[str], size: int = 10) -> None:
    """Write a step for each agent; the outcomes of those that answer are a little longer than `size`."""
    prompts = [agent if " " in agent else f"{agent} {'x' * size}" for agent in agents]
    lines = [f"{spec.to_json()}\n" for spec in acting(*prompts)]
    (folder / "steps.jsonl").write_text("".join(lines))


# What is read, and when -----------------------------------------------------------------------------------------------


@define
class Reader:
    """The end of a small pipe that nobody reads before the test wants it."""

    descriptor: int

    def waiting(self) -> int:
        """Return how many bytes are there."""
        count = bytearray(4)
        fcntl.ioctl(self.descriptor, termios.FIONREAD, count)
        return int.from_bytes(count, "little")

    def read_all(self) -> str:
        os.set_blocking(self.descriptor, True)
        with os.fdopen(os.dup(self.descriptor), encoding="utf-8") as file:
            return file.read()


@define
class Command:
    """A command line at work.

    Attributes:
        process: The process.
        reader: Where its outcomes go; `None` for a file.
        stage: Where its steps leave marks.
    """

    process: subprocess.Popen[str]
    reader: Reader | None
    stage: Stage

    def is_stuck(self) -> Callable[[], bool]:
        """Return what tells when all steps that have begun are done, and the command waits for its reader."""
        is_at_rest, calm = self.stage.at_rest(), 0

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
            pressed = len(self.stage.marked("pressed"))
            self.process.send_signal(number)
            if number == signal.SIGINT:
                assert eventually(partial(self._was_pressed, pressed + 1))
            else:
                assert eventually(partial(self._has_taken, number))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds; the command must not end before."""
        assert eventually(lambda: condition() or self.process.poll() is not None)
        assert condition() or self.process.poll() is None, self.end()

    def end(self) -> str:
        """Wait for its end; return what it had to say to people."""
        assert self.process.wait(LIMIT_S) is not None
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def _was_pressed(self, times: int) -> bool:
        return self.process.poll() is not None or len(self.stage.marked("pressed")) >= times

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
                yield Command(process, reader, Stage(folder.path))
            finally:
                process.kill()
    finally:
        guard.cancel()
        for descriptor in opened:
            os.close(descriptor)


def task_ids_in(text: str) -> list[str]:
    """Return whose outcomes were written, all of them in whole lines."""
    assert text.endswith("\n") or not text
    return [StepOutcome.from_json(line).task_id for line in text.splitlines()]


def assert_told(process: subprocess.Popen[str], said: str, written: int, total: int) -> None:
    """The exit status and the summary say what happened."""
    numbers = INTERRUPTED.fullmatch(said)
    assert numbers is not None, said
    assert (int(numbers[1]), int(numbers[2])) == (written, total)
    assert (numbers[3] is None) == (written == total)
    assert process.returncode == 130


# While it waits for whoever reads -------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize(
    ("pressed", "lines"), [*((name, "long") for name in SIGNALS), ("SIGINT", "short"), ("SIGTERM twice", "short")]
)
def test_an_interrupt_while_a_line_is_written(
    pressed: str, lines: str, backend: str, folder: Folder, stage: Stage
) -> None:
    """Every step that was done is written when the reader reads on: just once, in order, in whole lines."""
    count, size = LINES[lines]
    write_steps(folder, ["quick"] * count, size)
    with running(folder, "--backend", backend, "-j", "3") as run:
        run.wait_until(run.is_stuck())
        done = in_order(stage.marked("done"))
        assert len(done) < count
        run.send(SIGNALS[pressed])
        assert run.reader is not None
        written = task_ids_in(run.reader.read_all())
        said = run.end()
    assert written == done
    assert in_order(stage.marked("begun")) == done, "no step begins after an interrupt"
    assert_told(run.process, said, len(written), count)


@each_backend
@pytest.mark.parametrize("to", ["pipe", "fifo"])
@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM, signal.SIGINT]], ids=["one", "two"])
def test_what_is_written_and_what_is_journalled_agree(
    signals: list[signal.Signals], to: str, backend: str, folder: Folder, stage: Stage
) -> None:
    """With a journal, all that was done is both written and journalled; the same command runs the rest alone."""
    write_steps(folder, ["quick"] * 300, 3_000)
    with running(folder, "--backend", backend, "-j", "3", "--journal", "run.db", to=to) as run:
        run.wait_until(run.is_stuck())
        done = in_order(stage.marked("done"))
        run.send(signals)
        assert run.reader is not None
        written = task_ids_in(run.reader.read_all())
        said = run.end()
    assert written == done
    assert_told(run.process, said, len(written), 300)
    assert said.endswith("the same command resumes\n")
    kept = [record.task_id for record in SqliteJournal(folder / "run.db").records("default")]
    assert kept == done
    again = folder.run("--journal", "run.db")
    assert again.returncode == 0
    assert task_ids_in(again.stdout) == [f"t{number}" for number in range(300)]
    assert sorted(stage.marked("begun")) == sorted(f"t{number}" for number in range(300)), "each ran once"


@each_backend
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_another_interrupt_while_the_rest_is_written(
    number: signal.Signals, backend: str, folder: Folder, stage: Stage
) -> None:
    """What was done behind a step that was not is written after the first interrupt; a second one loses none of it."""
    write_steps(folder, ["quick", "held", *["quick"] * 6, "held", "held", "quick"], 100_000)
    with running(folder, "--backend", backend, "-j", "3") as run:
        assert run.reader is not None
        run.wait_until(stage.have_begun("t0", "t1"))
        first = os.read(run.reader.descriptor, 1)
        while (line := os.read(run.reader.descriptor, 65536)) and not line.endswith(b"\n"):
            first += line
        first += line
        run.wait_until(stage.have_begun("t8", "t9"))
        run.process.send_signal(number)
        run.wait_until(lambda: run.reader is not None and run.reader.waiting() >= PIPE_SIZE)
        run.process.send_signal(number)
        text = first.decode() + run.reader.read_all()
        said = run.end()
    written = task_ids_in(text)
    assert written == ["t0", "t2", "t3", "t4", "t5", "t6", "t7"]
    assert in_order(stage.marked("begun")) == [f"t{n}" for n in range(10)]
    assert_told(run.process, said, len(written), 11)


@each_backend
def test_whoever_does_not_read_keeps_nobody_waiting(backend: str, folder: Folder, stage: Stage) -> None:
    """Ctrl-C once more, after some time, ends the command though nobody reads; what the summary says is there, is."""
    write_steps(folder, ["quick"] * 300, 30)
    with running(folder, "--backend", backend, "-j", "3") as run:
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


# At any moment --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "to"), [(1, "file"), (2, "option"), (3, "file"), (5, "option"), (8, "file"), (13, "option"), (90, "file")]
)
def test_an_interrupt_at_any_moment(after: int, to: str, folder: Folder, stage: Stage) -> None:
    """Wherever it strikes: every step on a thread that was done is written, and what is written was done."""
    write_steps(folder, ["quick"] * 400, 2000)
    number = [signal.SIGINT, signal.SIGTERM][after % 2]
    with running(folder, "-j", "4", "--journal", "run.db", to=to) as run:
        run.wait_until(lambda: len(stage.marked("done")) >= after)
        run.process.send_signal(number)
        said = run.end()
    written = task_ids_in((folder / "out.jsonl").read_text())
    assert written == in_order(stage.marked("done"))
    assert written == [record.task_id for record in SqliteJournal(folder / "run.db").records("default")]
    if len(written) < 400:
        assert_told(run.process, said, len(written), 400)


@pytest.mark.parametrize("after", [1, 9, 40])
def test_an_interrupt_at_any_moment_on_processes(after: int, folder: Folder, stage: Stage) -> None:
    """As on threads, but that the last word of a worker that is killed may be lost; it is not journalled either."""
    write_steps(folder, ["quick"] * 400, 2000)
    with running(folder, "--backend", "process", "-j", "2", "--journal", "run.db", to="file") as run:
        run.wait_until(lambda: len(stage.marked("done")) >= after)
        run.process.send_signal(signal.SIGINT)
        said = run.end()
    written = task_ids_in((folder / "out.jsonl").read_text())
    assert written == in_order(set(written))
    assert set(written) <= set(stage.marked("done"))
    assert len(set(stage.marked("begun")) - set(written)) <= 2
    assert written == [record.task_id for record in SqliteJournal(folder / "run.db").records("default")]
    if len(written) < 400:
        assert_told(run.process, said, len(written), 400)


@each_backend
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [[], ["--journal", "run.db"]], ids=["", "journal"])
def test_an_interrupt_while_workers_are_ended(
    options: list[str], number: signal.Signals, backend: str, folder: Folder, stage: Stage
) -> None:
    """All steps are done, and all of them are written; it says so, and that it was interrupted."""
    write_steps(folder, ["quick"] * 5)
    with running(folder, "--backend", backend, "-j", "1", *options, to="option", target="agents.py:slow_to_end") as run:
        run.wait_until(lambda: bool(stage.marked("ending")))
        run.process.send_signal(number)
        said = run.end()
    stage.release()
    assert task_ids_in((folder / "out.jsonl").read_text()) == ["t0", "t1", "t2", "t3", "t4"]
    assert_told(run.process, said, 5, 5)
