"""Waits that go on in processes, and checks whether processes that tests start are alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from bounds import HANG_BOUND_S

_CHECK_INTERVAL_S = 0.02


def is_alive(pid: int) -> bool:
    """Return whether there is such a process that is not a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text[text.rindex(")") + 2] not in "ZX"


def eventually(condition: Callable[[], bool]) -> bool:
    """Return whether `condition` becomes true within the bound of all waits."""
    clock = threading.Event()
    for _ in range(int(HANG_BOUND_S / _CHECK_INTERVAL_S)):
        if condition():
            return True
        clock.wait(_CHECK_INTERVAL_S)
    return False


def wait_for_file(path: str) -> str:
    """Return the path when the test has created the file, also in another process.

    Raises:
        TimeoutError: It was not created within the bound of all waits.
    """
    if not eventually(Path(path).exists):
        raise TimeoutError(path)
    return path


def pids_in(folder: Path, count: int) -> list[int]:
    """Wait until so many processes have written their process id to a file of this folder; return the ids."""

    def written() -> list[int]:
        texts = [path.read_text() for path in folder.glob("*.pid")]
        return [int(text) for text in texts if text.endswith("\n")]

    assert eventually(lambda: len(written()) >= count), f"{written()} of {count} processes began"
    return written()
