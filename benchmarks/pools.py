"""Every contestant as a pool that is opened, called with all items of a run at once, and closed.

Each is used in the way its own documentation begins with; where it would hand out several items at once, it is told
not to.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import diskcache
import joblib
import loky
import pebble
from mpire.pool import WorkerPool

from fanout_sync import Runner

from .executors import Answering

Function = Callable[[str], str]
RunAll = Callable[[Iterable[Any]], Sequence[Any]]
"""Runs the pool's function on all items and returns the results in order."""
Pool = AbstractContextManager[RunAll]


@contextmanager
def fanout_sync(function: Function, workers: int, **options: Any) -> Iterator[RunAll]:
    """`Runner.run`, which alone takes specs and returns outcomes."""
    with Runner(Answering(function), max_concurrency=workers, **options) as runner:
        yield runner.run


@contextmanager
def thread_pool_executor(function: Function, workers: int) -> Iterator[RunAll]:
    """`concurrent.futures.ThreadPoolExecutor.map`."""
    with ThreadPoolExecutor(workers) as pool:
        yield lambda items: list(pool.map(function, items))


@contextmanager
def multiprocessing_thread_pool(function: Function, workers: int) -> Iterator[RunAll]:
    """`multiprocessing.pool.ThreadPool.imap`."""
    with ThreadPool(workers) as pool:
        yield lambda items: list(pool.imap(function, items))


@contextmanager
def joblib_threading(function: Function, workers: int) -> Iterator[RunAll]:
    """`joblib.Parallel` with the threading backend."""
    with joblib.Parallel(workers, backend="threading") as parallel:
        yield lambda items: parallel(joblib.delayed(function)(item) for item in items)


@contextmanager
def joblib_memory(function: Function, workers: int, folder: Path) -> Iterator[RunAll]:
    """`joblib.Memory.cache`, called from the threads of a `ThreadPoolExecutor`."""
    cached = joblib.Memory(folder, verbose=0).cache(function)
    with ThreadPoolExecutor(workers) as pool:
        yield lambda items: list(pool.map(cached, items))


@contextmanager
def diskcache_memoize(function: Function, workers: int, folder: Path) -> Iterator[RunAll]:
    """`diskcache.Cache.memoize`, called from the threads of a `ThreadPoolExecutor`."""
    with diskcache.Cache(folder) as cache, ThreadPoolExecutor(workers) as pool:
        cached = cache.memoize()(function)
        yield lambda items: list(pool.map(cached, items))


@contextmanager
def process_pool_executor(function: Function, workers: int) -> Iterator[RunAll]:
    """`concurrent.futures.ProcessPoolExecutor.map`."""
    with ProcessPoolExecutor(workers) as pool:
        yield lambda items: list(pool.map(function, items))


@contextmanager
def multiprocessing_pool(function: Function, workers: int) -> Iterator[RunAll]:
    """`multiprocessing.Pool.imap`."""
    with multiprocessing.Pool(workers) as pool:
        yield lambda items: list(pool.imap(function, items))


@contextmanager
def pebble_pool(function: Function, workers: int) -> Iterator[RunAll]:
    """`pebble.ProcessPool.map`."""
    with pebble.ProcessPool(workers) as pool:
        yield lambda items: list(pool.map(function, items, chunksize=1).result())


@contextmanager
def pebble_futures(function: Function, workers: int) -> Iterator[RunAll]:
    """`pebble.ProcessPool.schedule`, whose futures say which calls have killed their worker."""
    with pebble.ProcessPool(workers) as pool:

        def run_all(items: Iterable[Any]) -> Sequence[Any]:
            futures = [pool.schedule(function, [item]) for item in items]
            return [future.exception() or future.result() for future in futures]

        yield run_all


@contextmanager
def loky_pool(function: Function, workers: int) -> Iterator[RunAll]:
    """`loky.ProcessPoolExecutor.map`."""
    with loky.ProcessPoolExecutor(workers) as pool:
        yield lambda items: list(pool.map(function, items))


@contextmanager
def joblib_loky(function: Function, workers: int) -> Iterator[RunAll]:
    """`joblib.Parallel` with its default backend."""
    with joblib.Parallel(workers, backend="loky", batch_size=1) as parallel:
        yield lambda items: parallel(joblib.delayed(function)(item) for item in items)
    # It keeps its workers for the next one, who would find them running beside its own.
    joblib.externals.loky.get_reusable_executor().shutdown()


@contextmanager
def mpire_pool(function: Function, workers: int) -> Iterator[RunAll]:
    """`mpire.WorkerPool.map`."""
    with WorkerPool(workers, keep_alive=True) as pool:
        yield lambda items: pool.map(function, items, chunk_size=1)
