"""Workers that are kept for the next run see what the caller has changed meanwhile."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from processes import eventually

from fanout_sync import AgentExecutor, AgentStepSpec, EventSender, FunctionExecutor, ProcessBackend, Runner, StepOutcome
from fanout_sync.backends import kept_workers
from fanout_sync.testing import Ledger, make_specs
from fanout_sync.workers import module_versions


class OwnWarning(UserWarning):
    """A category of this module."""


@pytest.fixture(autouse=True)
def _state_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    directory, path, limit, filters = Path.cwd(), list(sys.path), sys.getrecursionlimit(), list(warnings.filters)
    level = logging.getLogger("told").level
    yield
    os.chdir(directory)
    sys.path[:] = path
    sys.setrecursionlimit(limit)
    warnings.filters[:] = filters  # type: ignore[index]  # it is a list
    gc.enable()
    socket.setdefaulttimeout(None)
    logging.getLogger("told").setLevel(level)
    os.environ.pop("FANOUT_TOLD", None)
    os.environ["TZ"] = "UTC"
    del os.environ["TZ"]
    time.tzset()


def _set_environment() -> None:
    os.environ["FANOUT_TOLD"] = "told"


def _unset_environment() -> None:
    os.environ.pop("FANOUT_TOLD", None)


def _set_zone() -> None:
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()


def _filter_own_warning() -> None:
    warnings.filterwarnings("ignore", message="spec.*", category=OwnWarning)


def _warns_of_own() -> str:
    try:
        warnings.warn("special", OwnWarning, stacklevel=1)
    except OwnWarning:
        return "raised"
    return "ignored"


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a variable that is set": (_set_environment, lambda: os.environ.get("FANOUT_TOLD")),
    "a variable that is removed": (_unset_environment, lambda: os.environ.get("FANOUT_TOLD")),
    "the time zone": (_set_zone, lambda: time.tzname),
    "the search path": (lambda: sys.path.append("/told"), lambda: sys.path),
    "the arguments": (lambda: sys.argv.append("told"), lambda: sys.argv),
    "the recursion limit": (lambda: sys.setrecursionlimit(4321), sys.getrecursionlimit),
    "warning filters": (lambda: warnings.simplefilter("always"), lambda: warnings.filters[0][0]),
    "a filter for a category of the user": (_filter_own_warning, _warns_of_own),
    "garbage collection": (gc.disable, gc.isenabled),
    "the timeout of sockets": (lambda: socket.setdefaulttimeout(123.0), socket.getdefaulttimeout),
    "the level of a logger": (lambda: logging.getLogger("told").setLevel(7), lambda: logging.getLogger("told").level),
}


class Reporting(AgentExecutor):
    """Answers with what a step sees."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def setup(self) -> None:
        self.ledger.note("setup")

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        return StepOutcome.completed(spec, f"{os.getpid()} {CHANGES[spec.prompt][1]()}")


@pytest.mark.parametrize("change", CHANGES)
def test_a_kept_worker_sees_what_has_changed(change: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller changes between two runs is seen by the second one, in the same worker, without a new setup."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    os.environ["FANOUT_TOLD"] = "before"
    spec = AgentStepSpec("t", "tester", "", change)
    with Runner(Reporting(ledger), backend="process", max_concurrency=1) as runner:
        pid, _, before = runner.run([spec])[0].output.partition(" ")
        CHANGES[change][0]()
        same_pid, _, after = runner.run([spec])[0].output.partition(" ")
    assert after == str(CHANGES[change][1]())
    assert after != before
    assert same_pid == pid
    assert ledger.counts() == {"setup": 1}


def _directory(spec: AgentStepSpec) -> str:
    return os.getcwd()


def test_a_kept_worker_follows_the_caller_to_another_directory(tmp_path: Path) -> None:
    """A kept worker works where the caller is now, also if its old directory is gone, or the new one will be."""
    folders = [tmp_path / name for name in ("first", "second")]
    with Runner(FunctionExecutor({"tester": _directory}), backend="process", max_concurrency=1) as runner:
        for folder in folders:
            folder.mkdir()
            os.chdir(folder)
            assert runner.run(make_specs(1))[0].output == str(folder)
            folder.rmdir()
        run = runner.run(make_specs(1))
        assert run.records[0].error is not None
        assert run.records[0].error.type == "FileNotFoundError"  # as on threads
        os.chdir(tmp_path)
        assert runner.run(make_specs(1))[0].output == str(tmp_path)


@pytest.fixture
def local_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "reloaded.py").write_text("def answer():\n    return 'old'\n")
    yield importlib.import_module("reloaded")
    del sys.modules["reloaded"]


def _edit(module: Any) -> None:
    path = Path(module.__file__)
    path.write_text("def answer():\n    return 'edited'\n")
    importlib.invalidate_caches()


def _pid_and_answer(spec: AgentStepSpec) -> str:
    import reloaded  # type: ignore[import-not-found]  # a test has made it

    return f"{os.getpid()} {reloaded.answer()}"


def test_a_kept_worker_that_has_imported_a_reloaded_module_is_replaced(local_module: Any) -> None:
    """After `importlib.reload` steps run the new code; only workers that had the old one are replaced."""
    executor = FunctionExecutor({"tester": _pid_and_answer, "other": lambda spec: f"{os.getpid()} -"})
    with Runner(executor, backend="process", max_concurrency=1) as runner:
        pid, answer = runner.run(make_specs(1))[0].output.split()
        assert answer == "old"
        _edit(local_module)
        importlib.reload(local_module)
        new_pid, answer = runner.run(make_specs(1))[0].output.split()
        assert (answer, new_pid != pid) == ("edited", True)
        assert runner.run(make_specs(1))[0].output.split()[0] == new_pid


def test_a_kept_worker_that_has_not_imported_it_stays(local_module: Any) -> None:
    """A worker is not replaced for a module that it does not have."""
    with Runner(FunctionExecutor({"tester": lambda spec: str(os.getpid())}), backend="process") as runner:
        pid = runner.run(make_specs(1))[0].output
        importlib.reload(local_module)
        assert runner.run(make_specs(1))[0].output == pid
        assert runner.run(make_specs(1))[0].output == pid


def test_a_source_that_was_edited_and_not_reloaded_is_warned_of(
    local_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that start later import the new source, so the caller is told, once."""
    monkeypatch.setattr(module_versions, "CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(module_versions, "_next_check", 0.0)
    runner = Runner(FunctionExecutor({"tester": _pid_and_answer}), backend="process", max_concurrency=1)
    runner.run(make_specs(1))
    _edit(local_module)
    os.utime(local_module.__file__, (1, 1))
    with pytest.warns(UserWarning, match="'reloaded'"):
        runner.run(make_specs(1))
    runner.run(make_specs(1))


def test_a_kept_worker_is_replaced_when_functions_were_patched_in_place(
    local_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`%autoreload` may put the new code into the functions of an edited module, which is the same module then."""
    monkeypatch.setattr(module_versions, "CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(module_versions, "_next_check", 0.0)
    with Runner(FunctionExecutor({"tester": _pid_and_answer}), backend="process", max_concurrency=1) as runner:
        pid, answer = runner.run(make_specs(1))[0].output.split()
        for edited_first in (True, False):
            _edit(local_module)
            os.utime(local_module.__file__, (2, 2 + edited_first))
            if edited_first:
                with pytest.warns(UserWarning, match="'reloaded'"):
                    assert runner.run(make_specs(1))[0].output == f"{pid} {answer}"
            namespace: dict[str, Any] = {}
            exec(Path(local_module.__file__).read_text(), namespace)
            local_module.answer.__code__ = namespace["answer"].__code__
            new_pid, new_answer = runner.run(make_specs(1))[0].output.split()
            assert (new_answer, new_pid != pid) == ("edited", True)
            assert runner.run(make_specs(1))[0].output.split()[0] == new_pid
            pid, answer = new_pid, new_answer


def test_a_module_that_was_made_after_the_worker_started(tmp_path: Path) -> None:
    """A kept worker finds a module whose folder was put on the path, and whose file was made, after its start."""
    executor = FunctionExecutor({"tester": lambda spec: str(__import__(spec.prompt).ANSWER)})
    sys.path.insert(0, str(tmp_path))
    with Runner(executor, backend="process", max_concurrency=1) as runner:
        for name in ("made_first", "made_second"):
            (tmp_path / f"{name}.py").write_text("ANSWER = 42\n")
            assert runner.run([AgentStepSpec("t", "tester", "", name)])[0].output == "42"


def _meet_in(folder: Path) -> FunctionExecutor:
    """Return an executor whose two steps run at the same time, or not at all."""
    os.mkfifo(folder / "meeting")

    def meet(spec: AgentStepSpec) -> str:
        with (folder / "meeting").open("r" if spec.prompt == "0" else "w"):
            return spec.prompt

    return FunctionExecutor({"tester": meet})


def _run_at_once(runner: Runner) -> None:
    threads = [threading.Thread(target=runner.run, args=([spec],)) for spec in make_specs(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_BOUND_S)
        assert not thread.is_alive()


def test_idle_workers_above_the_bound_are_let_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the workers that several runs at once have left, only as many stay as one run may have."""
    import multiprocessing

    monkeypatch.setattr(kept_workers, "IDLE_S", 0.05)
    backend = ProcessBackend()
    with Runner(_meet_in(tmp_path), backend=backend, max_concurrency=1) as runner:
        _run_at_once(runner)
        assert eventually(lambda: len(multiprocessing.active_children()) == 1)
        single = Runner(FunctionExecutor({"tester": _directory}), backend=backend, max_concurrency=1)
        assert single.run(make_specs(1)).succeeded


def test_idle_workers_that_come_while_others_are_let_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are let go as well."""
    import multiprocessing

    monkeypatch.setattr(kept_workers, "IDLE_S", 0.05)
    has_begun, may_end, end = threading.Event(), threading.Event(), kept_workers._end

    def end_later(lanes: list[Any]) -> None:
        has_begun.set()
        assert may_end.wait(HANG_BOUND_S)
        end(lanes)

    monkeypatch.setattr(kept_workers, "_end", end_later)
    with Runner(_meet_in(tmp_path), backend="process", max_concurrency=1) as runner:
        _run_at_once(runner)
        assert has_begun.wait(HANG_BOUND_S)
        _run_at_once(runner)
        assert len(multiprocessing.active_children()) == 3
        may_end.set()
        assert eventually(lambda: len(multiprocessing.active_children()) == 1)
