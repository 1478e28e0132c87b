"""Rows on threads."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

from tqdm import tqdm

from fanout_sync import EventChannel

from .. import pools
from ..executors import specs_for
from ..functions import answer
from ..measure import time_from_scratch, time_warm
from ..row import IDEAL, OURS, Contestant, Limit, Row, Sizes

NAP_S = 0.01

WARM_UP = ["0.25"] * 4
"""A quarter of a second is longer than any of the pools takes to start its second process."""

RUN_IN = ["hello"] * 2000
"""Steps before those that count: the interpreter specializes what it runs often, and the scheduler finds its places."""


def noop(sizes: Sizes) -> Row:
    """Steps that do nothing: what is left is the cost of a step."""
    return Row(
        f"{sizes.thread_steps:,} no-op steps, thread, limit 8",
        "µs a step",
        _contestants(8, ["hello"] * sizes.thread_steps, 1e6 / sizes.thread_steps),
        (Limit("must", 0.8, ("ThreadPoolExecutor.map",)), Limit("aim", 1.0, ("ThreadPool.imap",))),
    )


def naps(sizes: Sizes) -> Row:
    """Steps that wait, many at once: do all threads have something to do all the time?"""
    return Row(
        f"{sizes.nap_steps:,} steps of 10 ms, 64 threads",
        "ms",
        _contestants(64, [str(NAP_S)] * sizes.nap_steps, 1e3),
        (Limit("must", 1.0, ("ThreadPoolExecutor.map",)), Limit("aim", 1.08, (IDEAL,))),
        ideal=sizes.nap_steps * NAP_S / 64 * 1e3,
    )


def extras(sizes: Sizes) -> Row:
    """What events and a lazy input cost, for information."""
    return Row(
        f"{sizes.thread_steps:,} no-op steps, thread, limit 8: what events and a lazy input cost",
        "µs a step",
        extra_contestants(8, sizes.thread_steps),
    )


def guarded(sizes: Sizes) -> Row:
    """What it costs a step that does nothing to have a timeout and a retry."""
    return guarded_row(f"{sizes.thread_steps:,} no-op steps, thread, limit 8", 8, sizes.thread_steps)


def guarded_row(title: str, workers: int, count: int, **options: Any) -> Row:
    """Return a row that compares steps with a timeout and a retry to the same ones without."""
    specs, warm_up = specs_for(["hello"] * count), specs_for([*WARM_UP, *RUN_IN])

    def contestant(name: str, **guards: Any) -> Contestant:
        open_pool = partial(pools.fanout_sync, answer, workers, **options, **guards)
        return Contestant(name, lambda: 1e6 / count * time_warm(open_pool, warm_up, specs))

    return Row(
        f"{title}, with a timeout and a retry",
        "µs a step",
        (contestant(OURS, timeout=60, retry=3), contestant("without")),
        (Limit("must", 1.15, ("without",)),),
    )


def shown(sizes: Sizes) -> Row:
    """What it costs a step that does nothing to have its progress shown."""
    count, screen = sizes.thread_steps, io.StringIO()
    specs, warm_up = specs_for(["hello"] * count), specs_for([*WARM_UP, *RUN_IN])

    def contestant(name: str, **options: Any) -> Contestant:
        open_pool = partial(pools.fanout_sync, answer, 8, **options)
        return Contestant(name, lambda: 1e6 / count * time_warm(open_pool, warm_up, specs))

    return Row(
        f"{count:,} no-op steps, thread, limit 8, with a progress bar",
        "µs a step",
        (
            contestant(OURS, progress=partial(tqdm, file=screen)),
            contestant("… with a function", progress=lambda progress: None),
            contestant("without"),
        ),
        (Limit("must", 1.1, ("without",)), Limit("must", 1.1, ("without",), subject="… with a function")),
    )


def extra_contestants(workers: int, count: int, **options: Any) -> tuple[Contestant, ...]:
    """Return fanout_sync as it is, with a generator as its input, with events, and with somebody who listens."""
    specs, warm_up = specs_for(["hello"] * count), specs_for(WARM_UP)
    scale = 1e6 / count

    def with_list() -> float:
        return scale * time_warm(partial(pools.fanout_sync, answer, workers, **options), warm_up, specs)

    def with_generator() -> float:
        return scale * time_warm(partial(pools.fanout_sync, answer, workers, **options), warm_up, specs, iter)

    def with_events(listen: bool) -> float:
        with EventChannel() as channel:
            if listen:
                channel.listen(lambda event: None)
            open_pool = partial(pools.fanout_sync, answer, workers, event_tx=channel, **options)
            return scale * time_warm(open_pool, warm_up, specs)

    return (
        Contestant(OURS, with_list),
        Contestant("… specs from a generator", with_generator),
        Contestant("… with events", partial(with_events, False)),
        Contestant("… with events and a listener", partial(with_events, True)),
    )


def _contestants(workers: int, prompts: list[str], scale: float) -> tuple[Contestant, ...]:
    specs = specs_for(prompts)

    def contestant(name: str, open_pool: Callable[..., pools.Pool], items: list[Any]) -> Contestant:
        return Contestant(name, lambda: scale * time_from_scratch(partial(open_pool, answer, workers), items))

    return (
        contestant(OURS, pools.fanout_sync, specs),
        contestant("ThreadPoolExecutor.map", pools.thread_pool_executor, prompts),
        contestant("ThreadPool.imap", pools.multiprocessing_thread_pool, prompts),
        contestant("joblib, threading", pools.joblib_threading, prompts),
    )
