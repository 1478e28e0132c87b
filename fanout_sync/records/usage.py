"""The usage that a step reports: tokens and money."""

from __future__ import annotations

import sys

from attrs import field, frozen

from ..checks import not_negative_amount, not_negative_int
from ..errors import OptionError
from ..formatting import describe

__all__ = ["Usage"]

MOST_TOKENS = 2**63 - 1
"""The largest number of tokens that is accepted; a larger one is taken for a mistake."""


def _prompt_tokens(value: int) -> int:
    return _tokens("prompt_tokens", value)


def _completion_tokens(value: int) -> int:
    return _tokens("completion_tokens", value)


def _tokens(name: str, value: int) -> int:
    count = not_negative_int(name, value)
    if count > MOST_TOKENS:
        raise OptionError(f"{name} must be less than 2**63, got {describe(value)}")
    return count


def _cost_usd(value: float) -> float:
    return not_negative_amount("cost_usd", value)


@frozen
class Usage:
    """What a step or an attempt has used. Two usages can be added; a sum stops at the largest number that is accepted.

    Attributes:
        prompt_tokens: Tokens that went in.
        completion_tokens: Tokens that came out.
        cost_usd: What it cost, in US dollars.

    Raises:
        OptionError: A value is negative or no number; the error names it.
    """

    prompt_tokens: int = field(default=0, converter=_prompt_tokens)
    completion_tokens: int = field(default=0, converter=_completion_tokens)
    cost_usd: float = field(default=0.0, converter=_cost_usd)

    @property
    def tokens(self) -> int:
        """All tokens, in and out."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        if not isinstance(other, Usage):
            return NotImplemented
        return Usage.of_sum(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost_usd + other.cost_usd,
        )

    @classmethod
    def of_sum(cls, prompt_tokens: int, completion_tokens: int, cost_usd: float) -> Usage:
        """Return the usage of several steps. Nothing fails because of a sum that is too large."""
        return cls(
            min(prompt_tokens, MOST_TOKENS), min(completion_tokens, MOST_TOKENS), min(cost_usd, sys.float_info.max)
        )
