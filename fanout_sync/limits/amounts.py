"""Amounts of tokens, money, time and steps as text for people."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

Resource = Literal["tokens", "cost_usd", "seconds", "steps"]


def used_of(resource: Resource, used: float, limit: float) -> str:
    """Return how much of a limit is used, such as `"$0.52 of $1"`."""
    as_text, unit = _FORMATS[resource]
    return f"{as_text(used)} of {as_text(limit)}{unit}"


def _count(number: float) -> str:
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds == int(seconds) else f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.3g}"


def _money(usd: float) -> str:
    """Return whole dollars without cents, other amounts from a dollar on with cents, and less with four digits."""
    if usd == int(usd):
        return f"${usd:.0f}"
    decimals = 2 if usd >= 1 else 3 - math.floor(math.log10(usd))
    whole, _, fraction = f"{usd:.{decimals}f}".partition(".")
    return f"${whole}.{fraction.rstrip('0').ljust(2, '0')}"


_FORMATS: dict[Resource, tuple[Callable[[float], str], str]] = {
    "tokens": (_count, " tokens"),
    "cost_usd": (_money, ""),
    "seconds": (_duration, " s"),
    "steps": (_count, " steps"),
}
