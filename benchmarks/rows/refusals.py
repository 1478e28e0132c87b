"""A row with a server that refuses a few requests at random, whatever the load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random
from time import sleep
from typing import Any

from fanout_sync import RateLimit, RetryAfter

from .. import pools
from ..executors import specs_for
from ..measure import time_from_scratch
from ..row import OURS, Contestant, Limit, Row, Sizes

AT_ONCE = 16
SHARE = 0.05
WAIT_S = 1.0
PER_MINUTE = 6000
"""The limit is never reached: 16 steps at once of 0.2 s are 4,800 a minute."""


class Server:
    """Answers each prompt after as many seconds as it says, and refuses one in twenty once, after the same time."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self._to_refuse = set(Random(1).sample(prompts, round(SHARE * len(prompts))))

    def refuses(self, prompt: str) -> bool:
        """Return whether a prompt is refused this time."""
        if prompt not in self._to_refuse:
            return False
        self._to_refuse.discard(prompt)
        return True

    def answer(self, prompt: str) -> str:
        """Return the prompt after its time.

        Raises:
            RetryAfter: It is refused.
        """
        sleep(float(prompt))
        if self.refuses(prompt):
            raise RetryAfter(WAIT_S)
        return prompt

    async def answer_async(self, prompt: str, semaphore: asyncio.Semaphore) -> str:
        """Return the prompt after its time, in as many attempts as it takes; a wait holds no place."""
        while True:
            async with semaphore:
                await asyncio.sleep(float(prompt))
                if not self.refuses(prompt):
                    return prompt
            await asyncio.sleep(WAIT_S)


def few_refusals(sizes: Sizes) -> Row:
    """Steps of which a few are refused: do the others go on?"""
    chance = Random(2)
    prompts = [f"{chance.uniform(0.1, 0.3):.9f}" for _ in range(sizes.nap_steps // 5)]
    specs = specs_for(prompts)

    def ours(name: str, rate_limit: RateLimit | None) -> Contestant:
        def measure() -> float:
            open_pool = partial(pools.fanout_sync, Server(prompts).answer, AT_ONCE, retry=3, rate_limit=rate_limit)
            return time_from_scratch(open_pool, specs)

        return Contestant(name, measure)

    gathered = "asyncio.gather, semaphore"
    return Row(
        f"{len(prompts)} steps of 0.1–0.3 s, {AT_ONCE} threads, of which 5 % are refused once with RetryAfter(1)",
        "s",
        (
            ours(OURS, RateLimit(requests_per_minute=PER_MINUTE)),
            ours("without a rate limit", None),
            Contestant(gathered, lambda: time_from_scratch(partial(_gather, Server(prompts)), prompts)),
        ),
        (Limit("must", 1.5, ("without a rate limit",)), Limit("aim", 1.1, (gathered,))),
    )


@contextmanager
def _gather(server: Server) -> Iterator[pools.RunAll]:
    async def run_all(items: Sequence[Any]) -> Sequence[Any]:
        semaphore = asyncio.Semaphore(AT_ONCE)
        return await asyncio.gather(*[server.answer_async(item, semaphore) for item in items])

    yield lambda items: asyncio.run(run_all(list(items)))
