"""What holds for every test: nothing is left behind."""

from __future__ import annotations

import multiprocessing
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bounds import HANG_BOUND_S
from naming import without_address
from processes import eventually
from scripts import TOKEN, Launcher, processes_with

from fanout_sync import Runner
from fanout_sync.executors.executor import AgentExecutor
from fanout_sync.executors.loop_monitor import MONITOR_NAME
from fanout_sync.executors.loops import THREAD_NAME, TO_THREAD_NAME
from fanout_sync.testing import Ledger

LASTING = {THREAD_NAME, TO_THREAD_NAME, MONITOR_NAME}
"""The names of the threads in which async code runs: they go on until the program ends."""


def pytest_make_parametrize_id(val: object) -> str | None:
    return without_address(val) if " at 0x" in repr(val) else None


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name in LASTING:
            continue
        thread.join(HANG_BOUND_S)
        assert not thread.is_alive(), f"{thread} was left behind"
    assert multiprocessing.active_children() == [], "a worker process was left behind"


@pytest.fixture
def no_program_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Marks all programs that the test starts, and sees that none of them is left; its value is the mark."""
    token = uuid.uuid4().hex
    monkeypatch.setenv(TOKEN, token)
    yield token
    assert eventually(lambda: not list(filter(_is_no_tracker, processes_with(token)))), "a program was left behind"


def _is_no_tracker(pid: int) -> bool:
    """Return whether it is not a resource tracker of multiprocessing or loky, which lasts as long as this process."""
    try:
        return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended just now
        return False


@pytest.fixture
def ledger(tmp_path: object) -> Ledger:
    return Ledger(f"{tmp_path}/ledger")


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.end()


@pytest.fixture(params=["thread", "process", "foreign"])
def make_runner(request: pytest.FixtureRequest) -> Iterator[Callable[..., Runner]]:
    """Makes runners over each kind of backend; the foreign one is a pool that is larger than any bound."""
    if request.param != "foreign":
        yield lambda executor, **options: Runner(executor, backend=request.param, **options)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:

        def make(executor: AgentExecutor, **options: object) -> Runner:
            return Runner(executor, backend=pool, **options)  # type: ignore[arg-type]  # handed on as they are

        yield make
