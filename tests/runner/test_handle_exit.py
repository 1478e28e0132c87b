"""The end of a program while runs go on in the background, and handles that a script never reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripts import Launcher, each_backend

from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

GOES_ON = """
from concurrent.futures import ThreadPoolExecutor

def act(spec):
    return (answer if spec.prompt in "01" else STEP)(spec)

STEP = globals()[STEP]
executor = FunctionExecutor({"tester": act})
where = ThreadPoolExecutor(2) if BACKEND == "foreign" else BACKEND
handle = Runner(executor, backend=where, max_concurrency=2, journal="run.db").start(make_specs(6))
while not (len(handle.snapshot()) == 2 and Ledger("ledger").counts().total() == 4):
    time.sleep(0.01)
"""


def reused(folder: Path) -> int:
    """Return how many of the steps are journalled, and run the others."""
    executor = FunctionExecutor({"tester": lambda spec: spec.prompt})
    run = Runner(executor, journal=folder / "run.db").run(make_specs(6))
    assert len(run.succeeded) == 6
    return sum(record.from_journal for record in run.records)


@pytest.mark.parametrize(
    ("backend", "step"), [("thread", "hang"), ("thread", "is_stopped"), ("process", "hang"), ("foreign", "is_stopped")]
)
@pytest.mark.parametrize(("how", "code"), [("", 0), ("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGINT)", -2)])
def test_a_program_that_ends(backend: str, step: str, how: str, code: int, launch: Launcher, tmp_path: Path) -> None:
    """Its runs are cancelled: nothing hangs, is left or is shown, and the journal has what had finished."""
    quiet = "" if code >= 0 else "sys.excepthook = lambda *error: None\n"
    script = launch.script(f"{quiet}{GOES_ON}\nsay('ending')\n{how}", backend=backend, step=step)
    script.expect("ending", *(f"begun t{n}" for n in range(4)))
    told = script.end()
    assert script.process.returncode == code, told
    if step == "is_stopped":
        # These steps have ended by themselves when they were told to.
        assert sorted(told.splitlines()) == ["told t2", "told t3"]
        assert reused(tmp_path) == 4
    else:
        assert told == ""
        assert reused(tmp_path) == 2


@each_backend
def test_a_program_that_ends_with_the_input_hanging(backend: str, launch: Launcher) -> None:
    """It does not wait for the input for long."""
    source = """
    is_reading = threading.Event()

    def specs():
        yield from make_specs(2, "quiet")
        say("reading")
        is_reading.set()
        time.sleep(3600)

    handle = Runner(FunctionExecutor({"quiet": lambda spec: "done"}), backend=BACKEND).start(specs())
    is_reading.wait()
    """
    script = launch.script(source, backend=backend)
    script.expect("reading")
    assert script.end() == ""
    assert script.process.returncode == 0


@each_backend
def test_a_handle_that_is_started_when_the_main_thread_has_ended(backend: str, launch: Launcher) -> None:
    """A thread that goes on can start a run and read it."""
    source = """
    def work():
        threading.main_thread().join()
        try:
            handle = Runner(FunctionExecutor({"tester": answer}), backend=BACKEND).start(make_specs(2))
            say(*handle.result(60).values())
        except RuntimeError as error:
            say("starts none after the end of the main thread" in str(error))

    threading.Thread(target=work).start()
    """
    script = launch.script(source, backend=backend)
    told = script.end()
    assert told in ("begun t0\nbegun t1\n0 1\n", "begun t1\nbegun t0\n0 1\n", "True\n")
    assert script.process.returncode == 0


UNREAD = """
def fail(spec):
    raise ValueError("odd")

handle = Runner(FunctionExecutor({"tester": fail}), backend=BACKEND).start(make_specs(5))
"""

SHOWN = """\
fanout_sync: the result of a run of 5 steps was never read; 5 steps failed:
  5 raised: ValueError: odd (t0, t1, t2 and 2 more)
"""


@each_backend
@pytest.mark.parametrize("how", ["del handle; gc.collect()", "pass"], ids=["dropped", "kept"])
def test_failures_that_nobody_reads_are_shown_once(how: str, backend: Any, launch: Launcher) -> None:
    """They are on standard error, when the handle is dropped or at the end of the program."""
    script = launch.script(f"{UNREAD}\nwhile not handle.done(): time.sleep(0.01)\n{how}", backend=backend)
    assert script.end() == SHOWN
    assert script.process.returncode == 0


def test_failures_of_a_run_that_the_end_of_the_program_cancels(launch: Launcher) -> None:
    """They are shown, without the steps that were cancelled."""
    source = """
    def act(spec):
        if spec.prompt == "0":
            raise ValueError("odd")
        hang(spec)

    handle = Runner(FunctionExecutor({"tester": act})).start(make_specs(3))
    while not (len(handle.snapshot()) == 1 and Ledger("ledger").counts().total() == 2):
        time.sleep(0.01)
    """
    # A snapshot of what has ended so far reads nothing: there is more to come.
    script = launch.script(source)
    script.expect("begun t1", "begun t2")
    told = script.end()
    assert told == (
        "fanout_sync: the result of a run of 3 steps was never read; 1 step failed:\n"
        "  t0 (tester) raised: ValueError: odd\n"
    )


@each_backend
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_multiprocessing_that_ends(method: str, backend: str, launch: Launcher, tmp_path: Path) -> None:
    """Its runs are cancelled, too, before its workers are killed: no step ends as crashed."""
    source = """
    import multiprocessing

    def act(spec):
        return (answer if spec.prompt in "01" else hang)(spec)

    def work():
        executor = FunctionExecutor({"tester": act})
        handle = Runner(executor, backend=BACKEND, max_concurrency=2, journal="run.db").start(make_specs(6))
        while not (len(handle.snapshot()) == 2 and Ledger("ledger").counts().total() == 4):
            time.sleep(0.01)

    if __name__ == "__main__":
        process = multiprocessing.get_context(METHOD).Process(target=work)
        process.start()
        process.join()
        say("ended", process.exitcode)
    """
    script = launch.script(source, backend=backend, method=method)
    script.expect(*(f"begun t{n}" for n in range(4)), "ended 0")
    assert script.end() == ""
    assert reused(tmp_path) == 2
