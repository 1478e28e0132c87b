"""Python programs that tests run, also on terminals of their own, where Ctrl-C can be pressed."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import textwrap
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import define, field
from bounds import HANG_BOUND_S

from fanout_sync.testing import Ledger

EXIT_BOUND_S = 20
"""Seconds: far more than a script takes from its interrupt to its end."""

SEARCHED = [str(Path(folder).absolute()) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
TOKEN = "FANOUT_SYNC_TEST"

each_backend = pytest.mark.parametrize("backend", ["thread", "process"])

ON_ITS_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Makes its standard input the controlling terminal, and becomes `python` with the same arguments."""

PREAMBLE = """
import gc, json, os, signal, subprocess, sys, threading, time
from pathlib import Path
from fanout_sync import FanoutInterrupted, FunctionExecutor, Runner, SubagentEnd, current_step
from fanout_sync.testing import Ledger, make_specs

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def statuses(run):
    assert [outcome.task_id for outcome in run] == [f"t{i}" for i in range(len(run))]
    return " ".join(record.status for record in run.records)

def left():
    # The processes of this script that still run after a moment: what has been killed takes a moment to end.
    deadline = time.monotonic() + 10
    while (found := running()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found

def running():
    # Without the script itself and the resource tracker of multiprocessing, which ends with it.
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                is_ours = TOKEN in (process / "environ").read_text(errors="replace")
                command = (process / "cmdline").read_text().replace("\\0", " ")
                if is_ours and command and "resource_tracker" not in command:
                    found.append(command)
            except OSError:
                pass
    return found

def begin(spec):
    Ledger("ledger").note(spec.task_id)
    say("begun", spec.task_id)

def is_stopped(spec):
    # Waits as long as it may, and says whether it was told to stop.
    begin(spec)
    current_step().cancelled.wait(3600)
    say("told", spec.task_id)
    return "stopped by itself"

def hang(spec):
    begin(spec)
    time.sleep(3600)

def answer(spec):
    begin(spec)
    return spec.prompt
"""


@define
class Script:
    """A Python program that has a terminal of its own, of which it is the foreground process.

    Attributes:
        process: The program.
        terminal: The master's side.
        token: In the environment of the program and all that it starts.
        ledger: Where its steps are noted.
        said: What it has written, and nobody has asked for yet.
    """

    process: subprocess.Popen[bytes]
    terminal: int
    token: str
    ledger: Ledger
    said: str = ""

    def expect(self, *lines: str) -> None:
        """Read until each of these lines has been written, in any order, and no other line."""
        missing = sorted(lines)
        while missing:
            line, is_whole, rest = self.said.partition("\n")
            if not is_whole:
                assert self._read(), f"it has ended and has not written {missing}: {self.said}"
                continue
            assert line in missing, f"one of {missing} was expected: {self.said}"
            missing.remove(line)
            self.said = rest

    def press_ctrl_c(self) -> None:
        os.write(self.terminal, b"\x03")

    def end(self) -> str:
        """Wait until the program and all that it started have ended; return the rest of its output."""
        while self._read(EXIT_BOUND_S):
            pass
        self.process.wait(EXIT_BOUND_S)
        await_condition(lambda: not processes_with(self.token))
        return self.said

    def _read(self, bound_s: float = HANG_BOUND_S) -> bool:
        ready, _, _ = select.select([self.terminal], [], [], bound_s)
        assert ready, f"it hangs, having written: {self.said}"
        try:
            more = os.read(self.terminal, 65536)
        except OSError:  # no process has the terminal open any more
            return False
        self.said += more.decode()
        return True


@define
class Launcher:
    """Starts programs, and ends all of them."""

    folder: Path
    scripts: list[Script] = field(factory=list)

    def script(self, source: str, **constants: object) -> Script:
        """Start a script: the constants, in capitals, the preamble, and `source`."""
        token = uuid.uuid4().hex
        named = "".join(f"{name.upper()} = {value!r}\n" for name, value in constants.items())
        path = self.folder / "script.py"
        path.write_text(f"TOKEN = {token!r}\n{named}{PREAMBLE}{textwrap.dedent(source)}")
        return self.program(str(path), token=token)

    def program(self, *arguments: str, token: str | None = None, **environment: str) -> Script:
        """Start `python` with these arguments."""
        token = token or uuid.uuid4().hex
        master, slave = pty.openpty()
        settings = termios.tcgetattr(slave)
        settings[1] &= ~termios.OPOST  # "\n" is "\n"
        settings[3] &= ~termios.ECHO  # no "^C"
        settings[3] |= termios.NOFLSH  # what was written just before Ctrl-C is not lost
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        search = os.pathsep.join([environment.pop("PYTHONPATH", ""), *SEARCHED])
        process = subprocess.Popen(
            [sys.executable, "-c", ON_ITS_TERMINAL, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": search.strip(os.pathsep), TOKEN: token, "NO_COLOR": "1", **environment},
            start_new_session=True,
        )
        os.close(slave)
        self.scripts.append(Script(process, master, token, Ledger(self.folder / "ledger")))
        return self.scripts[-1]

    def end(self) -> None:
        for script in self.scripts:
            for pid in processes_with(script.token):
                os.kill(pid, signal.SIGKILL)
            script.process.kill()
            script.process.wait(HANG_BOUND_S)
            os.close(script.terminal)


def run_python(
    *arguments: str | Path,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    bound_s: float = HANG_BOUND_S,
) -> subprocess.CompletedProcess[str]:
    """Run this Python to its end.

    Args:
        arguments: Of the command line.
        cwd: Where it runs.
        environment: Variables besides those of this process.
        bound_s: Seconds that it may take at most.
    """
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=bound_s,
        check=False,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
    )


def processes_with(token: str) -> list[int]:
    """Return the processes in whose environment or command line `token` is; those that are dead have none."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                texts = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            except OSError:  # it has ended, or belongs to another user
                continue
            if token.encode() in texts:
                found.append(int(process.name))
    return found


def await_condition(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the condition depends on another process, so it has to be polled
