"""A lock file beside the journal: the process that holds a workflow locks one byte of it.

The locks are POSIX record locks (`fcntl`), because these belong to one process: the operating system drops them when
the process ends, in whatever way, and a forked child does not inherit them. A lock of `flock`, or an open file
description lock, belongs to the open file, which a forked child shares: the child would keep the lock after its
parent has ended, or could drop it. Record locks have two weaknesses, which this module makes up for:

- A process that asks twice is granted the same lock twice. So a table, guarded by a mutex, says what this process has.
- Closing *any* descriptor of a file drops all locks that the process has on it. So there is one descriptor for each
  file, closed with the last lock; and the file is never the database, which SQLite locks in the same way. Other code in
  the process may still open and close the file, to copy a directory, say: so each write takes the lock again.

The file is empty and is never removed: another process may have opened it and not locked it yet.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import threading
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from attrs import define, field

from ..errors import JournalError

if sys.platform == "win32":  # locks belong to the process there, too
    import msvcrt

    def _lock(descriptor: int, offset: int) -> None:
        os.lseek(descriptor, offset, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _is_locked_by_another(descriptor: int, offset: int) -> bool:
        try:  # Windows cannot be asked
            _lock(descriptor, offset)
        except OSError as error:
            if error.errno in _HELD_BY_ANOTHER:
                return True
            raise
        _unlock(descriptor, offset)
        return False

    def _unlock(descriptor: int, offset: int) -> None:
        os.lseek(descriptor, offset, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, offset: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)

    def _unlock(descriptor: int, offset: int) -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, offset)

    def _is_locked_by_another(descriptor: int, offset: int) -> bool:
        # `struct flock` has its type, its origin, start, length and process; Linux begins with the type, others end.
        on_linux = sys.platform == "linux"
        layout = "hhqqi" if on_linux else "qqihh"
        asked = (fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0) if on_linux else (offset, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(f"{layout}0q", *asked))
        kind: int = struct.unpack(f"{layout}0q", answer)[0 if on_linux else 3]
        return kind != fcntl.F_UNLCK


SUFFIX = "-lock"
"""The name of the lock file is that of the journal and this."""

_HELD_BY_ANOTHER = (errno.EACCES, errno.EAGAIN)  # POSIX allows both
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

_Key = tuple[int, int, int]  # the id of the process; the device and the inode of the file


@define(eq=False)
class _LockFile:
    descriptor: int
    offsets: set[int] = field(factory=set)


_files: dict[_Key, _LockFile] = {}
"""The lock files that this process has open, with the offsets of the bytes that it has locked.

The process id is part of the key, because C code may fork without running the fork hooks at the end of this module.
"""

_mutex = threading.RLock()
"""Guards `_files`. Reentrant, because the garbage collector may release a lock while another is being taken."""


@define(eq=False)
class ByteLock:
    """The lock on one byte. It lasts until `release`, until nothing refers to it, or until the process ends."""

    _journal: Path
    _path: Path
    _offset: int
    _key: _Key | None = None
    _file: _LockFile | None = None

    def take(self) -> bool:
        """Take the lock; return whether that succeeded: `False` if another run has it, in this process or in another.

        Raises:
            JournalError: The lock file cannot be created, opened or locked.
        """
        try:
            with _mutex:
                return self._take()
        except OSError as error:
            raise JournalError(f"{self._journal}: {self._obstacle(error)}") from error

    def release(self) -> None:
        """Release the lock. Calling it again does nothing, and neither does calling it in a forked child."""
        if self._is_taken_here():  # checked first, so that a finalizer seldom waits for the mutex
            with _mutex:
                if self._file is not None and self._key is not None:
                    self._drop(self._file, self._key)

    def keep(self) -> None:
        """Take the lock again, in case other code in this process has dropped it by closing the lock file.

        Raises:
            JournalError: Another run has taken the lock meanwhile.
            OSError: The lock file cannot be locked.
        """
        if (
            sys.platform == "win32" or self._file is None
        ):  # on Windows closing a file does not drop the lock, and it is not granted twice
            return
        try:
            _lock(self._file.descriptor, self._offset)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                raise
            raise JournalError(
                f"{self._journal}: code in this process has opened and closed {self._path.name}, which released the "
                "workflow, and another run holds it now; nothing was written"
            ) from error

    def check(self) -> None:
        """Check that the lock file is still in its place, so that other runs find the lock.

        Raises:
            JournalError: The lock file has been deleted or replaced.
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
                break  # otherwise the garbage collector has just released its last lock and closed it
        try:
            _lock(file.descriptor, self._offset)
        except OSError as error:
            self.release()
            if error.errno in _HELD_BY_ANOTHER:
                return False
            raise
        return True

    def _drop(self, file: _LockFile, key: _Key) -> None:
        with suppress(OSError):  # such as no memory to split a range; then closing the file releases it
            _unlock(file.descriptor, self._offset)
        self._file = None
        file.offsets.discard(self._offset)
        # `pop`, so that only one of two nested releases closes the file.
        if not file.offsets and _files.pop(key, None) is not None:
            os.close(file.descriptor)

    def _is_taken_here(self) -> bool:
        return self._file is not None and self._key is not None and self._key[0] == os.getpid()

    def _obstacle(self, error: OSError) -> str:
        if error.errno in _CANNOT_LOCK:
            return "its file system cannot lock files; put it on a local disk"
        return f"its lock file {self._path} cannot be opened and locked ({error.strerror}); make it writable"

    def __del__(self) -> None:
        self.release()


def path_of_lock_file(journal: Path) -> Path:
    """Return the path of the lock file of a journal: beside the real file, if the path is a symbolic link."""
    real = Path(os.path.realpath(journal))
    return real.with_name(real.name + SUFFIX)


def byte_lock(journal: Path, workflow_id: str) -> ByteLock:
    """Return the lock of a workflow, not taken yet. The journal must exist."""
    return ByteLock(journal, path_of_lock_file(journal), _offset_of(workflow_id))


def is_held(journal: Path, workflow_id: str) -> bool:
    """Return whether a run holds a workflow, in this process or in another one, without taking its lock.

    Raises:
        OSError: The lock file cannot be opened or asked.
    """
    offset = _offset_of(workflow_id)
    path = path_of_lock_file(journal)
    with _mutex:
        # A descriptor of this process is used if there is one: closing another one would drop its locks.
        key = _key_of(path)
        file = None if key is None else _files.get(key)
        if file is not None:
            return offset in file.offsets or _is_locked_by_another(file.descriptor, offset)
        try:
            descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        except FileNotFoundError:  # no run has held any
            return False
        try:
            return _is_locked_by_another(descriptor, offset)
        finally:
            os.close(descriptor)


def _offset_of(workflow_id: str) -> int:
    # The offset is a hash of the workflow id, not the id of its row: another workflow may get that row id when this one
    # is deleted or the journal is replaced. Offsets have 63 bits and may lie beyond the end of the file.
    digest = blake2b(workflow_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def _opened(path: Path, journal: Path) -> tuple[_Key, _LockFile]:
    # Looked up before it is opened, because a second descriptor could not be closed without dropping the locks.
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
    # Users who may write the journal may lock it, as with the side files of SQLite.
    with suppress(OSError):  # some file systems have no owners
        os.fchmod(descriptor, stat.S_IMODE(model.st_mode) & 0o666)
        if os.geteuid() == 0:
            os.fchown(descriptor, model.st_uid, model.st_gid)


def _before_fork() -> None:
    # No thread is changing `_files` during the fork, so the child gets a consistent copy.
    _mutex.acquire()


def _after_fork_in_parent() -> None:
    _mutex.release()


def _after_fork_in_child() -> None:
    # The locks stay with the parent; closing its descriptors in the child does not drop them.
    global _mutex
    _mutex = threading.RLock()
    inherited = list(_files.values())
    _files.clear()
    for file in inherited:
        os.close(file.descriptor)


if sys.platform != "win32":
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
