"""Which places of a foreign pool are held by steps that were given up."""

from __future__ import annotations

import math
import threading
import weakref
from concurrent.futures import Executor
from typing import Protocol

PLACE_PATIENCE_S = 10.0
"""At least so long a step waits for a place while all of them are held by steps that were given up."""


class PlacedStep(Protocol):
    """A step that was handed to a pool."""

    timeout_s: float | None
    is_given_up: bool

    @property
    def has_place(self) -> bool:
        """Whether it is running in the pool, as far as is known."""


class Places:
    """The places of one pool: what is known of them from the steps of all runs in this process.

    A step that was given up holds its place until it ends, also when its run is over.
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
        """Return since when steps that were given up hold all places, how long to bear with that, and a reason to end.

        Of a pool that does not say how many places it has, it is presumed when no other step has one.
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


def places_of(pool: Executor) -> Places:
    """Return what is known of `pool`, the same for all runs in this process."""
    with _places_lock:
        try:
            return _places.setdefault(pool, Places())
        except TypeError:  # a pool of a class without hashes or weak references: what is known is of one run alone
            return Places()
