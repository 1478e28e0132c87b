"""The preset of OpenCode: `opencode run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import ClassVar, Literal

from attrs import frozen

from ....events.types import Event
from ....records.steps import AgentStepSpec
from ..answer import Answer, Failure
from .failures import Remedies
from .json_lines import Fields, JsonLineReader, amount, count, fields_of, shown, status_of, text
from .schemas import prompt_with_schema
from .turn_caps import no_cap

DATABASE = "OPENCODE_DB"

REMEDIES = Remedies(
    "opencode",
    key="log in with `opencode auth login`, or check the key of your provider in opencode.json",
    model="check model= of Command.opencode(), which is PROVIDER/MODEL; `opencode models` lists them",
    permission="check what the key or account may use, and `permission` in opencode.json",
)


@frozen
class OpencodePreset:
    """OpenCode, called as `opencode run --format json --pure`, with the prompt on standard input.

    Programs that run at once would lock each other out of one new database, so each gets one of its own
    (`OPENCODE_DB`), unless you set that variable. Login and settings are elsewhere, and stay; its sessions are removed
    after the run. Updates are off. Own retries cannot be switched off: it retries a refused request for half a minute
    and more.

    It has no option for a schema, which is put below the prompt instead.

    Attributes:
        model: The model, as PROVIDER/MODEL; `None` for the one that the program's settings name.
    """

    model: str | None = None
    program: ClassVar[str] = "opencode"
    prompt: ClassVar[Literal["stdin", "argument"]] = "stdin"
    needs_schema_file: ClassVar[bool] = False
    how_to_get: ClassVar[str] = "npm install -g opencode-ai"

    def arguments(self, spec: AgentStepSpec, schema_file: str | None) -> list[str]:
        arguments = ["run", "--format", "json", "--pure"]
        return arguments if self.model is None else [*arguments, "-m", self.model]

    def environment(self) -> dict[str, str]:
        return {"OPENCODE_DISABLE_AUTOUPDATE": "1"}

    def private_variables(
        self, spec: AgentStepSpec, environment: Mapping[str, str], folder: Callable[[], str]
    ) -> dict[str, str]:
        return {} if DATABASE in environment else {DATABASE: str(Path(folder(), "opencode.db"))}

    def prompt_of(self, spec: AgentStepSpec) -> str:
        return prompt_with_schema(spec)

    def unsupported(self, spec: AgentStepSpec, environment: Mapping[str, str]) -> str | None:
        return no_cap("opencode", spec)

    def reader(self, spec: AgentStepSpec) -> OpencodeReader:
        return OpencodeReader(spec, REMEDIES)


class OpencodeReader(JsonLineReader):
    """Reads the JSON lines of OpenCode. The answer is the text of its last step."""

    _finished = ""
    _prompt_tokens = _completion_tokens = 0
    _cost_usd = 0.0
    _error: Fields | None = None

    def __init__(self, spec: AgentStepSpec, remedies: Remedies) -> None:
        super().__init__(spec, remedies)
        self._texts: list[str] = []

    def take(self, fields: Fields) -> Iterable[Event]:
        self.session_id = text(fields.get("sessionID")) or self.session_id
        part = fields_of(fields.get("part"))
        if part:  # it goes on after all; a line of another kind is none of its work
            self._is_complete = False
        match fields.get("type"):
            case "step_start":
                self._texts, self._finished = [], ""
            case "text":
                self._texts.append(text(part.get("text")))
                yield from self.text_delta(part.get("text"))
            case "tool_use":
                state = fields_of(part.get("state"))
                yield from self.tool_start(part.get("callID"), part.get("tool"))
                output = state.get("output") if "output" in state else state.get("error")
                exit_code = fields_of(state.get("metadata")).get("exit")
                yield from self.tool_end(part.get("callID"), shown(output), exit_code)
            case "step_finish":
                self._finish_step(part)
            case "error":
                self._error = fields_of(fields.get("error"))

    def _finish_step(self, part: Fields) -> None:
        tokens, self._finished = fields_of(part.get("tokens")), text(part.get("reason"))
        cache = fields_of(tokens.get("cache"))
        self._prompt_tokens += count(tokens.get("input")) + count(cache.get("read")) + count(cache.get("write"))
        self._completion_tokens += count(tokens.get("output")) + count(tokens.get("reasoning"))
        self._cost_usd += amount(part.get("cost"))
        self._is_complete = self._finished == "stop"

    def conclude(self, exit_status: int | None, stderr: str) -> Answer:
        said = "\n".join(part for part in self._texts if part)
        failure = self._failure(said, exit_status, stderr)
        return Answer(
            text=said if failure is None else "",
            session_id=self.session_id,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cost_usd=self._cost_usd,
            failure=failure,
        )

    def _failure(self, said: str, exit_status: int | None, stderr: str) -> Failure | None:
        if self._error is not None:
            data = fields_of(self._error.get("data"))
            name, message = text(self._error.get("name")), text(data.get("message"))
            status = status_of(data.get("statusCode"))
            wait_s = _wait_s(fields_of(data.get("responseHeaders")))
            told = f"{name}: {message}" if name and name != "APIError" else message
            return self.remedies.failure(told or "it tells no reason", status, wait_s=wait_s)
        if exit_status or self._finished in ("", "tool-calls"):
            return self.unfinished(exit_status, stderr)
        if said.strip():
            return None
        return self.remedies.failure(f"its answer is empty{self.strange_lines(', and ')}", kind="program")


def _wait_s(headers: Fields) -> float | None:
    """Return the wait that the headers of a refusal ask for; `None` if they ask for none."""
    for name, seconds in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = text(headers.get(name))
        try:
            wait_s = float(value) * seconds
        except ValueError:
            continue
        if 0 <= wait_s < 1e9:
            return wait_s
    try:
        return max(0.0, parsedate_to_datetime(text(headers.get("retry-after"))).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return None
