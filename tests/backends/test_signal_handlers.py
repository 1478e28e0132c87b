"""What a signal handler of the program raises during a run goes through to the program."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from processes import eventually, is_alive

from fanout_sync import AgentExecutor, AgentStepSpec, FunctionExecutor, Runner
from fanout_sync.testing import make_specs
from fanout_sync.workers import lanes, link, worker_start
from fanout_sync.workers.launch import launch


class TooLong(Exception):
    """What handlers raise that limit the time of a call."""


def raise_too_long(number: int, frame: FrameType | None) -> None:
    raise TooLong


class Handler:
    """A handler that is an object, or a method."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise TooLong

    def method(self, number: int, frame: FrameType | None) -> None:
        raise TooLong


HANDLERS: dict[str, Any] = {
    "function": raise_too_long,
    "lambda": lambda number, frame: raise_too_long(number, frame),
    "partial": partial(raise_too_long),
    "object": Handler(),
    "method": Handler().method,
}


@pytest.fixture(params=HANDLERS)
def _handled(request: pytest.FixtureRequest) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, HANDLERS[request.param])
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("_handled")
@pytest.mark.parametrize("takes_list", [True, False], ids=["list", "generator"])
def test_an_exception_of_a_signal_handler_ends_the_run(
    make_runner: Callable[[AgentExecutor], Runner], takes_list: bool, tmp_path: Path
) -> None:
    """On every backend the run raises what the handler has raised, and leaves no worker behind."""
    begun, end = tmp_path / "begun", tmp_path / "end"

    def hang(spec: AgentStepSpec) -> str:
        begun.touch()
        assert eventually(end.exists)
        return "done"

    def interrupt() -> None:
        if eventually(begun.exists):
            os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=interrupt)
    thread.start()
    specs = make_specs(1)
    try:
        with pytest.raises(TooLong):
            make_runner(FunctionExecutor({"tester": hang})).run(specs if takes_list else iter(specs))
        assert multiprocessing.active_children() == []
    finally:
        end.touch()
        thread.join()


def raise_timeout(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("too long")  # an `OSError`, as the system raises when it has no more processes


def die(spec: AgentStepSpec) -> str:
    os._exit(3)


@pytest.mark.parametrize(
    ("owner", "name", "condition"),
    [
        (worker_start, "facts_for_boot", {}),
        (lanes.Lanes, "_bring_up_to_date", {}),
        (link.CallerLink, "receive", {}),
        (link.CallerLink, "receive", {"everything": True}),
    ],
    ids=["early start", "start", "answer", "death"],
)
def test_a_signal_that_comes_while_a_worker_is_dealt_with(
    owner: Any, name: str, condition: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a start nor an answer takes the handler's exception for a fault of its own, and no process is left."""
    begun: list[int] = []
    function = getattr(owner, name)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if options.items() >= condition.items():
            signal.raise_signal(signal.SIGUSR1)
        return function(*arguments, **options)

    def launch_noted(*arguments: Any) -> tuple[int, dict[str, int]]:
        launched = launch(*arguments)
        begun.append(launched[0])
        return launched

    monkeypatch.setattr(owner, name, interrupted)
    monkeypatch.setattr(worker_start, "launch", launch_noted)
    before = signal.signal(signal.SIGUSR1, raise_timeout)
    try:
        with pytest.raises(TimeoutError, match="too long"):
            Runner(FunctionExecutor({"tester": die}), backend="process").run(make_specs(1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert begun
    assert not any(map(is_alive, begun))
