"""Callers that run steps when the main thread has ended: a thread that goes on, and an exit hook."""

from __future__ import annotations

import subprocess
import sys

import pytest
from bounds import HANG_BOUND_S
from scripts import each_backend

_LATE = """
import atexit, sys, threading

def work():
    from fanout_sync import FunctionExecutor, Runner  # the first time: nothing of the package is imported before
    from fanout_sync.testing import make_specs

    async def echo(spec):
        import asyncio
        return await asyncio.to_thread(lambda: spec.prompt)

    runner = Runner(FunctionExecutor({"tester": echo}), backend=sys.argv[1], max_concurrency=2)
    for run in (runner.run, runner.stream):
        try:
            print(*[outcome.output for outcome in run(make_specs(3))])
        except RuntimeError as error:
            print(error)

def work_later():
    threading.main_thread().join()
    work()

if sys.argv[2] == "thread":
    threading.Thread(target=work_later).start()
else:
    atexit.register(work)
"""

_STARTS_NO_THREADS = sys.version_info[:2] == (3, 12)  # after the end of the main thread


@each_backend
@pytest.mark.parametrize("where", ["thread", "exit hook"])
def test_the_first_runs_after_the_end_of_the_main_thread(backend: str, where: str) -> None:
    """They work, with async agents, too; if Python starts no more threads, an error says what to do."""
    command = [sys.executable, "-c", _LATE, backend, where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_BOUND_S, check=False)
    run, stream = done.stdout.splitlines()
    assert run == "0 1 2" or (_STARTS_NO_THREADS and backend == "thread" and "use Runner.run with a list" in run)
    assert stream == "0 1 2" or (_STARTS_NO_THREADS and "use Runner.run with a list" in stream)
    assert done.stderr == ""


_AT_EXIT_AGAIN = """
import atexit
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs
runner = Runner(FunctionExecutor({"tester": lambda spec: spec.prompt}), backend="process", max_concurrency=1)

def work():
    with runner:
        print(len(runner.run(make_specs(2)).succeeded), len(runner.run(make_specs(2)).succeeded), flush=True)

atexit.register(work)
work()
"""


def test_an_exit_hook_that_is_called_after_that_of_the_workers() -> None:
    """Workers that are left are killed at exit; a run in a hook of the program after that still gets its own."""
    command = [sys.executable, "-c", _AT_EXIT_AGAIN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_BOUND_S, check=False)
    assert (done.stdout, done.stderr) == ("2 2\n2 2\n", "")
