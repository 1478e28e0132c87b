"""Checks of arguments, all with the same kind of message.

Each function returns the value if it is allowed. Otherwise it raises an `OptionError` that names the argument, what
came and what is allowed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .errors import OptionError, UnknownOption
from .formatting import describe, did_you_mean


def positive_int(name: str, value: Any) -> int:
    """Return `value` if it is an int of at least 1."""
    return _int_of_at_least(1, name, value)


def not_negative_int(name: str, value: Any) -> int:
    """Return `value` if it is an int of at least 0."""
    return _int_of_at_least(0, name, value)


def positive_seconds(name: str, value: Any) -> float:
    """Return `value` if it is a number greater than 0; infinity is allowed."""
    if _is_number(value) and value > sys.float_info.max:
        return sys.float_info.max if isinstance(value, int) else float(value)
    return _positive(name, value, "number of seconds")


def not_negative_seconds(name: str, value: Any) -> float:
    """Return `value` if it is a finite number of at least 0."""
    return _not_negative(name, value, "number of seconds")


def positive_amount(name: str, value: Any) -> float:
    """Return `value` if it is a finite number greater than 0, such as an amount of money."""
    return _positive(name, value, "number")


def not_negative_amount(name: str, value: Any) -> float:
    """Return `value` if it is a finite number of at least 0, such as an amount of money."""
    return _not_negative(name, value, "number")


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is a bool."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be a bool, got {describe(value)}")
    return value


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of the `allowed` words."""
    words = list(allowed)
    if not isinstance(value, str) or value not in words:
        raise OptionError(
            f"{name} must be {' or '.join(map(repr, words))}, got {describe(value)}{did_you_mean(value, words)}"
        )
    return value


def own_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return what the function itself takes: of a decorator that passes on everything, what the decorated one does.

    Raises:
        TypeError, ValueError: It has no signature.
    """
    signature = inspect.signature(function, follow_wrapped=False)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    return inspect.signature(function) if inspect.Parameter.VAR_POSITIONAL in kinds else signature


def refuse_signature(name: str, function: Callable[..., Any], takes: str, *arguments: Any) -> None:
    """Refuse a function that cannot be called with these arguments: otherwise every call would fail.

    Args:
        name: What it is to its user.
        function: The function.
        takes: The arguments as they should be written, such as `"(item, index)"`.
        *arguments: Any objects in their places.

    Raises:
        OptionError: It cannot be called so.
    """
    try:
        signature = own_signature(function)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise OptionError(f"{name} must take {takes}, but its signature is {signature}") from None


def refuse_unknown(where: str, options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Refuse keyword arguments that do not exist.

    Raises:
        UnknownOption: There is one; the error names it and the ones that exist.
    """
    words = list(allowed)
    for name in options:
        if name not in words:
            meant = NAMES_ELSEWHERE.get(name)
            hint = f" (did you mean {meant}?)" if meant in words else did_you_mean(name, words)
            raise UnknownOption(f"{where} has no option {name!r}{hint}; it takes {', '.join(words)}")


NAMES_ELSEWHERE = {
    **dict.fromkeys(
        (
            *("max_workers", "max_worker", "num_workers", "n_workers", "nworkers", "workers", "pool_size"),
            *("n_jobs", "njobs", "num_jobs", "jobs", "parallel", "parallelism", "max_parallel", "n_parallel"),
            *("n_processes", "num_processes", "nprocesses", "processes", "n_procs", "nproc"),
            *("n_threads", "num_threads", "nthreads", "max_threads", "max_processes", "threads", "concurrency"),
        ),
        "max_concurrency",
    ),
    **dict.fromkeys(("show_progress", "progress_bar", "progressbar", "pbar", "tqdm", "verbose"), "progress"),
    **dict.fromkeys(("retries", "max_retries", "num_retries", "attempts", "max_attempts", "tries"), "retry"),
}
"""What other libraries call an option."""


def _int_of_at_least(least: int, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name} must be an int of at least {least}, got {describe(value)}")
    return int(value)


def _positive(name: str, value: Any, what: str) -> float:
    if not _is_number(value) or not 0 < value <= sys.float_info.max:
        raise OptionError(f"{name} must be a {what} greater than 0, got {describe(value)}")
    return float(value)


def _not_negative(name: str, value: Any, what: str) -> float:
    if not _is_number(value) or not 0 <= value <= sys.float_info.max:
        raise OptionError(f"{name} must be a {what} of at least 0, got {describe(value)}")
    return float(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    from numbers import Real  # such as the number types of numpy

    return isinstance(value, Real)
