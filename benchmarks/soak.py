"""Very many steps, one in twenty of which misbehaves: `python -m benchmarks.soak --help`.

What a long run leaves behind shows in what the process holds on the way: descriptors, threads, children, memory.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import astuple, frozen

from fanout_sync import AgentStepSpec, FunctionExecutor, Run, Runner, current_step
from fanout_sync.processes.process_tree import MARK

from . import machine, report

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "reliability.md"
FAULTS_EVERY = 20
ROUNDS = 8
TIMEOUT_S = 0.5
SOAK = "FANOUT_SYNC_SOAK"
BOUNDS = {"thread": 16, "process": 4}

RAISED = ("raise", "raised")
GARBAGE = ("garbage", "failed")  # a FunctionExecutor says so itself
HANG = ("hang", "timed_out")
DEADLY = (("exit", "crashed"), ("kill", "crashed"), ("abort", "crashed"), ("family", "timed_out"))
FAULTS = {"thread": (RAISED, GARBAGE, HANG), "process": (RAISED, GARBAGE, HANG, *DEADLY)}
"""What steps do, and the status that this has to have."""


@frozen
class Sample:
    """What the process holds at one moment."""

    steps: int
    descriptors: int
    threads: int
    children: int
    memory_mib: float


def main() -> int:
    """Run the soak and return the exit status: 0 if nothing was lost and nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000, help="how many on each backend (%(default)s)")
    parser.add_argument("--write", action="store_true", help="put the result into docs/explanation/reliability.md")
    options = parser.parse_args()
    os.environ[SOAK] = str(os.getpid())  # by which its descendants are known
    parts = [report.table(("", ""), machine.facts().items())]
    complaints: list[str] = []
    for backend in ("thread", "process"):
        text, found = soak(backend, options.steps)
        print(text, *found, sep="\n", flush=True)
        parts += [f"## On {'threads' if backend == 'thread' else 'processes'}", text, *found]
        complaints += found
    if options.write:
        report.write_page("\n\n".join(parts), PAGE)
    return 1 if complaints else 0


def soak(backend: Any, steps: int) -> tuple[str, list[str]]:
    """Return the figures as Markdown, and what is wrong with them."""
    executor = FunctionExecutor({"soak": misbehave}, concurrency=BOUNDS[backend])
    runner = Runner(executor, backend=backend, timeout=TIMEOUT_S)
    before, began = look(0), time.monotonic()
    samples, complaints, counts = [], [], Counter[str]()
    with runner:
        for number in range(ROUNDS):
            first = number * steps // ROUNDS
            specs = list(make_specs(backend, first, (number + 1) * steps // ROUNDS))
            run = runner.run(specs)
            complaints += check(specs, run)
            counts.update(record.status for record in run.records)
            del run
            samples.append(look(first + len(specs)))
    elapsed_s = time.monotonic() - began
    after = look(steps)
    table = report.table(
        ("after steps", "descriptors", "threads", "child processes", "resident memory, MiB"),
        ([f"{value:,.0f}" for value in astuple(sample)] for sample in samples),
    )
    told = ", ".join(f"{count:,} {status}" for status, count in counts.most_common())
    complaints += [
        f"- {name}: {getattr(before, name)} before, {getattr(after, name)} after"
        for name in ("descriptors", "threads", "children")
        if getattr(after, name) > getattr(before, name) + (backend == "process" and name == "descriptors") * 2
    ]
    if samples[-1].memory_mib > 1.1 * samples[0].memory_mib + 10:
        complaints.append("- the memory grows")
    left = leftovers()
    if left:
        complaints.append(f"- {len(left)} processes are left over: {left}")
    text = (
        f"{steps:,} steps, at most {BOUNDS[backend]} at once, in {elapsed_s:.0f} s: {told}. Afterwards, and in "
        f"parentheses before: {after.descriptors} descriptors ({before.descriptors}), {after.threads} threads "
        f"({before.threads}), {after.children} child processes ({before.children}); {len(left)} processes that "
        f"steps had started are left over.\n\n{table}"
    )
    return text, complaints


def make_specs(backend: str, first: int, end: int) -> Iterator[AgentStepSpec]:
    """Yield specs; the prompt says what a step does."""
    kinds = FAULTS[backend]
    for number in range(first, end):
        fault = kinds[number // FAULTS_EVERY % len(kinds)][0] if number % FAULTS_EVERY == 0 else ""
        yield AgentStepSpec(f"t{number}", "soak", "Soak", fault)


def misbehave(spec: AgentStepSpec) -> Any:
    """Do what the prompt says, or just answer."""
    if spec.prompt == "raise":
        raise ValueError("as told")
    if spec.prompt == "garbage":
        return object()
    if spec.prompt == "hang":
        current_step().cancelled.wait()
        if threading.current_thread() is threading.main_thread():
            time.sleep(60)
    if spec.prompt == "exit":
        os._exit(3)
    if spec.prompt in ("kill", "abort"):
        os.kill(os.getpid(), signal.SIGKILL if spec.prompt == "kill" else signal.SIGABRT)
    if spec.prompt == "family":
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        subprocess.run(["sh", "-c", "sleep 600 & sleep 600"], check=False)
    return spec.task_id


def check(specs: list[AgentStepSpec], run: Run) -> list[str]:
    """Return what is wrong with the outcomes of a run."""
    expected = {"": "succeeded", **dict(kind for kinds in FAULTS.values() for kind in kinds)}
    complaints = []
    if [spec.task_id for spec in specs] != [outcome.task_id for outcome in run]:
        complaints.append("- outcomes are missing, or out of order")
    for spec, record in zip(specs, run.records, strict=True):
        if record.status != expected[spec.prompt]:
            complaints.append(f"- {spec.task_id} ({spec.prompt or 'quiet'}): {record.status}, {record.error}")
    return complaints


def leftovers() -> list[int]:
    """Return the processes that a worker has started, itself or through others, and that are still there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            if f"{SOAK}={os.getpid()}\0".encode() in environment and f"{MARK}=".encode() in environment:
                found.append(int(folder.name))
        except OSError:  # gone by now, or somebody else's
            continue
    return found


def look(steps: int) -> Sample:
    """Return what this process holds now."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident_kib = int(status.partition("VmRSS:")[2].split()[0])
    return Sample(
        steps,
        sum(1 for _ in Path("/proc/self/fd").iterdir()),
        threading.active_count(),
        len(multiprocessing.active_children()),
        resident_kib / 1024,
    )


if __name__ == "__main__":
    sys.exit(main())
