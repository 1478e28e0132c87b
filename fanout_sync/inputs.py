"""What is done with the specs of a call before the first of them is run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any

from .errors import InputError, JournalConflict
from .intake import Rereadable
from .logs import logger_for
from .run import Run
from .steps import AgentStepSpec
from .wording import describe

if TYPE_CHECKING:
    from .journalling import Journalling

logger = logger_for(__name__)


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
    try:
        with journalling.guard.inside():
            if isinstance(given, Rereadable):
                given.check_with(journalling)
            else:
                journalling.check(given)
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
