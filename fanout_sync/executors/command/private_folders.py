"""Configuration folders for programs that must not share one while they run at once."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator


class PrivateFolders:
    """Folders that are empty at first, one for each program that runs at once; the next one gets one that is free.

    Args:
        make_parent: Returns the path of the folder that they are in.

    Attributes:
        make_parent: The same, for other temporary files.
    """

    def __init__(self, make_parent: Callable[[], str]) -> None:
        self.make_parent = make_parent
        self._lock = threading.Lock()
        self._all: list[str] = []
        self._free: list[str] = []

    @contextlib.contextmanager
    def one(self) -> Iterator[str]:
        """Yield the path of a folder that nobody else uses meanwhile.

        Raises:
            OSError: It cannot be made.
        """
        path = self._take()
        try:
            yield path
        finally:
            with self._lock:
                self._free.append(path)

    def _take(self) -> str:
        with self._lock:
            if not self._free:
                self._all.append(tempfile.mkdtemp(dir=self.make_parent()))
                return self._all[-1]
            return self._free.pop()

    def remove(self) -> None:
        """Remove them all."""
        for path in self._all:
            shutil.rmtree(path, ignore_errors=True)
