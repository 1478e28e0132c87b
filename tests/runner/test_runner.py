"""The runner: its bound, its laziness, its arguments, its records, and the ways it is called."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from bounds import HANG_BOUND_S

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    FunctionExecutor,
    InputError,
    OptionError,
    Run,
    Runner,
    StepOutcome,
    UnknownOption,
    execute_steps_parallel,
)
from fanout_sync.engine.stream import MAX_UNREAD
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


class Echo(AgentExecutor):
    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        return StepOutcome.completed(spec, spec.prompt)


class Gated(AgentExecutor):
    """Steps wait at a gate of their own until the test opens it."""

    def __init__(self, gated: set[int]) -> None:
        self.gates = {number: threading.Event() for number in gated}
        self.begun = threading.Semaphore(0)

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        self.begun.release()
        gate = self.gates.get(int(spec.prompt))
        assert gate is None or gate.wait(HANG_BOUND_S)
        return StepOutcome.completed(spec, spec.prompt)


class Counted:
    """An endless input that knows how far it was read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[AgentStepSpec]:
        while True:
            self.read += 1
            yield AgentStepSpec(f"t{self.read - 1}", "tester", "", str(self.read - 1))


# What comes back ----------------------------------------------------------------------------------------------------


def test_a_run_is_a_sequence_of_outcomes(make_runner: MakeRunner) -> None:
    """A run has a length, indices, slices and equality like a list, and tells the failed from the others."""
    run = make_runner(FunctionExecutor({"tester": lambda spec: spec.prompt, "none": lambda spec: None})).run(
        [*make_specs(2), *make_specs(1, agent="none")]
    )
    assert isinstance(run, Run)
    assert len(run) == 3
    assert run[0] == StepOutcome("t0", "task-run-t0", "tester", "0", True)
    assert run[-1].agent == "none"
    assert run[:2] == list(run)[:2]
    assert run == list(run)
    assert [outcome.output for outcome in run.succeeded] == ["0", "1"]
    assert [outcome.agent for outcome in run.failed] == ["none"]
    assert run.elapsed > 0


def test_the_summary_counts_and_names_what_failed() -> None:
    """The summary has the number of steps by status and a line for each one that failed."""
    run = Runner(FunctionExecutor({"tester": lambda spec: 1 / int(spec.prompt)})).run(make_specs(3))
    summary = run.summary()
    assert "3 steps" in summary
    assert "2 succeeded" in summary
    assert "1 raised" in summary
    assert "t0 (tester) raised: ZeroDivisionError: division by zero" in summary


def test_records_tell_when_and_where(make_runner: MakeRunner) -> None:
    """A record has the index, the status, UTC times that span the step, and the worker."""
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    run = make_runner(Echo()).run(make_specs(3))
    for index, record in enumerate(run.records):
        assert record.index == index
        assert record.status == "succeeded"
        assert record.error is None
        assert record.started is not None
        assert record.finished is not None
        assert record.duration_s is not None
        assert before <= record.started <= record.finished <= datetime.now(timezone.utc) + timedelta(seconds=1)
        assert record.started.tzinfo is timezone.utc
        assert record.finished - record.started == timedelta(seconds=record.duration_s)
        assert record.worker
    assert run.records[-1] == run.records[2]
    assert run.records[1:] == list(run.records)[1:]
    with pytest.raises(IndexError):
        run.records[3]


def test_no_specs_is_an_empty_run(make_runner: MakeRunner) -> None:
    """Nothing to do gives an empty run, and `setup` is not even called."""
    run = make_runner(Echo()).run([])
    assert list(run) == []
    assert list(run.records) == []
    assert "0 steps" in run.summary()


# The bound ----------------------------------------------------------------------------------------------------------


def test_max_concurrency_overrides_the_hint() -> None:
    """The caller's bound replaces the executor's hint, in both directions."""
    executor = Gated({0, 1, 2})
    runner = Runner(executor, max_concurrency=3)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, make_specs(3))
        for _ in range(3):
            assert executor.begun.acquire(timeout=HANG_BOUND_S)
        for gate in executor.gates.values():
            gate.set()
        assert len(future.result(HANG_BOUND_S)) == 3


@pytest.mark.parametrize("hint", [0, -5])
def test_a_hint_below_one_means_one(hint: int) -> None:
    """A hint of zero or less runs steps one at a time."""

    class Shy(Echo):
        def concurrency_hint(self) -> int:
            return hint

    assert len(Runner(Shy()).run(make_specs(3))) == 3


@pytest.mark.parametrize("backend", ["thread", "foreign"])
def test_a_generator_is_read_no_further_than_the_bound(backend: str) -> None:
    """While the first steps run, no more specs are taken from a generator than may run at once."""
    executor = Gated({0, 1, 2})
    source = Counted()
    with ThreadPoolExecutor(16) as pool:
        runner = Runner(executor, backend=pool if backend == "foreign" else "thread", max_concurrency=3)
        stream = runner.stream(source)
        taker = threading.Thread(target=lambda: next(stream))
        taker.start()
        for _ in range(3):
            assert executor.begun.acquire(timeout=HANG_BOUND_S)
        assert source.read == 3
        for gate in executor.gates.values():
            gate.set()
        taker.join(HANG_BOUND_S)
        stream.close()


# Streams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["input", "completion"])
def test_a_stream_yields_every_outcome(make_runner: MakeRunner, order: Any) -> None:
    """A stream has one outcome for each spec of a generator."""
    outcomes = list(make_runner(Echo()).stream((spec for spec in make_specs(50)), order))
    assert sorted(outcomes, key=lambda outcome: int(outcome.output)) == Runner(Echo()).run(make_specs(50))
    if order == "input":
        assert [outcome.output for outcome in outcomes] == [str(number) for number in range(50)]


def test_completion_order_is_that_of_ends() -> None:
    """In completion order a slow first step does not delay the others."""
    executor = Gated({0})
    stream = Runner(executor, max_concurrency=2).stream(make_specs(5), order="completion")
    assert {next(stream).output for _ in range(4)} == {"1", "2", "3", "4"}
    executor.gates[0].set()
    assert [outcome.output for outcome in stream] == ["0"]


def test_a_slow_consumer_stops_the_reading_of_specs() -> None:
    """No more specs are read ahead of the consumer than the bound, however slow it is."""
    source = Counted()
    stream = Runner(Echo(), max_concurrency=4).stream(source, order="completion")
    for taken in range(1, 200):
        next(stream)
        assert source.read - taken <= 4
    stream.close()


def test_a_slow_first_step_does_not_idle_the_others_nor_fill_the_memory() -> None:
    """Behind a slow head, others go on until a fixed number of outcomes waits for it."""
    executor = Gated({0})
    source = Counted()
    stream = Runner(executor, max_concurrency=2).stream(source)
    taker = threading.Thread(target=lambda: next(stream))
    taker.start()
    while source.read < MAX_UNREAD:
        assert executor.begun.acquire(timeout=HANG_BOUND_S)
    executor.gates[0].set()
    taker.join(HANG_BOUND_S)
    assert source.read <= MAX_UNREAD + 3
    assert [next(stream).output for _ in range(500)] == [str(number) for number in range(1, 501)]
    stream.close()


@pytest.mark.parametrize("ending", ["close", "collect", "raise"])
@pytest.mark.parametrize("backend", ["thread", "process"])
def test_a_stream_that_is_left_early_cleans_up(ending: str, backend: Any) -> None:
    """Closing, dropping or raising out of a stream leaves no worker behind."""
    stream: Any = Runner(Echo(), backend=backend, max_concurrency=2).stream(Counted())
    next(stream)
    if ending == "close":
        stream.close()
    elif ending == "raise":
        with pytest.raises(ZeroDivisionError):
            stream.throw(ZeroDivisionError())
    del stream
    gc.collect()


# Input that goes wrong ----------------------------------------------------------------------------------------------


def _broken_after(count: int, error: BaseException) -> Iterator[AgentStepSpec]:
    yield from make_specs(count)
    raise error


@pytest.mark.parametrize("count", [0, 1, 20])
def test_an_input_that_raises(make_runner: MakeRunner, count: int) -> None:
    """Steps started before the input raised are finished, and are in the error's run."""
    with pytest.raises(InputError, match=f"after {count} specs: ValueError: bad row") as caught:
        make_runner(Echo()).run(_broken_after(count, ValueError("bad row")))
    assert isinstance(caught.value.__cause__, ValueError)
    assert [outcome.output for outcome in caught.value.run] == [str(number) for number in range(count)]
    assert all(outcome.success for outcome in caught.value.run)


@pytest.mark.parametrize(("bad", "as_list"), [(None, True), ({"task_id": "t"}, False), ("text", True)])
def test_an_item_that_is_no_spec(make_runner: MakeRunner, bad: object, as_list: bool) -> None:
    """An item that is no spec ends the run with an error that says which one, and with all that was started."""
    items: Any = [*make_specs(3), bad, *make_specs(1)]
    with pytest.raises(InputError, match=r"specs\[3\] is .*AgentStepSpec") as caught:
        make_runner(Echo()).run(items if as_list else iter(items))
    assert [outcome.output for outcome in caught.value.run] == ["0", "1", "2"]


def test_a_stream_yields_what_was_started_before_the_input_raised() -> None:
    """The error of the input comes after the last outcome."""
    stream = Runner(Echo()).stream(_broken_after(5, KeyError("gone")))
    assert [next(stream).output for _ in range(5)] == ["0", "1", "2", "3", "4"]
    with pytest.raises(InputError, match="KeyError"):
        next(stream)


@pytest.mark.parametrize("specs", [5, None, make_specs(1)[0]])
def test_specs_must_be_iterable(specs: Any) -> None:
    """What cannot be iterated is refused at once, by `run` and by `stream`."""
    with pytest.raises(InputError, match="specs must be an iterable of AgentStepSpec"):
        Runner(Echo()).run(specs)
    with pytest.raises(InputError, match="specs must be an iterable of AgentStepSpec"):
        Runner(Echo()).stream(specs)


def test_a_keyboard_interrupt_of_the_input_passes() -> None:
    """Ctrl-C while the input is being read raises `KeyboardInterrupt`, not `InputError`."""
    with pytest.raises(KeyboardInterrupt):
        Runner(Echo()).run(_broken_after(3, KeyboardInterrupt()))


# Arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_concurrency": 0}, "max_concurrency must be an int of at least 1, got int 0"),
        ({"max_concurrency": -1}, "max_concurrency"),
        ({"max_concurrency": 2.0}, "max_concurrency must be an int of at least 1, got float 2.0"),
        ({"max_concurrency": True}, "max_concurrency"),
        ({"max_concurrency": "4"}, "max_concurrency"),
        ({"backend": "proces"}, r"backend .*'proces' \(did you mean 'process'\?\)"),
        ({"backend": None}, "backend must be 'thread', 'process', a Backend or a concurrent.futures.Executor"),
        ({"backend": ThreadPoolExecutor}, "backend"),
        ({"event_tx": 5}, "event_tx must be an EventChannel, have a send method or be a plain function, got int 5"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    """The constructor refuses it; the error names the option, what came and what is allowed."""
    with pytest.raises(OptionError, match=message):
        Runner(Echo(), **options)
    with pytest.raises(OptionError, match=message):
        execute_steps_parallel(Echo(), make_specs(1), **options)


def test_an_unknown_option() -> None:
    """An option that does not exist is refused, with the one that was probably meant."""
    with pytest.raises(UnknownOption, match=r"'max_concurency' \(did you mean 'max_concurrency'\?\)"):
        Runner(Echo(), max_concurency=3)  # type: ignore[arg-type]  # which is what mypy is to say
    with pytest.raises(TypeError, match="execute_steps_parallel has no option 'timeot'"):
        execute_steps_parallel(Echo(), make_specs(1), timeot=3)  # type: ignore[call-arg]  # the same


@pytest.mark.parametrize("executor", [None, len, object(), {"tester": len}])
def test_the_executor_must_be_one(executor: Any) -> None:
    """The error has a hint at how to make an executor."""
    with pytest.raises(OptionError, match=r"executor must be an AgentExecutor.*FunctionExecutor"):
        Runner(executor)


def test_the_order_of_a_stream_is_checked_at_once() -> None:
    """A wrong order is refused by the call, not by the first `next`."""
    with pytest.raises(OptionError, match="order must be 'input' or 'completion', got str 'random'"):
        Runner(Echo()).stream([], order="random")  # type: ignore[arg-type]  # the mistake in question


def test_a_hint_that_is_no_number() -> None:
    """An executor whose hint is no int is refused before anything runs."""

    class Vague(Echo):
        def concurrency_hint(self) -> Any:
            return "many"

    with pytest.raises(OptionError, match=r"concurrency_hint\(\).*got str 'many'"):
        Runner(Vague()).run(make_specs(1))


# Ways of being called -----------------------------------------------------------------------------------------------


def test_a_runner_can_be_used_again_and_from_two_threads(make_runner: MakeRunner) -> None:
    """One runner serves any number of calls, also at the same time."""
    runner = make_runner(Echo(), max_concurrency=2)
    expected = [str(number) for number in range(20)]
    assert [outcome.output for outcome in runner.run(make_specs(20))] == expected
    with ThreadPoolExecutor(2) as pool:
        for run in pool.map(runner.run, [make_specs(20)] * 4):
            assert [outcome.output for outcome in run] == expected


class Nested(AgentExecutor):
    """A step that fans out itself, on the backend that its description names."""

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        inner: Any = spec.description
        outcomes = execute_steps_parallel(Echo(), make_specs(3), event_tx, backend=inner, max_concurrency=2)
        return StepOutcome.completed(spec, "".join(outcome.output for outcome in outcomes))


@pytest.mark.parametrize("inner", ["thread", "process"])
@pytest.mark.parametrize("outer", ["thread", "process"])
def test_a_step_may_fan_out_itself(outer: Any, inner: str) -> None:
    """Runs nest in any combination of backends."""
    specs = [AgentStepSpec(f"t{number}", "tester", inner, "") for number in range(3)]
    outcomes = execute_steps_parallel(Nested(), specs, backend=outer, max_concurrency=2)
    assert [outcome.output for outcome in outcomes] == ["012"] * 3


def test_inside_a_running_event_loop(make_runner: MakeRunner) -> None:
    """A coroutine may call the runner; async agents run in loops of their own beside it."""

    async def agent(spec: AgentStepSpec) -> str:
        await asyncio.sleep(0)
        return spec.prompt

    async def main() -> Run:
        return make_runner(FunctionExecutor({"tester": agent})).run(make_specs(4))

    assert [outcome.output for outcome in asyncio.run(main())] == ["0", "1", "2", "3"]


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


def test_steps_see_the_callers_context_in_copies() -> None:
    """A context variable of the caller, or of `setup`, is seen in each step; what a step sets stays its own."""

    class Contextual(AgentExecutor):
        def setup(self) -> None:
            VARIABLE.set(VARIABLE.get() + "+setup")

        def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
            seen = VARIABLE.get()
            VARIABLE.set("dirty")
            return StepOutcome.completed(spec, seen)

    token = VARIABLE.set("caller")
    try:
        for backend in ("thread", ThreadPoolExecutor(2)):
            run = Runner(Contextual(), backend=backend, max_concurrency=2).run(make_specs(6))
            assert {outcome.output for outcome in run} == {"caller+setup"}
            if isinstance(backend, ThreadPoolExecutor):
                backend.shutdown()
        assert VARIABLE.get() == "caller"
    finally:
        VARIABLE.reset(token)


# setup and teardown -------------------------------------------------------------------------------------------------


class Hooked(AgentExecutor):
    """Keeps an account of what is called, in this process."""

    def __init__(self, setup_error: BaseException | None = None, teardown_error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.setup_error = setup_error
        self.teardown_error = teardown_error

    def setup(self) -> None:
        self.calls.append("setup")
        if self.setup_error:
            raise self.setup_error

    def teardown(self) -> None:
        self.calls.append("teardown")
        if self.teardown_error:
            raise self.teardown_error

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        self.calls.append("step")
        return StepOutcome.completed(spec, spec.prompt)


@pytest.mark.parametrize("foreign", [False, True])
def test_hooks_are_called_once_a_run_around_the_steps(foreign: bool) -> None:
    """On threads `setup` comes once before the first step and `teardown` once after the last, in each run."""
    executor = Hooked()
    with ThreadPoolExecutor(8) as pool:
        runner = Runner(executor, backend=pool if foreign else "thread")
        for _ in range(2):
            executor.calls.clear()
            runner.run(make_specs(10))
            assert executor.calls == ["setup", *["step"] * 10, "teardown"]


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("error", [ValueError("no key"), SystemExit(4)])
def test_a_setup_that_raises_fails_each_step_with_its_cause(foreign: bool, error: BaseException) -> None:
    """If `setup` raises, it is called once, no step runs, and each one's outcome names the cause."""
    executor = Hooked(setup_error=error)
    with ThreadPoolExecutor(8) as pool:
        run = Runner(executor, backend=pool if foreign else "thread").run(make_specs(20))
    assert executor.calls == ["setup"]
    assert {outcome.output for outcome in run} == {f"{type(error).__name__}: {error}"}
    assert {record.status for record in run.records} == {"raised"}
    cause = run.records[0].error
    assert cause is not None
    assert "in setup" in (cause.traceback or "")


def test_a_teardown_that_raises_costs_no_outcome(caplog: pytest.LogCaptureFixture) -> None:
    """What `teardown` raises is logged."""
    run = Runner(Hooked(teardown_error=ValueError("stuck"))).run(make_specs(3))
    assert len(run.succeeded) == 3
    assert "teardown() of Hooked raised" in caplog.text
    assert "stuck" in caplog.text


def test_one_hung_step_does_not_keep_the_interpreter(tmp_path: Any) -> None:
    """A script whose stream has a step that never ends can still exit."""
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        "import threading\n"
        "from fanout_sync import FunctionExecutor, Runner\n"
        "from fanout_sync.testing import make_specs\n"
        "def agent(spec):\n"
        "    if spec.prompt == '1': threading.Event().wait()\n"
        "    return spec.prompt\n"
        "stream = Runner(FunctionExecutor({'tester': agent})).stream(make_specs(2))\n"
        "print(next(stream).output)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=HANG_BOUND_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    assert time.monotonic() - began < HANG_BOUND_S
