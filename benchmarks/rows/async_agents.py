"""Rows of async agents, which all run in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from fanout_sync import Runner

from .. import pools
from ..executors import AnsweringAsync, specs_for
from ..measure import time_from_scratch
from ..row import OURS, Contestant, Limit, Row, Sizes
from .threads import NAP_S

GATHER = "asyncio.gather, semaphore"


def naps(sizes: Sizes) -> Row:
    """Async steps that wait, many at once: do all places have something to do all the time?"""
    return Row(
        f"{sizes.nap_steps:,} async steps of 10 ms, limit 64",
        "ms",
        _contestants(64, [str(NAP_S)] * sizes.nap_steps, 1e3),
        (Limit("aim", 1.1, (GATHER,)),),
        ideal=sizes.nap_steps * NAP_S / 64 * 1e3,
    )


def noop(sizes: Sizes) -> Row:
    """Async steps that do nothing: what it costs a step to be async, for information."""
    count = sizes.thread_steps // 10
    return Row(f"{count:,} no-op async steps, limit 8", "µs a step", _contestants(8, ["hello"] * count, 1e6 / count))


async def answer_async(prompt: str) -> str:
    """Return the prompt; if it is a number, after so many seconds."""
    if prompt[0].isdigit():
        await asyncio.sleep(float(prompt))
    return prompt


def _contestants(limit: int, prompts: list[str], scale: float) -> tuple[Contestant, ...]:
    specs = specs_for(prompts)

    def contestant(name: str, open_pool: Any, items: Sequence[Any]) -> Contestant:
        return Contestant(name, lambda: scale * time_from_scratch(open_pool, items))

    return (
        contestant(OURS, partial(_fanout_sync, limit), specs),
        contestant(GATHER, partial(_gather, limit), prompts),
        contestant("asyncio.gather, no limit", partial(_gather, len(prompts)), prompts),
    )


@contextmanager
def _fanout_sync(limit: int) -> Iterator[pools.RunAll]:
    with Runner(AnsweringAsync(answer_async), max_concurrency=limit) as runner:
        yield runner.run


@contextmanager
def _gather(limit: int) -> Iterator[pools.RunAll]:
    async def run_all(items: Sequence[Any]) -> Sequence[Any]:
        semaphore = asyncio.Semaphore(limit)

        async def answer(item: Any) -> str:
            async with semaphore:
                return await answer_async(item)

        return await asyncio.gather(*map(answer, items))

    yield lambda items: asyncio.run(run_all(list(items)))
