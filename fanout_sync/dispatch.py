"""The runner's heart: feed specs into a bounded window, take reports as steps end. One thread, the caller's."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

from .announcer import Announcer
from .attempt import Report
from .backends.backend import Session
from .records import StepError
from .steps import AgentStepSpec
from .wording import describe

SLOW_INPUT_S = 0.02
"""After so long, outcomes that are there do not wait any more for the input to fill the window."""


class Dispatch:
    """One run of specs over a session.

    Args:
        specs: The input.
        session: Where the steps run.
        bound: How many may run at once.
        lookahead: How many more may be handed over early, to wait in the session: only for an input that is at hand
            and takes no time.
        announcer: Tells of starts and ends; `None` when nobody listens.

    Attributes:
        window: How many steps may be handed over and not reported; the consumer may change it between reports.
        input_error: Why the input ended early; `None` as long as it did not.
    """

    def __init__(
        self, specs: Iterator[Any], session: Session, bound: int, lookahead: int, announcer: Announcer | None
    ) -> None:
        self._specs = specs
        self._session = session
        self._announcer = announcer
        self._lookahead = lookahead
        self.window = bound + lookahead
        self.input_error: BaseException | None = None
        self.input_error_reason = ""
        self._has_more = True
        self._fed = 0
        self._in_flight = 0

    def reports(self) -> Iterator[Report]:
        """Yield one report for each spec, in the order in which the steps end; the input is read in between."""
        wait = self._session.wait
        refill_below = max(1, self._lookahead // 2)
        while True:
            report = None
            if self._has_more and self._in_flight <= self.window - refill_below:
                report = self._feed()
            if report is None:
                if not self._in_flight:
                    return
                report = wait()
            self._in_flight -= 1
            if self._announcer is not None:
                self._announcer.ended(report)
            yield report

    def _feed(self) -> Report | None:
        """Hand over specs until the window is full; if the input is slow, return a report that is there already."""
        began = monotonic()
        start, announcer = self._session.start, self._announcer
        while self._in_flight < self.window:
            spec = self._next_spec()
            if spec is None:
                self._has_more = False
                break
            if announcer is not None:
                announcer.started(self._fed, spec)
            start(self._fed, spec)
            self._fed += 1
            self._in_flight += 1
            if monotonic() - began > SLOW_INPUT_S and (report := self._session.poll()) is not None:
                return report
        return None

    def _next_spec(self) -> AgentStepSpec | None:
        try:
            spec = next(self._specs)
        except StopIteration:
            return None
        except (Exception, SystemExit) as error:  # the caller's generator; what is running is finished first
            self.input_error = error
            self.input_error_reason = f"the input raised after {self._fed} specs: {StepError.of(error)}"
            return None
        if isinstance(spec, AgentStepSpec):
            return spec
        self.input_error = TypeError(f"expected an AgentStepSpec, got {describe(spec)}")
        self.input_error_reason = (
            f"specs[{self._fed}] is {describe(spec)}, expected an AgentStepSpec "
            "(AgentStepSpec.from_dict makes one from a mapping)"
        )
        return None
