"""Rows with the live view of the command line."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

from fanout_sync.cli.displays import LiveDisplay
from fanout_sync.cli.shown_progress import ShownProgress

from .. import pools
from ..executors import specs_for
from ..functions import answer
from ..measure import time_warm
from ..row import OURS, Contestant, Limit, Row, Sizes
from .threads import RUN_IN, WARM_UP


def noop(sizes: Sizes) -> Row:
    """Steps that do nothing: what does it cost to note them for the view, and to draw it?"""
    specs, warm_up = specs_for(["hello"] * sizes.thread_steps), specs_for([*WARM_UP, *RUN_IN])
    scale = 1e6 / sizes.thread_steps

    def seen() -> float:
        with _terminal() as terminal, ShownProgress(LiveDisplay(terminal), []) as progress:
            return time_warm(partial(pools.fanout_sync, answer, 8, progress=progress.as_option()), warm_up, specs)

    return Row(
        f"{sizes.thread_steps:,} no-op steps, thread, limit 8, with the live view",
        "µs a step",
        (
            Contestant(OURS, lambda: scale * seen()),
            Contestant("without", lambda: scale * time_warm(partial(pools.fanout_sync, answer, 8), warm_up, specs)),
        ),
        (Limit("aim", 1.1, ("without",)),),
    )


@contextmanager
def _terminal() -> Iterator[IO[str]]:
    """Open a terminal that somebody reads."""
    master, slave = os.openpty()
    reader = threading.Thread(target=_read, args=(master,))
    reader.start()
    try:
        with os.fdopen(slave, "w", encoding="utf-8") as terminal:
            yield terminal
    finally:
        reader.join()
        os.close(master)


def _read(master: int) -> None:
    while True:
        try:
            os.read(master, 65536)
        except OSError:  # nobody has the terminal open any more
            return
