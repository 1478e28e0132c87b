"""Bounded, ordered, isolating dispatch of specs over a backend."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Literal, NoReturn

from .announcer import Announcer
from .attempt import Report
from .backends import Backend, ProcessBackend, ThreadBackend
from .backends.backend import Session
from .dispatch import Dispatch
from .errors import InputError, OptionError
from .executor import AgentExecutor, EventSender
from .options import one_of, positive_int, refuse_unknown
from .run import Run
from .steps import AgentStepSpec, StepOutcome
from .wording import describe, did_you_mean

MAX_UNREAD = 256
"""How many outcomes `stream(order="input")` holds back behind a slow step before it stops feeding."""

_BACKENDS = {"thread": ThreadBackend, "process": ProcessBackend}
_OPTIONS = ("backend", "max_concurrency", "event_tx")


class Runner:
    """Runs specs on an executor, many at once, and gives back every outcome.

    A step that raises, dies or returns garbage becomes a failed outcome that says so and keeps the spec's `task_id`
    and `agent`; the others are not touched. One runner can be used any number of times, from several threads at once
    and inside its own steps; each call has its own bound.

    As a context manager it keeps process workers warm between calls.

    Args:
        executor: How a step runs.
        backend: Where: `"thread"`, `"process"`, a `Backend`, or any `concurrent.futures.Executor`.
        max_concurrency: How many steps of one call may run at once; by default what the executor hints.
        event_tx: Where events go, usually an `EventChannel`: anything with a `send` method.

    Raises:
        OptionError: An argument that nobody can mean; it is named.
    """

    def __init__(
        self,
        executor: AgentExecutor,
        *,
        backend: Literal["thread", "process"] | Executor = "thread",
        max_concurrency: int | None = None,
        event_tx: EventSender | None = None,
        **unknown: NoReturn,
    ) -> None:
        refuse_unknown("Runner", unknown, _OPTIONS)
        self._executor = _an_executor(executor)
        self._backend = _a_backend(backend)
        self._max_concurrency = None if max_concurrency is None else positive_int("max_concurrency", max_concurrency)
        self._event_tx = _an_event_sender(event_tx)

    def run(self, specs: Iterable[AgentStepSpec]) -> Run:
        """Run every spec and return when all are done.

        Args:
            specs: Any iterable, consumed lazily, in this thread.

        Returns:
            One outcome per spec, in the order of `specs`.

        Raises:
            InputError: `specs` is not iterable, its iterator raised, or an item is no spec. Steps that were started
                by then are finished first, and are in its `.run`.
            ExecutorNotPicklable: The executor cannot be sent to worker processes; nothing was run.
        """
        began = time.monotonic()
        reports: dict[int, Report] = {}
        with self._dispatching(specs, unattended=False) as dispatch:
            for report in dispatch.reports():
                reports[report.ticket] = report
        run = Run([reports[ticket] for ticket in range(len(reports))], time.monotonic() - began)
        if dispatch.input_error is not None:
            raise InputError(dispatch.input_error_reason, run) from dispatch.input_error
        return run

    def stream(
        self, specs: Iterable[AgentStepSpec], order: Literal["input", "completion"] = "input"
    ) -> Iterator[StepOutcome]:
        """Yield outcomes as they become available; a consumer that stops taking them stops the feed.

        Args:
            specs: Any iterable, consumed lazily, in this thread: at most the bound of specs plus unread outcomes are
                held. Behind one slow step at most `MAX_UNREAD` finished ones wait for it.
            order: `"input"`, the order of `specs`, or `"completion"`.

        Yields:
            One outcome per spec; a step that failed yields a failed outcome, never an exception.

        Raises:
            InputError: As in `run`; steps that were started are finished and yielded first.
            OptionError: `order` is neither.
            ExecutorNotPicklable: As in `run`.
        """
        one_of("order", order, ("input", "completion"))
        return self._stream(self._dispatching(specs, unattended=True), order == "input")

    def __enter__(self) -> Runner:
        if isinstance(self._backend, Backend):
            self._backend.keep_warm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if isinstance(self._backend, Backend):
            self._backend.cool_down()

    def _stream(self, dispatching: AbstractContextManager[Dispatch], in_input_order: bool) -> Iterator[StepOutcome]:
        with dispatching as dispatch:
            yield from _in_input_order(dispatch) if in_input_order else _as_completed(dispatch)
        if dispatch.input_error is not None:
            raise InputError(dispatch.input_error_reason, Run([], 0.0)) from dispatch.input_error

    def _dispatching(self, specs: Iterable[AgentStepSpec], *, unattended: bool) -> AbstractContextManager[Dispatch]:
        """Check the arguments of a call now; what is returned opens and ends the backend's session around it."""
        try:
            iterator = iter(specs)
        except Exception as error:
            reason = f"specs must be an iterable of AgentStepSpec, got {describe(specs)}"
            raise InputError(reason, Run([], 0.0)) from error
        total = len(specs) if isinstance(specs, Sized) else None
        is_at_hand = type(specs) in (list, tuple)
        # Whoever reads the rest from elsewhere may be away for long, too, while the next spec is being made.
        return self._session(
            iterator, total, may_look_ahead=is_at_hand and not unattended, unattended=unattended or not is_at_hand
        )

    @contextmanager
    def _session(
        self, specs: Iterator[Any], total: int | None, *, may_look_ahead: bool, unattended: bool
    ) -> Iterator[Dispatch]:
        bound = self._bound()
        session = self._open(bound, unattended)
        announcer = None
        try:
            # With events, a step is handed over no sooner than it starts, so that its start can be told.
            if self._event_tx is not None:
                announcer = Announcer(self._event_tx, total)
            lookahead = session.lookahead if may_look_ahead and announcer is None else 0
            yield Dispatch(specs, session, bound, lookahead, announcer)
            session.close()
        except BaseException:
            session.abort()
            raise
        finally:
            if announcer is not None:
                announcer.close()

    def _open(self, bound: int, unattended: bool) -> Session:
        if isinstance(self._backend, Backend):
            return self._backend.open(self._executor, bound, self._event_tx, unattended=unattended)
        from .backends.foreign import ForeignSession  # few need it, and importing it is dear

        return ForeignSession(self._backend, self._executor, self._event_tx)

    def _bound(self) -> int:
        if self._max_concurrency is not None:
            return self._max_concurrency
        hint: object = self._executor.concurrency_hint()
        if not isinstance(hint, int) or isinstance(hint, bool):
            raise OptionError(f"concurrency_hint() of the executor must return an int, got {describe(hint)}")
        return max(1, hint)


def execute_steps_parallel(
    executor: AgentExecutor, specs: Iterable[AgentStepSpec], event_tx: EventSender | None = None, **options: Any
) -> list[StepOutcome]:
    """Run every spec, at most `executor.concurrency_hint()` at once, and return when all are done.

    Args:
        executor: How a step runs.
        specs: Any iterable of specs.
        event_tx: Where events go.
        **options: The keyword arguments of `Runner`.

    Returns:
        One outcome per spec, in the order of `specs`; a step that failed has a failed outcome.

    Raises:
        OptionError: An option that nobody can mean or that does not exist; it is named.
        InputError: As in `Runner.run`.
        ExecutorNotPicklable: As in `Runner.run`.
    """
    refuse_unknown("execute_steps_parallel", options, _OPTIONS)
    return list(Runner(executor, event_tx=event_tx, **options).run(specs))


def _as_completed(dispatch: Dispatch) -> Iterator[StepOutcome]:
    for report in dispatch.reports():
        yield report.outcome


def _in_input_order(dispatch: Dispatch) -> Iterator[StepOutcome]:
    widest = dispatch.window
    unread: dict[int, StepOutcome] = {}
    due = 0
    for report in dispatch.reports():
        unread[report.ticket] = report.outcome
        while due in unread:
            yield unread.pop(due)
            due += 1
        dispatch.window = min(widest, MAX_UNREAD + widest - len(unread))


def _an_executor(value: Any) -> AgentExecutor:
    if isinstance(value, AgentExecutor):
        return value
    if isinstance(value, type) and issubclass(value, AgentExecutor):
        name = value.__name__
        raise OptionError(f"executor must be an instance of {name}, got the class; call it: {name}()")
    raise OptionError(
        f"executor must be an AgentExecutor, got {describe(value)}; "
        "subclass AgentExecutor, or wrap functions in a FunctionExecutor"
    )


def _a_backend(value: Any) -> Executor:
    if isinstance(value, Executor):
        return value
    if isinstance(value, str) and value in _BACKENDS:
        return _BACKENDS[value]()
    raise OptionError(
        "backend must be 'thread', 'process', a Backend or a concurrent.futures.Executor, "
        f"got {describe(value)}{did_you_mean(value, _BACKENDS)}"
    )


def _an_event_sender(value: Any) -> EventSender | None:
    if value is not None and not callable(getattr(value, "send", None)):
        raise OptionError(f"event_tx must be an EventChannel or have a send method, got {describe(value)}")
    sender: EventSender | None = value
    return sender
