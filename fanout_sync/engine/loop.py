"""What a loop's `next_round` returns: another round, or the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import frozen

from ..errors import InputError
from ..formatting import describe
from ..records.status import StepError
from ..records.steps import AgentStepSpec, StepOutcome
from ..results.run import Run

__all__ = ["Continue", "Stop"]


@frozen
class Continue:
    """Run another round.

    Attributes:
        specs: What to run in it; none ends the loop.
    """

    specs: Iterable[AgentStepSpec]


@frozen
class Stop:
    """End the loop: the outcomes of the round before are its result."""


NextRound = Callable[[Sequence[StepOutcome]], "Continue | Stop"]
"""Decides, from the outcomes of a round, whether there is another one."""


def specs_of_next_round(next_round: NextRound, run: Run) -> list[Any]:
    """Ask for another round; return its specs, none if the loop is over.

    Raises:
        InputError: `next_round` raised (`__cause__`) or returned neither; `.run` is the round before.
    """
    try:
        answer: Any = next_round(list(run))
        if isinstance(answer, Continue):
            return list(answer.specs)
    except (Exception, SystemExit) as error:
        raise InputError(f"next_round raised {StepError.of(error)}", run) from error
    if isinstance(answer, Stop):
        return []
    hint = f"; call it: {answer.__name__}(…)" if answer in (Continue, Stop) else ""
    raise InputError(f"next_round must return Continue(specs) or Stop(), got {describe(answer)}{hint}", run)
