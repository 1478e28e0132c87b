"""Readers of what a program writes: of its text, of its JSON, and of the lines that a preset knows."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from ...events.senders import EventSender
from ...events.types import Event, TextDelta
from ...records.steps import AgentStepSpec
from .answer import Answer
from .kept_output import KeptOutput
from .masking import MaskedStream, Masker
from .presets.preset import Reader

_MOST_STDERR_BYTES = 65_536
_MISSING: Any = object()
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(-?\d+)\]")


class AnswerNotFound(Exception):
    """The output is not what the command promises; the message says why."""


class TellText:
    """Sends the text of an agent as events, as it comes; at most one line in each.

    Args:
        spec: The step.
        event_tx: Takes the events.
        masker: Masks secrets.
    """

    def __init__(self, spec: AgentStepSpec, event_tx: EventSender, masker: Masker) -> None:
        self._task_id = spec.task_id
        self._event_tx = event_tx
        self._stream = MaskedStream(masker)

    def add(self, text: str) -> None:
        """Send what can be sent by now."""
        self._send(self._stream.add(text))

    def end(self) -> None:
        """Send what was held back."""
        self._send(self._stream.end())

    def _send(self, text: str) -> None:
        for line in text.splitlines(keepends=True):
            self._event_tx.send(TextDelta(task_id=self._task_id, text=line))


class WholeOutput:
    """Keeps the output of a program whose stdout is read at its end.

    Args:
        most_bytes: How much of stdout is kept.
        masker: Masks secrets.
        tell: Tells the text live; `None` if nobody listens, or stdout is no text of the agent.
        finds_answer: Returns whether the text of stdout has the answer, if nothing follows for a while; `None` if only
            its end can tell.
    """

    def __init__(
        self,
        most_bytes: int,
        masker: Masker,
        tell: TellText | None = None,
        finds_answer: Callable[[str], bool] | None = None,
    ) -> None:
        self.stdout = KeptOutput(most_bytes)
        self.stderr = KeptOutput(_MOST_STDERR_BYTES)
        self._masker = masker
        self._tell = tell
        self._finds_answer = finds_answer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take_stdout(self, data: bytes) -> None:
        self.stdout.add(data)
        if self._tell is not None:
            self._tell.add(self._decoder.decode(data))

    def take_stderr(self, data: bytes) -> None:
        self.stderr.add(data)

    def is_complete(self) -> bool:
        return False  # only the end, or silence, can tell

    def has_answer(self, is_closed: bool) -> bool:
        if is_closed:
            return not self.stdout.is_empty
        return self._finds_answer is not None and self._finds_answer(self.stdout.text())

    def end(self) -> None:
        """Tell the rest: the program has ended."""
        if self._tell is not None:
            self._tell.add(self._decoder.decode(b"", final=True))
            self._tell.end()

    def masked_stdout(self) -> str:
        """Return stdout as text, with secrets masked."""
        return self._masker(self.stdout.text(self._masker.without_parts))

    def masked_stderr(self) -> str:
        """Return stderr as text, with secrets masked."""
        return self._masker(self.stderr.text(self._masker.without_parts))


class LineOutput(WholeOutput):
    """Gives each line of stdout to the reader of a preset.

    Args:
        most_bytes: How much of a line is kept, and how much of stdout for the message of a failure.
        masker: Masks secrets.
        reader: Knows what the lines mean.
        event_tx: Takes the events of the lines; `None` if nobody listens.
        tell: Tells the text of the agent live; `None` if nobody listens.
    """

    def __init__(
        self, most_bytes: int, masker: Masker, reader: Reader, event_tx: EventSender | None, tell: TellText | None
    ) -> None:
        super().__init__(min(most_bytes, _MOST_STDERR_BYTES), masker)
        self.preset_reader = reader
        self._most_bytes = most_bytes
        self._event_tx = event_tx
        self._tell_delta = tell
        self._line = bytearray()

    def take_stdout(self, data: bytes) -> None:
        self.stdout.add(data)
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._add(piece)
            self._end_line()
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        self._line += piece[: self._most_bytes - len(self._line)]

    def _end_line(self) -> None:
        line = self._text_of_line()
        self._line.clear()
        self._tell_events(self.preset_reader.line(line))

    def _text_of_line(self) -> str:
        return self._line.decode("utf-8", "replace").removesuffix("\r")

    def _tell_events(self, events: Iterable[Event]) -> None:
        for event in events:
            if self._event_tx is None or self._tell_delta is None:
                continue
            if isinstance(event, TextDelta):
                self._tell_delta.add(event.text)
            else:
                self._tell_delta.end()  # what was said before it comes before it
                self._event_tx.send(self._masker.in_event(event))

    def is_complete(self) -> bool:
        return self.preset_reader.is_complete()

    def has_answer(self, is_closed: bool) -> bool:
        if is_closed or self.preset_reader.is_complete():
            return True
        events = self.preset_reader.pause(self._text_of_line())
        if events is None:
            return False
        self._line.clear()
        self._tell_events(events)
        return self.preset_reader.is_complete()

    def end(self) -> None:
        if self._line:
            self._end_line()
        if self._tell_delta is not None:
            self._tell_delta.end()


def answer_in_json(text: str, path: str | None, masker: Masker) -> Answer:
    """Return the answer in JSON, or in the last line of JSON lines that has it.

    Args:
        text: What the program has written.
        path: Where the answer is, such as `"result.text"` or `"choices[0].message"`; `None` for the whole.
        masker: Masks secrets, in what is found: to mask `text` could break it.

    Raises:
        AnswerNotFound: It is no JSON, or has nothing there.
    """
    value = masker.in_json(_found(text, path))
    return Answer(text=value) if isinstance(value, str) else Answer(structured=value)


def is_whole_answer(text: str, path: str | None) -> bool:
    """Return whether a text in JSON has its answer, and is no beginning of more.

    Args:
        text: What the program has written before it fell silent.
        path: Where the answer is; `None` if it is one whole JSON value. Which of several lines is the last cannot be
            known without it.
    """
    whole = _parsed(text)
    if whole is not _MISSING:
        may_go_on = isinstance(whole, (int, float)) and text[-1].isdigit()
        return not may_go_on if path is None else _at(whole, path) is not _MISSING
    if path is None or _ends_within_a_line(text) or _begins_a_document(text):
        return False
    return _in_lines(text, path)[0] is not _MISSING


def _ends_within_a_line(text: str) -> bool:
    last = text[text.rfind("\n") + 1 :]
    return bool(last.strip()) and _parsed(last) is _MISSING


def _begins_a_document(text: str) -> bool:
    """Return whether a text begins with a JSON document over many lines: those within it are no answers."""
    first = text.lstrip().partition("\n")[0].rstrip()
    try:
        json.loads(first)
    except json.JSONDecodeError as error:
        return error.pos >= len(first) and first.startswith(("{", "["))
    except (ValueError, RecursionError):
        return False
    return False


def _found(text: str, path: str | None) -> Any:
    whole = _parsed(text)
    if whole is not _MISSING:
        value = whole if path is None else _at(whole, path)
        if value is _MISSING:
            raise AnswerNotFound(f"the JSON has nothing at {path!r}, where the answer was expected{_keys_of(whole)}")
        return value
    value, has_json = _in_lines(text, path)
    if value is not _MISSING:
        return value
    if has_json:
        raise AnswerNotFound(f"no line of the JSON lines has anything at {path!r}, where the answer was expected")
    raise AnswerNotFound(f"the output is no JSON{_why_not(text)}")


def _in_lines(text: str, path: str | None) -> tuple[Any, bool]:
    """Return what the last JSON line that has something at a path has there, and whether any line is JSON."""
    has_json = False
    for line in reversed(text.splitlines()):
        value = _parsed(line) if line.strip() else _MISSING
        if value is _MISSING:
            continue
        has_json = True
        value = value if path is None else _at(value, path)
        if value is not _MISSING:
            return value, True
    return _MISSING, has_json


def _parsed(text: str) -> Any:
    try:
        return json.loads(text.removeprefix("\ufeff"))  # a byte order mark
    except (ValueError, RecursionError):
        return _MISSING


def _why_not(text: str) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f": {error}"
    except (ValueError, RecursionError):
        return ": it is nested too deeply, or has a number that is too long"
    return ""


def _keys_of(value: Any) -> str:
    return f"; its keys are {', '.join(sorted(value)[:20])}" if isinstance(value, dict) and value else ""


def _at(value: Any, path: str) -> Any:
    for step in path_steps(path):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, ValueError, TypeError):
            return _MISSING
    return value


def path_steps(path: str) -> list[str]:
    """Return the keys and indices of a path; empty if it is none."""
    found, place = list[str](), 0
    while place < len(path):
        step = _STEP.match(path, place)
        if step is None or (not found and path.startswith(".")):
            return []
        found.append(step[1] if step[1] is not None else step[2])
        place = step.end()
    return found
