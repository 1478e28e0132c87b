"""A row of short programs: what a program costs beside `subprocess.run` in threads."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from fanout_sync import Command, CommandExecutor, Runner

from ..executors import specs_for
from ..measure import time_from_scratch
from ..pools import RunAll
from ..row import OURS, Condition, Contestant, Limit, Row, Sizes

AT_ONCE = 16
PROGRAM = ["cat"]


def short(sizes: Sizes) -> Row:
    """Programs that end at once, many at the same time."""
    prompts = ["hello"] * sizes.commands
    specs, scale = specs_for(prompts), 1e3 / sizes.commands
    left: set[str] = set()

    def ours() -> float:
        before = _resources()
        elapsed_s = time_from_scratch(_with_fanout_sync, specs)
        left.update(_resources() - before)
        return scale * elapsed_s

    return Row(
        f"{sizes.commands:,} short programs, {AT_ONCE} at once",
        "ms each",
        (
            Contestant(OURS, ours),
            Contestant("subprocess.run", lambda: scale * time_from_scratch(_with_subprocess, prompts)),
        ),
        (
            Limit("must", 1.2, ("subprocess.run",)),
            Condition("must", "no descriptor, zombie or temporary file left", lambda: ", ".join(sorted(left))),
        ),
    )


@contextmanager
def _with_fanout_sync() -> Iterator[RunAll]:
    with Runner(CommandExecutor({"answering": Command(PROGRAM)}), max_concurrency=AT_ONCE) as runner:
        yield runner.run


@contextmanager
def _with_subprocess() -> Iterator[RunAll]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield lambda prompts: list(pool.map(_answer, prompts))


def _answer(prompt: str) -> str:
    return subprocess.run(PROGRAM, input=prompt, capture_output=True, text=True, check=True).stdout


def _resources() -> set[str]:
    """Return the descriptors, the children and the temporary files that there are."""
    descriptors = {f"descriptor {path.name}" for path in Path("/proc/self/fd").iterdir()}
    children = {
        f"process {pid}" for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()
    }
    files = {f"file {path}" for path in Path(tempfile.gettempdir()).glob("fanout-sync*")}
    return descriptors | children | files
