"""What a row of the benchmarks is: contestants that are measured in turn, and what is required of the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from attrs import frozen

OURS = "fanout_sync"
IDEAL = "ideal"


@frozen
class Sizes:
    """How much is measured.

    Attributes:
        rounds: How many times each contestant is measured.
        thread_steps: Steps that do nothing, on threads.
        nap_steps: Steps of 10 ms, on threads.
        process_steps: Steps that do nothing, in processes.
        streamed: Steps of the long stream; the short one has a hundredth.
        uneven_steps: Steps of 10 ms beside one that takes as long as all of them together.
        deadly_steps: Steps of which every tenth kills its worker.
        commands: Steps that run a program.
    """

    rounds: int
    thread_steps: int
    nap_steps: int
    process_steps: int
    streamed: int
    uneven_steps: int
    deadly_steps: int
    commands: int


FULL = Sizes(7, 20_000, 2_000, 2_000, 1_000_000, 100, 400, 500)
QUICK = Sizes(2, 1_000, 640, 200, 20_000, 20, 100, 50)


@frozen
class Contestant:
    """Something that is measured.

    Attributes:
        name: What the tables call it.
        measure: Measures it once and returns the figure in the unit of its row.
    """

    name: str
    measure: Callable[[], float]


@frozen
class Verdict:
    """Whether a requirement holds.

    Attributes:
        kind: A missed "must" is a failure, a missed "aim" is not.
        required: What is required.
        measured: What was measured.
        holds: Whether that is good enough.
    """

    kind: Literal["must", "aim"]
    required: str
    measured: str
    holds: bool

    def __str__(self) -> str:
        return f"{self.kind}: {self.required} – {self.measured}, {'holds' if self.holds else 'MISSED'}"


@frozen
class Limit:
    """Requires a contestant to be at most `times` the best of others, plus `extra`.

    Attributes:
        kind: See `Verdict`.
        times: The factor.
        of: Whose medians; the least of them counts.
        extra: What may be added, in the unit of the row.
        subject: Who has to keep to it.
    """

    kind: Literal["must", "aim"]
    times: float
    of: tuple[str, ...]
    extra: float = 0.0
    subject: str = OURS

    def judge(self, medians: Mapping[str, float], unit: str) -> Verdict:
        """Compare the medians."""
        best = min(medians[name] for name in self.of)
        median = medians[self.subject]
        whose = " or ".join(self.of)
        if self.extra:
            return Verdict(
                self.kind,
                f"≤ {whose} + {self.extra:g} {unit}",
                f"{median - best:+.1f} {unit}",
                median <= self.times * best + self.extra,
            )
        return Verdict(self.kind, f"≤ {self.times:g} × {whose}", f"{median / best:.2f} ×", median <= self.times * best)


@frozen
class Condition:
    """Requires something that is no figure.

    Attributes:
        kind: See `Verdict`.
        required: What is required, in words.
        look: Returns what was found against it; empty if it holds.
    """

    kind: Literal["must", "aim"]
    required: str
    look: Callable[[], str]

    def judge(self, medians: Mapping[str, float], unit: str) -> Verdict:
        """Look."""
        against = self.look()
        return Verdict(self.kind, self.required, against or "none", not against)


@frozen
class Row:
    """Contestants that are measured side by side.

    Attributes:
        title: What is measured.
        unit: Of all figures of the row.
        contestants: Who takes part.
        requirements: What has to hold, and what should.
        ideal: What nobody can be better than, if that is known.
    """

    title: str
    unit: str
    contestants: tuple[Contestant, ...]
    requirements: tuple[Limit | Condition, ...] = ()
    ideal: float | None = None
