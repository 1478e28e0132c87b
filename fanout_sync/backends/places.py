"""Which places of a foreign pool are occupied by steps that were given up."""

from __future__ import annotations

import math
import threading
import weakref
from concurrent.futures import Executor
from typing import Protocol

from .. import forks

PLACE_PATIENCE_S = 10.0
"""So many seconds, at least, a step waits for a place while steps that were given up occupy all of them."""


class PlacedStep(Protocol):
    """A step that was submitted to a pool."""

    timeout_s: float | None
    is_given_up: bool

    @property
    def has_place(self) -> bool:
        """Whether it is running in the pool, as far as is known."""


class Places:
    """The places of one pool, as far as the steps of all runs in this process show.

    A step that was given up occupies its place until it ends, also after its run.
    """

    def __init__(self) -> None:
        self._steps: set[PlacedStep] = set()
        self._lost: tuple[frozenset[PlacedStep], float] = frozenset(), math.inf

    def add(self, step: PlacedStep) -> None:
        self._steps.add(step)

    def discard(self, step: PlacedStep) -> None:
        self._steps.discard(step)

    def given_up(self) -> list[PlacedStep]:
        return [step for step in list(self._steps) if step.is_given_up]

    def lost(self, size: int | None, now: float) -> tuple[float, float, str] | None:
        """Return since when steps that were given up occupy all places, how long to wait for one, and a message.

        Args:
            size: How many places the pool has; if `None`, all are presumed occupied when no other step has one.
            now: The time, on the clock of `time.monotonic()`, as the time that is returned.

        Returns:
            `None` if there is a place for other steps.
        """
        holders = frozenset(self.given_up())
        is_lost = bool(holders) and (self._none_runs() if size is None else len(holders) >= size)
        if not is_lost:
            self._lost = frozenset(), math.inf
            return None
        if self._lost[0] != holders:
            self._lost = holders, now
        patience_s = max(PLACE_PATIENCE_S, *(step.timeout_s or 0.0 for step in holders))
        return self._lost[1], patience_s, _why_nothing_begins(size, len(holders))

    def _none_runs(self) -> bool:
        return not any(step.has_place for step in list(self._steps) if not step.is_given_up)


def _why_nothing_begins(size: int | None, held: int) -> str:
    if size is None:
        steps = "a step that timed out has" if held == 1 else f"{held} steps that timed out have"
        return f"never began: nothing begins any more in its pool, where {steps} not ended"
    if size == 1:
        return "never began: the one place of its pool is held by a step that timed out and has not ended"
    return f"never began: all {size} places of its pool are held by steps that timed out and have not ended"


_places: weakref.WeakKeyDictionary[Executor, Places] = weakref.WeakKeyDictionary()
_places_lock = threading.Lock()


def _forget_places() -> None:
    """Know of no places, in a forked child: of the pools that there are, it has no threads or processes."""
    global _places, _places_lock
    _places, _places_lock = weakref.WeakKeyDictionary(), threading.Lock()


forks.call_in_child(_forget_places)


def places_of(pool: Executor) -> Places:
    """Return the places of `pool`; all runs in this process get the same object."""
    with _places_lock:
        try:
            return _places.setdefault(pool, Places())
        except TypeError:  # its class has no hashes or no weak references: then each run has an object of its own
            return Places()
