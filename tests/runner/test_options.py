"""The options of a runner: how functions pass them on, what they are called elsewhere, and how a runner is shown."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import fanout_sync
from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    Continue,
    FunctionExecutor,
    InputError,
    JournalConflict,
    MemoryJournal,
    OptionError,
    Runner,
    SqliteJournal,
    StepOutcome,
    UnknownOption,
    Workflow,
    execute_loop,
    execute_pipeline,
    execute_steps_parallel,
    execute_steps_parallel_resumable,
    fanout_map,
    fanout_stream,
)
from fanout_sync.runner import options
from fanout_sync.testing import make_specs

ECHO = FunctionExecutor({"tester": lambda spec: spec.prompt})
FUNCTIONS: list[Callable[..., Any]] = [
    *(execute_steps_parallel, execute_steps_parallel_resumable, execute_pipeline, execute_loop),
    *(fanout_map, fanout_stream),
]


def _keywords(function: Any) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: each for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY}


# What functions pass on -----------------------------------------------------------------------------------------------


def test_the_types_of_the_options_are_those_of_the_runner() -> None:
    """What type checkers read of the functions has every option of `Runner`, with the same type."""
    declared = {
        name: annotation if isinstance(annotation, str) else annotation.__forward_arg__
        for name, annotation in options.Options.__annotations__.items()
    }
    assert declared == {name: each.annotation for name, each in _keywords(Runner).items()}
    assert set(options.OPTIONS) == set(_keywords(Runner))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_help_shows_every_option(function: Callable[..., Any]) -> None:
    """The signature of a function has each option of `Runner` with its default, in the place of `**options`."""
    shown = inspect.signature(function).parameters
    for name, option in _keywords(Runner).items():
        if name not in ("journal", "event_tx", "on_conflict"):  # some functions have parameters of their own for them
            assert shown[name] == option
    assert {"journal", "event_tx", "on_conflict"} <= set(shown)
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in shown.values())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_options_that_a_function_takes_are_those_that_it_shows(function: Callable[..., Any]) -> None:
    """The message about an option that does not exist names those that help shows."""
    required = [
        None for each in inspect.signature(function).parameters.values() if each.default is inspect.Parameter.empty
    ]
    with pytest.raises(UnknownOption, match="has no option 'no_such_option'; it takes ") as refused:
        function(*required, no_such_option=1)
    named = str(refused.value).partition("it takes ")[2].split(", ")
    assert set(named) <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    "name",
    [
        *("max_workers", "n_jobs", "num_workers", "processes", "workers", "n_workers", "threads", "concurrency"),
        *("njobs", "nworkers", "max_worker", "n_threads", "num_processes", "n_processes", "pool_size", "parallel"),
        *("max_parallel", "num_threads", "jobs", "parallelism"),
    ],
)
def test_the_bound_as_others_call_it(name: str) -> None:
    """What other libraries call `max_concurrency` gets a hint that says so, everywhere."""
    for call in (lambda given: Runner(ECHO, **given), lambda given: execute_steps_parallel(ECHO, [], **given)):
        with pytest.raises(UnknownOption, match=rf"no option '{name}' \(did you mean max_concurrency\?\)"):
            call({name: 4})


def test_retries_as_others_call_them() -> None:
    """So does what others call `retry`."""
    with pytest.raises(UnknownOption, match=r"no option 'max_retries' \(did you mean retry\?\)"):
        fanout_map(abs, [1], max_retries=4)  # type: ignore[call-arg]  # its name is retry


# on_conflict ----------------------------------------------------------------------------------------------------------


def _changed() -> list[AgentStepSpec]:
    return [AgentStepSpec("t0", "tester", "step 0", "changed")]


@pytest.mark.parametrize("make", [lambda path: path, SqliteJournal, lambda path: MemoryJournal()])
def test_a_runner_reruns_what_has_changed(tmp_path: Path, make: Callable[[str], Any]) -> None:
    """`Runner(on_conflict="rerun")` does what the message of `JournalConflict` says."""
    journal = make(f"{tmp_path}/run.db")
    Runner(ECHO, journal=journal).run(make_specs(1))
    with pytest.raises(JournalConflict, match="on_conflict='rerun'"):
        Runner(ECHO, journal=journal).run(_changed())
    assert Runner(ECHO, journal=journal, on_conflict="rerun").run(_changed())[0].output == "changed"
    assert execute_steps_parallel(ECHO, make_specs(1), journal=journal, on_conflict="rerun")[0].output == "0"


@pytest.mark.parametrize(("of_workflow", "of_runner"), [("rerun", "refuse"), ("refuse", "rerun"), ("rerun", "rerun")])
def test_either_place_is_enough(of_workflow: Any, of_runner: Any) -> None:
    """A workflow that may rerun does, and so does one whose runner may."""
    workflow: Workflow = MemoryJournal().workflow("nightly", of_workflow)
    Runner(ECHO, journal=workflow).run(make_specs(1))
    assert Runner(ECHO, journal=workflow, on_conflict=of_runner).run(_changed())[0].output == "changed"
    assert workflow.on_conflict == of_workflow


def test_what_on_conflict_cannot_mean() -> None:
    """There are two words; and without a journal there are no conflicts."""
    with pytest.raises(OptionError, match="on_conflict must be 'refuse' or 'rerun', got str 'overwrite'"):
        Runner(ECHO, journal=MemoryJournal(), on_conflict="overwrite")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(OptionError, match="on_conflict='rerun' needs a journal"):
        Runner(ECHO, on_conflict="rerun")
    Runner(ECHO, on_conflict="refuse")


# What is shown --------------------------------------------------------------------------------------------------------


def test_a_runner_says_what_it_is() -> None:
    """Its `repr` has executor, backend and bound."""
    assert repr(Runner(ECHO)) == "<Runner of FunctionExecutor on ThreadBackend, at most 8 at once>"
    shown = repr(Runner(ECHO, backend="process", max_concurrency=3))
    assert shown == "<Runner of FunctionExecutor on ProcessBackend, at most 3 at once>"
    with ThreadPoolExecutor(1) as pool:
        assert "on ThreadPoolExecutor, at most 8 at once" in repr(Runner(ECHO, backend=pool))


class WithoutHint(AgentExecutor):
    def concurrency_hint(self) -> int:
        raise LookupError("not yet")

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        raise NotImplementedError


def test_a_runner_can_always_be_shown() -> None:
    """A hint that raises is an error of a run, and not of whoever looks at the runner."""
    assert repr(Runner(WithoutHint())) == "<Runner of WithoutHint on ThreadBackend, its bound is not known>"


def test_the_version() -> None:
    """`__version__` is the one of the installed package, and is read only when asked for."""
    assert fanout_sync.__version__ == metadata.version("fanout_sync")
    code = "import sys, fanout_sync; print('importlib.metadata' in sys.modules); fanout_sync.__version__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_the_version_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen program may have left out what says which version it is."""

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert fanout_sync.__version__ == "0+unknown"


# Input that is no list of specs ---------------------------------------------------------------------------------------

ONE = make_specs(1)[0]
WAYS: list[Callable[[Any], Any]] = [
    lambda specs: Runner(ECHO).run(specs),
    lambda specs: list(Runner(ECHO).stream(specs)),
    lambda specs: Runner(ECHO).loop(specs, 2, lambda outcomes: Continue([])),
    lambda specs: Runner(ECHO, journal=MemoryJournal()).run(specs),
    lambda specs: execute_steps_parallel(ECHO, specs),
    lambda specs: execute_steps_parallel_resumable(ECHO, specs, "nightly", MemoryJournal()),
    lambda specs: execute_loop(ECHO, specs, 2, lambda outcomes: Continue([])),
    lambda specs: Runner(ECHO).loop(make_specs(1), 2, lambda outcomes: Continue(specs)),
]


@pytest.mark.parametrize("way", [*WAYS, lambda specs: Runner(ECHO).pipeline(specs, [lambda outcome, item: ONE])])
def test_one_spec_is_no_list(way: Callable[[Any], Any]) -> None:
    """The message says what to do with a single spec."""
    with pytest.raises(InputError, match=r"got one AgentStepSpec; put it into a list: \[spec\]"):
        way(ONE)


def _texts() -> Iterator[str]:
    yield "a question"


@pytest.mark.parametrize("way", WAYS)
def test_texts_are_no_specs(way: Callable[[Any], Any]) -> None:
    """The message says how texts are run."""
    hint = r"make each an AgentStepSpec\(…\), or use fanout_map\(function, strings\)"
    for texts in (["a question"], _texts()):
        with pytest.raises(InputError, match=rf"specs\[0\] is str 'a question', expected an AgentStepSpec: {hint}"):
            way(texts)
    with pytest.raises(InputError, match=r"specs\[0\] is int 3, .* or use fanout_map\(function, items\)"):
        way([3])
    with pytest.raises(InputError, match=r"specs\[0\] is dict .* AgentStepSpec.from_dict makes one from a mapping"):
        way([{"task_id": "t0"}])


def test_one_text_is_no_list_of_specs() -> None:
    """A single text is not taken for its characters."""
    way_out = r"; make an AgentStepSpec\(…\) of it, and put that into a list; or use fanout_map\(function, \[text\]\)"
    text: Any
    for text in ("a question", b"bytes"):
        got = f"got {type(text).__name__} {text!r}{way_out}"
        for way in WAYS[:-1]:
            with pytest.raises(InputError, match=f"specs must be an iterable of AgentStepSpec, {got}"):
                way(text)
        with pytest.raises(InputError, match=f"next_round must return Continue with an iterable of specs, {got}"):
            WAYS[-1](text)


def test_a_round_of_nothing() -> None:
    """`Continue(None)` is told how a loop ends."""
    nothing: Any = None
    with pytest.raises(InputError, match=r"Continue with an iterable of specs, got None; .* return Stop\(\)"):
        Runner(ECHO).loop(make_specs(1), 2, lambda outcomes: Continue(nothing))


def test_functions_of_other_arguments_are_refused() -> None:
    """Stages and `next_round`, before any step runs; and a single stage is put into a list."""
    one: Any = lambda item: None  # noqa: E731 - what is refused
    with pytest.raises(OptionError, match=r"stages\[1\] must take \(outcome, item\), but its signature is \(item\)"):
        execute_pipeline(ECHO, [1], [lambda outcome, item: None, one])
    with pytest.raises(OptionError, match=r"stages must be a list of functions, got .*; put it into a list: \[stage\]"):
        execute_pipeline(ECHO, [1], one)
    none: Any = lambda: Continue([])  # noqa: E731 - what is refused
    with pytest.raises(OptionError, match=r"next_round must take \(outcomes\), but its signature is \(\)"):
        execute_loop(ECHO, make_specs(1), 2, none)
