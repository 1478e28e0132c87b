"""What the package offers, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fanout_sync

CONTRACT = {
    "DEFAULT_MAX_PARALLEL_TASKS",
    "AgentExecutor",
    "AgentStepSpec",
    "EventChannel",
    "EventReceiver",
    "ExecutorNotPicklable",
    "FanoutError",
    "FunctionExecutor",
    "InputError",
    "Lagged",
    "OptionError",
    "ProcessBackend",
    "Run",
    "Runner",
    "StepOutcome",
    "StepRecord",
    "ThreadBackend",
    "WireError",
    "execute_steps_parallel",
    "read_specs",
    "write_outcomes",
}


def test_all_is_what_is_there() -> None:
    """`__all__` lists every public name of the package, and no other."""
    assert set(fanout_sync.__all__) == set(fanout_sync._MODULE_OF) == _names_for_the_type_checker()
    assert sorted(fanout_sync.__all__, key=_isort_key) == fanout_sync.__all__
    assert dir(fanout_sync) == sorted(fanout_sync.__all__)
    for name in fanout_sync.__all__:
        assert getattr(fanout_sync, name) is not None
    with pytest.raises(AttributeError, match="'fanout_sync' has no attribute 'Runer'"):
        _ = fanout_sync.Runer


def _names_for_the_type_checker() -> set[str]:
    tree = ast.parse(Path(fanout_sync.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level and node.module]
    return {alias.name for node in imports for alias in node.names}


def test_the_contract_is_exported() -> None:
    """Every name of the public contract that is due can be imported from the top."""
    assert set(fanout_sync.__all__) >= CONTRACT


def test_heavy_libraries_are_imported_when_needed() -> None:
    """Importing all names loads neither the process machinery nor the libraries of single features."""
    code = "import sys; from fanout_sync import *; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["loky", "cloudpickle", "tenacity", "jsonschema", "tqdm", "click", "cattrs"]
    heavy += ["asyncio", "multiprocessing"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def _isort_key(name: str) -> tuple[bool, bool, str]:
    # Constants, then classes, then functions: the order that the linter keeps.
    return (not name.isupper(), not name[0].isupper(), name)
