"""How what SQLite has written comes to survive a power failure."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from attrs import define

from ..errors import JournalError
from .database import wal_of

_NO_FILE = -1


@define(eq=False)
class Durability:
    """The syncing of one journal, while a connection to it is open.

    SQLite appends each transaction to the write-ahead log and hands it to the system, which a killed process does not
    undo; a power failure could. At a checkpoint SQLite itself syncs the log, moves it into the main file, syncs that,
    and begins the log anew: so whatever is not in the log any more is safe, and to sync the log is enough.

    The descriptor is one of the log, never of the main file: to close any descriptor of that would drop the locks that
    SQLite holds on it (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
    """

    _path: Path
    _inode: int
    _descriptor: int = _NO_FILE

    @classmethod
    def of(cls, path: Path) -> Durability:
        """Return that of a journal that exists."""
        return cls(path, path.stat().st_ino)

    def sync(self) -> None:
        """Return when the log is on the disk.

        Raises:
            JournalError: The journal has been deleted or replaced meanwhile.
            OSError: The storage says that it is lost.
        """
        self._refuse_another_file()
        if self._descriptor == _NO_FILE:
            log = wal_of(self._path)
            self._descriptor = os.open(log, os.O_RDWR | getattr(os, "O_BINARY", 0))
            _fsync(self._descriptor)
            _fsync_directory(log.parent)  # or the files are there after a power failure, but not their names
        else:
            _fsync(self._descriptor)

    def close(self) -> None:
        """Close the log. Calling it again does nothing."""
        descriptor, self._descriptor = self._descriptor, _NO_FILE
        if descriptor != _NO_FILE:
            os.close(descriptor)

    def _refuse_another_file(self) -> None:
        # SQLite goes on writing into a deleted file, which nobody will ever find.
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            inode = _NO_FILE
        if inode != self._inode:
            raise JournalError(f"{self._path}: has been deleted or replaced while it was in use; run again")


def _fsync(descriptor: int) -> None:
    if sys.platform == "darwin":  # where fsync only hands the data to the drive, which may keep it in its cache
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _fsync_directory(path: Path) -> None:
    if sys.platform == "win32":  # directories cannot be opened there, and need not be
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
