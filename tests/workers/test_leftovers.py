"""Nothing is left behind when the caller is killed, when workers are killed at random, and after a run."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from processes import eventually, is_alive, pids_in
from scripts import run_python

from fanout_sync import AgentStepSpec, FanoutInterrupted, FunctionExecutor, Retry, Runner, StepOutcome
from fanout_sync.testing import Ledger, LedgerExecutor, make_specs

SCRIPT = """
import os, subprocess, sys, time
from fanout_sync import AgentStepSpec, FanoutInterrupted, FunctionExecutor, Retry, Runner, StepOutcome

def family(spec):
    mark = f"echo $$ > {spec.prompt}/$$.pid; exec sleep 3600"
    child = subprocess.Popen(["sh", "-c", mark])
    leader = subprocess.Popen(["sh", "-c", mark], start_new_session=True)
    subprocess.run(["setsid", "sh", "-c", f"sh -c '{mark}' & exit"], check=True)
    with open(f"{spec.prompt}/{os.getpid()}.pid", "w") as file:
        print(os.getpid(), file=file)
    HANG

def specs():
    for number in range(3):
        yield AgentStepSpec(f"t{number}", "family", "", sys.argv[1])
    time.sleep(HOLD_S)

executor = FunctionExecutor({"family": family}, concurrency=3)
Runner(executor, backend="process").run(specs())
"""

HANGS = {
    "in Python": "time.sleep(3600)",
    "in C, holding the interpreter": "import ctypes; ctypes.PyDLL(None).sleep(3600)",
}


@pytest.mark.parametrize("hang", HANGS)
@pytest.mark.parametrize("hold_s", [0, 3600], ids=["caller waits", "caller reads its input"])
def test_all_descendants_of_a_killed_caller_are_killed(hang: str, hold_s: int, tmp_path: Path) -> None:
    """After SIGKILL to the caller in the middle of steps, no worker and no process that a step has started is left."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("HANG", HANGS[hang]).replace("HOLD_S", str(hold_s)))
    with subprocess.Popen([sys.executable, "-W", "error", script, tmp_path], stderr=subprocess.PIPE) as caller:
        pids = pids_in(tmp_path, 12)
        caller.kill()
        _, errors = caller.communicate(timeout=HANG_BOUND_S)
    assert eventually(lambda: not any(map(is_alive, pids))), [pid for pid in pids if is_alive(pid)]
    assert errors == b""


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_many_runs_leave_no_thread_descriptor_or_child(backend: Any) -> None:
    """After many runs with failing steps the process has no more threads, descriptors or children than before."""
    executor = FunctionExecutor({"tester": lambda spec: 1 / (int(spec.prompt) % 3)}, concurrency=3)

    def held_after(count: int) -> tuple[int, ...]:
        for _ in range(count):
            runner = Runner(executor, backend=backend, timeout=30, retry=Retry(2, wait=0))
            assert len(runner.run(make_specs(3))) == len(list(runner.stream(make_specs(3)))) == 3
        descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
        return descriptors, threading.active_count(), len(multiprocessing.active_children())

    before = held_after(2)
    assert all(now <= then for now, then in zip(held_after(8), before, strict=True))


def test_processes_that_setup_has_started_are_killed(tmp_path: Path) -> None:
    """When a worker is killed in the middle of `setup`, the processes that `setup` has started are killed as well."""

    class Starting(FunctionExecutor):
        def setup(self) -> None:
            subprocess.Popen(["sh", "-c", f"echo $$ > {tmp_path}/$$.pid; exec sleep 3600"], start_new_session=True)
            threading.Event().wait()

    def interrupted() -> Iterator[AgentStepSpec]:
        yield make_specs(1)[0]
        pids_in(tmp_path, 1)
        raise KeyboardInterrupt

    with pytest.raises(FanoutInterrupted):
        Runner(Starting({}), backend="process").run(interrupted())
    (follower,) = pids_in(tmp_path, 1)
    assert eventually(lambda: not is_alive(follower))


LEAKY = """
import multiprocessing, os, sys, time
from fanout_sync import AgentStepSpec, FanoutInterrupted, FunctionExecutor, Runner

kept = []

def leak(spec):
    kept.append(multiprocessing.get_context("spawn").Lock())
    if spec.prompt == "die":
        os._exit(1)
    if spec.prompt == "hang":
        time.sleep(3600)

specs = [AgentStepSpec(f"t{n}", "leak", "", prompt) for n, prompt in enumerate(["die", "hang", "fine"])]
run = Runner(FunctionExecutor({"leak": leak}), backend="process", timeout=0.5).run(specs)
print([record.status for record in run.records])
"""


def test_semaphores_of_killed_steps_cause_no_warning_at_exit(tmp_path: Path) -> None:
    """The caller prints no warning at exit about semaphores of steps that were killed."""
    script = tmp_path / "script.py"
    script.write_text(LEAKY)
    done = run_python(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['crashed', 'timed_out', 'invalid']\n", "")


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_the_end_of_the_with_block_ends_open_streams(backend: Any, ledger: Ledger) -> None:
    """A stream that is open when the `with` block of its runner ends yields no more outcomes and runs no more steps."""
    with Runner(LedgerExecutor(ledger, concurrency=1), backend=backend) as runner:
        stream = runner.stream(make_specs(50))
        assert next(stream).success
    assert list(stream) == []
    assert len(ledger.counts()) < 50
    assert multiprocessing.active_children() == []


# Random deaths --------------------------------------------------------------------------------------------------------

STEPS, WORKERS, KILLS = 2000, 4, 20


def answer_at_length(spec: AgentStepSpec) -> Any:
    """Answer; every tenth answer is so long that the worker may be killed while it sends it."""
    return StepOutcome.completed(spec, spec.prompt * (200_000 if int(spec.prompt) % 10 == 0 else 1))


@pytest.mark.parametrize("streams", [False, True])
def test_random_deaths_cost_only_the_steps_that_were_running(streams: bool, ledger: Ledger) -> None:
    """Each of 2 000 steps has one outcome though workers are killed; steps that did not crash ran exactly once."""
    chance = random.Random(20)
    is_over = threading.Event()
    killed: list[int] = []

    def kill_at_random() -> None:
        for begun in sorted(chance.sample(range(50, STEPS - 100), KILLS)):
            while sum(ledger.counts().values()) < begun and not is_over.wait(chance.uniform(0, 0.005)):
                continue
            children = [child.pid for child in multiprocessing.active_children() if child.name == "fanout-worker"]
            if children and (pid := chance.choice(children)) is not None:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill_at_random)
    specs = make_specs(STEPS)
    misdeeds = dict.fromkeys((spec.task_id for spec in specs), answer_at_length)
    runner = Runner(LedgerExecutor(ledger, misdeeds, concurrency=WORKERS), backend="process")
    killer.start()
    try:
        outcomes = list(runner.stream(specs) if streams else runner.run(specs))
    finally:
        is_over.set()
        killer.join()
    assert len(killed) == KILLS
    assert [outcome.task_id for outcome in outcomes] == [spec.task_id for spec in specs]
    counts = ledger.counts()
    for outcome in outcomes:
        if outcome.success:
            assert counts[outcome.task_id] == 1
        else:
            assert "was killed by SIGKILL" in outcome.output
            assert counts[outcome.task_id] <= 1
    assert len([outcome for outcome in outcomes if not outcome.success]) <= KILLS
