"""What to do with an object that an agent's function holds and that workers cannot get."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    ExecutorNotPicklable,
    FunctionExecutor,
    Runner,
    ThreadBackend,
    fanout_map,
)
from fanout_sync.testing import make_specs


class Client:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def method(self, spec: AgentStepSpec) -> str:
        return str(self.lock)


def _of_a_script() -> dict[str, Any]:
    """Return the names of a script, whose functions bring their globals along."""
    names: dict[str, Any] = {"__name__": "__main__", "CLIENT": Client()}
    exec("def ask(spec): return str(CLIENT)\ndef helped(spec): return ask(spec)", names)
    return names


SCRIPT = _of_a_script()


def _closure() -> Any:
    session = Client()
    return lambda spec: str(session)


@pytest.mark.parametrize(
    ("function", "lines"),
    [
        (
            SCRIPT["ask"],
            ("def ask(spec, client): ...", "FunctionExecutor({'tester': ask}, setup=lambda: {'client': ...})"),
        ),
        (
            _closure(),
            ("def ask(spec, session): ...", "FunctionExecutor({'tester': ask}, setup=lambda: {'session': ...})"),
        ),
        (
            Client().method,
            ("def ask(spec, client): ...", "FunctionExecutor({'tester': ask}, setup=lambda: {'client': ...})"),
        ),
        (
            SCRIPT["helped"],
            ("def helped(spec, client): ...", "FunctionExecutor({'tester': helped}, setup=lambda: {'client': ...})"),
        ),
    ],
    ids=["global", "closure", "method", "helper"],
)
def test_agents_are_told_how_to_get_a_client(function: Any, lines: tuple[str, str]) -> None:
    """The advice ends with two lines of code, with the names of the function, the agent and the object."""
    with pytest.raises(ExecutorNotPicklable) as caught:
        Runner(FunctionExecutor({"tester": function}), backend="process").run(make_specs(1))
    sentence, *code = caught.value.advice.splitlines()
    assert sentence == (
        "Create it in the executor's setup(), which runs in each worker, or use backend='thread'. For this function:"
    )
    assert tuple(line.strip() for line in code) == lines
    assert str(caught.value).endswith(caught.value.advice)


def test_the_same_advice_is_given_for_copies() -> None:
    """What cannot be copied for each thread is made in `setup`, too."""
    with pytest.raises(ExecutorNotPicklable) as caught:
        Runner(FunctionExecutor({"tester": Client().method}), backend=ThreadBackend(copies=True)).run(make_specs(1))
    assert caught.value.advice.startswith("Make it in the executor's setup(), which runs in each thread")
    assert "setup=lambda: {'client': ...}" in caught.value.advice


class Holding(AgentExecutor):
    """An executor that calls another one."""

    def __init__(self, inner: AgentExecutor, client: Any = None) -> None:
        self.inner, self.client = inner, client

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> Any:
        return self.inner.execute_step(spec, event_tx)


def test_other_executors_keep_their_own_advice() -> None:
    """The two lines are for agents of a `FunctionExecutor`, wherever that is, and for nothing else."""
    with pytest.raises(ExecutorNotPicklable) as caught:
        Runner(Holding(FunctionExecutor({"tester": SCRIPT["ask"]})), backend="process").run(make_specs(1))
    assert "setup=lambda: {'client': ...}" in caught.value.advice
    with pytest.raises(ExecutorNotPicklable) as caught:
        Runner(Holding(FunctionExecutor(), Client()), backend="process").run(make_specs(1))
    assert (
        caught.value.advice
        == "Create it in the executor's setup(), which runs in each worker, or use backend='thread'."
    )


def test_the_advice_works() -> None:
    """An executor that follows it runs on processes."""

    def ask(spec: AgentStepSpec, client: Client) -> str:
        return type(client).__name__

    executor = FunctionExecutor({"tester": ask}, setup=lambda: {"client": Client()})
    assert Runner(executor, backend="process").run(make_specs(1))[0].output == "Client"


def test_functions_of_items_are_told_something_else() -> None:
    """`fanout_map` has no `setup`: the advice is a function that makes the object once in each worker, and it works."""
    session = Client()

    def ask(item: int) -> str:
        return str(session)

    with pytest.raises(ExecutorNotPicklable) as caught:
        fanout_map(ask, [1], backend="process")
    sentence, *code = caught.value.advice.splitlines()
    assert sentence == "Create it in the function, once in each worker, or use backend='thread'. For example:"
    assert [line.strip() for line in code] == [
        "@functools.cache",
        "def get_session(): ...",
        "def ask(item): session = get_session(); ...",
    ]

    @functools.cache
    def get_session() -> Client:
        return Client()

    run = fanout_map(lambda item: id(get_session()), range(2), backend="process", max_concurrency=1)
    assert len({outcome.output for outcome in run.succeeded}) == 1
