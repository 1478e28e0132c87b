"""How far a run is: what is shown while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from attrs import field, frozen

from ..records.steps import AgentStepSpec
from ..records.usage import Usage

__all__ = ["Progress"]

Unit = Literal["step", "item", "round"]


@frozen(kw_only=True)
class Progress:
    """How far a run is.

    `total` and `done` are steps; of a pipeline they are its items, and of a loop its rounds. All other numbers are
    steps, of a loop those of all rounds so far.

    Attributes:
        total: How many there are; `None` if that is not known.
        done: How many have ended.
        succeeded: How many steps have succeeded, reused ones included.
        failed: How many have failed, by whatever status but `cancelled`.
        cancelled: How many were cancelled.
        retried: How many attempts were made again.
        reused: How many outcomes came from the journal.
        running: How many steps are running.
        waiting: How many wait for a limit, for the budget, or for their next attempt.
        elapsed_s: Seconds since the call began.
        eta_s: Seconds until it will be done if it goes on as it did so far; `None` if nobody can tell.
        usage: What the steps have reported so far, also those that are still running.
    """

    total: int | None = None
    done: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    reused: int = 0
    running: int = 0
    waiting: int = 0
    elapsed_s: float = 0.0
    eta_s: float | None = None
    usage: Usage = field(factory=Usage)


class RunView(Protocol):
    """A call of a runner, as those see it who show its progress. Any thread may ask.

    Attributes:
        unit: What `Progress.total` and `Progress.done` count.
    """

    @property
    def unit(self) -> Unit: ...

    def progress(self) -> Progress:
        """Return how far the call is."""

    def running_steps(self) -> Sequence[tuple[AgentStepSpec, float]]:
        """Return the steps that are running and for how many seconds each has, the longest first."""

    def held_back_by(self) -> str | None:
        """Return what keeps waiting steps from starting, such as the text of a rate limit; `None` if nothing does."""

    def ended_cost_usd(self) -> float:
        """Return what the steps that have ended have cost, in US dollars, without those from the journal.

        It is 0 unless a sink has `shows_steps`.
        """

    def latest_failures(self, most: int) -> Sequence[tuple[int, str]]:
        """Return how many steps have failed for which reason, that of the last failure first; at most `most` reasons.

        There are none unless a sink has `shows_steps`.
        """


class ProgressSink(Protocol):
    """Shows the progress of a call. Used in the caller's thread only.

    What it raises is logged, and costs the call nothing but the rest of its progress.

    Attributes:
        interval_s: `update` is called at most once in so many seconds.
        shows_steps: Whether it asks for the running steps and the failures; else neither is noted.
    """

    interval_s: float
    shows_steps: bool

    def begin(self, view: RunView) -> None:
        """Show that the call begins."""

    def update(self) -> None:
        """Show how far it is."""

    def end(self) -> None:
        """Show how far it has come, and let go of whatever it is shown on. Called however the call ends."""


@frozen
class ShownBy:
    """Says, as `progress=` of a runner, what shows the progress of its calls.

    Attributes:
        make_sink: Makes it, when a call begins.
    """

    make_sink: Callable[[], ProgressSink]
