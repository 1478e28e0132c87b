"""Helpers for the tests of the command line: a folder in which commands run, and reading their output."""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen

from fanout_sync import AgentStepSpec, StepOutcome

LIMIT_S = 60
SEARCHED = [str(Path(folder).absolute()) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(SEARCHED)}


@frozen
class Folder:
    """A folder with `agents.py`, in which commands run."""

    path: Path = field(converter=Path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def steps(self, *steps: tuple[str, str], name: str = "steps.jsonl") -> str:
        """Write one step for each agent and prompt, with the task ids `"t0"`, `"t1"`, …; return the file's name."""
        specs = [AgentStepSpec(f"t{n}", agent, f"step {n}", prompt) for n, (agent, prompt) in enumerate(steps)]
        (self / name).write_text("".join(f"{spec.to_json()}\n" for spec in specs), encoding="utf-8")
        return name

    def run(self, *options: str, target: str = "agents.py:executor", **how: Any) -> subprocess.CompletedProcess[str]:
        """Run the steps in `steps.jsonl` to the end."""
        return self.call("run", "steps.jsonl", "--executor", target, *options, **how)

    def call(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end."""
        how = {"stdin": subprocess.DEVNULL, **how} if "input" not in how else how
        return subprocess.run(
            command(*arguments),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how},
            cwd=self.path,
            env=ENVIRONMENT,
            encoding="utf-8",
            timeout=LIMIT_S,
            check=False,
        )

    def running(
        self, *options: str, target: str = "agents.py:executor"
    ) -> AbstractContextManager[subprocess.Popen[str]]:
        """Run the steps in `steps.jsonl` during a `with` block; a command that takes too long is killed."""
        return self.started("run", "steps.jsonl", "--executor", target, *options)

    @contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command line during a `with` block; one that takes too long is killed."""
        with subprocess.Popen(
            command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.path,
            env=ENVIRONMENT,
            encoding="utf-8",
        ) as process:
            guard = threading.Timer(LIMIT_S, process.kill)
            guard.start()
            try:
                yield process
            finally:
                guard.cancel()
                process.kill()

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script in which `$FANOUT` is the command line."""
        return subprocess.run(
            ["sh", "-c", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=self.path,
            env={**ENVIRONMENT, "FANOUT": shlex.join(command())},
            encoding="utf-8",
            timeout=LIMIT_S,
            check=False,
        )

    def nothing_ran(self) -> bool:
        return not (self / "marks").exists()


class NamedPipe:
    """A named pipe on which a step waits, or through which a step tells that it has begun."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # Open for reading and writing, so that opening it elsewhere does not block.
        self._descriptor = os.open(path, os.O_RDWR)

    def open(self) -> None:
        os.write(self._descriptor, b"opened by the test\n")

    def wait(self) -> None:
        """Wait until something has been written to the pipe."""
        ready, _, _ = select.select([self._descriptor], [], [], LIMIT_S)
        assert ready, "nothing came through"
        os.read(self._descriptor, 1000)

    def close(self) -> None:
        os.close(self._descriptor)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "fanout_sync", *arguments]


def summary_in(text: str) -> str:
    """Return what a run has written to its standard error, without the line that says how far it came."""
    summary, lines = re.subn(r"^\d+(/\d+)? steps?( \(\d+ %\))?: .*\n", "", text, flags=re.MULTILINE)
    assert lines == 1, text
    return summary


def outcomes_in(text: str) -> list[StepOutcome]:
    return [StepOutcome.from_json(line) for line in text.splitlines()]


def outputs_in(text: str) -> list[str]:
    return [outcome.output for outcome in outcomes_in(text)]
