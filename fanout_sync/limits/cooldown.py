"""After a server has asked for patience: nothing starts for a while, then a little, then everything."""

from __future__ import annotations

import math

FORGOTTEN_S = 60.0
"""So long after it has opened a gate through which nobody comes stands wide open."""


class Gate:
    """Lets steps start, or not. Only used under the lock.

    What is in flight when the gate closes belongs to the past: however it ends, it says nothing about the reopening. So
    each closing begins a new round, and only the steps of the round are counted while the gate is half open.

    Attributes:
        in_flight: How many steps have entered and not left.
    """

    __slots__ = ("_closed_until", "_enough", "_in_flight_of_round", "_places", "_round", "in_flight")

    def __init__(self) -> None:
        self.in_flight = 0
        self._closed_until = -math.inf
        self._round = 0
        self._in_flight_of_round = 0
        self._places: int | None = None
        self._enough = 0

    @property
    def is_crowded(self) -> bool:
        """Whether the gate is half open, and somebody has to leave before another may enter."""
        return self._places is not None and self._in_flight_of_round >= self._places

    def is_forgotten(self, now: float) -> bool:
        """Return whether the last closing is of no account any more: the gate is wide open, or nobody came for long."""
        return now >= self._closed_until + (0.0 if self._places is None else FORGOTTEN_S)

    def opens_in_s(self, now: float) -> float:
        """Return for how many seconds the gate stays closed; 0 if it is not."""
        return max(0.0, self._closed_until - now)

    def enter(self) -> int:
        """Take a place; return the number of the round."""
        self.in_flight += 1
        self._in_flight_of_round += 1
        return self._round

    def leave(self, entered: int) -> None:
        """Give back the place that was taken in the round `entered`."""
        self.in_flight -= 1
        if entered == self._round:
            self._in_flight_of_round -= 1

    def went_well(self, entered: int) -> None:
        """Let one more in: a step of this round was not sent away."""
        if self._places is not None and entered == self._round:
            self._places += 1
            if self._places >= self._enough:
                self._places = None

    def close(self, entered: int, now: float, seconds: float) -> None:
        """Close for so many seconds: a step was sent away, which has not left yet."""
        self._closed_until = max(self._closed_until, now + seconds)
        if entered != self._round:
            return
        self._enough = max(self.in_flight, 0 if self._places is None else self._enough)
        self._places = 1
        self._round += 1
        self._in_flight_of_round = 0
