"""The two ends of a worker's private socket pair. They carry whole messages, each after a mark and its length."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections import deque
from typing import Any

from .messages import Message, unpack

LOST_LINK_EXIT_CODE = 82
"""The exit code of a worker that can no longer reach its caller."""

_HEADER = struct.Struct("!4sQ")
_MARK = b"fans"
_CHUNK = 65536
_FAIR_SHARE = 32  # so many chunks are read from one worker before the others get their turn

# Many scripts restore the default action of SIGPIPE; they must not die when they write to a dead worker.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class LinkLost(Exception):
    """The other end is gone.

    Attributes:
        unread: Whether it is certain that the last message was not read to its end.
    """

    def __init__(self, unread: bool) -> None:
        super().__init__(unread)
        self.unread = unread


class Garbled(Exception):
    """The bytes that came are no message: code in the worker wrote to a descriptor that is not its own."""


class CallerLink:
    """The caller's end. It never blocks: a worker that dies in the middle of a message must not delay the others."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        if hasattr(socket, "SO_NOSIGPIPE"):  # macOS has this instead of MSG_NOSIGNAL
            end.setsockopt(socket.SOL_SOCKET, socket.SO_NOSIGPIPE, 1)
        self._end = end
        self._unsent: deque[memoryview] = deque()
        self._scratch = bytearray(_CHUNK)
        self._received = bytearray()
        self._is_lost = False
        self._is_unread = False

    def fileno(self) -> int:
        return self._end.fileno()

    def close(self) -> None:
        self._end.close()

    def send(self, message: bytes) -> bool:
        """Send as much as the socket takes now, keep the rest for `flush`; return whether nothing is left.

        Raises:
            LinkLost: The worker is gone and has not read the message.
        """
        header = _HEADER.pack(_MARK, len(message))
        if len(message) >= _CHUNK:
            self._unsent.extend((memoryview(header), memoryview(message)))
        elif self._unsent:
            self._unsent.append(memoryview(header + message))
        else:
            return self._send_short(header + message)
        return self.flush()

    def send_bytes(self, data: bytes) -> None:
        """Send bytes that are no message, before all messages; what the socket does not take now follows later.

        Raises:
            LinkLost: The worker is gone.
        """
        self._send_short(data)

    def _send_short(self, data: bytes) -> bool:
        try:
            sent = self._end.send(data, _NO_SIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise LinkLost(unread=True) from error
        if sent == len(data):
            return True
        self._unsent.append(memoryview(data)[sent:])
        return False

    def flush(self) -> bool:
        """Send as much of the rest as the socket takes now; return whether nothing is left.

        Raises:
            LinkLost: The worker is gone and has not read the message.
        """
        try:
            while self._unsent:
                rest = self._unsent[0]
                sent = self._end.send(rest, _NO_SIGNAL)
                if sent < len(rest):
                    self._unsent[0] = rest[sent:]
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            return False
        except OSError as error:
            raise LinkLost(unread=True) from error
        return True

    def receive(self, everything: bool = False) -> list[Message]:
        """Return the messages that have arrived whole; of a long one that is still arriving, read a fair share.

        Args:
            everything: Whether to read until nothing is left, because the worker is dead.

        Raises:
            LinkLost: The worker's end is closed, and every message before that has been returned.
            Garbled: The bytes that came are no message.
        """
        messages: list[Message] = []
        for _ in range(sys.maxsize if everything else _FAIR_SHARE):
            if self._is_lost:
                break
            try:
                size = self._end.recv_into(self._scratch)
            except BlockingIOError:
                break
            except OSError as error:
                # Linux says "reset" when the worker's end was closed with unread bytes in it.
                self._is_lost, self._is_unread = True, isinstance(error, ConnectionResetError)
                break
            if size == 0:
                self._is_lost, self._is_unread = True, bool(self._unsent)
                break
            self._take(memoryview(self._scratch)[:size], messages)
            if size < _CHUNK and not everything:
                break
        if self._is_lost and not messages:
            raise LinkLost(self._is_unread)
        return messages

    def _take(self, data: memoryview, messages: list[Message]) -> None:
        if not self._received and (whole := _whole_message(data)):
            messages.append(whole)
            return
        self._received += data
        while len(self._received) >= _HEADER.size:
            mark, size = _HEADER.unpack_from(self._received)
            if mark != _MARK:
                raise Garbled
            end = _HEADER.size + size
            if len(self._received) < end:
                return
            with memoryview(self._received) as view, view[_HEADER.size : end] as body:
                messages.append(unpack(body))
            del self._received[:end]


class WorkerLink:
    """The worker's end. It blocks; several threads of a step may send at once."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._identity = self._file_identity()
        self._scratch = bytearray(_CHUNK)
        self._held = 0
        self._lock = threading.RLock()
        self._outgoing: deque[bytes] = deque()
        self._is_sending = False

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            LinkLost: The caller is gone, or a step has closed this end.
        """
        scratch = memoryview(self._scratch)
        while self._held < _HEADER.size:
            self._held += self._read(scratch[self._held :])
        _, size = _HEADER.unpack_from(scratch)
        end = _HEADER.size + size
        if self._held >= end:
            message = unpack(scratch[_HEADER.size : end])
            rest = bytes(scratch[end : self._held])
            scratch[: len(rest)] = rest
            self._held = len(rest)
            return message
        body = memoryview(bytearray(size))
        filled = self._held - _HEADER.size
        body[:filled] = scratch[_HEADER.size : self._held]
        self._held = 0
        while filled < size:
            filled += self._read(body[filled:])
        return unpack(body)

    def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            LinkLost: The caller is gone, or a step has closed or replaced this end.
        """
        with self._lock:
            self._outgoing.append(message)
            if self._is_sending:  # this is a signal handler that interrupted a send of the same thread
                return
            self._is_sending = True
            try:
                while self._outgoing:
                    self._send_now(self._outgoing.popleft())
            finally:
                self._is_sending = False

    def _send_now(self, message: bytes) -> None:
        self._check()
        header = _HEADER.pack(_MARK, len(message))
        try:
            if len(message) < _CHUNK:
                self._end.sendall(header + message, _NO_SIGNAL)
            else:
                self._end.sendall(header, _NO_SIGNAL)
                self._end.sendall(message, _NO_SIGNAL)
        except OSError as error:
            raise LinkLost(unread=True) from error

    def _read(self, into: memoryview) -> int:
        try:
            count = self._end.recv_into(into)
        except OSError as error:
            raise LinkLost(unread=False) from error
        if count == 0:
            raise LinkLost(unread=False)
        return count

    def _file_identity(self) -> Any:
        if sys.platform == "win32":
            return None
        status = os.fstat(self._end.fileno())
        return status.st_dev, status.st_ino

    def _check(self) -> None:
        # A step that closed every descriptor may have opened a file that has the number of this socket now.
        try:
            same = self._file_identity() == self._identity
        except OSError as error:
            raise LinkLost(unread=False) from error
        if not same:
            raise LinkLost(unread=False)


def open_link() -> tuple[CallerLink, socket.socket]:
    """Return the caller's end, and the socket that the worker inherits (see `adopt`).

    Raises:
        OSError: The system has no more descriptors.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(True)  # whatever socket.setdefaulttimeout says
    return CallerLink(ours), theirs


def adopt(descriptor: int) -> WorkerLink:
    """Return the worker's end."""
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)
    end.settimeout(None)
    return WorkerLink(end)


def _whole_message(data: memoryview) -> Message | None:
    if len(data) < _HEADER.size:
        return None
    mark, size = _HEADER.unpack_from(data)
    if mark != _MARK:
        raise Garbled
    return unpack(data[_HEADER.size :]) if len(data) == _HEADER.size + size else None
