"""What every host program runs: hosting.py puts this text at the beginning of the host's own main or app module."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from pathlib import Path
from typing import Any, Literal

from fanout_sync import AgentStepSpec, FanoutError, FunctionExecutor, Runner, StepOutcome, current_step
from fanout_sync.testing import Ledger

Backend = Literal["thread", "process"]

FOLDER = Path(os.environ["FANOUT_SYNC_HOST_FOLDER"])
MOST_LOADS = 24

_loads = Ledger(FOLDER / "loads")
_loads.note(str(os.getpid()))
if _loads.counts().total() > MOST_LOADS:
    raise SystemExit("the program loads itself again and again")


def answer(spec: AgentStepSpec) -> str:
    return f"answer {spec.prompt}"


def refuse(spec: AgentStepSpec) -> str:
    raise ValueError(f"refused {spec.prompt}")


def overrun(spec: AgentStepSpec) -> str:
    current_step().cancelled.wait(60)
    return "told to stop"


def die(spec: AgentStepSpec) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(spec: AgentStepSpec) -> None:
    time.sleep(600)


class HostAgents(FunctionExecutor):
    """The agents above; notes each step that begins."""

    def __init__(self, name: str) -> None:
        self.ledger = Ledger(FOLDER / f"{name}.begun")
        super().__init__({"answer": answer, "refuse": refuse, "overrun": overrun, "die": die, "sleep": sleep})

    def timeout_for(self, spec: AgentStepSpec) -> float | None:
        return 1.0 if spec.agent == "overrun" else None

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        self.ledger.note(spec.task_id)
        return super().execute_step(spec, event_tx)


def steps_for(backend: Backend) -> list[AgentStepSpec]:
    agents = ["answer", "refuse", "answer", "overrun", "answer"]
    if backend == "process":
        agents[3:3] = ["die"]
    return [AgentStepSpec(f"t{n}", agent, f"step {n}", str(n)) for n, agent in enumerate(agents)]


def fan_out(backend: Backend, name: str = "report") -> dict[str, Any]:
    """Run the steps; write what came of them to a file of this name, and return it."""
    report = _run(backend, name)
    unfinished = FOLDER / f"{name}.unfinished"
    unfinished.write_text(json.dumps(report))
    unfinished.rename(FOLDER / f"{name}.json")
    return report


def _run(backend: Backend, name: str) -> dict[str, Any]:
    try:
        run = Runner(HostAgents(name), backend=backend, max_concurrency=2).run(steps_for(backend))
    except FanoutError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    except BaseException:  # the test shows it
        return {"error": traceback.format_exc()}
    return {"steps": [[o.task_id, r.status, o.output] for o, r in zip(run, run.records, strict=True)]}


def fan_out_for_ever(backend: Backend, name: str = "endless") -> None:
    """Run two steps that outlive the patience of any host."""
    specs = [AgentStepSpec(f"t{n}", "sleep", f"step {n}", str(n)) for n in range(2)]
    Runner(HostAgents(name), backend=backend).run(specs)
