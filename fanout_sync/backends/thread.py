"""Steps on daemon threads of this process."""

from __future__ import annotations

import contextvars
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from attrs import frozen

from ..attempt import Report, failure, run_attempt
from ..executor import TEARDOWN_GRACE_S, AgentExecutor, EventSender
from ..futures import cancel_future, end_future
from ..logs import logger_for
from ..options import positive_int
from ..records import StepError
from ..steps import AgentStepSpec
from .backend import Backend, Session
from .hooks import Hooks

P = ParamSpec("P")
T = TypeVar("T")

logger = logger_for(__name__)

_session_numbers = itertools.count(1)


class ThreadSession(Session):
    """Worker threads that take steps off one queue and put reports on another.

    The number of threads is the bound, so what waits in the queue beyond it never runs too early. The first worker
    in runs `setup`, the last one out `teardown`.
    """

    lookahead = 64

    def __init__(self, executor: AgentExecutor, bound: int, event_tx: EventSender | None) -> None:
        self._executor = executor
        self._bound = bound
        self._event_tx = event_tx
        self._hooks = Hooks(executor)
        self._inbox: SimpleQueue[tuple[int, AgentStepSpec] | None] = SimpleQueue()
        self._outbox: SimpleQueue[Report] = SimpleQueue()
        self._name = f"fanout-{next(_session_numbers)}"
        self._threads: list[threading.Thread] = []
        self._outstanding = 0

    def start(self, ticket: int, spec: AgentStepSpec) -> None:
        self._outstanding += 1
        if len(self._threads) < min(self._bound, self._outstanding):
            self._add_thread()
        self._inbox.put((ticket, spec))

    def wait(self) -> Report:
        report = self._outbox.get()
        self._outstanding -= 1
        return report

    def poll(self) -> Report | None:
        return None if self._outbox.empty() else self.wait()

    def close(self) -> None:
        self._dismiss()
        for thread in self._threads:
            thread.join(TEARDOWN_GRACE_S)
            if thread.is_alive():
                logger.warning("teardown() is still running after %s s; its thread is abandoned", TEARDOWN_GRACE_S)
                return

    def abort(self) -> None:
        try:
            while True:
                self._inbox.get_nowait()
        except Empty:
            self._dismiss()

    def _dismiss(self) -> None:
        for _ in self._threads:
            self._inbox.put(None)

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._name}_{len(self._threads)}", daemon=True)
        self._hooks.arrive()
        try:
            thread.start()
        except RuntimeError:
            self._hooks.depart()
            if not self._threads:
                raise
            # The system gives no more threads; the steps wait for those that there are.
            self._bound = len(self._threads)
        else:
            self._threads.append(thread)

    def _work(self) -> None:
        setup_error = self._hooks.set_up()
        take, give = self._inbox.get, self._outbox.put
        executor, event_tx, context = self._executor, self._event_tx, self._hooks.context
        name = threading.current_thread().name
        while True:
            task = None
            try:
                if (task := take()) is None:
                    break
                ticket, spec = task
                if setup_error is None:
                    give(context.copy().run(run_attempt, executor, ticket, spec, event_tx, name))
                else:
                    give(failure(ticket, spec, "raised", setup_error))
            except BaseException as error:
                # Ours, or memory ran out, or somebody raised it in this thread from outside (as watchdogs do), just
                # now. The run must not wait for ever.
                if task is not None:
                    give(failure(*task, "raised", StepError.of(error)))
        self._hooks.depart()


class ThreadBackend(Backend):
    """Steps on daemon threads: cheap, nothing is pickled, made for steps that wait (LLM calls, subprocesses).

    What it cannot do: a step that kills its process kills yours, and a thread cannot be stopped from outside.
    Its threads are daemons, so that a hung step cannot keep the interpreter from exiting; the threads of
    `concurrent.futures.ThreadPoolExecutor` are joined at exit.

    Args:
        max_workers: The number of threads for `submit`; a `Runner` brings its own bound.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        self._max_workers = (
            min(32, (os.cpu_count() or 1) + 4) if max_workers is None else positive_int("max_workers", max_workers)
        )
        self._lock = threading.Lock()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._waiting = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._is_shut_down = False
        weakref.finalize(self, _dismiss, self._threads, self._calls)

    def open(
        self, executor: AgentExecutor, bound: int, event_tx: EventSender | None, *, unattended: bool
    ) -> ThreadSession:
        return ThreadSession(executor, bound, event_tx)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule `fn(*args, **kwargs)` in a copy of the caller's context; see `concurrent.futures.Executor`."""
        future: Future[T] = Future()
        call = _Call(future, contextvars.copy_context(), partial(fn, *args, **kwargs))
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._calls.put(call)
            if not self._waiting.acquire(blocking=False) and len(self._threads) < self._max_workers:
                thread = threading.Thread(target=_serve_calls, args=(self._calls, self._waiting), daemon=True)
                thread.start()
                self._threads.append(thread)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let go of the threads of `submit`; see `concurrent.futures.Executor.shutdown`."""
        with self._lock:
            self._is_shut_down = True
        # Nothing is submitted from here on, and callbacks of what is cancelled may do as they like.
        if cancel_futures:
            _cancel_all(self._calls)
        _dismiss(self._threads, self._calls)
        if wait:
            for thread in self._threads:
                thread.join()


@frozen
class _Call:
    future: Future[Any]
    context: contextvars.Context
    function: Callable[[], Any]

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.context.run(self.function)
        except BaseException as error:  # a future hands on what its function raised, whatever it is
            end_future(self.future, None, error)
        else:
            end_future(self.future, result)


def _serve_calls(calls: SimpleQueue[_Call | None], waiting: threading.Semaphore) -> None:
    while (call := calls.get()) is not None:
        call.run()
        del call  # the result belongs to the future alone while this thread waits
        waiting.release()


def _cancel_all(calls: SimpleQueue[_Call | None]) -> None:
    try:
        while True:
            if (call := calls.get_nowait()) is not None:  # which is what an earlier shutdown put there
                cancel_future(call.future)
    except Empty:
        return


def _dismiss(threads: list[threading.Thread], calls: SimpleQueue[_Call | None]) -> None:
    for _ in threads:
        calls.put(None)
