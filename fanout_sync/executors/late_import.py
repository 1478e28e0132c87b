"""Importing modules after the main thread has ended, while other threads of the program go on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_threading: Any = threading
_lock = threading.RLock()


@contextlib.contextmanager
def late_imports() -> Iterator[None]:
    """Let modules be imported that want `threading` to call them at exit, also when it takes no such wish any more.

    It takes none once the main thread has ended; then the import fails. The pools of `concurrent.futures`, which loky
    and asyncio import, are such modules. They want to end their pools, of which there are none before the import.
    """
    if threading.main_thread().is_alive():
        yield
        return
    with _lock:
        register = _threading._register_atexit
        _threading._register_atexit = lambda function, *args, **kwargs: None
        try:
            yield
        finally:
            _threading._register_atexit = register
