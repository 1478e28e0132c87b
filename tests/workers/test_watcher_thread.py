"""The thread that watches worker processes: it calls every action that it accepts, whatever ends it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fanout_sync.workers.lanes import Lanes
from fanout_sync.workers.watcher_thread import WatcherThread


class Log:
    """A watcher thread of no workers, and a list of what it called."""

    def __init__(self, after_turn: Callable[[Log], None]) -> None:
        self.lines: list[str] = []
        self.lanes = Lanes(1, b"")
        self.watcher = WatcherThread(self.lanes, lambda: after_turn(self), lambda error: self.lines.append(str(error)))

    def note(self, text: str) -> bool:
        return self.watcher.do(lambda: self.lines.append(text))


def _stop(log: Log) -> None:
    if log.lines == ["first"]:
        log.note("late")
        log.watcher.request_stop()


def _fail(log: Log) -> None:
    log.note("late")
    log.watcher.do(lambda: log.lines.remove("this raises"))
    log.note("later")
    raise SystemError("failed")


@pytest.mark.parametrize(
    ("after_turn", "lines"), [(_stop, ["first", "late"]), (_fail, ["first", "late", "later", "failed"])]
)
def test_every_accepted_action_is_called(after_turn: Callable[[Log], None], lines: list[str]) -> None:
    """Actions that come while the thread is about to end are called; once it has ended, `do` returns false."""
    log = Log(after_turn)
    assert log.note("first")
    log.watcher.join()
    assert log.lines == lines
    assert not log.note("after the end")
    log.watcher.stop()
    assert log.lines == lines
    log.lanes.abort()
