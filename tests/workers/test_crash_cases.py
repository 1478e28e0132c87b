"""The crash cases of loky's own tests, on the process backend: four kinds of failure in four places each.

One case is missing because it cannot be contained: a result that loads in its worker and kills the caller when it loads
it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any

import misdeeds
import pytest
from bounds import HANG_BOUND_S
from processes import wait_for_file

from fanout_sync import AgentStepSpec, ProcessBackend


class AtLoad:
    """Calls a function when it is unpickled, and is unpickled to what that returns."""

    def __init__(self, do: Callable[..., Any], *args: Any) -> None:
        self.do = do
        self.args = args

    def __reduce__(self) -> Any:
        return self.do, self.args


class AtDump(AtLoad):
    """Calls a function when it is pickled."""

    def __reduce__(self) -> Any:
        return self.do(*self.args)


def _identity(value: Any) -> Any:
    return value


def _raise() -> None:
    raise RuntimeError("of its own")


def _exit() -> None:
    sys.exit("of its own")


def _exit_in_c() -> None:
    ctypes.CDLL(None).exit(1)


def _segfault() -> None:
    misdeeds.segfault(AgentStepSpec("t", "a", "", ""))


PLACES: dict[str, Callable[[Callable[[], None]], tuple[Any, ...]]] = {
    "argument unpickle": lambda do: (_identity, AtLoad(do)),
    "run": lambda do: (do,),
    "result pickle": lambda do: (AtDump, do),
    "result unpickle": lambda do: (AtLoad, do),
}
"""The arguments of `submit` for each place."""

WAYS: dict[str, tuple[Callable[[], None], type[BaseException], str]] = {
    "error": (_raise, RuntimeError, "^of its own$"),
    "exit": (_exit, SystemExit, "^of its own$"),
    "C exit": (_exit_in_c, BrokenExecutor, "exited with code 1$"),
    "segfault": (_segfault, BrokenExecutor, "killed by SIGSEGV$"),
}
"""The kinds of failure: what to call, and the exception that the future must have."""


def _submit_numbers(backend: Executor) -> list[Future[int]]:
    return [backend.submit(abs, -number) for number in range(3)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", PLACES)
def test_a_failing_call_fails_its_own_future_only(place: str, way: str, tmp_path: Path) -> None:
    """The future of the failing call says what happened; calls before, beside and after it succeed."""
    do, kind, text = WAYS[way]
    beside_it = str(tmp_path / "go on")
    with ProcessBackend(2) as backend:
        others = _submit_numbers(backend)
        beside = backend.submit(wait_for_file, beside_it)
        culprit: Future[Any] = backend.submit(*PLACES[place](do))
        others += _submit_numbers(backend)
        with pytest.raises(kind, match=text) as caught:
            culprit.result(HANG_BOUND_S)
        assert type(caught.value) is kind
        assert [future.result(HANG_BOUND_S) for future in others] == [0, 1, 2, 0, 1, 2]
        assert not beside.done()
        Path(beside_it).touch()
        assert beside.result(HANG_BOUND_S) == beside_it
        assert [future.result(HANG_BOUND_S) for future in _submit_numbers(backend)] == [0, 1, 2]


def _do_elsewhere(pid: int, do: Callable[[], None]) -> None:
    if os.getpid() != pid:
        do()


def _make_trap(do: Callable[[], None]) -> AtLoad:
    return AtLoad(_do_elsewhere, os.getpid(), do)


@pytest.mark.parametrize("way", ["error", "exit"])
def test_a_result_that_fails_to_load_in_the_caller_fails_its_own_future_only(way: str) -> None:
    """A result that its worker can load and the caller cannot is the exception of its future; other calls go on."""
    do, kind, text = WAYS[way]
    with ProcessBackend(1) as backend:
        before = _submit_numbers(backend)
        culprit = backend.submit(_make_trap, do)
        after = _submit_numbers(backend)
        with pytest.raises(kind, match=text):
            culprit.result(HANG_BOUND_S)
        assert [future.result(HANG_BOUND_S) for future in before + after] == [0, 1, 2, 0, 1, 2]
        assert backend.submit(abs, -1).result(HANG_BOUND_S) == 1
