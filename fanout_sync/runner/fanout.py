"""Running a function over items, without specs: `fanout_map` and `fanout_stream`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..checks import one_of, refuse_unknown
from ..engine.input import WithLength, an_iterator, is_at_hand, length_of
from ..engine.stream import OutcomeStream
from ..errors import InputError, OptionError
from ..executors.function import FunctionExecutor
from ..formatting import describe
from ..results.run import Run
from ..wire.item_spec import ItemSpec
from .item_function import ItemFunction
from .options import OPTIONS, Options, passes_options_to
from .runner import Runner

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["fanout_map", "fanout_stream"]

T = TypeVar("T")


@passes_options_to(Runner)
def fanout_map(
    function: Callable[[T], object],
    items: Iterable[T],
    *,
    task_id: Callable[[T, int], str] | None = None,
    agent: str | None = None,
    **options: Unpack[Options],
) -> Run:
    """Call `function(item)` for every item, at most eight at once, and return when all are done.

    What the function returns becomes the outcome as with `FunctionExecutor`. It may be an `async def`. On processes an
    item may be any object that can be pickled, of a class in a script or a notebook, too; one that cannot be pickled
    fails its own step only.

    Args:
        function: What to call; it gets the item itself.
        items: Any iterable, consumed lazily, in this thread; with a journal, read to its end first.
        task_id: Names a step: called with the item and its index, from 0. By default the name is `str(index)`.
        agent: The agent of all steps; by default the name of the function.
        **options: The keyword arguments of `Runner`. What they call with a spec gets one whose `prompt` is the item
            if that is a `str`, else its JSON, else its `repr`. With a journal a step is identified by its `task_id`
            and by the item's JSON, or its pickle if it has no JSON.

    Returns:
        One outcome per item, in the order of `items`; a step that failed has a failed outcome.

    Raises:
        OptionError: An argument that nobody can mean or that does not exist; it is named.
        InputError: `items` is not iterable, or a `str`; its iterator or `task_id` raised, or `task_id` returned no
            `str`. Steps that were started by then are finished first, and are in its `.run`.
        ExecutorNotPicklable, JournalError, JournalConflict, FanoutInterrupted: As in `Runner.run`.
    """
    refuse_unknown("fanout_map", options, OPTIONS)
    steps = _Steps(function, items, task_id, agent)
    return Runner(steps.executor, **options).run(steps.specs())


@passes_options_to(Runner)
def fanout_stream(
    function: Callable[[T], object],
    items: Iterable[T],
    *,
    order: Literal["input", "completion"] = "input",
    task_id: Callable[[T, int], str] | None = None,
    agent: str | None = None,
    **options: Unpack[Options],
) -> OutcomeStream:
    """Call `function(item)` for every item, and yield outcomes as they become available, in constant memory.

    Args:
        function: As in `fanout_map`.
        items: Any iterable, also an endless one: read as far as there is room, when an outcome is asked for.
        order: `"input"`, the order of `items`, or `"completion"`.
        task_id: As in `fanout_map`.
        agent: As in `fanout_map`.
        **options: As in `fanout_map`.

    Yields:
        One outcome per item; a step that failed yields a failed outcome, never an exception.

    Raises:
        OptionError, InputError: As in `fanout_map`, at once if an argument is wrong; otherwise when it comes to that
            item, after the steps before have been yielded.
        ExecutorNotPicklable, JournalError, JournalConflict, FanoutInterrupted: As in `Runner.stream`.
    """
    refuse_unknown("fanout_stream", options, OPTIONS)
    one_of("order", order, ("input", "completion"))
    steps = _Steps(function, items, task_id, agent)
    return Runner(steps.executor, **options).stream(steps.specs(), order=order)


class _Steps:
    """The steps that call a function with items.

    Attributes:
        executor: Runs them.
    """

    def __init__(self, function: Any, items: Any, task_id: Any, agent: Any) -> None:
        _check_function(function)
        if isinstance(items, (str, bytes, bytearray)):
            what = "character" if isinstance(items, str) else "byte"
            raise InputError(
                f"items must be an iterable of items, got {describe(items)}, which would be one step for each {what}; "
                "put it into a list",
                Run([], 0.0),
            )
        if task_id is not None and not callable(task_id):
            raise OptionError(f"task_id must be a function of an item and its index, got {describe(task_id)}")
        if agent is not None and not isinstance(agent, str):
            raise OptionError(f"agent must be a str, got {describe(agent)}")
        self._agent = _name_of(function) if agent is None else agent
        self._task_id: Callable[[Any, int], Any] | None = task_id
        self._items = items
        self._iterator = an_iterator(items, "items", "")
        self.executor = FunctionExecutor({self._agent: ItemFunction(function)})

    def specs(self) -> Iterable[Any]:
        """Return the specs: of a list at once if that runs nobody's code, of other items when they are read."""
        if self._task_id is None and is_at_hand(self._items):
            return list(self._made())
        length = length_of(self._items)
        return self._made() if length is None else WithLength(self._made(), length)

    def _made(self) -> Iterator[ItemSpec]:
        agent, task_id, of = self._agent, self._task_id, ItemSpec.of
        for index, item in enumerate(self._iterator):
            yield of(str(index) if task_id is None else _checked(task_id(item, index), index), agent, item)


def _checked(name: Any, index: int) -> str:
    if not isinstance(name, str):
        raise TypeError(f"task_id(items[{index}], {index}) must return a str, got {describe(name)}")
    return name


def _check_function(function: Any) -> None:
    if not callable(function):
        raise OptionError(f"function must be a function of one item, got {describe(function)}")
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind(None)
    except TypeError:
        raise OptionError(f"function must take one item, but its signature is {signature}") from None


def _name_of(function: Any) -> str:
    """Return the name of a function, of what a `functools.partial` calls, or of the class of a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__
