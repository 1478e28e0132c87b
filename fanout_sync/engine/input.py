"""The input of a run: checked against the journal, then read in the caller's thread as far as there is room."""

from __future__ import annotations

import abc
import logging
import sys
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

from .. import forks
from ..errors import InputError
from ..executors.executor import AgentExecutor
from ..formatting import describe
from ..interrupts import InterruptScope
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from ..results.run import Run

if TYPE_CHECKING:
    from ..journal.run_journal import RunJournal

logger = logging.getLogger(__name__)

NOT_YET: Any = object()
"""What an iterator of specs gives when the next one depends on what is still running."""


ONE_SPEC = "got one AgentStepSpec; put it into a list: [spec]"
"""What to say if there is a spec in the place of a list."""


ONE_TEXT = "make an AgentStepSpec(…) of it, and put that into a list; or use fanout_map(function, [text])"
"""What to say if there is a text in the place of a list."""


class Rereadable(abc.ABC):
    """An input that is no list, but can be read before the run as well."""

    @abc.abstractmethod
    def check_with(self, journal: RunJournal) -> None:
        """Let `journal.check` see all specs; called before the first one is asked for.

        Raises:
            Exception: As for `journal.check`, or the specs cannot be read.
        """


class AtHand(Sequence[Any]):
    """An input that is no list, but can be read like one: it takes no time and runs nobody's code."""


class BadItem(Exception):
    """Raised by an input of this package for an item of the user's; the message says which, `__cause__` why."""


class StepInput:
    """Specs, and why there are no more of them.

    Args:
        specs: A sequence is at hand: reading it takes no time and is nobody's code.
        scope: Told when the caller's own code runs, in which an interrupt is to be raised at once.
        on_interrupt: Called when it was raised there.

    Attributes:
        is_at_hand: Whether `specs` is.
        has_more: Whether more is to be expected.
        count: How many specs were taken.
        error: Why the input ended early; `None` as long as it did not.
        reason: The same in words.
    """

    def __init__(
        self, specs: Iterator[Any] | Sequence[Any], scope: InterruptScope, on_interrupt: Callable[[], None]
    ) -> None:
        self.is_at_hand = isinstance(specs, Sequence)
        self.has_more = True
        self.count = 0
        self.error: BaseException | None = None
        self.reason = ""
        self._at_hand: Sequence[Any] = specs if isinstance(specs, Sequence) else ()
        self._specs = iter(specs)
        self._forks = forks.count
        self._scope = scope
        self._on_interrupt = on_interrupt

    def slice(self, room: int) -> Sequence[Any]:
        """Return the next items of an input that is at hand, at most `room`."""
        items = self._at_hand[self.count : self.count + room]
        self.has_more = len(items) == room
        return items

    def read(self, has_room: Callable[[], bool]) -> Iterator[Any]:
        """Yield items of any input, as long as there is room and it has some now."""
        while self.has_more and has_room():
            self._scope.in_package_code = False
            try:
                item = next(self._specs)
            except StopIteration:
                self.has_more = False
                return
            except KeyboardInterrupt:
                forks.pass_on_in_child(self._forks)
                self._on_interrupt()
                return
            except (Exception, SystemExit) as error:  # the caller's generator; what is running is finished first
                forks.pass_on_in_child(self._forks)
                self._fail_with(error)
                return
            finally:
                self._scope.in_package_code = True
            if item is NOT_YET:
                return
            yield item

    def _fail_with(self, error: BaseException) -> None:
        if isinstance(error, BadItem):
            self.fail(error.__cause__ or error, str(error))
        else:
            self.fail(error, f"the input raised after {self.count} specs: {StepError.of(error)}")

    def accepts(self, item: Any) -> bool:
        """Return whether what came is a spec; if not, it is the end of the input, and the reason is set."""
        if isinstance(item, AgentStepSpec):
            return True
        self.fail(TypeError(f"expected an AgentStepSpec, got {describe(item)}"), no_spec(item, self.count))
        return False

    def fail(self, error: BaseException, reason: str) -> None:
        """End the input early."""
        self.error = error
        self.reason = reason
        self.has_more = False

    def unread(self) -> Iterator[tuple[int, AgentStepSpec]]:
        """Yield the specs of an input at hand that were not taken, with their indices."""
        for index, spec in enumerate(self._at_hand[self.count :], self.count):
            if isinstance(spec, AgentStepSpec):
                yield index, spec


class WithLength(Sized):
    """An iterator whose length is known.

    Args:
        specs: The iterator.
        length: How many specs it gives.
    """

    def __init__(self, specs: Iterator[Any], length: int) -> None:
        self._specs = specs
        self._length = length

    def __iter__(self) -> Iterator[Any]:
        return self._specs

    def __len__(self) -> int:
        return self._length


def taken(specs: Iterable[Any]) -> Iterable[Any]:
    """Return specs to be read later, in another thread: a list as it is now, of other specs the iterator.

    Raises:
        InputError: No step could run: the specs are not iterable, or the first of a list is no spec.
    """
    if is_at_hand(specs):
        at_hand = tuple(specs)
        if at_hand and not isinstance(at_hand[0], AgentStepSpec):
            raise InputError(no_spec(at_hand[0], 0), Run([], 0.0))
        return at_hand
    iterator, length = an_iterator(specs), length_of(specs)
    return iterator if length is None else WithLength(iterator, length)


def no_spec(item: Any, index: int) -> str:
    """Return the message for an item that is no spec, and what to do about it."""
    if isinstance(item, Mapping):
        way_out = "AgentStepSpec.from_dict makes one from a mapping"
    else:
        items = "strings" if isinstance(item, str) else "items"
        way_out = f"make each an AgentStepSpec(…), or use fanout_map(function, {items})"
    return f"specs[{index}] is {describe(item)}, expected an AgentStepSpec: {way_out}"


def is_at_hand(specs: Iterable[Any]) -> bool:
    """Return whether reading the specs takes no time and runs nobody's code."""
    return type(specs) in (list, tuple) or isinstance(specs, AtHand)


def listed(specs: Iterable[Any]) -> Iterable[Any]:
    """Return the specs as a list if they are in another plain container of objects, such as a set; else unchanged."""
    plain = None if is_at_hand(specs) else plain_items(specs)
    return plain if isinstance(plain, list) else specs


_MAPPINGS: tuple[dict[Any, Any], ...] = ({}, OrderedDict())
_CONTAINERS: tuple[type, ...] = (
    *(list, tuple, range, set, frozenset, dict, OrderedDict, deque, array),
    *(type(view) for plain in _MAPPINGS for view in (plain.keys(), plain.values(), plain.items())),
)
_PLAIN_ITERATION = [vars(container)["__iter__"] for container in _CONTAINERS if "__iter__" in vars(container)]


def plain_items(items: Any) -> Sequence[Any] | None:
    """Return the items of a plain container as a sequence; `None` for any other iterable.

    A container is plain if it is read by the code of Python or numpy alone: its size is known, and an interrupted run
    can still tell which of its items were not read. What is returned does not change with the container, but for the
    items of an array of numpy, which may be large.
    """
    kind = type(items)
    numpy: Any = sys.modules.get("numpy")  # who has not imported it has no arrays
    if kind in (tuple, range) or (numpy is not None and kind in (numpy.ndarray, numpy.memmap) and items.ndim):
        sequence: Sequence[Any] = items
        return sequence
    own = getattr(kind, "__iter__", None)
    return list(items) if any(own is plain for plain in _PLAIN_ITERATION) else None


def an_iterator(specs: Iterable[Any], name: str = "specs", of: str = " of AgentStepSpec") -> Iterator[Any]:
    """Return an iterator of the specs.

    Raises:
        InputError: They have none.
    """
    if isinstance(specs, AgentStepSpec):
        raise InputError(f"{name} must be an iterable{of}, {ONE_SPEC}", Run([], 0.0))
    if isinstance(specs, (str, bytes)) and of:  # a spec is no character
        raise InputError(f"{name} must be an iterable{of}, got {describe(specs)}; {ONE_TEXT}", Run([], 0.0))
    try:
        return iter(specs)
    except Exception as error:
        raise InputError(f"{name} must be an iterable{of}, got {describe(specs)}", Run([], 0.0)) from error


def read_all(specs: Iterable[AgentStepSpec], scope: InterruptScope) -> tuple[list[Any], BaseException | None]:
    """Read all specs, so that they can be checked before anything runs.

    Returns:
        The specs; and what their iterator raised, if it did.

    Raises:
        InputError: They have no iterator.
        KeyboardInterrupt: The user interrupted it.
    """
    read, forks_before = list[Any](), forks.count
    with scope.callers_code():
        iterator = an_iterator(specs)
    try:
        with scope.callers_code():
            for spec in iterator:
                read.append(spec)
                if scope.is_interrupted:  # by another thread
                    break
    except (Exception, SystemExit) as error:  # the caller's generator; what came before is run first
        forks.pass_on_in_child(forks_before)
        return read, error
    return read, None


def raising_after(specs: Iterable[AgentStepSpec], error: BaseException) -> Iterator[AgentStepSpec]:
    """Yield the specs, then raise the error."""
    yield from specs
    raise error


def check(specs: Iterable[Any], journal: RunJournal) -> None:
    """See that all specs can be journalled.

    Raises:
        InputError: A spec holds what JSON cannot carry.
        JournalError, JournalConflict: As for `RunJournal.check`.
    """
    from ..journal.identity import SpecNotJournallable  # imported lazily: most runs have no journal

    try:
        if isinstance(specs, Rereadable):
            specs.check_with(journal)
        else:
            journal.check(specs)
    except SpecNotJournallable as error:
        raise InputError(str(error), Run([], 0.0)) from error.__cause__


def refuse_unsupported(specs: Sequence[Any], executor: AgentExecutor) -> None:
    """Refuse a list of specs if the executor cannot do what one of them asks for; nothing has run by now.

    Raises:
        InputError: There is one.
    """
    if getattr(executor._unsupported, "__func__", None) in (None, AgentExecutor._unsupported):  # it takes every spec
        return
    for index, spec in enumerate(specs):
        reason = executor._unsupported(spec) if isinstance(spec, AgentStepSpec) else None
        if reason is not None:
            raise InputError(f"specs[{index}], step {spec.task_id!r} of agent {spec.agent!r}: {reason}", Run([], 0.0))


def length_of(specs: Iterable[Any]) -> int | None:
    """Return how many specs there are; `None` if nobody can tell."""
    try:
        return len(specs) if isinstance(specs, Sized) else None
    except Exception:  # somebody's own __len__; the length is only told to listeners
        logger.warning("the length of the specs is not known", exc_info=True)
        return None
