"""What workers print, brought to the caller's own streams: whole lines, each with the step it is from."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any, Literal

logger = logging.getLogger(__name__)

_CHUNK = 65536  # what a pipe holds
_LONGEST_LINE = 2 * _CHUNK


class Output:
    """The caller's end of a worker's standard output or standard error. It never blocks.

    Args:
        stream: Which of the two.
        descriptor: Of a pipe, to read from.
    """

    def __init__(self, stream: Literal["stdout", "stderr"], descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._stream = stream
        self._descriptor = descriptor
        self._unfinished = b""

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def pump(self, label: str) -> bool:
        """Print what is there, at most as much as a pipe holds; return whether more may come."""
        try:
            data = os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return True
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        if len(self._unfinished) > _LONGEST_LINE:
            lines, self._unfinished = [*lines, self._unfinished], b""
        self._print(lines, label)
        return bool(data)

    def finish(self, label: str) -> None:
        """Print all that a step has written, its last line too if it did not end it."""
        self.pump(label)
        if self._unfinished:
            self._print([self._unfinished], label)
            self._unfinished = b""

    def _print(self, lines: Iterable[bytes], label: str) -> None:
        text = "".join(f"[{label}] {line.decode('utf-8', 'replace')}\n" for line in lines)
        stream = getattr(sys, self._stream)
        if text and stream is not None:
            try:
                _write(stream, text)
            except (Exception, SystemExit):  # the program's own stream, closed perhaps: it costs no step anything
                logger.exception("what a worker printed was lost")


def _write(stream: Any, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))


def open_outputs() -> tuple[list[Output], list[Connection]]:
    """Return the caller's ends, and what a loky process can be given as its ends (see `redirect`).

    Raises:
        OSError: There are no more descriptors to be had.
    """
    ours: list[Output] = []
    theirs: list[Connection] = []
    streams: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
    try:
        for stream in streams:
            reader, writer = os.pipe()
            ours.append(Output(stream, reader))
            theirs.append(Connection(writer, readable=False))
    except BaseException:
        for output in ours:
            output.close()
        for end in theirs:
            end.close()
        raise
    return ours, theirs


def redirect(ends: list[Connection]) -> None:
    """Let the standard output and the standard error of this process go to `ends`, line by line."""
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()
    if ends:
        # New ones: those there are remember what kind of file was behind them.
        sys.stdout = sys.__stdout__ = _writer(1)  # type: ignore[misc]  # they are not final in fact
        sys.stderr = sys.__stderr__ = _writer(2)  # type: ignore[misc]


def _writer(descriptor: int) -> Any:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
