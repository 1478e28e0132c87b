"""What runs the steps: an executor of the user's, a program, or a preset."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ..errors import OptionError
from .import_target import resolve_target
from .prompts import AGENT

if TYPE_CHECKING:
    from ..executors.command.command import Command

PRESETS = ("claude", "codex", "gemini", "opencode", "copilot")


@frozen
class ExecutorChoice:
    """The options of which one says what runs the steps; `None` for those that were not given.

    Attributes:
        target: Where an executor is.
        command: A program and its arguments, quoted as for a shell.
        preset: The name of a coding agent that is known.
        model: The model that the preset is to use.

    Raises:
        OptionError: None, or more than one, of the first three is given, or `model` without a preset.
    """

    target: str | None = None
    command: str | None = None
    preset: str | None = None
    model: str | None = None

    def __attrs_post_init__(self) -> None:
        options = {"--executor": self.target, "--command": self.command, "--preset": self.preset}
        given = [name for name, value in options.items() if value is not None]
        if not given:
            raise OptionError("nothing to run the steps with: give --executor, --command or --preset")
        if len(given) > 1:
            raise OptionError(f"{' and '.join(given)} cannot be given together: only one of them can run the steps")
        if self.model is not None and self.preset is None:
            raise OptionError("--model needs --preset; of other programs it is an argument in --command")

    def executor(self, agents: Collection[str]) -> Any:
        """Return what runs the steps.

        Args:
            agents: The agents of the steps. A program runs the steps of all of them.

        Raises:
            OptionError: There is no such executor or program, or the command cannot be split.
        """
        if self.target is not None:
            return resolve_target(self.target)
        from ..executors.command.executor import CommandExecutor  # imported lazily: slow, and few need it

        return CommandExecutor(dict.fromkeys(agents or [AGENT], self._program()))

    def _program(self) -> Command:
        from ..executors.command.command import Command  # imported lazily, as above

        if self.preset is not None:
            preset: Command = getattr(Command, self.preset)(model=self.model)
            return preset
        assert self.command is not None
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise OptionError(f"--command cannot be split into words: {error}; got {self.command!r}") from None
        if not words:
            raise OptionError("--command must name a program, and is empty")
        return Command(words)
