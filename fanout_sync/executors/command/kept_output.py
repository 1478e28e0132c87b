"""Output of any size in bounded memory: its beginning and its end are kept."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable

_BLOCK = 65_536
"""The end is kept in blocks of at least so many bytes, so that small pieces do not take more memory than they hold."""


class KeptOutput:
    """What a program writes to one of its outputs.

    Args:
        most_bytes: How much is kept; of more, half of it from the beginning and half from the end.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._head = bytearray()
        self._head_room = most_bytes - most_bytes // 2
        self._tail: deque[bytearray] = deque()
        self._tail_room = most_bytes // 2
        self._tail_size = 0
        self._size = 0

    def add(self, data: bytes) -> None:
        """Take the next piece."""
        self._size += len(data)
        room = self._head_room - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._add_to_tail(data)

    def _add_to_tail(self, data: bytes) -> None:
        if self._tail and len(self._tail[-1]) < _BLOCK:
            self._tail[-1] += data
        else:
            self._tail.append(bytearray(data))
        self._tail_size += len(data)
        while self._tail_size - len(self._tail[0]) >= self._tail_room and len(self._tail) > 1:
            self._tail_size -= len(self._tail.popleft())

    @property
    def is_empty(self) -> bool:
        return not self._size

    @property
    def is_cut(self) -> bool:
        """Whether something in the middle is left out."""
        return self._size > self._most_bytes

    def text(self, trimmed: Callable[[str, str], tuple[str, str]] = lambda head, tail: (head, tail)) -> str:
        """Return what is kept as text: invalid UTF-8 is replaced, and a mark stands for what is left out.

        Args:
            trimmed: Called with both parts, if something is left out; returns what to show of them.
        """
        tail = b"".join(self._tail)
        if not self.is_cut:
            return (bytes(self._head) + tail).decode("utf-8", "replace")
        tail = tail[-self._tail_room :] if self._tail_room else b""
        left_out = self._size - len(self._head) - len(tail)
        head_text, tail_text = trimmed(_beginning(bytes(self._head)), _end(tail))
        return f"{head_text}\n[... {left_out} bytes left out, max_output_bytes={self._most_bytes} ...]\n{tail_text}"


def _beginning(data: bytes) -> str:
    """Decode the beginning of a text, without a character that the cut has split."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


def _end(data: bytes) -> str:
    """Decode the end of a text, without a character that the cut has split."""
    start = 0
    while start < min(len(data), 3) and data[start] & 0xC0 == 0x80:
        start += 1
    return data[start:].decode("utf-8", "replace")
