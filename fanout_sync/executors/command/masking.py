"""Values of environment variables that hold secrets, masked in what a program has written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from attrs import evolve, fields

from ...events.types import Event

MASK = "***"
"""What stands in the place of a secret."""

_NAMES = ("_KEY", "_TOKEN", "_SECRET")
_SURE_LENGTH = 8
_SHORTEST = 4
_SEED_LENGTH = 8


def secrets_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of the variables named `*_KEY`, `*_TOKEN` and `*_SECRET`, in any case.

    Values of less than 8 characters are left out if they are plain words, and of less than 4 in any case: to mask
    `true` or `1` everywhere would spoil answers.
    """
    values = (value.strip() for name, value in environment.items() if name.upper().endswith(_NAMES))
    found = {value for value in values if len(value) >= _SURE_LENGTH or _is_odd(value)}
    # Longest first: of two secrets, one may be the beginning of the other.
    written = {form for value in found for form in (value, json.dumps(value)[1:-1], repr(value)[1:-1])}
    return tuple(sorted(written, key=lambda value: (-len(value), value)))


def _is_odd(value: str) -> bool:
    return len(value) >= _SHORTEST and not value.isalpha() and not value.isdigit()


class Masker:
    """Masks secrets in texts.

    Args:
        secrets: The values, as `secrets_in` returns them.
    """

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._pattern = _pattern_of(secrets)

    def __call__(self, text: str) -> str:
        """Return `text` with `MASK` in the place of each secret."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def in_json(self, value: Any) -> Any:
        """Return a JSON value with its strings masked, keys too; numbers that are secrets are masked as strings."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(key): self.in_json(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.in_json(item) for item in value]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return MASK if self._pattern.search(str(value)) else value
        return value

    def in_event(self, event: Event) -> Event:
        """Return an event with its texts masked, but for its `task_id`."""
        if self._pattern is None:
            return event
        kind: Any = type(event)
        texts: dict[str, Any] = {
            field.name: self.in_json(value)
            for field in fields(kind)
            if field.name != "task_id" and isinstance(value := getattr(event, field.name), (str, dict, list))
        }
        masked: Event = evolve(event, **texts)  # type: ignore[misc]  # each class of events is one of attrs
        return masked

    def without_parts(self, head: str, tail: str) -> tuple[str, str]:
        """Return the text before a cut and the text after it, without the parts of a secret that the cut has split."""
        ended = max((_overlap(secret, tail) for secret in self._secrets), default=0)
        return head[: self.border_of(head)], tail[ended:]

    def border_of(self, text: str) -> int:
        """Return where the end of `text` begins that may be the beginning of a secret."""
        if self._pattern is None:
            return len(text)
        border = len(text) - max(_overlap(text, secret) for secret in self._secrets)
        for found in self._pattern.finditer(text, max(0, border - len(self._secrets[0]))):
            if found.start() < border < found.end():
                return found.start()
        return border


def _overlap(before: str, after: str) -> int:
    """Return the length of the longest text that ends `before` and begins `after`."""
    end = before[-len(after) :]
    place = end.find(after[:_SEED_LENGTH])  # not place by place, which would take long for a long secret
    while place >= 0:
        if after.startswith(end[place:]):
            return len(end) - place
        place = end.find(after[:_SEED_LENGTH], place + 1)
    shorter = range(min(len(end), _SEED_LENGTH - 1), 0, -1)
    return next((length for length in shorter if end.endswith(after[:length])), 0)


@lru_cache(maxsize=16)
def _pattern_of(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, secrets))) if secrets else None


class MaskedStream:
    """Masks secrets in a text that comes in pieces: a secret may begin in one and end in the next.

    Args:
        masker: Which secrets.
    """

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._held = ""

    def add(self, piece: str) -> str:
        """Return what can be shown by now: all but an end that may be the beginning of a secret."""
        text = self._held + piece
        border = self._masker.border_of(text)
        self._held = text[border:]
        return self._masker(text[:border])

    def end(self) -> str:
        """Return what was held back: nothing follows."""
        held, self._held = self._held, ""
        return self._masker(held)
