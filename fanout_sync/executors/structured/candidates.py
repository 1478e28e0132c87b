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

_BRACKET_OR_STRING = re.compile(r'[][{}]|"(?:[^"\\\n]|\\.)*"')

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

    What is inside of a value that is broken, as by a comma too many or a comment, or because the text was cut off, is
    none either: it is a part of an answer that has gone wrong. Where such a value would have been closed, brackets are
    counted after all; if it never is, the search goes on where it broke.

    Each attempt begins behind the beginnings of those before it, and never at a token that one of those has read. Then
    no two of them read the same token, so the time grows with the length of the text: if two had a token in common,
    they would have all tokens before it in common, back to where the later one began, because two strings that end at
    the same quote begin at the same quote.
    """
    is_read = bytearray(len(text))
    position, may_be_closed = 0, True
    while (opening := _OPENING.search(text, position)) is not None:
        position = opening.end()
        if is_read[opening.start()]:
            continue
        spans, end, depth = _read(text, opening.start(), is_read)
        yield from spans
        if spans and spans[0][0] == opening.start():
            position = end
        elif depth and may_be_closed:
            closed_at = _closed_at(text, end, depth)
            may_be_closed = closed_at is not None  # else it is not looked for again, which would take long
            position = position if closed_at is None else closed_at


def _read(  # noqa: C901 - a state machine, in one piece because each token takes this path
    text: str, begin: int, is_read: bytearray
) -> tuple[list[Span], int, int]:
    """Read the object or array that begins somewhere, as far as it is one.

    Args:
        text: The text.
        begin: Where it begins.
        is_read: Gets a 1 wherever nothing else is to begin.

    Returns:
        Where it is; or if it is broken, where those are that it has in it, without the parts of a broken value. Then
        how far it could be read, and how many objects and arrays of a broken value are open there.
    """
    token_at = _TOKEN.match
    open_at = array("Q")  # where each begins that is not closed yet; there may be millions
    has_begun = bytearray()  # of each, whether it is a value for certain, and no bracket of the prose
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
            has_begun.append(0)
            is_read[position - 1] = 1
            is_object = kind == "object"
            expected = _FIRST_KEY if is_object else _FIRST_ITEM
        elif kind == "comma":
            has_begun[-1] = 1
            expected = _KEY if is_object else _VALUE
        elif kind == "colon":
            has_begun[-1] = 1
            expected = _VALUE
        elif expected is _KEY or (expected is _FIRST_KEY and kind == "string"):
            expected = _COLON
        else:
            if kind in _ENDS:
                has_begun.pop()
                _drop_inner(spans, open_at[-1])
                spans.append((open_at.pop(), position))
                if not open_at:
                    break
                is_object = text[open_at[-1]] == "{"
            expected = _AFTER_MEMBER if is_object else _AFTER_ITEM
    depth = 0
    if (broken := has_begun.find(1)) >= 0:
        _drop_inner(spans, open_at[broken])
        depth = len(open_at) - broken
    for start, end in spans:
        is_read[start:end] = b"\1" * (end - start)
    return spans, position, depth


def _drop_inner(spans: list[Span], begin: int) -> None:
    """Drop the spans that are in one that begins at a place and has not ended."""
    while spans and spans[-1][0] > begin:
        spans.pop()


def _closed_at(text: str, begin: int, depth: int) -> int | None:
    """Return where so many brackets are closed that are open at a place; `None` if they never are."""
    for token in _BRACKET_OR_STRING.finditer(text, begin):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
            if depth == 0:
                return token.end()
    return None
