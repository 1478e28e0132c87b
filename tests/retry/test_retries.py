"""Retries: which failed steps are tried again, when and how often, and how records and events show it."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import tenacity
from naming import without_address

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    EventChannel,
    EventSender,
    ExecutorNotPicklable,
    FunctionExecutor,
    OptionError,
    Retry,
    RetryAfter,
    Runner,
    StepOutcome,
    StepRetry,
    current_step,
)
from fanout_sync.engine.stream import MAX_UNREAD
from fanout_sync.retry.policy import retry_policy
from fanout_sync.testing import Ledger, make_specs

MakeRunner = Callable[..., Runner]


class Scripted(AgentExecutor):
    """The words of the prompt say what each attempt does; the last word also counts for all later attempts."""

    def __init__(self, ledger: Ledger | None = None, concurrency: int = 4) -> None:
        self.ledger = ledger
        self.concurrency = concurrency

    def concurrency_hint(self) -> int:
        return self.concurrency

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        if self.ledger is not None:
            self.ledger.note(spec.task_id)
        words = spec.prompt.split()
        word = words[min(current_step().attempt, len(words)) - 1]
        kind, _, value = word.partition(":")
        if kind == "raise":
            raise {"ValueError": ValueError, "OSError": ConnectionError, "exit": SystemExit}[value]("no luck")
        if kind == "after":
            raise RetryAfter(float(value))
        if kind == "die":
            os._exit(7)
        if kind == "hang":
            current_step().cancelled.wait()
        if kind == "garbage":
            return None  # type: ignore[return-value]  # the wrong type is what is tested
        return StepOutcome(spec.task_id, "s", spec.agent, word, kind != "failed")


def scripted_specs(*prompts: str) -> list[AgentStepSpec]:
    return [AgentStepSpec(f"t{number}", "a", "", prompt) for number, prompt in enumerate(prompts)]


def run_one(make_runner: MakeRunner, prompt: str, retry: Any, **options: Any) -> tuple[StepOutcome, Any]:
    run = make_runner(Scripted(), retry=retry, **options).run([AgentStepSpec("t", "a", "", prompt)])
    return run[0], run.records[0]


ON_OS_ERROR: Any = tenacity.retry_if_exception_type(OSError)
QUICK = functools.partial(Retry, wait=0)


OPTIONS: list[tuple[Any, str, list[str]]] = [
    (QUICK(3), "raise:ValueError fine", ["raised", "succeeded"]),
    (QUICK(3), "raise:ValueError raise:OSError fine", ["raised", "raised", "succeeded"]),
    (QUICK(2), "raise:ValueError", ["raised", "raised"]),
    (QUICK(3, retry_on=OSError), "raise:OSError raise:ValueError fine", ["raised", "raised"]),
    (
        QUICK(3, retry_on=(OSError, ValueError)),
        "raise:OSError raise:ValueError fine",
        ["raised"] * 2 + ["succeeded"],
    ),
    (QUICK(3, retry_on=lambda error: "luck" in str(error)), "raise:OSError fine", ["raised", "succeeded"]),
    (QUICK(3, retry_on=ON_OS_ERROR), "raise:OSError fine", ["raised", "succeeded"]),
    (QUICK(3), "raise:exit fine", ["raised"]),
    (QUICK(3, retry_on=BaseException), "raise:exit fine", ["raised", "succeeded"]),
    (QUICK(3), "failed fine", ["failed"]),
    (QUICK(3, on_failure=True), "failed fine", ["failed", "succeeded"]),
    (QUICK(3, on_failure=True), "failed raise:OSError failed", ["failed", "raised", "failed"]),
    (QUICK(3, on_failure=True), "garbage fine", ["invalid"]),
    (QUICK(3), "after:0.01 fine", ["raised", "succeeded"]),
    (QUICK(3, retry_on=OSError), "after:0 fine", ["raised", "succeeded"]),
    (QUICK(2), "after:0", ["raised", "raised"]),
    (QUICK(1), "raise:ValueError fine", ["raised"]),
    (1, "raise:ValueError fine", ["raised"]),
    (None, "after:0 fine", ["raised"]),
    (2, "raise:ValueError fine", ["raised", "succeeded"]),
]


@pytest.mark.parametrize(
    ("make_runner", "retry", "prompt", "statuses"),
    [
        *[("thread", *case) for case in OPTIONS],
        *[("process", *case) for case in OPTIONS[::4]],
        *[("foreign", *case) for case in OPTIONS[1::4]],
    ],
    indirect=["make_runner"],
    ids=without_address,
)
def test_the_options_of_retry_decide_what_is_tried_again(
    make_runner: MakeRunner, retry: Any, prompt: str, statuses: list[str]
) -> None:
    """On every backend; the record has all attempts, and a failed outcome names their number."""
    outcome, record = run_one(make_runner, prompt, retry)
    assert [attempt.status for attempt in record.attempts] == statuses
    assert [attempt.number for attempt in record.attempts] == list(range(1, len(statuses) + 1))
    assert record.status == statuses[-1]
    assert [attempt.wait_s is None for attempt in record.attempts] == [False] * (len(statuses) - 1) + [True]
    assert [attempt.reason is None for attempt in record.attempts] == [status == "succeeded" for status in statuses]
    assert all(attempt.duration_s >= 0 for attempt in record.attempts)
    assert outcome.success == (statuses[-1] == "succeeded")
    assert outcome.output.endswith(f"; gave up after {len(statuses)} attempts") == (
        len(statuses) > 1 and statuses[-1] != "succeeded"
    )


@pytest.mark.parametrize("on_crash", [False, True])
def test_a_crash_is_tried_again_only_when_asked(on_crash: bool, ledger: Ledger) -> None:
    """A step whose worker died may have had its effect, so it is tried again only with `on_crash`."""
    specs = [AgentStepSpec("t", "a", "", "die fine")]
    run = Runner(Scripted(ledger), backend="process", retry=QUICK(3, on_crash=on_crash)).run(specs)
    assert run.records[0].status == ("succeeded" if on_crash else "crashed")
    assert ledger.counts() == {"t": 2 if on_crash else 1}
    if on_crash:
        assert "exited with code 7" in (run.records[0].attempts[0].reason or "")
    else:
        assert run.records[0].exit_code == 7


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize("on_timeout", [False, True])
def test_a_timeout_is_tried_again_only_when_asked(backend: Any, on_timeout: bool, ledger: Ledger) -> None:
    """A step that timed out is tried again only with `on_timeout`; each attempt has the whole timeout."""
    specs = [AgentStepSpec("t", "a", "", "hang hang fine")]
    run = Runner(Scripted(ledger), backend=backend, timeout=0.3, retry=QUICK(3, on_timeout=on_timeout)).run(specs)
    assert run.records[0].status == ("succeeded" if on_timeout else "timed_out")
    assert ledger.counts() == {"t": 3 if on_timeout else 1}


def test_a_retrying_does_not_repeat_crashes(ledger: Ledger) -> None:
    """A tenacity `Retrying` decides on exceptions and outcomes; a crash gives neither, so it is not repeated."""
    retrying = tenacity.Retrying(stop=tenacity.stop_after_attempt(3))
    run = Runner(Scripted(ledger), backend="process", retry=retrying).run([AgentStepSpec("t", "a", "", "die fine")])
    assert run.records[0].status == "crashed"
    assert ledger.counts() == {"t": 1}


@pytest.mark.parametrize(
    ("retrying", "prompt", "statuses"),
    [
        (tenacity.Retrying(stop=tenacity.stop_after_attempt(2)), "raise:OSError", ["raised"] * 2),
        (
            tenacity.Retrying(retry=tenacity.retry_if_exception_type(OSError)),
            "raise:OSError raise:ValueError",
            ["raised"] * 2,
        ),
        (
            tenacity.Retrying(
                retry=tenacity.retry_if_result(lambda outcome: not outcome.success), stop=tenacity.stop_after_attempt(5)
            ),
            "failed failed fine",
            ["failed", "failed", "succeeded"],
        ),
        (
            tenacity.Retrying(
                retry=tenacity.retry_if_result(lambda outcome: outcome.output == "again"),
                wait=tenacity.wait_fixed(0.01) + tenacity.wait_random(0, 0.01),
                stop=tenacity.stop_after_attempt(5) | tenacity.stop_after_delay(100),
            ),
            "again fine",
            ["succeeded", "succeeded"],
        ),
        (
            tenacity.Retrying(
                wait=lambda state: 0.001 * state.attempt_number, stop=lambda state: state.idle_for > 0.004
            ),
            "raise:OSError",
            ["raised"] * 4,
        ),
        (tenacity.Retrying(stop=tenacity.stop_after_attempt(2)), "garbage", ["invalid"]),
    ],
)
def test_strategies_of_tenacity_are_used(
    make_runner: MakeRunner, retrying: Any, prompt: str, statuses: list[str]
) -> None:
    """`stop`, `wait` and `retry` of a `Retrying` work on every backend, by the rules of tenacity."""
    _, record = run_one(make_runner, prompt, retrying)
    assert [attempt.status for attempt in record.attempts] == statuses


def test_stop_need_not_pickle() -> None:
    """`stop` runs in the caller's process: on processes, too, an event that the caller sets ends the attempts."""
    event = threading.Event()
    retrying = tenacity.Retrying(stop=tenacity.stop_when_event_set(event), wait=tenacity.wait_fixed(0.01))
    with EventChannel() as channel:
        channel.listen(lambda sent: event.set() if isinstance(sent, StepRetry) and sent.attempt == 3 else None)
        runner = Runner(Scripted(), backend="process", retry=retrying, event_tx=channel)
        run = runner.run([AgentStepSpec("t", "a", "", "raise:OSError")])
    assert len(run.records[0].attempts) >= 4


def test_strategies_that_do_not_pickle_are_refused_at_once(ledger: Ledger) -> None:
    """The error names the strategy that has to go to the workers but does not pickle; no step was run."""
    lock = threading.Lock()
    retry = Retry(3, retry_on=lambda error: lock.locked())
    with pytest.raises(ExecutorNotPicklable, match=r"^retry\."):
        Runner(Scripted(ledger), backend="process", retry=retry).run(make_specs(1))
    assert not ledger.counts()


@pytest.mark.parametrize("part", ["retry", "wait", "stop"])
def test_a_strategy_that_raises_ends_the_attempts(make_runner: MakeRunner, part: str) -> None:
    """The step gets no other attempt; the other steps are not affected."""
    strategies: dict[str, Any] = {"stop": tenacity.stop_after_attempt(3), part: lambda state: 1 / 0}
    specs = [AgentStepSpec("t0", "a", "", "raise:OSError fine"), AgentStepSpec("t1", "a", "", "fine")]
    run = make_runner(Scripted(), retry=tenacity.Retrying(**strategies)).run(specs[:1])
    assert run.records[0].status == "raised"
    assert len(run.records[0].attempts) == 1
    if part != "stop":
        assert "the retry strategy raised ZeroDivisionError" in run[0].output
    assert make_runner(Scripted(), retry=QUICK(2)).run(specs[1:])[0].success


def test_waits_grow_and_vary() -> None:
    """The default wait doubles from half a second, with jitter, up to about a minute."""
    policy = retry_policy(12)
    assert policy is not None
    spec = make_specs(1)[0]

    def waits(number: int) -> list[float]:
        found = [policy.rule.wait_after(spec, number, None, OSError()) for _ in range(20)]
        assert all(wait is not None for wait in found)
        return [wait for wait in found if wait is not None]

    for number, least in ((1, 0.5), (2, 1.0), (3, 2.0), (11, 60.0)):
        assert all(least <= wait <= least + 0.5 for wait in waits(number))
    assert len(set(waits(1))) > 1


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_step_that_waits_for_its_next_attempt_holds_no_slot(backend: Any, ledger: Ledger) -> None:
    """With one slot, all other steps run while one step waits for its next attempt."""
    specs = [
        AgentStepSpec("t0", "a", "", "after:0.5 fine"),
        *(AgentStepSpec(f"t{n}", "a", "", "fine") for n in range(1, 9)),
    ]
    run = Runner(Scripted(ledger, concurrency=1), backend=backend, retry=2).run(specs)
    assert not run.failed
    assert ledger.path.read_text().split() == ["t0", *(f"t{n}" for n in range(1, 9)), "t0"]


def test_no_attempt_begins_before_its_wait_is_over() -> None:
    """After `RetryAfter`, the next attempt begins only when the given seconds are over."""
    began = time.monotonic()
    run = Runner(Scripted(), retry=3).run([AgentStepSpec("t", "a", "", "after:0.2 after:0.1 fine")])
    assert time.monotonic() - began >= 0.3
    assert [attempt.wait_s for attempt in run.records[0].attempts] == [0.2, 0.1, None]
    assert run.records[0].attempts[0].reason is not None
    assert "asked to be tried again after 0.2 s" in run.records[0].attempts[0].reason


def test_a_retry_that_is_due_goes_before_queued_steps(ledger: Ledger) -> None:
    """A step whose next attempt is due does not wait for the steps that were submitted early."""
    specs = [
        AgentStepSpec("t0", "a", "", "after:0 fine"),
        *(AgentStepSpec(f"t{n}", "a", "", "fine") for n in range(1, 300)),
    ]
    Runner(Scripted(ledger, concurrency=1), retry=2).run(specs)
    assert ledger.path.read_text().split()[1:].index("t0") < 200


def test_each_retry_is_an_event(make_runner: MakeRunner) -> None:
    """`step_retry` has step, attempt, wait and reason; all attempts have one start and one end together."""
    events: list[Any] = []
    with EventChannel() as channel:
        channel.listen(events.append)
        run_one(make_runner, "raise:OSError after:0.01 fine", QUICK(3), event_tx=channel)
    tags = [event.tag for event in events]
    assert tags == ["run_start", "subagent_start", "step_retry", "step_retry", "subagent_end", "run_end"]
    assert [(event.task_id, event.attempt, event.wait_s) for event in events[2:4]] == [("t", 1, 0.0), ("t", 2, 0.01)]
    assert "no luck" in events[2].reason
    assert events[4].success


def test_each_step_counts_its_own_attempts() -> None:
    """Attempts are counted per step; the summary says how many steps needed more than one."""
    specs = scripted_specs(*("raise:OSError " * n + "fine" for n in range(5)))
    run = Runner(Scripted(), retry=QUICK(6)).run(specs)
    assert [len(record.attempts) for record in run.records] == [1, 2, 3, 4, 5]
    assert "tried more than once: 4" in run.summary()


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_stream_goes_on_behind_a_step_that_waits_for_its_next_attempt(backend: Any) -> None:
    """The first step needs a second attempt, and more outcomes follow it than a stream holds; the stream still ends."""
    specs = scripted_specs("after:0.3 fine", *["fine"] * (MAX_UNREAD + 100))
    outcomes = list(Runner(Scripted(), backend=backend, retry=2).stream(specs))
    assert [outcome.task_id for outcome in outcomes] == [spec.task_id for spec in specs]
    assert all(outcome.success for outcome in outcomes)


class Unparsed(RetryAfter):
    """Has the header itself, unparsed, as its `seconds`."""

    def __init__(self, header: Any) -> None:
        super().__init__(0)
        self.seconds = header


@pytest.mark.parametrize("header", ["5", -1, float("nan"), float("inf")])
def test_a_retry_after_with_unusable_seconds_ends_the_attempts(header: Any) -> None:
    """`seconds` of a subclass may be anything; if it is no number of seconds, the outcome says so."""

    def wrong(spec: AgentStepSpec) -> None:
        raise Unparsed(header)

    run = Runner(FunctionExecutor({"tester": wrong}), retry=3).run(make_specs(2))
    assert [len(record.attempts) for record in run.records] == [1, 1]
    assert "seconds of RetryAfter must be a number of seconds of at least 0" in run[0].output


def test_stop_sees_what_was_returned_and_what_was_raised(make_runner: MakeRunner) -> None:
    """A `stop` strategy gets the outcome, or the text of the exception."""
    seen: list[str] = []

    def stop(state: Any) -> bool:
        error = state.outcome.exception()
        seen.append(state.outcome.result().output if error is None else str(error))
        return False

    retry = tenacity.retry_any(ON_OS_ERROR, tenacity.retry_if_result(lambda outcome: not outcome.success))
    _, record = run_one(make_runner, "raise:OSError failed fine", tenacity.Retrying(stop=stop, retry=retry))
    assert record.status == "succeeded"
    assert seen == ["ConnectionError: no luck", "failed"]


def test_a_disabled_retrying_tries_once(make_runner: MakeRunner) -> None:
    """With `enabled=False` there is one attempt, as in tenacity."""
    retrying = tenacity.Retrying()
    retrying.enabled = False  # an argument of it in later versions
    _, record = run_one(make_runner, "raise:OSError fine", retrying)
    assert len(record.attempts) == 1


def test_a_worker_that_never_starts_is_no_attempt(ledger: Ledger) -> None:
    """A step that has not begun has no attempt, and is not tried again if no worker can start."""

    class NeverUp(Scripted):
        def setup(self) -> None:
            os._exit(5)

    run = Runner(NeverUp(ledger), backend="process", retry=QUICK(3, on_crash=True)).run(scripted_specs("fine", "fine"))
    assert [(record.status, record.attempts) for record in run.records] == [("crashed", ())] * 2
    assert "attempts" not in run[0].output


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry", "said"),
    [
        (0, "retry must be an int of at least 1, got int 0"),
        (-1, "retry must be"),
        (True, "retry must be"),
        (2.5, "retry must be a number of attempts, a Retry or a tenacity Retrying object, got float 2.5"),
        ("3", "retry must be"),
        (object(), "retry must be"),
        (tenacity.stop_after_attempt(3), "wrap strategies as in tenacity.Retrying"),
        (tenacity.retry_if_exception_type(OSError), "wrap strategies"),
        (tenacity.Retrying, "retry must be"),
        (tenacity.Retrying(wait=5), "retry.wait must be a tenacity strategy, got int 5"),  # type: ignore[arg-type]
        (tenacity.Retrying(retry=ValueError), "retry.retry must be a tenacity strategy"),  # type: ignore[arg-type]
        (tenacity.Retrying(stop=tenacity.stop_after_attempt), "call it to make one"),  # type: ignore[arg-type]
    ],
    ids=without_address,
)
def test_an_unusable_retry_is_refused(retry: Any, said: str) -> None:
    """The error says what came and what is expected, before any step runs."""
    with pytest.raises(OptionError) as caught:
        Runner(FunctionExecutor({}), retry=retry)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"attempts": 0}, "attempts of Retry must be an int of at least 1, got int 0"),
        ({"attempts": "3"}, "attempts of Retry"),
        ({"wait": -1}, "wait of Retry"),
        ({"wait": "1"}, "wait of Retry"),
        ({"wait": tenacity.wait_fixed}, "wait of Retry"),
        ({"retry_on": "OSError"}, "retry_on of Retry must be an exception class"),
        ({"retry_on": ()}, "retry_on of Retry"),
        ({"retry_on": int}, "retry_on of Retry"),
        ({"on_crash": 1}, "on_crash of Retry must be a bool, got int 1"),
        ({"on_timeout": None}, "on_timeout of Retry"),
        ({"on_failure": "yes"}, "on_failure of Retry"),
    ],
    ids=without_address,
)
def test_an_unusable_field_of_retry_is_refused(arguments: dict[str, Any], said: str) -> None:
    """The error names the field, what came and what is expected."""
    with pytest.raises(OptionError) as caught:
        Retry(**arguments)
    assert said in str(caught.value)


@pytest.mark.parametrize("seconds", [-1, "5", float("nan"), float("inf"), None, True])
def test_unusable_seconds_of_retry_after_are_refused(seconds: Any) -> None:
    """`RetryAfter` takes a number of seconds, not the text of an HTTP header."""
    with pytest.raises(OptionError, match="seconds of RetryAfter must be a number of seconds of at least 0"):
        RetryAfter(seconds)


def test_coroutine_strategies_are_refused() -> None:
    """A strategy must not be a coroutine function, because it is not awaited."""

    async def never(state: Any) -> bool:
        return False

    with pytest.raises(OptionError, match=r"retry\.retry is a coroutine function"):
        Runner(FunctionExecutor({}), retry=tenacity.AsyncRetrying(retry=never))
