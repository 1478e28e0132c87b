"""Rows in two worker processes that are up and running."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .. import pools
from ..executors import specs_for
from ..functions import DEADLY, answer, answer_or_die
from ..measure import time_warm
from ..row import IDEAL, OURS, Contestant, Limit, Row, Sizes
from .threads import NAP_S, RUN_IN, WARM_UP, extra_contestants, guarded_row

WORKERS = 2


def noop(sizes: Sizes) -> Row:
    """Steps that do nothing: what is left is the cost of a step, there and back."""
    contestant = _contestants(["hello"] * sizes.process_steps, 1e6 / sizes.process_steps)
    return Row(
        f"{sizes.process_steps:,} no-op steps, 2 warm processes, one dispatch a step",
        "µs a step",
        (
            contestant(OURS, partial(pools.fanout_sync, backend="process")),
            contestant("Pool.imap", pools.multiprocessing_pool),
            contestant("pebble", pools.pebble_pool),
            contestant("ProcessPoolExecutor.map", pools.process_pool_executor),
            contestant("loky", pools.loky_pool),
            contestant("joblib, loky", pools.joblib_loky),
            contestant("mpire", pools.mpire_pool),
        ),
        (Limit("must", 0.8, ("pebble", "ProcessPoolExecutor.map")), Limit("aim", 1.0, ("Pool.imap",))),
    )


def guarded(sizes: Sizes) -> Row:
    """What it costs a step that does nothing to have a timeout and a retry."""
    title = f"{sizes.process_steps:,} no-op steps, 2 warm processes"
    return guarded_row(title, WORKERS, sizes.process_steps, backend="process")


def uneven(sizes: Sizes) -> Row:
    """One long step and many short ones: does any of them wait behind it while the other worker is free?"""
    long_s = sizes.uneven_steps * NAP_S
    contestant = _contestants([str(long_s), *[str(NAP_S)] * sizes.uneven_steps], 1e3)
    return Row(
        f"uneven steps (one of {long_s:g} s first, then {sizes.uneven_steps} of 10 ms), 2 warm processes",
        "ms",
        (
            contestant(OURS, partial(pools.fanout_sync, backend="process")),
            contestant("Pool.imap", pools.multiprocessing_pool),
            contestant("ProcessPoolExecutor.map", pools.process_pool_executor),
        ),
        (Limit("must", 1.05, (IDEAL,)),),
        ideal=long_s * 1e3,
    )


def deaths(sizes: Sizes) -> Row:
    """Steps that kill their worker: what it costs to start another one."""
    count = sizes.deadly_steps
    prompts = [DEADLY if number % 10 == 9 else "hello" for number in range(count)]
    specs = specs_for(prompts)

    def contestant(name: str, open_pool: Callable[..., pools.Pool], items: list[Any]) -> Contestant:
        return Contestant(name, lambda: 1e3 * time_warm(partial(open_pool, answer_or_die, WORKERS), items[:4], items))

    return Row(
        f"{count:,} steps of which every tenth kills its worker, 2 workers",
        "ms",
        (
            contestant(OURS, partial(pools.fanout_sync, backend="process"), specs),
            contestant("pebble, which forks", pools.pebble_futures, prompts),
        ),
        (),
    )


def extras(sizes: Sizes) -> Row:
    """What events and a lazy input cost, for information."""
    return Row(
        f"{sizes.process_steps:,} no-op steps, 2 warm processes: what events and a lazy input cost",
        "µs a step",
        extra_contestants(WORKERS, sizes.process_steps, backend="process"),
    )


def _contestants(prompts: list[str], scale: float) -> Callable[[str, Callable[..., pools.Pool]], Contestant]:
    before = [*WARM_UP, *RUN_IN]
    specs, specs_before = specs_for(prompts), specs_for(before)

    def contestant(name: str, open_pool: Callable[..., pools.Pool]) -> Contestant:
        warm_up: list[Any] = specs_before if name == OURS else before
        items: list[Any] = specs if name == OURS else prompts
        return Contestant(name, lambda: scale * time_warm(partial(open_pool, answer, WORKERS), warm_up, items))

    return contestant
