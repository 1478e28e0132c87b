"""Keeping below a provider's limits of requests and tokens per minute."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NoReturn

from attrs import Attribute, define, field, setters

from ..checks import positive_amount, positive_int
from ..errors import OptionError
from ..formatting import describe
from ..records.steps import AgentStepSpec
from .answers import POLL_S, SHORTEST_WAIT_S
from .cooldown import Gate
from .windows import Window, request_rates, token_rates

__all__ = ["RateLimit"]

MOST_REMEMBERED = 1024
"""Of so many idle keys, and so many idle agents of a key, it is remembered how many tokens a step takes."""

PLACE_KEPT_S = 1.0
"""For so long after it should have asked again, a run that waits keeps its place before other runs."""

LONGEST_TURN_S = 1.0
"""After so long a run asks again whether those that came before it still wait."""

ARRIVAL_S = 0.2
"""So long after an attempt has started, or when it has ended, its request has arrived where it is counted.

Its time in the window begins only then: one that is late must not be too close there to the one that takes its place.
"""

LATEST_ARRIVAL_S = 5.0
"""The same where attempts usually take less than `ARRIVAL_S`: one that takes longer may still be on its way."""

_NEWS = 0.1  # the weight of one attempt's duration in what they usually take

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


@define(eq=False, on_setattr=setters.frozen)
class RateLimit:
    """At most so many requests and tokens per minute. Runs that are given the same one keep to it together.

    An attempt is one request. In any minute no more than `requests_per_minute` start; and of them no more than those of
    a second, or ten, at once, for providers enforce a share of the limit in shorter periods.

    How many tokens a step takes is known only when it has ended. Until then it is taken to be as many as the most that
    a step of its agent took so far; the first one of an agent goes alone. A step that takes more than
    `tokens_per_minute` runs when there was no other for a minute.

    When a step raises `RetryAfter`, nothing starts for so long, and a little longer, so that not all begin in the same
    moment; then one, and with each that ends well one more at a time.

    Args:
        requests_per_minute: How many attempts may start; less than 1 for one in several minutes.
        tokens_per_minute: How many tokens they may take, as reported.
        key: What a spec counts against, such as the provider's name for its agent's model; by default all specs count
            against the same.

    Raises:
        OptionError: An argument is unusable, or there is no limit at all.
    """

    requests_per_minute: float | None = field(default=None, validator=_requests)
    tokens_per_minute: int | None = field(default=None, validator=_tokens)
    key: Callable[[AgentStepSpec], str] | None = field(default=None, validator=_a_function)
    keys: Keys = field(init=False, repr=False)  # for the limiter

    def __attrs_post_init__(self) -> None:
        if self.requests_per_minute is None and self.tokens_per_minute is None:
            raise OptionError("RateLimit needs requests_per_minute or tokens_per_minute")
        object.__setattr__(self, "keys", Keys(self.requests_per_minute, self.tokens_per_minute))

    def key_of(self, spec: AgentStepSpec) -> str:
        """Return what `spec` counts against.

        Raises:
            OptionError: `key` returned no string.
            Exception: Whatever `key` raises.
        """
        if self.key is None:
            return ""
        key: Any = self.key(spec)
        if not isinstance(key, str):
            raise OptionError(f"key of RateLimit must return a str, got {describe(key)}")
        return key

    def __reduce__(self) -> NoReturn:
        raise TypeError("a RateLimit lives in one process: give it to the runner as rate_limit, not to the executor")


class Keys:
    """The state of all keys of a `RateLimit`. Only used under the lock.

    Attributes:
        random: Decides how much longer than asked for a gate stays closed.
        latest: The latest moment of which was told.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: int | None) -> None:
        self.random = Random()
        self.latest = 0.0
        self._requests = None if requests_per_minute is None else request_rates(float(requests_per_minute))
        self._tokens = None if tokens_per_minute is None else token_rates(tokens_per_minute)
        self._keys: dict[str, Key] = {}
        self._remembered: dict[str, dict[str, int]] = {}
        self._sweep_at = _FEWEST_TO_SWEEP

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, name: str) -> Key:
        """Return the state of a key, a new one if there is none."""
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = Key(
                name,
                None if self._requests is None else Window(self._requests),
                None if self._tokens is None else Window(self._tokens),
            )
            for agent, largest in self._remembered.pop(name, {}).items():
                key.agents[agent] = _Agent(largest)
        return key

    def sweep(self, now: float) -> None:
        """Forget idle keys, once there are twice as many as the last time; but not what steps took under them."""
        self.latest = max(self.latest, now)
        if len(self._keys) < self._sweep_at:
            return
        for name, key in list(self._keys.items()):
            if key.is_idle(now):
                del self._keys[name]
                self._remember(name, key)
        self._sweep_at = max(_FEWEST_TO_SWEEP, 2 * len(self._keys))

    def give_up_places(self, run: object) -> None:
        """Let no other run wait for this one."""
        for key in self._keys.values():
            key.places.pop(run, None)

    def _remember(self, name: str, key: Key) -> None:
        largest = {agent: state.largest for agent, state in key.agents.items() if state.largest is not None}
        if largest:
            self._remembered[name] = largest
        if len(self._remembered) > MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]


@define(eq=False)
class _Agent:
    """What is known of the steps of an agent under a key.

    Attributes:
        largest: The most tokens that one took; `None` as long as none has ended.
        in_flight: How many of them there are.
    """

    largest: int | None = None
    in_flight: int = 0


@define(eq=False)
class KeyPermit:
    """One attempt under one key.

    Attributes:
        key: The key's name.
        agent: The spec's agent.
        entered: In which round of the gate it began.
        since: When.
        tokens: How many it has reported so far.
        is_counted: Whether it is in the way of others.
    """

    key: str
    agent: str
    entered: int
    since: float
    tokens: int = 0
    is_counted: bool = True


@define(eq=False)
class Key:
    """The state of one key.

    Attributes:
        requests: The attempts that started lately; `None` if they are not limited.
        under_way: Those that may not have arrived yet, in their order: they are put in when they have.
        usual_s: How long attempts usually take.
        tokens: The tokens of attempts that ended lately; `None` if they are not limited.
        gate: What `RetryAfter` closes.
        agents: Those of which something is known or in flight.
        reserved: How many tokens those in flight are taken to need: for each the most that one of its agent took.
        debt: Tokens that were used but do not fit into the window yet.
        debt_since: When that began.
        alone: The first attempt of an agent, as long as it is in flight.
        places: The runs that wait, in the order in which they came, and until when their places are kept.
    """

    name: str
    requests: Window | None
    tokens: Window | None
    gate: Gate = field(factory=Gate)
    under_way: dict[KeyPermit, None] = field(factory=dict)
    usual_s: float = ARRIVAL_S
    agents: dict[str, _Agent] = field(factory=dict)
    reserved: int = 0
    debt: int = 0
    debt_since: float = 0.0
    alone: KeyPermit | None = None
    places: dict[object, float] = field(factory=dict)

    def wait_s(self, agent: str, run: object, now: float) -> float:
        """Return when to ask again, 0 if a step may start; if it may not, the run has a place from now on."""
        wait_s = self.gate.opens_in_s(now) or (POLL_S if self.gate.is_crowded else 0.0)
        if self.requests is not None:
            wait_s = max(wait_s, self._requests_wait_s(self.requests, now))
        if self.tokens is not None:
            wait_s = max(wait_s, self._tokens_wait_s(self.tokens, agent, now))
        if not self.places and not wait_s:
            return 0.0
        wait_s = wait_s or self._turn_in_s(run, now)
        if wait_s:
            self.places[run] = now + wait_s + PLACE_KEPT_S
        else:
            self.places.pop(run, None)
        return wait_s

    def start(self, agent: str, now: float) -> KeyPermit:
        """Begin an attempt that need not wait."""
        key_permit = KeyPermit(self.name, agent, self.gate.enter(), now)
        if self.requests is not None:
            self.under_way[key_permit] = None
        if self.tokens is not None:
            known = self._agent(agent)
            known.in_flight += 1
            self.reserved += known.largest or 0
            if known.largest is None:
                self.alone = key_permit
        return key_permit

    def spend(self, key_permit: KeyPermit, tokens: int) -> None:
        """Count tokens of an attempt in flight; they are put in when it has ended."""
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
            self._owe(self.tokens, tokens, now)

    def step_aside(self, key_permit: KeyPermit) -> None:
        """Let nothing wait for this attempt any more."""
        if not key_permit.is_counted:
            return
        key_permit.is_counted = False
        self.gate.leave(key_permit.entered)
        if self.alone is key_permit:
            self.alone = None
        if self.tokens is not None:
            known = self.agents[key_permit.agent]
            known.in_flight -= 1
            self.reserved -= known.largest or 0

    def end(self, key_permit: KeyPermit, now: float, closed_s: float | None) -> None:
        """End an attempt, and close the gate if it is to be."""
        if closed_s is None:
            self.gate.went_well(key_permit.entered)
        else:
            self.gate.close(key_permit.entered, now, closed_s)
        self.step_aside(key_permit)
        if self.requests is not None:
            if key_permit in self.under_way:
                del self.under_way[key_permit]
                self.requests.put(1, now)
            self.usual_s += _NEWS * (min(now - key_permit.since, LATEST_ARRIVAL_S) - self.usual_s)
        if self.tokens is None:
            return
        if closed_s is None or key_permit.tokens:  # one that was sent away says nothing about what another takes
            self._learn(self._agent(key_permit.agent), key_permit.tokens)
        self._owe(self.tokens, key_permit.tokens, now)

    def is_idle(self, now: float) -> bool:
        """Return whether nothing is lost when this is forgotten."""
        if self.gate.in_flight or not self.gate.is_forgotten(now):
            return False
        if self.tokens is not None:
            self._pay(self.tokens, now)
            if self.debt or not self.tokens.is_empty(now):
                return False
        if self.requests is None:
            return True
        self._arrive(self.requests, now)
        return not self.under_way and self.requests.is_empty(now)

    def _requests_wait_s(self, window: Window, now: float) -> float:
        self._arrive(window, now)
        if len(self.under_way) < window.burst:
            return window.room_in_s(1 + len(self.under_way), now)
        return max(next(iter(self.under_way)).since + self._arrival_s() - now, SHORTEST_WAIT_S)

    def _arrive(self, window: Window, now: float) -> None:
        """Put in those that must have arrived by now."""
        arrival_s = self._arrival_s()
        while self.under_way:
            key_permit = next(iter(self.under_way))
            if key_permit.since + arrival_s > now:
                return
            del self.under_way[key_permit]
            window.put(1, key_permit.since + arrival_s)

    def _arrival_s(self) -> float:
        return ARRIVAL_S if self.usual_s >= ARRIVAL_S else LATEST_ARRIVAL_S

    def _tokens_wait_s(self, window: Window, agent: str, now: float) -> float:
        self._pay(window, now)
        if self.debt:
            return window.room_in_s(min(self.debt, window.limit), now)
        if self.alone is not None:
            return POLL_S
        known = self.agents.get(agent)
        estimate = 1 if known is None or known.largest is None else known.largest
        # Steps that end make no room before that: what they were taken to need is then what they took.
        if wait_s := window.room_in_s(estimate, now):
            return wait_s
        needed = self.reserved + estimate
        has_to_wait = self.gate.in_flight and (needed > window.limit or window.room_in_s(needed, now))
        return POLL_S if has_to_wait else 0.0

    def _pay(self, window: Window, now: float) -> None:
        while self.debt and window.put_backdated(part := min(self.debt, window.limit), self.debt_since, now):
            self.debt -= part

    def _owe(self, window: Window, tokens: int, now: float) -> None:
        if not self.debt:
            self.debt_since = now
        self.debt += tokens
        self._pay(window, now)

    def _learn(self, agent: _Agent, tokens: int) -> None:
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

    def _turn_in_s(self, run: object, now: float) -> float:
        """Return how long to wait for a run that came earlier; without that the greedy would starve the patient."""
        for other, kept_until in list(self.places.items()):
            if other is run:
                return 0.0
            if kept_until >= now:
                return min(max(POLL_S, kept_until - PLACE_KEPT_S - now), LONGEST_TURN_S)
            del self.places[other]
        return 0.0
