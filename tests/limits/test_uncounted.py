"""What a user is told of limits on tokens and money that count nothing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Folder

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    Budget,
    InputError,
    MemoryJournal,
    RateLimit,
    Runner,
    StepOutcome,
    Stop,
    current_step,
    execute_steps_parallel,
)

MakeRunner = Callable[..., Runner]
USAGES: dict[str, dict[str, Any]] = {
    "tokens": {"prompt_tokens": 3},
    "cost": {"cost_usd": 0.5},
    "nothing": {"completion_tokens": 0},
}
REPORT = r"call current_step\(\)\.add_usage\((?P<what>.*)\) or event_tx\.usage\((?P=what)\) in the step$"


class Reporter(AgentExecutor):
    """Each step reports what its prompt names, in the way that its agent names; other prompts report nothing."""

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        if spec.prompt == "fails":
            return StepOutcome.failed(spec.task_id, spec.agent, "no")
        if (usage := USAGES.get(spec.prompt)) is not None:
            report: Any = event_tx.usage if spec.agent == "event_tx" else current_step().add_usage
            report(**usage)
        return StepOutcome.completed(spec, spec.prompt)


def specs_of(*prompts: str, agent: str = "a") -> list[AgentStepSpec]:
    return [AgentStepSpec(f"t{n}", agent, "", prompt) for n, prompt in enumerate(prompts)]


def run_all(runner: Runner, specs: list[AgentStepSpec]) -> Any:
    return runner.run(specs)


def stream_all(runner: Runner, specs: list[AgentStepSpec]) -> Any:
    return list(runner.stream(specs))


def stream_as_completed(runner: Runner, specs: list[AgentStepSpec]) -> Any:
    return list(runner.stream(iter(specs), order="completion"))


def pipe_all(runner: Runner, specs: list[AgentStepSpec]) -> Any:
    return runner.pipeline(specs, [lambda outcome, spec: spec])


def loop_once(runner: Runner, specs: list[AgentStepSpec]) -> Any:
    return runner.loop(specs, 2, lambda outcomes: Stop())


ways = pytest.mark.parametrize("use", [run_all, stream_all, stream_as_completed, pipe_all, loop_once])


def messages_of(use: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use()
    assert all(warning.category is UserWarning for warning in caught)
    assert all(warning.filename == __file__ for warning in caught), "they point to the caller's line"
    return [str(warning.message) for warning in caught]


def tell_of(options: dict[str, Any], *prompts: str, **how: Any) -> list[str]:
    return messages_of(lambda: Runner(Reporter(), **options, **how).run(specs_of(*prompts)))


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda: {"budget": Budget(max_cost_usd=5)}, r"Budget\(max_cost_usd=5\)"),
        (lambda: {"budget": Budget(max_tokens=7, max_steps=9)}, r"Budget\(max_tokens=7\)"),
        (
            lambda: {"budget": Budget(max_tokens=7, max_cost_usd=0.5)},
            r"Budget\(max_tokens=7\) and Budget\(max_cost_usd=0.5\)",
        ),
        (lambda: {"rate_limit": [RateLimit(600), RateLimit(600, 9)]}, r"RateLimit\(tokens_per_minute=9\)"),
    ],
)
@ways
def test_a_limit_that_counts_nothing_is_told_of_once(use: Any, make: Callable[[], Any], limit: str) -> None:
    """At the end of the first run with successes, whichever way it is run, and at the line of the caller."""
    options = make()
    runner = Runner(Reporter(), **options)
    (message,) = messages_of(lambda: use(runner, specs_of("a", "b")))
    assert re.match(rf"{limit} counted nothing: no step has reported what it used; {REPORT}", message)
    assert messages_of(lambda: use(runner, specs_of("c"))) == tell_of(options, "d") == []


def test_it_is_told_on_every_backend(make_runner: MakeRunner) -> None:
    """Also where steps run elsewhere, of each limit by itself."""
    limits = {"budget": Budget(max_cost_usd=5), "rate_limit": RateLimit(tokens_per_minute=10**6)}
    assert len(messages_of(lambda: make_runner(Reporter(), **limits).run(specs_of("a")))) == 2
    for agent in ("a", "event_tx"):
        limits = {"budget": Budget(max_cost_usd=5), "rate_limit": RateLimit(tokens_per_minute=10**6)}
        specs = specs_of("x", "tokens", "cost", agent=agent)
        assert messages_of(lambda: make_runner(Reporter(), **limits).run(specs)) == []  # noqa: B023 - called at once


def test_functions_that_make_a_runner_point_to_the_caller() -> None:
    """The place of the warning is the line that called the package, however deep inside it is given."""
    budget = Budget(max_cost_usd=5)
    assert len(messages_of(lambda: execute_steps_parallel(Reporter(), specs_of("a"), budget=budget))) == 1


@pytest.mark.parametrize(
    ("options", "prompts"),
    [
        ({"budget": Budget(max_seconds=60, max_steps=9)}, ["a"]),
        ({"rate_limit": RateLimit(requests_per_minute=600)}, ["a"]),
        ({"budget": Budget(max_cost_usd=5)}, ["fails", "fails"]),
        ({"budget": Budget(max_cost_usd=5)}, []),
        ({"budget": Budget(max_cost_usd=5)}, ["a", "cost", "b"]),
        ({"budget": Budget(max_cost_usd=5)}, ["nothing"]),
        ({"budget": Budget(max_tokens=50)}, ["tokens", "b"]),
        ({}, ["a"]),
    ],
)
def test_what_counts_is_not_told_of(options: dict[str, Any], prompts: list[str]) -> None:
    """Nor what needs no reports, nor a run without a success, nor one whose steps report that they used nothing."""
    assert tell_of(options, *prompts) == []


def test_the_first_run_with_successes_tells() -> None:
    """A run in which all steps fail says nothing about reports."""
    options = {"budget": Budget(max_cost_usd=5)}
    assert tell_of(options, "fails") == []
    assert len(tell_of(options, "a")) == 1


def test_reports_of_an_earlier_run_count() -> None:
    """A budget that has counted something counts, though no step of a later run uses anything."""
    options = {"budget": Budget(max_cost_usd=5)}
    assert tell_of(options, "cost") == tell_of(options, "a") == []


def test_a_limit_on_money_counts_nothing_if_only_tokens_are_reported() -> None:
    """The message says what is missing; a limit on both tells of the one that counts nothing."""
    (message,) = tell_of({"budget": Budget(max_tokens=90, max_cost_usd=5)}, "tokens", "tokens")
    assert message.startswith("Budget(max_cost_usd=5) counted nothing: steps have reported tokens, but no cost; call ")
    (message,) = tell_of({"rate_limit": RateLimit(tokens_per_minute=9)}, "cost")
    assert "steps have reported cost, but no tokens" in message


def test_reused_steps_are_no_successes() -> None:
    """A run whose steps all come from the journal says nothing; what they have reported is in the journal."""
    journal = MemoryJournal()
    Runner(Reporter(), journal=journal).run(specs_of("a", "b"))
    options = {"budget": Budget(max_cost_usd=5)}
    assert tell_of(options, "a", "b", journal=journal) == []
    assert len(tell_of(options, "a", "b", "c", journal=journal)) == 1


def test_a_run_that_ends_early_raises_what_ended_it() -> None:
    """A warning must not hide the error of an input, nor follow a stream that was left; the next run tells."""
    budget = Budget(max_cost_usd=5)
    runner = Runner(Reporter(), budget=budget)

    def broken() -> Iterator[AgentStepSpec]:
        yield from specs_of("a")
        raise LookupError("no more")

    def use() -> None:
        with pytest.raises(InputError):
            runner.run(broken())
        stream = runner.stream(specs_of("a", "b"))
        next(stream)
        stream.close()

    assert messages_of(use) == []
    assert len(messages_of(lambda: runner.run(specs_of("a")))) == 1


def test_a_warning_that_is_an_error_loses_no_outcome(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged instead, and the outcomes are there."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Runner(Reporter(), budget=Budget(max_cost_usd=5)).run(specs_of("a", "b"))
        assert [outcome.output for outcome in run] == ["a", "b"]
        stream = Runner(Reporter(), budget=Budget(max_cost_usd=5)).stream(specs_of("a", "b"))
        assert [outcome.output for outcome in stream] == ["a", "b"]
    assert caplog.text.count("counted nothing") == 2


@pytest.mark.parametrize("options", [["--max-cost", "5"], ["--tpm", "100000"]])
def test_the_command_line_tells_in_one_line(options: list[str], tmp_path: Path) -> None:
    """On its standard error, whatever the filters are; the exit status is that of the steps."""
    folder = Folder(tmp_path)
    (folder / "agents.py").write_text("executor = {'ask': lambda spec: spec.prompt}\n")
    folder.steps(("ask", "a"), ("ask", "b"))
    done = folder.run(*options)
    told = [line for line in done.stderr.splitlines() if "counted nothing" in line]
    assert len(told) == 1
    assert re.match(rf"warning: (Budget|RateLimit)\(.*\) counted nothing: no step has reported .*; {REPORT}", told[0])
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
