"""Listeners that are slow, hang or raise: what they get, and how long a run waits for them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from processes import eventually
from scripts import Launcher, run_python

from fanout_sync import (
    Event,
    EventChannel,
    FanoutInterrupted,
    FunctionExecutor,
    Lagged,
    OptionError,
    Retry,
    RunEnd,
    Runner,
    RunStart,
    SubagentEnd,
    SubagentStart,
    TextDelta,
)
from fanout_sync.events import listener as listeners
from fanout_sync.events import receiver as receivers
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]


def event(number: int) -> TextDelta:
    return TextDelta("t", str(number))


def answer(spec: Any) -> str:
    return str(spec.prompt)


@pytest.fixture
def hung() -> Iterator[tuple[Callable[[Event], object], threading.Event]]:
    """A callback that does not return, and what is set when it was called; it returns after the test."""
    called, go_on = threading.Event(), threading.Event()

    def callback(item: Event) -> None:
        called.set()
        go_on.wait(HANG_BOUND_S)

    yield callback, called
    go_on.set()


class Slow:
    """A callback that takes a moment for each event, and keeps it."""

    def __init__(self, moment_s: float) -> None:
        self.seen: list[Event] = []
        self._moment_s = moment_s
        self._clock = threading.Event()

    def __call__(self, item: Event) -> None:
        self._clock.wait(self._moment_s)
        self.seen.append(item)


# All events -----------------------------------------------------------------------------------------------------------


def test_a_slow_listener_has_seen_every_event_when_the_run_returns() -> None:
    """It takes longer than the run, far more events than the channel keeps, and longer than the patience for one."""
    slow, channel = Slow(0.001), EventChannel(16)
    channel.listen(slow)
    Runner(FunctionExecutor({"tester": answer}), event_tx=channel).run(make_specs(5000))
    assert [type(item) for item in (slow.seen[0], slow.seen[-1])] == [RunStart, RunEnd]
    ends = [item.task_id for item in slow.seen if isinstance(item, SubagentEnd)]
    assert sorted(ends) == sorted(spec.task_id for spec in make_specs(5000))
    channel.close()


def test_a_slow_listener_has_seen_every_event_of_any_call(make_runner: MakeRunner) -> None:
    """The same holds for a stream, a pipeline and each round of a loop, on every backend."""
    from fanout_sync import Stop

    channel = EventChannel(1)
    slow = Slow(0.002)
    channel.listen(slow)
    runner = make_runner(FunctionExecutor({"tester": answer}), event_tx=channel)
    specs = make_specs(20)
    calls: list[Callable[[], object]] = [
        lambda: list(runner.stream(specs)),
        lambda: runner.pipeline(specs, [lambda outcome, item: item]),
        lambda: runner.loop(specs, 3, lambda outcomes: Stop()),
    ]
    for count, call in enumerate(calls, 1):
        call()
        assert isinstance(slow.seen[-1], RunEnd)
        assert len(slow.seen) == count * (2 + 2 * len(specs))
    channel.close()


def test_a_listener_gets_events_only_whatever_others_do(
    hung: tuple[Callable[[Event], object], threading.Event],
) -> None:
    """A receiver that lags and a listener that hangs cost other listeners nothing; only the receiver gets `Lagged`."""
    channel = EventChannel(1)
    callback, called = hung
    receiver, seen = channel.subscribe(), list[Event]()
    channel.listen(callback)
    listener = channel.listen(seen.append)
    for number in range(3000):
        channel.send(event(number))
    assert called.wait(HANG_BOUND_S)
    assert receiver.recv(0) == Lagged(2999)
    channel.send(event(3000))
    assert eventually(lambda: len(seen) == 3001)
    assert seen == [event(number) for number in range(3001)]
    listener.close()


def test_close_and_the_end_of_a_block_wait_for_listeners() -> None:
    """After `close`, and after a `with` block, every event has been handled, without a `flush`."""
    for end in ("close", "with"):
        slow = Slow(0.002)
        channel = EventChannel()
        channel.listen(slow)
        for number in range(200):
            channel.send(event(number))
        if end == "close":
            channel.close()
        else:
            with channel:
                pass
        assert len(slow.seen) == 200


def test_a_listener_too_far_behind_loses_the_oldest_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Past the limit the oldest unread events are dropped; each listener is told of once, and others lose nothing."""
    monkeypatch.setattr(receivers, "MOST_UNREAD", 10)
    channel = EventChannel(1000)
    entered, go_on = threading.Event(), threading.Event()
    seen: dict[str, list[Event]] = {"a": [], "b": []}

    def behind(name: str) -> Callable[[Event], object]:
        def callback(item: Event) -> None:
            seen[name].append(item)
            entered.set()
            go_on.wait(HANG_BOUND_S)

        return callback

    channel.listen(behind("a"))
    receiver = channel.subscribe()
    channel.send(event(0))
    assert entered.wait(HANG_BOUND_S)
    for number in range(1, 40):
        channel.send(event(number))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "behind.<locals>.callback" in caplog.text
    assert "test_listeners.py" in caplog.text
    channel.listen(behind("b"))
    for number in range(40, 80):
        channel.send(event(number))
    assert len(caplog.records) == 2
    go_on.set()
    assert channel.flush(HANG_BOUND_S)
    assert seen["a"] == [event(0), *(event(number) for number in range(70, 80))]
    assert seen["b"][-10:] == seen["a"][-10:]
    channel.close()
    assert list(receiver) == [event(number) for number in range(80)]


def test_a_listener_keeps_a_hundred_thousand_unread_events() -> None:
    """A listener that is so far behind loses none."""
    assert receivers.MOST_UNREAD == 100_000
    channel = EventChannel(1)
    go_on, seen = threading.Event(), list[Event]()

    def callback(item: Event) -> None:
        go_on.wait(HANG_BOUND_S)
        seen.append(item)

    channel.listen(callback)
    one = event(1)
    for _ in range(100_000):
        channel.send(one)
    go_on.set()
    assert channel.flush(HANG_BOUND_S)
    assert len(seen) == 100_000
    channel.close()


# Waiting --------------------------------------------------------------------------------------------------------------


def test_a_hung_listener_is_given_up_and_named(
    hung: tuple[Callable[[Event], object], threading.Event],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run ends although a callback does not return; the log names it once, and later runs do not wait for it."""
    monkeypatch.setattr("fanout_sync.events.channel.PATIENCE_S", 0.1)
    channel, slow = EventChannel(), Slow(0.01)
    callback, called = hung
    channel.listen(callback)
    channel.listen(slow)
    runner = Runner(FunctionExecutor({"tester": answer}), event_tx=channel)
    for _ in range(3):
        runner.run(make_specs(30))
        assert isinstance(slow.seen[-1], RunEnd)
    assert called.is_set()
    assert len(slow.seen) == 3 * 62
    (told,) = caplog.records
    assert "hung.<locals>.callback" in told.getMessage()
    assert "is not waited for; 61 events are unread" in told.getMessage()
    channel.close()


def test_a_listener_that_runs_steps_itself_is_not_waited_for_by_them() -> None:
    """A callback may run steps whose events go to its own channel."""
    channel, inner = EventChannel(), list[str]()

    def callback(item: Event) -> None:
        if isinstance(item, SubagentEnd) and item.task_id == "t0" and not inner:
            run = Runner(FunctionExecutor({"tester": answer}), event_tx=channel).run(make_specs(2))
            inner.extend(outcome.output for outcome in run)

    channel.listen(callback)
    Runner(FunctionExecutor({"tester": answer}), event_tx=channel).run(make_specs(1))
    channel.close()
    assert inner == ["0", "1"]


def test_ctrl_c_ends_the_wait_for_a_listener(launch: Launcher) -> None:
    """While a run waits for a slow listener, Ctrl-C ends it; all outcomes are in the `FanoutInterrupted`."""
    script = launch.script("""
        from fanout_sync import EventChannel, RunStart
        def slow(event):
            if isinstance(event, SubagentEnd) and event.task_id == "t1":
                say("behind")
            time.sleep(0 if isinstance(event, RunStart) else 0.3)
        channel = EventChannel()
        channel.listen(slow)
        try:
            Runner(FunctionExecutor({"tester": lambda spec: "done"}), event_tx=channel).run(make_specs(400))
        except FanoutInterrupted as interrupted:
            say(len(interrupted.run.succeeded), "done")
            os._exit(0)
        """)
    script.expect("behind")
    script.press_ctrl_c()
    script.expect("400 done")
    assert script.end() == ""


def test_a_listener_finishes_when_the_program_ends() -> None:
    """What a program sends just before its end is handled; a callback that hangs does not keep it from ending."""
    for hangs in (False, True):
        done = run_python(
            "-c",
            f"""
import threading, time
from fanout_sync import EventChannel, TextDelta
channel = EventChannel()
def slow(event):
    time.sleep(3600 if {hangs} and event.text == "99" else 0.005)
    print(event.text)
channel.listen(slow)
for number in range(100):
    channel.send(TextDelta("t", str(number)))
""",
        )
        assert done.returncode == 0
        assert done.stdout.split() == [str(number) for number in range(99 if hangs else 100)]
        assert ("has not returned" in done.stderr) is hangs


@pytest.mark.parametrize("how", ["caught", "closed", "uncaught"])
def test_a_program_ends_after_ctrl_c(how: str, launch: Launcher) -> None:
    """A slow listener with a backlog of an hour keeps it from ending for a second, however it ends."""
    script = launch.script(
        """
        from fanout_sync import EventChannel
        channel = EventChannel()
        channel.listen(lambda event: time.sleep(0.4))
        def work(spec):
            if spec.prompt == "1000":
                say("begun")
                time.sleep(3600)
            return "done"
        runner = Runner(FunctionExecutor({"tester": work}), event_tx=channel)
        if HOW == "uncaught":
            runner.run(make_specs(5000))
        try:
            runner.run(make_specs(5000))
        except FanoutInterrupted:
            if HOW == "closed":
                channel.close()
        say("the end")
        """,
        how=how,
    )
    script.expect("begun")
    script.press_ctrl_c()
    if how != "uncaught":
        script.expect("the end")
    script.end()


def test_a_run_after_an_interrupted_one_waits_for_its_listener_again() -> None:
    """The bound holds for the end of the program or the channel, and not for another run."""
    channel, slow = EventChannel(), Slow(0.002)
    channel.listen(slow)
    runner = Runner(FunctionExecutor({"tester": answer}), event_tx=channel)

    def specs() -> Iterator[Any]:
        yield from make_specs(3)
        raise KeyboardInterrupt

    with pytest.raises(FanoutInterrupted):
        runner.run(specs())
    runner.run(make_specs(600))
    assert isinstance(slow.seen[-1], RunEnd)
    channel.close()


def test_a_stream_that_the_interpreter_closes_waits_for_no_listener() -> None:
    """A stream that is open when the program ends is closed when the threads of listeners have stopped already."""
    done = run_python(
        "-c",
        """
from fanout_sync import EventChannel, FunctionExecutor, Runner
from fanout_sync.testing import make_specs
channel, seen = EventChannel(), []
channel.listen(seen.append)
stream = Runner(FunctionExecutor({"tester": lambda spec: "done"}), event_tx=channel).stream(make_specs(5))
next(stream)
""",
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_does_not_wait_for_its_parents_listeners() -> None:
    """A child of a process whose listener is busy ends a run, and itself, at once."""
    done = run_python(
        "-c",
        """
import os, sys, threading
from fanout_sync import EventChannel, FunctionExecutor, Runner
from fanout_sync.testing import make_specs
entered, go_on, channel = threading.Event(), threading.Event(), EventChannel()
def busy(event):
    entered.set()
    go_on.wait()
channel.listen(busy)
runner = Runner(FunctionExecutor({"tester": lambda spec: "done"}), event_tx=channel)
threading.Thread(target=runner.run, args=(make_specs(1),), daemon=True).start()
entered.wait()
child = os.fork()
if not child:
    seen = []
    channel.listen(seen.append)
    runner.run(make_specs(2))
    sys.exit(len(seen))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
go_on.set()
""",
    )
    assert (done.stdout, done.stderr) == ("6\n", "")


# What is refused ------------------------------------------------------------------------------------------------------


def test_an_async_callback_is_refused() -> None:
    """Nobody would await it, so `listen` says so at once."""

    async def callback(item: Event) -> None: ...

    class AsyncCallable:
        async def __call__(self, item: Event) -> None: ...

    for each in (callback, AsyncCallable()):
        with pytest.raises(TypeError, match="must be a plain function, got an async one"):
            EventChannel().listen(each)


def test_a_callback_of_other_arguments_is_refused() -> None:
    """At once, and not for each event in the log; so is the `event_tx` of a runner."""
    without: Any = lambda: 1  # noqa: E731 - what is refused
    with pytest.raises(TypeError, match=r"callback must take \(event\), but its signature is \(\)"):
        EventChannel().listen(without)
    with pytest.raises(OptionError, match=r"event_tx must take \(event\), but its signature is \(\)"):
        Runner(FunctionExecutor(), event_tx=without)

    class Sink:
        def send(self, event: Event, more: int) -> None: ...

    with pytest.raises(OptionError, match=r"send of event_tx \(Sink\) must take \(event\), but its"):
        Runner(FunctionExecutor(), event_tx=Sink())  # type: ignore[arg-type]  # the mistake
    for taken in (print, list[Any]().append, lambda event, more=1: None, lambda *events: None):
        Runner(FunctionExecutor(), event_tx=taken)


def test_a_closed_listener_keeps_nothing(hung: tuple[Callable[[Event], object], threading.Event]) -> None:
    """Closing the receiver drops its unread events, and those that are sent while its last call goes on."""
    callback, called = hung
    channel = EventChannel(1)
    receiver: Any = channel.listen(callback)
    channel.send(event(0))
    assert called.wait(HANG_BOUND_S)
    channel.send(event(1))
    receiver.close()
    channel.send(event(2))
    assert not receiver.unread


def test_a_signal_handler_may_close_the_channel() -> None:
    """A handler that interrupts `send` may close the channel, without a deadlock."""
    channel, seen = EventChannel(), list[Event]()
    channel.listen(seen.append)
    closed = threading.Event()

    def handler(number: int, frame: object) -> None:
        channel.close()
        closed.set()

    before = signal.signal(signal.SIGVTALRM, handler)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.01)
    sent = 0
    try:
        while not closed.is_set():
            channel.send(event(sent))
            sent += 1
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert channel.flush(HANG_BOUND_S)
    assert sent - 1 <= len(seen) <= sent


def test_patience_exceeds_what_a_slow_callback_takes() -> None:
    """A callback that waits for a server now and then is not taken for one that hangs."""
    assert listeners.PATIENCE_S >= 5


def test_every_step_that_fails_has_a_start_and_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """A step whose rate limit key cannot be found never runs, but it is told of like any other failed step."""
    from fanout_sync import RateLimit

    def key(spec: Any) -> str:
        raise LookupError("no key")

    seen: list[Event] = []
    limit = RateLimit(requests_per_minute=6000, key=key)
    runner = Runner(FunctionExecutor({"tester": answer}), rate_limit=limit, event_tx=seen.append, retry=Retry(2))
    assert len(runner.run(make_specs(3)).failed) == 3
    assert len([item for item in seen if isinstance(item, SubagentStart)]) == 3
    assert len([item for item in seen if isinstance(item, SubagentEnd)]) == 3
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
