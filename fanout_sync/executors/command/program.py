"""One running program: fed, read, and ended with all that it has started."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from attrs import frozen

from ... import forks
from ...processes.killing import tree_killer
from ...processes.process_tree import MARK, has_group, mark_below
from ..async_steps import CodeCancelled
from ..clock import clock
from ..current_step import StopSignal

logger = logging.getLogger(__name__)

_PIECE = 65_536
_LONGEST_WAIT_S = 3600.0  # of one system call: what poll() takes has a limit
_CHECK_INTERVAL_S = 0.05
_REAP_BOUND_S = 5.0
_LEAST_SILENCE_S = 0.05
"""Whether an answer has come is not asked sooner after a piece of stdout: to read all of it for each piece is slow."""
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class OutputReader(Protocol):
    """Takes what a program writes."""

    def take_stdout(self, data: bytes) -> None:
        """Take the next piece of stdout."""

    def take_stderr(self, data: bytes) -> None:
        """Take the next piece of stderr."""

    def is_complete(self) -> bool:
        """Return whether the last piece of stdout has said that the answer is complete, and nothing follows.

        Asked after each piece.
        """

    def has_answer(self, is_closed: bool) -> bool:
        """Return whether the answer has come, so that the program need not go on.

        Asked when nothing has come on stdout for a while, or when `is_complete` has been true for a while.

        Args:
            is_closed: Whether the program has closed stdout.
        """


class Overdue(Exception):
    """The deadline of a step was over before its program had ended."""


class Idle(Exception):
    """A program had written nothing for too long."""


@frozen
class Patience:
    """How long a program may take.

    Attributes:
        deadline: When the timeout of its step is over, on the clock of timeouts; infinite if there is none.
        idle_timeout_s: Seconds that it may write nothing; infinite for any time.
        exit_grace_s: Seconds that it, or what is left of it, may go on after its answer.
    """

    deadline: float = math.inf
    idle_timeout_s: float = math.inf
    exit_grace_s: float = 5.0

    def end_of_grace(self, since: float, least_s: float = 0.0) -> float:
        """Return when the grace is over that began at a moment, both on the clock of `time.monotonic()`.

        It takes `least_s` at least, but ends well before the deadline: an answer that has come in time counts.
        """
        left_s = clock.monotonic_at(self.deadline) - since if self.deadline < math.inf else math.inf
        return since + min(max(self.exit_grace_s, least_s), max(0.0, left_s / 2))


class Program:
    """A program in a session of its own, where neither Ctrl-C nor the terminal reaches it.

    Args:
        arguments: The program and its arguments.
        environment: All its environment variables.
        cwd: Where it starts; `None` for the current directory.
        stdin: What it reads from its standard input.
        mark: Identifies it and what it starts; see `process_tree.MARK`.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(
        self, arguments: list[str], environment: Mapping[str, str], cwd: str | None, stdin: bytes, mark: str
    ) -> None:
        self.name = Path(arguments[0]).name
        self._mark = mark
        self._stdin = memoryview(stdin)
        self._lock = threading.Lock()
        self._is_cancelled = self._is_inherited = False
        self._pidfd: int | None = None
        with contextlib.ExitStack() as on_failure:
            self._wake_reader, self._wake_writer = _wake_descriptors()
            on_failure.callback(self._close_descriptors)
            self._process = subprocess.Popen(
                arguments,
                bufsize=0,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env={**environment, MARK: mark_below(mark)},
                start_new_session=True,
            )
            on_failure.pop_all()
        forks.disown_in_child(self)
        with contextlib.suppress(AttributeError, OSError):  # where the system has no pidfd, or no more descriptors
            self._pidfd = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def cancel(self) -> None:
        """Have `communicate` end, in whatever thread it is called."""
        with self._lock:
            self._is_cancelled = True
            if self._wake_writer >= 0:
                os.write(self._wake_writer, (1).to_bytes(8, "little"))

    def communicate(self, reader: OutputReader, patience: Patience, stop: StopSignal) -> int | None:
        """Feed the program and read its outputs until it has ended. Nothing of it is left after that.

        Args:
            reader: Takes the outputs.
            patience: When the program is killed.
            stop: Set when the run is given up; polled, if it is of that kind. Otherwise `cancel` is to be called.

        Returns:
            Its exit status; negative if a signal has ended it, and `None` if it was killed after its answer.

        Raises:
            Overdue: The deadline was over.
            Idle: It had written nothing for too long.
            CodeCancelled: `cancel` was called, or `stop` is set.
            BaseException: The reader has raised it, or it is an interrupt.
        """
        try:
            with _Selector() as selector:
                conversation = _Conversation(self, selector, reader, patience, stop)
                if not conversation.has_ended_by_itself():
                    self.kill()
                    return self._process.returncode if conversation.has_exited else None
                status = self._reap()
                if has_group(self.pid) and not conversation.has_ended_after(lambda: not has_group(self.pid)):
                    self.kill()
                return status
        except BaseException:
            self.kill()
            raise
        finally:
            self._close()

    def kill(self) -> None:
        """Kill it and all that it has started."""
        if self._is_inherited:
            return
        # Once it was waited for, the number is its own only as long as its group is.
        is_own = self._process.returncode is None or has_group(self.pid)
        tree_killer.kill([self.pid] if is_own else [], self._mark)
        self._reap()

    def _reap(self) -> int | None:
        try:
            return self._process.wait(_REAP_BOUND_S)
        except subprocess.TimeoutExpired:
            logger.warning("process %s was killed but has not exited after %s s", self.pid, _REAP_BOUND_S)
            return None

    def _close(self) -> None:
        forks.keep_in_child(self)
        for pipe in self._pipes():
            pipe.close()
        self._close_descriptors()

    def _pipes(self) -> Iterator[IO[bytes]]:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                yield pipe

    def _close_descriptors(self) -> None:
        with self._lock:
            for descriptor in {self._wake_reader, self._wake_writer, -1 if self._pidfd is None else self._pidfd} - {-1}:
                os.close(descriptor)
            self._wake_reader = self._wake_writer = -1
            self._pidfd = None

    def disown(self) -> None:
        """Close this process's copies of the descriptors, in a forked child: a pipe must end with its own program."""
        if not self._is_inherited:
            self._is_inherited = True
            self._lock = threading.Lock()
            with contextlib.suppress(OSError):  # another thread of the parent was just closing it
                self._close()


class _Conversation:
    """What passes between a program and this process, until the program ends or is too late."""

    def __init__(
        self,
        program: Program,
        selector: selectors.BaseSelector,
        reader: OutputReader,
        patience: Patience,
        stop: StopSignal,
    ) -> None:
        self._program = program
        self._stop = stop
        self._process = program._process
        self._selector = selector
        self._reader = reader
        self._patience = patience
        self._is_stdout_open = True
        self._open_outputs = 2
        self.has_exited = False
        # The grace begins when the reader was first complete, or if it is not, with the last piece of stdout.
        self._quiet_since = self._grace_since = time.monotonic()
        self._is_complete = False
        self._is_to_be_asked = True
        self._left_alone_since: float | None = None
        process, register = self._process, selector.register
        assert process.stdout is not None
        assert process.stderr is not None
        register(program._wake_reader, selectors.EVENT_READ, lambda: None)
        register(process.stdout, selectors.EVENT_READ, lambda: self._read(process.stdout, reader.take_stdout))
        register(process.stderr, selectors.EVENT_READ, lambda: self._read(process.stderr, reader.take_stderr))
        if program._pidfd is not None:
            register(program._pidfd, selectors.EVENT_READ, self._note_exit)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            register(process.stdin, selectors.EVENT_WRITE, self._write)
            self._write()

    def has_ended_by_itself(self) -> bool:
        """Go on until the program has exited and closed its outputs; return false if it has to be killed."""
        return self.has_ended_after(lambda: self.has_exited and not self._open_outputs)

    def has_ended_after(self, is_over: Callable[[], bool]) -> bool:
        """Go on until `is_over`; return false if the program, or what is left of it, has to be killed first.

        Raises:
            Overdue, Idle, CodeCancelled: As for `Program.communicate`.
        """
        while not is_over():
            if self._program._is_cancelled or (self._stop.check_interval_s is not None and self._stop.is_set()):
                raise CodeCancelled
            left_s = self._left_s()
            if left_s is None:
                return False
            needs_checks = self._program._pidfd is None or not self._open_outputs
            interval_s = _CHECK_INTERVAL_S if needs_checks else self._stop.check_interval_s or _LONGEST_WAIT_S
            for key, _ in self._selector.select(min(left_s, interval_s)):
                key.data()
            if self._program._pidfd is None and not self.has_exited and self._process.poll() is not None:
                self._note_exit()
        return True

    def _left_s(self) -> float | None:
        """Return for how many seconds to wait at most; `None` if the program has to be killed after its answer."""
        now = time.monotonic()
        deadline = self._patience.deadline
        if deadline < math.inf:
            if clock.has_reached(deadline):
                raise Overdue
            deadline = clock.monotonic_at(deadline)
        if self._left_alone_since is not None:
            end = self._patience.end_of_grace(self._left_alone_since)
            return None if now >= end else min(end, deadline) - now
        if now >= (idle := self._quiet_since + self._patience.idle_timeout_s):
            raise Idle
        if not self._is_to_be_asked:
            return max(0.0, min(idle, deadline) - now)
        is_certain = self._is_complete or not self._is_stdout_open
        end = self._patience.end_of_grace(self._grace_since, 0.0 if is_certain else _LEAST_SILENCE_S)
        if now >= end:
            self._is_to_be_asked = False
            if self._reader.has_answer(not self._is_stdout_open):
                return None
            return self._left_s()
        return max(0.0, min(idle, deadline, end) - now)

    def _read(self, pipe: Any, take: Callable[[bytes], None]) -> None:
        data = os.read(pipe.fileno(), _PIECE)
        is_stdout = pipe is self._process.stdout
        if data:
            take(data)
        else:
            self._selector.unregister(pipe)
            pipe.close()
            self._open_outputs -= 1
            self._is_stdout_open &= not is_stdout
        self._quiet_since = time.monotonic()
        if is_stdout:
            was_complete, self._is_complete = self._is_complete, self._reader.is_complete()
            if not (was_complete and self._is_complete):
                self._grace_since, self._is_to_be_asked = self._quiet_since, True

    def _write(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            written = os.write(stdin.fileno(), self._program._stdin[:_PIECE])
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want to read all of it
            written = len(self._program._stdin)
        self._program._stdin = self._program._stdin[written:]
        if not self._program._stdin:
            self._selector.unregister(stdin)
            stdin.close()

    def _note_exit(self) -> None:
        self.has_exited = True
        self._left_alone_since = time.monotonic()
        if self._program._pidfd is not None:
            self._selector.unregister(self._program._pidfd)


def _wake_descriptors() -> tuple[int, int]:
    """Return a descriptor that becomes readable when the other one is written to."""
    if hasattr(os, "eventfd"):
        descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return descriptor, descriptor
    return os.pipe()
