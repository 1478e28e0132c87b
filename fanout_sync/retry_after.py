"""A step's own wish to be tried again later."""

from __future__ import annotations

from .options import not_negative


class RetryAfter(Exception):
    """Raised by a step that wants to be tried again later, as when a server answers with `Retry-After`.

    It is tried again whatever `retry_on` says, as long as attempts are left. A `RateLimit` of the run starts no step
    with the same key until then.

    Args:
        seconds: How long to wait, in seconds.

    Raises:
        OptionError: `seconds` is no number of at least 0.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(not_negative("seconds of RetryAfter", seconds))
        self.seconds = float(seconds)

    def __str__(self) -> str:
        return f"asked to be tried again after {self.seconds:g} s"
