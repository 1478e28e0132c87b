"""Tells of limits on tokens and money that count nothing, because no step reports what it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ..records.usage import Usage

Counted = Literal["tokens", "cost"]

_ARGUMENTS: dict[Counted, str] = {"tokens": "prompt_tokens=…, completion_tokens=…", "cost": "cost_usd=…"}


class UsageReports:
    """Whether steps have reported what one `RateLimit` or `Budget` counts. Only used under the lock.

    Args:
        limits: For tokens and money, if they are limited: the limit as it is written in Python.
    """

    __slots__ = ("_has_any", "_is_told", "_limits", "_reported")

    def __init__(self, limits: Mapping[Counted, str]) -> None:
        self._limits = limits
        self._has_any = False
        self._reported: set[Counted] = set()
        self._is_told = not limits

    def add(self, usage: Usage) -> None:
        """Note what a step reports."""
        if self._is_told:
            return
        self._has_any = True
        if usage.tokens:
            self._reported.add("tokens")
        if usage.cost_usd:
            self._reported.add("cost")

    def tell(self) -> str | None:
        """Return what is wrong, at the end of a run with successes; `None` if nothing is, or if it was told before.

        Nothing is wrong if all that steps have reported is 0: then they use nothing that is limited.
        """
        missing = [counted for counted in self._limits if counted not in self._reported]
        if self._is_told or not missing or (self._has_any and not self._reported):
            return None
        self._is_told = True
        names = " and ".join(self._limits[counted] for counted in missing)
        why = "no step has reported what it used"
        if self._reported:
            why = f"steps have reported {' and '.join(self._reported)}, but no {' and no '.join(missing)}"
        arguments = ", ".join(_ARGUMENTS[counted] for counted in missing)
        return (
            f"{names} counted nothing: {why}; call current_step().add_usage({arguments}) "
            f"or event_tx.usage({arguments}) in the step"
        )
