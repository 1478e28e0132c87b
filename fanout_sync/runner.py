"""Bounded, ordered, isolating dispatch of specs over a backend."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast
from weakref import WeakSet

from .announcer import FLUSH_S, INTERRUPTED_FLUSH_S, Announcer
from .attempt import Report
from .backends import Backend, ProcessBackend, ThreadBackend
from .backends.backend import RunContext, Session
from .current import CurrentStep, StopSignal, current_step, running_step
from .dispatch import Dispatch, Policies
from .errors import FanoutInterrupted, InputError, OptionError
from .executor import AgentExecutor, EventSender
from .interrupts import Guard, end_as_if_killed
from .logs import logger_for
from .options import one_of, positive_int, positive_seconds, refuse_unknown
from .run import Run
from .steps import AgentStepSpec, StepOutcome
from .wording import describe, did_you_mean

if TYPE_CHECKING:
    from tenacity import BaseRetrying

    from .retry import Retry, RetryPolicy

logger = logger_for(__name__)

MAX_UNREAD = 256
"""How many outcomes `stream(order="input")` holds back behind a slow step before it stops feeding."""

_BACKENDS: dict[str, Callable[[], Backend]] = {"thread": ThreadBackend, "process": ProcessBackend}
_OPTIONS = ("backend", "max_concurrency", "timeout", "retry", "event_tx", "on_interrupt")


class Runner:
    """Runs specs on an executor, many at once, and gives back every outcome.

    A step that raises, dies or returns garbage becomes a failed outcome that says so and keeps the spec's `task_id`
    and `agent`; the others are not touched. One runner can be used any number of times, from several threads at once
    and inside its own steps; each call has its own bound.

    As a context manager it keeps process workers warm between calls; streams that are open at its end are closed.

    Args:
        executor: How a step runs.
        backend: Where: `"thread"`, `"process"`, a `Backend`, or any `concurrent.futures.Executor`.
        max_concurrency: How many steps of one call may run at once; by default what the executor hints.
        timeout: How many seconds an attempt at a step may take, from when it begins in its worker; by default any
            time. `AgentExecutor.timeout_for` goes before it. In a worker process the step is killed with all that it
            started; a thread is abandoned; on a foreign pool the step is given up, and keeps its place there (a
            `UserWarning` says so).
        retry: Whether steps that failed are tried again: how many attempts there are, a `Retry`, or a
            `tenacity.Retrying` object, of which `stop`, `wait` and `retry` count. By default each step is tried once.
        event_tx: Where events go, usually an `EventChannel`: anything with a `send` method.
        on_interrupt: What Ctrl-C does when everything is cleaned up: `"raise"` a `FanoutInterrupted`, or `"return"`
            what there is.

    Raises:
        OptionError: An argument that nobody can mean; it is named.
    """

    def __init__(
        self,
        executor: AgentExecutor,
        *,
        backend: Literal["thread", "process"] | Executor = "thread",
        max_concurrency: int | None = None,
        timeout: float | None = None,
        retry: int | Retry | BaseRetrying | None = None,
        event_tx: EventSender | None = None,
        on_interrupt: Literal["raise", "return"] = "raise",
        **unknown: NoReturn,
    ) -> None:
        refuse_unknown("Runner", unknown, _OPTIONS)
        self._executor = _an_executor(executor)
        self._backend = _a_backend(backend)
        self._max_concurrency = None if max_concurrency is None else positive_int("max_concurrency", max_concurrency)
        self._policies = Policies(_a_timeout(timeout), _timeout_for(self._executor), _a_retry(retry))
        self._event_tx = _an_event_sender(event_tx)
        self._streams: WeakSet[Generator[StepOutcome, None, None]] = WeakSet()
        self._raises_interrupts = one_of("on_interrupt", on_interrupt, ("raise", "return")) == "raise"
        has_limits = self._policies.timeout_s is not None or self._policies.timeout_for is not None
        if has_limits and not isinstance(self._backend, Backend):
            warnings.warn(
                f"the timeout is a soft one: {type(backend).__name__} cannot stop a step that is overdue, which is "
                "reported as timed out and keeps its place there; backend='process' kills it",
                stacklevel=_level_of_the_caller(),
            )

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
            FanoutInterrupted: Ctrl-C. Worker processes are killed, steps on threads have `current_step().cancelled`
                set and a second to stop. Its `.run` has what was done.
        """
        began = time.monotonic()
        reports: dict[int, Report] = {}
        with self._dispatching(specs, unattended=False) as dispatch:
            try:
                for report in dispatch.reports():
                    reports[report.ticket] = report
            except KeyboardInterrupt:  # one that was raised rather than noted, by whatever means
                dispatch.interrupt()
            if dispatch.is_interrupted:
                reports.update((report.ticket, report) for report in dispatch.wind_down())
                self._raise_interrupt(reports, began)
        if dispatch.is_interrupted:  # at the very end, perhaps
            self._raise_interrupt(reports, began)
        run = _run_of(reports, began)
        if dispatch.input_error is not None and not dispatch.is_interrupted:
            raise InputError(dispatch.input_error_reason, run) from dispatch.input_error
        return run

    def stream(
        self, specs: Iterable[AgentStepSpec], order: Literal["input", "completion"] = "input"
    ) -> Generator[StepOutcome, None, None]:
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
            FanoutInterrupted: Ctrl-C while it waits for an outcome; its `.run` has those that were not yielded yet.
        """
        one_of("order", order, ("input", "completion"))
        stream = self._stream(self._dispatching(specs, unattended=True), order == "input")
        self._streams.add(stream)
        return stream

    def __enter__(self) -> Runner:
        if isinstance(self._backend, Backend):
            self._backend.keep_warm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for stream in list(self._streams):
            with suppress(ValueError):  # another thread is just reading it: it is that one's to end
                stream.close()
        if isinstance(self._backend, Backend):
            self._backend.cool_down(is_urgent=isinstance(error, KeyboardInterrupt))

    def _stream(
        self, dispatching: AbstractContextManager[Dispatch], in_input_order: bool
    ) -> Generator[StepOutcome, None, None]:
        began = time.monotonic()
        with dispatching as dispatch:
            unread: dict[int, Report] = {}
            reports = _in_input_order(dispatch, unread) if in_input_order else dispatch.reports()
            yield from _handed_out(dispatch, reports)
            if dispatch.is_interrupted:
                unread.update((report.ticket, report) for report in dispatch.wind_down())
                self._raise_interrupt(unread, began)
                yield from _handed_out(dispatch, [unread.pop(ticket) for ticket in sorted(unread)])
        if dispatch.is_interrupted:
            self._raise_interrupt(unread, began)
        if dispatch.input_error is not None and not dispatch.is_interrupted:
            raise InputError(dispatch.input_error_reason, Run([], 0.0)) from dispatch.input_error

    def _raise_interrupt(self, reports: dict[int, Report], began: float) -> None:
        """Raise what an interrupted run ends with, unless it is to return.

        It is raised while interrupts are still taken note of: one more must not put itself in its place.
        """
        if self._raises_interrupts:
            end_as_if_killed()
            raise FanoutInterrupted(_run_of(reports, began))

    def _dispatching(self, specs: Iterable[AgentStepSpec], *, unattended: bool) -> AbstractContextManager[Dispatch]:
        """Check the arguments of a call now; what is returned opens and ends the backend's session around it."""
        try:
            iterator = iter(specs)
        except Exception as error:
            reason = f"specs must be an iterable of AgentStepSpec, got {describe(specs)}"
            raise InputError(reason, Run([], 0.0)) from error
        total = _length_of(specs)
        if type(specs) in (list, tuple):
            return self._session(
                cast("Sequence[Any]", specs), total, may_look_ahead=not unattended, unattended=unattended
            )
        # Whoever reads them from elsewhere may be away for long, too, while the next spec is being made.
        return self._session(iterator, total, may_look_ahead=False, unattended=True)

    @contextmanager
    def _session(
        self, specs: Iterator[Any] | Sequence[Any], total: int | None, *, may_look_ahead: bool, unattended: bool
    ) -> Iterator[Dispatch]:
        bound = self._bound()
        outer = None if running_step.get() is None else current_step()
        stop = StopSignal()
        rule = None if self._policies.retry is None else self._policies.retry.rule
        context = RunContext(self._executor, bound, self._event_tx, rule, stop, unattended)
        with Guard() as guard:
            session = self._open(context)
            announcer = None
            try:
                # With events, a step is handed over no sooner than it starts, so that its start can be told.
                if self._event_tx is not None:
                    announcer = Announcer(self._event_tx, total)
                lookahead = session.lookahead if may_look_ahead and announcer is None else 0
                expires_at = math.inf if outer is None or outer.deadline is None else outer.deadline
                dispatch = Dispatch(specs, session, bound, lookahead, self._policies, announcer, guard, expires_at)
                with _interrupting(dispatch, guard, outer):
                    yield dispatch
                    guard.is_attended = True
                    if dispatch.is_interrupted:
                        session.abort()
                    else:
                        session.close()
            except BaseException:
                guard.is_attended = True
                session.abort()
                raise
            finally:
                if announcer is not None:
                    announcer.close(FLUSH_S if not guard.is_interrupted else INTERRUPTED_FLUSH_S)

    def _open(self, context: RunContext) -> Session:
        if isinstance(self._backend, Backend):
            return self._backend.open(context)
        from .backends.foreign import ForeignSession  # few need it, and importing it is dear

        return ForeignSession(self._backend, context)

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
        FanoutInterrupted: As in `Runner.run`.
    """
    refuse_unknown("execute_steps_parallel", options, _OPTIONS)
    return list(Runner(executor, event_tx=event_tx, **options).run(specs))


@contextmanager
def _interrupting(dispatch: Dispatch, guard: Guard, outer: CurrentStep | None) -> Iterator[None]:
    """Have a run given up when the user interrupts it, or when the step is cancelled that it is part of."""
    guard.on_interrupt = dispatch.interrupt
    if guard.is_interrupted:
        dispatch.interrupt()
    if outer is None:
        yield
        return
    outer.stop.listen(dispatch.interrupt)
    try:
        yield
    finally:
        outer.stop.unlisten(dispatch.interrupt)


def _run_of(reports: dict[int, Report], began: float) -> Run:
    return Run([reports[ticket] for ticket in sorted(reports)], time.monotonic() - began)


def _handed_out(dispatch: Dispatch, reports: Iterable[Report]) -> Iterator[StepOutcome]:
    for report in reports:
        dispatch.guard.is_inside = False
        try:
            yield report.outcome
        except KeyboardInterrupt:  # thrown in by a consumer that was interrupted and wants what is left
            dispatch.interrupt()
        finally:
            dispatch.guard.is_inside = True


def _in_input_order(dispatch: Dispatch, unread: dict[int, Report]) -> Iterator[Report]:
    """Yield reports in the order of the input.

    Args:
        dispatch: Where they come from.
        unread: Holds those that are not yielded yet.
    """
    widest = dispatch.window
    due = 0
    for report in dispatch.reports():
        unread[report.ticket] = report
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


def _length_of(specs: Iterable[Any]) -> int | None:
    try:
        return len(specs) if isinstance(specs, Sized) else None
    except Exception:  # somebody's own __len__; the length is only told to listeners
        logger.warning("the length of the specs is not known", exc_info=True)
        return None


def _a_timeout(value: Any) -> float | None:
    seconds = None if value is None else positive_seconds("timeout", value)
    return None if seconds == math.inf else seconds


def _a_retry(value: Any) -> RetryPolicy | None:
    if value is None:
        return None
    from .retry import retry_policy  # few need it, and importing it is dear

    return retry_policy(value)


def _timeout_for(executor: AgentExecutor) -> Callable[[AgentStepSpec], float | None] | None:
    own = executor.timeout_for
    return None if getattr(own, "__func__", None) is AgentExecutor.timeout_for else own


def _level_of_the_caller() -> int:
    """Return the `stacklevel` at which, for `warnings.warn` where this is called, the first frame of others is."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals is globals():
        level, frame = level + 1, frame.f_back
    return level


def _an_event_sender(value: Any) -> EventSender | None:
    if value is not None and not callable(getattr(value, "send", None)):
        raise OptionError(f"event_tx must be an EventChannel or have a send method, got {describe(value)}")
    sender: EventSender | None = value
    return sender
