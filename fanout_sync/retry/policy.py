"""Trying failed steps again. What, when and how often is decided by tenacity's strategies."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ..checks import flag, not_negative, positive_int
from ..errors import OptionError
from ..formatting import describe
from ..records.status import Status, StepError
from ..records.steps import AgentStepSpec, StepOutcome

if TYPE_CHECKING:
    from tenacity import BaseRetrying, RetryCallState
    from tenacity.retry import retry_base
    from tenacity.wait import wait_base

__all__ = ["Retry", "RetryAfter"]


logger = logging.getLogger(__name__)


class RetryAfter(Exception):
    """Raised by a step that wants to be tried again later, as when a server answers with `Retry-After`.

    It is tried again whatever `retry_on` says, as long as attempts are left. A `RateLimit` of the run starts no step
    with the same key until then.

    Args:
        seconds: How long to wait, in seconds.

    Raises:
        OptionError: `seconds` is no number of at least 0.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(not_negative("seconds of RetryAfter", seconds))
        self.seconds = float(seconds)

    def __str__(self) -> str:
        return f"asked to be tried again after {self.seconds:g} s"


FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0


def _a_flag(retry: Retry, attribute: Any, value: Any) -> None:
    flag(f"{attribute.name} of Retry", value)


@frozen
class Retry:
    """How often, when and after what a step is tried again.

    A step that timed out or whose worker died may have had its effect already; so it is tried again only when asked.
    With retries a step runs *at least* once.

    Args:
        attempts: How many tries a step gets altogether, at least 1.
        wait: How long to wait before the next one: seconds, or a tenacity strategy such as
            `tenacity.wait_fixed(2)`; by default exponential with jitter, from half a second up to a minute.
        retry_on: Which exceptions are worth another try: a class, a tuple of classes, a function of the exception, or a
            tenacity strategy such as `tenacity.retry_if_exception_message(match="busy")`.
        on_timeout: Whether a step that timed out is.
        on_crash: Whether a step is whose worker process died.
        on_failure: Whether a step is whose executor returned an outcome that says failure.

    Raises:
        OptionError: An argument is unusable; it is named.
    """

    attempts: int = field(default=3)
    wait: float | wait_base | Callable[[RetryCallState], float] | None = field(default=None)
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool] | retry_base = (
        field(default=Exception)
    )
    on_timeout: bool = field(default=False, validator=_a_flag)
    on_crash: bool = field(default=False, validator=_a_flag)
    on_failure: bool = field(default=False, validator=_a_flag)

    @attempts.validator
    def _check_attempts(self, attribute: Any, value: Any) -> None:
        positive_int("attempts of Retry", value)

    @wait.validator
    def _check_wait(self, attribute: Any, value: Any) -> None:
        if value is not None and (isinstance(value, type) or not callable(value)):
            not_negative("wait of Retry (if it is no tenacity strategy)", value)

    @retry_on.validator
    def _check_retry_on(self, attribute: Any, value: Any) -> None:
        kinds = value if isinstance(value, tuple) else (value,)
        if all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds) and kinds:
            return
        if isinstance(value, type) or not callable(value):
            raise OptionError(
                f"retry_on of Retry must be an exception class, a tuple of them, or a function, got {describe(value)}"
            )


@frozen
class RetryRule:
    """What is decided where the attempt ran, while its exception is at hand. Goes to the workers."""

    retry: Callable[[RetryCallState], bool]
    wait: Callable[[RetryCallState], float] | None
    looks_at_outcomes: bool
    on_timeout: bool = False
    on_crash: bool = False

    def wait_after(
        self, spec: AgentStepSpec, number: int, outcome: StepOutcome | None, error: BaseException | None
    ) -> float | None:
        """Return how long to wait before the next attempt, in seconds; `None` if there is to be none.

        Raises:
            Exception: Whatever a strategy raises.
        """
        if error is None and not self.looks_at_outcomes:
            return None
        if isinstance(error, RetryAfter):
            return not_negative("seconds of RetryAfter", error.seconds)
        state = _state(spec, number, outcome, error)
        return self._wait(state) if self.retry(state) else None

    def wait_after_loss(self, spec: AgentStepSpec, number: int, status: Status, reason: str) -> float | None:
        """As `wait_after`, for an attempt that was cut short: nothing is left of it but the reason."""
        if status == "timed_out" and self.on_timeout:
            return self._wait(_state(spec, number, None, TimeoutError(reason)))
        if status == "crashed" and self.on_crash:
            return self._wait(_state(spec, number, None, RuntimeError(reason)))
        return None

    def _wait(self, state: RetryCallState) -> float:
        seconds: Any = 0.0 if self.wait is None else self.wait(state)
        return not_negative("the wait strategy's answer", seconds)


@frozen
class RetryPolicy:
    """What `Runner(retry=…)` came to."""

    rule: RetryRule
    stop: Callable[[RetryCallState], bool] | None

    def is_over(
        self,
        spec: AgentStepSpec,
        number: int,
        outcome: StepOutcome,
        error: StepError | None,
        *,
        first_began: float,
        idle_s: float,
        upcoming_s: float,
    ) -> bool:
        """Return whether the attempt `number` was the last one allowed.

        Args:
            spec: What was run.
            number: Which attempt it was, from 1.
            outcome: What it ended with.
            error: Why it failed: of an exception the strategy sees its text only.
            first_began: When the first attempt began, on a monotonic clock, in seconds.
            idle_s: How long the step has waited between attempts so far, in seconds.
            upcoming_s: How long it is to wait now.

        Raises:
            Exception: Whatever the strategy raises.
        """
        if self.stop is None:
            return False
        raised = None if error is None else RuntimeError(str(error))
        state = _state(spec, number, outcome, raised)
        state.start_time = first_began
        state.idle_for = idle_s
        state.upcoming_sleep = upcoming_s
        return bool(self.stop(state))


def retry_policy(value: Any) -> RetryPolicy | None:
    """Return the policy for what `Runner(retry=…)` was given; `None` if steps are tried once all the same.

    Raises:
        OptionError: It is no int of at least 1, no `Retry` and no tenacity `Retrying`.
    """
    if isinstance(value, int):
        value = Retry(positive_int("retry", value))
    if isinstance(value, Retry):
        return None if value.attempts == 1 else _from_config(value)
    import tenacity

    if isinstance(value, tenacity.BaseRetrying):
        return _from_tenacity(value)
    raise OptionError(
        "retry must be a number of attempts, a Retry or a tenacity Retrying object, "
        f"got {describe(value)}{_hint_at_retrying(value)}"
    )


def _from_config(config: Retry) -> RetryPolicy:
    import tenacity

    wait: Any = config.wait
    if wait is None:
        wait = tenacity.wait_exponential(FIRST_WAIT_S, LONGEST_WAIT_S) + tenacity.wait_random(0, FIRST_WAIT_S)
    elif not callable(wait):
        wait = tenacity.wait_fixed(wait)
    retry_on: Any = config.retry_on
    is_strategy = isinstance(retry_on, tenacity.retry_base)
    if isinstance(retry_on, (type, tuple)):
        retry_on = tenacity.retry_if_exception_type(retry_on)
    elif not is_strategy:
        retry_on = tenacity.retry_if_exception(retry_on)
    if config.on_failure:
        retry_on = tenacity.retry_any(retry_on, tenacity.retry_if_result(_is_failure))
    return RetryPolicy(
        RetryRule(retry_on, wait, config.on_failure or is_strategy, config.on_timeout, config.on_crash),
        tenacity.stop_after_attempt(config.attempts),
    )


def _from_tenacity(retrying: BaseRetrying) -> RetryPolicy | None:
    if not getattr(retrying, "enabled", True):
        return None
    strategies: dict[str, Any] = {name: getattr(retrying, name) for name in ("retry", "wait", "stop")}
    for name, strategy in strategies.items():
        if inspect.iscoroutinefunction(strategy) or inspect.iscoroutinefunction(type(strategy).__call__):
            raise OptionError(f"retry.{name} is a coroutine function, {describe(strategy)}; steps are not awaited")
        is_left_out = strategy is None and name != "retry"
        if not is_left_out and (not callable(strategy) or isinstance(strategy, type)):
            hint = "; call it to make one" if isinstance(strategy, type) else ""
            raise OptionError(f"retry.{name} must be a tenacity strategy, got {describe(strategy)}{hint}")
    return RetryPolicy(RetryRule(strategies["retry"], strategies["wait"], looks_at_outcomes=True), strategies["stop"])


def _hint_at_retrying(value: Any) -> str:
    if getattr(type(value), "__module__", "").startswith("tenacity") or getattr(value, "retry", None) is not None:
        return "; wrap strategies as in tenacity.Retrying(stop=…, wait=…, retry=…)"
    return ""


def _is_failure(outcome: StepOutcome) -> bool:
    return not outcome.success


def _state(
    spec: AgentStepSpec, number: int, outcome: StepOutcome | None, error: BaseException | None
) -> RetryCallState:
    from tenacity import RetryCallState

    nobody: Any = None  # it is for tenacity's own loop; strategies do without
    state = RetryCallState(nobody, None, (spec,), {})
    state.attempt_number = number
    if error is not None:
        state.set_exception((type(error), error, error.__traceback__))
    else:
        state.set_result(outcome)
    return state


def told_of_strategy(error: BaseException) -> str:
    """Say that a strategy failed, for the error of the step that is not tried again because of it."""
    logger.warning("a retry strategy raised; the step is not tried again", exc_info=error)
    return f" (and the retry strategy raised {StepError.of(error)})"
