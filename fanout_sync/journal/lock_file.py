"""A lock file beside the journal: one byte of it for each workflow, locked by the operating system for its holder.

These are POSIX record locks (`fcntl`), because they belong to a process and to no other: the system drops them when the
process ends, however it ends, and a forked child has none of its parent's. A lock of `flock`, or an open file
description lock, belongs to the open file, which a forked child shares: the lock would outlive its process in a child
that goes on running, and the child could drop it. What record locks lack is made up for here:

- A process that asks twice is granted the same lock twice. So a table says what this process has, guarded by a mutex.
- Closing *any* descriptor of a file drops all locks that the process has on it. So there is one descriptor for each
  file, closed with the last lock. And so the file is never the database, which SQLite locks in the same way. Others in
  the process may still read the file, to copy all of a directory, say: so each write takes the lock again.

The file is empty, and stays where it is: to remove it would race with whoever has opened it but not locked it yet.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from attrs import define, field

from ..errors import JournalError

if sys.platform == "win32":  # its locks belong to the process, too
    import msvcrt

    def _lock(descriptor: int, offset: int) -> None:
        os.lseek(descriptor, offset, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int, offset: int) -> None:
        os.lseek(descriptor, offset, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, offset: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)

    def _unlock(descriptor: int, offset: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, offset)


SUFFIX = "-lock"
"""What the name of the lock file has more than that of the journal."""

_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)  # POSIX allows both
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_Key = tuple[int, int, int]  # the process, and the device and the inode of the file


@define(eq=False)
class _LockFile:
    descriptor: int
    offsets: set[int] = field(factory=set)


_files: dict[_Key, _LockFile] = {}
"""The lock files that this process has open, with the offsets of the bytes that it has locked.

The id of the process is part of the key: code in C may fork without Python's hearing of it, see the end of this module.
"""

_mutex = threading.RLock()
"""Guards `_files`. Reentrant, because the garbage collector may release a lock in the midst of taking another."""


@define(eq=False)
class ByteLock:
    """The lock on one byte. It lasts until `release`, until nothing refers to it, or until the process ends."""

    _journal: Path
    _path: Path
    _offset: int
    _key: _Key | None = None
    _file: _LockFile | None = None

    def take(self) -> bool:
        """Take the lock; return whether nobody else has it, in this process or in another.

        Raises:
            JournalError: The lock file cannot be made, opened or locked.
        """
        try:
            with _mutex:
                return self._take()
        except OSError as error:
            raise JournalError(f"{self._journal}: {self._obstacle(error)}") from error

    def release(self) -> None:
        """Release the lock. Calling it again does nothing, and neither does calling it in a forked child."""
        if self._is_taken_here():  # asked beforehand, so that a finalizer seldom waits for the mutex
            with _mutex:
                if self._file is not None and self._key is not None:
                    self._drop(self._file, self._key)

    def keep(self) -> None:
        """Take the lock again, in case that code of this process has opened and closed the lock file, which drops it.

        Raises:
            JournalError: Another run has taken it meanwhile.
            OSError: The system says so.
        """
        if sys.platform == "win32" or self._file is None:  # there it is not dropped, nor granted twice
            return
        try:
            _lock(self._file.descriptor, self._offset)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                raise
            raise JournalError(
                f"{self._journal}: code in this process has opened and closed {self._path.name}, which drops the hold "
                "on the workflow, and another run has taken it over; nothing was written"
            ) from error

    def check(self) -> None:
        """Make sure that others who want this lock find its file.

        Raises:
            JournalError: It has been deleted or replaced.
        """
        if _key_of(self._path) != self._key:
            raise JournalError(
                f"{self._journal}: its lock file {self._path.name} has been deleted or replaced while it was in use; "
                "run again"
            )

    def _take(self) -> bool:
        while True:
            key, file = _opened(self._path, self._journal)
            if self._offset in file.offsets:
                return False
            self._key, self._file = key, file
            file.offsets.add(self._offset)
            if _files.get(key) is file:
                break  # otherwise the garbage collector has just released its last lock, and so closed it
        try:
            _lock(file.descriptor, self._offset)
        except OSError as error:
            self.release()
            if error.errno in _HELD_BY_ANOTHER:
                return False
            raise
        return True

    def _drop(self, file: _LockFile, key: _Key) -> None:
        with suppress(OSError):  # no memory to split a range, say; then closing the file does it
            _unlock(file.descriptor, self._offset)
        self._file = None
        file.offsets.discard(self._offset)
        # Popped and not looked up: of two releases, one in the midst of the other, only one closes.
        if not file.offsets and _files.pop(key, None) is not None:
            os.close(file.descriptor)

    def _is_taken_here(self) -> bool:
        return self._file is not None and self._key is not None and self._key[0] == os.getpid()

    def _obstacle(self, error: OSError) -> str:
        if error.errno in _CANNOT_LOCK:
            return "its file system cannot lock files; put it on a local disk"
        return f"its lock file {self._path} cannot be opened and locked ({error.strerror}); make sure it can be written"

    def __del__(self) -> None:
        self.release()


def path_of_lock_file(journal: Path) -> Path:
    """Return the path of the lock file of a journal: beside the file itself, where a symbolic link leads to one."""
    real = Path(os.path.realpath(journal))
    return real.with_name(real.name + SUFFIX)


def byte_lock(journal: Path, workflow_id: str) -> ByteLock:
    """Return the lock of a workflow, not yet taken; the journal is there already."""
    # By a hash and not by the row's id: that is given to another workflow when this one is deleted, or when another
    # file takes the place of the journal. Offsets have 63 bits, and may lie beyond the end of the file.
    digest = blake2b(workflow_id.encode(), digest_size=8).digest()
    return ByteLock(journal, path_of_lock_file(journal), int.from_bytes(digest, "big") >> 2)


def _opened(path: Path, journal: Path) -> tuple[_Key, _LockFile]:
    # Looked for before it is opened: a second descriptor could never be closed again.
    key = _key_of(path)
    if key is None or (file := _files.get(key)) is None:
        descriptor = _open(path, journal)
        found = os.fstat(descriptor)
        key = (os.getpid(), found.st_dev, found.st_ino)
        file = _files.setdefault(key, _LockFile(descriptor))
    return key, file


def _key_of(path: Path) -> _Key | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return os.getpid(), found.st_dev, found.st_ino


def _open(path: Path, journal: Path) -> int:
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if os.name == "posix":
            _share_as(descriptor, journal.stat())
        return descriptor
    return os.open(path, os.O_RDWR)


def _share_as(descriptor: int, model: os.stat_result) -> None:
    # Whoever may write the journal may lock it, as with SQLite's own side files.
    with suppress(OSError):  # some file systems have no owners
        os.fchmod(descriptor, stat.S_IMODE(model.st_mode) & 0o666)
        if os.geteuid() == 0:
            os.fchown(descriptor, model.st_uid, model.st_gid)


def _before_fork() -> None:
    # So that no thread is in the midst of a change, and what the child has of `_files` is whole.
    _mutex.acquire()


def _after_fork_in_parent() -> None:
    _mutex.release()


def _after_fork_in_child() -> None:
    # The locks have stayed with the parent; closing its descriptors here drops none of them.
    global _mutex
    _mutex = threading.RLock()
    inherited = list(_files.values())
    _files.clear()
    for file in inherited:
        os.close(file.descriptor)


if sys.platform != "win32":
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
