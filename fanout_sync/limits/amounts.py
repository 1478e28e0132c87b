"""How much of what is used up, in words for people."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Resource = Literal["tokens", "cost_usd", "seconds", "steps"]


def used_of(resource: Resource, used: float, limit: float) -> str:
    """Return how much is used of what, for people, such as `"$0.52 of $1"`."""
    in_words, unit = _WORDS[resource]
    return f"{in_words(used)} of {in_words(limit)}{unit}"


def _count(number: float) -> str:
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds == int(seconds) else f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.3g}"


def _money(usd: float) -> str:
    """Whole dollars are whole; from a dollar on there are cents, and below it four digits that say something."""
    if usd == int(usd):
        return f"${usd:.0f}"
    decimals = 2 if usd >= 1 else 3 - math.floor(math.log10(usd))
    whole, _, fraction = f"{usd:.{decimals}f}".partition(".")
    return f"${whole}.{fraction.rstrip('0').ljust(2, '0')}"


_WORDS: dict[Resource, tuple[Callable[[float], str], str]] = {
    "tokens": (_count, " tokens"),
    "cost_usd": (_money, ""),
    "seconds": (_duration, " s"),
    "steps": (_count, " steps"),
}
