"""Errors that nobody else sees: shown on standard error, once for each place, unless logging shows them."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripts import run_python

from fanout_sync.last_resort import LastResort

PREAMBLE = """
import logging, os, sys, threading, time
from fanout_sync import *
from fanout_sync.testing import make_specs

def answer(spec):
    return spec.prompt

EXECUTOR = FunctionExecutor({"tester": answer})
"""


@pytest.fixture
def script(tmp_path: Path) -> Any:
    """Runs a script; returns what it has written to its standard error."""

    def run(source: str, *options: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(PREAMBLE + textwrap.dedent(source))
        done = run_python(*options, path, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr
        return done.stderr

    return run


def count(stderr: str) -> int:
    """Return how many errors are shown."""
    return stderr.count("Traceback (most recent call last):")


LISTENER = """
def listener(event):
    event.nonsense

channel = EventChannel()
channel.listen(listener)
run = Runner(EXECUTOR, event_tx=channel, backend=sys.argv[-1] if len(sys.argv) > 1 else "thread").run(make_specs(20))
channel.close()
assert not run.failed
print("the end")
"""

TEARDOWN = """
class Torn(FunctionExecutor):
    def teardown(self):
        raise ValueError("torn")

def main(backend, **options):
    for _ in range(2):
        assert not Runner(Torn({"tester": answer}), backend=backend, **options).run(make_specs(6)).failed
"""


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_the_frames_of_this_package_are_left_out(script: Any, backend: str) -> None:
    """The traceback of a listener and of `teardown` has the user's lines alone."""
    for source in (
        LISTENER,
        f"""
{TEARDOWN}
main({backend!r})
print("the end")
""",
    ):
        stderr = script(source)
        assert count(stderr) == 1
        assert "/fanout_sync/" not in stderr
        assert "script.py" in stderr


# Where errors come from -----------------------------------------------------------------------------------------------


def test_an_error_in_a_listener_is_shown_once(script: Any) -> None:
    """A listener that raises for each event is shown once, with the traceback and a hint."""
    stderr = script(LISTENER)
    assert count(stderr) == 1
    assert stderr.startswith("fanout_sync: a listener raised for a RunStart (shown once for each place; ")
    assert re.search(r'script.py", line \d+, in listener\n', stderr)
    assert stderr.endswith("AttributeError: 'RunStart' object has no attribute 'nonsense'\n")


def test_two_places_are_shown_twice(script: Any) -> None:
    """Another line, or another exception in the same line, is another place; another listener is not."""
    stderr = script("""
    def fail(error):
        raise error

    def listener(event):
        if isinstance(event, RunStart):
            fail(ValueError("one"))
        elif isinstance(event, RunEnd):
            fail(KeyError("two"))
        else:
            event.nonsense

    with EventChannel() as channel:
        channel.listen(listener)
        channel.listen(listener)
        Runner(EXECUTOR, event_tx=channel).run(make_specs(20))
    print("the end")
    """)
    assert count(stderr) == 3
    assert [stderr.count(error) for error in ("ValueError: one", "KeyError: 'two'", "AttributeError")] == [1, 1, 1]


def test_a_library_function_that_raises_is_not_the_place(script: Any) -> None:
    """Two lines of the user that fail in the same line of a library are two places."""
    stderr = script("""
    import json

    with EventChannel() as channel:
        channel.listen(lambda event: json.dumps(event))
        channel.listen(lambda event: json.dumps({event}))
        Runner(EXECUTOR, event_tx=channel).run(make_specs(2))
    print("the end")
    """)
    assert count(stderr) == 2


@pytest.mark.parametrize("backend", ["'thread'", "'process'", "ProcessBackend(capture_output=True)"])
def test_an_error_in_teardown_is_shown_once(backend: str, script: Any) -> None:
    """However many workers and runs it ends, on threads and in processes, whose records come to the caller."""
    stderr = script(f"{TEARDOWN}main({backend}, max_concurrency=3)\nprint('the end')")
    assert count(stderr) == 1
    assert "fanout_sync: teardown() of Torn raised" in stderr
    assert "in teardown\n" in stderr
    assert stderr.endswith("ValueError: torn\n")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_error_in_teardown_of_a_pools_process_is_shown(method: str, script: Any) -> None:
    """A process of somebody else's pool shows it itself, once."""
    stderr = script(f"""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    {textwrap.indent(TEARDOWN, "    ").strip()}

    if __name__ == "__main__":
        with ProcessPoolExecutor(1, mp_context=get_context("{method}")) as pool:
            main(pool)
        print("the end")
    """)
    assert count(stderr) == 1
    assert "fanout_sync: teardown() of Torn raised" in stderr


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize("is_function", [False, True])
def test_an_error_of_an_event_tx_is_shown_once(backend: str, is_function: bool, script: Any) -> None:
    """Of the user's own `send`, or of a function in its place, for events of the runner and of the steps."""
    stderr = script(f"""
    class Sink:
        def send(self, event):
            raise OSError("nobody there")

    def agent(spec, event_tx):
        event_tx.send(TextDelta(spec.task_id, "half"))
        return "done"

    sink = Sink()
    runner = Runner(FunctionExecutor({{"tester": agent}}), backend="{backend}", event_tx=sink{".send" * is_function})
    assert not runner.run(make_specs(5)).failed
    print("the end")
    """)
    assert count(stderr) == 1
    assert stderr.endswith("OSError: nobody there\n")


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_an_error_in_a_retry_strategy_is_shown_once(backend: str, script: Any) -> None:
    """The outcome has only its text; where it was raised is shown."""
    stderr = script(f"""
    def pick(error):
        return error.nonsense

    def fail(spec):
        raise ValueError("no")

    from tenacity import Retrying, retry_if_exception, stop_after_attempt
    retrying = Retrying(stop=stop_after_attempt(3), retry=retry_if_exception(pick))
    run = Runner(FunctionExecutor({{"tester": fail}}), backend="{backend}", retry=retrying).run(make_specs(5))
    assert "the retry strategy raised AttributeError" in run[0].output
    print("the end")
    """)
    assert stderr.count("fanout_sync: a retry strategy raised; ") == 1
    assert "in pick\n" in stderr


def test_an_input_whose_length_cannot_be_told_is_shown(script: Any) -> None:
    """An error in the `__len__` of the specs costs only the total, so nobody would know."""
    stderr = script("""
    class Specs:
        def __len__(self):
            raise ZeroDivisionError("how many?")
        def __iter__(self):
            return iter(make_specs(2))

    assert len(Runner(EXECUTOR).run(Specs()).succeeded) == 2
    print("the end")
    """)
    assert count(stderr) == 1
    assert "ZeroDivisionError: how many?" in stderr


def test_the_command_line_shows_them(tmp_path: Path) -> None:
    """So does `fanout-sync run`."""
    (tmp_path / "agents.py").write_text(f"{PREAMBLE}{TEARDOWN}\nexecutor = Torn({{'tester': answer}})\n")
    (tmp_path / "steps.jsonl").write_text('{"task_id":"t","agent":"tester","description":"","prompt":"p"}\n')
    for backend in ("thread", "process"):
        command = ["-m", "fanout_sync", "run", "steps.jsonl", "--executor", "agents.py:executor", "--backend", backend]
        done = run_python(*command, cwd=tmp_path)
        assert done.returncode == 0
        assert count(done.stderr) == 1
        assert "ValueError: torn" in done.stderr


def test_errors_that_are_raised_are_not_shown_as_well(script: Any) -> None:
    """What the caller gets as an exception or as an outcome stands nowhere else."""
    stderr = script("""
    def fail(spec):
        raise ValueError("no")

    assert len(Runner(FunctionExecutor({"tester": fail})).run(make_specs(2)).failed) == 2

    def specs():
        yield make_specs(1)[0]
        raise KeyError("input")

    try:
        Runner(EXECUTOR).run(specs())
    except InputError:
        print("the end")
    """)
    assert stderr == ""


def test_a_journal_that_fails_is_raised_and_not_shown(script: Any) -> None:
    """The `JournalError` has the reason."""
    stderr = script("""
    class Full(MemoryJournal):
        pass

    import fanout_sync.journal.run_journal as run_journal
    def fail(self):
        raise JournalError("the disk is full")
    run_journal.RunJournal.write = fail
    try:
        Runner(EXECUTOR, journal=Full()).run(make_specs(3))
    except JournalError as error:
        assert "the disk is full" in str(error)
        print("the end")
    """)
    assert stderr == ""


# Whether logging has them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "configure",
    [
        "logging.basicConfig()",
        "logging.getLogger('fanout_sync').addHandler(logging.StreamHandler())",
        "logging.getLogger('fanout_sync.events').addHandler(logging.StreamHandler())",
        "logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))",
    ],
    ids=["basicConfig", "package", "folder", "root"],
)
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_program_with_a_handler_sees_each_error_once(configure: str, backend: str, script: Any) -> None:
    """Then logging alone shows the errors, each time."""
    stderr = script(f"""
    {configure}
    calls = []
    def listener(event):
        calls.append(event)
        event.nonsense
    with EventChannel() as channel:
        channel.listen(listener)
        Runner(EXECUTOR, backend="{backend}", event_tx=channel).run(make_specs(20))
    assert len(calls) == 42
    print("the end")
    """)
    assert count(stderr) == 42
    assert "shown once" not in stderr


def test_a_teardown_in_a_worker_is_not_doubled(script: Any) -> None:
    """A record that a worker forwards is shown by the handler of the program alone."""
    stderr = script(f"{TEARDOWN}logging.basicConfig()\nmain('process', max_concurrency=1)\nprint('the end')")
    assert count(stderr) == 2
    assert stderr.count("ERROR:fanout_sync.workers.worker:teardown() of Torn raised") == 2


@pytest.mark.parametrize(
    ("configure", "shown"),
    [
        ("logging.getLogger().addHandler(logging.NullHandler())", 1),
        ("logging.getLogger('fanout_sync').addHandler(logging.NullHandler())", 1),
        ("handler = logging.StreamHandler(); handler.setLevel(60); logging.root.addHandler(handler)", 1),
        ("logging.getLogger('fanout_sync').propagate = False; logging.basicConfig()", 1),
        ("logging.getLogger('other').addHandler(logging.StreamHandler())", 1),
        ("logging.getLogger('fanout_sync').setLevel(60)", 0),
        ("logging.disable()", 0),
    ],
    ids=[
        "null on root",
        "null on package",
        "too high a level",
        "no propagation",
        "other logger",
        "silenced",
        "disabled",
    ],
)
def test_a_handler_that_takes_nothing_does_not_count(configure: str, shown: int, script: Any) -> None:
    """Errors are shown if no handler gets them; a program that sets a level wants to see nothing."""
    assert count(script(f"{configure}\n{LISTENER}")) == shown


# Standard error -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        "sys.stderr = None",
        "sys.stderr.close()",
        "os.close(2)",
        "sys.stderr = open('/dev/full', 'w')",
        "sys.stderr = object()",
        "sys.stderr = type('Exiting', (), {'write': lambda self, text: sys.exit(3), 'flush': print})()",
    ],
    ids=["none", "closed", "closed descriptor", "full", "no stream", "exits"],
)
def test_a_standard_error_that_cannot_be_written_to_costs_nothing(spoil: str, script: Any) -> None:
    """The run goes on, and all events are handled."""
    script(f"{spoil}\n{LISTENER.replace('print(', 'sys.stderr = None; print(')}")


def test_standard_error_is_looked_up_each_time(script: Any) -> None:
    """A program that replaces `sys.stderr` gets the errors there, also if its encoding lacks a character."""
    stderr = script("""
    import io
    def fail(event):
        raise ValueError("caf\\u00e9 \\ud800")
    raw = io.BytesIO()
    sys.stderr = io.TextIOWrapper(raw, encoding="ascii")
    Runner(EXECUTOR, event_tx=fail).run(make_specs(1))
    sys.stderr, ours = sys.__stderr__, sys.stderr
    assert raw.getvalue().rstrip().endswith(b"ValueError: caf\\\\xe9 \\\\ud800"), raw.getvalue()
    print("the end")
    """)
    assert stderr == ""


def test_errors_of_listeners_are_shown_when_the_program_ends(script: Any) -> None:
    """A listener that raises after the last line of the script is still heard of."""
    stderr = script("""
    def slow(event):
        time.sleep(0.3)
        event.nonsense
    channel = EventChannel()
    channel.listen(slow)
    channel.send(TextDelta("t", "last words"))
    print("the end", flush=True)
    """)
    assert count(stderr) == 1
    assert "'TextDelta' object has no attribute 'nonsense'" in stderr


def test_a_forked_child_shows_its_own_errors(script: Any) -> None:
    """A child shows what its parent has not shown before, and not what it has; so do children of steps in workers."""
    stderr = script("""
    def fail(event):
        raise ValueError(f"in {WHO}")

    def also(event):
        raise KeyError(WHO)

    def forks(spec):
        global WHO
        child = os.fork()
        if not child:
            WHO = "the child of a worker"
            Runner(EXECUTOR, event_tx=also).run(make_specs(1))
            os._exit(0)
        os.waitpid(child, 0)
        return "done"

    WHO = "parent"
    Runner(EXECUTOR, event_tx=fail).run(make_specs(1))
    child = os.fork()
    if not child:
        WHO = "child"
        for event_tx in (fail, also, also):
            Runner(EXECUTOR, event_tx=event_tx).run(make_specs(1))
        os._exit(0)
    os.waitpid(child, 0)
    assert not Runner(FunctionExecutor({"tester": forks}), backend="process").run(make_specs(1)).failed
    print("the end")
    """)
    assert re.findall(r"^\w+Error: (.*)$", stderr, re.MULTILINE) == ["in parent", "'child'", "'the child of a worker'"]


# The handler alone ----------------------------------------------------------------------------------------------------


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """A logger with the handler, which takes those of the test framework for none."""
    logger = logging.getLogger("a logger of its own")
    handler = LastResort()
    logger.addHandler(handler)
    monkeypatch.setattr("fanout_sync.last_resort._is_taken", lambda record: False)
    yield logger
    logger.removeHandler(handler)


def test_warnings_without_an_error_are_shown_once_for_each_text(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warning has no place of the user's; what it says tells it from others. Below a warning nothing is shown."""
    for name in ("a", "b", "a", "b"):
        logger.warning("%s is slow", name)
        logger.info("%s is fine", name)
    assert capsys.readouterr().err == "fanout_sync: a is slow\nfanout_sync: b is slow\n"


def test_a_record_that_cannot_be_formatted_costs_nothing(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not shown, and the handler raises nothing."""

    class Unprintable:
        def __str__(self) -> str:
            raise SystemExit("no text")

    (handler,) = logger.handlers
    handler.handle(logging.makeLogRecord({"msg": Unprintable(), "levelno": logging.ERROR}))
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("text",), "levelno": logging.ERROR}))
    assert capsys.readouterr().err == ""


def test_the_memory_of_places_is_bounded(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After many places all are forgotten, so one of them can be shown again."""
    monkeypatch.setattr("fanout_sync.last_resort.MOST_PLACES", 3)
    for text in "abcada":
        logger.warning(text)
    assert capsys.readouterr().err.split("fanout_sync: ") == ["", "a\n", "b\n", "c\n", "d\n", "a\n"]


def test_a_cell_that_is_run_again_shows_its_errors_again(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook, each execution of a cell counts as a place of its own."""
    shell = SimpleNamespace(execution_count=1)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    for shell.execution_count in (1, 1, 2, 2):
        logger.warning("again")
    assert capsys.readouterr().err == "fanout_sync: again\n" * 2


def test_importing_the_package_does_not_import_logging() -> None:
    """The handler is installed when the first name is used, not before."""
    code = "import sys, fanout_sync; before = 'logging' in sys.modules; fanout_sync.Runner; print(before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
