"""Programs that steps on threads leave running: a warning names them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from processes import eventually
from scripts import run_python

from fanout_sync import AgentStepSpec, FunctionExecutor, Runner
from fanout_sync.testing import make_specs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell which thread started what")

SLEEP = [sys.executable, "-c", "import time; time.sleep(3600)  # a program that hangs"]

started: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _kill_programs() -> Iterator[None]:
    started.clear()
    yield
    for program in started:
        program.kill()
        program.wait(HANG_BOUND_S)


def program(spec: AgentStepSpec) -> str:
    """Start a program, and wait for it if the prompt is 0."""
    if spec.prompt == "0":
        child = subprocess.Popen(SLEEP)
        started.append(child)
        child.wait()
    return "done"


async def async_program(spec: AgentStepSpec) -> str:
    if spec.prompt == "0":
        child = await asyncio.create_subprocess_exec(*SLEEP)
        started.append(child)  # type: ignore[arg-type]  # only killed
        await child.wait()
    return "done"


async def program_in_a_thread(spec: AgentStepSpec) -> str:
    return await asyncio.to_thread(program, spec)


def run_with_a_timeout(agent: Any, backend: Any) -> None:
    run = Runner(FunctionExecutor({"tester": agent}), backend=backend, timeout=3.0, max_concurrency=2).run(
        make_specs(3)
    )
    assert [record.status for record in run.records] == ["timed_out", "succeeded", "succeeded"]


@pytest.mark.parametrize("agent", [program, program_in_a_thread])
def test_a_step_that_times_out(agent: Any) -> None:
    """The warning names the program and recommends processes; its place is the line that called the runner."""
    with pytest.warns(UserWarning, match="have left programs running") as caught:
        run_with_a_timeout(agent, "thread")
    text = str(caught[0].message)
    assert f"(process {started[0].pid}" in text
    assert "import time; time.sleep(3600)" in text
    assert "backend='process'" in text
    assert ("of step 't0'" in text) is (agent is program)
    assert caught[0].filename == __file__


def test_an_async_step_that_times_out() -> None:
    """Its program is a child of the event loop's thread."""
    release = threading.Event()

    async def ask(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            started.append(subprocess.Popen(SLEEP))
            await asyncio.sleep(HANG_BOUND_S)
        return "done"

    with pytest.warns(UserWarning, match="have left programs running"):
        run_with_a_timeout(ask, "thread")
    release.set()


@pytest.mark.filterwarnings("ignore:the timeout is a soft one")
def test_a_step_on_a_pool_of_the_callers() -> None:
    """It is named there, too, as long as it still occupies its thread."""
    with ThreadPoolExecutor(2) as pool:
        with pytest.warns(UserWarning, match="process .*, of step 't0'"):
            run_with_a_timeout(program, pool)
        started[0].kill()


def test_no_warning_without_a_program() -> None:
    """A step that hangs without one, and a program of a step that was not given up, are nothing to warn of."""
    release = threading.Event()

    def hang(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            release.wait(HANG_BOUND_S)
        if spec.prompt == "1":
            started.append(subprocess.Popen(SLEEP))
        return "done"

    run_with_a_timeout(hang, "thread")
    release.set()


def test_a_program_that_the_step_kills_itself() -> None:
    """A step that ends its program when it is told to stop leaves nothing."""

    def careful(spec: AgentStepSpec) -> str:
        if spec.prompt == "0":
            subprocess.run(SLEEP, timeout=0.8, check=False)
        return "done"

    run = Runner(FunctionExecutor({"tester": careful}), timeout=HANG_BOUND_S).run(make_specs(2))
    assert [record.status for record in run.records] == ["raised", "succeeded"]


def test_warnings_that_are_errors_cost_no_outcome(caplog: pytest.LogCaptureFixture) -> None:
    """The run is returned, and the warning is logged."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_with_a_timeout(program, "thread")
    assert "have left programs running" in caplog.text


def test_processes_kill_it() -> None:
    """On processes nothing is left, and nothing is warned of."""
    run_with_a_timeout(program, "process")


INTERRUPTED = """
import os, signal, subprocess, sys, threading
from fanout_sync import FanoutInterrupted, FunctionExecutor, Runner
from fanout_sync.testing import make_specs

aside = {"start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

def program(spec):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], **aside)
    os.write(1, f"{child.pid}\\n".encode())
    ready.release()
    child.wait()

# another agent

def press_ctrl_c():
    for _ in range(2):
        ready.acquire()
    os.kill(os.getpid(), signal.SIGINT)

ready = threading.Semaphore(0)
threading.Thread(target=press_ctrl_c, daemon=True).start()
try:
    Runner(FunctionExecutor({"tester": program}), max_concurrency=2).run(make_specs(3))
except FanoutInterrupted as error:
    print(error)
"""


ASYNC = """
import asyncio

async def program(spec):
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(3600)", **aside)
    os.write(1, f"{child.pid}\\n".encode())
    ready.release()
    await child.wait()
"""


@pytest.mark.parametrize("agent", ["", ASYNC])
def test_an_interrupt(agent: str, tmp_path: Path) -> None:
    """After Ctrl-C the programs that still run are named, and the interrupt is raised all the same."""
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED.replace("# another agent", agent))
    done = run_python(script)
    *pids, last = done.stdout.splitlines()
    for pid in pids:
        assert f"(process {pid})" in done.stderr, done.stderr
        subprocess.run(["kill", "-9", pid], check=True)
        assert eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))  # type: ignore[misc]
    assert last.startswith("interrupted: 0 of 3 steps were done")
    assert "have left programs running" in done.stderr


def _is_zombie(pid: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
