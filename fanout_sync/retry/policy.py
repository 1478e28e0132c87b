"""Which failed steps are tried again, when and how often; tenacity's strategies decide."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from ..checks import flag, not_negative_seconds, positive_int
from ..errors import OptionError
from ..formatting import describe, describe_argument
from ..records.status import Status, StepError
from ..records.steps import AgentStepSpec, StepOutcome

if TYPE_CHECKING:
    from tenacity import BaseRetrying, RetryCallState
    from tenacity.retry import retry_base
    from tenacity.wait import wait_base

__all__ = ["Retry", "RetryAfter"]


logger = logging.getLogger(__name__)

ASKED = "asked to be tried again"
"""How the message of a `RetryAfter` begins."""


class RetryAfter(Exception):
    """A step raises it to be tried again later, such as when a server answers with `Retry-After`.

    The step is tried again whatever `retry_on` says, as long as attempts are left. Other steps wait, too, if
    a `RateLimit` of the run finds that the server is over its limit.

    Raise it from the error of the server, or where that is handled: `raise RetryAfter(2) from error`. Then the outcome,
    the record and the events name that error as the reason.

    Args:
        seconds: Seconds to wait.

    Raises:
        OptionError: `seconds` is no finite number of at least 0.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(not_negative_seconds("seconds of RetryAfter", seconds))
        self.seconds = float(seconds)

    def __str__(self) -> str:
        return f"{ASKED} after {self.seconds:g} s"


def reason_of(error: RetryAfter) -> BaseException | None:
    """Return the error that a `RetryAfter` was raised from, or while that was being handled; `None` without one."""
    reason: BaseException | None = error
    seen = set[int]()  # exceptions can be made to form a circle
    while isinstance(reason, RetryAfter) and id(reason) not in seen:
        seen.add(id(reason))
        is_hidden = reason.__cause__ is not None or reason.__suppress_context__
        reason = reason.__cause__ if is_hidden else reason.__context__
    return None if isinstance(reason, RetryAfter) else reason


FIRST_WAIT_S = 0.5
"""Seconds of the first default wait, which the next ones double; also the limit of the jitter that is added."""

LONGEST_WAIT_S = 60.0
"""Seconds of the longest default wait, without jitter."""


def _a_flag(retry: Retry, attribute: Any, value: Any) -> None:
    flag(f"{attribute.name} of Retry", value)


@frozen
class Retry:
    """How often a step is tried again, after which failures, and after which wait.

    A step that timed out or whose worker process died may have had its effect already, so it is tried again only if
    you ask for it. With retries a step runs *at least* once.

    Args:
        attempts: How many attempts a step gets in total; at least 1.
        wait: The wait before the next attempt: seconds, or a tenacity strategy such as `tenacity.wait_fixed(2)`; by
            default exponential with jitter, from half a second up to a minute.
        retry_on: The exceptions after which a step is tried again: a class, a tuple of classes, a function of the
            exception, or a tenacity strategy such as `tenacity.retry_if_exception_message(match="busy")`.
        on_timeout: Whether a step that timed out is tried again.
        on_crash: Whether a step whose worker process died is tried again.
        on_failure: Whether a step whose executor returned a failed outcome is tried again.
        on_invalid: Whether a step of status `invalid` is tried again, such as one whose answer does not fit its
            `output_schema`. One that cannot run, because its schema is no JSON Schema, never is.

    Raises:
        OptionError: An argument has no usable value; the error names it.
    """

    attempts: int = field(default=3)
    wait: float | wait_base | Callable[[RetryCallState], float] | None = field(default=None)
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool] | retry_base = (
        field(default=Exception)
    )
    on_timeout: bool = field(default=False, validator=_a_flag)
    on_crash: bool = field(default=False, validator=_a_flag)
    on_failure: bool = field(default=False, validator=_a_flag)
    on_invalid: bool = field(default=False, validator=_a_flag)

    @attempts.validator
    def _check_attempts(self, attribute: Any, value: Any) -> None:
        positive_int("attempts of Retry", value)

    @wait.validator
    def _check_wait(self, attribute: Any, value: Any) -> None:
        if value is not None and (isinstance(value, type) or not callable(value)):
            not_negative_seconds("wait of Retry (if it is no tenacity strategy)", value)

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
    """The part of a policy that needs the exception of an attempt, so it runs in the worker. It is pickled."""

    retry: Callable[[RetryCallState], bool]
    wait: Callable[[RetryCallState], float] | None
    looks_at_outcomes: bool
    on_timeout: bool = False
    on_crash: bool = False
    on_invalid: bool = False

    def wait_after(
        self, spec: AgentStepSpec, number: int, outcome: StepOutcome | None, error: BaseException | None
    ) -> float | None:
        """Return the seconds to wait before the next attempt; `None` if there is to be none.

        Raises:
            Exception: A strategy raised it.
        """
        if error is None and not self.looks_at_outcomes:
            return None
        if isinstance(error, RetryAfter):
            return not_negative_seconds("seconds of RetryAfter", error.seconds)
        state = _state(spec, number, outcome, error)
        return self._wait(state) if self.retry(state) else None

    def wait_after_loss(self, spec: AgentStepSpec, number: int, status: Status, reason: str) -> float | None:
        """As `wait_after`, for an attempt that timed out, crashed or was invalid: only the reason is known."""
        if status == "timed_out" and self.on_timeout:
            return self._wait(_state(spec, number, None, TimeoutError(reason)))
        if status == "crashed" and self.on_crash:
            return self._wait(_state(spec, number, None, RuntimeError(reason)))
        if status == "invalid" and self.on_invalid:
            return self._wait(_state(spec, number, None, ValueError(reason)))
        return None

    def _wait(self, state: RetryCallState) -> float:
        seconds: Any = 0.0 if self.wait is None else self.wait(state)
        return not_negative_seconds("the wait strategy's answer", seconds)


@frozen
class RetryPolicy:
    """The validated `retry` argument of a runner."""

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
            spec: The spec of the step.
            number: The number of the attempt, from 1.
            outcome: The outcome of the attempt.
            error: Why the attempt failed; the strategy sees only the text of an exception.
            first_began: When the first attempt began, in seconds on a monotonic clock.
            idle_s: Seconds that the step has waited between attempts so far.
            upcoming_s: Seconds that it would wait before the next attempt.

        Raises:
            Exception: The strategy raised it.
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
    """Return the policy for the `retry` argument of a runner; `None` if it allows only one attempt.

    Raises:
        OptionError: `value` is no int of at least 1, no `Retry` and no tenacity `Retrying`.
    """
    if isinstance(value, int):
        value = Retry(positive_int("retry", value))
    if isinstance(value, Retry):
        return None if value.attempts == 1 else _from_config(value)
    import tenacity

    if isinstance(value, tenacity.BaseRetrying):
        return _from_tenacity(value)
    raise OptionError(
        f"retry must be a number of attempts, a Retry or a tenacity Retrying object, got {_described(value)}"
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
        RetryRule(
            retry_on, wait, config.on_failure or is_strategy, config.on_timeout, config.on_crash, config.on_invalid
        ),
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


def _described(value: Any) -> str:
    """Return what came in the place of a policy, and what to do."""
    import tenacity

    for kind in (Retry, tenacity.BaseRetrying):
        if isinstance(value, type) and issubclass(value, kind):
            return describe_argument(value, kind, "…")
    if getattr(type(value), "__module__", "").startswith("tenacity") or getattr(value, "retry", None) is not None:
        return f"{describe(value)}; wrap strategies as in tenacity.Retrying(stop=…, wait=…, retry=…)"
    return describe(value)


def _is_failure(outcome: StepOutcome) -> bool:
    return not outcome.success


def _state(
    spec: AgentStepSpec, number: int, outcome: StepOutcome | None, error: BaseException | None
) -> RetryCallState:
    from tenacity import RetryCallState

    no_retrying: Any = None  # only tenacity's own loop needs it, strategies do not
    state = RetryCallState(no_retrying, None, (spec,), {})
    state.attempt_number = number
    if error is not None:
        state.set_exception((type(error), error, error.__traceback__))
    else:
        state.set_result(outcome)
    return state


def report_strategy_error(error: BaseException) -> str:
    """Log the error of a strategy; return a text about it, for the error of the step, which is not tried again."""
    logger.warning("a retry strategy raised; the step is not tried again", exc_info=error)
    return f" (and the retry strategy raised {StepError.of(error)})"
