"""Looking after processes that tests start: are they there, are they gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from bounds import HANG_BOUND_S

_LOOK_EVERY_S = 0.02


def is_alive(pid: int) -> bool:
    """Return whether there is such a process that is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text[text.rindex(")") + 2] not in "ZX"


def eventually(condition: Callable[[], bool]) -> bool:
    """Return whether something came to hold, within the bound of all waits."""
    clock = threading.Event()
    for _ in range(int(HANG_BOUND_S / _LOOK_EVERY_S)):
        if condition():
            return True
        clock.wait(_LOOK_EVERY_S)
    return False


def pids_in(folder: Path, count: int) -> list[int]:
    """Return the numbers that so many processes have left as files of this folder, once they have."""

    def written() -> list[int]:
        texts = [path.read_text() for path in folder.glob("*.pid")]
        return [int(text) for text in texts if text.endswith("\n")]

    assert eventually(lambda: len(written()) >= count), f"{written()} of {count} processes began"
    return written()
