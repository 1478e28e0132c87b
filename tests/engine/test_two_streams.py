"""Streams that are read in turns."""

from __future__ import annotations

import signal
import threading

import pytest

from fanout_sync import AgentStepSpec, FanoutInterrupted, FunctionExecutor, Runner
from fanout_sync.testing import make_specs


def test_an_interrupt_ends_the_stream_that_is_being_read_alone() -> None:
    """Ctrl-C while one stream waits for an outcome leaves another one, which is half read, as it is."""

    def interrupt_at_five(spec: AgentStepSpec) -> str:
        if spec.prompt == "5":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            is_interrupted.wait(60)
        return spec.prompt

    is_interrupted = threading.Event()
    executor = FunctionExecutor({"first": interrupt_at_five, "second": lambda spec: spec.prompt})
    runner = Runner(executor, max_concurrency=1)
    first, second = runner.stream(make_specs(9, agent="first")), runner.stream(make_specs(9, agent="second"))
    assert (next(first).output, next(second).output) == ("0", "0")
    read: list[str] = []
    with pytest.raises(FanoutInterrupted) as caught:
        read.extend(outcome.output for outcome in first)
    is_interrupted.set()
    assert (read, caught.value.yielded) == (["1", "2", "3", "4"], 5)
    assert [outcome.output for outcome in second] == ["1", "2", "3", "4", "5", "6", "7", "8"]
