"""Starting workers changes nothing that belongs to the calling program, not even for a short time."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from scripts import run_python

WATCHED = """
import os, signal, subprocess, sys, threading, types

changes = []

class WatchedModule(types.ModuleType):
    def __setattr__(self, name, value):
        if self is sys:  # and not one of the modules that importlib makes of the class of this one
            changes.append(f"sys.{name}")
        super().__setattr__(name, value)

def watch(event, args):
    if event in ("os.putenv", "os.unsetenv"):
        changes.append(f"{event} {args[0]}")

from fanout_sync import FunctionExecutor, ProcessBackend, Runner
from fanout_sync.testing import make_specs
import loky.backend.process, multiprocessing.resource_tracker

def watch_the_program():
    sys.addaudithook(watch)
    sys.__class__ = WatchedModule

def run_at_once(callers, make_runner):
    \"\"\"Run steps in worker processes from several threads that begin together.\"\"\"
    barrier = threading.Barrier(callers)
    statuses = []
    def call():
        barrier.wait(60)
        statuses.extend(record.status for record in make_runner().run(make_specs(2)).records)
    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return statuses

def make_runner():
    return Runner(FunctionExecutor({"tester": lambda spec: spec.prompt}), backend="process", max_concurrency=1)

# Works without a standard output, too.
def report(text):
    with open("report", "w") as file:
        file.write(text)
"""


def run_script(tmp_path: Path, source: str, *options: str, **environment: str) -> tuple[str, str]:
    """Return what a script has reported, and what it has printed."""
    script = tmp_path / "script.py"
    script.write_text(WATCHED + textwrap.dedent(source))
    done = run_python(*options, script, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "report").read_text(), done.stdout + done.stderr


@pytest.mark.parametrize("warnings", [None, "default"])
def test_threads_that_start_workers_together_leave_the_environment_alone(warnings: str | None, tmp_path: Path) -> None:
    """No variable is set or deleted, no warning option added and no stream replaced while workers start."""
    given = {} if warnings is None else {"PYTHONWARNINGS": warnings}
    reported, printed = run_script(
        tmp_path,
        """
        before = dict(os.environ), list(sys.warnoptions), sys.stdout, sys.stderr
        watch_the_program()
        statuses = run_at_once(3, make_runner)
        after = dict(os.environ), list(sys.warnoptions), sys.stdout, sys.stderr
        report(f"{statuses} {changes} {before == after}")
        """,
        **given,
    )
    assert (reported, printed) == (f"{['succeeded'] * 6} [] True", "")


@pytest.mark.parametrize(
    "loss",
    [
        "sys.stdout = sys.stderr = None",
        "sys.stdout.close(); sys.stderr.close()",
        "os.close(1); os.close(2)",
    ],
    ids=["none", "closed", "descriptors closed"],
)
def test_unusable_standard_streams_are_not_replaced(loss: str, tmp_path: Path) -> None:
    """Workers start though the standard streams of the caller are closed or `None`, and these stay as they are."""
    reported, _ = run_script(
        tmp_path,
        f"""
        {loss}
        watch_the_program()
        statuses = run_at_once(2, make_runner)
        report(f"{{statuses}} {{changes}}")
        # A normal exit would try again to write what could not be written.
        os._exit(0)
        """,
    )
    assert reported == f"{['succeeded'] * 4} []"


@pytest.mark.parametrize("closed", [(0, 1), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("captures_output", [False, True])
def test_closed_standard_descriptors(closed: tuple[int, ...], captures_output: bool, tmp_path: Path) -> None:
    """The steps of a daemon that has closed its standard descriptors may print: that does not go to its other files."""
    reported, _ = run_script(
        tmp_path,
        f"""
        def chatty(spec):
            print("x" * 100, flush=True)
            print("x" * 100, file=sys.stderr, flush=True)
            return "done"

        for descriptor in {closed}:
            os.close(descriptor)
        backend = ProcessBackend(capture_output={captures_output})
        runner = Runner(FunctionExecutor({{"tester": chatty}}), backend=backend, max_concurrency=2)
        report(" ".join(outcome.output for outcome in runner.run(make_specs(3))))
        os._exit(0)
        """,
    )
    assert reported == "done done done"


def test_a_nested_run_leaves_the_environment_of_its_worker_alone(tmp_path: Path) -> None:
    """No variable is set in a worker whose step starts workers of its own."""
    reported, printed = run_script(
        tmp_path,
        """
        def nested(spec):
            seen = []
            sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event == "os.putenv" else None)
            run = Runner(FunctionExecutor({"tester": lambda spec: "inner"}), backend="process").run(make_specs(1))
            return f"{run[0].output} {seen}"

        runner = Runner(FunctionExecutor({"tester": nested}), backend="process", max_concurrency=1)
        report(runner.run(make_specs(1))[0].output)
        """,
    )
    assert (reported, printed) == ("inner []", "")


LEAKING = """
import multiprocessing

kept = []

def leak(spec):
    kept.append(multiprocessing.get_context("spawn").Lock())
    os._exit(1)

runner = Runner(FunctionExecutor({"tester": leak}), backend="process")
report(str([record.status for record in runner.run(make_specs(2)).records]))
"""


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ((), {}),
        (("-W", "always"), {}),
        (("-W", "error"), {}),
        ((), {"PYTHONWARNINGS": "error"}),
        (("-X", "dev"), {}),
    ],
    ids=["plain", "always", "error", "environment", "dev"],
)
def test_semaphores_of_killed_workers_cause_no_warning(
    options: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    """With any warning filters, the program prints nothing about semaphores that dead workers have left."""
    reported, printed = run_script(tmp_path, LEAKING, *options, **environment)
    assert (reported, printed) == (str(["crashed"] * 2), "")


def test_running_resource_trackers_are_used(tmp_path: Path) -> None:
    """A resource tracker that the program has started before is kept, and each tracker is started once."""
    reported, printed = run_script(
        tmp_path,
        """
        from loky.backend import resource_tracker as loky_tracker
        from multiprocessing import resource_tracker as multiprocessing_tracker

        trackers = [loky_tracker._resource_tracker, multiprocessing_tracker._resource_tracker]
        trackers[0].ensure_running()
        first = trackers[0]._pid
        run_at_once(3, make_runner)
        pids = [tracker._pid for tracker in trackers]
        run_at_once(2, make_runner)
        alike = pids == [tracker._pid for tracker in trackers]
        commands = [open(f"/proc/{pid}/cmdline").read() for pid in os.listdir("/proc") if pid.isdecimal()
                    and open(f"/proc/{pid}/stat").read().split()[3] == str(os.getpid())]
        count = sum("resource_tracker import main" in command for command in commands)
        report(f"{pids[0] == first} {alike} {count}")
        """,
    )
    assert (reported, printed) == ("True True 2", "")


def test_the_signal_mask_of_the_caller_stays_the_same(tmp_path: Path) -> None:
    """A thread that has blocked SIGTERM has it still blocked after it has started workers."""
    reported, _ = run_script(
        tmp_path,
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        make_runner().run(make_specs(1))
        report(str(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))))
        """,
    )
    assert reported == "[<Signals.SIGTERM: 15>]"
