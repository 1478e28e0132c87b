"""The calls of `ProcessBackend.submit`: futures over a set of lanes."""

from __future__ import annotations

import itertools
import pickle
from collections import deque
from concurrent.futures import BrokenExecutor, Future
from typing import Any

from ..executors.futures import cancel_future, end_future
from ..records.status import StepError
from . import messages
from .lanes import Lanes
from .loss import Lost
from .messages import Message, pack
from .watcher_thread import WatcherThread
from .worker_traceback import WorkerTraceback


class Calls:
    """The futures of `ProcessBackend.submit`, and the workers that run their calls.

    Everything except `submit` and `shutdown` is called on the watcher thread.
    """

    def __init__(self, size: int, max_tasks: int | None, captures_output: bool) -> None:
        self._size = size
        self._lanes = Lanes(size, b"", max_tasks=max_tasks, captures_output=captures_output)
        self._watcher = WatcherThread(self._lanes, self._settle, self._fail_all)
        self._waiting: deque[tuple[Future[Any], bytes]] = deque()
        self._running: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._is_closing = False

    def submit(self, payload: bytes) -> Future[Any]:
        future: Future[Any] = Future()
        if not self._watcher.do(lambda: self._waiting.append((future, payload))):
            raise BrokenExecutor("the thread that watches the workers has failed, and the workers are gone")
        return future

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        if self._watcher.close_if_unstarted():  # no call was ever accepted, so there is no worker
            self._lanes.abort()
            return
        self._watcher.do(lambda: self._begin_close(cancel_futures))
        if wait:
            self._watcher.join()

    def _begin_close(self, cancel_futures: bool) -> None:
        self._is_closing = True
        if cancel_futures:
            while self._waiting:
                cancel_future(self._waiting.popleft()[0])

    def _fail_all(self, error: BaseException) -> None:
        broken = BrokenExecutor(f"the thread that watches the workers has failed: {StepError.of(error)}")
        broken.__cause__ = error
        waiting = [future for future, _ in self._waiting if future.set_running_or_notify_cancel()]
        for future in [*self._running.values(), *waiting]:
            end_future(future, None, broken)
        self._lanes.abort()

    def _settle(self) -> None:
        """End the futures whose answers are there, and start as many waiting calls as there are places."""
        # Again after each start: a call is answered at once if no worker can be started.
        while self._end_answered() or self._start_waiting():
            pass
        if self._is_closing and not self._running and not self._waiting:
            self._lanes.close()
            self._watcher.request_stop()

    def _end_answered(self) -> bool:
        """End the futures whose answers are there; return whether there were any."""
        has_ended = bool(self._lanes.answers)
        while self._lanes.answers:
            index, answer = self._lanes.answers.popleft()
            end_future(self._running.pop(index), *_read(answer))
        return has_ended

    def _start_waiting(self) -> bool:
        """Start waiting calls while there are places for them; return whether any was started."""
        has_started = False
        while self._waiting and len(self._running) < self._size:
            future, payload = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                index = next(self._numbers)
                self._running[index] = future
                self._lanes.start(index, pack((messages.CALL, index, payload)))
                has_started = True
        return has_started


def _read(answer: Message | Lost) -> tuple[Any, BaseException | None]:
    """Return the call's result, and the exception that it ended with."""
    if isinstance(answer, Lost):
        return None, BrokenExecutor(answer.error.message)
    try:
        if answer[0] == messages.RETURNED:
            return pickle.loads(answer[2]), None
        _, _, payload, fields = answer
        raised = RuntimeError(str(StepError(*fields))) if payload is None else pickle.loads(payload)
        raised.__cause__ = WorkerTraceback(fields[2])
    except BaseException as error:  # loading runs code of the caller's classes, which may raise anything
        return None, error
    return None, raised
