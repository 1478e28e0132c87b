"""After `RetryAfter` no step starts for a while; then one starts as a probe, and each that ends well allows more."""

from __future__ import annotations

import math

PROBING_KEPT_S = 60.0
"""While it is probing, a cooldown is remembered for this long after steps may start again."""


class Cooldown:
    """Says whether steps may start after a server has asked for a pause: a circuit breaker. Only used under the lock.

    There are three states. Normally any number of steps may be in flight (the breaker is closed). After `RetryAfter`
    none may start for a while (open). Then the cooldown is *probing* (half-open): one step may be in flight, and each
    that ends without `RetryAfter` allows one more, until as many are allowed as were in flight before.

    A step that started before the latest `RetryAfter` says nothing about how the server is now. So each cooldown begins
    a new *generation*, and while it is probing, only steps of the current generation count.

    Attributes:
        in_flight: How many steps have started and not ended.
    """

    __slots__ = ("_ends_at", "_generation", "_in_flight_of_generation", "_most_probes", "_probes_needed", "in_flight")

    def __init__(self) -> None:
        self.in_flight = 0
        self._ends_at = -math.inf
        self._generation = 0
        self._in_flight_of_generation = 0
        self._most_probes: int | None = None  # `None`: it is not probing
        self._probes_needed = 0

    @property
    def awaits_probes(self) -> bool:
        """Whether it is probing, and a probe has to end before another step may start."""
        return self._most_probes is not None and self._in_flight_of_generation >= self._most_probes

    def may_be_forgotten(self, now: float) -> bool:
        """Return whether it is over; while it is probing, whether it has been for long enough."""
        return now >= self._ends_at + (0.0 if self._most_probes is None else PROBING_KEPT_S)

    def seconds_left(self, now: float) -> float:
        """Return for how many seconds no step may start; 0 if steps may start now."""
        return max(0.0, self._ends_at - now)

    def step_started(self) -> int:
        """Count a step as in flight; return its generation."""
        self.in_flight += 1
        self._in_flight_of_generation += 1
        return self._generation

    def step_ended(self, generation: int) -> None:
        """Count a step of this generation as in flight no more."""
        self.in_flight -= 1
        if generation == self._generation:
            self._in_flight_of_generation -= 1

    def probe_succeeded(self, generation: int) -> None:
        """Allow one more step if it is probing: a step of this generation ended without `RetryAfter`."""
        if self._most_probes is not None and generation == self._generation:
            self._most_probes += 1
            if self._most_probes >= self._probes_needed:
                self._most_probes = None

    def begin(self, generation: int, now: float, seconds: float) -> None:
        """Let no step start for `seconds`: a step of this generation, still counted as in flight, was told to wait."""
        self._ends_at = max(self._ends_at, now + seconds)
        if generation != self._generation:
            return
        self._probes_needed = max(self.in_flight, 0 if self._most_probes is None else self._probes_needed)
        self._most_probes = 1
        self._generation += 1
        self._in_flight_of_generation = 0
