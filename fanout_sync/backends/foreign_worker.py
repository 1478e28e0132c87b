"""Running the steps of a foreign pool, in the process of the caller or in a process of the pool."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from .. import forks, last_resort
from ..events.senders import check_event
from ..events.types import Event
from ..executors.current_step import StopSignal
from ..executors.executor import AgentExecutor, is_thread_safe
from ..executors.step_events import StepSender
from ..records.report import Report, failure
from ..records.status import StepError
from ..workers.pickling.loading import NotLoaded, load_executor
from ..workers.pickling.sent_modules import load_apart
from .executor_in_use import ExecutorInUse, Step, too_late
from .state_file import StateFile

if TYPE_CHECKING:
    from ..limits.limiter import Limiter
    from ..records.usage import Usage

MAX_REMOTE_EXECUTORS = 8
"""How many executors a process of a foreign pool keeps set up; more if more are in use by runs that go on."""


class RemoteRun(NamedTuple):
    """What a process of the pool has to know of the run of a step.

    Attributes:
        token: Names the run; unique, also among runs of other machines.
        payload: The executor and the retry rule, pickled.
        wants_events: Whether anybody listens.
        path: The path of the `StateFile`; `None` if there is none.
    """

    token: str
    payload: bytes
    wants_events: bool
    path: str | None


class RemoteCaller(NamedTuple):
    """The process that a step was sent from.

    Attributes:
        name: Unique among callers.
        open_runs: The tokens of all runs that go on there.
    """

    name: str
    open_runs: tuple[str, ...]


class RemoteResult(NamedTuple):
    """What a step in a process of the pool returns.

    Attributes:
        packed: The report.
        events: As JSON.
        usages: The usage that it reported.
        is_state_visible: Whether the caller could see in the state file when the step began.
    """

    packed: bytes
    events: list[str]
    usages: list[Usage]
    is_state_visible: bool


class RemoteStep:
    """A step as it is called in a process of the pool.

    Args:
        run: The run of the step.
        caller: The process that sent it.
        step: What to run.
        number: Its number in the state file.
        is_late: Whether the run was over, or had given the step up, when it was sent.
        refusal: Why its item could not be sent; `None` if it was, or if there is none.
    """

    def __init__(
        self,
        run: RemoteRun,
        caller: RemoteCaller,
        step: Step,
        number: int,
        is_late: bool,
        refusal: StepError | None = None,
    ) -> None:
        self._run = run
        self._caller = caller
        self._step = step
        self._number = number
        self._is_late = is_late
        self._refusal = refusal

    def __call__(self) -> RemoteResult:
        from ..workers.messages import pack_report

        if self._is_late:
            return RemoteResult(pack_report(too_late(self._step), self._step[0]), [], [], True)
        if self._refusal is not None:
            refused = failure(self._step[1], self._step[0], "invalid", self._refusal)
            return RemoteResult(pack_report(refused, self._step[0]), [], [], True)
        events, meter = _EventList(), _UsageList()
        with _executors.using(self._run, self._caller) as executor:
            report = self._report(executor, events, meter)
            is_visible = executor is None or (executor.states is not None and not executor.states.has_failed)
        return RemoteResult(pack_report(report, self._step[0]), events.items, meter.items, is_visible)

    def _report(self, executor: _RemoteExecutor | None, events: _EventList, meter: _UsageList) -> Report:
        if executor is None:
            return too_late(self._step)
        states = executor.states
        if states is not None and not states.set_called(self._number):
            return too_late(self._step)

        def begin() -> None:
            if states is not None:
                states.set_begun(self._number)

        try:
            loaded = executor.loaded()
        except BaseException as error:  # code of the caller; sent as text: an exception that does not load breaks pools
            reason = error.step_error if isinstance(error, NotLoaded) else StepError.of(error)
            return failure(self._step[1], self._step[0], "raised", reason)
        event_tx = events if self._run.wants_events else None
        return loaded.run(self._step, event_tx, os.getpid(), meter, begin)


class _RemoteExecutor:
    """The executor of one run in this process; it is loaded when the first step needs it.

    Attributes:
        caller: The process that the run was started in.
        users: How many steps are using it.
        states: Where steps set their states; `None` if the file cannot be opened here.
    """

    def __init__(self, run: RemoteRun, caller: str) -> None:
        self.caller = caller
        self.users = 0
        self.states = StateFile.open(run.path)
        self._payload = run.payload
        # Loading may take long, or for ever: it delays the steps of this run only.
        self._lock = threading.Lock()
        self._loaded: ExecutorInUse | None = None

    def loaded(self) -> ExecutorInUse:
        with self._lock:
            if self._loaded is None:
                executor, rule = load_executor(self._payload, load_apart)
                make_copy = None if is_thread_safe(executor) else self._copy
                stop = StopSignal() if self.states is None else _RemoteStop(self.states)
                self._loaded = ExecutorInUse(executor, rule, stop, make_copy)
            return self._loaded

    def _copy(self) -> AgentExecutor:
        # Loaded once more rather than copied: what can be sent to a process need not be fit for `copy.deepcopy`.
        executor, _ = load_executor(self._payload, load_apart)
        return executor

    def close(self) -> None:
        """Tear the executor down. Called when no step is using it."""
        if self._loaded is not None:
            self._loaded.close()
        if self.states is not None:
            self.states.close()


class _RemoteStop(StopSignal):
    """Set when the file of the run says that it is over. Nobody tells: it has to be polled."""

    check_interval_s = 0.2

    def __init__(self, states: StateFile) -> None:
        super().__init__()
        self._states = states

    def is_set(self) -> bool:
        return super().is_set() or self._states.is_over()

    def wait(self, timeout_s: float | None) -> None:
        super().wait(self.check_interval_s if timeout_s is None else min(timeout_s, self.check_interval_s))


class _RemoteExecutors:
    """The executors of runs that have had steps in this process, in the order of their last use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_token: OrderedDict[str, _RemoteExecutor] = OrderedDict()
        self._closes_at_exit = False
        self._is_closed = False

    @contextmanager
    def using(self, run: RemoteRun, caller: RemoteCaller) -> Iterator[_RemoteExecutor | None]:
        """Keep the executor of `run` in use; yields `None` if this process is ending."""
        with self._lock:
            executor, surplus = self._claim(run, caller)
        # Outside of the lock: teardown() is the caller's code, and may take long.
        for old in surplus:
            old.close()
        try:
            yield executor
        finally:
            if executor is not None:
                self._release(executor)

    def _claim(self, run: RemoteRun, caller: RemoteCaller) -> tuple[_RemoteExecutor | None, list[_RemoteExecutor]]:
        if self._is_closed:
            return None, []
        if not self._closes_at_exit:
            from multiprocessing.util import Finalize  # runs at the end of forked processes too, unlike atexit

            Finalize(None, self.close, exitpriority=10)
            self._closes_at_exit = True
        executor = self._by_token.get(run.token)
        if executor is None:
            executor = self._by_token[run.token] = _RemoteExecutor(run, caller.name)
        self._by_token.move_to_end(run.token)
        executor.users += 1
        return executor, self._take_surplus(caller)

    def _take_surplus(self, caller: RemoteCaller) -> list[_RemoteExecutor]:
        """Remove the executors beyond the limit: first those of runs that are over, then those used longest ago."""
        too_many = len(self._by_token) - MAX_REMOTE_EXECUTORS
        if too_many <= 0:
            return []
        idle = [token for token, old in self._by_token.items() if not old.users and token not in caller.open_runs]
        idle.sort(key=lambda token: self._by_token[token].caller != caller.name)
        return [self._by_token.pop(token) for token in idle[:too_many]]

    def _release(self, executor: _RemoteExecutor) -> None:
        with self._lock:
            executor.users -= 1
            is_last = self._is_closed and not executor.users
        if is_last:
            executor.close()

    def close(self) -> None:
        """Tear all executors down; one that is in use, when the last step on it ends."""
        with self._lock:
            self._is_closed = True
            idle = [executor for executor in self._by_token.values() if not executor.users]
            self._by_token.clear()
        for executor in reversed(idle):
            executor.close()


_executors = _RemoteExecutors()


def _forget_in_child() -> None:
    """Start with no executors in a forked child: they, and the thread that may hold the lock, belong to the parent."""
    global _executors
    _executors = _RemoteExecutors()


forks.call_in_child(_forget_in_child)
last_resort.install()  # for processes of pools, which import nothing else that does it


class _EventList(StepSender):
    def __init__(self) -> None:
        self.items: list[str] = []

    def send(self, event: Event) -> None:
        check_event(event)
        self.items.append(str.__str__(event.to_json()))


class _UsageList:
    def __init__(self) -> None:
        self.items: list[Usage] = []

    def add(self, index: int, usage: Usage) -> None:
        self.items.append(usage)

    def nest(self, index: int, limiter: Limiter) -> None:
        """Do nothing: the limits of the caller's process do not apply to runs in another one."""
