"""The thread that looks after worker processes: every order that it accepts is called, whatever ends it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fanout_sync.workers.lanes import Lanes
from fanout_sync.workers.watcher_thread import WatcherThread


class Log:
    """A keeper of no workers, and all that it is told and tells."""

    def __init__(self, after_turn: Callable[[Log], None]) -> None:
        self.lines: list[str] = []
        self.lanes = Lanes(1, b"")
        self.keeper = WatcherThread(self.lanes, lambda: after_turn(self), lambda error: self.lines.append(str(error)))

    def order(self, text: str) -> bool:
        return self.keeper.do(lambda: self.lines.append(text))


def _retire(log: Log) -> None:
    if log.lines == ["first"]:
        log.order("late")
        log.keeper.retire()


def _fail(log: Log) -> None:
    log.order("late")
    log.keeper.do(lambda: log.lines.remove("this raises"))
    log.order("later")
    raise SystemError("failed")


@pytest.mark.parametrize(
    ("after_turn", "lines"), [(_retire, ["first", "late"]), (_fail, ["first", "late", "later", "failed"])]
)
def test_what_was_accepted_is_called_and_nothing_is_accepted_in_vain(
    after_turn: Callable[[Log], None], lines: list[str]
) -> None:
    """Orders that come while the thread is about to end are called; once it has ended, `do` says no."""
    log = Log(after_turn)
    assert log.order("first")
    log.keeper.join()
    assert log.lines == lines
    assert not log.order("in vain")
    log.keeper.stop()
    assert log.lines == lines
    log.lanes.abort()
