"""The event channel: receivers, listeners, waiting, and the events that slow receivers lose."""

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
"""Seconds: the bound on waits that end at once if the test passes."""


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
    gc.collect()  # closes the channels of the test, which ends their listeners
    for thread in set(threading.enumerate()) - before:
        thread.join(SOON)
        assert not thread.is_alive(), thread


# --- sending and receiving --------------------------------------------------------------------------------------------


def test_every_receiver_gets_everything_in_order() -> None:
    """Each receiver gets all events, in the order in which they were sent."""
    channel = EventChannel()
    receivers = [channel.subscribe() for _ in range(3)]
    for number in range(5):
        channel.send(event(number))
    channel.close()
    for receiver in receivers:
        assert list(receiver) == events(0, 1, 2, 3, 4)


def test_a_receiver_gets_what_is_sent_after_it_subscribed() -> None:
    """Events from before `subscribe` are not repeated."""
    channel = EventChannel()
    channel.send(event(0))
    receiver = channel.subscribe()
    channel.send(event(1))
    channel.close()
    assert list(receiver) == events(1)


def test_a_channel_without_receivers_takes_events() -> None:
    """Sending without receivers is allowed."""
    channel = EventChannel(1)
    for number in range(3):
        channel.send(event(number))
    with pytest.raises(TimeoutError):
        channel.subscribe().recv(0)


def test_a_waiting_receiver_is_woken() -> None:
    """`recv` returns an event that another thread sends while it waits."""
    channel = EventChannel()
    receiver = channel.subscribe()
    sender = in_thread(lambda: channel.send(event(1)))
    assert receiver.recv(SOON) == event(1)
    sender.join(SOON)


@pytest.mark.parametrize("timeout", [0, 0.001, -1])
def test_recv_times_out(timeout: float) -> None:
    """If no event comes in time, `recv` raises `TimeoutError`, and the receiver can still be used."""
    channel = EventChannel()
    receiver = channel.subscribe()
    with pytest.raises(TimeoutError):
        receiver.recv(timeout)
    channel.send(event(1))
    assert receiver.recv(timeout) == event(1)


@pytest.mark.parametrize("not_an_event", [None, "text", {"type": "text_delta"}, TextDelta, Lagged(1)])
def test_only_events_are_sent(not_an_event: Any) -> None:
    """An object of another type is refused; the error names the type."""
    with pytest.raises(TypeError, match=f"event must be an Event, got {type(not_an_event).__name__}"):
        EventChannel().send(not_an_event)


def test_unknown_events_can_be_sent() -> None:
    """An `UnknownEvent`, such as a newer peer sends, goes through the channel."""
    channel = EventChannel()
    receiver = channel.subscribe()
    channel.send(UnknownEvent("brain_wave", {}))
    assert receiver.recv(0) == UnknownEvent("brain_wave", {})


@pytest.mark.parametrize("capacity", [0, -1, True, 1.0, "1", None])
def test_capacity_is_a_positive_int(capacity: Any) -> None:
    """Another capacity is refused; the error names the argument and the value."""
    with pytest.raises(OptionError, match=f"capacity must be an int of at least 1, got {capacity!r}"):
        EventChannel(capacity)


def test_many_senders_lose_nothing() -> None:
    """All events of several threads arrive, those of each thread in order."""
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
    """It gets one `Lagged` in place of the lost events, and then the oldest event that is still kept."""
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
    """The channel keeps as many events as its capacity."""
    channel = EventChannel(3)
    receiver = channel.subscribe()
    for number in range(3):
        channel.send(event(number))
    channel.close()
    assert list(receiver) == events(0, 1, 2)


def test_lagged_counts_the_losses_since_the_last_one() -> None:
    """Losses add up until the receiver asks; each `Lagged` has the number since the one before."""
    channel = EventChannel(1)
    receiver = channel.subscribe()
    for number in range(4):
        channel.send(event(number))
    assert receiver.recv(0) == Lagged(3)
    channel.send(event(4))
    channel.send(event(5))
    assert receiver.recv(0) == Lagged(2)
    assert receiver.recv(0) == event(5)


def test_other_receivers_lose_nothing_to_a_slow_one() -> None:
    """Only the receiver that is behind loses events."""
    channel = EventChannel(1)
    slow, quick = channel.subscribe(), channel.subscribe()
    for number in range(3):
        channel.send(event(number))
        assert quick.recv(0) == event(number)
    assert slow.recv(0) == Lagged(2)
    assert slow.recv(0) == event(2)


def test_lagged_is_a_value() -> None:
    """`Lagged` is equal by value and survives pickle."""
    assert Lagged(3) == Lagged(n=3)
    assert pickle.loads(pickle.dumps(Lagged(3))) == Lagged(3)
    assert repr(Lagged(3)) == "Lagged(n=3)"


# --- closing ----------------------------------------------------------------------------------------------------------


def test_a_closed_channel_is_drained_first() -> None:
    """Events from before `close` are still received, also a `Lagged`; then `recv` raises `EOFError`."""
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
    """Sending to a closed channel does nothing and raises nothing; nor does a second `close`."""
    channel = EventChannel()
    receiver = channel.subscribe()
    channel.close()
    channel.close()
    channel.send(event(1))
    assert list(receiver) == []


def test_subscribing_to_a_closed_channel_gives_nothing() -> None:
    """A receiver of a closed channel ends at once."""
    channel = EventChannel()
    channel.send(event(0))
    channel.close()
    assert list(channel.subscribe()) == []


def test_closing_ends_a_waiting_iteration() -> None:
    """An iteration that waits for the next event ends when the channel is closed."""
    channel = EventChannel()
    receiver = channel.subscribe()
    received: list[object] = []
    reader = in_thread(lambda: received.extend(receiver))
    channel.send(event(1))
    channel.close()
    reader.join(SOON)
    assert not reader.is_alive()
    assert received == events(1)


def test_closing_a_receiver_does_not_affect_others() -> None:
    """A closed receiver gets no more events, not even unread ones; other receivers do."""
    channel = EventChannel()
    closed, other = channel.subscribe(), channel.subscribe()
    channel.send(event(1))
    closed.close()
    closed.close()
    with pytest.raises(EOFError, match="the receiver is closed"):
        closed.recv()
    assert list(closed) == []
    assert other.recv(0) == event(1)


def test_closing_a_receiver_ends_its_waiting_iteration() -> None:
    """`close` from another thread ends an iteration that waits."""
    channel = EventChannel()
    receiver = channel.subscribe()
    reader = in_thread(lambda: list(receiver))
    receiver.close()
    reader.join(SOON)
    assert not reader.is_alive()


def test_channel_and_receiver_are_context_managers() -> None:
    """The channel and the receiver are closed at the end of the block."""
    with EventChannel() as channel, channel.subscribe() as receiver:
        channel.send(event(1))
        assert receiver.recv(0) == event(1)
    with pytest.raises(EOFError):
        receiver.recv()
    with EventChannel() as channel:
        receiver = channel.subscribe()
    assert list(receiver) == []


def test_a_channel_that_nobody_can_send_to_is_closed() -> None:
    """As in tokio: without any sender left, receivers get the remaining events and end, instead of waiting forever."""
    channel = EventChannel()
    receiver = channel.subscribe()
    channel.send(event(1))
    del channel
    gc.collect()
    assert list(receiver) == events(1)


def test_a_dropped_receiver_is_garbage_collected() -> None:
    """The channel has no reference to its receivers."""
    channel = EventChannel()
    receiver = channel.subscribe()
    channel.send(event(1))
    reference = weakref.ref(receiver)
    del receiver
    gc.collect()
    assert reference() is None


def test_a_channel_cannot_be_pickled() -> None:
    """The error says to give it to the runner as `event_tx`."""
    with pytest.raises(TypeError, match="give it to the runner as event_tx"):
        pickle.dumps(EventChannel())


# --- listeners --------------------------------------------------------------------------------------------------------


def test_a_listener_has_seen_everything_after_flush() -> None:
    """After `flush` the callback has been called with all events sent before, in order."""
    channel = EventChannel()
    seen: list[object] = []
    receiver = channel.listen(seen.append)
    assert isinstance(receiver, EventReceiver)
    for number in range(100):
        channel.send(event(number))
    assert channel.flush(SOON) is True
    assert seen == events(*range(100))


def test_flush_without_listeners_returns_at_once() -> None:
    """`flush` waits only for listeners, not for receivers."""
    channel = EventChannel()
    receiver = channel.subscribe()
    channel.send(event(1))
    assert channel.flush(0) is True
    assert receiver.recv(0) == event(1)


def test_flush_waits_for_what_was_sent_before_it_only() -> None:
    """`flush` times out while a listener is blocked, and succeeds when the listener goes on."""
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
    """`flush` still waits when only one of two listeners is done."""
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
    """`flush` in a callback does not wait for the listener of that callback."""
    channel = EventChannel()
    flushed: list[bool] = []
    channel.listen(lambda item: flushed.append(channel.flush(SOON)))
    channel.send(event(1))
    channel.send(event(2))
    assert channel.flush(SOON) is True
    assert flushed == [True, True]
    channel.close()


def test_a_listener_may_send() -> None:
    """Callbacks run without the lock of the channel, so they may send."""
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


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1)], ids=without_address)
def test_a_callback_that_raises_is_logged_and_called_again(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in a callback affects neither the sender nor later events."""
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


def test_closing_ends_listeners_after_the_last_event() -> None:
    """Listeners of a closed channel handle the remaining events, and `flush` still waits for them."""
    channel = EventChannel()
    seen: list[object] = []
    channel.listen(seen.append)
    channel.send(event(1))
    channel.close()
    assert channel.flush(SOON)
    assert seen == events(1)


def test_closing_the_receiver_of_a_listener_ends_it() -> None:
    """The callback is not called again, and `flush` does not wait for it."""
    channel = EventChannel()
    seen: list[object] = []
    receiver = channel.listen(seen.append)
    receiver.close()
    channel.send(event(1))
    assert channel.flush(SOON) is True
    assert seen == []


def test_a_callback_must_be_callable() -> None:
    """The call itself raises, not the thread of the listener."""
    with pytest.raises(TypeError, match="callback must be callable, got list"):
        EventChannel().listen([])  # type: ignore[arg-type]


def test_a_listener_without_a_thread_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, `listen` raises, and `flush` does not wait for that listener."""

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
    """A handler that interrupts `send` may send, too, without a deadlock and without losing an event."""
    channel = EventChannel(10**6)
    receiver = channel.subscribe()
    handled = 0

    def handler(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        channel.send(TextDelta("handler", ""))

    sent = 0
    before = signal.signal(signal.SIGVTALRM, handler)  # counts processor time; no other test uses this timer
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
