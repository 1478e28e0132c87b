"""The steps of a run on a foreign pool, in the process of the caller."""

from __future__ import annotations

import os
import threading
import uuid
from concurrent.futures import Future
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..executors.step_events import RevocableSender
from ..records.report import Report
from ..records.status import StepError
from ..wire.item_spec import ItemSpec, PackedItem
from ..workers.messages import plain_pickle
from .backend import RunContext
from .copies import MakeCopy
from .executor_in_use import ExecutorInUse, Step, too_late
from .foreign_worker import RemoteCaller, RemoteResult, RemoteRun, RemoteStep
from .state_file import StateFile

if TYPE_CHECKING:
    from ..workers.pickling.code_pickler import Sent
    from ..workers.pickling.item import PickleItem

Result = Report | RemoteResult
"""What a step returns: a report in this process, a `RemoteResult` in another."""


class ForeignRun:
    """What the steps of one run share in the process of the caller.

    Args:
        context: What there is to know of the run.
        make_copy: Makes a copy of the executor for each thread of this process; `None` if they share it.
    """

    def __init__(self, context: RunContext, make_copy: MakeCopy | None) -> None:
        self.context = context
        self.executor = ExecutorInUse(context.executor, context.retry_rule, context.stop, make_copy)
        # Other processes keep executors under this name. A process id is not enough: containers may have the same ones.
        self.token = uuid.uuid4().hex
        # Guards `is_withdrawn` and `_is_called` of each step, and the state file.
        self.lock = threading.Lock()
        self.states: StateFile | None = None
        self._has_tried_to_create_states = False
        self._steps_in_pool = 0
        self._may_be_called = False
        self.is_over = False

    @cached_property
    def payload(self) -> bytes:
        """The executor and the retry rule, pickled."""
        return self._pickled[0]

    @cached_property
    def _pickled(self) -> tuple[bytes, Sent]:
        from ..workers.pickling.executor import pickle_executor

        return pickle_executor(self.context.executor, self.context.retry_rule)

    @cached_property
    def _pickle_item(self) -> PickleItem:
        from ..workers.pickling.code_dump import sent_code
        from ..workers.pickling.item import item_pickler

        return item_pickler(sent_code(self._pickled[1]))

    def packed(self, step: Step) -> tuple[Step, StepError | None]:
        """Return a step as it can be pickled: its item is, if it has one; and why that is impossible, if it is."""
        spec, index, attempt, timeout_s = step
        if not isinstance(spec, ItemSpec) or plain_pickle(spec.item) is not None:
            return step, None
        item, refusal = None, None
        try:
            item = PackedItem(self._pickle_item(index, spec.item))
        except Exception as error:
            refusal = StepError("InvalidItem", str(error))
        return (ItemSpec.of(spec.task_id, spec.agent, item), index, attempt, timeout_s), refusal

    def remote(self) -> RemoteRun:
        """Return what is sent to other processes. Called in any thread: some pools pickle in a thread of their own."""
        payload = self.payload
        with self.lock:
            if not self._has_tried_to_create_states and not self.is_over:
                self._has_tried_to_create_states = True
                self.states = StateFile.create()
                _open_runs.add(self.token)
            path = None if self.states is None else self.states.path
        return RemoteRun(self.token, payload, self.context.event_tx is not None, path)

    def end(self) -> None:
        """Let no more steps begin, and tell those that run."""
        self.context.stop.set()
        self._mark_over()

    def count_in(self) -> None:
        """Count a step that the pool has accepted."""
        with self.lock:
            self._steps_in_pool += 1

    def count_out(self, *, is_dropped: bool) -> None:
        """Count a step that the pool has ended.

        Args:
            is_dropped: Whether the pool certainly does not call it any more.
        """
        with self.lock:
            self._steps_in_pool -= 1
            self._may_be_called |= not is_dropped
            self._remove_states_if_unused()

    def close(self) -> None:
        """Tear the executor down when its last step has ended."""
        self._mark_over()
        self.executor.close()

    def _mark_over(self) -> None:
        with self.lock:
            self.is_over = True
            _open_runs.discard(self.token)
            if self.states is not None:
                self.states.end()
            self._remove_states_if_unused()

    def _remove_states_if_unused(self) -> None:
        # As long as the pool may still call a step, that step has to find out that the run is over.
        if self.states is not None and self.is_over and not self._steps_in_pool:
            if not self._may_be_called:
                self.states.remove()
            self.states.close()
            self.states = None


_open_runs: set[str] = set()
"""The tokens of the runs that go on in this process, so that other processes keep their executors."""

_PROCESS = uuid.uuid4().hex
"""Names this process together with its process id: a forked child has the same value."""


class ForeignStep:
    """What a foreign pool is given to call. Pickling it, which only a pool of processes does, makes a `RemoteStep`.

    Attributes:
        future: The future of the pool; `None` until the pool has accepted the step.
        submitted: When it was submitted to the pool, on the clock of `time.monotonic()`, as the next two.
        began: When the step began; `None` as long as that is not known.
        presumed: When it was presumed to have begun; `None` if it was not.
        thread: The number that the system has given to the thread in which it has begun, in this process.
        is_remote: Whether it was sent to another process.
        is_given_up: Whether it was reported before it ended.
        is_withdrawn: Whether it never begins, because its end is reported already.
    """

    def __init__(self, run: ForeignRun, step: Step, number: int) -> None:
        self.spec, self.index, self.attempt, self.timeout_s = step
        self.future: Future[Result] | None = None
        self.submitted = monotonic()
        self.began: float | None = None
        self.presumed: float | None = None
        self.thread: int | None = None
        self.is_remote = False
        self.is_given_up = False
        self.is_withdrawn = False
        self._run = run
        self._step = step
        self._number = number
        self._is_called = False

    def __call__(self) -> Result:
        run = self._run
        with run.lock:
            if self.is_withdrawn:
                return too_late(self._step)
            self._is_called = True
        event_tx = run.context.event_tx
        if event_tx is not None and self.timeout_s is not None:
            event_tx = RevocableSender(event_tx, lambda: not self.is_given_up)
        worker = threading.current_thread().name
        return run.executor.run(self._step, event_tx, worker, run.context.meter, self._begin)

    def _begin(self) -> None:
        self.thread = threading.get_native_id()
        self.began = monotonic()

    def __reduce__(self) -> tuple[Any, ...]:
        run = self._run.remote()
        self.is_remote = True  # only now: pickling the executor does not count as time of the step
        caller = RemoteCaller(f"{_PROCESS}-{os.getpid()}", tuple(_open_runs))
        step, refusal = self._run.packed(self._step)
        return RemoteStep, (run, caller, step, self._number, self.is_withdrawn or self._run.is_over, refusal)

    @property
    def is_done(self) -> bool:
        return self.future is not None and self.future.done()

    @property
    def state(self) -> int:
        """The state that it has set in another process; see `StateFile`."""
        if not self.is_remote:
            return 0
        with self._run.lock:
            return 0 if self._run.states is None else self._run.states.state_of(self._number)

    @property
    def has_place(self) -> bool:
        """Whether it is running in the pool, as far as is known."""
        return self._is_called or self.began is not None or self.presumed is not None or self.state > 0

    def withdraw(self) -> bool:
        """Withdraw the step; return whether it had not begun, so that it never begins."""
        with self._run.lock:
            states = self._run.states if self.is_remote else None
            if self._is_called or (states is not None and not states.withdraw(self._number)):
                return False
            self.is_withdrawn = True
        if self.future is not None:
            self.future.cancel()
        return True
