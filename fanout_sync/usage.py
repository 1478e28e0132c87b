"""What a step has used up, as it reports it itself: tokens and money."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, field, frozen

from .options import not_negative_amount, not_negative_int


def _a_count(_: Any, attribute: Attribute[Any], value: Any) -> None:
    not_negative_int(attribute.name, value)


def _an_amount(_: Any, attribute: Attribute[Any], value: Any) -> None:
    not_negative_amount(attribute.name, value)


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

    prompt_tokens: int = field(default=0, validator=_a_count)
    completion_tokens: int = field(default=0, validator=_a_count)
    cost_usd: float = field(default=0.0, validator=_an_amount)

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
