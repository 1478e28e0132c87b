"""The error classes: their tree, their messages, and pickling."""

from __future__ import annotations

import inspect
import pickle
import re
import traceback
from types import MappingProxyType

import pytest
from naming import without_address

from fanout_sync import Run, StepError, errors
from fanout_sync.errors import (
    ExecutorNotPicklable,
    FanoutError,
    FanoutInterrupted,
    InputError,
    JournalConflict,
    JournalError,
    OptionError,
    UnknownOption,
    WireError,
)

CLASSES = {
    error_class
    for _, error_class in inspect.getmembers(errors, inspect.isclass)
    if error_class.__module__ == errors.__name__ and issubclass(error_class, FanoutError)
}

RUN = Run([], 0.0)
SAMPLES: list[FanoutError] = [
    FanoutError("something"),
    WireError("expected a string, got null"),
    WireError("expected a string, got null", "structured.items[3]"),
    WireError("expected a string, got null", "agent", "specs.jsonl", 7),
    WireError("no valid JSON", "", "specs.jsonl", 7),
    WireError("an instance of set", "structured", "out.jsonl"),
    OptionError("timeout must be positive, got -1"),
    UnknownOption("there is no option 'timout'; did you mean 'timeout'?"),
    InputError("item 3 is no AgentStepSpec", RUN),
    ExecutorNotPicklable("executor.client.lock", "cannot pickle '_thread.lock' object"),
    ExecutorNotPicklable("executor.client.lock", "cannot pickle '_thread.lock' object", "Share it.", is_copy=True),
    ExecutorNotPicklable("executor", "it raised ValueError: no", "Use threads.", "Traceback …", RUN),
    JournalError("runs.db: cannot be written, the disk is full"),
    JournalError("runs.db: cannot be written, the disk is full", RUN),
    JournalConflict("1 step has changed", {"a": ("prompt",)}),
    JournalConflict("1 step has changed", {"a": ("prompt", "agent"), "b": ()}, RUN),
    FanoutInterrupted(RUN),
]


@pytest.mark.parametrize("error", SAMPLES, ids=without_address)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickle(error: FanoutError, protocol: int) -> None:
    """An unpickled error has the same class, text, arguments and attributes."""
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)


def test_every_error_has_a_sample() -> None:
    """Every class of errors.py is in the samples of the pickle test."""
    assert {type(error) for error in SAMPLES} == CLASSES


def test_the_drawn_tree_matches_the_classes() -> None:
    """The docstring of errors.py has exactly the classes of the module, each with its base and its builtin base."""
    drawn: dict[str, tuple[str, ...]] = {}
    parents: dict[int, str] = {}
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        match = re.match(r"(?P<indent>    [ │├└─]*)(?P<name>[A-Z]\w+)(?: \((?P<builtin>\w+)\))?", line)
        if match:
            depth = len(match["indent"])
            parents[depth] = match["name"]
            drawn[match["name"]] = tuple(filter(None, (parents.get(depth - 4, "BaseException"), match["builtin"])))
    assert drawn == {
        error_class.__name__: tuple(base.__name__ for base in error_class.__bases__) for error_class in CLASSES
    }


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (WireError("r"), ValueError),
        (OptionError("r"), ValueError),
        (UnknownOption("r"), ValueError),
        (UnknownOption("r"), TypeError),
        (ExecutorNotPicklable("executor", "r"), TypeError),
        (FanoutInterrupted(RUN), KeyboardInterrupt),
    ],
    ids=without_address,
)
def test_errors_can_be_caught_as_their_builtin(error: FanoutError, builtin: type[BaseException]) -> None:
    """An error is both a `FanoutError` and the builtin error."""
    assert isinstance(error, builtin)
    assert isinstance(error, FanoutError)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WireError("got null"), "got null"),
        (WireError("got null", "agent"), "agent: got null"),
        (WireError("got null", "agent", "specs.jsonl"), "specs.jsonl: agent: got null"),
        (WireError("got null", "agent", "specs.jsonl", 7), "specs.jsonl:7: agent: got null"),
        (WireError("no valid JSON", "", "specs.jsonl", 7), "specs.jsonl:7: no valid JSON"),
        (InputError("item 3 is no AgentStepSpec", RUN), "item 3 is no AgentStepSpec"),
    ],
)
def test_messages_begin_with_file_line_and_field(error: FanoutError, message: str) -> None:
    """A message has file, line and field before the reason, as compilers do; unknown ones are left out."""
    assert str(error) == message


def test_executor_not_picklable_says_what_to_do() -> None:
    """The message names the attribute at fault and the two solutions."""
    message = str(ExecutorNotPicklable("executor.client.lock", "cannot pickle '_thread.lock' object"))
    assert message.startswith("executor.client.lock cannot be sent to a worker process: cannot pickle")
    assert "setup()" in message
    assert "backend='thread'" in message


def test_executor_that_cannot_be_copied_says_so() -> None:
    """The message names the attribute at fault, and ends with the advice."""
    error = ExecutorNotPicklable("executor.lock", "cannot pickle '_thread.lock' object", "Share it.", is_copy=True)
    assert str(error).startswith("executor.lock cannot be copied for each worker thread: cannot pickle")
    assert str(error).endswith("Share it.")
    assert error.with_run(RUN).is_copy


def test_executor_not_picklable_with_advice_of_its_own() -> None:
    """The message ends with the advice, and the error can be raised again with the run of the round before."""
    error = ExecutorNotPicklable("executor.file", "it is an open file", "Keep its path.", "Traceback …")
    error.__cause__ = ValueError()
    assert str(error) == "executor.file cannot be sent to a worker process: it is an open file. Keep its path."
    assert (error.traceback, error.run) == ("Traceback …", None)
    again = error.with_run(RUN)
    assert (str(again), again.traceback, again.run) == (str(error), error.traceback, RUN)
    assert again.__cause__ is error.__cause__


def test_attributes_are_the_arguments() -> None:
    """Programs can read the arguments of an error as attributes."""
    error = WireError("got null", "agent", "specs.jsonl", 7)
    assert (error.reason, error.field, error.source, error.line) == ("got null", "agent", "specs.jsonl", 7)
    plain = WireError("got null")
    assert (plain.field, plain.source, plain.line) == ("", None, None)
    refused = InputError("item 3 is no AgentStepSpec", RUN)
    assert (refused.reason, refused.run) == ("item 3 is no AgentStepSpec", RUN)
    full = JournalError("the disk is full", RUN)
    assert (full.reason, full.run, str(full)) == ("the disk is full", RUN, "the disk is full")
    changed = JournalConflict("1 step has changed", MappingProxyType({"a": ("prompt",)}))
    assert (changed.reason, changed.conflicts, changed.run) == ("1 step has changed", {"a": ("prompt",)}, None)
    stuck = ExecutorNotPicklable("executor.lock", "it is a lock")
    assert (stuck.path, stuck.reason, stuck.is_copy) == ("executor.lock", "it is a lock", False)


def test_only_an_interrupt_is_no_exception() -> None:
    """`except Exception` catches every error except `FanoutInterrupted`, as for Python's `KeyboardInterrupt`."""
    assert all(issubclass(kind, Exception) == (kind is not FanoutInterrupted) for kind in CLASSES - {FanoutError})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_builtin_errors_that_are_short_in_notebooks_are_builtins_elsewhere(protocol: int) -> None:
    """By name, to `except`, and when they are unpickled."""
    with pytest.raises(KeyError) as caught:
        RUN["t0"]
    assert "".join(traceback.format_exception_only(caught.value)).startswith("KeyError: ")
    assert StepError.of(caught.value).type == "KeyError"
    again = pickle.loads(pickle.dumps(caught.value, protocol))
    assert (type(again), again.args) == (KeyError, caught.value.args)
