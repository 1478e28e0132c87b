"""Loops: rounds with a barrier, decided by the caller, never more than allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fanout_sync import (
    AgentStepSpec,
    Continue,
    FanoutInterrupted,
    FunctionExecutor,
    InputError,
    OptionError,
    ProcessBackend,
    Runner,
    StepOutcome,
    Stop,
    execute_loop,
)
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs

MakeRunner = Callable[..., Runner]


def _echo(spec: AgentStepSpec) -> str:
    return spec.prompt


ECHO = FunctionExecutor({"tester": _echo})


def _longer(outcomes: Sequence[StepOutcome]) -> Continue:
    return Continue([AgentStepSpec(o.task_id, "tester", "", o.output + "x") for o in outcomes])


def test_rounds_go_on_until_stop(make_runner: MakeRunner) -> None:
    """Each round has the outcomes of the one before; those of the last one are the result, in order."""

    def until_three(outcomes: Sequence[StepOutcome]) -> Continue | Stop:
        return Stop() if outcomes[0].output == "0xx" else _longer(outcomes)

    outcomes = make_runner(ECHO).loop(make_specs(3), 10, until_three)
    assert [outcome.output for outcome in outcomes] == ["0xx", "1xx", "2xx"]


@pytest.mark.parametrize("cap", [1, 2, 7])
def test_max_iterations_is_the_largest_number_of_rounds(cap: int, ledger: Ledger) -> None:
    """`next_round` that always continues is asked once less than there are rounds."""
    asked = 0

    def always(outcomes: Sequence[StepOutcome]) -> Continue:
        nonlocal asked
        asked += 1
        return Continue(make_specs(2))

    outcomes = execute_loop(LedgerExecutor(ledger), make_specs(2), cap, always)
    assert len(outcomes) == 2
    assert ledger.counts() == {"t0": cap, "t1": cap}
    assert asked == cap - 1


def test_an_empty_round_ends_the_loop() -> None:
    """The outcomes before it are the result; an empty first one has none."""
    assert [o.output for o in Runner(ECHO).loop(make_specs(2), 5, lambda outcomes: Continue([]))] == ["0", "1"]
    assert Runner(ECHO).loop([], 5, lambda outcomes: Continue(make_specs(1))) == []
    assert [o.output for o in Runner(ECHO).loop(make_specs(2), 5, lambda outcomes: Continue(iter(())))] == ["0", "1"]


def test_there_is_a_barrier_between_rounds(ledger: Ledger) -> None:
    """`next_round` sees every step of the round done."""
    seen: list[int] = []

    def count(outcomes: Sequence[StepOutcome]) -> Continue:
        seen.append(ledger.counts().total())
        return Continue(spec for spec in make_specs(5))

    Runner(LedgerExecutor(ledger)).loop(iter(make_specs(5)), 3, count)
    assert seen == [5, 10]


def test_failed_steps_are_outcomes_like_others() -> None:
    """What failed is for `next_round` to judge."""

    def boom(spec: AgentStepSpec) -> str:
        if spec.prompt == "1":
            raise ValueError("one")
        return spec.prompt

    def retry_failed(outcomes: Sequence[StepOutcome]) -> Continue:
        return Continue([AgentStepSpec(o.task_id, "tester", "", "again") for o in outcomes if not o.success])

    outcomes = Runner(FunctionExecutor({"tester": boom})).loop(make_specs(3), 4, retry_failed)
    assert [(outcome.task_id, outcome.output) for outcome in outcomes] == [("t1", "again")]


@pytest.mark.parametrize("cap", [0, -1, True, 1.5, None, "3"])
def test_max_iterations_is_a_positive_int(cap: Any) -> None:
    """It is refused before anything runs, by name."""
    with pytest.raises(OptionError, match="max_iterations must be an int of at least 1, got"):
        Runner(ECHO).loop(make_specs(1), cap, _longer)


def test_max_iterations_is_mandatory() -> None:
    """There is no loop without one."""
    with pytest.raises(TypeError, match="max_iterations"):
        Runner(ECHO).loop(make_specs(1), next_round=_longer)  # type: ignore[call-arg]  # that is the point


def test_next_round_must_be_a_function() -> None:
    """It is refused before anything runs."""
    with pytest.raises(OptionError, match="next_round must be a function of a list of outcomes, got None"):
        Runner(ECHO).loop(make_specs(1), 3, None)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "must return Continue.specs. or Stop.., got None"),
        (make_specs(1), "must return Continue.specs. or Stop.., got list"),
        (Stop, "; call it: Stop"),
        (Continue(3), "next_round raised TypeError: 'int' object is not iterable"),  # type: ignore[arg-type]
    ],
)
def test_an_invalid_result_of_next_round_loses_nothing(answer: Any, told: str) -> None:
    """The error has the round that was done."""
    with pytest.raises(InputError, match=told) as caught:
        Runner(ECHO).loop(make_specs(2), 3, lambda outcomes: answer)
    assert [outcome.output for outcome in caught.value.run] == ["0", "1"]


def test_next_round_that_raises_loses_nothing() -> None:
    """Its exception is the cause, and the round that was done is in the error."""

    def broken(outcomes: Sequence[StepOutcome]) -> Continue:
        raise KeyError("no")

    with pytest.raises(InputError, match="next_round raised KeyError: 'no'") as caught:
        Runner(ECHO).loop(make_specs(2), 3, broken)
    assert isinstance(caught.value.__cause__, KeyError)
    assert [outcome.output for outcome in caught.value.run] == ["0", "1"]


def test_items_of_a_round_that_are_not_specs_end_the_loop() -> None:
    """As for any run: what was started before is in the error."""
    mixed: list[Any] = [*make_specs(1), "no spec"]
    with pytest.raises(InputError, match=r"specs\[1\] is str 'no spec'") as caught:
        Runner(ECHO).loop(make_specs(2), 3, lambda outcomes: Continue(mixed))
    assert [outcome.output for outcome in caught.value.run] == ["0"]


def test_too_many_failures_end_a_loop(ledger: Ledger) -> None:
    """Failures count over all rounds, and `next_round` is not asked any more when they are too many."""

    def boom(spec: AgentStepSpec) -> StepOutcome:
        raise ValueError(spec.task_id)

    executor = LedgerExecutor(ledger, dict.fromkeys(["t0", "t1", "t2"], boom), concurrency=1)
    outcomes = Runner(executor, max_failures=5).loop(make_specs(3), 9, lambda outcomes: Continue(make_specs(3)))
    assert ledger.counts() == {"t0": 2, "t1": 2, "t2": 1}
    assert [outcome.success for outcome in outcomes] == [False] * 3
    assert "max_failures" in outcomes[2].output


def test_an_interrupted_round_ends_the_loop() -> None:
    """With `on_interrupt="return"` what there is of it is the result."""

    def stop() -> Any:
        yield from make_specs(2)
        raise KeyboardInterrupt

    assert [o.output for o in Runner(ECHO, on_interrupt="return").loop(stop(), 9, _longer)][:1] == ["0"]
    with pytest.raises(FanoutInterrupted):
        Runner(ECHO).loop(stop(), 9, _longer)


def test_an_interrupt_between_rounds_loses_nothing() -> None:
    """Ctrl-C in `next_round`: the error has the round before, or it is the result."""

    def stop(outcomes: Sequence[StepOutcome]) -> Continue:
        raise KeyboardInterrupt

    with pytest.raises(FanoutInterrupted) as caught:
        Runner(ECHO).loop(make_specs(2), 9, stop)
    assert [outcome.output for outcome in caught.value.run] == ["0", "1"]
    assert [o.output for o in Runner(ECHO, on_interrupt="return").loop(make_specs(2), 9, stop)] == ["0", "1"]


def _pid(spec: AgentStepSpec) -> str:
    import os

    return str(os.getpid())


def test_workers_are_kept_from_round_to_round() -> None:
    """A loop does not start its worker processes anew for each round, and leaves none behind."""
    pids: set[str] = set()

    def collect(outcomes: Sequence[StepOutcome]) -> Continue:
        pids.update(outcome.output for outcome in outcomes)
        return Continue(make_specs(1))

    Runner(FunctionExecutor({"tester": _pid}), backend=ProcessBackend()).loop(make_specs(1), 4, collect)
    assert len(pids) == 1


def test_a_loop_leaves_open_streams_alone() -> None:
    """A stream of the same runner goes on."""
    runner = Runner(ECHO)
    stream = runner.stream(make_specs(3))
    assert next(stream).output == "0"
    runner.loop(make_specs(1), 2, _longer)
    assert [outcome.output for outcome in stream] == ["1", "2"]
