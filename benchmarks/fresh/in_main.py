"""Times no-op steps whose code is in this very script, or imported from it: `in_main.py POOL main|imported COUNT`."""

from __future__ import annotations

import importlib
import json
import sys
from time import perf_counter, sleep
from typing import Any

from attrs import frozen

from benchmarks.executors import specs_for
from fanout_sync import AgentExecutor, AgentStepSpec, EventSender, Runner, StepOutcome

WORKERS = 2
WARM_UP = ["0.25"] * 4


@frozen
class Greeting:
    """A class of the script's own, as any script has."""

    text: str


def greet(prompt: str) -> str:
    """Answer with the prompt; if it is a number, after so many seconds."""
    if prompt[0].isdigit():
        sleep(float(prompt))
    return Greeting(prompt).text


class Greeter(AgentExecutor):
    """The same, of a spec."""

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        return StepOutcome.completed(spec, greet(spec.prompt))


def time_fanout_sync(code: Any, prompts: list[str]) -> float:
    """Return the seconds that `Runner.run` takes with the executor of `code`."""
    specs = specs_for(prompts)
    with Runner(code.Greeter(), backend="process", max_concurrency=WORKERS) as runner:
        runner.run(specs_for(WARM_UP))
        runner.run(specs[: len(specs) // 10])
        began = perf_counter()
        run = runner.run(specs)
        elapsed_s = perf_counter() - began
    assert [outcome.output for outcome in run] == prompts
    return elapsed_s


def time_loky(code: Any, prompts: list[str]) -> float:
    """Return the seconds that loky takes with the function of `code`."""
    from loky import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(code.greet, WARM_UP))
        list(pool.map(code.greet, prompts[: len(prompts) // 10]))
        began = perf_counter()
        outputs = list(pool.map(code.greet, prompts))
        elapsed_s = perf_counter() - began
    assert outputs == prompts
    return elapsed_s


def main(pool: str, place: str, count: str) -> None:
    """Time one pool with code from one place."""
    code = importlib.import_module("__main__" if place == "main" else "benchmarks.fresh.in_main")
    time_pool = {"fanout_sync": time_fanout_sync, "loky": time_loky}[pool]
    print(json.dumps({"s": time_pool(code, ["hello"] * int(count))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
