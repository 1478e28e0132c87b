"""Making what SQLite has written survive a power failure."""

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
    """Syncs one journal while a connection to it is open.

    SQLite appends each transaction to the write-ahead log and hands it to the operating system. It then survives if the
    process is killed, but not a power failure. At a checkpoint SQLite itself syncs the log, copies it into the main
    file, syncs that file, and starts the log again. So what is no longer in the log is safe, and it is enough to sync
    the log.

    The descriptor here is one of the log, never of the main file: closing any descriptor of that file would drop the
    locks that SQLite holds on it (https://sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_).
    """

    _path: Path
    _inode: int
    _descriptor: int = _NO_FILE

    @classmethod
    def of(cls, path: Path) -> Durability:
        """Return the object for a journal, whose file exists."""
        return cls(path, path.stat().st_ino)

    def sync(self) -> None:
        """Write the log to the disk, and return when that is done.

        Raises:
            JournalError: The journal has been deleted or replaced meanwhile.
            OSError: The disk reports that data was lost.
        """
        self._refuse_another_file()
        if self._descriptor == _NO_FILE:
            log = wal_of(self._path)
            self._descriptor = os.open(log, os.O_RDWR | getattr(os, "O_BINARY", 0))
            _fsync(self._descriptor)
            _fsync_directory(log.parent)  # otherwise a power failure could remove the name of a new file
        else:
            _fsync(self._descriptor)

    def close(self) -> None:
        """Close the log. Calling it again does nothing."""
        descriptor, self._descriptor = self._descriptor, _NO_FILE
        if descriptor != _NO_FILE:
            os.close(descriptor)

    def _refuse_another_file(self) -> None:
        # SQLite would go on writing into a deleted file, which nobody can open again.
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            inode = _NO_FILE
        if inode != self._inode:
            raise JournalError(f"{self._path}: has been deleted or replaced while it was in use; run again")


def _fsync(descriptor: int) -> None:
    if sys.platform == "darwin":  # there fsync only hands the data to the drive, which may keep it in its cache
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
