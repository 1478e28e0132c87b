"""Worker processes: what is sent to them, how they start or fail to, and what they send back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import attrs
import pytest
from bounds import HANG_BOUND_S

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    EventChannel,
    ExecutorNotPicklable,
    FunctionExecutor,
    ProcessBackend,
    Runner,
    StepOutcome,
    SubagentEnd,
    SubagentStart,
    TextDelta,
    ThreadBackend,
)
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs
from fanout_sync.workers.starter import MAX_FAILED_STARTS


def run_script(tmp_path: Path, source: str, **options: Any) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(source))
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=HANG_BOUND_S, check=False, **options
    )


# Where executors come from ------------------------------------------------------------------------------------------


def test_an_executor_of_a_script_without_a_main_guard(tmp_path: Path) -> None:
    """Classes and functions of `__main__` are sent to the workers, and these do not run the script again."""
    done = run_script(
        tmp_path,
        """
        from attrs import frozen
        from fanout_sync import AgentExecutor, AgentStepSpec, StepOutcome, execute_steps_parallel

        print("script runs")
        FACTOR = 3

        @frozen
        class Scale:
            by: int

        def scaled(number, scale):
            return number * scale.by

        class Scaling(AgentExecutor):
            def __init__(self, scale):
                self.scale = scale
                self.bias = lambda number: number + 1

            def execute_step(self, spec, event_tx=None):
                return StepOutcome.completed(spec, str(self.bias(scaled(int(spec.prompt), self.scale)) + FACTOR))

        specs = [AgentStepSpec(f"t{i}", "a", "", str(i)) for i in range(5)]
        outcomes = execute_steps_parallel(Scaling(Scale(10)), specs, backend="process", max_concurrency=2)
        print([outcome.output for outcome in outcomes])
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "script runs\n['4', '14', '24', '34', '44']\n"


def test_closures_and_lambdas_as_agents() -> None:
    """Functions that cannot be imported run in worker processes."""
    prefix = "said: "
    run = Runner(FunctionExecutor({"tester": lambda spec: prefix + spec.prompt}), backend="process").run(make_specs(2))
    assert [outcome.output for outcome in run] == ["said: 0", "said: 1"]


def test_in_a_notebook(tmp_path: Path) -> None:
    """Agents of a notebook cell, async ones too, run on both backends while the kernel's event loop runs."""
    from jupyter_client.manager import start_new_kernel

    cells = [
        """
        from fanout_sync import FunctionExecutor, AgentStepSpec, execute_steps_parallel
        import asyncio, os
        HOME = os.getpid()
        executor = FunctionExecutor()

        @executor.register("plain")
        def plain(spec):
            return f"{spec.prompt} {os.getpid() != HOME}"

        @executor.register("async")
        async def waiting(spec):
            await asyncio.sleep(0)
            return {"prompt": spec.prompt}

        specs = [AgentStepSpec(f"t{i}", ("plain", "async")[i % 2], "", str(i)) for i in range(4)]
        """,
        """
        for backend in ("thread", "process"):
            for outcome in execute_steps_parallel(executor, specs, backend=backend, max_concurrency=2):
                print(outcome.output)
        """,
    ]
    printed: list[str] = []

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        for cell in cells:
            reply = client.execute_interactive(textwrap.dedent(cell), timeout=HANG_BOUND_S, output_hook=collect)
            assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    thread, process = (
        '0 False\n{"prompt":"1"}\n2 False\n{"prompt":"3"}\n',
        '0 True\n{"prompt":"1"}\n2 True\n{"prompt":"3"}\n',
    )
    assert "".join(printed) == thread + process


# Executors that cannot be sent --------------------------------------------------------------------------------------


class Holder(AgentExecutor):
    """Holds whatever it is given."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        raise AssertionError("no step may run")


@attrs.define
class Slotted:
    client: Any


def _holding_in_a_closure() -> FunctionExecutor:
    lock = threading.Lock()
    return FunctionExecutor({"tester": lambda spec: str(lock)})


@pytest.mark.parametrize(
    ("executor", "path"),
    [
        (Holder(lock=threading.Lock()), r"executor\.lock cannot be sent .*: it is a lock "),
        (Holder(clients={"a": 1, "b": [2, threading.Lock()]}), r"executor\.clients\['b'\]\[1\]"),
        (Holder(slotted=Slotted(threading.Lock())), r"executor\.slotted\.client"),
        (Holder(generator=(number for number in range(3))), r"executor\.generator"),
        (_holding_in_a_closure(), r"executor\._functions\['tester'\] \(closure lock\)"),
    ],
    ids=["attribute", "nested", "slots", "generator", "closure"],
)
def test_an_executor_that_does_not_pickle_is_refused(executor: AgentExecutor, path: str) -> None:
    """The error names the path to the attribute at fault and mentions `setup`; no input has been read by then."""
    untouched = iter(make_specs(3))
    with pytest.raises(ExecutorNotPicklable, match=path) as caught:
        Runner(executor, backend="process").run(untouched)
    assert len(list(untouched)) == 3
    assert "setup()" in str(caught.value)
    assert isinstance(caught.value, TypeError)


# Workers that cannot start ------------------------------------------------------------------------------------------


class BadStart(LedgerExecutor):
    """Fails to start in a given way, and notes each start."""

    def __init__(self, ledger: Ledger, way: str) -> None:
        super().__init__(ledger, concurrency=4)
        self.way = way

    def setup(self) -> None:
        self.ledger.note("start")
        if self.way == "raise":
            raise ValueError("no licence")
        if self.way == "exit":
            raise SystemExit(5)
        if self.way == "die":
            os._exit(6)
        if self.way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("way", "status", "text"),
    [
        ("raise", "raised", "ValueError: no licence"),
        ("exit", "raised", "SystemExit: 5"),
        ("die", "crashed", "exited with code 6 while it started"),
        ("kill", "crashed", "killed by SIGKILL"),
    ],
)
def test_workers_that_cannot_start_fail_every_step_with_the_cause(
    way: str, status: str, text: str, ledger: Ledger
) -> None:
    """If no worker can start, each step fails with the worker's own error, and only a few workers are started."""
    run = Runner(BadStart(ledger, way), backend="process").run(make_specs(50))
    assert len(run) == 50
    assert all(text in outcome.output and not outcome.success for outcome in run)
    assert [outcome.task_id for outcome in run] == [f"t{number}" for number in range(50)]
    assert {record.status for record in run.records} == {status}
    assert ledger.counts().keys() == {"start"}
    assert ledger.counts()["start"] <= MAX_FAILED_STARTS + 4
    if status == "raised":
        error = run.records[0].error
        assert error is not None
        assert "setup" in (error.traceback or "")


class FlakyStart(LedgerExecutor):
    """Only its first worker starts; later ones die in `setup`."""

    def setup(self) -> None:
        try:
            self.ledger.path.with_name("first").touch(exist_ok=False)
        except FileExistsError:
            os._exit(6)


def test_steps_run_on_the_workers_that_could_start(ledger: Ledger) -> None:
    """If only one worker can start, all steps run on it."""
    run = Runner(FlakyStart(ledger, concurrency=4), backend="process").run(make_specs(20))
    assert len(run.succeeded) == 20


# setup, teardown, warm workers ---------------------------------------------------------------------------------------


class Hooked(LedgerExecutor):
    """Creates in `setup` an object that does not pickle, and notes the process of each hook."""

    lock: Any = None

    def setup(self) -> None:
        self.lock = threading.Lock()
        self.ledger.note(f"setup-{os.getpid()}")

    def teardown(self) -> None:
        self.ledger.note(f"teardown-{os.getpid()}")

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        with self.lock:
            return StepOutcome.completed(spec, str(os.getpid()))


def test_hooks_are_called_once_in_each_worker(ledger: Ledger) -> None:
    """Each worker calls `setup` once before its steps and `teardown` once after; none is the calling process."""
    run = Runner(Hooked(ledger, concurrency=2), backend="process").run(make_specs(30))
    workers = {outcome.output for outcome in run}
    assert str(os.getpid()) not in workers
    counts = ledger.counts()
    assert set(counts.values()) == {1}
    for worker in workers:
        assert {f"setup-{worker}", f"teardown-{worker}"} <= counts.keys()
    # A worker that is still in setup() when all steps are done is killed, and tears nothing down.
    torn_down = {name.removeprefix("teardown-") for name in counts if name.startswith("teardown")}
    assert torn_down <= {name.removeprefix("setup-") for name in counts if name.startswith("setup")}


class BadEnd(LedgerExecutor):
    def teardown(self) -> None:
        raise SystemExit("stuck")


def test_a_teardown_that_raises_in_a_worker_is_logged(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """An error of `teardown` in a worker process is logged in the caller, and no step fails."""
    run = Runner(BadEnd(ledger), backend="process").run(make_specs(2))
    assert len(run.succeeded) == 2
    assert "teardown() of BadEnd raised" in caplog.text
    assert "SystemExit: stuck" in caplog.text


def test_a_runner_as_context_manager_keeps_its_workers(ledger: Ledger) -> None:
    """In a `with` block later calls use the workers of earlier ones, set up already; its end tears them down."""
    with Runner(Hooked(ledger, concurrency=1), backend="process") as runner:
        first = runner.run(make_specs(3))
        second = runner.run(make_specs(3))
        third = list(runner.stream(make_specs(3)))
        assert len({outcome.output for outcome in [*first, *second, *third]}) == 1
        assert not any(name.startswith("teardown") for name in ledger.counts())
    assert sorted(name.partition("-")[0] for name in ledger.counts()) == ["setup", "teardown"]


def test_a_warm_worker_that_died_is_replaced(ledger: Ledger) -> None:
    """If a worker is killed between two calls, all steps of the second one still succeed."""
    with Runner(Hooked(ledger, concurrency=1), backend="process") as runner:
        first = runner.run(make_specs(1))
        os.kill(int(first[0].output), signal.SIGKILL)
        second = runner.run(make_specs(3))
    assert all(outcome.success for outcome in second)
    assert second[0].output != first[0].output


def test_an_executor_that_changed_is_sent_again(ledger: Ledger) -> None:
    """If the executor changes between two calls of a warm runner, the workers get the new one."""
    executor = FunctionExecutor({"tester": lambda spec: "old"}, concurrency=1)
    with Runner(executor, backend="process") as runner:
        old = runner.run(make_specs(1))
        executor.register("tester")(lambda spec: "new")
        new = runner.run(make_specs(1))
    assert (old[0].output, new[0].output) == ("old", "new")
    assert old.records[0].worker == new.records[0].worker


def test_max_workers_limits_the_workers_of_a_run() -> None:
    """With a `max_workers` below the bound there are only so many workers, and all steps run."""
    executor = FunctionExecutor({"tester": lambda spec: str(os.getpid())}, concurrency=8)
    run = Runner(executor, backend=ProcessBackend(max_workers=1)).run(make_specs(10))
    assert len({outcome.output for outcome in run}) == 1


# How steps and outcomes are sent --------------------------------------------------------------------------------------


class Text(str):
    """A `str` whose class must not be pickled."""

    def __reduce__(self) -> Any:
        raise AssertionError("a spec or outcome is sent as plain data")


def test_specs_and_outcomes_are_sent_as_plain_data() -> None:
    """All fields arrive, and instances of subclasses of `str` arrive as plain `str`."""
    spec = AgentStepSpec(
        Text("t"), "tester", Text("é"), Text("p"), 2**64 - 1, Text("parent"), {"default": ["é", 1.5, None]}
    )

    def agent(spec: AgentStepSpec) -> StepOutcome:
        kinds = {type(value).__name__ for value in (spec.task_id, spec.description, spec.prompt)}
        return StepOutcome.completed(spec, Text("out"), {"spec": spec.to_dict(), "kinds": sorted(kinds)})

    outcome = Runner(FunctionExecutor({"tester": agent}), backend="process").run([spec])[0]
    assert outcome.structured == {"spec": spec.to_dict(), "kinds": ["str"]}
    assert type(outcome.output) is str


@pytest.mark.parametrize("schema", [{"x": object()}, {"x": float("nan")}, {1: 2}])
def test_a_spec_that_cannot_be_sent_fails_alone(schema: Any) -> None:
    """A spec whose schema is not JSON is `invalid` and names the field; the others run."""
    specs = make_specs(3)
    specs[1] = specs[1].with_output_schema(schema)
    run = Runner(FunctionExecutor({"tester": lambda spec: spec.prompt}), backend="process").run(specs)
    assert [record.status for record in run.records] == ["succeeded", "invalid", "succeeded"]
    assert "output_schema" in run[1].output
    assert run[1].task_id == "t1"


def test_a_prompt_of_many_megabytes() -> None:
    """A prompt that is larger than the buffer of a socket arrives complete, in several workers at once."""
    specs = [attrs.evolve(spec, prompt=spec.prompt * 30_000_000) for spec in make_specs(3)]
    executor = FunctionExecutor({"tester": lambda spec: str(len(spec.prompt))}, concurrency=3)
    assert [outcome.output for outcome in Runner(executor, backend="process").run(specs)] == ["30000000"] * 3


class SmallWorkers(FunctionExecutor):
    """Its workers have only little free memory."""

    def setup(self) -> None:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, used + 50_000_000))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_spec_that_is_too_large_for_its_worker_fails_alone() -> None:
    """A step whose prompt needs more memory than a worker has fails after a few workers; the others run."""
    specs = make_specs(4)
    specs[1] = attrs.evolve(specs[1], prompt="x" * 100_000_000)
    run = Runner(SmallWorkers({"tester": lambda spec: spec.prompt}, concurrency=2), backend="process").run(specs)
    assert [record.status for record in run.records] == ["succeeded", "crashed", "succeeded", "succeeded"]


def _exit_later(spec: AgentStepSpec) -> str:
    """Return, and exit soon after that, between two steps or while the next one arrives."""
    threading.Timer(0.0005 * (int(spec.prompt) % 7), os._exit, (3,)).start()
    return spec.prompt


def test_a_worker_that_dies_between_steps(ledger: Ledger) -> None:
    """The death of a worker fails at most the step that it was running; one that it had not begun runs elsewhere."""
    executor = LedgerExecutor(ledger, {f"t{number}": _note_and_exit_later for number in range(0, 60, 2)}, 2)
    run = Runner(executor, backend="process").run(make_specs(60))
    counts = ledger.counts()
    assert len(run) == 60
    for outcome, record in zip(run, run.records, strict=True):
        if outcome.success:
            assert counts[outcome.task_id] == 1
        else:
            assert record.status == "crashed"
            assert counts[outcome.task_id] <= 1


def _note_and_exit_later(spec: AgentStepSpec) -> StepOutcome:
    return StepOutcome.completed(spec, _exit_later(spec))


def test_workers_read_nothing_of_the_callers_input(tmp_path: Path) -> None:
    """A step that reads its standard input finds it empty; the input of the caller is not read."""
    done = run_script(
        tmp_path,
        """
        import sys
        from fanout_sync import FunctionExecutor, Runner
        from fanout_sync.testing import make_specs
        executor = FunctionExecutor({"tester": lambda spec: repr(sys.stdin.read())})
        run = Runner(executor, backend="process").run(make_specs(2))
        print(run[0].output, run[1].output, sys.stdin.read())
        """,
        input="for the caller",
    )
    assert (done.stdout, done.stderr) == ("'' '' for the caller\n", "")


@pytest.mark.parametrize(
    "setting",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))",
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (2048, 2048)); held = [os.dup(0) for _ in range(1100)]",
    ],
    ids=["ignored children", "reaped children", "default SIGPIPE", "few descriptors", "many descriptors"],
)
def test_callers_with_unusual_signal_handlers_or_descriptor_limits(setting: str, tmp_path: Path) -> None:
    """Each step has its outcome if the caller reaps all children, restores SIGPIPE or has few descriptors."""
    done = run_script(
        tmp_path,
        f"""
        import os, resource, signal
        from fanout_sync import FunctionExecutor, Runner
        from fanout_sync.testing import make_specs
        {setting}
        executor = FunctionExecutor({{"tester": lambda spec: os._exit(3) if spec.prompt == "5" else spec.prompt}})
        with Runner(executor, backend="process", max_concurrency=4) as runner:
            run = runner.run(make_specs(12))
            next(runner.stream(make_specs(12)))
        print([outcome.output for outcome in run.succeeded], [record.status for record in run.records][5])
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{[str(number) for number in range(12) if number != 5]} crashed\n"


# Events -------------------------------------------------------------------------------------------------------------


def _send_event_and_wait(spec: AgentStepSpec, event_tx: Any) -> str:
    if event_tx is None:
        return "nobody listens"
    event_tx.send(TextDelta(spec.task_id, "working"))
    poll = threading.Event()
    for _ in range(HANG_BOUND_S * 100):
        if Path(spec.description).exists():
            return "released"
        poll.wait(0.01)
    return "never released"


@pytest.mark.parametrize("streaming", [False, True])
def test_events_of_workers_arrive_while_the_step_runs(streaming: bool, tmp_path: Path) -> None:
    """The caller gets an event of a step that is still running, from `run` and from `stream`."""
    gate = tmp_path / "gate"
    specs = [attrs.evolve(make_specs(1)[0], description=str(gate))]
    channel = EventChannel()
    receiver = channel.subscribe()
    runner = Runner(FunctionExecutor({"tester": _send_event_and_wait}), backend="process", event_tx=channel)
    outcomes: list[StepOutcome] = []
    work = threading.Thread(target=lambda: outcomes.extend(runner.stream(specs) if streaming else runner.run(specs)))
    work.start()
    while not isinstance(event := receiver.recv(HANG_BOUND_S), TextDelta):
        pass
    assert event.text == "working"
    assert work.is_alive()
    gate.touch()
    work.join(HANG_BOUND_S)
    assert outcomes[0].output == "released"


def test_events_arrive_between_two_outcomes_of_a_stream(tmp_path: Path) -> None:
    """Events of running steps arrive while the consumer of a stream does not ask for the next outcome."""
    gate = tmp_path / "gate"
    ready, waiting = make_specs(2)
    ready, waiting = attrs.evolve(ready, description=str(tmp_path)), attrs.evolve(waiting, description=str(gate))
    channel = EventChannel()
    receiver = channel.subscribe()
    runner = Runner(FunctionExecutor({"tester": _send_event_and_wait}), backend="process", event_tx=channel)
    stream = runner.stream([ready, waiting])
    assert next(stream).output == "released"
    seen: set[str] = set()
    while seen != {"t0", "t1"}:
        event = receiver.recv(HANG_BOUND_S)
        if isinstance(event, TextDelta):
            seen.add(event.task_id)
    gate.touch()
    assert next(stream).output == "released"


def test_every_start_has_one_end_though_workers_die() -> None:
    """A step whose worker dies has a start event and an end event, in this order."""
    channel = EventChannel()
    receiver = channel.subscribe()
    executor = FunctionExecutor({"tester": lambda spec: os._exit(1) if spec.prompt in "13" else "fine"})
    Runner(executor, backend="process", event_tx=channel, max_concurrency=2).run(make_specs(5))
    channel.close()
    events = list(receiver)
    for number in range(5):
        own = [event for event in events if getattr(event, "task_id", None) == f"t{number}"]
        assert [type(event) for event in own] == [SubagentStart, SubagentEnd]
        assert own[1].success is (str(number) not in "13")  # type: ignore[union-attr]  # see the line before


def test_sending_something_else_than_an_event_fails_its_step_alone() -> None:
    """`send` of something else than an event raises in the step, on both backends."""

    def agent(spec: AgentStepSpec, event_tx: Any) -> str:
        event_tx.send("not an event")
        return "unreachable"

    for backend in ("thread", "process"):
        run = Runner(FunctionExecutor({"tester": agent}), backend=backend, event_tx=EventChannel()).run(make_specs(2))
        assert {outcome.output for outcome in run} == {"TypeError: event must be an Event, got str"}


@pytest.mark.parametrize("backend", ["thread", "process", ProcessBackend(1, capture_output=True), ThreadBackend(2)])
@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
def test_a_runner_in_its_own_steps(backend: Any, is_warm: bool) -> None:
    """A step may use the runner that runs it: it comes along to a worker process, with its backend."""
    executor = FunctionExecutor({"tester": lambda spec: spec.prompt})
    runner = Runner(executor, backend=backend, max_concurrency=2, retry=2)

    @executor.register("planner")
    def plan(spec: AgentStepSpec) -> str:
        return " ".join(outcome.output for outcome in runner.run(make_specs(2)))

    spec = AgentStepSpec("plan", "planner", "", "")
    with runner if is_warm else contextlib.nullcontext():
        for _ in range(2):
            assert runner.run([spec])[0].output == "0 1"
