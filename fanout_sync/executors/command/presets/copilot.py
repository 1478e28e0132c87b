"""The preset of GitHub Copilot CLI: `copilot`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal

from attrs import frozen

from ....events.types import Event
from ....records.steps import AgentStepSpec, Json
from ..answer import Answer, Failure, FailureKind
from .failures import Remedies
from .json_lines import Fields, JsonLineReader, count, fields_of, shown, status_of, text
from .schemas import prompt_with_schema
from .turn_caps import no_cap

RETRIED = (429, 500, 502, 503, 504, 529)

REMEDIES = Remedies(
    "copilot",
    key="log in with `copilot login`, or check GH_TOKEN, or the key of your own provider (COPILOT_PROVIDER_API_KEY)",
    model="check model= of Command.copilot(), and that your account may use it",
    permission="check what the token or account may use, and your organization's policies",
    cap="raise the cap in extra_args (--max-ai-credits)",
)


@frozen
class CopilotPreset:
    """GitHub Copilot CLI, called as `copilot --output-format json --allow-all-tools`; it gets the prompt on stdin.

    It asks a person before each use of a tool unless all tools are allowed, so they are: run it where it can do no
    harm, or forbid tools, as by `extra_args=["--deny-tool", "shell"]`. Updates are off. It may share its configuration
    folder. Own retries cannot be switched off, but it tells of them: after a 429 or an error of the server that it has
    not got over within `exit_grace`, it is ended, so that `retry` and `rate_limit` of the run take over.

    It tells no cost. It has no option for a schema, which is put below the prompt instead.

    Attributes:
        model: The model; `None` for the one that the program's settings name.
    """

    model: str | None = None
    program: ClassVar[str] = "copilot"
    prompt: ClassVar[Literal["stdin", "argument"]] = "stdin"
    needs_schema_file: ClassVar[bool] = False
    how_to_get: ClassVar[str] = "npm install -g @github/copilot"

    def arguments(self, spec: AgentStepSpec, schema_file: str | None) -> list[str]:
        arguments = ["--output-format", "json", "--allow-all-tools", "--no-auto-update"]
        return arguments if self.model is None else [*arguments, "--model", self.model]

    def environment(self) -> dict[str, str]:
        return {"COPILOT_AUTO_UPDATE": "false"}

    def private_variables(
        self, spec: AgentStepSpec, environment: Mapping[str, str], folder: Callable[[], str]
    ) -> dict[str, str]:
        return {}

    def prompt_of(self, spec: AgentStepSpec) -> str:
        return prompt_with_schema(spec)

    def unsupported(self, spec: AgentStepSpec, environment: Mapping[str, str]) -> str | None:
        return no_cap("copilot", spec)

    def reader(self, spec: AgentStepSpec) -> CopilotReader:
        return CopilotReader(spec, REMEDIES)


class CopilotReader(JsonLineReader):
    """Reads the JSON lines of Copilot. The answer is its last message, if nothing of it failed after that."""

    _answer = ""
    _result: Fields | None = None
    _error: Fields | None = None
    _refusal: Fields | None = None
    _told_message: Json = None
    _prompt_tokens = _completion_tokens = _message_tokens = 0

    def take(self, fields: Fields) -> Iterable[Event]:
        data, kind = fields_of(fields.get("data")), text(fields.get("type"))
        # What subagents say is no text of this agent.
        is_own = not (fields.get("agentId") or data.get("parentToolCallId"))
        if kind.startswith("assistant.message") and is_own:
            yield from self._take_message(kind, data)
        elif kind.startswith("tool."):
            yield from self._take_tool(kind, data)
        elif kind == "model.call_failure" and is_own and status_of(data.get("statusCode")) in RETRIED:
            self._refusal = data
        elif kind == "session.error":
            self._error = data
        elif kind == "result":
            self._result = fields
            self.session_id = text(fields.get("sessionId")) or self.session_id
        self._count(kind, data)

    def _take_message(self, kind: str, data: Fields) -> Iterable[Event]:
        self._refusal = None  # it has got over it
        if kind == "assistant.message_delta":
            self._told_message = data.get("messageId")
            yield from self.text_delta(data.get("deltaContent"))
        elif kind == "assistant.message":
            self._answer = text(data.get("content")) or self._answer
            if self._told_message is None or self._told_message != data.get("messageId"):
                yield from self.text_delta(data.get("content"))

    def _take_tool(self, kind: str, data: Fields) -> Iterable[Event]:
        if kind == "tool.execution_start":
            yield from self.tool_start(data.get("toolCallId"), data.get("toolName"))
        elif kind == "tool.execution_complete":
            result = fields_of(data.get("result")) or fields_of(data.get("error"))
            output = result.get("content") if "content" in result else result.get("message")
            exit_code = fields_of(data.get("shellExecution")).get("exitCode")
            yield from self.tool_end(data.get("toolCallId"), shown(output), exit_code)

    def _count(self, kind: str, data: Fields) -> None:
        if kind == "assistant.usage":
            self._prompt_tokens += count(data.get("inputTokens"))
            self._completion_tokens += count(data.get("outputTokens"))
        elif kind == "assistant.message":
            self._message_tokens += count(data.get("outputTokens"))

    def is_complete(self) -> bool:
        return self._result is not None or self._refusal is not None

    def conclude(self, exit_status: int | None, stderr: str) -> Answer:
        failure = self._failure(exit_status, stderr)
        return Answer(
            text=self._answer if failure is None else "",
            session_id=self.session_id,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens or self._message_tokens,
            failure=failure,
        )

    def _failure(self, exit_status: int | None, stderr: str) -> Failure | None:
        error = self._error
        exit_code = exit_status if self._result is None else self._result.get("exitCode") or exit_status
        if error is not None and (exit_code or not self._answer.strip()):
            kind: FailureKind | None = "key" if error.get("errorType") == "quota" else None
            return self.remedies.failure(
                text(error.get("message")) or "it tells no reason", status_of(error.get("statusCode")), kind=kind
            )
        if self._result is None and self._refusal is not None:
            message = text(self._refusal.get("errorMessage")) or "the server has refused a request"
            return self.remedies.failure(message, status_of(self._refusal.get("statusCode")))
        if self._result is None or exit_code:
            return self.unfinished(exit_status, stderr)
        if self._answer.strip():
            return None
        return self.remedies.failure(f"its answer is empty{self.strange_lines(', and ')}", kind="program")
