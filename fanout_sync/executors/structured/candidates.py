"""Finding the JSON in a text that an agent has written, in a time that grows with the length of the text alone."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator

from attrs import frozen

from ...errors import WireError
from ...records.steps import Json
from ...wire.strict_json import check_json, parse_json

Span = tuple[int, int]
"""Where a part of a text begins and ends."""


@frozen
class Candidate:
    """A JSON value in a text.

    Attributes:
        value: The value.
        size: How many characters it has in the text.
    """

    value: Json
    size: int


NO_JSON = "$: the output has no JSON"


def candidates(text: str) -> Iterator[Candidate]:
    """Yield the JSON values that may be the answer in a text: as few and as large as possible.

    If the whole text is one JSON value, it is the only candidate. Otherwise it is the content of each fenced block,
    and then each object and array wherever it stands. What is inside of a candidate is none: it is a part of an answer.
    """
    begin, end = _stripped(text, (0, len(text)))
    yield from (whole := _parsed(text, (begin, end)))
    if whole:
        return
    blocks = [_stripped(text, block) for block in _fenced_blocks(text)]
    for block in blocks:
        yield from _parsed(text, block)
    seen = set(blocks)
    for span in _objects_and_arrays(text):
        if span not in seen:
            yield from _parsed(text, span)


def why_no_json(text: str) -> str:
    """Return why a text without candidates has none, as `"path: message"`, for whoever is to write it again."""
    begin, end = _stripped(text, (0, len(text)))
    if begin == end:
        return "$: the output is empty"
    block = next(_fenced_blocks(text), None)
    if block is not None:
        begin, end = _stripped(text, block)
    elif text[begin] not in "[{":
        return NO_JSON
    try:
        check_json(parse_json(text[begin:end]), "$")
    except WireError as error:
        path = (
            error.field
            if error.field.startswith("$")
            else f"${'' if error.field[:1] in ('', '[') else '.'}{error.field}"
        )
        return f"{path}: {error.reason}"
    return NO_JSON


def _parsed(text: str, span: Span) -> list[Candidate]:
    """Return the candidate between two places, if there is one."""
    begin, end = span
    try:
        return [Candidate(check_json(parse_json(text[begin:end]), "structured"), end - begin)]
    except WireError:  # also what no record can hold, such as a number that is too large
        return []


def _stripped(text: str, span: Span) -> Span:
    """Return the span without the white space at its ends, and without a byte order mark at the start of the text."""
    begin, end = span
    begin += begin == 0 and text.startswith("\ufeff")
    found = _NOT_BLANK.match(text, begin, end)
    assert found is not None, "it matches anything"
    begin = found.end()
    return begin, max(begin, begin + len(text[begin:end].rstrip()))


_NOT_BLANK = re.compile(r"\s*")

# --- fenced blocks ------------------------------------------------------------------------------------------------

_FENCE = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)$", re.MULTILINE)
"""A line that begins a block, or ends it. It may be indented, as in a list; what follows is the language."""


def _fenced_blocks(text: str) -> Iterator[Span]:
    """Yield where the content of each fenced block of Markdown is; one that is not closed goes on to the end."""
    opened = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence["fence"].startswith(opened["fence"]) and not fence["info"].strip():
            yield opened.end(), fence.start()
            opened = None
    if opened is not None:
        yield opened.end(), len(text)


# --- objects and arrays wherever they stand -----------------------------------------------------------------------

_OPENING = re.compile(r"[\[{]")

_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:
        (?P<string>"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*")
      | (?P<comma>,)
      | (?P<colon>:)
      | (?P<scalar>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null)
      | (?P<object>\{)
      | (?P<array>\[)
      | (?P<object_end>\})
      | (?P<array_end>\])
      | (?P<other>)
    )""",
    re.VERBOSE,
)
"""A token of JSON; `other` is the place where none is."""

_OPENINGS = frozenset({"object", "array"})
_ENDS = frozenset({"object_end", "array_end"})
_VALUE = frozenset({"string", "scalar", "object", "array"})
_FIRST_ITEM = _VALUE | {"array_end"}
_KEY = frozenset({"string"})
_FIRST_KEY = _KEY | {"object_end"}
_COLON = frozenset({"colon"})
_AFTER_ITEM = frozenset({"comma", "array_end"})
_AFTER_MEMBER = frozenset({"comma", "object_end"})


def _objects_and_arrays(text: str) -> Iterator[Span]:
    """Yield where each object and array is that is in no other one.

    It is the grammar of JSON that tells them from other brackets. To count brackets would go wrong at a quote in the
    prose around them, after which strings and the text between strings change places. So where an attempt ends that
    took too much for a string, the brackets in there are tried as well.

    Each attempt begins behind the beginnings of those before it, and never at a token that one of those has read. Then
    no two of them read the same token, so the time grows with the length of the text: if two had a token in common,
    they would have all tokens before it in common, back to where the later one began, because two strings that end at
    the same quote begin at the same quote.
    """
    is_read = bytearray(len(text))
    position = 0
    while (opening := _OPENING.search(text, position)) is not None:
        position = opening.end()
        if not is_read[opening.start()]:
            spans = _read(text, opening.start(), is_read)
            yield from spans
            if spans and spans[0][0] == opening.start():
                position = spans[0][1]


def _read(text: str, begin: int, is_read: bytearray) -> list[Span]:
    """Read the object or array that begins somewhere, as far as it is one.

    Args:
        text: The text.
        begin: Where it begins.
        is_read: Gets a 1 wherever nothing else is to begin.

    Returns:
        Where it is; if it is not closed or is no JSON, where those are that it has in it.
    """
    token_at = _TOKEN.match
    open_at = array("Q")  # where each begins that is not closed yet; there may be millions
    spans: list[Span] = []
    expected, is_object, position = _VALUE, False, begin
    while True:
        token = token_at(text, position)
        assert token is not None, "it matches anything"
        kind = token.lastgroup
        if kind not in expected:
            break
        position = token.end()
        if kind in _OPENINGS:
            open_at.append(position - 1)
            is_read[position - 1] = 1
            is_object = kind == "object"
            expected = _FIRST_KEY if is_object else _FIRST_ITEM
        elif kind == "comma":
            expected = _KEY if is_object else _VALUE
        elif kind == "colon":
            expected = _VALUE
        elif expected is _KEY or (expected is _FIRST_KEY and kind == "string"):
            expected = _COLON
        else:
            if kind in _ENDS:
                _replace_inner(spans, (open_at.pop(), position))
                if not open_at:
                    break
                is_object = text[open_at[-1]] == "{"
            expected = _AFTER_MEMBER if is_object else _AFTER_ITEM
    for start, end in spans:
        is_read[start:end] = b"\1" * (end - start)
    return spans


def _replace_inner(spans: list[Span], outer: Span) -> None:
    """Add a span to those before it, in the place of those that are in it."""
    while spans and spans[-1][0] > outer[0]:
        spans.pop()
    spans.append(outer)
