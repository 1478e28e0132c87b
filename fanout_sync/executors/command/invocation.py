"""How a command is called for a step: its arguments, its environment and its input."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from attrs import frozen

from ...errors import OptionError
from ...records.steps import AgentStepSpec
from .command import Command
from .placeholders import MissingValue, filled, placeholders_in
from .private_folders import PrivateFolders

LONGEST_ARGUMENT = 131_071
"""Bytes of one argument that Linux takes (`MAX_ARG_STRLEN`, without the NUL at its end)."""

_NO_FILE = "…"


class Unsuitable(Exception):
    """A step that the command cannot run; the message says why."""


@frozen
class Invocation:
    """One call of a program.

    Attributes:
        arguments: The program and its arguments.
        stdin: What it reads from its standard input.
    """

    arguments: list[str]
    stdin: bytes


def invocation_of(command: Command, spec: AgentStepSpec, schema_file: str | None) -> Invocation:
    """Return how `command` is called for `spec`.

    Args:
        command: The command.
        spec: The step.
        schema_file: The path of the file with its `output_schema`; `None` if it has none.

    Raises:
        Unsuitable: The step has no value for a placeholder, or has one that cannot be handed over.
    """
    preset = command._preset
    try:
        arguments = [filled(argument, spec, schema_file) for argument in command.argv]
        if preset is not None:
            arguments += preset.arguments(spec, schema_file if preset.needs_schema_file else None)
        arguments += [filled(argument, spec, schema_file) for argument in command.extra_args]
    except MissingValue as missing:
        raise Unsuitable(str(missing)) from None
    prompt = spec.prompt if preset is None else preset.prompt_of(spec)
    has_prompt = any("prompt" in placeholders_in(argument) for argument in (*command.argv, *command.extra_args))
    if command.prompt == "argument" and not has_prompt:
        arguments.append(prompt)
    for argument in arguments:
        _check(argument)
    return Invocation(arguments, b"" if has_prompt or command.prompt == "argument" else _encoded(prompt))


def unsupported(command: Command, spec: AgentStepSpec) -> str | None:
    """Return what `spec` asks for that the program of a preset cannot do; `None` if it can do it all."""
    if command._preset is None:
        return None
    return command._preset.unsupported(spec, changed(os.environ, dict(command.env)))


def refusal_of(command: Command, spec: AgentStepSpec) -> str | None:
    """Return why `command` cannot run `spec`; `None` if it can."""
    if (reason := unsupported(command, spec)) is not None:
        return reason
    try:
        invocation_of(command, spec, None if spec.output_schema is None else _NO_FILE)
    except Unsuitable as refused:
        return str(refused)
    return None


def _check(argument: str) -> None:
    if "\0" in argument:
        raise Unsuitable("an argument of a program cannot have a NUL character, and a value of this step has one")
    try:
        length = len(os.fsencode(argument))
    except UnicodeEncodeError:
        raise Unsuitable("a value of this step has a lone surrogate, which an argument cannot have") from None
    if length > LONGEST_ARGUMENT:
        raise Unsuitable(
            f"an argument has {length} bytes, and the system takes {LONGEST_ARGUMENT} at most: use prompt='stdin', if "
            "the program reads its prompt from its standard input"
        )


def _encoded(prompt: str) -> bytes:
    try:
        return prompt.encode()
    except UnicodeEncodeError:
        raise Unsuitable("the prompt has a lone surrogate, which UTF-8 cannot carry") from None


@contextlib.contextmanager
def schema_file(command: Command, spec: AgentStepSpec, make_folder: Callable[[], str]) -> Iterator[str | None]:
    """Yield the path of a file with the `output_schema` of the step, if the command wants one; it is removed then.

    Args:
        command: The command.
        spec: The step.
        make_folder: Returns the path of the folder that it is in.

    Raises:
        OSError: It cannot be written.
    """
    preset = command._preset
    wants_it = (preset is not None and preset.needs_schema_file) or any(
        "schema_file" in placeholders_in(argument) for argument in (*command.argv, *command.extra_args)
    )
    if spec.output_schema is None or not wants_it:
        yield None
        return
    descriptor, path = tempfile.mkstemp(prefix="schema-", suffix=".json", dir=make_folder())
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(spec.output_schema, file)
        yield path
    finally:
        Path(path).unlink(missing_ok=True)  # the program may have removed it


@contextlib.contextmanager
def environment_of(command: Command, spec: AgentStepSpec, folders: PrivateFolders) -> Iterator[dict[str, str]]:
    """Yield all environment variables of a program for `spec`.

    Raises:
        OSError: Its private folder cannot be made.
    """
    environment, preset = dict(os.environ), command._preset
    own = dict(command.env)
    with contextlib.ExitStack() as stack:
        if preset is not None:
            environment.update(preset.environment())
            so_far = changed(environment, own)
            environment.update(preset.private_variables(spec, so_far, lambda: stack.enter_context(folders.one())))
        yield changed(environment, own)


def changed(environment: Mapping[str, str], own: Mapping[str, str | None]) -> dict[str, str]:
    """Return an environment with other values; variables whose value is `None` are left out."""
    both = {**environment, **own}
    return {name: value for name, value in both.items() if value is not None}


def check_at_hand(agent: str, command: Command) -> None:
    """Refuse a command whose program or folder is not there.

    Raises:
        OptionError: One is not; the error says how to get it.
    """
    if command.cwd is not None and not Path(command.cwd).is_dir():
        raise OptionError(f"agent {agent!r}: cwd of Command must be a folder that exists, got {command.cwd!r}")
    program = command.argv[0]
    if placeholders_in(program) or program_path(command, dict(os.environ)) is not None:
        return
    raise OptionError(f"agent {agent!r}: {not_found(command, program)}")


def program_path(command: Command, environment: Mapping[str, str]) -> str | None:
    """Return the path of the program, as the system will find it; `None` if it will not."""
    path = changed(environment, dict(command.env)).get("PATH", os.defpath)
    program = command.argv[0]
    if os.sep in program and command.cwd is not None:
        program = str(Path(command.cwd, program))  # it is searched for after the folder was changed
    return shutil.which(program, path=path)


def not_found(command: Command, program: str) -> str:
    """Return the message for a program that is not there."""
    how = "give its path, or put its folder on the PATH"
    if command._preset is not None:
        how = f"install it ({command._preset.how_to_get}), or put its folder on the PATH"
    where = "is no program" if os.sep in program else "was not found on the PATH"
    return f"{program!r} {where}: {how}"


def why_not_started(error: OSError, command: Command, program: str) -> str:
    """Return the message for a program that the system did not start."""
    if error.errno == errno.E2BIG:
        return (
            "the arguments and environment variables together are more than the system takes: use prompt='stdin', if "
            "the program reads its prompt from its standard input"
        )
    if isinstance(error, FileNotFoundError):
        if command.cwd is not None and not Path(command.cwd).is_dir():
            return f"the folder {command.cwd!r}, cwd of the command, does not exist any more"
        return not_found(command, program)
    return f"{program!r} cannot be started: {error.strerror or error}"
