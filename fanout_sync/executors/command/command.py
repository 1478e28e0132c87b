"""`Command`: how a program is run as an agent."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import Attribute, field, frozen

from ...checks import not_negative_seconds, one_of, positive_int, positive_seconds, refuse_unknown
from ...errors import OptionError
from ...formatting import describe
from .output_readers import path_steps
from .presets.preset import Preset

__all__ = ["Command"]

Output = Literal["text", "json"] | Callable[[str], Any]
Argument = str | os.PathLike[str]


def _arguments(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)):
        raise OptionError(
            f"{name} of Command must be a list of str, got {describe(value)}: no shell splits it; write each argument "
            "as an item, or use shlex.split(…)"
        )
    try:
        items = [os.fspath(item) for item in value]
    except TypeError:
        raise OptionError(f"{name} of Command must be a list of str, got {describe(value)}") from None
    for item in items:
        if not isinstance(item, str):
            raise OptionError(f"{name} of Command must be a list of str, got the item {describe(item)}")
        if "\0" in item:
            raise OptionError(f"{name} of Command must have no NUL characters, got {describe(item)}")
    return tuple(items)


def _argv(value: Iterable[Argument]) -> tuple[str, ...]:
    items = _arguments("argv", value)
    if not items or not items[0]:
        raise OptionError(f"argv of Command must begin with the name of a program, got {describe(value)}")
    return items


def _folder(value: Argument | None) -> str | None:
    if value is None:
        return None
    try:
        path: Any = os.fspath(value)
    except TypeError:
        path = None
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(f"cwd of Command must be the path of a folder, got {describe(value)}")
    return path


def _variables(value: Mapping[str, str | None] | None) -> tuple[tuple[str, str | None], ...]:
    given: Any = value
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise OptionError(f"env of Command must map names of variables to str or None, got {describe(given)}")
    for name, text in given.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise OptionError(f"env of Command must have names of variables as keys, got {describe(name)}")
        if text is not None and (not isinstance(text, str) or "\0" in text):
            got = type(text).__name__  # and not the value, which may be a secret
            raise OptionError(f"env of Command must map {name!r} to a str without NUL characters or None, got a {got}")
    return tuple(given.items())


def _shown_variables(variables: tuple[tuple[str, str | None], ...]) -> str:
    return "{" + ", ".join(f"{name!r}: …" for name, _ in variables) + "}"  # values may be secrets


def _an_output(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if inspect.iscoroutinefunction(value):
        raise OptionError(f"output of Command must be a plain function, got the async one {describe(value)}")
    if not callable(value) or isinstance(value, type):
        if isinstance(value, str):
            one_of("output of Command (if it is no function)", value, ("text", "json"))
            return
        raise OptionError(f"output of Command must be 'text', 'json' or a function of the text, got {describe(value)}")


def _a_prompt(_: Any, attribute: Attribute[Any], value: Any) -> None:
    one_of("prompt of Command", value, ("stdin", "argument"))


def _extra_args(value: Iterable[Argument]) -> tuple[str, ...]:
    return _arguments("extra_args", value)


def _most_bytes(value: int) -> int:
    return positive_int("max_output_bytes of Command", value)


def _idle_timeout(value: float | None) -> float | None:
    return None if value is None else positive_seconds("idle_timeout of Command", value)


def _exit_grace(value: float) -> float:
    return not_negative_seconds("exit_grace of Command", value)


def _start_interval(value: float) -> float:
    return not_negative_seconds("start_interval of Command", value)


@frozen
class Command:
    """A program that is an agent: how it is called, and where its answer is.

    In each argument these placeholders are filled in: `{task_id}`, `{agent}`, `{description}`, `{prompt}`,
    `{max_steps}`, `{parent_session_id}`, and `{schema_file}`, the path of a file with the `output_schema`. Any other
    brace stays. There is no shell: a value is one argument or part of one, whatever it contains. A step that has no
    value for a placeholder is `invalid`, and the program is not started.

    Args:
        argv: The program and its arguments. A program without a slash is searched for on the `PATH`.
        prompt: Whether the program gets the prompt on its standard input, as UTF-8, or as its last argument. If
            `{prompt}` stands in an argument, it gets it only there. The standard input ends after the prompt.
        cwd: The folder that the program starts in; by default the current one.
        env: Environment variables that the program has besides those of this process; `None` as a value removes one.
        output: How stdout becomes the answer: as `"text"`, without newlines at its end; as `"json"`; or by a function
            of the text, which returns what an agent of `FunctionExecutor` may return. Of JSON lines the last one
            counts, or the last one that has the `answer`.
        answer: Where the answer is in the JSON, such as `"result.text"` or `"choices[0].message"`; the whole by
            default. A string becomes the `output` of the outcome, anything else is `structured`.
        extra_args: More arguments, after those of `argv` and before the prompt.
        max_output_bytes: How much of stdout is kept. If there is more, the middle is left out, with a mark.
        idle_timeout: The program is killed, and the step fails, if it has written nothing for so many seconds.
        exit_grace: Seconds that the program, or what it has started, may go on after its answer; then that is killed,
            and the answer counts. Text is complete when the program exits or closes stdout; JSON also when nothing
            follows it for so long: one whole document, or lines of which one has the `answer`.
        start_interval: The least number of seconds between two starts of this command in one process.

    Raises:
        OptionError: An argument has no usable value; the error names it.
    """

    argv: tuple[str, ...] = field(converter=_argv)
    prompt: Literal["stdin", "argument"] = field(default="stdin", kw_only=True, validator=_a_prompt)
    cwd: str | None = field(default=None, kw_only=True, converter=_folder)
    env: tuple[tuple[str, str | None], ...] = field(
        default=None, kw_only=True, converter=_variables, repr=_shown_variables
    )
    output: Output = field(default="text", kw_only=True, validator=_an_output, hash=False)
    answer: str | None = field(default=None, kw_only=True)
    extra_args: tuple[str, ...] = field(default=(), kw_only=True, converter=_extra_args)
    max_output_bytes: int = field(default=10_000_000, kw_only=True, converter=_most_bytes)
    idle_timeout: float | None = field(default=None, kw_only=True, converter=_idle_timeout)
    exit_grace: float = field(default=5.0, kw_only=True, converter=_exit_grace)
    start_interval: float = field(default=0.0, kw_only=True, converter=_start_interval)
    _preset: Preset | None = field(default=None, kw_only=True)

    @answer.validator
    def _check_answer(self, attribute: Attribute[Any], value: Any) -> None:
        if value is None:
            return
        if self.output != "json":
            raise OptionError(f"answer of Command is a place in JSON: it needs output='json', got {self.output!r}")
        if not isinstance(value, str) or not path_steps(value):
            raise OptionError(f"answer of Command must be a path such as 'result.text', got {describe(value)}")

    @classmethod
    def claude(cls, model: str | None = None, *, extra_args: Iterable[Argument] = (), **options: Any) -> Command:
        """Return the command that runs Claude Code.

        It is `claude -p` with JSON lines. `max_steps` is `--max-turns`, and `output_schema` is `--json-schema`. Own
        retries are off. If the environment has the login, such as `ANTHROPIC_API_KEY`, each of the programs that run
        at once has a configuration folder of its own, with links to your settings; a login by `/login` is shared.

        Args:
            model: The model; by default the one that the program's settings name.
            extra_args: More arguments of the program.
            options: `cwd`, `env`, `max_output_bytes`, `idle_timeout`, `exit_grace` and `start_interval` of `Command`.
        """
        return cls._of("claude", model, extra_args, options)

    @classmethod
    def codex(cls, model: str | None = None, *, extra_args: Iterable[Argument] = (), **options: Any) -> Command:
        """Return the command that runs Codex.

        It is `codex exec` with JSON lines. `output_schema` is `--output-schema`; `max_steps` is refused. It saves no
        session, and reads only, unless `extra_args` has `-s workspace-write`. Own retries can only be set in its
        `config.toml`.

        Args:
            model: The model; by default the one that the program's settings name.
            extra_args: More arguments of the program.
            options: `cwd`, `env`, `max_output_bytes`, `idle_timeout`, `exit_grace` and `start_interval` of `Command`.
        """
        return cls._of("codex", model, extra_args, options)

    @classmethod
    def gemini(cls, model: str | None = None, *, extra_args: Iterable[Argument] = (), **options: Any) -> Command:
        """Return the command that runs Gemini CLI.

        It is `gemini` with JSON lines. Each of the programs that run at once has a home of its own, with links to
        yours, the login included, in whose settings own retries are off and `max_steps` is the cap on turns. An
        `output_schema` is put below the prompt.

        Args:
            model: The model; by default the one that the program's settings name.
            extra_args: More arguments of the program.
            options: `cwd`, `env`, `max_output_bytes`, `idle_timeout`, `exit_grace` and `start_interval` of `Command`.
        """
        return cls._of("gemini", model, extra_args, options)

    @classmethod
    def opencode(cls, model: str | None = None, *, extra_args: Iterable[Argument] = (), **options: Any) -> Command:
        """Return the command that runs OpenCode.

        It is `opencode run` with JSON lines. Each of the programs that run at once has a database of its own.
        `max_steps` is refused; an `output_schema` is put below the prompt. Own retries cannot be switched off.

        Args:
            model: The model; by default the one that the program's settings name.
            extra_args: More arguments of the program.
            options: `cwd`, `env`, `max_output_bytes`, `idle_timeout`, `exit_grace` and `start_interval` of `Command`.
        """
        return cls._of("opencode", model, extra_args, options)

    @classmethod
    def copilot(cls, model: str | None = None, *, extra_args: Iterable[Argument] = (), **options: Any) -> Command:
        """Return the command that runs GitHub Copilot CLI.

        It is `copilot` with JSON lines and with all tools allowed, because it would ask a person otherwise.
        `max_steps` is refused; an `output_schema` is put below the prompt. It is ended when it goes on retrying a
        refused request for `exit_grace` seconds.

        Args:
            model: The model; by default the one that the program's settings name.
            extra_args: More arguments of the program.
            options: `cwd`, `env`, `max_output_bytes`, `idle_timeout`, `exit_grace` and `start_interval` of `Command`.
        """
        return cls._of("copilot", model, extra_args, options)

    @classmethod
    def _of(cls, name: str, model: str | None, extra_args: Iterable[Argument], options: Mapping[str, Any]) -> Command:
        refuse_unknown(f"Command.{name}()", options, _PRESET_OPTIONS)
        given: Any = model
        if given is not None and (not isinstance(given, str) or not given):
            raise OptionError(f"model of Command.{name}() must be a str, got {describe(given)}")
        # Imported lazily: most programs use one preset, or none.
        module = importlib.import_module(f".presets.{name}", __package__)
        preset: Preset = getattr(module, f"{name.capitalize()}Preset")(model=model)
        return cls([preset.program], prompt=preset.prompt, extra_args=extra_args, preset=preset, **options)

    @property
    def name(self) -> str:
        """The name of the program, without its folder."""
        return Path(self.argv[0]).name


_PRESET_OPTIONS = ("cwd", "env", "max_output_bytes", "idle_timeout", "exit_grace", "start_interval")
