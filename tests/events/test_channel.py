"""The event channel: who gets what, who waits, and what a slow one loses."""

from __future__ import annotations

import gc
import logging
import pickle
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from naming import without_address

from fanout_sync.errors import OptionError
from fanout_sync.events.channel import EventChannel, EventReceiver, Lagged
from fanout_sync.events.types import Event, TextDelta, UnknownEvent

SOON = 10.0
"""A bound on waits that end at once if all is well, in seconds."""


def event(number: int) -> TextDelta:
    return TextDelta("t", str(number))


def events(*numbers: int) -> list[Event]:
    return [event(number) for number in numbers]


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()  # closes the channels of the test, and so ends their listeners
    for thread in set(threading.enumerate()) - before:
        thread.join(SOON)
        assert not thread.is_alive(), thread


# --- sending and receiving --------------------------------------------------------------------------------------------


def test_every_receiver_gets_everything_in_order() -> None:
    """An event goes to all receivers, each in the order of sending."""
    channel = EventChannel()
    receivers = [channel.subscribe() for _ in range(3)]
    for number in range(5):
        channel.send(event(number))
    channel.close()
    for receiver in receivers:
        assert list(receiver) == events(0, 1, 2, 3, 4)


def test_a_receiver_gets_what_is_sent_after_it_subscribed() -> None:
    """What was sent before is not repeated."""
    channel = EventChannel()
    channel.send(event(0))
    receiver = channel.subscribe()
    channel.send(event(1))
    channel.close()
    assert list(receiver) == events(1)


def test_a_channel_without_receivers_takes_events() -> None:
    """Nobody has to listen."""
    channel = EventChannel(1)
    for number in range(3):
        channel.send(event(number))
    with pytest.raises(TimeoutError):
        channel.subscribe().recv(0)


def test_a_waiting_receiver_is_woken() -> None:
    """`recv` returns what another thread sends meanwhile."""
    channel = EventChannel()
    receiver = channel.subscribe()
    sender = in_thread(lambda: channel.send(event(1)))
    assert receiver.recv(SOON) == event(1)
    sender.join(SOON)


@pytest.mark.parametrize("timeout", [0, 0.001, -1])
def test_recv_times_out(timeout: float) -> None:
    """With nothing to get in time there is a `TimeoutError`, and the receiver goes on."""
    channel = EventChannel()
    receiver = channel.subscribe()
    with pytest.raises(TimeoutError):
        receiver.recv(timeout)
    channel.send(event(1))
    assert receiver.recv(timeout) == event(1)


@pytest.mark.parametrize("not_an_event", [None, "text", {"type": "text_delta"}, TextDelta, Lagged(1)])
def test_only_events_are_sent(not_an_event: Any) -> None:
    """Something else is refused, with what came."""
    with pytest.raises(TypeError, match=f"event must be an Event, got {type(not_an_event).__name__}"):
        EventChannel().send(not_an_event)


def test_unknown_events_are_events() -> None:
    """What a newer peer sent goes through the channel."""
    channel = EventChannel()
    receiver = channel.subscribe()
    channel.send(UnknownEvent("brain_wave", {}))
    assert receiver.recv(0) == UnknownEvent("brain_wave", {})


@pytest.mark.parametrize("capacity", [0, -1, True, 1.0, "1", None])
def test_capacity_is_a_positive_int(capacity: Any) -> None:
    """A channel that could hold nothing is refused, naming the argument and what came."""
    with pytest.raises(OptionError, match=f"capacity must be an int of at least 1, got {capacity!r}"):
        EventChannel(capacity)


def test_many_senders_lose_nothing() -> None:
    """Events of several threads arrive all, each thread's own in order."""
    channel = EventChannel(4000)
    receiver = channel.subscribe()
    start = threading.Barrier(4)

    def send(sender: int) -> None:
        start.wait(SOON)
        for number in range(1000):
            channel.send(TextDelta(str(sender), str(number)))

    threads = [in_thread(lambda sender=sender: send(sender)) for sender in range(4)]  # type: ignore[misc]
    for thread in threads:
        thread.join(SOON)
    channel.close()
    received = [item for item in receiver if isinstance(item, TextDelta)]
    for sender in range(4):
        assert [int(item.text) for item in received if item.task_id == str(sender)] == list(range(1000))


# --- lagging ----------------------------------------------------------------------------------------------------------


def test_a_slow_receiver_loses_the_oldest_and_is_told_how_many() -> None:
    """It gets one `Lagged` in their place, and goes on with the oldest that is still held."""
    channel = EventChannel(2)
    receiver = channel.subscribe()
    for number in range(5):
        channel.send(event(number))
    assert receiver.recv(0) == Lagged(3)
    assert receiver.recv(0) == event(3)
    channel.send(event(5))
    assert receiver.recv(0) == event(4)
    assert receiver.recv(0) == event(5)
    with pytest.raises(TimeoutError):
        receiver.recv(0)


def test_a_receiver_at_capacity_loses_nothing() -> None:
    """As many events as the capacity are held."""
    channel = EventChannel(3)
    receiver = channel.subscribe()
    for number in range(3):
        channel.send(event(number))
    channel.close()
    assert list(receiver) == events(0, 1, 2)


def test_losses_add_up_until_they_are_told() -> None:
    """Until it asks, a slow receiver falls further behind; each `Lagged` tells what was lost since the last."""
    channel = EventChannel(1)
    receiver = channel.subscribe()
    for number in range(4):
        channel.send(event(number))
    assert receiver.recv(0) == Lagged(3)
    channel.send(event(4))
    channel.send(event(5))
    assert receiver.recv(0) == Lagged(2)
    assert receiver.recv(0) == event(5)


def test_one_slow_receiver_costs_the_others_nothing() -> None:
    """Only who is behind loses."""
    channel = EventChannel(1)
    slow, quick = channel.subscribe(), channel.subscribe()
    for number in range(3):
        channel.send(event(number))
        assert quick.recv(0) == event(number)
    assert slow.recv(0) == Lagged(2)
    assert slow.recv(0) == event(2)


def test_lagged_is_a_value() -> None:
    """It is equal by value and survives pickle."""
    assert Lagged(3) == Lagged(n=3)
    assert pickle.loads(pickle.dumps(Lagged(3))) == Lagged(3)
    assert repr(Lagged(3)) == "Lagged(n=3)"


# --- closing ----------------------------------------------------------------------------------------------------------


def test_a_closed_channel_is_drained_first() -> None:
    """What was sent before closing is still received, a loss included; then there is an `EOFError`."""
    channel = EventChannel(1)
    receiver = channel.subscribe()
    channel.send(event(0))
    channel.send(event(1))
    channel.close()
    assert receiver.recv() == Lagged(1)
    assert receiver.recv() == event(1)
    for _ in range(2):
        with pytest.raises(EOFError, match="closed and drained"):
            receiver.recv()


def test_sends_after_close_are_dropped() -> None:
    """An abandoned step that still sends is neither heard nor hurt, and closing twice is closing once."""
    channel = EventChannel()
    receiver = channel.subscribe()
    channel.close()
    channel.close()
    channel.send(event(1))
    assert list(receiver) == []


def test_subscribing_to_a_closed_channel_gives_nothing() -> None:
    """The receiver ends at once."""
    channel = EventChannel()
    channel.send(event(0))
    channel.close()
    assert list(channel.subscribe()) == []


def test_closing_ends_a_waiting_iteration() -> None:
    """Whoever waits for the next event goes on when the channel is closed."""
    channel = EventChannel()
    receiver = channel.subscribe()
    received: list[object] = []
    reader = in_thread(lambda: received.extend(receiver))
    channel.send(event(1))
    channel.close()
    reader.join(SOON)
    assert not reader.is_alive()
    assert received == events(1)


def test_closing_a_receiver_ends_it_alone() -> None:
    """A closed receiver gets nothing more, not even what was there; the others do."""
    channel = EventChannel()
    closed, other = channel.subscribe(), channel.subscribe()
    channel.send(event(1))
    closed.close()
    closed.close()
    with pytest.raises(EOFError, match="the receiver is closed"):
        closed.recv()
    assert list(closed) == []
    assert other.recv(0) == event(1)


def test_closing_a_receiver_wakes_who_waits_in_it() -> None:
    """`close` from another thread ends an iteration that waits."""
    channel = EventChannel()
    receiver = channel.subscribe()
    reader = in_thread(lambda: list(receiver))
    receiver.close()
    reader.join(SOON)
    assert not reader.is_alive()


def test_channel_and_receiver_are_context_managers() -> None:
    """Leaving the block closes."""
    with EventChannel() as channel, channel.subscribe() as receiver:
        channel.send(event(1))
        assert receiver.recv(0) == event(1)
    with pytest.raises(EOFError):
        receiver.recv()
    with EventChannel() as channel:
        receiver = channel.subscribe()
    assert list(receiver) == []


def test_a_channel_that_nobody_can_send_to_is_closed() -> None:
    """As in tokio: when the last sender is gone, receivers get what is left and end, instead of waiting for ever."""
    channel = EventChannel()
    receiver = channel.subscribe()
    channel.send(event(1))
    del channel
    gc.collect()
    assert list(receiver) == events(1)


def test_a_dropped_receiver_is_not_kept() -> None:
    """The channel does not know its receivers."""
    channel = EventChannel()
    receiver = channel.subscribe()
    channel.send(event(1))
    reference = weakref.ref(receiver)
    del receiver
    gc.collect()
    assert reference() is None


def test_a_channel_does_not_travel() -> None:
    """Pickling one says where it belongs."""
    with pytest.raises(TypeError, match="give it to the runner as event_tx"):
        pickle.dumps(EventChannel())


# --- listeners --------------------------------------------------------------------------------------------------------


def test_a_listener_has_seen_everything_after_flush() -> None:
    """After `flush` the callback has been called with everything sent before, in order."""
    channel = EventChannel()
    seen: list[object] = []
    receiver = channel.listen(seen.append)
    assert isinstance(receiver, EventReceiver)
    for number in range(100):
        channel.send(event(number))
    assert channel.flush(SOON) is True
    assert seen == events(*range(100))


def test_flush_without_listeners_returns_at_once() -> None:
    """There is nobody to wait for; a plain receiver is not waited for."""
    channel = EventChannel()
    receiver = channel.subscribe()
    channel.send(event(1))
    assert channel.flush(0) is True
    assert receiver.recv(0) == event(1)


def test_flush_waits_for_what_was_sent_before_it_only() -> None:
    """It gives up in time when a listener is stuck, and succeeds once that goes on."""
    channel = EventChannel()
    entered, go_on = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        entered.set()
        go_on.wait(SOON)

    channel.listen(slow)
    assert channel.flush(0) is True
    channel.send(event(1))
    assert entered.wait(SOON)
    assert channel.flush(0.01) is False
    go_on.set()
    assert channel.flush(SOON) is True


def test_flush_waits_for_every_listener() -> None:
    """One that is done does not speak for the others."""
    channel = EventChannel()
    go_on = threading.Event()
    seen: list[object] = []
    channel.listen(seen.append)
    channel.listen(lambda item: go_on.wait(SOON))
    channel.send(event(1))
    assert channel.flush(0.01) is False
    go_on.set()
    assert channel.flush(SOON) is True
    assert seen == events(1)


def test_a_listener_may_flush() -> None:
    """A callback does not wait for itself."""
    channel = EventChannel()
    flushed: list[bool] = []
    channel.listen(lambda item: flushed.append(channel.flush(SOON)))
    channel.send(event(1))
    channel.send(event(2))
    assert channel.flush(SOON) is True
    assert flushed == [True, True]
    channel.close()


def test_a_listener_may_send() -> None:
    """Callbacks run without the lock, so that they can use the channel."""
    channel = EventChannel()
    seen: list[object] = []

    def echo(item: object) -> None:
        seen.append(item)
        if item == event(1):
            channel.send(event(2))

    channel.listen(echo)
    channel.send(event(1))
    assert channel.flush(SOON)
    assert channel.flush(SOON)
    assert seen == events(1, 2)
    channel.close()


def test_a_listener_that_lags_is_told() -> None:
    """A callback gets `Lagged` like any receiver."""
    channel = EventChannel(1)
    entered, go_on = threading.Event(), threading.Event()
    seen: list[object] = []

    def slow(item: object) -> None:
        seen.append(item)
        entered.set()
        go_on.wait(SOON)

    channel.listen(slow)
    channel.send(event(0))
    assert entered.wait(SOON)
    for number in range(1, 4):
        channel.send(event(number))
    go_on.set()
    assert channel.flush(SOON)
    assert seen == [event(0), Lagged(2), event(3)]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1)], ids=without_address)
def test_a_callback_that_raises_is_logged_and_called_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in a listener costs neither the run nor the events that follow."""
    channel = EventChannel()
    seen: list[object] = []

    def broken(item: object) -> None:
        seen.append(item)
        raise error

    with caplog.at_level(logging.ERROR, "fanout_sync.events.channel"):
        channel.listen(broken)
        channel.send(event(1))
        channel.send(event(2))
        assert channel.flush(SOON)
    assert seen == events(1, 2)
    assert [record.getMessage() for record in caplog.records] == ["a listener raised for a TextDelta"] * 2
    assert all(record.exc_info and record.exc_info[1] is error for record in caplog.records)


def test_closing_ends_listeners_after_what_was_sent() -> None:
    """A closed channel's listeners handle the rest, and `flush` still waits for that."""
    channel = EventChannel()
    seen: list[object] = []
    channel.listen(seen.append)
    channel.send(event(1))
    channel.close()
    assert channel.flush(SOON)
    assert seen == events(1)


def test_closing_the_receiver_of_a_listener_ends_it() -> None:
    """A closed listener is called no more, and nobody waits for it."""
    channel = EventChannel()
    seen: list[object] = []
    receiver = channel.listen(seen.append)
    receiver.close()
    channel.send(event(1))
    assert channel.flush(SOON) is True
    assert seen == []


def test_a_callback_must_be_callable() -> None:
    """A mistake is told at once, not in a thread."""
    with pytest.raises(TypeError, match="callback must be callable, got list"):
        EventChannel().listen([])  # type: ignore[arg-type]


def test_a_listener_without_a_thread_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no thread can be started, the caller is told, and `flush` does not wait for what never began."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    channel = EventChannel()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        channel.listen(print)
    channel.send(event(1))
    assert channel.flush(0) is True


# --- signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_handler_may_send() -> None:
    """A handler that interrupts `send` sends too, without a deadlock and without a lost event."""
    channel = EventChannel(10**6)
    receiver = channel.subscribe()
    handled = 0

    def handler(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        channel.send(TextDelta("handler", ""))

    sent = 0
    before = signal.signal(signal.SIGVTALRM, handler)  # counts processor time, and is nobody else's timer
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001)
    try:
        while handled < 20:
            channel.send(TextDelta("main", ""))
            sent += 1
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    channel.close()
    items = list(receiver)
    assert items.count(TextDelta("main", "")) == sent
    assert items.count(TextDelta("handler", "")) == handled
