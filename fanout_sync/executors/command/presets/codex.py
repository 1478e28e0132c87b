"""The preset of Codex: `codex exec`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

from attrs import frozen

from ....events.types import Event
from ....records.steps import AgentStepSpec
from ..answer import Answer, Failure, FailureKind
from .failures import Remedies, kind_of
from .json_lines import Fields, JsonLineReader, count, fields_of, message_in, shown, text
from .turn_caps import no_cap

WAITING_FOR_NETWORK = "waiting for network"
"""What Codex writes again and again, without an end, while it cannot reach the server."""

REMEDIES = Remedies(
    "codex",
    key="check CODEX_API_KEY, the account's credit and the `env_key` of your provider, or log in with `codex login`",
    model="check model= of Command.codex(), and that your account may use it; a schema must have "
    '"additionalProperties": false and all properties "required" in each object',
    permission="check what the key or account may use, or allow it, as by "
    "Command.codex(extra_args=['-s', 'workspace-write'])",
)


@frozen
class CodexPreset:
    """Codex, called as `codex exec --json --ephemeral --skip-git-repo-check`, with the prompt on standard input.

    Its sandbox lets it read only, unless your settings or `extra_args` say otherwise. It saves no sessions, and may
    share its folder: its databases are made for that. Analytics are off, which also saves five seconds at its end if
    their server cannot be reached.

    It retries a request four times, and it has no switch for that. In your `config.toml` you can set
    `request_max_retries = 0` and `stream_max_retries = 0` for a provider of your own. If it cannot reach the server,
    it waits for ever: if it has done nothing yet, it is ended after `exit_grace`.

    Attributes:
        model: The model; `None` for the one that the program's settings name.
    """

    model: str | None = None
    program: ClassVar[str] = "codex"
    prompt: ClassVar[Literal["stdin", "argument"]] = "stdin"
    needs_schema_file: ClassVar[bool] = True
    how_to_get: ClassVar[str] = "npm install -g @openai/codex"

    def arguments(self, spec: AgentStepSpec, schema_file: str | None) -> list[str]:
        arguments = ["exec", "--json", "--ephemeral", "--skip-git-repo-check", "-c", "analytics.enabled=false"]
        if self.model is not None:
            arguments += ["-m", self.model]
        if schema_file is not None:
            arguments += ["--output-schema", schema_file]
        return arguments

    def environment(self) -> dict[str, str]:
        return {}

    def private_variables(
        self, spec: AgentStepSpec, environment: Mapping[str, str], folder: Callable[[], str]
    ) -> dict[str, str]:
        return {}

    def prompt_of(self, spec: AgentStepSpec) -> str:
        return spec.prompt

    def unsupported(self, spec: AgentStepSpec, environment: Mapping[str, str]) -> str | None:
        return no_cap("codex", spec)

    def reader(self, spec: AgentStepSpec) -> CodexReader:
        return CodexReader(spec, REMEDIES)


class CodexReader(JsonLineReader):
    """Reads the JSON lines of Codex. Neither an item of the type `error` nor a line of that type ends its work."""

    _answer: str | None = None
    _usage: Fields = MappingProxyType({})
    _failed_with: str | None = None
    _last_error = ""
    _has_ended = False
    _has_worked = False
    _is_waiting = False

    def take(self, fields: Fields) -> Iterable[Event]:
        kind = fields.get("type")
        self._is_waiting = kind == "error" and WAITING_FOR_NETWORK in text(fields.get("message"))
        match kind:
            case "thread.started":
                self.session_id = text(fields.get("thread_id")) or self.session_id
            case "item.started" | "item.completed":
                yield from self._take_item(fields_of(fields.get("item")), kind == "item.completed")
            case "error":
                self._last_error = text(fields.get("message")) or self._last_error
            case "turn.completed":
                self._usage, self._has_ended = fields_of(fields.get("usage")), True
            case "turn.failed":
                error = fields_of(fields.get("error"))
                self._failed_with, self._has_ended = text(error.get("message")) or self._last_error, True

    def is_complete(self) -> bool:
        return self._has_ended or (self._is_waiting and not self._has_worked)

    def _take_item(self, item: Fields, is_over: bool) -> Iterable[Event]:
        kind = item.get("type")
        self._has_worked |= kind != "error"
        match kind:
            case "agent_message":
                if is_over:
                    self._answer = text(item.get("text"))
                    yield from self.text_delta(item.get("text"))
            case "error":
                self._last_error = text(item.get("message")) or self._last_error
            case "command_execution":
                yield from self.tool_start(item.get("id"), "shell")
                if is_over:
                    yield from self.tool_end(item.get("id"), item.get("aggregated_output"), item.get("exit_code"))
            case "mcp_tool_call" | "web_search" | "file_change":
                name = f"{text(item.get('server'))}.{text(item.get('tool'))}" if kind == "mcp_tool_call" else kind
                yield from self.tool_start(item.get("id"), name)
                if is_over:
                    of_kind = {"mcp_tool_call": "result", "web_search": "query", "file_change": "changes"}
                    yield from self.tool_end(item.get("id"), shown(item.get(of_kind[text(kind)])))

    def conclude(self, exit_status: int | None, stderr: str) -> Answer:
        failure = self._failure(exit_status, stderr)
        return Answer(
            text=(self._answer or "") if failure is None else "",
            session_id=self.session_id,
            prompt_tokens=count(self._usage.get("input_tokens")),
            completion_tokens=count(self._usage.get("output_tokens")),
            failure=failure,
        )

    def _failure(self, exit_status: int | None, stderr: str) -> Failure | None:
        if self._failed_with is not None:
            said, status = message_in(self._failed_with)
            kind: FailureKind | None = "key" if "Missing environment variable" in said else None
            return self.remedies.failure(said, status, kind=kind)
        if self._has_ended and not exit_status:
            if (self._answer or "").strip():
                return None
            return self.remedies.failure(f"its answer is empty{self.strange_lines(', and ')}", kind="program")
        if self._last_error and not self._has_ended and kind_of(self._last_error) in ("network", "rate_limited"):
            return self.remedies.failure(self._last_error)
        return self.unfinished(exit_status, stderr)
