"""A region at the bottom of a terminal that is drawn again and again, while other text scrolls by above it.

Why not `rich.live`: it moves up by the height of what it drew last, which is wrong when the window has been resized and
its lines were wrapped anew; it hides the cursor, which stays hidden if the process is killed; and it cannot keep apart
what other processes print. Here the cursor always rests on an empty line just above the region, to which the terminal
keeps it on a resize, and each change is one write that begins by erasing all below. (tmux does not keep it there when
the window gets so narrow that the wrapped rows need more room than there is: it moves the upper ones into its history,
where nothing can erase them.)
"""

from __future__ import annotations

import io
import os
from typing import IO, TYPE_CHECKING

from .background_writer import BackgroundWriter

if TYPE_CHECKING:
    from rich.console import RenderableType

_ERASE = "\r\x1b[K\x1b7\x1b[B\x1b[J\x1b8"
"""Erases the row of the cursor and all below.

Not by `ESC [ J` from that row: when it is the first one of the window, tmux takes that for a screen that is cleared,
and keeps all of it in its history.
"""

_ASCII = str.maketrans({"·": "-", "×": "x", "…": "~"})


def draws_on(stream: IO[str] | None) -> bool:
    """Return whether a stream is a terminal that can move its cursor."""
    try:
        is_terminal = stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False
    return is_terminal and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class Screen:
    """A terminal with a region at its bottom. One thread draws, another one may write lines above the region.

    Args:
        stream: The terminal. Its descriptor is duplicated, so that the stream may be redirected meanwhile.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.descriptor = os.dup(stream.fileno())
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._writer = BackgroundWriter(self.descriptor)
        self._region = ""

    def size(self) -> tuple[int, int]:
        """Return how many columns and rows there are."""
        size = os.get_terminal_size(self.descriptor)
        return size.columns or 80, size.lines or 24  # a terminal that was not told its size has 0

    def draw(self, content: RenderableType) -> None:
        """Draw the region anew. While the terminal takes nothing, nothing is drawn; this never waits for it.

        Raises:
            OSError: The window was closed.
        """
        self._region = self._rows(content)
        self._writer.offer(self._encoded(self._drawn()))

    def say(self, text: str) -> None:
        """Write text above the region; it is whole lines, and goes to the screen as it is.

        Waits until the terminal has taken what was written before.

        Raises:
            OSError: The window was closed.
        """
        lines = text.replace("\n", "\r\n")
        self._writer.write(lambda: self._encoded(lines + self._drawn()))

    def finish(self, content: RenderableType | None, *, is_urgent: bool = False) -> None:
        """Draw the region for the last time, and let go of the terminal. What is written next goes below it.

        Args:
            content: What stays there; `None` to remove the region.
            is_urgent: As for `BackgroundWriter.write`.

        Raises:
            OSError: The window was closed.
        """
        try:
            if content is not None:
                rows = self._rows(content, is_last=True).split("\r\n")
                last = self._encoded("".join(f"{row}\r\n" for row in rows))
                self._writer.write(lambda: last, is_urgent=is_urgent)
            elif self._region:
                self._writer.write(lambda: self._encoded(""), is_urgent=is_urgent)
        finally:
            self._writer.close(is_urgent=is_urgent)

    def _drawn(self) -> str:
        """Return the region, and the way back to where the cursor rests."""
        if not self._region:
            return ""
        return f"\r\n{self._region}\r\x1b[{self._region.count(chr(10)) + 1}A"

    def _rows(self, content: RenderableType, *, is_last: bool = False) -> str:
        from rich.console import Console  # imported lazily: slow

        columns, rows = self.size()
        # One column less, because a full row makes some terminals wrap.
        width = max(1, columns - 1)
        file = io.TextIOWrapper(io.BytesIO(), encoding=self._encoding)  # of which rich asks the encoding only
        console = Console(
            file=file,
            force_terminal=True,
            force_jupyter=False,
            legacy_windows=False,
            no_color=os.environ.get("NO_COLOR", "") != "",  # https://no-color.org: an empty one does not count
            width=width,
            height=rows,
            markup=False,
            emoji=False,
            highlight=False,
        )
        with console.capture() as capture:
            console.print(content, crop=True, overflow="ellipsis", no_wrap=True)
        lines = capture.get().rstrip("\n").split("\n")
        # The row on which the cursor rests is part of the screen, too.
        return "\r\n".join(lines if is_last else lines[: max(1, rows - 2)])

    def _encoded(self, text: str) -> bytes:
        """Return what replaces the region, and all below the cursor, with a text."""
        text = _ERASE + text
        if not self._encoding.lower().startswith("utf"):
            text = text.translate(_ASCII)
        return text.encode(self._encoding, "replace")
