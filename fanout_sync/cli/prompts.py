"""Steps from a file with one prompt a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import WireError
from ..records.steps import AgentStepSpec

AGENT = "command"
"""The agent of every step that the command line makes of a prompt or a row."""

BYTE_ORDER_MARK = "\ufeff"


def read_prompts(lines: Iterable[bytes]) -> Iterator[AgentStepSpec]:
    r"""Yield a step for each line that is not blank; its `task_id` has the number of the line: `"line-1"`.

    Args:
        lines: UTF-8, with or without a byte order mark; the line ends, `\n` or `\r\n`, are no part of a prompt.

    Raises:
        WireError: A line is not UTF-8; it has the number of the line.
    """
    for number, line in enumerate(lines, start=1):
        prompt = decoded(line, number).removesuffix("\n").removesuffix("\r")
        if prompt.strip():
            yield AgentStepSpec(f"line-{number}", AGENT, f"Line {number}", prompt)


def decoded(line: bytes, number: int) -> str:
    """Return a line as text; the first one without its byte order mark.

    Args:
        line: The line.
        number: Its number, from 1.

    Raises:
        WireError: It is not UTF-8.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError(f"expected UTF-8, got {error.reason} at byte {error.start + 1}", "", "", number) from None
    return text.removeprefix(BYTE_ORDER_MARK) if number == 1 else text
