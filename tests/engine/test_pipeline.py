"""Pipelines: each item goes its own way, within one bound."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bounds import HANG_BOUND_S

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    EventChannel,
    FanoutInterrupted,
    FunctionExecutor,
    InputError,
    OptionError,
    Retry,
    Runner,
    StepOutcome,
    SubagentStart,
    execute_pipeline,
)

MakeRunner = Callable[..., Runner]
Stage = Callable[["StepOutcome | None", Any], "AgentStepSpec | None"]


def _spec(name: str, prompt: str) -> AgentStepSpec:
    return AgentStepSpec(name, "tester", "", prompt)


def _draft(outcome: StepOutcome | None, item: Any) -> AgentStepSpec | None:
    assert outcome is None
    return _spec(f"draft-{item}", f"{item}")


def _refine(outcome: StepOutcome | None, item: Any) -> AgentStepSpec | None:
    assert outcome is not None
    return _spec(f"refine-{item}", f"{outcome.output}!")


def _polish(outcome: StepOutcome | None, item: Any) -> AgentStepSpec | None:
    assert outcome is not None
    return _spec(f"polish-{item}", f"<{outcome.output}>")


def _echo(spec: AgentStepSpec) -> str:
    return spec.prompt


ECHO = FunctionExecutor({"tester": _echo})


def test_each_item_goes_through_all_stages(make_runner: MakeRunner) -> None:
    """The result is each item's last outcome, in the order of the items."""
    outcomes = make_runner(ECHO).pipeline("abcdef", [_draft, _refine, _polish])
    assert [outcome and outcome.output for outcome in outcomes] == [f"<{item}!>" for item in "abcdef"]
    assert [outcome and outcome.task_id for outcome in outcomes] == [f"polish-{item}" for item in "abcdef"]


def test_the_function_does_the_same() -> None:
    """`execute_pipeline` is `Runner.pipeline` in one call, with the runner's options."""
    outcomes = execute_pipeline(ECHO, ["a"], [_draft, _refine], max_concurrency=1)
    assert outcomes == [StepOutcome("refine-a", "task-run-refine-a", "tester", "a!", True)]
    with pytest.raises(OptionError, match=r"execute_pipeline has no option 'backnd' .did you mean 'backend'"):
        execute_pipeline(ECHO, ["a"], [_draft], backnd="thread")  # type: ignore[call-arg]  # it has not


def test_none_ends_a_chain(make_runner: MakeRunner) -> None:
    """An item whose first stage gives no spec has no outcome; one that ends later has its last one."""

    def only_even(outcome: StepOutcome | None, item: Any) -> AgentStepSpec | None:
        return _draft(outcome, item) if item % 2 == 0 else None

    def only_fours(outcome: StepOutcome | None, item: Any) -> AgentStepSpec | None:
        return _refine(outcome, item) if item % 4 == 0 else None

    outcomes = make_runner(ECHO).pipeline(range(5), [only_even, only_fours])
    assert [outcome and outcome.output for outcome in outcomes] == ["0!", None, "2", None, "4!"]


def _fail_b(spec: AgentStepSpec) -> str:
    if spec.prompt == "b":
        raise ValueError("not b")
    return spec.prompt


def test_a_failed_step_ends_its_chain_only(make_runner: MakeRunner) -> None:
    """The next stage is not asked, and the failed outcome is the item's."""
    outcomes = make_runner(FunctionExecutor({"tester": _fail_b})).pipeline("abc", [_draft, _refine])
    assert [outcome and outcome.success for outcome in outcomes] == [True, False, True]
    assert outcomes[1] == StepOutcome.failed("draft-b", "tester", "ValueError: not b")


def test_a_stage_that_raises_ends_its_chain_only() -> None:
    """Its outcome is a failed one that names stage and error; so for a first stage, which has no step behind it."""

    def picky(outcome: StepOutcome | None, item: Any) -> AgentStepSpec | None:
        if item == "b":
            raise KeyError("b")
        return _refine(outcome, item)

    def first(outcome: StepOutcome | None, item: Any) -> AgentStepSpec | None:
        if item == "c":
            raise SystemExit(3)
        return _draft(outcome, item)

    outcomes = Runner(ECHO).pipeline("abc", [first, picky])
    assert outcomes[0] is not None
    assert outcomes[0].output == "a!"
    assert outcomes[1] == StepOutcome.failed("draft-b", "tester", "stage 2 of 2 (picky) raised KeyError: 'b'")
    assert outcomes[2] == StepOutcome.failed("item-2", "pipeline", "stage 1 of 2 (first) raised SystemExit: 3")


def test_a_stage_that_returns_no_spec_ends_its_chain_only() -> None:
    """What is neither a spec nor `None` is said to be so."""
    garbage: Any = lambda outcome, item: "a prompt"  # noqa: E731
    outcomes = Runner(ECHO).pipeline("a", [garbage])
    assert outcomes[0] is not None
    assert outcomes[0].output == ("stage 1 of 1 (<lambda>) returned str 'a prompt', expected an AgentStepSpec or None")


class Waves(AgentExecutor):
    """Lets a step end only when the test says so, and knows which have begun."""

    def __init__(self) -> None:
        self.may_end = {f"{stage}-{item}": threading.Event() for stage in ("draft", "refine") for item in range(30)}
        self.lock = threading.Lock()
        self.running = 0
        self.most = 0

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        gate = self.may_end.get(spec.task_id)
        assert gate is None or gate.wait(HANG_BOUND_S)
        with self.lock:
            self.running -= 1
        return StepOutcome.completed(spec, spec.prompt)


def test_there_is_no_barrier_between_stages() -> None:
    """29 of 30 items are through all stages before the first one is through its first."""
    executor = Waves()
    for name, gate in executor.may_end.items():
        if name != "draft-0":
            gate.set()
    through: list[int] = []

    def last(outcome: StepOutcome | None, item: int) -> AgentStepSpec | None:
        through.append(item)
        if len(through) == 29:
            executor.may_end["draft-0"].set()
        return _polish(outcome, item)

    outcomes = Runner(executor, max_concurrency=4).pipeline(range(30), [_draft, _refine, last])
    assert all(outcome is not None and outcome.success for outcome in outcomes)
    assert through[-1] == 0
    assert executor.most <= 4, "all stages share one bound"


def test_uneven_items_take_as_long_as_the_slowest_chain() -> None:
    """By the order of events: with room for all, no step begins later than right after the one before it in its chain.

    Each item is slow in another stage. Were there barriers, the slow steps of different stages would come one after
    another; here all of them run at once, for none of them ends before the last one of them has begun.
    """
    together = threading.Barrier(30, timeout=HANG_BOUND_S)

    class Uneven(AgentExecutor):
        def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
            stage, _, item = spec.task_id.partition("-")
            if stage == ("draft", "refine", "polish")[int(item) % 3]:
                together.wait()
            return StepOutcome.completed(spec, spec.prompt)

    outcomes = Runner(Uneven(), max_concurrency=30).pipeline(range(30), [_draft, _refine, _polish])
    assert [outcome and outcome.output for outcome in outcomes] == [f"<{item}!>" for item in range(30)]


def test_items_under_way_go_first() -> None:
    """A pipeline over endless items keeps few under way: a chain is finished before a new one is begun."""
    begun: list[str] = []
    with EventChannel() as channel:
        channel.listen(lambda event: begun.append(event.task_id) if isinstance(event, SubagentStart) else None)
        Runner(ECHO, max_concurrency=1, event_tx=channel).pipeline(range(3), [_draft, _refine])
    assert begun == ["draft-0", "refine-0", "draft-1", "refine-1", "draft-2", "refine-2"]


def test_items_are_read_lazily() -> None:
    """No more items are read than there is room for, and any iterable will do."""
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        for item in range(100):
            read += 1
            yield item

    seen: list[int] = []

    def watch(outcome: StepOutcome | None, item: int) -> AgentStepSpec | None:
        seen.append(read - len(seen))  # those that were read and have not come so far
        return _refine(outcome, item)

    outcomes = Runner(ECHO, max_concurrency=3).pipeline(items(), [_draft, watch])
    assert len(outcomes) == 100
    assert max(seen) <= 2 * 3


def test_items_that_raise_end_the_input() -> None:
    """The items before go through to their ends; the error has what was done."""

    def items() -> Iterator[str]:
        yield from "ab"
        raise OSError("gone")

    with pytest.raises(InputError, match="the input raised after 4 specs: OSError: gone") as caught:
        Runner(ECHO).pipeline(items(), [_draft, _refine])
    assert isinstance(caught.value.__cause__, OSError)
    assert sorted(outcome.output for outcome in caught.value.run) == ["a", "a!", "b", "b!"]


def test_nothing_to_do() -> None:
    """No items, no outcomes; items that all decline, as many `None`."""
    assert Runner(ECHO).pipeline([], [_draft]) == []
    assert Runner(ECHO).pipeline("abc", [lambda outcome, item: None]) == [None, None, None]


@pytest.mark.parametrize(
    ("items", "stages", "error", "message"),
    [
        (3, [_draft], InputError, "items must be an iterable, got int 3"),
        ("a", [], OptionError, "stages must be a list of at least one function, got none"),
        ("a", _draft, OptionError, "stages must be a list of functions, got function"),
        (
            "a",
            [_draft, "refine"],
            OptionError,
            "stages.1. must be a function .* got str 'refine'",
        ),
    ],
)
def test_bad_arguments(items: Any, stages: Any, error: type[Exception], message: str) -> None:
    """They are refused before anything runs, by name."""
    with pytest.raises(error, match=message):
        Runner(ECHO).pipeline(items, stages)


def test_an_interrupt_ends_a_pipeline() -> None:
    """What was done is in the error; an interrupt in a stage counts as one, too."""

    def stop(outcome: StepOutcome | None, item: Any) -> AgentStepSpec | None:
        raise KeyboardInterrupt

    with pytest.raises(FanoutInterrupted) as caught:
        Runner(ECHO, max_concurrency=1).pipeline("ab", [_draft, stop])
    assert [outcome.output for outcome in caught.value.run][:1] == ["a"]


def test_an_interrupted_item_is_not_finished() -> None:
    """With `on_interrupt="return"`: an item that was not through all stages is not taken for one that was."""
    both_drafted = threading.Barrier(2, timeout=HANG_BOUND_S)

    def draft(outcome: StepOutcome | None, item: Any) -> AgentStepSpec | None:
        return _draft(outcome, item)

    def stop(outcome: StepOutcome | None, item: Any) -> AgentStepSpec | None:
        raise KeyboardInterrupt

    def step(spec: AgentStepSpec) -> str:
        both_drafted.wait()
        return spec.prompt

    runner = Runner(FunctionExecutor({"tester": step}), max_concurrency=2, on_interrupt="return")
    outcomes = runner.pipeline("ab", [draft, stop])
    assert [outcome and outcome.success for outcome in outcomes] == [False, False], (
        "also of the item whose stage it was"
    )
    assert any(outcome is not None and "interrupted" in outcome.output for outcome in outcomes)


def test_retries_and_failures_count_in_a_pipeline() -> None:
    """The runner's options hold: a step that fails once goes on, and the breaker stops the rest."""
    tries: list[str] = []

    def flaky(spec: AgentStepSpec) -> str:
        tries.append(spec.task_id)
        if tries.count(spec.task_id) == 1:
            raise ValueError("at first")
        return spec.prompt

    outcomes = Runner(FunctionExecutor({"tester": flaky}), retry=Retry(2, wait=0)).pipeline("ab", [_draft, _refine])
    assert [outcome and outcome.output for outcome in outcomes] == ["a!", "b!"]
    outcomes = Runner(FunctionExecutor({"tester": _fail_b}), max_failures=1, max_concurrency=1).pipeline(
        "bac", [_draft, _refine]
    )
    assert [outcome and outcome.success for outcome in outcomes] == [False, False, False]
    assert outcomes[2] is not None
    assert "max_failures" in outcomes[2].output
