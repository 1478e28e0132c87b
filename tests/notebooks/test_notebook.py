"""A notebook in a real kernel: bars, displays, and a handle that goes on when a cell is interrupted."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from attrs import frozen
from kernels import INTERRUPT_NOW, WIDGET, WIDGETS, execute, notebook_of
from nbformat import NotebookNode

pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning"),  # jupyter_client's own
    pytest.mark.xdist_group("notebooks"),  # so that a kernel serves all tests of a module
]

CELLS = {
    "prepare": """
        import time
        import warnings
        from pathlib import Path

        from fanout_sync import *

        warnings.simplefilter("error")

        def work(spec):
            if spec.prompt == "bad":
                raise ValueError("<script>alert(1)</script>")
            return StepOutcome.completed(spec, spec.prompt, {"said": spec.prompt})

        def wait(spec):
            # Goes on when a cell makes a file with the name of the step.
            while not Path(spec.task_id).exists():
                time.sleep(0.01)
            return work(spec)

        def let_go(*task_ids):
            for task_id in task_ids:
                Path(task_id).touch()

        def specs_of(agent, *prompts):
            return [AgentStepSpec(f"{agent}{n}", agent, "", prompt) for n, prompt in enumerate(prompts)]

        executor = FunctionExecutor({"work": work, "wait": wait})
        runner = Runner(executor, backend=BACKEND, max_concurrency=4, on_interrupt="raise")
    """,
    "bar": "run = Runner(executor, backend=BACKEND, progress=True).run(specs_of('work', 'one', 'bad', 'three'))",
    "bar-of-a-stream": """
        for outcome in Runner(executor, progress=True).stream(spec for spec in specs_of("work", "one", "two")):
            print(outcome.output)
    """,
    "bar-of-a-pipeline": """
        stages = [lambda outcome, item: AgentStepSpec(item, "work", "", item)]
        outcomes = Runner(executor, progress=True).pipeline(["one", "two", "three", "four"], stages)
    """,
    "run": "run",
    "outcome": "run[0]",
    "record": "run.records[1]",
    "stream": """
        stream = runner.stream(specs_of("work", "one", "two"))
        first = next(stream)
        stream
    """,
    "nothing": "runner.run([])",
    "many": "fanout_map(str, range(10_000))",
    "handle": """
        handle = runner.start(specs_of("wait", "one", "bad", "three", "four"))
        handle
    """,
    "meanwhile": """
        let_go("wait0", "wait1")
        while len(handle.snapshot()) < 2:
            time.sleep(0.01)
        handle.snapshot()
    """,
    "interrupted": f"""
        print({INTERRUPT_NOW!r}, flush=True)
        handle.result()
    """,
    "undisturbed": """
        print("running:", handle.progress().running)
        let_go("wait2", "wait3")
        handle.result()
    """,
    "the-end": """
        print(handle.result().values(), len(handle.result().retry_failed().failed))
        handle
    """,
}


@frozen
class Executed:
    """A notebook that was executed."""

    notebook: NotebookNode
    updates: list[dict[str, Any]]
    has_widgets: bool

    def outputs(self, cell_id: str) -> list[dict[str, Any]]:
        (cell,) = [cell for cell in self.notebook.cells if cell["id"] == cell_id]
        return list(cell.outputs)

    def text(self, cell_id: str, name: str) -> str:
        """Return what a cell has written to standard output or standard error."""
        return "".join(each["text"] for each in self.outputs(cell_id) if each.get("name") == name)

    def html(self, cell_id: str) -> str:
        (shown,) = [each["data"]["text/html"] for each in self.outputs(cell_id) if "data" in each]
        assert isinstance(shown, str)
        return shown

    def bar(self, cell_id: str) -> str:
        """Return the text of the bar of a cell, as it was in the end."""
        widgets = [each["data"][WIDGET] for each in self.outputs(cell_id) if WIDGET in each.get("data", {})]
        if not self.has_widgets:
            assert widgets == []
            (line,) = self.text(cell_id, "stderr").splitlines()
            return line
        assert self.text(cell_id, "stderr") == ""
        (box,) = widgets
        return " ".join(self._texts_of(box["model_id"]))

    def _texts_of(self, model_id: str) -> list[str]:
        states = self.notebook.metadata.widgets[WIDGETS]["state"]
        state = states[model_id]["state"]
        children = [child.removeprefix("IPY_MODEL_") for child in state.get("children", ())]
        if children:
            return [text for child in children for text in self._texts_of(child)]
        if states[model_id]["model_name"] == "FloatProgressModel":
            return [f"<{state['bar_style']} {state['value']:.0f} of {state['max']:.0f}>"]
        return [html.unescape(state["value"]).replace("\u2007", " ").strip()]


@pytest.fixture(scope="module", params=[(True, "thread"), (False, "process")], ids=["widgets", "no widgets"])
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """Execute the notebook: with widgets on threads, without them on processes."""
    has_widgets, backend = request.param
    notebook = notebook_of({name: source.replace("BACKEND", repr(backend)) for name, source in CELLS.items()})
    for cell in notebook.cells:
        if cell["id"] == "interrupted":
            cell.metadata.tags = ["raises-exception"]
    updates_of = execute(notebook, tmp_path_factory.mktemp("notebook"), with_widgets=has_widgets)
    return Executed(notebook, updates_of("handle"), has_widgets)


def test_a_bar_is_a_widget_or_text(executed: Executed) -> None:
    """At its end it has all steps and the counts; without ipywidgets nothing warns."""
    bar = executed.bar("bar")
    if executed.has_widgets:
        assert re.fullmatch(r"100% <success 3 of 3> 3/3 \[00:\d\d<00:00,.*, failed=1\]", bar)
    else:
        assert re.match(r"100%\|█+\| 3/3 \[00:\d\d<00:00, .*, failed=1\]", bar)
    assert executed.text("bar", "stdout") == ""


def test_streams_and_pipelines_have_bars(executed: Executed) -> None:
    """Of a generator one without an end, and of a pipeline one of its items."""
    bar = executed.bar("bar-of-a-stream")
    assert re.search(r"\b2(step|/\?) \[", bar)
    assert executed.text("bar-of-a-stream", "stdout") == "one\ntwo\n"
    assert re.search(r"4/4 \[", executed.bar("bar-of-a-pipeline"))


def test_a_run_is_a_table(executed: Executed) -> None:
    """With the failed step first; nothing of what it said is markup."""
    shown = executed.html("run")
    assert shown.index("✗ raised") < shown.index("✓ succeeded")
    assert shown.count("<tr ") == 3
    assert "ValueError: &lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "<script" not in shown
    (result,) = executed.outputs("run")
    assert re.fullmatch(r"<Run of 3 steps, 1 failed, \S+ s>", result["data"]["text/plain"])


def test_outcomes_records_and_streams_are_tables(executed: Executed) -> None:
    """Each with what it knows."""
    assert "{&quot;said&quot;:&quot;one&quot;}" in executed.html("outcome")
    record = executed.html("record")
    assert "<details><summary>show</summary>" in record
    assert "raise ValueError(" in record
    stream = executed.html("stream")
    assert stream.startswith("<div>A stream that has not ended")
    assert stream.count("✓ succeeded") == 1


def test_runs_of_any_size_are_shown(executed: Executed) -> None:
    """One of nothing says so, and one of ten thousand steps has twenty rows."""
    assert "nothing to do" in executed.html("nothing")
    many = executed.html("many")
    assert many.count("✓ succeeded") == 20
    assert "… and 9980 more: 9980 succeeded" in many


def test_a_handle_is_one_output_that_follows_its_run(executed: Executed) -> None:
    """The output of the first cell that shows it is replaced, and has the end of the run in the end."""
    texts = [re.sub(r"<[^>]+>", "", update["text/html"]) for update in executed.updates]
    assert texts[0].startswith("running: 0 of 4 steps done")
    assert texts[-1].startswith("done: 4 of 4 steps done · 1 failed · ")
    assert executed.html("handle") == executed.updates[-1]["text/html"]
    assert executed.html("the-end") == executed.updates[-1]["text/html"], "a handle of a run that has ended"
    assert executed.html("meanwhile").count("<tr ") == 2


def test_an_interrupted_cell_leaves_the_handle_alone(executed: Executed) -> None:
    """The cell ends, the run goes on, and its result is complete."""
    (error,) = [each for each in executed.outputs("interrupted") if each["output_type"] == "error"]
    assert error["ename"] == "KeyboardInterrupt"
    assert executed.text("undisturbed", "stdout") == "running: 2\n"
    result = executed.html("undisturbed")
    assert [result.count(mark) for mark in ("✓ succeeded", "✗ raised", "✗ cancelled")] == [3, 1, 0]
    assert executed.text("the-end", "stdout") == "[{'said': 'one'}, None, {'said': 'three'}, {'said': 'four'}] 1\n"


def test_nothing_else_is_written(executed: Executed) -> None:
    """No cell but those with bars writes to standard error."""
    others = [name for name in CELLS if not name.startswith("bar")]
    assert {executed.text(name, "stderr") for name in others} == {""}
