"""Ctrl-C in `fanout_map` and `fanout_stream`: what the run, its message and its events say of the items left."""

from __future__ import annotations

import array
import collections
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bounds import HANG_BOUND_S

from fanout_sync import (
    AgentStepSpec,
    Event,
    FanoutInterrupted,
    FunctionExecutor,
    MemoryJournal,
    RunEnd,
    Runner,
    RunStart,
    StepOutcome,
    current_step,
    fanout_map,
    fanout_stream,
)
from fanout_sync.testing import make_specs

COUNT = 20
Items = Callable[[], Any]


class Row(list[int]):
    """A list of the user's own, which is read as any list."""


def _numbers_of_numpy() -> Any:
    return pytest.importorskip("numpy").arange(COUNT)


PLAIN: dict[str, Items] = {
    "list": lambda: list(range(COUNT)),
    "tuple": lambda: tuple(range(COUNT)),
    "range": lambda: range(COUNT),
    "set": lambda: set(range(COUNT)),
    "frozenset": lambda: frozenset(range(COUNT)),
    "dict": lambda: dict.fromkeys(range(COUNT)),
    "keys": lambda: dict.fromkeys(range(COUNT)).keys(),
    "values": lambda: dict(enumerate(range(COUNT))).values(),
    "items": lambda: dict.fromkeys(range(COUNT)).items(),
    "counter": lambda: collections.Counter(range(COUNT)),
    "ordered": lambda: collections.OrderedDict.fromkeys(range(COUNT)).keys(),
    "deque": lambda: collections.deque(range(COUNT)),
    "array": lambda: array.array("i", range(COUNT)),
    "numpy": _numbers_of_numpy,
    "subclass": lambda: Row(range(COUNT)),
}


def _two_are_done(item: object) -> str:
    """Interrupt the run in its second step, which stops in time."""
    if current_step().index == 0:
        return "done"
    os.kill(os.getpid(), signal.SIGINT)
    assert current_step().cancelled.wait(HANG_BOUND_S)
    return "stopped"


def _counts(events: list[Event]) -> tuple[int | None, list[int]]:
    """Return how many steps the start of a run tells, and how many succeeded, failed and were cancelled at its end."""
    (start,) = [event for event in events if isinstance(event, RunStart)]
    (end,) = [event for event in events if isinstance(event, RunEnd)]
    return start.total, [end.succeeded, end.failed, end.cancelled]


def _named(item: object, index: int) -> str:
    return f"t{index}"


@pytest.mark.parametrize("options", [{}, {"task_id": _named}, {"journal": True}], ids=["plain", "task_id", "journal"])
@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_every_item_of_a_plain_container_has_an_outcome(make: Items, options: dict[str, Any]) -> None:
    """Those that were not begun are cancelled, and message, run and events say the same."""
    events: list[Event] = []
    if "journal" in options:
        options = {"journal": MemoryJournal()}
    with pytest.raises(FanoutInterrupted) as caught:
        fanout_map(_two_are_done, make(), max_concurrency=1, event_tx=events.append, **options)
    run = caught.value.run
    assert len(run) == COUNT
    assert [outcome.task_id for outcome in run] == [f"{'t' if 'task_id' in options else ''}{n}" for n in range(COUNT)]
    assert len(run.succeeded) == 2
    assert [record.index for record in run.records] == list(range(COUNT))
    assert str(caught.value) == f"interrupted: 2 of {COUNT} steps were done, {COUNT - 2} are cancelled"
    assert _counts(events) == (COUNT, [2, 0, COUNT - 2])


@pytest.mark.parametrize("options", [{}, {"task_id": _named}], ids=["plain", "task_id"])
@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_a_stream_says_the_same(make: Items, options: dict[str, Any]) -> None:
    """Its error has what was not yielded, and its `run` all steps."""
    events: list[Event] = []
    outcomes = fanout_stream(_two_are_done, make(), max_concurrency=1, event_tx=events.append, **options)
    yielded: list[StepOutcome] = []
    with pytest.raises(FanoutInterrupted) as caught:
        yielded.extend(outcomes)
    assert len(yielded) + len(caught.value.run) == len(outcomes.run) == caught.value.total == COUNT
    total, at_end = _counts(events)
    assert total == sum(at_end) == COUNT


class Table:
    """A table of the user's own: its length is known, and reading it runs the user's code."""

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[int]:
        return iter(range(COUNT))


@pytest.mark.parametrize("options", [{}, {"task_id": _named}], ids=["plain", "task_id"])
def test_the_length_of_other_items_is_told(options: dict[str, Any]) -> None:
    """Items that were not read have no outcome, but they are counted."""
    events: list[Event] = []
    with pytest.raises(FanoutInterrupted) as caught:
        fanout_map(_two_are_done, Table(), max_concurrency=1, event_tx=events.append, **options)
    assert len(caught.value.run) < COUNT
    assert str(caught.value) == f"interrupted: 2 of {COUNT} steps were done, {COUNT - 2} are cancelled"
    total, at_end = _counts(events)
    assert total == sum(at_end) == COUNT


def test_specs_in_any_plain_container() -> None:
    """The same holds for specs that are given to a runner."""

    def agent(spec: AgentStepSpec) -> str:
        return _two_are_done(spec)

    runner = Runner(FunctionExecutor({"tester": agent}), max_concurrency=1)
    for specs in (collections.deque(make_specs(5)), {spec.task_id: spec for spec in make_specs(5)}.values()):
        with pytest.raises(FanoutInterrupted) as caught:
            runner.run(specs)
        assert [outcome.task_id for outcome in caught.value.run] == [spec.task_id for spec in make_specs(5)]


def test_an_interrupt_while_items_are_named() -> None:
    """No step has run, and the error says so."""

    def name(item: int, index: int) -> str:
        if index == 3:
            signal.raise_signal(signal.SIGINT)
        return str(index)

    with pytest.raises(FanoutInterrupted, match="interrupted: 0 of 5 steps were done, 5 are cancelled"):
        fanout_map(_two_are_done, range(5), task_id=name)


def test_a_large_range_is_not_copied() -> None:
    """A stream of a range reads it as it reads any iterable, and a run makes no specs ahead of its steps."""
    outcomes = fanout_stream(abs, range(10**12), max_concurrency=2)
    assert [next(outcomes).structured for _ in range(3)] == [0, 1, 2]
    outcomes.close()
