"""Running a function over items, without specs: `fanout_map` and `fanout_stream`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from .. import forks
from ..checks import one_of, refuse_signature, refuse_unknown
from ..engine.input import AtHand, BadItem, WithLength, an_iterator, length_of, plain_items
from ..engine.stream import OutcomeStream
from ..errors import FanoutInterrupted, InputError, OptionError, UnknownOption
from ..executors.function import FunctionExecutor
from ..formatting import describe
from ..interrupts import end_as_if_killed
from ..records.status import StepError
from ..results.run import Run
from ..wire.item_spec import ItemSpec
from .item_function import ItemFunction
from .options import OPTIONS, Options, passes_options_to
from .runner import Runner

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["fanout_map", "fanout_stream"]

T = TypeVar("T")

MOST_IN_STREAM = 100_000
"""Of how many numbers of a `range`, or rows of an array, a stream makes cancelled outcomes when it is interrupted."""


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
    fails its own step only. A function that returns `None` makes its step `invalid`, as it may have lost its answer:
    return `""` if there is nothing to say.

    Args:
        function: What to call; it gets the item itself.
        items: Any iterable, consumed lazily, in this thread; with a journal, read to its end first. If it is a
            container, such as a list, a set, a `dict` or one of its views, a `range` or an array, an interrupted run
            has a cancelled outcome for each item that was not begun.
        task_id: Names a step: called with the item and its index, from 0, for all items of a container before the
            first step runs. By default the name is `str(index)`.
        agent: The agent of all steps; by default the name of the function.
        **options: The keyword arguments of `Runner`. What they call with a spec gets one whose `prompt` is the item
            if that is a `str`, else its JSON, else its `repr`. With a journal a step is identified by its `task_id`
            and by the item's JSON, or its pickle if it has no JSON.

    Returns:
        One outcome per item, in the order of `items`; a step that failed has a failed outcome.

    Raises:
        OptionError: An argument that nobody can mean or that does not exist; it is named.
        InputError: `items` is not iterable, or a `str`; its iterator or `task_id` raised, or `task_id` returned no
            `str`; the error names the item. Steps that were started by then are finished first, and are in its `.run`.
        ExecutorNotPicklable, JournalError, JournalConflict, FanoutInterrupted: As in `Runner.run`.
    """
    if "order" in options:
        raise UnknownOption(
            "fanout_map has no option 'order': its outcomes are in the order of the items; order is an option of "
            "fanout_stream"
        )
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
    return Runner(steps.executor, **options).stream(steps.specs(is_stream=True), order=order)


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
        _check_task_id(task_id)
        if agent is not None and not isinstance(agent, str):
            raise OptionError(f"agent must be a str, got {describe(agent)}")
        self._agent = _name_of(function) if agent is None else agent
        self._task_id: Callable[[Any, int], Any] | None = task_id
        self._items = items
        self._iterator = an_iterator(items, "items", "")
        self.executor = FunctionExecutor({self._agent: ItemFunction(function)})

    def specs(self, *, is_stream: bool = False) -> Iterable[Any]:
        """Return the specs: of a plain container as a sequence, of other items one by one when they are read.

        Args:
            is_stream: Whether no more memory than that of the items may be taken for them.

        Raises:
            InputError: The items are in a plain container, and `task_id` raised or returned no `str`.
            FanoutInterrupted: The user interrupted that.
        """
        length = length_of(self._items)
        plain = plain_items(self._items)
        is_virtual = plain is not None and not isinstance(plain, (list, tuple))
        if plain is None or (is_stream and is_virtual and len(plain) > MOST_IN_STREAM):
            return self._made() if length is None else WithLength(self._made(), length)
        return _ItemSpecs(self._agent, plain) if self._task_id is None else self._named(plain)

    def _named(self, items: Sequence[Any]) -> Iterable[ItemSpec]:
        self._iterator = iter(items)
        try:
            return list(self._made())
        except BadItem as error:
            raise InputError(str(error), Run([], 0.0)) from error.__cause__
        except KeyboardInterrupt:
            end_as_if_killed()
            raise FanoutInterrupted(Run([], 0.0), total=len(items)) from None

    def _made(self) -> Iterator[ItemSpec]:
        agent, task_id, of = self._agent, self._task_id, ItemSpec.of
        for index, item in enumerate(self._iterator):
            yield of(str(index) if task_id is None else _name(task_id, item, index), agent, item)


class _ItemSpecs(AtHand):
    """The specs of items, each made when it is asked for."""

    def __init__(self, agent: str, items: Sequence[Any]) -> None:
        self._agent = agent
        self._items = items

    @overload
    def __getitem__(self, index: int) -> ItemSpec: ...
    @overload
    def __getitem__(self, index: slice) -> list[ItemSpec]: ...
    def __getitem__(self, index: int | slice) -> ItemSpec | list[ItemSpec]:
        if not isinstance(index, slice):
            return self[index : index + 1][0]
        first, agent, of = index.indices(len(self))[0], self._agent, ItemSpec.of
        return [of(str(place), agent, item) for place, item in enumerate(self._items[index], first)]

    def __iter__(self) -> Iterator[ItemSpec]:
        agent, of = self._agent, ItemSpec.of
        return (of(str(index), agent, item) for index, item in enumerate(self._items))

    def __len__(self) -> int:
        return len(self._items)


def _name(task_id: Callable[[Any, int], Any], item: Any, index: int) -> str:
    """Return the name of a step.

    Raises:
        BadItem: `task_id` raised, or returned no `str`.
    """
    called = f"task_id(items[{index}], {index})"
    forks_before = forks.count
    try:
        name = task_id(item, index)
    except (Exception, SystemExit) as error:
        forks.pass_on_in_child(forks_before)
        raise BadItem(f"{called} raised {StepError.of(error)}") from error
    if not isinstance(name, str):
        raise BadItem(f"{called} must return a str, got {describe(name)}") from TypeError(
            f"expected a str, got {describe(name)}"
        )
    return name


def _check_task_id(task_id: Any) -> None:
    if task_id is None:
        return
    if not callable(task_id):
        raise OptionError(f"task_id must be a function of an item and its index, got {describe(task_id)}")
    refuse_signature("task_id", task_id, "(item, index)", None, 0)


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
