"""The result of a run."""

from __future__ import annotations

import heapq
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

from attrs import evolve

from ..formatting import close_words, describe
from ..records.conversion import record_of
from ..records.report import Report
from ..records.step_record import StepRecord
from ..records.steps import AgentStepSpec, Json, StepOutcome
from ..records.usage import Usage
from ..tracebacks import ShortIndexError, ShortKeyError, ShortTypeError
from .retrying import RetryFailed, failed_places, failed_specs_of, to_be_pickled, why_not_retried
from .table import data_frame_of, rows_of

if TYPE_CHECKING:
    import pandas

    from ..wire.jsonl import PathOrFile

__all__ = ["Run"]

MAX_SUMMARY_LINES = 25
"""How many lines `summary` has at most."""

MAX_SLOWEST = 3
"""How many of the slowest steps `summary` shows."""

MAX_COMPARED = 1000
"""How many task ids are compared with an unknown one to find similar ones: it is slow."""

MAX_NAME_CHARS = 80
"""How many characters of the task id of a slow step `summary` shows."""


class Run(Sequence[StepOutcome]):
    """The outcomes of one run, in the order of its specs, with a record of each step.

    `run[0]` is the first outcome, and `run["t1"]` that of the step with the task id `"t1"`: a `KeyError` if there is
    none, or more than one. `"t1" in run` says whether there is any.

    Attributes:
        records (Sequence[StepRecord]): One `StepRecord` for each outcome, in the same order.
        elapsed (float): Seconds from the start of the call to its end.
    """

    def __init__(
        self,
        reports: Sequence[Report],
        elapsed: float,
        notes: Sequence[str] = (),
        retry: RetryFailed | None = None,
        used_before: Usage | None = None,
    ) -> None:
        self._reports = reports
        self._notes = notes
        self._retry = retry
        self._used_before = Usage() if used_before is None else used_before
        self._places_by_id: dict[str, list[int]] | None = None
        self.records: Sequence[StepRecord] = Records(reports)
        self.elapsed = elapsed

    @property
    def succeeded(self) -> list[StepOutcome]:
        """The outcomes that say success, in order."""
        return [outcome for outcome in self if outcome.success]

    @property
    def failed(self) -> list[StepOutcome]:
        """The outcomes that say failure, in order."""
        return [outcome for outcome in self if not outcome.success]

    @property
    def usage(self) -> Usage:
        """What all steps of this run together have reported; steps that the journal had have used nothing in it.

        After `retry_failed` it also has what the failed steps had used before they were run again.
        """
        usages = [report.usage for report in self._reports if report.journalled is None and report.usage is not None]
        return sum(usages, start=self._used_before)

    @property
    def failed_specs(self) -> list[AgentStepSpec]:
        """The specs of the failed steps, in order.

        Raises:
            RuntimeError: They are not there: the run of a stream keeps none, and one that cannot be pickled is lost
                when a run is.
        """
        return failed_specs_of(self._reports)

    def retry_failed(self, **options: Any) -> Run:
        """Run the steps that have not succeeded again, on the runner that has made this run.

        That includes steps that were cancelled, also those that had not begun. If all have succeeded, nothing runs.

        Args:
            **options: Keyword arguments of `Runner`, which go before those of that runner; all but the executor.

        Returns:
            A new run with all outcomes in their places. The records of the steps that ran again are those of the new
            try; `elapsed` and `usage` are of all tries together. It can be retried in its turn, with these options.

        Raises:
            RuntimeError: The run was loaded from a pickle and has no runner, or is that of a stream, which keeps no
                specs.
            OptionError: An option that nobody can mean or that does not exist; it is named.
            ExecutorNotPicklable, JournalError, JournalConflict, FanoutInterrupted: As in `Runner.run`; their `.run` has
                all outcomes in their places, too.
        """
        if self._retry is None:
            raise RuntimeError(why_not_retried(self._reports))
        run: Run = self._retry(self, self.failed_specs, options)
        return run

    def values(self) -> list[Json]:
        """Return what each step came to, in order: `structured`, else `output`; `None` for a failed step."""
        return [_value(outcome) for outcome in self]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a flat dict for each step, of its outcome and its record.

        So `pandas.DataFrame(run.to_dicts())` is a table.
        All have the same keys, and all values are `str`, `int`, `float`, `bool` or `None`: `structured` is JSON text,
        times are in ISO 8601, `attempts` is a number. What is not known is `None`.
        """
        return rows_of(self._reports)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame with a row for each step, and the columns of `to_dicts`; needs the extra `pandas`.

        Each column has a type that knows missing values: `Int64`, `Float64`, `boolean`, `string` or
        `datetime64[ns, UTC]`. `structured` has the objects themselves.

        Raises:
            ImportError: pandas is not installed.
        """
        return data_frame_of(self._reports)

    def to_jsonl(self, path: PathOrFile) -> None:
        """Write all outcomes as JSON Lines, in order, as `write_outcomes` does.

        Args:
            path: A path (an existing file is replaced), `"-"` for standard output, or an open file.

        Raises:
            OSError: The file cannot be opened or written.
            WireError: An outcome holds what JSON cannot carry; the lines before it are written.
        """
        from ..wire.jsonl import write_outcomes  # imported lazily: slow

        write_outcomes(path, self)

    def summary(self) -> str:
        """Return a text for people: counts by status, the time, the slowest steps, and why steps have failed.

        It also says how many outcomes came from the journal, and how much of a budget is used up. It has at most
        25 lines: failed steps with the same reason have one line, with their number and the task ids
        of three, and so have all cancelled steps. Two reasons are the same if their first lines differ only in words
        that have a digit, such as numbers, durations, addresses and ids of requests, or in the command of a program.
        But a number after "code", "status", "HTTP" or "errno" makes a difference.
        """
        from .failures import FailureGroups, first_line  # imported lazily: slow, it compiles regular expressions

        failures = FailureGroups(first_line)
        for report in self._reports:
            if not (outcome := report.outcome).success:
                failures.add(outcome.task_id, outcome.agent, report.status, outcome.output)
        lines = [*self._heading(), *self._slowest()]
        return "\n".join([*lines, *failures.lines(MAX_SUMMARY_LINES - len(lines))])

    def _heading(self) -> list[str]:
        counts = Counter[str]()
        tried_again = reused = 0
        for report in self._reports:
            counts[report.status] += 1
            tried_again += _is_tried_again(report)
            reused += _is_reused(report)
        by_status = ", ".join(f"{count} {status}" for status, count in counts.most_common()) or "nothing to do"
        steps = "1 step" if len(self) == 1 else f"{len(self)} steps"
        lines = [f"{steps} in {self.elapsed:.1f} s: {by_status}"]
        lines += [f"  tried more than once: {tried_again}"] * bool(tried_again)
        lines += [f"  from the journal: {reused}"] * bool(reused)
        return lines + [f"  {note}" for note in self._notes]

    def _slowest(self) -> list[str]:
        from .failures import first_line  # as above

        timed = ((_busy_s(report), -place) for place, report in enumerate(self._reports) if _has_run(report))
        slowest = [
            f"{first_line(self[-place].task_id, MAX_NAME_CHARS)} {busy_s:.3g} s"
            for busy_s, place in heapq.nlargest(MAX_SLOWEST, timed)
        ]
        return [f"  slowest: {', '.join(slowest)}"] * bool(slowest)

    def _places(self) -> dict[str, list[int]]:
        """Return the indices of the steps with each task id."""
        if self._places_by_id is None:
            places: dict[str, list[int]] = {}
            for place, outcome in enumerate(self):
                places.setdefault(outcome.task_id, []).append(place)
            self._places_by_id = places
        return self._places_by_id

    def _place_of(self, task_id: str) -> int:
        places = self._places().get(task_id, [])
        if not places:
            close = close_words(task_id, islice(self._places(), MAX_COMPARED))
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise ShortKeyError(f"no step of this run has the task_id {task_id!r}{hint}")
        if len(places) > 1:
            shown = ", ".join(map(str, places[:5])) + ", …" * (len(places) > 5)
            raise ShortKeyError(f"{len(places)} steps of this run have the task_id {task_id!r}; use an index: {shown}")
        return places[0]

    def _in_range(self, index: int) -> int:
        try:
            place = operator.index(index)
        except TypeError:
            raise ShortTypeError(f"a run has an int, a slice or a task_id as index, got {describe(index)}") from None
        if not -len(self) <= place < len(self):
            raise ShortIndexError(f"there is no step {place} in a run of {len(self)} steps")
        return place

    @overload
    def __getitem__(self, index: int | str) -> StepOutcome: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepOutcome]: ...
    def __getitem__(self, index: int | str | slice) -> StepOutcome | list[StepOutcome]:
        if isinstance(index, slice):
            return [report.outcome for report in self._reports[index]]
        return self._reports[self._place_of(index) if isinstance(index, str) else self._in_range(index)].outcome

    def __iter__(self) -> Iterator[StepOutcome]:
        return (report.outcome for report in self._reports)

    def __contains__(self, value: object) -> bool:
        return value in self._places() if isinstance(value, str) else super().__contains__(value)

    def __len__(self) -> int:
        return len(self._reports)

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Run) else other)

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the runner, which may hold anything.
        return Run, (to_be_pickled(self._reports), self.elapsed, self._notes, None, self._used_before)

    def __copy__(self) -> Run:
        return Run(self._reports, self.elapsed, self._notes, self._retry, self._used_before)

    __hash__ = None  # type: ignore[assignment]  # compared by content, like a list

    def __repr__(self) -> str:
        return f"<Run of {len(self)} steps, {len(self.failed)} failed, {self.elapsed:.3g} s>"

    def _repr_html_(self) -> str:
        from .html import run_html, usage_line  # imported lazily: only notebooks need it

        used = usage_line(self.usage)
        return run_html([*self._heading(), *[f"  {used}"] * bool(used)], self._reports)


class Records(Sequence[StepRecord]):
    """The records of a run. Each one is made when it is asked for, because most never are."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self._reports = reports

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepRecord]: ...
    def __getitem__(self, index: int | slice) -> StepRecord | list[StepRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return record_of(self._reports[place])

    def __len__(self) -> int:
        return len(self._reports)

    def __repr__(self) -> str:
        return repr(list(self))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.pretty(list(self))  # of which IPython displays a thousand


def with_retried(run: Run, tried: Run) -> Run:
    """Return a run with the steps of another one, in which its failed steps ran again, in their places.

    Args:
        run: The run.
        tried: The other one; the index of a step in it is its place among the failed steps of `run`.
    """
    reports, places, used_before = list(run._reports), failed_places(run._reports), run._used_before
    for report in tried._reports:
        before = reports[places[report.index]]
        if before.usage is not None:
            used_before += before.usage
        reports[places[report.index]] = evolve(report, index=before.index)
    return Run(reports, run.elapsed + tried.elapsed, tried._notes, tried._retry, used_before)


def _value(outcome: StepOutcome) -> Json:
    if not outcome.success:
        return None
    return outcome.output if outcome.structured is None else outcome.structured


def _is_tried_again(report: Report) -> bool:
    if report.journalled is None and not report.attempts:
        return False
    return len(record_of(report).attempts) > 1


def _is_reused(report: Report) -> bool:
    return report.journalled is not None and report.journalled.from_journal


def _has_run(report: Report) -> bool:
    return not _is_reused(report) and (report.started is not None or bool(report.attempts))


def _busy_s(report: Report) -> float:
    return sum(attempt.duration_s or 0.0 for attempt in report.attempts) + (report.duration_s or 0.0)
