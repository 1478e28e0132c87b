"""Writes to a terminal from a thread of its own, so that a terminal that takes no text holds nobody up.

A terminal takes nothing while it is stopped (Ctrl-S), or when the other end of its connection is gone. That cannot be
asked before: `select` calls a terminal writable that has room for one byte. Nor can the terminal be made non-blocking:
that would hold for the shell and for all other programs on it, too.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from time import monotonic
from typing import IO

import click

from ..interrupts import is_interrupted

PATIENCE_S = 2.0
"""After an interrupt, a terminal that has taken nothing for so many seconds gets nothing more."""

_LOOK_S = 0.1
_PIECE = 4096
"""So many bytes are written at once; the terminal is alive as long as it takes them one after the other."""


class BackgroundWriter:
    """Writes bytes to a descriptor, one text after the other. It holds one text, that which is being written.

    Args:
        descriptor: Where to. It is closed by `close`.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._changed = threading.Condition()
        self._text = b""  # what is being written; empty if nothing is
        self._pieces = 0
        self._error: OSError | None = None
        self._is_given_up = self._is_closed = False
        self._thread: threading.Thread | None = None

    def offer(self, text: bytes) -> None:
        """Write a text unless another one is still being written. Never waits.

        Raises:
            OSError: An earlier text could not be written.
        """
        with self._changed:
            if not self._text:
                self._begin(text)

    def check(self) -> None:
        """Raise the error of an earlier text, if there was one.

        Raises:
            OSError: An earlier text could not be written.
        """
        if self._error is not None:
            raise self._error

    def write(self, make_text: Callable[[], bytes], *, is_urgent: bool = False) -> None:
        """Write a text after the one before is written, and wait until that is so.

        Args:
            make_text: Returns the text, as soon as it can be written.
            is_urgent: Whether to wait no longer than after an interrupt: then, and if there was one, the text is
                dropped if the descriptor takes nothing.

        Raises:
            OSError: An earlier text could not be written.
        """
        with self._changed:
            self._wait(is_urgent=is_urgent)
            self._begin(make_text())

    def close(self, *, is_urgent: bool = False) -> None:
        """Wait until all is written, and close the descriptor; a descriptor that takes nothing is left open.

        Args:
            is_urgent: As for `write`.

        Raises:
            OSError: A text could not be written.
        """
        with self._changed:
            self._wait(is_urgent=is_urgent)
            self._is_closed = True
            self._changed.notify_all()
        if not self._is_given_up:
            if self._thread is not None:
                self._thread.join()
            os.close(self.descriptor)
        self.check()

    def _begin(self, text: bytes) -> None:
        self.check()
        if self._is_given_up:
            return
        self._text = text
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fanout-sync screen", daemon=True)
            self._thread.start()

    def _wait(self, *, is_urgent: bool) -> None:
        pieces, since = self._pieces, monotonic()
        while self._text and not self._is_given_up:
            self._changed.wait(_LOOK_S)
            if pieces != self._pieces or not (is_urgent or is_interrupted()):
                pieces, since = self._pieces, monotonic()
            elif monotonic() >= since + PATIENCE_S:
                self._is_given_up = True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._text and not self._is_closed:
                    self._changed.wait()
                if not (rest := memoryview(self._text)):
                    return
            try:
                while rest:
                    rest = rest[self._write_piece(rest[:_PIECE]) :]
                    self._pieces += 1
            except OSError as error:
                self._error = error
            with self._changed:
                self._text = b""
                self._changed.notify_all()

    def _write_piece(self, piece: memoryview) -> int:
        try:
            return os.write(self.descriptor, piece)
        except BlockingIOError:  # some program has made the terminal non-blocking
            select.select([], [self.descriptor], [])
            return 0


class LineWriter:
    """Writes lines to a stream in the background; at once if the stream has no descriptor, such as one in memory.

    They do not go through the buffer of the stream: at its exit, Python would wait for what that holds.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._writer = _writer_on(stream)

    def offer(self, line: str) -> None:
        """As `BackgroundWriter.offer`."""
        if self._writer is None:
            click.echo(line, file=self._stream)
        else:
            self._writer.offer(self._encoded(line))

    def write(self, line: str, *, is_urgent: bool = False) -> None:
        """As `BackgroundWriter.write`."""
        if self._writer is None:
            click.echo(line, file=self._stream)
        else:
            self._writer.write(lambda: self._encoded(line), is_urgent=is_urgent)

    def check(self) -> None:
        """As `BackgroundWriter.check`."""
        if self._writer is not None:
            self._writer.check()

    def close(self, *, is_urgent: bool = False) -> None:
        """As `BackgroundWriter.close`."""
        if self._writer is not None:
            self._writer.close(is_urgent=is_urgent)

    def _encoded(self, line: str) -> bytes:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return f"{line}{os.linesep}".encode(encoding, "backslashreplace")


def _writer_on(stream: IO[str]) -> BackgroundWriter | None:
    try:
        stream.flush()
        return BackgroundWriter(os.dup(stream.fileno()))
    except (AttributeError, OSError, ValueError):  # it has none, or is closed
        return None
