"""What the package offers, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

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
    public = {
        name for name, value in vars(fanout_sync).items() if name[0] != "_" and not isinstance(value, ModuleType)
    } - {"annotations"}
    assert set(fanout_sync.__all__) == public
    assert sorted(fanout_sync.__all__, key=_isort_key) == fanout_sync.__all__


def test_the_contract_is_exported() -> None:
    """Every name of the public contract that is due can be imported from the top."""
    assert set(fanout_sync.__all__) >= CONTRACT


def test_heavy_libraries_are_imported_when_needed() -> None:
    """Importing the package loads neither the process machinery nor the libraries of single features."""
    code = "import fanout_sync, sys; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["loky", "cloudpickle", "tenacity", "jsonschema", "tqdm", "click", "cattrs"]
    heavy += ["asyncio", "multiprocessing"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def _isort_key(name: str) -> tuple[bool, bool, str]:
    # Constants, then classes, then functions: the order that the linter keeps.
    return (not name.isupper(), not name[0].isupper(), name)
