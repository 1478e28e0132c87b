"""Arguments that nobody can mean are refused in one voice."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import OptionError, UnknownOption
from .formatting import describe, did_you_mean


def positive_int(name: str, value: Any) -> int:
    """Return `value` if it is an int of at least 1.

    Raises:
        OptionError: It is not; the error names the option.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name} must be an int of at least 1, got {describe(value)}")
    return value


def positive_seconds(name: str, value: Any) -> float:
    """Return `value` if it is a number greater than 0.

    Raises:
        OptionError: It is not; the error names the option.
    """
    if not _is_number(value) or not value > 0:
        raise OptionError(f"{name} must be a number of seconds greater than 0, got {describe(value)}")
    return min(value, sys.float_info.max) * 1.0 if isinstance(value, int) else float(value)


def not_negative(name: str, value: Any) -> float:
    """Return `value` if it is a finite number of at least 0.

    Raises:
        OptionError: It is not; the error names the option.
    """
    if not _is_number(value) or not 0 <= value <= sys.float_info.max:
        raise OptionError(f"{name} must be a number of seconds of at least 0, got {describe(value)}")
    return float(value)


def not_negative_int(name: str, value: Any) -> int:
    """Return `value` if it is an int of at least 0.

    Raises:
        OptionError: It is not; the error names the option.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(f"{name} must be an int of at least 0, got {describe(value)}")
    return int(value)


def not_negative_amount(name: str, value: Any) -> float:
    """Return `value` if it is a finite number of at least 0, such as an amount of money.

    Raises:
        OptionError: It is not; the error names the option.
    """
    if not _is_number(value) or not 0 <= value <= sys.float_info.max:
        raise OptionError(f"{name} must be a number of at least 0, got {describe(value)}")
    return float(value)


def positive_amount(name: str, value: Any) -> float:
    """Return `value` if it is a finite number greater than 0, such as an amount of money.

    Raises:
        OptionError: It is not; the error names the option.
    """
    if not _is_number(value) or not 0 < value <= sys.float_info.max:
        raise OptionError(f"{name} must be a number greater than 0, got {describe(value)}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is a bool.

    Raises:
        OptionError: It is not; the error names the option.
    """
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be a bool, got {describe(value)}")
    return value


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of the `allowed` words.

    Raises:
        OptionError: It is not; the error names the option and what is allowed.
    """
    words = list(allowed)
    if not isinstance(value, str) or value not in words:
        raise OptionError(
            f"{name} must be {' or '.join(map(repr, words))}, got {describe(value)}{did_you_mean(value, words)}"
        )
    return value


def refuse_unknown(where: str, options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Refuse keyword arguments that do not exist.

    Raises:
        UnknownOption: There is one; the error names it and those that exist.
    """
    words = list(allowed)
    for name in options:
        if name not in words:
            raise UnknownOption(
                f"{where} has no option {name!r}{did_you_mean(name, words)}; it takes {', '.join(words)}"
            )


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    from numbers import Real  # those of numpy, chiefly

    return isinstance(value, Real)
