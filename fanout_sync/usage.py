"""What a step has used up, as it reports it itself: tokens and money."""

from __future__ import annotations

from attrs import field, frozen

from .options import not_negative_amount, not_negative_int


def _prompt_tokens(value: int) -> int:
    return not_negative_int("prompt_tokens", value)


def _completion_tokens(value: int) -> int:
    return not_negative_int("completion_tokens", value)


def _cost_usd(value: float) -> float:
    return not_negative_amount("cost_usd", value)


@frozen
class Usage:
    """What was used, by a step or by an attempt at one. Usages can be added.

    Attributes:
        prompt_tokens: Tokens that went in.
        completion_tokens: Tokens that came out.
        cost_usd: What it cost, in US dollars.

    Raises:
        OptionError: One of them is negative or no number; it is named.
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
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost_usd + other.cost_usd,
        )
