"""A region at the bottom of a terminal that is drawn again and again, while other text scrolls by above it.

Why not `rich.live`: it moves up by the height of what it drew last, which is wrong when the window has been resized and
its lines were wrapped anew; it hides the cursor, which stays hidden if the process is killed; and it cannot keep apart
what other processes print. Here the cursor always rests on an empty line just above the region, to which the terminal
keeps it on a resize, and each change is one write that begins by erasing all below.
"""

from __future__ import annotations

import io
import os
import select
import threading
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

ERASE_BELOW = "\r\x1b[J"
_ASCII = str.maketrans({"·": "-", "×": "x", "…": "~"})


def draws_on(stream: IO[str] | None) -> bool:
    """Return whether a stream is a terminal that can move its cursor."""
    try:
        is_terminal = stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False
    return is_terminal and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class Screen:
    """A terminal with a region at its bottom. Any thread may use it.

    Args:
        stream: The terminal. Its descriptor is duplicated, so that the stream may be redirected meanwhile.
    """

    def __init__(self, stream: IO[str]) -> None:
        self.descriptor = os.dup(stream.fileno())
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._lock = threading.Lock()
        self._region = ""

    def size(self) -> tuple[int, int]:
        """Return how many columns and rows there are."""
        size = os.get_terminal_size(self.descriptor)
        return size.columns or 80, size.lines or 24  # a terminal that was not told its size has 0

    def draw(self, content: RenderableType) -> None:
        """Draw the region anew; nothing is drawn while the terminal is stopped (Ctrl-S) or takes nothing."""
        region = self._rows(content)
        with self._lock:
            if self._takes_text():
                self._region = region
                self._write(self._drawn())

    def say(self, text: str) -> None:
        """Write text above the region; it is whole lines, and goes to the screen as it is."""
        with self._lock:
            self._write(text.replace("\n", "\r\n") + self._drawn())

    def finish(self, content: RenderableType) -> None:
        """Draw the region for the last time. It stays there, and what is written next goes below it."""
        text = "".join(f"{row}\r\n" for row in self._rows(content, is_last=True).split("\r\n"))
        with self._lock:
            self._region = ""
            self._write(text)

    def clear(self) -> None:
        """Remove the region."""
        with self._lock:
            if self._region:
                self._region = ""
                self._write("")

    def close(self) -> None:
        os.close(self.descriptor)

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

    def _takes_text(self) -> bool:
        return bool(select.select([], [self.descriptor], [], 0)[1])

    def _write(self, text: str) -> None:
        text = ERASE_BELOW + text
        if not self._encoding.lower().startswith("utf"):
            text = text.translate(_ASCII)
        rest = memoryview(text.encode(self._encoding, "replace"))
        while rest:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:  # some program has made the terminal non-blocking
                select.select([], [self.descriptor], [])
