"""The two ends of a worker's private socket pair: whole messages, framed by a mark and a length."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

from .messages import Message, unpack

_HEADER = struct.Struct("!4sQ")
_MARK = b"fans"
_CHUNK = 65536
_FAIR_SHARE = 32  # chunks read from one worker before the others get their turn

# A caller that restored the default SIGPIPE, as many scripts do, must not die of a dead worker's socket.
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
    """Bytes came that are no message: something in the worker wrote to a descriptor that is not its own."""


class CallerLink:
    """The caller's end. It never blocks: a worker that dies in the middle of a message must hold up nobody."""

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
        """Send as much as goes now, keep the rest for `flush`; return whether nothing is left.

        Raises:
            LinkLost: The worker is gone and has not read it.
        """
        header = _HEADER.pack(_MARK, len(message))
        if len(message) >= _CHUNK:
            self._unsent.extend((memoryview(header), memoryview(message)))
        elif self._unsent:
            self._unsent.append(memoryview(header + message))
        else:
            return self._send_short(header + message)
        return self.flush()

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
        """Send what is left, as far as it goes now; return whether nothing is left.

        Raises:
            LinkLost: The worker is gone and has not read it.
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
        """Return the whole messages that are here now; of a long one that is still coming, take a fair share.

        Args:
            everything: Whether to read on until nothing is left, because the worker is dead.

        Raises:
            LinkLost: The worker's end is closed and all that came before is returned already.
            Garbled: What came is no message.
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
                # Linux says "reset" when the worker's end was closed with something unread in it.
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
        self._identity = self._look()
        self._scratch = bytearray(_CHUNK)
        self._held = 0
        self._lock = threading.RLock()
        self._outgoing: deque[bytes] = deque()
        self._is_sending = False

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            LinkLost: The caller is gone, or a step closed this end.
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
            LinkLost: The caller is gone, or a step closed or replaced this end.
        """
        with self._lock:
            self._outgoing.append(message)
            if self._is_sending:  # a signal handler, called in the middle of a send of this very thread
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

    def _look(self) -> Any:
        if sys.platform == "win32":
            return None
        status = os.fstat(self._end.fileno())
        return status.st_dev, status.st_ino

    def _check(self) -> None:
        # A step that closed every descriptor may have opened a file of its own under our number by now.
        try:
            same = self._look() == self._identity
        except OSError as error:
            raise LinkLost(unread=False) from error
        if not same:
            raise LinkLost(unread=False)


def open_link() -> tuple[CallerLink, Any]:
    """Return the caller's end, and something that a loky process can be given as its end (see `adopt`)."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(True)  # whatever socket.setdefaulttimeout says
    if sys.platform == "win32":
        from multiprocessing.resource_sharer import DupSocket

        with theirs:
            return CallerLink(ours), DupSocket(theirs)
    return CallerLink(ours), Connection(theirs.detach())


def adopt(theirs: Any) -> WorkerLink:
    """Return the worker's end from what `open_link` made for it."""
    if sys.platform == "win32":
        end: socket.socket = theirs.detach()
    else:
        with theirs:
            end = socket.socket(fileno=os.dup(theirs.fileno()))
    end.settimeout(None)
    return WorkerLink(end)


def _whole_message(data: memoryview) -> Message | None:
    if len(data) < _HEADER.size:
        return None
    mark, size = _HEADER.unpack_from(data)
    if mark != _MARK:
        raise Garbled
    return unpack(data[_HEADER.size :]) if len(data) == _HEADER.size + size else None
