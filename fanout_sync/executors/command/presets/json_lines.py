"""The reader that all presets build on: of a program that writes JSON objects, one in each line."""

from __future__ import annotations

import abc
import json
import logging
from collections.abc import Iterable, Mapping

from ....events.types import Event, TextDelta, ToolEnd, ToolStart
from ....formatting import printable
from ....records.steps import AgentStepSpec, Json
from ..answer import Answer, Failure
from .failures import Remedies, kind_of

logger = logging.getLogger(__name__)

Fields = Mapping[str, Json]

MOST_KEPT = 4_000_000
"""Characters of lines that are no JSON objects that are kept: together they may be one object over many lines."""

MOST_MONEY = 1e12
"""No program costs so many dollars; a larger number is none of money."""

_SHOWN = 80


class JsonLineReader(abc.ABC):
    """Reads the lines of one attempt; a subclass says what they mean.

    Nothing that a program writes makes it raise: a line that is cut or garbled is passed over, and the failure, or a
    warning in the log, tells of it. Lines of unknown types are passed over as well.

    Args:
        spec: The step.
        remedies: What to do about failures.
    """

    def __init__(self, spec: AgentStepSpec, remedies: Remedies) -> None:
        self.spec = spec
        self.remedies = remedies
        self.session_id: str | None = None
        self._is_complete = False
        self._other_lines: list[str] = []
        self._other_chars = 0
        self._tools: dict[str, str] = {}

    def line(self, line: str) -> Iterable[Event]:
        """Take the next line, and return the events that it tells of."""
        fields = parsed_object(line)
        if fields is None:
            self._keep(line)
            return ()
        return list(self.take(fields))

    def is_complete(self) -> bool:
        """Return whether nothing follows."""
        return self._is_complete

    def pause(self, rest: str) -> Iterable[Event] | None:
        """Take a line without a newline, or lines, that are a JSON object; return the events that it tells of."""
        fields = parsed_object(rest)
        if fields is None:
            fields = self._joined(rest)
        return None if fields is None else list(self.take(fields))

    def answer(self, exit_status: int | None, stderr: str) -> Answer:
        """Return what the program has said, after its end."""
        whole = self._joined("")
        if whole is not None:
            list(self.take(whole))
        answer = self.conclude(exit_status, stderr)
        if self._other_lines and answer.failure is None:
            logger.warning("step %r: %s", self.spec.task_id, self.strange_lines())
        return answer

    @abc.abstractmethod
    def take(self, fields: Fields) -> Iterable[Event]:
        """Take the next JSON object, and return the events that it tells of."""

    @abc.abstractmethod
    def conclude(self, exit_status: int | None, stderr: str) -> Answer:
        """Return what the program has said, after its end."""

    def text_delta(self, value: Json) -> Iterable[Event]:
        """Return the event of more text of the agent."""
        if content := text(value):
            yield TextDelta(self.spec.task_id, content)

    def tool_start(self, call_id: Json, name: Json) -> Iterable[Event]:
        """Return the event of a tool call that begins."""
        call = text(call_id)
        if call not in self._tools:
            self._tools[call] = text(name)
            yield ToolStart(self.spec.task_id, call, self._tools[call])

    def tool_end(self, call_id: Json, output: Json, exit_code: Json = None) -> Iterable[Event]:
        """Return the event of a tool call that has ended; none if it has not begun, or has ended already."""
        name = self._tools.pop(text(call_id), None)
        if name is not None:
            code = exit_code if isinstance(exit_code, int) and not isinstance(exit_code, bool) else None
            yield ToolEnd(self.spec.task_id, text(call_id), name, shown(output), code)

    def unfinished(self, exit_status: int | None, stderr: str) -> Failure:
        """Return the failure of a program that has ended without a word about its answer."""
        ended = "without an answer"
        if exit_status:
            ended = f"by signal {-exit_status}" if exit_status < 0 else f"with exit status {exit_status}"
        last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
        kind = kind_of(last) if exit_status else "program"
        # Of stderr's words only those about the login and the network are clear enough.
        kind = kind if kind in ("key", "network", "rate_limited") else "program"
        message = f"it has ended {ended}{self.strange_lines(', and ')}"
        return self.remedies.failure(f"{message}; {last}" if kind != "program" else message, kind=kind)

    def strange_lines(self, before: str = "") -> str:
        """Return a text about the lines that are no JSON objects; empty if there are none."""
        count = len(self._other_lines)
        if not count:
            return ""
        first = self._other_lines[0]
        cut = first if len(first) <= _SHOWN else f"{first[:_SHOWN]}…"
        lines = "1 line of its output is" if count == 1 else f"{count} lines of its output are"
        return f"{before}{lines} no JSON, the first: {cut!r}"

    def _joined(self, rest: str) -> dict[str, Json] | None:
        """Return and forget an object over many lines, as of `--output-format json`: no line of it is one."""
        whole = parsed_object("\n".join([*self._other_lines, rest])) if self._other_lines else None
        if whole is not None:
            self._other_lines.clear()
            self._other_chars = 0
        return whole

    def _keep(self, line: str) -> None:
        if line.strip() and self._other_chars < MOST_KEPT:
            self._other_lines.append(line)
            self._other_chars += len(line)


def parsed_object(line: str) -> dict[str, Json] | None:
    """Return the JSON object in a text; `None` if it has none."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def last_object_with(key: str, output: str) -> dict[str, Json] | None:
    """Return the last JSON object that begins a line of a text and has a key; `None` if there is none."""
    end = len(output)
    while (start := output.rfind("{", 0, end)) >= 0:
        end = start
        value = object_at(output, start) if start == 0 or output[start - 1] == "\n" else None
        if value is not None and key in value:
            return value
    return None


def object_at(output: str, start: int) -> dict[str, Json] | None:
    """Return the JSON object that begins at a place of a text; `None` if there is none."""
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(output, start)
    except (ValueError, RecursionError):
        return None
    return dict(value)


def fields_of(value: Json) -> Fields:
    """Return a value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items_of(value: Json) -> list[Json]:
    """Return a value if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def text(value: Json) -> str:
    """Return a value if it is a string, without lone surrogates; else an empty one."""
    return printable(value) if isinstance(value, str) else ""


def shown(value: Json) -> str:
    """Return a string as it is, the text parts of a list of contents, and any other value as JSON."""
    if isinstance(value, str):
        return printable(value)
    parts = [text(fields_of(item).get("text")) for item in items_of(value)]
    if any(parts):
        return "\n".join(part for part in parts if part)
    try:
        return "" if value is None else printable(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        return ""


def count(value: Json) -> int:
    """Return a value if it is a number of tokens, else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else 0


def amount(value: Json) -> float:
    """Return a value if it is an amount of money, else 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return 0.0
    return float(value) if 0 <= value < MOST_MONEY else 0.0


def status_of(value: Json) -> int | None:
    """Return a value if it is a status of HTTP that tells of an error."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600 else None


def message_in(value: str) -> tuple[str, int | None]:
    """Return the message and the status in a message that may be the JSON body of an answer."""
    body = object_at(value, value.find("{"))
    if body is None:
        return value, None
    error = fields_of(body.get("error")) or body
    said = text(error.get("message"))
    if not said:
        return value, None
    kind = text(error.get("type")) or text(error.get("status"))
    places = [where.get(key) for key in ("status", "code") for where in (body, error)]
    status = next((found for place in places if (found := status_of(place)) is not None), None)
    return f"{said} ({kind})" if kind else said, status
