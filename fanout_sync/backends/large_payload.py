"""The warning that an executor is so large that sending it to worker processes takes long, and much memory."""

from __future__ import annotations

import warnings
from concurrent.futures import Executor
from contextlib import suppress
from weakref import WeakSet

from ..formatting import level_of_the_caller

LARGE_BYTES = 50_000_000
"""A pickled executor of more bytes is told of."""

_HINT = (
    "keep large data in a file, and open it in setup(), so that workers share the memory: "
    "numpy.load(path, mmap_mode='r'), mmap or multiprocessing.shared_memory"
)
_told: WeakSet[Executor] = WeakSet()


def warn_of_large_payload(backend: Executor, payload: bytes, workers: int | None = None) -> None:
    """Warn, once for each backend, if the executor is large.

    Args:
        backend: Where it is sent.
        payload: The executor, pickled.
        workers: How many workers get it; `None` if it is sent with every step.
    """
    if len(payload) <= LARGE_BYTES or backend in _told:
        return
    with suppress(TypeError):  # a pool of others that weak references cannot refer to
        _told.add(backend)
    copies = f"each of {workers} workers gets a copy" if workers != 1 else "its worker gets a copy"
    if workers is None:
        copies = f"{type(backend).__name__} gets a copy with every step"
    message = f"the executor is {len(payload) / 1e6:.0f} MB; {copies}: {_HINT}"
    warnings.warn(message, stacklevel=level_of_the_caller())
