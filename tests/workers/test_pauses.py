"""The clock that stands still while the caller is stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from fanout_sync.processes.pauses import Pauses


def _close(pauses: Pauses) -> None:
    pauses.close()


def _lose(pauses: Pauses) -> None:
    pauses.now()
    os.close(pauses.descriptor)


@pytest.mark.parametrize("end", [_close, _lose])
def test_the_clock_does_not_jump_when_the_memory_is_gone(end: Callable[[Pauses], None]) -> None:
    """A step that was stopped for long is not overdue because its worker is gone, or has closed its descriptors."""
    pauses = Pauses.create()
    pauses.begin()
    time.sleep(0.05)
    pauses.end()
    before = pauses.stopped_s()
    assert before > 0
    end(pauses)
    assert pauses.stopped_s() == before
    assert pauses.now() <= time.monotonic() - before
