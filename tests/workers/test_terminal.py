"""Workers have no terminal, and stop and go on with their caller."""

from __future__ import annotations

import os
import signal
import textwrap
import threading
from pathlib import Path

import pytest
from bounds import HANG_BOUND_S
from processes import eventually
from scripts import Launcher, processes_with

ASKING = {
    "reads from the terminal": ["bash", "-c", "read answer < /dev/tty"],
    "sets modes of the terminal": ["bash", "-c", "stty -echo < /dev/tty"],
    "opens the terminal in Python": ["python3", "-c", "open('/dev/tty')"],
    "reads its standard input": ["bash", "-c", "read answer"],
}


@pytest.mark.parametrize("asking", ASKING)
def test_a_program_that_asks_at_the_terminal_fails_at_once(asking: str, launch: Launcher) -> None:
    """A program in a step that wants a terminal has none, so that it fails by itself and the run goes on."""
    script = launch.script(
        """
        def ask(spec):
            done = subprocess.run(COMMAND, capture_output=True)
            return str(done.returncode != 0)

        run = Runner(FunctionExecutor({"tester": ask}), backend="process", max_concurrency=1).run(make_specs(1))
        say(run[0].output)
        """,
        command=ASKING[asking],
    )
    script.expect("True")
    script.end()


def test_getpass_fails_at_once(launch: Launcher) -> None:
    """A step that asks for a password fails, and its message says why."""
    script = launch.script(
        """
        def ask(spec):
            import getpass, warnings
            warnings.simplefilter("ignore")
            return getpass.getpass("password? ")

        run = Runner(FunctionExecutor({"tester": ask}), backend="process", max_concurrency=1).run(make_specs(1))
        os.write(1, b"\\n")
        say(run.records[0].status)
        """,
    )
    assert "raised" in script.end()


TICKING = """
    def tick(spec):
        child = subprocess.Popen(["bash", "-c", "while true; do echo >> child; sleep 0.02; done"])
        while not Path("go").exists() and not current_step().cancelled:
            with open("ticks", "a") as file:
                file.write("x")
            time.sleep(0.02)
        child.kill()
        return "done"

    runner = Runner(FunctionExecutor({"tester": tick}), backend="process", max_concurrency=1, timeout=TIMEOUT)
    say(runner.run(make_specs(1)).records[0].status)
"""

TIMEOUT_S = 2

SHELL = """
import os, signal, subprocess, sys, time

job = subprocess.Popen([sys.executable, "script.py"], preexec_fn=os.setpgrp)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.tcsetpgrp(0, job.pid)
os.waitpid(job.pid, os.WUNTRACED)
os.write(1, b"stopped\\n")
while not os.path.exists("fg"):
    time.sleep(0.02)
os.killpg(job.pid, signal.SIGCONT)
os.waitpid(job.pid, 0)
"""
"""Runs the script as a shell runs a job in the foreground."""


def is_stopped(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text[text.rindex(")") + 2] in "TZ"


def in_workers(token: str) -> list[int]:
    """Return the processes of the script that are workers, or were started by one."""
    found = []
    for pid in processes_with(token):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if b"FANOUT_SYNC_WORKERS=" in environment:
            found.append(pid)
    return found


def grown(folder: Path, *, seconds: float) -> set[str]:
    """Return which of the files grow within so many seconds, at the latest when both have grown."""
    paths = [folder / "ticks", folder / "child"]
    sizes = [path.stat().st_size for path in paths]
    clock, found = threading.Event(), set[str]()
    for _ in range(int(seconds / 0.05)):
        found |= {path.name for path, size in zip(paths, sizes, strict=True) if path.stat().st_size != size}
        if len(found) == 2:
            break
        clock.wait(0.05)
    return found


def assert_all_is_stopped(folder: Path, token: str) -> None:
    assert eventually(lambda: len(in_workers(token)) >= 2 and all(map(is_stopped, in_workers(token))))
    assert grown(folder, seconds=1.2 * TIMEOUT_S) == set()


def assert_all_goes_on(folder: Path) -> None:
    assert grown(folder, seconds=HANG_BOUND_S) == {"ticks", "child"}
    (folder / "go").touch()


def test_steps_stop_and_go_on_with_their_caller(launch: Launcher) -> None:
    """While the caller is stopped, so are its steps and what they have started; the time counts against no timeout."""
    script = launch.script(TICKING, timeout=TIMEOUT_S)
    assert eventually((launch.folder / "child").exists)
    os.kill(script.process.pid, signal.SIGSTOP)
    assert_all_is_stopped(launch.folder, script.token)
    os.kill(script.process.pid, signal.SIGCONT)
    assert_all_goes_on(launch.folder)
    script.expect("succeeded")
    script.end()


def test_ctrl_z_stops_the_steps(launch: Launcher) -> None:
    """Ctrl-Z at the terminal stops the steps, too, and `fg` goes on with them."""
    launch.script("", timeout=TIMEOUT_S).end()  # writes the script
    source = (launch.folder / "script.py").read_text()
    (launch.folder / "script.py").write_text(source + textwrap.dedent(TICKING))
    shell = launch.program("-c", SHELL)
    assert eventually((launch.folder / "child").exists)
    os.write(shell.terminal, b"\x1a")
    shell.expect("stopped")
    assert_all_is_stopped(launch.folder, shell.token)
    (launch.folder / "fg").touch()
    assert_all_goes_on(launch.folder)
    shell.expect("succeeded")
    shell.end()


def test_a_stopped_caller_that_is_killed_leaves_nothing(launch: Launcher) -> None:
    """Steps that were stopped with their caller are killed with it, too."""
    script = launch.script(TICKING, timeout=60)
    assert eventually((launch.folder / "child").exists)
    os.kill(script.process.pid, signal.SIGSTOP)
    assert eventually(lambda: all(map(is_stopped, in_workers(script.token))))
    script.process.kill()
    script.end()


def test_runs_inside_a_step_stop_and_go_on_as_well(launch: Launcher) -> None:
    """The time for which the script was stopped counts against no timeout of a run that a step has started."""
    script = launch.script(
        """
        def slow(spec):
            Path("begun").touch()
            while not Path("go").exists() and not current_step().cancelled:
                time.sleep(0.02)
            return "done"

        def nested(spec):
            inner = Runner(FunctionExecutor({"tester": slow}), backend="process", max_concurrency=1, timeout=TIMEOUT)
            return inner.run(make_specs(1)).records[0].status

        outer = Runner(FunctionExecutor({"tester": nested}), backend="process", max_concurrency=1)
        say(outer.run(make_specs(1))[0].output)
        """,
        timeout=TIMEOUT_S,
    )
    assert eventually((launch.folder / "begun").exists)
    os.kill(script.process.pid, signal.SIGSTOP)
    assert eventually(lambda: len(in_workers(script.token)) >= 2 and all(map(is_stopped, in_workers(script.token))))
    threading.Event().wait(1.2 * TIMEOUT_S)
    os.kill(script.process.pid, signal.SIGCONT)
    (launch.folder / "go").touch()
    script.expect("succeeded")
    script.end()
