"""The main program of a worker process: it answers one message at a time, until the caller says stop or is gone."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
from multiprocessing.process import active_children
from typing import TYPE_CHECKING, Any, NoReturn

from ..events.senders import check_event
from ..executors.attempt import run_attempt
from ..executors.current_step import RunningStep, StopSignal
from ..executors.executor import AgentExecutor
from ..executors.loops import close_event_loops
from ..executors.step_context import StepContext, own_context
from ..executors.step_events import StepSender
from ..records.status import StepError
from . import messages
from .caller_state import State, take_over, take_over_filters
from .link import LOST_LINK_EXIT_CODE, LinkLost, WorkerLink, adopt
from .log_records import Forwarding
from .messages import Message, error_fields, pack, pack_report, unpack_item_step, unpack_step
from .output import flush_streams, redirect
from .parent import watch_parent
from .pickling.loading import NotLoaded, load_executor, loading
from .pickling.sent_modules import SentModule, load, set_rest
from .surroundings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..events.types import Event
    from ..limits.limiter import Limiter
    from ..records.usage import Usage
    from ..retry.policy import RetryRule

logger = logging.getLogger(__name__)


def main(descriptor: int, outputs: Sequence[int], mark: str) -> None:
    """Serve the caller at the other end of a socket until it says stop.

    Args:
        descriptor: The socket.
        outputs: See `output.redirect`; empty if the worker prints where the caller does.
        mark: Identifies the descendants of this worker; see `process_tree.MARK`.
    """
    # The terminal is the caller's, and Ctrl-C does not reach this process; a step may still send it the signal.
    # A handler rather than SIG_IGN: programs that a step starts have the default action again.
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))  # see `processes.spawn`
    redirect(outputs)
    worker = Worker(adopt(descriptor), bool(outputs))
    try:
        if worker.watch_caller(mark):
            worker.serve()
    except LinkLost:
        # The caller died, or a step closed the descriptors of this worker: nobody can be told any more.
        _exit_now(LOST_LINK_EXIT_CODE)
    close_event_loops()
    lingering = [thread for thread in threading.enumerate() if not thread.daemon]
    if lingering != [threading.current_thread()] or active_children():
        # A normal exit would wait for ever for a thread or a process that a step started and forgot.
        _exit_now(0)


class Worker:
    """The state of a worker process between messages."""

    def __init__(self, link: WorkerLink, is_captured: bool) -> None:
        self._link = link
        self._is_captured = is_captured
        self._pid = os.getpid()
        self._forwarding = Forwarding(self._forward_log)
        self._executor: AgentExecutor | None = None
        self._context = StepContext()
        self._rule: RetryRule | None = None
        self._state: State = {}  # comes before any PREPARE
        self._stop = StopSignal()  # never set: a worker that is to stop is killed
        self._event_tx: WorkerEventSender | None = None
        self._surroundings = Surroundings(watches_output=is_captured)

    def watch_caller(self, mark: str) -> bool:
        """Have this process exit when its caller does; if that is impossible, tell the caller why and return false."""
        try:
            watch_parent(mark)
        except RuntimeError as error:  # the system has no more threads
            while self._link.receive()[0] != messages.PREPARE:  # to which this is the answer
                continue
            self._link.send(pack((messages.UNPREPARED, error_fields(StepError.of(error)))))
            return False
        return True

    def serve(self) -> None:
        answer_to: dict[str, Callable[[Message], bool]] = {
            messages.STATE: self._take_over,
            messages.MODULES: self._keep_rest,
            messages.PREPARE: self._prepare,
            messages.ITEM_STEP: lambda message: self._answer(self._run_step(message, unpack_item_step)),
            messages.CALL: lambda message: self._answer(self._run_call(message)),
        }
        receive, step, stop = self._link.receive, messages.STEP, messages.STOP
        while (kind := (message := receive())[0]) != stop:
            if not (self._answer(self._run_step(message)) if kind == step else answer_to[kind](message)):
                return
        self._tear_down()

    def _keep_rest(self, message: Message) -> bool:
        set_rest(message[1])
        return True

    def _take_over(self, message: Message) -> bool:
        """Take over the state of the caller; return whether this worker is as fit as a new one."""
        _, self._state, reloaded, is_prepared = message
        if any(name in sys.modules and not isinstance(sys.modules[name], SentModule) for name in reloaded):
            self._link.send(pack((messages.LEAVING,)))
            self._tear_down()
            return False
        take_over(self._state)
        take_over_filters(self._state)
        self._forwarding.set_levels(self._state["levels"])
        self._surroundings.remember()
        if reloaded and is_prepared:
            self._link.send(pack((messages.READY,)))
        return True

    def _prepare(self, message: Message) -> bool:
        _, payload, wants_events = message
        self._tear_down()
        self._event_tx = WorkerEventSender(self._link) if wants_events else None
        try:
            executor = self._load(payload) if payload else None
            self._forwarding.restore()
            take_over_filters(self._state)  # once more: now there are the categories of the modules just loaded
            # After loading: what modules set when they are imported is seen by every step, as on threads.
            self._context = StepContext()
            if executor is not None:
                self._context.set_up(executor)
                self._forwarding.restore()
        except NotLoaded as failure:
            self._link.send(pack((messages.UNLOADABLE, error_fields(failure.error))))
            return False
        except BaseException as error:  # code of the executor, which may also raise SystemExit
            self._link.send(pack((messages.UNPREPARED, error_fields(StepError.of(error)))))
            return False
        self._executor = executor
        self._surroundings.remember()
        self._link.send(pack((messages.READY,)))
        return True

    def _load(self, payload: bytes) -> AgentExecutor:
        def note(name: str) -> None:
            self._link.send(pack((messages.LOADING, name)))

        executor, self._rule = load_executor(payload, load, note)
        self._link.send(pack((messages.LOADED,)))
        return executor

    def _tear_down(self) -> None:
        if self._executor is None:
            return
        try:
            self._context.tear_down(self._executor)
        except BaseException:  # as above
            logger.exception("teardown() of %s raised", type(self._executor).__name__)
        self._executor = None

    def _answer(self, answer: bytes) -> bool:
        """Send an answer; return whether this worker can run another step."""
        if self._is_captured:
            flush_streams()
        can_go_on = self._surroundings.can_be_restored()
        if not can_go_on:
            self._link.send(pack((messages.LEAVING,)))
        self._link.send(answer)
        # After the answer, so that it happens while the caller prepares the next step.
        self._surroundings.restore()
        self._forwarding.restore()
        if not can_go_on:
            self._tear_down()
        return can_go_on

    def _forward_log(self, fields: dict[str, Any]) -> None:
        if os.getpid() == self._pid:  # as in `WorkerEventSender.send`
            self._link.send(pack((messages.LOG, fields)))

    def _run_step(self, message: Message, unpack: Callable[..., RunningStep] = unpack_step) -> bytes:
        step = unpack(message, self._stop, self)
        assert self._executor is not None, "STEP comes after READY"
        run = self._context.copy().run
        report = run(run_attempt, self._executor, step, self._event_tx, self._pid, self._rule)
        return pack_report(report, step[0])

    def add(self, index: int, usage: Usage) -> None:
        """Report the usage to the caller at once: it counts also if the step is killed later."""
        if os.getpid() == self._pid:  # as in `WorkerEventSender.send`
            message = (messages.USAGE, index, usage.prompt_tokens, usage.completion_tokens, usage.cost_usd)
            self._link.send(pack(message))

    def nest(self, index: int, limiter: Limiter) -> None:
        """Do nothing: the limits of the caller's process do not apply to runs inside a worker."""

    def _run_call(self, message: Message) -> bytes:
        _, index, payload = message
        preface = "While the function and its arguments were unpickled in the worker:\n\n"
        try:
            with loading():
                ((function, args, kwargs),) = load(payload)
            preface = ""
            result = own_context().run(lambda: _portable(function(*args, **kwargs)))
            answer: Message = (messages.RETURNED, index, result)
        except BaseException as error:  # a future has whatever its function raised
            name, text, trace = error_fields(StepError.of(error))
            answer = (messages.RAISED, index, _portable_exception(error), (name, text, f"{preface}{trace}"))
        self._exit_if_forked()
        return pack(answer)

    def _exit_if_forked(self) -> None:
        # If a call forks and the child returns, both processes would answer over one socket.
        if os.getpid() != self._pid:
            os._exit(0)


class WorkerEventSender(StepSender):
    """The `event_tx` of a worker process: sends each event to the caller at once."""

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        self._pid = os.getpid()

    def send(self, event: Event) -> None:
        """Send `event` to the caller.

        Raises:
            TypeError: `event` is no `Event`.
            WireError: JSON cannot carry one of its fields; the error names it.
        """
        check_event(event)
        if os.getpid() == self._pid:  # a child that a step forked must not write to the socket
            self._link.send(pack((messages.EVENT, str.__str__(event.to_json()))))


def _portable(value: Any) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(value, protocol=5)
    # Loaded here first: if loading kills the process, it is this worker, which can be replaced, and not the caller.
    pickle.loads(data)
    return data


def _portable_exception(error: BaseException) -> bytes | None:
    try:
        return _portable(error)
    except BaseException:  # code of the exception's class raised; the caller gets the text instead
        return None


def _exit_now(code: int) -> NoReturn:
    flush_streams()
    os._exit(code)
