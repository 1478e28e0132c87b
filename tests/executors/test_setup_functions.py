"""`FunctionExecutor(setup=…, teardown=…)`: who gets what `setup` returns, and what is refused."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from bounds import HANG_BOUND_S

from fanout_sync import AgentStepSpec, FunctionExecutor, OptionError, Runner, ThreadBackend
from fanout_sync.testing import Ledger, make_specs

SPEC = AgentStepSpec("t", "tester", "", "hello")
MakeRunner = Callable[..., Runner]


class Client:
    """It neither pickles nor copies, and answers only while it is open."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_open = True

    def ask(self, question: str) -> str:
        with self.lock:
            return f"answer to {question}" if self.is_open else "closed"

    def close(self) -> None:
        self.is_open = False


def ask(spec: AgentStepSpec, client: Client) -> str:
    return client.ask(spec.prompt)


def labels(*values: Any) -> list[Any]:
    return ["spec" if value is SPEC else value for value in values]


def arguments_of(function: Any, setup: Callable[[], Any]) -> Any:
    """Return what the function gets, as JSON."""
    executor = FunctionExecutor({"tester": function}, setup=setup)

    def run() -> Any:
        executor.setup()
        return executor.execute_step(SPEC, "sender")  # type: ignore[arg-type]  # so that it can be recognised

    outcome = copy_context().run(run)
    assert outcome.success, outcome.output
    return outcome.structured


def positional_only(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def sender_between(spec: Any, event_tx: Any, a: Any, *, b: Any) -> Any:
    return labels(spec, event_tx, a, b)


def in_any_order(a: Any, event_tx: Any, spec: Any, b: Any = 0) -> Any:
    return labels(a, event_tx, spec, b)


def only_positional(item: Any, c: Any = "own", a: Any = None, /) -> Any:
    return labels(item, c, a)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda spec, a: labels(spec, a), ["spec", 1]),
        (lambda spec, *, b: labels(spec, b), ["spec", 2]),
        (lambda spec, b=None, c="own": labels(spec, b, c), ["spec", 2, "own"]),
        (lambda a, item, b: labels(a, item, b), [1, "spec", 2]),
        (lambda spec, *more, a, **others: labels(spec, *more, a, *others), ["spec", 1]),
        (lambda *args: labels(*args), ["spec"]),
        (lambda spec: labels(spec), ["spec"]),
        (sender_between, ["spec", "sender", 1, 2]),
        (in_any_order, [1, "sender", "spec", 2]),
        (only_positional, ["spec", "own", 1]),
        (positional_only(in_any_order), [1, "sender", "spec", 2]),
        (functools.partial(in_any_order, b="mine"), [1, "sender", "spec", "mine"]),
    ],
)
def test_parameters_get_the_values_that_they_name(function: Any, arguments: list[Any]) -> None:
    """Each key of a mapping that `setup` returns is the name of a parameter; all others are as without it."""
    assert arguments_of(function, lambda: {"a": 1, "b": 2}) == arguments


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda spec, client: labels(spec, client), ["spec", "one"]),
        (lambda spec, *, client: labels(spec, client), ["spec", "one"]),
        (lambda client, spec, event_tx=None: labels(client, spec, event_tx), ["one", "spec", "sender"]),
        (lambda spec, model="small", *, client: labels(spec, model, client), ["spec", "small", "one"]),
        (lambda spec, model="small": labels(spec, model), ["spec", "small"]),
    ],
)
def test_any_other_value_goes_to_the_parameter_that_is_left(function: Any, arguments: list[Any]) -> None:
    """A value without a name goes to the one parameter that has no default and is neither spec nor `event_tx`."""
    assert arguments_of(function, lambda: "one") == arguments


def noted_client(ledger: Ledger) -> dict[str, Any]:
    ledger.note("setup")
    return {"client": Client(), "ledger": ledger}


def noted_close(client: Client, ledger: Ledger) -> None:
    client.close()
    ledger.note("teardown")


def test_the_hooks_run_once_per_worker(make_runner: MakeRunner, ledger: Ledger) -> None:
    """A client that does not pickle is made where the steps run, and closed after the last of them."""
    executor = FunctionExecutor({"tester": ask}, setup=functools.partial(noted_client, ledger), teardown=noted_close)
    for _ in range(2):
        run = make_runner(executor, max_concurrency=1).run(make_specs(4))
        assert [outcome.output for outcome in run] == [f"answer to {number}" for number in range(4)]
    assert ledger.counts() == {"setup": 2, "teardown": 2}


def test_each_thread_has_a_value_of_its_own_if_it_has_a_copy(ledger: Ledger) -> None:
    """With copies `setup` runs in each thread, and each step gets the client of its thread."""
    meeting = threading.Barrier(2)

    def meet(spec: AgentStepSpec, client: Client) -> str:
        meeting.wait(HANG_BOUND_S)
        return str(id(client))

    executor = FunctionExecutor({"tester": meet}, setup=functools.partial(noted_client, ledger), teardown=noted_close)
    run = Runner(executor, backend=ThreadBackend(copies=True), max_concurrency=2).run(make_specs(2))
    assert len({outcome.output for outcome in run.succeeded}) == 2
    assert ledger.counts() == {"setup": 2, "teardown": 2}


def test_two_runs_at_once_do_not_share_a_client() -> None:
    """The end of one run closes its own client, not that of another run of the same executor."""
    executor = FunctionExecutor(setup=Client, teardown=Client.close)
    runner = Runner(executor)

    @executor.register("outer")
    def outer(spec: AgentStepSpec, client: Client) -> str:
        with ThreadPoolExecutor(1) as pool:
            inner = pool.submit(runner.run, [SPEC]).result(HANG_BOUND_S)
        return f"{inner[0].output}, {client.ask('it')}"

    executor.register("tester")(ask)
    assert runner.run([AgentStepSpec("o", "outer", "", "")])[0].output == "answer to hello, answer to it"


def test_an_executor_that_was_used_on_threads_can_be_sent_to_processes() -> None:
    """What `setup` has made stays in its run and is not pickled with the executor."""
    executor = FunctionExecutor({"tester": ask}, setup=Client)
    for backend in ("thread", "process", "thread"):
        assert Runner(executor, backend=backend).run([SPEC])[0].output == "answer to hello"


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_hooks_may_be_async(backend: Any, ledger: Ledger) -> None:
    """A coroutine that a hook returns is run to its end."""

    async def setup() -> Any:
        await asyncio.sleep(0)
        return noted_client(ledger)

    async def teardown(client: Client) -> None:
        await asyncio.sleep(0)
        ledger.note(client.ask("the last one"))

    executor = FunctionExecutor({"tester": ask}, setup=setup, teardown=teardown)
    assert Runner(executor, backend=backend).run([SPEC])[0].output == "answer to hello"
    assert ledger.counts()["setup"] == 1
    assert "last" in ledger.counts()


@pytest.mark.parametrize(
    ("make", "teardown", "expected"),
    [
        (lambda: "value", lambda value: value, "value"),
        (lambda: None, lambda value: value, None),
        (lambda: {"a": 1, "b": 2}, lambda b, a: [a, b], [1, 2]),
        (lambda: {"a": 1}, lambda value: value, {"a": 1}),
        (lambda: "value", lambda: "nothing", "nothing"),
        (lambda: "value", lambda force=False: force, False),
        (lambda: {"force": True}, lambda force=False: force, True),
    ],
)
def test_teardown_gets_what_setup_returned_if_it_asks(make: Any, teardown: Any, expected: Any) -> None:
    """A required parameter gets it, names of a mapping their values, and a function without parameters nothing."""
    got = []
    wrapped = functools.wraps(teardown)(lambda *args, **options: got.append(teardown(*args, **options)))
    executor = FunctionExecutor(setup=make, teardown=wrapped)
    context = copy_context()
    context.run(executor.setup)
    context.run(executor.teardown)
    assert got == [expected]


def test_teardown_alone_is_called() -> None:
    """It needs no `setup`."""
    ended = []
    Runner(FunctionExecutor({"tester": lambda spec: "x"}, teardown=lambda: ended.append(1))).run([SPEC])
    assert ended == [1]


def _never(*, setup: Any) -> Any:
    yield setup


@pytest.mark.parametrize(
    ("function", "result", "message"),
    [
        (lambda spec, client: "", {"c": 1, "b": 2}, "agent 'tester' requires 'client', but setup returned only 'c', "),
        (lambda spec, client: "", {}, "agent 'tester' requires 'client', but setup returned an empty dict"),
        (lambda spec, client: "", None, "agent 'tester' requires 'client', but setup returned None"),
        (lambda spec, client, *, cache: "", "one", "agent 'tester' requires 'cache', but setup returned str 'one'"),
        (lambda client: "", {"client": 1}, "agent 'tester' has no parameter left for the spec"),
        (ask, {"spec": 1}, "setup returned 'spec', a name that every agent already has"),
        (ask, _never(setup=1), "setup is a generator function; return what it makes"),
    ],
)  # fmt: skip
def test_what_setup_does_not_return_is_named(make_runner: MakeRunner, function: Any, result: Any, message: str) -> None:
    """If setup and agents do not fit together, every step fails with an error that names both, and none runs."""
    make = functools.partial(_never, setup=1) if "generator" in message else lambda: result
    run = make_runner(FunctionExecutor({"tester": function}, setup=make)).run(make_specs(2))
    assert [record.status for record in run.records] == ["raised", "raised"]
    for outcome in run:
        assert f"fanout_sync.OptionError: {message}" in outcome.output


def test_what_was_made_in_vain_is_torn_down() -> None:
    """If an agent requires something else, what `setup` has made is closed all the same."""
    client = Client()
    executor = FunctionExecutor(
        {"tester": lambda spec, *, cache, other: ""}, setup=lambda: client, teardown=Client.close
    )
    assert not Runner(executor).run([SPEC])[0].success
    assert not client.is_open


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"setup": 5}, "setup must be a function, got int 5"),
        ({"teardown": "close"}, "teardown must be a function, got str 'close'"),
        ({"setup": lambda url: url}, r"setup must take no arguments, but its signature is \(url\)"),
        ({"teardown": lambda client: None}, r"teardown must take nothing if there is no setup"),
        ({"functions": {"a": lambda: ""}, "setup": dict}, r"agent 'a' must take the spec, but its signature is \(\)"),
        ({"functions": {"a": lambda event_tx: ""}, "setup": dict}, r"agent 'a' must take the spec"),
        ({"functions": {"a": lambda *, spec: ""}, "setup": dict}, r"agent 'a' must take the spec"),
        ({"functions": {"a": lambda spec, a, b: ""}}, r"agent 'a' must take \(spec\) .*; .* make in setup="),
    ],
)
def test_unusable_hooks_are_refused_at_once(arguments: Any, message: str) -> None:
    """What no value of `setup` could mend is refused at construction."""
    with pytest.raises(OptionError, match=message):
        FunctionExecutor(**arguments)


def test_a_step_without_setup_says_so() -> None:
    """An executor that calls this one directly is told that it has to call `setup`, too."""
    with pytest.raises(RuntimeError, match=r"setup\(\) of this FunctionExecutor was not called here"):
        FunctionExecutor({"tester": ask}, setup=Client).execute_step(SPEC)


def test_a_function_that_is_registered_during_a_run_gets_its_values() -> None:
    """Functions may be added at any time; what they require is then checked when they are called."""
    executor = FunctionExecutor(setup=lambda: {"client": Client()})

    @executor.register("first")
    def first(spec: AgentStepSpec) -> str:
        executor.register("second")(ask)
        executor.register("third")(lambda spec, cache: "")
        return "registered"

    specs = [AgentStepSpec(name, name, "", name) for name in ("first", "second", "third")]
    run = Runner(executor, max_concurrency=1).run(specs)
    assert [outcome.success for outcome in run] == [True, True, False]
    assert "agent 'third' requires 'cache'" in run[2].output
