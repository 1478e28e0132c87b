"""Try the installed package in a few seconds: backends, guards and the command line. Run directly, not collected."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from fanout_sync import (
    AgentStepSpec,
    FunctionExecutor,
    Retry,
    Runner,
    StepOutcome,
    current_step,
    execute_steps_parallel,
)

STEPS = 20
DIES = 7

AGENTS = """
import os

def shout(spec):
    return spec.prompt.upper()

def die(spec):
    os._exit(3)

agents = {"shout": shout, "die": die}
"""


def make_spec(index: int, agent: str = "shout") -> AgentStepSpec:
    return AgentStepSpec(f"step-{index}", agent, "A smoke test", f"prompt {index}")


def check(outcomes: list[StepOutcome], *, dead: int | None = None) -> None:
    assert [outcome.task_id for outcome in outcomes] == [f"step-{index}" for index in range(STEPS)]
    for index, outcome in enumerate(outcomes):
        if index == dead:
            assert not outcome.success, outcome
            assert "3" in outcome.output, outcome
        else:
            assert outcome.success, outcome
            assert outcome.output == f"PROMPT {index}", outcome


def try_backends() -> None:
    # Defined in __main__, as in users' scripts: processes get it by value.
    executor = FunctionExecutor({"shout": lambda spec: spec.prompt.upper(), "die": lambda spec: os._exit(3)})
    specs = [make_spec(index) for index in range(STEPS)]
    check(execute_steps_parallel(executor, specs))
    specs[DIES] = make_spec(DIES, "die")
    check(execute_steps_parallel(executor, specs, backend="process", max_concurrency=2), dead=DIES)


def try_guards() -> None:
    def flaky(spec: AgentStepSpec) -> str:
        if current_step().attempt == 1:
            raise ConnectionError("busy")
        if spec.prompt == "hang":
            time.sleep(60)
        return spec.prompt

    for backend in ("thread", "process"):
        specs = [make_spec(0, "flaky"), AgentStepSpec("step-1", "flaky", "A smoke test", "hang")]
        executor = FunctionExecutor({"flaky": flaky})
        run = Runner(executor, backend=backend, timeout=1, retry=Retry(2, wait=0)).run(specs)
        assert [record.status for record in run.records] == ["succeeded", "timed_out"], run.summary()
        assert [len(record.attempts) for record in run.records] == [2, 2], run.summary()


def try_command_line(folder: Path) -> None:
    (folder / "agents.py").write_text(AGENTS, encoding="utf-8")
    specs = [make_spec(index, "die" if index == DIES else "shout") for index in range(STEPS)]
    (folder / "steps.jsonl").write_text("".join(spec.to_json() + "\n" for spec in specs), encoding="utf-8")
    command = ["run", "steps.jsonl", "--executor", "agents.py:agents", "--backend", "process", "-j", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "fanout_sync", *command],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    check([StepOutcome.from_json(line) for line in done.stdout.splitlines()], dead=DIES)


if __name__ == "__main__":
    try_backends()
    try_guards()
    with tempfile.TemporaryDirectory() as name:
        try_command_line(Path(name))
    print(f"fanout_sync {metadata.version('fanout_sync')} works on Python {platform.python_version()}")
