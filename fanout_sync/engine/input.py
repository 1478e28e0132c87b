"""The input of a run: checked against the journal, then read in the caller's thread as far as there is room."""

from __future__ import annotations

import abc
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any

from ..errors import InputError, JournalConflict
from ..formatting import describe
from ..interrupts import Guard
from ..records.status import StepError
from ..records.steps import AgentStepSpec
from ..results.run import Run

if TYPE_CHECKING:
    from ..journal.resuming import Journalling

logger = logging.getLogger(__name__)

NOT_YET: Any = object()
"""What an iterator of specs gives when the next one depends on what is still running."""


class Rereadable(abc.ABC):
    """An input that is no list, but can be read before the run as well."""

    @abc.abstractmethod
    def check_with(self, journalling: Journalling) -> None:
        """Let `journalling.check` see all specs; called before the first one is asked for.

        Raises:
            Exception: As for `journalling.check`, or the specs cannot be read.
        """


class Intake:
    """Specs, and why there are no more of them.

    Args:
        specs: A list or tuple is at hand: reading it takes no time and is nobody's code.
        guard: Told when the caller's own code runs, in which an interrupt is to be raised at once.
        on_interrupt: Called when it was raised there.

    Attributes:
        is_at_hand: Whether `specs` is.
        has_more: Whether more is to be expected.
        count: How many specs were taken.
        error: Why the input ended early; `None` as long as it did not.
        reason: The same in words.
    """

    def __init__(self, specs: Iterator[Any] | Sequence[Any], guard: Guard, on_interrupt: Callable[[], None]) -> None:
        self.is_at_hand = isinstance(specs, Sequence)
        self.has_more = True
        self.count = 0
        self.error: BaseException | None = None
        self.reason = ""
        self._at_hand: Sequence[Any] = specs if isinstance(specs, Sequence) else ()
        self._specs = iter(specs)
        self._guard = guard
        self._on_interrupt = on_interrupt

    def slice(self, room: int) -> Sequence[Any]:
        """Return the next items of an input that is at hand, at most `room`."""
        items = self._at_hand[self.count : self.count + room]
        self.has_more = len(items) == room
        return items

    def read(self, has_room: Callable[[], bool]) -> Iterator[Any]:
        """Yield items of any input, as long as there is room and it has some now."""
        while self.has_more and has_room():
            self._guard.is_inside = False
            try:
                item = next(self._specs)
            except StopIteration:
                self.has_more = False
                return
            except KeyboardInterrupt:
                self._on_interrupt()
                return
            except (Exception, SystemExit) as error:  # the caller's generator; what is running is finished first
                self.fail(error, f"the input raised after {self.count} specs: {StepError.of(error)}")
                return
            finally:
                self._guard.is_inside = True
            if item is NOT_YET:
                return
            yield item

    def accepts(self, item: Any) -> bool:
        """Return whether what came is a spec; if not, it is the end of the input, and the reason is set."""
        if isinstance(item, AgentStepSpec):
            return True
        reason = (
            f"specs[{self.count}] is {describe(item)}, expected an AgentStepSpec "
            "(AgentStepSpec.from_dict makes one from a mapping)"
        )
        self.fail(TypeError(f"expected an AgentStepSpec, got {describe(item)}"), reason)
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


def an_iterator(specs: Iterable[AgentStepSpec]) -> Iterator[AgentStepSpec]:
    """Return an iterator of the specs.

    Raises:
        InputError: They have none.
    """
    try:
        return iter(specs)
    except Exception as error:
        reason = f"specs must be an iterable of AgentStepSpec, got {describe(specs)}"
        raise InputError(reason, Run([], 0.0)) from error


def read_and_checked(
    specs: Iterable[AgentStepSpec], journalling: Journalling, before: Run | None
) -> Iterable[AgentStepSpec]:
    """Read all specs, so that conflicts with the journal are found before anything runs.

    Returns:
        The specs; if their iterator raised, an iterator that raises the same at the end.
    """
    read: list[AgentStepSpec] = []
    failed: BaseException | None = None
    try:
        read.extend(an_iterator(specs))
    except KeyboardInterrupt as interrupt:
        return _raising_after([], interrupt)
    except (Exception, SystemExit) as error:  # the caller's generator; what came before is run first
        if isinstance(error, InputError) and not read:
            raise
        failed = error
    try:
        specs = checked(read, read, journalling)
    except JournalConflict as conflict:
        raise JournalConflict(conflict.reason, conflict.conflicts, before) from None
    return specs if failed is None else _raising_after(specs, failed)


def checked(
    given: Iterable[AgentStepSpec], source: Iterable[AgentStepSpec], journalling: Journalling
) -> Iterable[AgentStepSpec]:
    """Return `source` when its specs are checked; if the user interrupts that, what raises the interrupt."""
    from ..journal.resuming import SpecNotJournallable

    try:
        with journalling.guard.inside():
            if isinstance(given, Rereadable):
                given.check_with(journalling)
            else:
                journalling.check(given)
    except SpecNotJournallable as error:
        raise InputError(str(error), Run([], 0.0)) from error.__cause__
    except KeyboardInterrupt as interrupt:
        return _raising_after([], interrupt)
    return source


def _raising_after(specs: Iterable[AgentStepSpec], error: BaseException) -> Iterator[AgentStepSpec]:
    yield from specs
    raise error


def length_of(specs: Iterable[Any]) -> int | None:
    """Return how many specs there are; `None` if nobody can tell."""
    try:
        return len(specs) if isinstance(specs, Sized) else None
    except Exception:  # somebody's own __len__; the length is only told to listeners
        logger.warning("the length of the specs is not known", exc_info=True)
        return None
