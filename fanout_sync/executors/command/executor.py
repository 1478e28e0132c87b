"""An executor whose agents are programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from ...checks import positive_int
from ...errors import OptionError
from ...events.senders import EventSender
from ...formatting import describe
from ...records.steps import AgentStepSpec, StepOutcome
from ..answers import RefusedStep
from ..executor import DEFAULT_MAX_PARALLEL_TASKS, AgentExecutor
from .command import Command
from .invocation import check_at_hand, refusal_of, unsupported
from .own_programs import OwnPrograms
from .running import run_command

__all__ = ["CommandExecutor"]


class CommandExecutor(AgentExecutor):
    """Runs the program that is registered under the spec's `agent`.

    Each program has a session of its own, without a terminal. It is killed with all that it has started when the
    timeout of its step is over, when the run is given up, as by Ctrl-C, and when this process is killed; on threads as
    well as in worker processes. At the end of a run, what programs have left behind is searched for, and killed.

    A program that ends with another exit status than 0, or without an answer, makes its step fail with a
    `subprocess.CalledProcessError`, which `retry` covers; the message has the end of its stderr. Values of environment
    variables named `*_KEY`, `*_TOKEN` and `*_SECRET` are masked in all that comes from a program.

    Args:
        commands: The commands by agent name.
        concurrency: How many programs may run at once.

    Raises:
        OptionError: An argument has no usable value, or a program is not found; the error says how to get it.
    """

    def __init__(self, commands: Mapping[str, Command], *, concurrency: int = DEFAULT_MAX_PARALLEL_TASKS) -> None:
        if os.name != "posix":
            raise OptionError(f"CommandExecutor is not supported on {sys.platform}")
        if not isinstance(commands, Mapping):
            raise OptionError(f"commands must map agent names to Commands, got {describe(commands)}")
        for name, command in commands.items():
            _check(name, command)
        self._commands = dict(commands)
        self._concurrency = positive_int("concurrency", concurrency)
        self._programs = OwnPrograms()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_programs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._programs = OwnPrograms()

    def concurrency_hint(self) -> int:
        return self._concurrency

    def _unsupported(self, spec: AgentStepSpec) -> str | None:
        command = self._commands.get(spec.agent)
        return None if command is None else unsupported(command, spec)

    def setup(self) -> None:
        self._programs.add_user()

    def teardown(self) -> None:
        self._programs.remove_user()

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        command = self._commands.get(spec.agent)
        if command is None:
            known = ", ".join(sorted(self._commands)) or "none"
            return StepOutcome.failed(
                spec.task_id, spec.agent, f"no agent {spec.agent!r} is registered; known agents: {known}"
            )
        if (reason := refusal_of(command, spec)) is not None:
            return RefusedStep.because(spec, reason)
        return run_command(command, spec, event_tx, self._programs)


def _check(name: Any, command: Any) -> None:
    if not isinstance(name, str):
        raise OptionError(f"the name of an agent must be a str, got {describe(name)}")
    if not isinstance(command, Command):
        way_out = f"; write Command({command!r})" if isinstance(command, list) else ""
        raise OptionError(f"agent {name!r} must be a Command, got {describe(command)}{way_out}")
    check_at_hand(name, command)
