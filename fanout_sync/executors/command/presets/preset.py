"""What a preset tells `Command` about a program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, Protocol

from ....events.types import Event
from ....records.steps import AgentStepSpec
from ..answer import Answer


class Reader(Protocol):
    """Reads the output of one attempt at a step."""

    def line(self, line: str) -> Iterable[Event]:
        """Take the next line of stdout, as soon as the program has written it.

        Args:
            line: The line without its newline. A line that is longer than `max_output_bytes` is cut.

        Returns:
            The events that it tells of: `text_delta`, `tool_start`, `tool_end`.
        """

    def is_complete(self) -> bool:
        """Return whether the last line has said that the answer is complete and nothing follows.

        The program has `exit_grace` seconds from then on to exit; after them it is killed, and its answer counts.
        """

    def pause(self, rest: str) -> Iterable[Event] | None:
        """Take what has come so far if it is whole, although no newline says so: nothing has come for a while.

        Args:
            rest: The beginning of the next line; empty if there is none.

        Returns:
            The events that it tells of; `None` if nothing was taken, and the line may go on.
        """

    def answer(self, exit_status: int | None, stderr: str) -> Answer:
        """Return what the program has said, after its end.

        Args:
            exit_status: Its exit status; negative if a signal has ended it, and `None` if it was killed because it had
                not exited after its answer.
            stderr: The end of what it has written to stderr.
        """


class Preset(Protocol):
    """A program that `Command` knows. Frozen, and it pickles: there is one object for each `Command`.

    Attributes:
        program: The name of the binary.
        prompt: How the program gets the prompt: on its standard input, or as its last argument.
        needs_schema_file: Whether `arguments` wants the path of a file with the `output_schema` of the spec.
        how_to_get: How to install the program, such as `"npm install -g @openai/codex"`.
    """

    @property
    def program(self) -> str: ...
    @property
    def prompt(self) -> Literal["stdin", "argument"]: ...
    @property
    def needs_schema_file(self) -> bool: ...
    @property
    def how_to_get(self) -> str: ...

    def arguments(self, spec: AgentStepSpec, schema_file: str | None) -> list[str]:
        """Return the arguments for `spec`: all after the binary, but for `extra_args` and a prompt, which follow.

        Args:
            spec: The step.
            schema_file: The path of the file with its `output_schema`; `None` if it has none, or `needs_schema_file` is
                false.
        """

    def environment(self) -> dict[str, str]:
        """Return the environment variables to set, unless `env` of the command sets them."""

    def private_variables(
        self, spec: AgentStepSpec, environment: Mapping[str, str], folder: Callable[[], str]
    ) -> dict[str, str]:
        """Return the variables that give the program a folder of its own; empty if programs that run at once share one.

        It is empty as well where a program with a folder of its own would not find its login.

        Args:
            spec: The step.
            environment: All variables that the program has so far, those of `env` included.
            folder: Returns the path of a folder that no other program uses meanwhile. An earlier program may have used
                it.
        """

    def prompt_of(self, spec: AgentStepSpec) -> str:
        """Return the prompt as the program gets it."""

    def unsupported(self, spec: AgentStepSpec, environment: Mapping[str, str]) -> str | None:
        """Return what `spec` asks for that the program cannot do; `None` if it can do it all.

        Args:
            spec: The step.
            environment: The variables of the caller, with those of the command.
        """

    def reader(self, spec: AgentStepSpec) -> Reader:
        """Return a new reader for one attempt at `spec`."""
