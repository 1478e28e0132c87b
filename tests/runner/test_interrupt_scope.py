"""`InterruptScope` itself: which interrupts are noted, and which are raised."""

from __future__ import annotations

import signal
import time

import pytest
from processes import eventually

from fanout_sync.interrupts import PATIENCE_S, InterruptScope


def test_the_code_that_a_forced_interrupt_ends_has_time_again() -> None:
    """An interrupt long after the first is raised; the next one is noted, until the patience is over once more."""
    with InterruptScope() as scope:
        signal.raise_signal(signal.SIGINT)
        assert scope.is_interrupted
        for _ in range(2):
            then = time.monotonic()
            assert eventually(lambda then=then: time.monotonic() > then + PATIENCE_S)  # type: ignore[misc]  # its default
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
