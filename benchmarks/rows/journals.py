"""Rows with a journal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .. import pools
from ..executors import specs_for
from ..functions import answer
from ..measure import time_from_scratch
from ..row import OURS, Contestant, Limit, Row, Sizes
from .threads import NAP_S

OpenPool = Callable[[Path], pools.Pool]


def naps(sizes: Sizes) -> Row:
    """Steps that wait, many at once: does the journal keep threads from having something to do?"""
    specs = specs_for([str(NAP_S)] * sizes.nap_steps)

    def with_journal(folder: Path) -> pools.Pool:
        return pools.fanout_sync(answer, 64, journal=folder / "run.db")

    return Row(
        f"{sizes.nap_steps:,} steps of 10 ms, 64 threads, with a journal",
        "ms",
        (
            _contestant(OURS, with_journal, specs, 1e3),
            _contestant("without", lambda _: pools.fanout_sync(answer, 64), specs, 1e3),
        ),
        (Limit("must", 1.05, ("without",)),),
    )


def noop(sizes: Sizes) -> Row:
    """Steps that do nothing and are kept: what is left is the cost of keeping one."""
    return _row(sizes, "that are kept, limit 8", _contestant)


def resume(sizes: Sizes) -> Row:
    """Steps that were kept: what it costs not to run one again."""
    return _row(sizes, "that were kept before, limit 8", _again)


def _row(sizes: Sizes, title: str, make_contestant: Callable[..., Contestant]) -> Row:
    count = sizes.process_steps
    prompts = [f"hello {number}" for number in range(count)]
    scale = 1e6 / count
    return Row(
        f"{count:,} no-op steps {title}",
        "µs a step",
        (
            make_contestant(OURS, _fanout_sync, specs_for(prompts), scale),
            make_contestant("joblib.Memory", partial(pools.joblib_memory, answer, 8), prompts, scale),
            make_contestant("diskcache", partial(pools.diskcache_memoize, answer, 8), prompts, scale),
        ),
        (Limit("aim", 1.0, ("joblib.Memory", "diskcache")),),
    )


def _fanout_sync(folder: Path) -> pools.Pool:
    return pools.fanout_sync(answer, 8, journal=folder / "run.db")


def _contestant(name: str, open_pool: OpenPool, items: list[Any], scale: float) -> Contestant:
    """Return a contestant that begins with an empty folder each time."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return scale * time_from_scratch(partial(open_pool, Path(folder)), items)

    return Contestant(name, measure)


def _again(name: str, open_pool: OpenPool, items: list[Any], scale: float) -> Contestant:
    """Return a contestant that does it once before it is measured."""

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            time_from_scratch(partial(open_pool, Path(folder)), items)
            return scale * time_from_scratch(partial(open_pool, Path(folder)), items)

    return Contestant(name, measure)
