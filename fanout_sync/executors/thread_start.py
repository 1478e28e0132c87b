"""Starting threads, with a clear error where Python starts no more of them."""

from __future__ import annotations

import sys
import threading


def start_thread(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        RuntimeError: The system has no more threads, or Python starts none because the main thread has ended.
    """
    try:
        thread.start()
    except RuntimeError as error:
        if threading.main_thread().is_alive():
            raise
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise RuntimeError(
            f"the run needs a thread, and Python {version} starts none after the end of the main thread ({error}); let "
            "the main thread wait until the run is over, or use Runner.run with a list and backend='process', which "
            "needs no thread"
        ) from error
