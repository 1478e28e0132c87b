"""The public names of the package, and which libraries their import loads."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest

import fanout_sync

ALL: list[str] = vars(fanout_sync)["__all__"]  # hidden from type checkers, which read the imports

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
    "schema_of",
    "write_outcomes",
}


def test_all_has_every_public_name() -> None:
    """`__all__` has exactly the public names of the package."""
    assert ALL == dir(fanout_sync) == sorted(set(ALL))
    for name in ALL:
        assert getattr(fanout_sync, name) is not None
    with pytest.raises(AttributeError, match="'fanout_sync' has no attribute 'Runer'"):
        attrgetter("Runer")(fanout_sync)


def test_the_all_of_each_module_matches_the_package() -> None:
    """The `__all__` of each module, which type checkers read, has the names that the package imports from there."""
    assert _modules_for_the_type_checker() == set(fanout_sync._NAMES_BY_MODULE)
    for module, names in fanout_sync._NAMES_BY_MODULE.items():
        offered = importlib.import_module(f"fanout_sync.{module}").__all__
        assert sorted(offered) == sorted(names.split()), module


def _modules_for_the_type_checker() -> set[str]:
    tree = ast.parse(Path(fanout_sync.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level and node.module]
    return {str(node.module) for node in imports if [alias.name for alias in node.names] == ["*"]}


def test_the_contract_is_exported() -> None:
    """Every name of the public contract can be imported from the package."""
    assert set(ALL) >= CONTRACT


def test_heavy_libraries_are_imported_when_needed() -> None:
    """Importing all names loads neither multiprocessing and loky nor the libraries of single features."""
    code = "import sys; from fanout_sync import *; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["loky", "cloudpickle", "tenacity", "jsonschema", "referencing", "rpds", "tqdm", "click", "cattrs"]
    heavy += ["asyncio", "multiprocessing"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
