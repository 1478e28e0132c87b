"""A large executor is told of once."""

from __future__ import annotations

import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from fanout_sync import FunctionExecutor, Runner, fanout_map
from fanout_sync.backends.large_payload import LARGE_BYTES
from fanout_sync.testing import make_specs


class Table:
    def __init__(self, size: int) -> None:
        self.data = bytes(size)

    def __call__(self, item: object) -> int:
        return len(self.data)


def test_it_is_told_once_how_many_workers_get_a_copy() -> None:
    """The warning has the size, the workers and the way out, and points to the caller's line; it comes once."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Runner(FunctionExecutor({"tester": Table(60_000_000)}), backend="process", max_concurrency=2) as runner:
            assert runner.run(make_specs(2)).failed == []
            assert runner.run(make_specs(2)).failed == []
    (warning,) = told
    assert warning.category is UserWarning
    assert "the executor is 60 MB; each of 2 workers gets a copy" in str(warning.message)
    assert "mmap_mode='r'" in str(warning.message)
    assert warning.filename == __file__


def test_a_pool_of_processes_gets_it_with_every_step() -> None:
    """On a pool of others it is worse, and the warning says so."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.warns(UserWarning, match="60 MB; ProcessPoolExecutor gets a copy with every step") as told:
            assert fanout_map(Table(60_000_000), [1], backend=pool).failed == []
        assert [warning.filename for warning in told] == [__file__]


def test_nothing_is_said_of_others() -> None:
    """What is smaller, and what threads share, needs no warning, which would be an error here."""
    assert fanout_map(Table(LARGE_BYTES - 100_000), [1], backend="process").failed == []
    assert fanout_map(Table(2 * LARGE_BYTES), [1]).failed == []
