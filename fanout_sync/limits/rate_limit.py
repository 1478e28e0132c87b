"""Limits on requests and tokens per minute, as providers enforce them."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Literal, NoReturn, get_args

from attrs import Attribute, define, field, setters

from ..checks import one_of, positive_amount, positive_int
from ..errors import OptionError
from ..formatting import describe
from ..records.steps import AgentStepSpec
from .answers import ASK_AGAIN_S, SHORTEST_WAIT_S
from .cooldown import Cooldown, OnRefusal
from .uncounted import Counted, UsageReports
from .windows import Window, request_rates, token_rates

__all__ = ["RateLimit"]

MOST_REMEMBERED = 1024
"""For so many idle keys, and so many idle agents of a key, the most tokens that an attempt used are remembered."""

TURN_KEPT_S = 1.0
"""A waiting run keeps its turn before other runs until it is late to ask again by this much."""

LONGEST_TURN_WAIT_S = 1.0
"""A run asks again after this long whether the runs before it still wait."""

ARRIVAL_S = 0.2
"""This long after an attempt started, or when it ends if that is sooner, its request has reached the provider.

Only then does the request enter our window: if it entered at the start and was slow on its way, the provider would see
it, and the request that takes its place a minute later, less than a minute apart.
"""

LATEST_ARRIVAL_S = 5.0
"""Used instead of `ARRIVAL_S` if attempts usually take less than that: a longer one may be held up on its way."""

_SMOOTHING = 0.1  # the weight of the latest attempt in the moving average of how long attempts take

_FEWEST_TO_SWEEP = 64


def _requests(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None:
        positive_amount("requests_per_minute of RateLimit", value)


def _tokens(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None:
        positive_int("tokens_per_minute of RateLimit", value)


def _a_function(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not callable(value):
        raise OptionError(f"key of RateLimit must be a function of the spec, got {describe(value)}")


def _what_to_do(_: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None:
        one_of("on_refusal of RateLimit", value, get_args(OnRefusal))


@define(eq=False, on_setattr=setters.frozen)
class RateLimit:
    """A limit on requests and tokens per minute. Runs in one process that are given the same object share it.

    Every attempt at a step counts as one request. At most `requests_per_minute` of them start in any minute. Providers
    enforce a share of the limit in shorter periods, so the number that start at once is limited, too: to ten or, if
    that is more, to the requests of one second.

    How many tokens an attempt uses is known only when it has ended. Until then it is taken to use as many as the
    largest attempt of the same agent so far. The first attempt of an agent runs alone. An attempt that uses more than
    `tokens_per_minute` starts when no tokens have been used for a minute.

    A step that raises `RetryAfter(seconds)` is tried again after that time at the earliest, if there are retries.
    Whether other steps wait, too, depends on whether the server is over its limit or refuses a few requests at random.
    It is over its limit when several refusals are close together among the steps of the key, in the order in which they
    started: at least four of six in a row, five of ten, eight of twenty-two; in general `n` of `4n - 10`, which in the
    long run is more than a quarter. With one step in flight two of six are enough, with two steps three of six.

    Then there is a pause: no step of the key starts for the time that the server asked for and up to a tenth more, but
    at most one second more; that is random, so that programs do not all come back at the same moment. After it, half
    as many steps may be in flight as before; and one more whenever as many have ended without `RetryAfter` as are
    allowed, as in the congestion control of TCP (RFC 5681), until as many are allowed as were in flight before.

    Args:
        requests_per_minute: How many attempts may start in a minute: any number greater than 0; 0.5 is one in two
            minutes. `None` if requests are not limited.
        tokens_per_minute: How many tokens steps may use in a minute, as they report it: an int of at least 1. `None` if
            tokens are not limited.
        key: Returns the key of a spec, such as the name of the model that its agent uses. Each key has the whole limit
            to itself. By default all specs share one.
        on_refusal: `"wait_all"`: every `RetryAfter` begins a pause for all steps of its key. `"wait_step"`: none does,
            and only the step that was refused waits. By default it is decided as described above.

    Raises:
        OptionError: An argument is not usable, or neither requests nor tokens are limited.
    """

    requests_per_minute: float | None = field(default=None, validator=_requests)
    tokens_per_minute: int | None = field(default=None, validator=_tokens)
    key: Callable[[AgentStepSpec], str] | None = field(default=None, validator=_a_function)
    on_refusal: Literal["wait_all", "wait_step"] | None = field(default=None, validator=_what_to_do, kw_only=True)
    keys: KeyStates = field(init=False, repr=False)  # for the limiter

    def __attrs_post_init__(self) -> None:
        if self.requests_per_minute is None and self.tokens_per_minute is None:
            raise OptionError("RateLimit needs requests_per_minute or tokens_per_minute")
        keys = KeyStates(self.requests_per_minute, self.tokens_per_minute, self.on_refusal)
        object.__setattr__(self, "keys", keys)

    def key_of(self, spec: AgentStepSpec) -> str:
        """Return the key of `spec`.

        Raises:
            OptionError: `key` did not return a string.
            Exception: Whatever `key` raises.
        """
        if self.key is None:
            return ""
        key: Any = self.key(spec)
        if not isinstance(key, str):
            raise OptionError(f"key of RateLimit must return a str, got {describe(key)}")
        return key

    def __deepcopy__(self, memo: object) -> RateLimit:
        return self  # the copies of an executor share it, as threads may

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RateLimit lives in one process: give it to the runner as rate_limit, not to the executor")


class KeyStates:
    """The state of all keys of a `RateLimit`. Only used under the lock.

    Attributes:
        random: Decides how much longer a cooldown is than the server asked for.
        latest: The latest moment that was given.
        reports: Whether steps have reported tokens.
    """

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: int | None, on_refusal: OnRefusal | None
    ) -> None:
        self.random = Random()
        self.latest = 0.0
        self._requests = None if requests_per_minute is None else request_rates(float(requests_per_minute))
        self._tokens = None if tokens_per_minute is None else token_rates(tokens_per_minute)
        limits: dict[Counted, str] = {}
        if tokens_per_minute is not None:
            limits["tokens"] = f"RateLimit(tokens_per_minute={tokens_per_minute})"
        self.reports = UsageReports(limits)
        self._on_refusal = on_refusal
        self._states: dict[str, KeyState] = {}
        self._remembered: dict[str, dict[str, int]] = {}
        self._sweep_at = _FEWEST_TO_SWEEP

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: str) -> KeyState:
        """Return the state of a key; it is made if there is none."""
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = KeyState(
                key,
                None if self._requests is None else Window(self._requests),
                None if self._tokens is None else Window(self._tokens),
                Cooldown(self._on_refusal),
            )
            for agent, largest in self._remembered.pop(key, {}).items():
                state.agents[agent] = _Agent(largest)
        return state

    def sweep(self, now: float) -> None:
        """Forget idle keys once there are twice as many keys as after the last sweep, but not what their agents use."""
        self.latest = max(self.latest, now)
        if len(self._states) < self._sweep_at:
            return
        for key, state in list(self._states.items()):
            if state.is_idle(now):
                del self._states[key]
                self._remember(key, state)
        self._sweep_at = max(_FEWEST_TO_SWEEP, 2 * len(self._states))

    def forget_run(self, run: object) -> None:
        """Give up the turns of a run that has ended, so that no other run waits for it."""
        for state in self._states.values():
            state.waiting_runs.pop(run, None)

    def _remember(self, key: str, state: KeyState) -> None:
        largest = {name: agent.largest for name, agent in state.agents.items() if agent.largest is not None}
        if largest:
            self._remembered[key] = largest
        if len(self._remembered) > MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]


@define(eq=False)
class _Agent:
    """What is known of an agent under one key.

    Attributes:
        largest: The most tokens that one of its attempts used; `None` until one has ended.
        in_flight: How many of its attempts tokens are reserved for.
    """

    largest: int | None = None
    in_flight: int = 0


@define(eq=False)
class KeyPermit:
    """The permission for one attempt to start under one key.

    Attributes:
        key: The key.
        agent: The agent of the spec.
        number: Its number among the attempts that started under the key.
        since: When it started.
        tokens: How many tokens it has reported so far.
        is_released: Whether other attempts no longer wait for it.
    """

    key: str
    agent: str
    number: int
    since: float
    tokens: int = 0
    is_released: bool = False


@define(eq=False)
class KeyState:
    """The state of one key. Only used under the lock.

    Attributes:
        key: The key.
        requests: The requests of the last minute; `None` if requests are not limited.
        tokens: The tokens of attempts that ended in the last minute; `None` if tokens are not limited.
        cooldown: Whether steps may start after some were refused.
        in_transit: Attempts whose request may not have reached the provider yet, oldest first. They enter `requests`
            when it has.
        mean_s: How long attempts usually take, as a moving average.
        agents: The agents of which something is known or in flight.
        reserved: How many tokens the attempts in flight are taken to use: for each, the most that its agent used.
        debt: Tokens that were used but do not fit into `tokens` yet.
        debt_since: When the debt began.
        alone: The first attempt of an agent while it is in flight; no other may start meanwhile.
        waiting_runs: The runs that wait, in the order in which they came, and until when each one's turn is kept.
    """

    key: str
    requests: Window | None
    tokens: Window | None
    cooldown: Cooldown
    in_transit: dict[KeyPermit, None] = field(factory=dict)
    mean_s: float = ARRIVAL_S
    agents: dict[str, _Agent] = field(factory=dict)
    reserved: int = 0
    debt: int = 0
    debt_since: float = 0.0
    alone: KeyPermit | None = None
    waiting_runs: dict[object, float] = field(factory=dict)

    def wait_s(self, agent: str, run: object, now: float) -> float:
        """Return after how many seconds to ask again, 0 if a step may start; while a run waits, it keeps its turn."""
        wait_s = self.cooldown.seconds_left(now) or (ASK_AGAIN_S if self.cooldown.is_full else 0.0)
        if self.requests is not None:
            wait_s = max(wait_s, self._requests_wait_s(self.requests, now))
        if self.tokens is not None:
            wait_s = max(wait_s, self._tokens_wait_s(self.tokens, agent, now))
        if not self.waiting_runs and not wait_s:
            return 0.0
        wait_s = wait_s or self._turn_wait_s(run, now)
        if wait_s:
            self.waiting_runs[run] = now + wait_s + TURN_KEPT_S
        else:
            self.waiting_runs.pop(run, None)
        return wait_s

    def start(self, agent: str, now: float) -> KeyPermit:
        """Start an attempt that does not have to wait."""
        key_permit = KeyPermit(self.key, agent, self.cooldown.step_started(), now)
        if self.requests is not None:
            self.in_transit[key_permit] = None
        if self.tokens is not None:
            known = self._agent(agent)
            known.in_flight += 1
            self.reserved += known.largest or 0
            if known.largest is None:
                self.alone = key_permit
        return key_permit

    def spend(self, key_permit: KeyPermit, tokens: int) -> None:
        """Count tokens of an attempt in flight; they enter the window when it has ended."""
        key_permit.tokens += tokens
        if self.tokens is not None:
            known = self._agent(key_permit.agent)
            if known.largest is not None:
                self._learn(known, key_permit.tokens)

    def spend_late(self, key_permit: KeyPermit, tokens: int, now: float) -> None:
        """Count tokens of an attempt that has ended."""
        key_permit.tokens += tokens
        if self.tokens is not None:
            self._learn(self._agent(key_permit.agent), key_permit.tokens)
            self._add_tokens(self.tokens, tokens, now)

    def release(self, key_permit: KeyPermit) -> None:
        """Let no other attempt wait for this one any more."""
        if key_permit.is_released:
            return
        key_permit.is_released = True
        self.cooldown.step_ended(key_permit.number)
        if self.alone is key_permit:
            self.alone = None
        if self.tokens is not None:
            known = self.agents[key_permit.agent]
            known.in_flight -= 1
            self.reserved -= known.largest or 0

    def end(self, key_permit: KeyPermit, now: float, cooldown_s: float | None) -> None:
        """End an attempt; `cooldown_s` is how long a pause would be if it raised `RetryAfter`, else `None`."""
        if cooldown_s is None:
            self.cooldown.step_succeeded(key_permit.number)
        else:
            self.cooldown.step_refused(key_permit.number, now, cooldown_s)
        self.release(key_permit)
        if self.requests is not None:
            if key_permit in self.in_transit:
                del self.in_transit[key_permit]
                self.requests.put(1, now)
            self.mean_s += _SMOOTHING * (min(now - key_permit.since, LATEST_ARRIVAL_S) - self.mean_s)
        if self.tokens is None:
            return
        if cooldown_s is None or key_permit.tokens:  # a refused request without usage says nothing about the next one
            self._learn(self._agent(key_permit.agent), key_permit.tokens)
        self._add_tokens(self.tokens, key_permit.tokens, now)

    def is_idle(self, now: float) -> bool:
        """Return whether this can be forgotten without any limit being exceeded."""
        if self.cooldown.in_flight or not self.cooldown.may_be_forgotten(now):
            return False
        if self.tokens is not None:
            self._pay_debt(self.tokens, now)
            if self.debt or not self.tokens.is_empty(now):
                return False
        if self.requests is None:
            return True
        self._count_arrived(self.requests, now)
        return not self.in_transit and self.requests.is_empty(now)

    def _requests_wait_s(self, window: Window, now: float) -> float:
        self._count_arrived(window, now)
        if len(self.in_transit) < window.burst:
            return window.room_in_s(1 + len(self.in_transit), now)
        return max(next(iter(self.in_transit)).since + self._arrival_s() - now, SHORTEST_WAIT_S)

    def _count_arrived(self, window: Window, now: float) -> None:
        """Enter the requests that must have reached the provider by now."""
        arrival_s = self._arrival_s()
        while self.in_transit:
            key_permit = next(iter(self.in_transit))
            if key_permit.since + arrival_s > now:
                return
            del self.in_transit[key_permit]
            window.put(1, key_permit.since + arrival_s)

    def _arrival_s(self) -> float:
        return ARRIVAL_S if self.mean_s >= ARRIVAL_S else LATEST_ARRIVAL_S

    def _tokens_wait_s(self, window: Window, agent: str, now: float) -> float:
        self._pay_debt(window, now)
        if self.debt:
            return window.room_in_s(min(self.debt, window.limit), now)
        if self.alone is not None:
            return ASK_AGAIN_S
        known = self.agents.get(agent)
        estimate = 1 if known is None or known.largest is None else known.largest
        # Attempts in flight make no room before this when they end: their tokens move from `reserved` to the window.
        if wait_s := window.room_in_s(estimate, now):
            return wait_s
        needed = self.reserved + estimate
        has_to_wait = self.cooldown.in_flight and (needed > window.limit or window.room_in_s(needed, now))
        return ASK_AGAIN_S if has_to_wait else 0.0

    def _pay_debt(self, window: Window, now: float) -> None:
        while self.debt and window.put_backdated(part := min(self.debt, window.limit), self.debt_since, now):
            self.debt -= part

    def _add_tokens(self, window: Window, tokens: int, now: float) -> None:
        if not self.debt:
            self.debt_since = now
        self.debt += tokens
        self._pay_debt(window, now)

    def _learn(self, agent: _Agent, tokens: int) -> None:
        """Remember the most tokens that an attempt used, and reserve as many for the others in flight."""
        if agent.largest is None or tokens > agent.largest:
            self.reserved += agent.in_flight * (tokens - (agent.largest or 0))
            agent.largest = tokens

    def _agent(self, name: str) -> _Agent:
        agent = self.agents.get(name)
        if agent is None:
            if len(self.agents) >= MOST_REMEMBERED:
                idle = next((other for other, state in self.agents.items() if not state.in_flight), None)
                if idle is not None:
                    del self.agents[idle]
            agent = self.agents[name] = _Agent()
        return agent

    def _turn_wait_s(self, run: object, now: float) -> float:
        """Return how long to wait for runs that came earlier, so that small steps do not starve a run of large ones."""
        for other, kept_until in list(self.waiting_runs.items()):
            if other is run:
                return 0.0
            if kept_until >= now:
                return min(max(ASK_AGAIN_S, kept_until - TURN_KEPT_S - now), LONGEST_TURN_WAIT_S)
            del self.waiting_runs[other]
        return 0.0
