"""What a notebook shows of an error of this package: where the cell is wrong, and the message, in ten lines."""

from __future__ import annotations

import re
import textwrap
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import frozen
from bounds import HANG_BOUND_S
from command_line import ENVIRONMENT

from fanout_sync import ExecutorNotPicklable, InputError, OptionError, Run, Runner
from fanout_sync.tracebacks import MAX_NOTEBOOK_LINES

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # jupyter_client's own

FIRST_CELL = """
    import os
    import signal
    import threading
    from fanout_sync import AgentStepSpec, FunctionExecutor, Retry, Runner, current_step
    from fanout_sync import Budget, EventChannel, StepOutcome, TextDelta, execute_loop, execute_pipeline, fanout_stream
    from fanout_sync.testing import make_specs

    def interrupt(spec):
        os.kill(os.getpid(), signal.SIGINT)
        current_step().cancelled.wait()

    executor = FunctionExecutor({"tester": lambda spec: spec.prompt, "interrupter": interrupt})
    locked = FunctionExecutor({"tester": lambda spec: spec.prompt})
    locked.client = {"lock": threading.Lock()}

    def broken_input():
        yield from make_specs(2)
        raise LookupError("no more rows")

    def make_runner(**options):
        return Runner(executor, **options)
"""

RAISED_IN_INPUT = "InputError: the input raised after 2 specs: LookupError: no more rows"

CELLS = [
    ("make_runner().run(make_specs(2, 'interrupter'))", "FanoutInterrupted: interrupted: "),
    ("list(make_runner().stream(make_specs(2, 'interrupter')))", "FanoutInterrupted: interrupted: "),
    ("make_runner(max_concurrency=0)", "OptionError: max_concurrency must be an int of at least 1, got int 0"),
    ("Runner(executor, workers=3)", "UnknownOption: Runner has no option 'workers'"),
    ("Retry(attempts=0)", "OptionError: attempts of Retry must be an int of at least 1, got int 0"),
    ("make_runner().run(broken_input())", RAISED_IN_INPUT),
    ("for outcome in make_runner().stream(broken_input()):\n    pass", RAISED_IN_INPUT),
    ("make_runner().run(3)", "InputError: "),
    ("execute_pipeline(executor, [1], [])", "OptionError: stages must be a list of at least one function, got none"),
    ("execute_loop(executor, make_specs(1), 2, lambda run: 1 / 0)", "InputError: next_round raised ZeroDivisionError"),
    ("Runner(locked, backend='process').run(make_specs(2))", "ExecutorNotPicklable: executor.client['lock'] cannot be"),
    ("make_runner(journal='run.db').run(make_specs(1) * 2)", "JournalConflict: two specs of one journalled run have"),
    ("AgentStepSpec.from_json('{}')", "WireError: "),
    ("Budget(5)", "UnknownOption: Budget takes its limits by name"),
    ("AgentStepSpec(1, 'a', '', 'p')", "TypeError: task_id must be a str"),
    ("AgentStepSpec('1', 'a', '', 'p', -1)", "ValueError: max_steps must be between"),
    ("StepOutcome('1', 's', 'a', None, True)", "TypeError: output must be a str"),
    ("TextDelta('1', 2)", "TypeError: text must be str, got 2"),
    ("EventChannel().listen(5)", "TypeError: callback must be callable"),
    ("EventChannel().send(5)", "TypeError: event must be an Event, got int"),
    ("make_runner().run(make_specs(2))['77']", "KeyError: \"no step of this run has the task_id '77'\""),
    ("make_runner().run(make_specs(2))[77]", "IndexError: there is no step 77 in a run of 2 steps"),
    ("make_runner().run(make_specs(2))[1.5]", "TypeError: a run has an int, a slice or a task_id as index"),
    ("current_step()", "RuntimeError: no step is running here"),
    ("list(fanout_stream(abs, [1], task_id=lambda item, index: 5))", "InputError: task_id(items[0], 0) must return a"),
]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    from jupyter_client.manager import start_new_kernel

    folder = tmp_path_factory.mktemp("notebook")
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder), env=ENVIRONMENT)
    try:
        notebook = Notebook(client)
        assert notebook.run(FIRST_CELL) is None
        yield notebook
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@frozen
class Notebook:
    """A notebook that runs."""

    client: Any

    def run(self, cell: str) -> list[str] | None:
        """Run a cell; return the lines that are shown of the error with which it ends, without colours."""
        shown: list[str] = []

        def note(message: dict[str, Any]) -> None:
            if message["msg_type"] == "error":
                shown.extend("\n".join(message["content"]["traceback"]).splitlines())

        reply = self.client.execute_interactive(textwrap.dedent(cell), timeout=HANG_BOUND_S, output_hook=note)
        if reply["content"]["status"] == "ok":
            return None
        return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in shown]


@pytest.mark.parametrize(("cell", "message"), CELLS)
def test_an_error_is_shown_in_ten_lines(cell: str, message: str, notebook: Notebook) -> None:
    """It has the line of the cell and the message, and nothing of this package."""
    shown = notebook.run(cell)
    assert shown is not None
    assert len(shown) <= 10
    assert shown[0].endswith("Traceback (most recent call last)")
    assert re.fullmatch(r"Cell In\s?\[\d+\], line 1", shown[1])
    assert shown[2] == f"----> 1 {cell.splitlines()[0]}"
    assert shown[-1].startswith(message)
    assert not any("/fanout_sync/" in line for line in shown)


def test_the_line_of_the_cause_is_shown(notebook: Notebook) -> None:
    """Of an input that raised, the line that raised."""
    shown = notebook.run("make_runner().run(broken_input())")
    assert shown is not None
    assert '----> 15 raise LookupError("no more rows")' in [re.sub(r"> \d+", "> 15", line) for line in shown]


def test_the_function_that_calls_is_shown(notebook: Notebook) -> None:
    """Besides the line of the cell."""
    shown = notebook.run("make_runner(max_concurrency=0)")
    assert shown is not None
    assert shown[3].endswith(", in make_runner")
    assert shown[4].endswith("return Runner(executor, **options)")


def test_a_message_of_many_lines_is_cut() -> None:
    """Its beginning says what is wrong, and its end what to do."""
    reason = "\n".join(["first", *["more"] * 50])
    error = ExecutorNotPicklable("executor", reason, "Do something else.")
    shown = error._render_traceback_()
    assert len(shown) <= MAX_NOTEBOOK_LINES == 10
    assert shown[1].endswith("first")
    assert shown[-1].endswith("Do something else.")
    assert InputError("short", Run([], 0.0))._render_traceback_()[-1] == "InputError: short"


def test_a_script_shows_pythons_own_traceback() -> None:
    """With the frames of this package."""
    with pytest.raises(OptionError) as caught:
        Runner(3)  # type: ignore[arg-type]
    assert "/fanout_sync/" in "".join(traceback.format_exception(caught.value))
