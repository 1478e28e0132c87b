"""Sliding windows: when there is room, and what is kept for it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fanout_sync.limits.windows import Window, request_rates, token_rates

Entries = list[tuple[int, int]]
"""Milliseconds and weights, as the model keeps them."""


def seconds(at_ms: int) -> float:
    """Return a moment within this millisecond, which rounding cannot move into the one before."""
    return (at_ms + 0.5) / 1000


def used(entries: Entries, interval_ms: int, at_ms: int) -> int:
    """Return what the window of `interval_ms` that ends at `at_ms` contains."""
    return sum(weight for entry_ms, weight in entries if entry_ms + interval_ms >= at_ms)


def first_room_ms(entries: Entries, rates: list[tuple[int, int]], weight: int, at_ms: int) -> int:
    """Return the first moment from `at_ms` on at which `weight` fits, by trying all moments at which one may."""
    moments = {at_ms, *(entry_ms + interval_ms + 1 for entry_ms, _ in entries for _, interval_ms in rates)}
    return min(
        moment
        for moment in moments
        if moment >= at_ms
        and all(used(entries, interval_ms, moment) <= max(0, limit - weight) for limit, interval_ms in rates)
    )


rates_of_a_window = st.builds(
    request_rates, st.integers(1, 40) | st.sampled_from([0.5, 2.5, 61.0, 700.0, 15_000.0])
) | st.builds(token_rates, st.integers(1, 10**7))

operations = st.lists(
    st.tuples(
        st.integers(0, 1000), st.sampled_from([0, 1, 500, 11_000, 60_020]), st.booleans(), st.integers(0, 20_000)
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=200)
@given(rates_of_a_window, operations)
def test_room_is_where_a_sum_over_all_entries_says(
    rates: list[tuple[int, int]], operations: list[tuple[int, ...]]
) -> None:
    """Whatever was put in, and when: the wait is the shortest after which every rate is kept, to the millisecond."""
    window, now_ms, latest_ms = Window(rates), 100_000, 0
    entries: Entries = []
    for permille, pause_ms, is_backdated, before_ms in operations:
        now_ms += pause_ms
        weight = 1 + window.limit * 2 * permille // 1000
        room_ms = first_room_ms(entries, rates, weight, now_ms)
        assert window.room_in_s(weight, seconds(now_ms)) == (room_ms - now_ms) / 1000
        weight = min(weight, window.burst)
        if is_backdated:
            put_ms = first_room_ms(entries, rates, weight, max(now_ms - before_ms, latest_ms))
            assert window.put_backdated(weight, seconds(now_ms - before_ms), seconds(now_ms)) == (put_ms <= now_ms)
        else:
            put_ms = first_room_ms(entries, rates, weight, now_ms)
            if put_ms == now_ms:
                window.put(weight, seconds(now_ms))
        if put_ms <= now_ms:
            entries.append((put_ms, weight))
            latest_ms = put_ms
        assert window.is_empty(seconds(now_ms)) == (used(entries, rates[-1][1], now_ms) == 0)


def test_a_million_tokens_are_one_entry() -> None:
    """Memory grows with the number of attempts, not of tokens."""
    window = Window(token_rates(3_000_000))
    for _ in range(3):
        window.put(1_000_000, 0.0)
    assert len(window._entries) == 3
    assert window.room_in_s(1, 0.0) == 60.021


def test_old_entries_are_dropped() -> None:
    """A window that is used for hours holds no more entries than its rate allows."""
    window = Window(request_rates(600))
    now = 0.0
    for _ in range(3000):
        now += window.room_in_s(1, now) + 0.001
        window.put(1, now)
    assert now > 300.0
    assert len(window._entries) <= window.limit
