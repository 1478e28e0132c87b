"""Loading what an executor was pickled to, in the process that runs its steps."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from ...errors import OptionError
from ...executors.executor import AgentExecutor
from ...records.status import StepError
from .sent_modules import load_late

if TYPE_CHECKING:
    from ...retry.policy import RetryRule

Name = Literal["executor", "retry"]
"""What is loaded, by the name of the argument of `Runner`."""

NOUNS = {"executor": "the executor", "retry": "the retry strategy"}


_loads = 0


@contextmanager
def loading() -> Iterator[None]:
    """Note, in the `with` block, that this process loads what was sent to it: modules may be imported for that."""
    global _loads
    _loads += 1
    try:
        yield
    finally:
        _loads -= 1


def refuse_while_loading() -> None:
    """Refuse to start worker processes while this process loads what was sent to it: its workers would do the same.

    Raises:
        OptionError: It does.
    """
    if _loads:
        raise OptionError(
            "backend='process' cannot be used while a worker process imports the module that uses it, because its own "
            "workers would import it, too, and so on: start the run in a function, or below "
            "`if __name__ == '__main__':`"
        )


class NotLoaded(Exception):
    """Something that was pickled cannot be unpickled.

    Attributes:
        error: What unpickling it raised.
        step_error: The same, for a step that cannot run because of that: the message says that it is not the step's.
    """

    def __init__(self, name: Name, error: StepError) -> None:
        super().__init__(name, error)
        self.error = error
        self.step_error = not_loaded(name, error)


def not_loaded(name: str, error: StepError) -> StepError:
    """Return what a step fails with when what it needs cannot be unpickled in its process."""
    message = f"{NOUNS[name]} was pickled, but cannot be unpickled here: {error.message}"
    return StepError(error.type, message, error.traceback)


def load_item(data: bytes, modules: dict[str, ModuleType] | None) -> Any:
    """Return the item of a step that `item.item_pickler` has pickled.

    Args:
        data: What it returned.
        modules: The modules that the executor was loaded with; see `sent_modules.modules_being_loaded`.

    Raises:
        pickle.UnpicklingError: The item cannot be unpickled here, whatever that raised, `SystemExit` included.
    """
    try:
        with loading():
            (item,) = load_late(data, modules)
    except BaseException as error:  # code of the caller's classes
        reason = f"the item was pickled, but cannot be unpickled here: {StepError.of(error)}"
        raise pickle.UnpicklingError(reason) from error
    return item


def load_executor(
    payload: bytes,
    load: Callable[[bytes, Callable[[int], object]], list[Any]],
    on_begin: Callable[[Name], object] = lambda name: None,
) -> tuple[AgentExecutor, RetryRule | None]:
    """Return the executor and the retry rule that `pickle_executor` has pickled.

    Args:
        payload: What it returned.
        load: One of the functions of `sent_modules`.
        on_begin: Called before each of the two is unpickled.

    Raises:
        NotLoaded: One of them cannot be unpickled, whatever that raised, `SystemExit` included.
    """
    name = _NAMES[0]

    def note(place: int) -> None:
        nonlocal name
        name = _NAMES[place]
        on_begin(name)

    try:
        with loading():
            executor, rule = load(payload, note)
    except BaseException as error:  # code of the caller's classes
        raise NotLoaded(name, StepError.of(error)) from error
    return executor, rule


_NAMES: tuple[Name, Name] = ("executor", "retry")
