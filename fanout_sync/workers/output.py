"""What workers print: written to the streams of the caller in whole lines, each marked with its step."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from ..results.bar import around_bars

logger = logging.getLogger(__name__)

_CHUNK = 65536  # what a pipe holds
_LONGEST_LINE = 2 * _CHUNK


class Output:
    """The caller's end of a worker's standard output or standard error. It never blocks.

    Args:
        stream: Which of the two.
        descriptor: The reading end of a pipe.
    """

    def __init__(self, stream: Literal["stdout", "stderr"], descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._stream = stream
        self._file = io.FileIO(descriptor)  # eventlet lets `os.read` wait, although the descriptor does not block
        self._unfinished = b""

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def pump(self, label: str) -> bool:
        """Print what has arrived, at most as much as a pipe holds; return whether more may come."""
        data = self._file.read(_CHUNK)
        if data is None:  # nothing is there now
            return True
        *lines, self._unfinished = (self._unfinished + data).split(b"\n")
        if len(self._unfinished) > _LONGEST_LINE:
            lines, self._unfinished = [*lines, self._unfinished], b""
        self._print(lines, label)
        return bool(data)

    def finish(self, label: str) -> None:
        """Print the rest of what a step has written, including a last line without a line break."""
        self.pump(label)
        if self._unfinished:
            self._print([self._unfinished], label)
            self._unfinished = b""

    def _print(self, lines: Iterable[bytes], label: str) -> None:
        text = "".join(f"[{label}] {line.decode('utf-8', 'replace')}\n" for line in lines)
        stream = getattr(sys, self._stream)
        if text and stream is not None:
            try:
                with around_bars(stream):
                    _write(stream, text)
            except (Exception, SystemExit):  # the stream of the program, which may be closed; no step fails for that
                logger.exception("output of a worker could not be written to sys.%s and is lost", self._stream)


def _write(stream: Any, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))


def flush_streams() -> None:
    """Flush the standard streams of this process, as far as they can be flushed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it is closed, replaced or `None`, or its file is gone
            stream.flush()


def open_outputs() -> tuple[list[Output], list[int]]:
    """Return the caller's ends, and the descriptors that the worker inherits (see `redirect`).

    Raises:
        OSError: The system has no more descriptors.
    """
    ours: list[Output] = []
    theirs: list[int] = []
    streams: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
    try:
        for stream in streams:
            reader, writer = os.pipe()
            ours.append(Output(stream, reader))
            theirs.append(writer)
    except BaseException:
        for output in ours:
            output.close()
        for end in theirs:
            os.close(end)
        raise
    return ours, theirs


def redirect(ends: Sequence[int]) -> None:
    """Redirect the standard output and the standard error of this process to `ends`, line by line."""
    for number, end in enumerate(ends, 1):
        os.dup2(end, number)
        os.close(end)
    if ends:
        # New stream objects: the old ones remember the kind of file that they were opened for.
        sys.stdout = sys.__stdout__ = _writer(1)  # type: ignore[misc]  # they are not final in fact
        sys.stderr = sys.__stderr__ = _writer(2)  # type: ignore[misc]


def _writer(descriptor: int) -> Any:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
