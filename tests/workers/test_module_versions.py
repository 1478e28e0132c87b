"""What happens to modules that are looked at between runs."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs


class Raising:
    """Stands in `sys.modules`, as the proxies of some libraries do."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"{name} needs another library")


class RaisingModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is not available")


MAKE_MODULE: list[Callable[[], Any]] = [lambda: None, lambda: 3, Raising, lambda: RaisingModule("raising")]


@pytest.mark.parametrize("make_module", MAKE_MODULE, ids=["none", "number", "object", "module"])
def test_an_entry_of_sys_modules_that_is_no_ordinary_module(
    make_module: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No attribute of a module that has nothing to do with the steps is asked for, which might raise."""
    monkeypatch.setitem(sys.modules, "raising", make_module())
    with Runner(FunctionExecutor({"tester": lambda spec: "done"}), backend="process", max_concurrency=1) as runner:
        runs = [runner.run(make_specs(1)) for _ in range(2)]
    assert [run[0].output for run in runs] == ["done", "done"]
    assert runs[0].records[0].worker == runs[1].records[0].worker


def test_a_lazy_module_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of `importlib.util.LazyLoader` that no step uses is not loaded by a run."""
    spec = importlib.util.find_spec("this")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    lazy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lazy)
    monkeypatch.setitem(sys.modules, "this", lazy)
    Runner(FunctionExecutor({"tester": lambda spec: "done"}), backend="process", max_concurrency=1).run(make_specs(1))
    assert "zen" not in types.ModuleType.__getattribute__(lazy, "__dict__")
    assert type(lazy) is not types.ModuleType
