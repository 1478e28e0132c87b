"""What a run keeps to run its failed steps again: their specs, and the function that runs them."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from attrs import evolve, frozen

from ..records.report import Report
from ..records.steps import AgentStepSpec
from .step_log import StepLog

_STREAM = (
    "the run of a stream keeps no specs, so that a long stream needs little memory; keep those of the failed steps "
    "while you read it, and use Runner(...).run(specs)"
)


class RetryFailed(Protocol):
    """Runs the failed steps of a run again, on the runner that has made it."""

    def __call__(self, run: Any, specs: Sequence[AgentStepSpec], options: Mapping[str, Any], /) -> Any:
        """Return a `Run` with all outcomes of `run` in their places.

        Args:
            run: The `Run`.
            specs: Those of its failed steps, in order.
            options: Keyword arguments of `Runner` that go before those of the runner.
        """


def failed_places(reports: Iterable[Report]) -> list[int]:
    """Return where the reports of failed steps stand."""
    return [place for place, report in enumerate(reports) if not report.outcome.success]


def failed_specs_of(reports: Sequence[Report]) -> list[AgentStepSpec]:
    """Return the specs of the failed steps, in order.

    Raises:
        RuntimeError: They are not there; the error says why.
    """
    if isinstance(reports, StepLog):
        raise RuntimeError(_STREAM)
    failed = [report for report in reports if not report.outcome.success]
    specs = [report.spec for report in failed if report.spec is not None]
    if len(specs) < len(failed):
        lost = next(report.outcome.task_id for report in failed if report.spec is None)
        raise RuntimeError(
            f"{len(failed) - len(specs)} of {len(failed)} specs of failed steps are not there, such as that of "
            f"{lost!r}: they could not be pickled with the run, or not loaded; use Runner(...).run(specs)"
        )
    return specs


def why_not_retried(reports: Sequence[Report]) -> str:
    """Return why a run has no runner to retry with."""
    if isinstance(reports, StepLog):
        return _STREAM
    return (
        "this run has no runner to retry with, as one that was loaded from a pickle or copied; "
        "use Runner(...).run(specs): the specs are in its failed_specs"
    )


def to_be_pickled(reports: Sequence[Report]) -> Sequence[Report]:
    """Return reports that can be pickled, and loaded, even if one of the specs cannot."""
    if isinstance(reports, StepLog):
        return reports
    return [report if report.spec is None else _to_be_pickled(report, report.spec) for report in reports]


def _to_be_pickled(report: Report, spec: AgentStepSpec) -> Report:
    pickled: Any = _PickledSpec.of(spec)  # which is no spec until it is loaded
    return evolve(report, spec=pickled)


@frozen
class _PickledSpec:
    """In the pickle of a run, stands for a spec, which may carry any object; it is loaded as the spec itself."""

    data: bytes

    @classmethod
    def of(cls, spec: AgentStepSpec) -> _PickledSpec | None:
        try:
            return cls(pickle.dumps(spec, pickle.HIGHEST_PROTOCOL))
        except Exception:  # the code of the item's class; the outcomes go without it
            return None

    def __reduce__(self) -> tuple[Any, ...]:
        return _loaded_spec, (self.data,)


def _loaded_spec(data: bytes) -> AgentStepSpec | None:
    try:
        spec: AgentStepSpec = pickle.loads(data)
    except Exception:  # as above: its class may be unknown in this program
        return None
    return spec
