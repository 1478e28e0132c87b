"""Helpers for the tests of early ends: steps that the test controls, every way to call a runner, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    FanoutError,
    JournalRecord,
    MemoryJournal,
    OpenWorkflow,
    Run,
    Runner,
    StepOutcome,
    Stop,
    current_step,
)
from fanout_sync.testing import Ledger

WAYS = ("run", "input order", "completion order", "pipeline", "loop")
ORDERS = ("input", "completion")

BOUND_S = 60
LOOK_EVERY_S = 0.02
CALM_LOOKS = 5
"""How many times in a row a thread must be found asleep: then it has handed over the result of its step."""


# Steps ----------------------------------------------------------------------------------------------------------------


@frozen
class Marks:
    """A folder in which steps leave marks, and through which the test releases held steps."""

    folder: Path = field(converter=Path)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "marks")

    def named(self, kind: str) -> list[str]:
        """Return what was marked as `kind`, such as the task ids of the steps that have `"begun"`, in order."""
        marks = [mark.partition(":") for mark in self.ledger.counts().elements()]
        return [name for found, _, name in marks if found == kind]

    def release(self) -> None:
        (self.folder / "release").touch()

    def is_released(self) -> bool:
        return (self.folder / "release").exists()

    def have_begun(self, *task_ids: str) -> Callable[[], bool]:
        return lambda: set(task_ids) <= set(self.named("begun"))

    def at_rest(self) -> Callable[[], bool]:
        """Return a function: whether all steps that have begun are done, and their workers wait for further steps."""
        calm = 0

        def is_at_rest() -> bool:
            nonlocal calm
            is_calm = bool(self.named("done")) and set(self.named("begun")) == set(self.named("done"))
            calm = calm + 1 if is_calm and all(map(_sleeps, set(self.named("thread")))) else 0
            return calm >= CALM_LOOKS

        return is_at_rest


class ScriptedExecutor(AgentExecutor):
    """Runs each step as its agent says, and marks it as begun and, last of all, as done.

    "quick" answers with its prompt. "held" waits until it is released. "after" waits for the marks in its prompt.
    "told" waits until it is told to stop, and raises; "obedient" answers then. "flaky" raises the first time, and then
    is "told". "refusing" says failure when it is told to stop.
    """

    def __init__(self, folder: str | Path, *, is_slow_to_end: bool = False) -> None:
        self.marks = Marks(folder)
        self.is_slow_to_end = is_slow_to_end

    def execute_step(self, spec: AgentStepSpec, event_tx: object = None) -> StepOutcome:
        self._mark("begun", spec)
        self.marks.ledger.note(f"process:{os.getpid()}")
        outcome = self._act(spec)
        self.marks.ledger.note(f"thread:{threading.get_native_id()}")
        self._mark("done", spec)
        return outcome

    def teardown(self) -> None:
        if self.is_slow_to_end:
            self.marks.ledger.note("ending:executor")
            _await(self.marks.is_released)

    def _act(self, spec: AgentStepSpec) -> StepOutcome:
        if spec.agent == "held":
            _await(self.marks.is_released)
        elif spec.agent == "after":
            _await(self.marks.have_begun(*spec.prompt.split()))
        elif spec.agent != "quick":
            if spec.agent == "flaky" and current_step().attempt == 1:
                raise ConnectionError("the first attempt fails")
            current_step().cancelled.wait(BOUND_S)
            self._mark("told", spec)
            if spec.agent == "refusing":
                return StepOutcome.failed(spec.task_id, spec.agent, "told to stop")
            if spec.agent != "obedient":
                raise ConnectionError("told to stop")
        return StepOutcome.completed(spec, spec.prompt)

    def _mark(self, kind: str, spec: AgentStepSpec) -> None:
        self.marks.ledger.note(f"{kind}:{spec.task_id}")


def scripted_specs(*agents: str) -> list[AgentStepSpec]:
    """Return a spec for each agent, with the task ids `"t0"`, `"t1"`, …; what "after" waits for stands behind it."""
    specs = []
    for number, agent in enumerate(agents):
        name, _, prompt = agent.partition(" ")
        specs.append(AgentStepSpec(f"t{number}", name, "a step", prompt or str(number)))
    return specs


def in_order(task_ids: Iterable[str]) -> list[str]:
    return sorted(task_ids, key=lambda task_id: int(task_id[1:]))


def _sleeps(thread: str) -> bool:
    """Whether a thread of any process sleeps, or has ended."""
    try:
        text = Path(f"/proc/{thread}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return text[text.rindex(")") + 2] == "S"


def _await(condition: Callable[[], bool]) -> None:
    clock = threading.Event()
    for _ in range(int(BOUND_S / LOOK_EVERY_S)):
        if condition():
            return
        clock.wait(LOOK_EVERY_S)
    raise TimeoutError("the condition never held")


# Calls ----------------------------------------------------------------------------------------------------------------


@define
class CallResult:
    """The result of a call of a runner.

    Attributes:
        seen: The outcomes that were returned or yielded.
        error: What it raised, if it did.
    """

    seen: list[StepOutcome] = field(factory=list)
    error: BaseException | None = None

    @property
    def run(self) -> Run:
        """The run of the error."""
        assert isinstance(self.error, FanoutError), repr(self.error)
        run = getattr(self.error, "run", None)
        assert isinstance(run, Run), repr(self.error)
        return run

    @property
    def outcomes(self) -> list[StepOutcome]:
        """All outcomes that the caller got, returned, yielded or in the error's run."""
        return self.seen if self.error is None else [*self.seen, *self.run]

    @property
    def succeeded(self) -> list[str]:
        return [outcome.task_id for outcome in self.outcomes if outcome.success]

    @property
    def task_ids(self) -> list[str]:
        return [outcome.task_id for outcome in self.outcomes]


def call_runner(way: str, runner: Runner, specs: Iterable[AgentStepSpec]) -> CallResult:
    """Call a runner in one of the ways and return the result, with an interrupt or an error of the library."""
    result = CallResult()
    try:
        if way == "run":
            result.seen.extend(runner.run(specs))
        elif way == "pipeline":
            result.seen.extend(outcome for outcome in runner.pipeline(specs, [_itself]) if outcome is not None)
        elif way == "loop":
            result.seen.extend(runner.loop(specs, 3, lambda outcomes: Stop()))
        else:
            order: Any = way.removesuffix(" order")
            for outcome in runner.stream(specs, order=order):
                result.seen.append(outcome)
    except (FanoutError, KeyboardInterrupt) as error:
        result.error = error
    return result


def _itself(_: StepOutcome | None, item: Any) -> AgentStepSpec:
    assert isinstance(item, AgentStepSpec)
    return item


# Interrupts -----------------------------------------------------------------------------------------------------------


def press_ctrl_c() -> None:
    """Interrupt the main thread, from whichever thread."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextmanager
def ctrl_c_when(condition: Callable[[], bool], then: Callable[[], None] | None = None) -> Iterator[None]:
    """Press Ctrl-C once, when a condition holds during the `with` block; fail if the block ends before that."""
    is_over, is_pressed = threading.Event(), threading.Event()

    def press() -> None:
        while not is_over.wait(LOOK_EVERY_S):
            if condition():
                is_pressed.set()
                press_ctrl_c()
                if then is not None:
                    then()
                return

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(BOUND_S)
    assert is_pressed.is_set(), "the block ended before the condition held"


# Journals -------------------------------------------------------------------------------------------------------------


class HookedJournal(MemoryJournal):
    """Calls a hook at each use: "opening", "opened", "asked", "writing", "written", "syncing", "closing", "closed"."""

    def __init__(self, hook: Callable[[str], None]) -> None:
        super().__init__()
        self.hook = hook

    def open(self, workflow_id: str) -> OpenWorkflow:
        self.hook("opening")
        opened = _HookedWorkflow(super().open(workflow_id), self.hook)
        self.hook("opened")
        return opened


@define(eq=False)
class _HookedWorkflow(OpenWorkflow):
    inner: OpenWorkflow
    hook: Callable[[str], None]

    def identities(self, task_ids: Iterable[str]) -> dict[str, str | None]:
        self.hook("asked")
        return self.inner.identities(task_ids)

    def find(self, task_id: str) -> JournalRecord | None:
        self.hook("asked")
        return self.inner.find(task_id)

    def write(self, records: Sequence[JournalRecord]) -> None:
        self.hook("writing")
        self.inner.write(records)
        self.hook("written")

    def sync(self) -> None:
        self.hook("syncing")
        self.inner.sync()

    def close(self) -> None:
        self.hook("closing")
        self.inner.close()
        self.hook("closed")
