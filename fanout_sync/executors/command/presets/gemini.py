"""The preset of Gemini CLI: `gemini`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from attrs import frozen

from ....events.types import Event
from ....records.steps import AgentStepSpec
from ..answer import Answer, Failure
from .failures import Remedies
from .json_lines import (
    Fields,
    JsonLineReader,
    count,
    fields_of,
    last_object_with,
    message_in,
    shown,
    status_of,
    text,
)
from .private_files import link_files
from .schemas import prompt_with_schema
from .turn_caps import at_least_one_step

HOME = "GEMINI_CLI_HOME"

STATE = {"settings.json", "tmp", "history", "projects.json"}
"""What a program does not share with others; `settings.json` is written anew."""

TURN_LIMIT_STATUS, LOGIN_STATUS = 53, 41
"""Exit statuses of Gemini CLI."""

_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)

REMEDIES = Remedies(
    "gemini",
    key="check GEMINI_API_KEY, or log in with `gemini`",
    model="check model= of Command.gemini(), and that your account may use it",
    permission="check what the key or account may use, or allow the tools, as by "
    "Command.gemini(extra_args=['--approval-mode', 'auto_edit'])",
)


@frozen
class GeminiPreset:
    """Gemini CLI, called as `gemini -o stream-json --skip-trust`, with the prompt on standard input.

    Own retries and the cap on turns can only be set in its `settings.json`. So each of the programs that run at once
    gets a home of its own (`GEMINI_CLI_HOME`), in which `.gemini` has a `settings.json` with yours and these, and links
    to all else of yours, the login included, except sessions. It keeps to yours if you set that variable, or if your
    `settings.json` cannot be read; `max_steps` is then refused.

    It has no option for a schema, which is put below the prompt instead. It tells no cost.

    Attributes:
        model: The model; `None` for the one that the program's settings name.
    """

    model: str | None = None
    program: ClassVar[str] = "gemini"
    prompt: ClassVar[Literal["stdin", "argument"]] = "stdin"
    needs_schema_file: ClassVar[bool] = False
    how_to_get: ClassVar[str] = "npm install -g @google/gemini-cli"

    def arguments(self, spec: AgentStepSpec, schema_file: str | None) -> list[str]:
        arguments = ["-o", "stream-json", "--skip-trust"]
        return arguments if self.model is None else [*arguments, "-m", self.model]

    def environment(self) -> dict[str, str]:
        return {"GEMINI_TELEMETRY_ENABLED": "false"}

    def private_variables(
        self, spec: AgentStepSpec, environment: Mapping[str, str], folder: Callable[[], str]
    ) -> dict[str, str]:
        home = environment.get("HOME")
        settings = None if home is None or HOME in environment else _settings(Path(home, ".gemini"))
        if home is None or settings is None:
            return {}
        path = Path(folder())
        own = path / ".gemini"
        own.mkdir(exist_ok=True)
        theirs = Path(home, ".gemini")
        names = [entry.name for entry in theirs.iterdir()] if theirs.is_dir() else []
        link_files(theirs, own, [name for name in names if name not in STATE])
        link_files(Path(home), path, [".env"])
        (own / "settings.json").write_text(json.dumps(_with_limits(settings, spec)), encoding="utf-8")
        return {HOME: str(path)}

    def prompt_of(self, spec: AgentStepSpec) -> str:
        return prompt_with_schema(spec)

    def unsupported(self, spec: AgentStepSpec, environment: Mapping[str, str]) -> str | None:
        home = environment.get("HOME")
        if spec.max_steps and (HOME in environment or home is None or _settings(Path(home, ".gemini")) is None):
            return (
                f"gemini has its cap on turns in its settings.json, which cannot be set (max_steps={spec.max_steps}): "
                f"unset {HOME}, and see that the file is a JSON object"
            )
        return at_least_one_step("gemini", spec)

    def reader(self, spec: AgentStepSpec) -> GeminiReader:
        return GeminiReader(spec, REMEDIES)


def _settings(folder: Path) -> dict[str, Any] | None:
    """Return the user's settings; empty if there are none, and `None` if they cannot be read."""
    try:
        written = (folder / "settings.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None
    try:
        # The program takes comments in it.
        settings = json.loads(_COMMENT.sub(lambda found: found[0] if found[0].startswith('"') else " ", written))
    except (ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def _with_limits(settings: dict[str, Any], spec: AgentStepSpec) -> dict[str, Any]:
    """Return the settings with own retries and updates off, and with the cap of a step."""
    general = {"enableAutoUpdate": False, "maxAttempts": 1, "retryFetchErrors": False}
    limited = {**settings, "general": {**fields_of(settings.get("general")), **general}}
    if spec.max_steps is not None:
        limited["model"] = {**fields_of(settings.get("model")), "maxSessionTurns": spec.max_steps}
    return limited


class GeminiReader(JsonLineReader):
    """Reads the JSON lines of Gemini CLI, or the one object of `-o json`, whose errors come on stderr."""

    _result: Fields | None = None
    _whole: Fields | None = None
    _last_error = ""

    def __init__(self, spec: AgentStepSpec, remedies: Remedies) -> None:
        super().__init__(spec, remedies)
        self._texts: list[str] = []

    def take(self, fields: Fields) -> Iterable[Event]:
        self.session_id = text(fields.get("session_id")) or self.session_id
        match fields.get("type"):
            case "message" if fields.get("role") == "assistant":
                self._texts.append(text(fields.get("content")))
                yield from self.text_delta(fields.get("content"))
            case "tool_use":
                self._texts = []  # the answer is what comes after the last tool
                yield from self.tool_start(fields.get("tool_id"), fields.get("tool_name"))
            case "tool_result":
                output = fields.get("error") if fields.get("output") is None else fields.get("output")
                yield from self.tool_end(fields.get("tool_id"), shown(output))
            case "error":
                self._last_error = text(fields.get("message")) or self._last_error
            case "result":
                self._result, self._is_complete = fields, True
            case None if "response" in fields or "error" in fields:
                self._whole, self._is_complete = fields, True

    def conclude(self, exit_status: int | None, stderr: str) -> Answer:
        whole = self._whole or (last_object_with("error", stderr) if exit_status else None) or {}
        self.session_id = self.session_id or text(whole.get("session_id")) or None
        said = "".join(self._texts) or text(whole.get("response"))
        failure = self._failure(said, whole, exit_status, stderr)
        prompt_tokens, completion_tokens = _usage(fields_of((self._result or whole).get("stats")))
        return Answer(
            text=said if failure is None else "",
            session_id=self.session_id,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            failure=failure,
        )

    def _failure(self, said: str, whole: Fields, exit_status: int | None, stderr: str) -> Failure | None:
        result = self._result or {}
        error = fields_of(result.get("error")) or fields_of(whole.get("error"))
        is_over = result.get("status") == "success" or (self._result is None and "response" in whole and not error)
        if is_over and not exit_status and said.strip():
            return None
        message = text(error.get("message")) or self._last_error
        if exit_status == TURN_LIMIT_STATUS or text(error.get("type")) == "FatalTurnLimitedError":
            return self.remedies.failure(message, kind="cap")
        if exit_status == LOGIN_STATUS or text(error.get("type")) == "FatalAuthenticationError":
            return self.remedies.failure(message or "it has no login", kind="key")
        if not message:
            if is_over and not exit_status:
                return self.remedies.failure(f"its answer is empty{self.strange_lines(', and ')}", kind="program")
            return self.unfinished(exit_status, stderr)
        told, status = message_in(message)
        return self.remedies.failure(told, status_of(error.get("code")) or status or _status_in(exit_status))


def _status_in(exit_status: int | None) -> int | None:
    """Return the status of the server: Gemini CLI exits with it, of which the system keeps the last eight bits."""
    return status_of(256 + exit_status) if exit_status is not None and 144 <= exit_status <= 255 else None


def _usage(stats: Fields) -> tuple[int, int]:
    models = [fields_of(fields_of(model).get("tokens")) for model in fields_of(stats.get("models")).values()]
    if any(models):
        prompt_tokens = sum(count(tokens.get("prompt")) for tokens in models)
        total = sum(count(tokens.get("total")) for tokens in models)
        completion_tokens = sum(count(tokens.get("candidates")) for tokens in models)
    else:
        prompt_tokens, total = count(stats.get("input_tokens")), count(stats.get("total_tokens"))
        completion_tokens = count(stats.get("output_tokens"))
    return prompt_tokens, max(completion_tokens, total - prompt_tokens)  # thoughts are in the total only
