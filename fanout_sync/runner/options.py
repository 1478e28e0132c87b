"""The keyword arguments of `Runner`, for the functions around it that pass them on."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

if TYPE_CHECKING:
    from tenacity import BaseRetrying

    from ..events.senders import EventSink
    from ..events.types import Event
    from ..journal.journal import Journal, Workflow
    from ..limits.budget import Budget
    from ..limits.rate_limit import RateLimit
    from ..results.progress import Progress
    from ..retry.policy import Retry

F = TypeVar("F", bound=Callable[..., Any])


class UnjournalledOptions(TypedDict, total=False):
    """The options of a function that has parameters of its own for the journal and the events."""

    backend: Literal["thread", "process"] | Executor
    max_concurrency: int | None
    timeout: float | None
    retry: int | Retry | BaseRetrying | None
    rate_limit: RateLimit | Sequence[RateLimit] | None
    budget: Budget | None
    max_failures: int | None
    progress: bool | type | partial[Any] | Callable[[Progress], object] | None
    on_interrupt: Literal["raise", "return"]


class OptionsBesidesEvents(UnjournalledOptions, total=False):
    """The options of a function that has a parameter of its own for the events."""

    journal: str | os.PathLike[str] | Journal | Workflow | None
    on_conflict: Literal["refuse", "rerun"]


class Options(OptionsBesidesEvents, total=False):
    """All options."""

    event_tx: EventSink | Callable[[Event], object] | None


OPTIONS = tuple(Options.__annotations__)
"""The names of all options."""


def passes_options_to(runner: type) -> Callable[[F], F]:
    """Return a decorator that has the signature of a function show the options of `runner` in place of `**options`.

    Only `help()`, completion and documentation look at that signature.
    """
    by_name = inspect.signature(runner).parameters
    options = [each for each in by_name.values() if each.kind is inspect.Parameter.KEYWORD_ONLY]

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        passed_on = [each for each in options if each.name not in signature.parameters]
        shown = signature.replace(parameters=[*own, *passed_on])
        function.__signature__ = shown  # type: ignore[attr-defined]  # where `inspect.signature` looks first
        return function

    return decorate
