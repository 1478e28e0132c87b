"""The steps that wait for their async code, and how that ends early.

Imports little, unlike `async_code`: every worker needs this, and few have async steps.
"""

from __future__ import annotations

from typing import Protocol

from .. import forks
from .current_step import StopSignal


class CodeCancelled(BaseException):
    """The run was given up while a step waited for its async code or its program."""


class CodeOverdue(Exception):
    """The timeout of a step was over while it waited for its async code or its program.

    Attributes:
        note: A text to add to the message of the timeout, such as what blocks the event loop; may be empty.
    """

    def __init__(self, note: str) -> None:
        super().__init__(note)
        self.note = note


class Waiting(Protocol):
    """The async code of a step."""

    def note_if_blocked(self) -> str:
        """Return a text about what blocks the loop that it runs in, or nothing."""


waiting: dict[tuple[int, int], Waiting] = {}
"""The async code of steps, by the `id` of the stop signal of their run and their index."""


def is_waiting(stop: StopSignal, index: int) -> bool:
    """Return whether a step of a run waits for its async code."""
    return (id(stop), index) in waiting


def note_if_blocked(stop: StopSignal, index: int) -> str:
    """Return what to add to the message of an overdue step: what blocks the loop that it runs in, or nothing.

    Args:
        stop: Of its run.
        index: Of the step.
    """
    code = waiting.get((id(stop), index))
    return "" if code is None else code.note_if_blocked()


forks.call_in_child(waiting.clear)
