"""Small real programs that tests run as agents."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import pytest

from fanout_sync import AgentStepSpec, Command, CommandExecutor, Run, Runner

BACKENDS = ("thread", "process", "pool of threads", "pool of processes")

each_backend = pytest.mark.parametrize("backend", BACKENDS)
own_backends = pytest.mark.parametrize("backend", ["thread", "process"])


def python(source: str, *arguments: str) -> list[str]:
    """Return the command line of a Python program that starts fast."""
    return [sys.executable, "-I", "-S", "-c", source, *arguments]


def shell(source: str, *arguments: str) -> list[str]:
    """Return the command line of a shell script; its arguments are `$1` and so on."""
    return ["sh", "-c", source, "sh", *arguments]


def spec_for(prompt: str = "hello", task_id: str = "t", **fields: Any) -> AgentStepSpec:
    """Return a spec of the agent `a`."""
    return AgentStepSpec(task_id, "a", "a step", prompt, **fields)


@contextmanager
def backend_named(name: str) -> Iterator[Any]:
    """Yield what a runner takes for a backend."""
    if name == "pool of threads":
        with ThreadPoolExecutor(4) as pool:
            yield pool
    elif name == "pool of processes":
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            yield pool
    else:
        yield name


def run_command(command: Command, *specs: AgentStepSpec, backend: str = "thread", **options: Any) -> Run:
    """Run steps of one command; without specs one step with the prompt `hello`."""
    with backend_named(backend) as place:
        return Runner(CommandExecutor({"a": command}), backend=place, **options).run(list(specs) or [spec_for()])


def one(run: Run) -> tuple[str, str]:
    """Return status and output of the only step."""
    ((outcome,), (record,)) = run, run.records
    return record.status, outcome.output
