"""Times one pool of processes from nothing to its first answer: `cold_start.py CONTESTANT`."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from time import perf_counter

WORKERS = 2
PROMPTS = ["hello"] * 8


def fanout_sync() -> Generator[None, None, None]:
    """`Runner.stream`."""
    from benchmarks.executors import Answering, specs_for
    from benchmarks.functions import answer
    from fanout_sync import Runner

    specs = specs_for(PROMPTS)
    yield
    next(Runner(Answering(answer), backend="process", max_concurrency=WORKERS).stream(specs))
    yield


def loky() -> Generator[None, None, None]:
    """`loky.ProcessPoolExecutor.map`."""
    from loky import ProcessPoolExecutor

    from benchmarks.functions import answer

    yield
    with ProcessPoolExecutor(WORKERS) as pool:
        next(pool.map(answer, PROMPTS))
        yield


def spawn() -> Generator[None, None, None]:
    """`concurrent.futures.ProcessPoolExecutor.map` with workers that are started as afresh as loky's."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from benchmarks.functions import answer

    yield
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        next(pool.map(answer, PROMPTS))
        yield


def default() -> Generator[None, None, None]:
    """`concurrent.futures.ProcessPoolExecutor.map` as it comes; it forks on Linux before Python 3.14."""
    from concurrent.futures import ProcessPoolExecutor

    from benchmarks.functions import answer

    yield
    with ProcessPoolExecutor(WORKERS) as pool:
        next(pool.map(answer, PROMPTS))
        yield


def pebble() -> Generator[None, None, None]:
    """`pebble.ProcessPool.map` as it comes; it forks where `ProcessPoolExecutor` does."""
    from pebble import ProcessPool

    from benchmarks.functions import answer

    yield
    with ProcessPool(WORKERS) as pool:
        next(pool.map(answer, PROMPTS, chunksize=1).result())
        yield


CONTESTANTS = {
    "fanout_sync": fanout_sync,
    "loky": loky,
    "ProcessPoolExecutor, spawn": spawn,
    "ProcessPoolExecutor": default,
    "pebble": pebble,
}


def main(name: str) -> None:
    """Time the contestant: up to its first `yield` it imports, up to the second it starts."""
    contestant = CONTESTANTS[name]()
    began = perf_counter()
    next(contestant)
    imported = perf_counter()
    next(contestant)
    answered = perf_counter()
    contestant.close()
    print(json.dumps({"import_s": imported - began, "start_s": answered - imported}))


if __name__ == "__main__":
    main(sys.argv[1])
