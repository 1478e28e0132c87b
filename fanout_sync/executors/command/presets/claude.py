"""The preset of Claude Code: `claude -p`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from attrs import frozen

from ....events.types import Event
from ....records.steps import AgentStepSpec, Json
from ..answer import Answer, Failure
from .failures import Remedies
from .json_lines import Fields, JsonLineReader, amount, count, fields_of, items_of, status_of, text
from .private_files import link_files
from .turn_caps import at_least_one_step

FOLDER = "CLAUDE_CONFIG_DIR"

LOGINS = (
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_FOUNDRY_API_KEY"),
    *("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY"),
)
"""Variables of which each means that the login is not in the configuration folder."""

SETTINGS = (
    *("settings.json", "CLAUDE.md", "agents", "commands", "skills", "rules", "hooks", "plugins", "output-styles"),
)
"""What the user has set up in the configuration folder; the rest of it is state."""

LONGEST_SCHEMA = 130_000
"""Bytes of a schema that fit in one argument, of which Linux takes 131 071 bytes."""

REMEDIES = Remedies(
    "claude",
    key="check ANTHROPIC_API_KEY and the account's credit, or log in with `claude` and /login",
    model="check model= of Command.claude(), and that your account may use it",
    permission="check what the key or account may use, or allow the tools, as by "
    "Command.claude(extra_args=['--allowedTools', 'Edit'])",
    cap="raise max_steps of the step, or the cap in extra_args",
)


@frozen
class ClaudePreset:
    """Claude Code, called as `claude -p --output-format stream-json --verbose`, with the prompt on standard input.

    That format takes as long as `json` does, tells of text and tools while the program works, and gives a sign of life
    to `idle_timeout`, which `json` does not before its end.

    Own retries are off (`CLAUDE_CODE_MAX_RETRIES`), and so are telemetry and updates. If a variable of the environment
    has the login, such as `ANTHROPIC_API_KEY`, each of the programs that run at once gets a configuration folder of its
    own (`CLAUDE_CONFIG_DIR`), with links to your settings, and its sessions are removed after the run. A login by
    `/login` is in the configuration folder, and is renewed there, so then all programs share yours. They do as well if
    you set `CLAUDE_CONFIG_DIR` yourself.

    Attributes:
        model: The model; `None` for the one that the program's settings name.
    """

    model: str | None = None
    program: ClassVar[str] = "claude"
    prompt: ClassVar[Literal["stdin", "argument"]] = "stdin"
    needs_schema_file: ClassVar[bool] = False
    how_to_get: ClassVar[str] = "npm install -g @anthropic-ai/claude-code"

    def arguments(self, spec: AgentStepSpec, schema_file: str | None) -> list[str]:
        arguments = ["-p", "--output-format", "stream-json", "--verbose", "--include-partial-messages"]
        if self.model is not None:
            arguments += ["--model", self.model]
        if spec.max_steps is not None:
            arguments += ["--max-turns", str(spec.max_steps)]
        if spec.output_schema is not None:
            arguments += ["--json-schema", _schema(spec.output_schema)]
        return arguments

    def environment(self) -> dict[str, str]:
        return {
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_AUTOUPDATER": "1",
        }

    def private_variables(
        self, spec: AgentStepSpec, environment: Mapping[str, str], folder: Callable[[], str]
    ) -> dict[str, str]:
        if FOLDER in environment or not any(environment.get(name) for name in LOGINS):
            return {}
        path = folder()
        link_files(Path(environment.get("HOME", path), ".claude"), Path(path), SETTINGS)
        return {FOLDER: path}

    def prompt_of(self, spec: AgentStepSpec) -> str:
        return spec.prompt

    def unsupported(self, spec: AgentStepSpec, environment: Mapping[str, str]) -> str | None:
        if spec.output_schema is not None and len(_schema(spec.output_schema).encode()) > LONGEST_SCHEMA:
            return f"claude takes the output_schema as an argument, which has {LONGEST_SCHEMA} bytes at most"
        return at_least_one_step("claude", spec)

    def reader(self, spec: AgentStepSpec) -> ClaudeReader:
        return ClaudeReader(spec, REMEDIES)


def _schema(schema: Json) -> str:
    # Claude Code refuses a schema that names any dialect but draft 7; it knows the keywords of the later ones.
    is_object = isinstance(schema, dict)
    return json.dumps({name: value for name, value in schema.items() if name != "$schema"} if is_object else schema)


class ClaudeReader(JsonLineReader):
    """Reads the JSON lines of Claude Code, or the one object of `--output-format json`."""

    _result: Fields | None = None
    _limit_resets_at: float | None = None
    _has_deltas = False

    def take(self, fields: Fields) -> Iterable[Event]:
        self.session_id = text(fields.get("session_id")) or self.session_id
        # What subagents say is no text of this agent.
        is_own = fields.get("parent_tool_use_id") is None
        match fields.get("type"):
            case "stream_event" if is_own:
                yield from self._take_stream_event(fields_of(fields.get("event")))
            case "assistant":
                content = items_of(fields_of(fields.get("message")).get("content"))
                yield from self._take_assistant(content, is_own and fields.get("is_api_error_message") is not True)
            case "user":
                for item in items_of(fields_of(fields.get("message")).get("content")):
                    part = fields_of(item)
                    if part.get("type") == "tool_result":
                        yield from self.tool_end(part.get("tool_use_id"), part.get("content"))
            case "rate_limit_event":
                limit = fields_of(fields.get("rate_limit_info"))
                if limit.get("status") == "rejected":
                    self._limit_resets_at = amount(limit.get("resetsAt")) or None
            case "result":
                self._result, self._is_complete = fields, True

    def _take_stream_event(self, event: Fields) -> Iterable[Event]:
        delta = fields_of(event.get("delta"))
        if event.get("type") == "content_block_delta" and delta.get("type") == "text_delta":
            self._has_deltas = True
            yield from self.text_delta(delta.get("text"))

    def _take_assistant(self, content: list[Json], is_own: bool) -> Iterable[Event]:
        for item in content:
            part = fields_of(item)
            if part.get("type") == "tool_use":
                yield from self.tool_start(part.get("id"), part.get("name"))
            elif part.get("type") == "text" and is_own and not self._has_deltas:
                yield from self.text_delta(part.get("text"))
        if is_own:
            self._has_deltas = False  # of the next message there may be none

    def conclude(self, exit_status: int | None, stderr: str) -> Answer:
        result = self._result
        if result is None:
            return Answer(session_id=self.session_id, failure=self.unfinished(exit_status, stderr))
        prompt_tokens, completion_tokens = _usage(result)
        structured = result.get("structured_output")
        said = text(result.get("result"))
        failure = self._failure(result, exit_status)
        if failure is None and structured is None and not said.strip():
            failure = self._no_answer(result)
        return Answer(
            text=said if failure is None else "",
            structured=structured if failure is None else None,
            session_id=self.session_id,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost_usd=amount(result.get("total_cost_usd")),
            failure=failure,
        )

    def _failure(self, result: Fields, exit_status: int | None) -> Failure | None:
        """Return the failure that a result tells of; its `subtype` is "success" even if the server has refused."""
        subtype = text(result.get("subtype"))
        if result.get("is_error") is False and subtype in ("", "success"):
            return self.unfinished(exit_status, "") if exit_status else None
        said = text(result.get("result")) or "; ".join(text(error) for error in items_of(result.get("errors")))
        if subtype in ("error_max_turns", "error_max_budget_usd"):
            return self.remedies.failure(said or subtype, kind="cap")
        status = status_of(result.get("api_error_status"))
        if status is None and text(result.get("api_error")).startswith("connection"):
            return self.remedies.failure(said, kind="network")
        wait_s = None if self._limit_resets_at is None else max(0.0, self._limit_resets_at - time.time())
        return self.remedies.failure(said or subtype, status, wait_s=wait_s)

    def _no_answer(self, result: Fields) -> Failure:
        denied = [text(fields_of(item).get("tool_name")) for item in items_of(result.get("permission_denials"))]
        if denied:
            names = ", ".join(dict.fromkeys(denied))
            return self.remedies.failure(
                f"it has given no answer, and was refused the tools {names}", kind="permission"
            )
        return self.remedies.failure(f"its result is empty{self.strange_lines(', and ')}", kind="program")


def _usage(result: Fields) -> tuple[int, int]:
    """Return the tokens of all models, those of subagents included."""
    of_models = [fields_of(usage) for usage in fields_of(result.get("modelUsage")).values()]
    if of_models:
        names = ("inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
        prompt_tokens = sum(count(usage.get(name)) for usage in of_models for name in names)
        return prompt_tokens, sum(count(usage.get("outputTokens")) for usage in of_models)
    usage = fields_of(result.get("usage"))
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    return sum(count(usage.get(name)) for name in names), count(usage.get("output_tokens"))
