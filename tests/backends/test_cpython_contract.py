"""The contract of executors as CPython tests it: its own tests, taken from the running Python, on each backend of ours.

Left out as a whole are its tests that take no executor (of `Future` alone), those of initializers, which ours do not
have, and `ExecutorDeadlockTest`, where a crash breaks the whole pool: what ours do then is in `test_crash_cases.py`.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import multiprocessing
import sys
import unittest
from collections.abc import Iterator
from typing import Any

import pytest
from bounds import HANG_BOUND_S

from fanout_sync import ProcessBackend, ThreadBackend

pytestmark = pytest.mark.timeout(HANG_BOUND_S)

PARTS = ("executor", "test_thread_pool", "test_process_pool", "test_shutdown", "test_wait", "test_as_completed", "util")
"""The modules that CPython 3.12 made of its one, as far as they are about executors."""

CASES = {
    ThreadBackend: ("ThreadPoolExecutorTest", "ThreadPoolShutdownTest", "ThreadPoolWaitTests", "AsCompletedTests"),
    ProcessBackend: ("ProcessPoolExecutorTest", "ProcessPoolShutdownTest", "WaitTests", "AsCompletedTests"),
}
"""What is run on each: the cases of the pool that it is like, which include those that all pools share."""

_BY_NAME = "It makes a pool of the standard library by its name, so it would test that one."
_SCRIPT = "Its script makes a pool of the standard library, and expects exit to wait for calls: ours does not."
_INSIDE = "It looks at private attributes of the standard library's pools."
_RENEWAL = "It gives `max_tasks_per_child`, which is an option of the standard library's processes alone."

OTHER_PROMISES = {
    "ExecutorTest.test_max_workers_negative": "Ours raises a ValueError too, but its words are not those of theirs.",
    "ExecutorShutdownTest.test_interpreter_shutdown": _SCRIPT,
    "ExecutorShutdownTest.test_submit_after_interpreter_shutdown": _SCRIPT,
    "ExecutorShutdownTest.test_hang_gh83386": _SCRIPT,
    "ThreadPoolExecutorTest.test_default_workers": _INSIDE,
    "ThreadPoolExecutorTest.test_saturation": _INSIDE,
    "ThreadPoolExecutorTest.test_idle_thread_reuse": _INSIDE,
    "ThreadPoolExecutorTest.test_hang_global_shutdown_lock": _BY_NAME,
    "ThreadPoolShutdownTest.test_threads_terminate": _INSIDE,
    "ThreadPoolShutdownTest.test_context_manager_shutdown": _BY_NAME,
    "ThreadPoolShutdownTest.test_del_shutdown": _BY_NAME,
    "ThreadPoolShutdownTest.test_shutdown_no_wait": _BY_NAME,
    "ThreadPoolShutdownTest.test_thread_names_assigned": _BY_NAME,
    "ThreadPoolShutdownTest.test_thread_names_default": _BY_NAME,
    "ThreadPoolShutdownTest.test_cancel_futures_wait_false": _SCRIPT,
    "ProcessPoolExecutorTest.test_max_workers_too_large": _BY_NAME,
    "ProcessPoolExecutorTest.test_killed_child": "A dead worker breaks their whole pool; it breaks one future of ours.",
    "ProcessPoolExecutorTest.test_map_chunksize": "Ours sends each call by itself, so any `chunksize` is as good.",
    "ProcessPoolExecutorTest.test_traceback": "The cause that shows the worker's traceback is of a private class.",
    "ProcessPoolExecutorTest.test_saturation": _INSIDE,
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": _INSIDE,
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": _INSIDE,
    "ProcessPoolExecutorTest.test_max_tasks_per_child": _RENEWAL,
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": _RENEWAL,
    "ProcessPoolExecutorTest.test_max_tasks_early_shutdown": _RENEWAL,
    "ProcessPoolExecutorTest.test_python_finalization_error": "It counts the threads that theirs starts.",
    "ProcessPoolShutdownTest.test_processes_terminate": _INSIDE,
    "ProcessPoolShutdownTest.test_context_manager_shutdown": _BY_NAME,
    "ProcessPoolShutdownTest.test_del_shutdown": _BY_NAME,
    "ProcessPoolShutdownTest.test_shutdown_no_wait": _BY_NAME,
}
"""The tests of theirs that state what ours do not promise, and why; all others are run."""

CAME_WITH = {
    "ProcessPoolExecutorTest.test_max_tasks_per_child": (3, 11),
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": (3, 11),
    "ProcessPoolExecutorTest.test_max_tasks_early_shutdown": (3, 11),
    "ProcessPoolExecutorTest.test_python_finalization_error": (3, 13),
}
"""The first Python that surely has a test of `OTHER_PROMISES`, if 3.10 has it not."""


class Collected(unittest.TestCase):
    """Collects the garbage before their last check, which in CPython 3.10 takes seconds over an ended thread in it."""

    def tearDown(self) -> None:
        gc.collect()
        super().tearDown()


def _theirs() -> dict[str, Any]:
    """Find their classes, be it in one module (until CPython 3.11) or in several."""
    try:
        whole = importlib.import_module("test.test_concurrent_futures")
    except ImportError:
        pytest.skip("this Python was installed without its test suite", allow_module_level=True)
    parts = [importlib.import_module(f"{whole.__name__}.{part}") for part in PARTS if hasattr(whole, "__path__")]
    return {name: kind for part in parts or [whole] for name, kind in inspect.getmembers(part, inspect.isclass)}


def _tests_of(case: type) -> Iterator[tuple[str, str]]:
    """Yield the full name of each test, with the class that defines it, and its own."""
    for owner in case.__mro__:
        yield from ((f"{owner.__name__}.{name}", name) for name in vars(owner) if name.startswith("test"))


def _on(backend: type, case: type) -> type:
    """Make a case of ours of one of theirs: their tests but for the left-out ones, on `backend`."""
    left_out = {name: None for full_name, name in _tests_of(case) if full_name in OTHER_PROMISES}
    given = {
        "__module__": __name__,
        "executor_type": backend,
        "get_context": lambda self: multiprocessing.get_context("spawn"),  # for the processes that their tests start
    }
    return type(f"{case.__name__}On{backend.__name__}", (case, *BASES), {**given, **left_out})


THEIRS = _theirs()
BASES = (THEIRS["ExecutorMixin"], Collected, THEIRS["BaseTestCase"])

# Under names of this module, so that pytest finds them and worker processes can import them.
globals().update(
    (case.__name__, case) for backend, names in CASES.items() for case in (_on(backend, THEIRS[name]) for name in names)
)


def test_what_is_left_out_is_there_to_be_left_out() -> None:
    """Each name in the table is a test of theirs that would otherwise be run, in every Python that ought to have it."""
    found = {full_name for names in CASES.values() for name in names for full_name, _ in _tests_of(THEIRS[name])}
    expected = {name for name in OTHER_PROMISES if sys.version_info >= CAME_WITH.get(name, (3, 10))}
    assert expected - found == set()
    assert set(CAME_WITH) <= set(OTHER_PROMISES)
