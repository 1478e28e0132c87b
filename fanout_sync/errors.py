"""Every error that fanout_sync raises on purpose.

    FanoutError
    ├── WireError (ValueError)              JSON that is no spec, outcome or event
    ├── OptionError (ValueError)            an argument of `Runner` or of the command line
    │   └── UnknownOption (TypeError)       a keyword argument that does not exist
    ├── InputError (Exception)              the iterable of specs raised, or an item is no spec; has the `run` so far
    ├── ExecutorNotPicklable (TypeError)    an executor that cannot be sent to a worker process, or copied
    ├── JournalError (Exception)            a journal that cannot be read or written, or that another run is using
    │   └── JournalConflict                 a `task_id` that belongs to another step
    └── FanoutInterrupted (KeyboardInterrupt)   Ctrl-C; has the `run` so far

All but `FanoutInterrupted` are `Exception`s: `except Exception` catches every error, but no interrupt.

An exception that a *step* raises is none of these: it becomes a failed outcome, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from .tracebacks import ShortInNotebooks

__all__ = [
    "ExecutorNotPicklable",
    "FanoutError",
    "FanoutInterrupted",
    "InputError",
    "JournalConflict",
    "JournalError",
    "OptionError",
    "UnknownOption",
    "WireError",
]


class RunSoFar(Protocol):
    """The run that an error ended: a `fanout_sync.Run`, which is a sequence of `StepOutcome`s.

    Attributes:
        records: One `StepRecord` for each outcome, in the same order.
        elapsed: Seconds from the start of the call to its end.
    """

    records: Sequence[Any]
    elapsed: float

    @property
    def succeeded(self) -> list[Any]: ...
    @property
    def failed(self) -> list[Any]: ...
    @property
    def usage(self) -> Any: ...
    def values(self) -> list[Any]: ...
    def to_dicts(self) -> list[dict[str, Any]]: ...
    def summary(self) -> str: ...
    @property
    def failed_specs(self) -> list[Any]: ...
    def retry_failed(self, **options: Any) -> Any: ...
    def to_jsonl(self, path: Any) -> None: ...
    def to_pandas(self) -> Any: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __contains__(self, value: object) -> bool: ...
    def __getitem__(self, index: int | str) -> Any: ...


class FanoutError(BaseException):
    """The base class of all errors of this package; all but `FanoutInterrupted` are also an `Exception`.

    Subclasses pass all their arguments to `super().__init__`, so that they survive `pickle`.
    """

    _render_traceback_ = ShortInNotebooks.__dict__["_render_traceback_"]


class WireError(FanoutError, ValueError):
    """JSON that is no spec, outcome or event, or a record that JSON cannot carry.

    Attributes:
        reason: What came and what was expected.
        field: The field at fault, such as `"max_steps"` or `"structured.items[3]"`; `""` if it is the whole text.
        source: The name of the file that was being read or written; `None` if there was none.
        line: The number of the line in `source`, from 1; `None` if it is not known.
    """

    def __init__(self, reason: str, field: str = "", source: str | None = None, line: int | None = None) -> None:
        super().__init__(reason, field, source, line)
        self.reason = reason
        self.field = field
        self.source = source
        self.line = line

    def __str__(self) -> str:
        place = (
            "" if self.source is None else f"{self.source}: " if self.line is None else f"{self.source}:{self.line}: "
        )
        return f"{place}{self.field}: {self.reason}" if self.field else f"{place}{self.reason}"


class OptionError(FanoutError, ValueError):
    """An argument has no usable value; the message names the argument, what came and what is allowed."""


class UnknownOption(OptionError, TypeError):
    """A keyword argument that does not exist."""


class InputError(FanoutError, Exception):
    """The specs are not iterable, their iterator raised (see `__cause__`), or an item is no `AgentStepSpec`.

    Attributes:
        reason: What was wrong with the input.
        run: The `Run` of the steps that had been started before; all of them are finished.
    """

    def __init__(self, reason: str, run: RunSoFar) -> None:
        super().__init__(reason, run)
        self.reason = reason
        self.run = run

    def __str__(self) -> str:
        return self.reason


class ExecutorNotPicklable(FanoutError, TypeError):
    """An executor cannot be sent to a worker process or copied for each worker thread.

    It cannot be pickled, no worker can unpickle it, or `copy.deepcopy`, which asks an object for the same as `pickle`,
    cannot copy it. No step has run in this call, or in this round of a loop.

    Attributes:
        path: What is at fault, such as `"executor.client.lock"` or `"executor.agents['ask'] (global CLIENT)._lock"`;
            `"executor"` or `"retry"` if it was pickled and cannot be unpickled.
        reason: What it is, and the error that `pickle` or `copy.deepcopy` raised.
        advice: What to do instead.
        traceback: The traceback of the worker that could not unpickle it; `None` if there is none.
        run: In a loop, the `Run` of the round before; otherwise the `Run` of the steps whose outcomes the journal had,
            the others cancelled; `None` if there are none.
        is_copy: Whether it was to be copied.
    """

    def __init__(
        self,
        path: str,
        reason: str,
        advice: str = "Make it in the executor's setup(), which runs in each worker, or use backend='thread'.",
        traceback: str | None = None,
        run: RunSoFar | None = None,
        is_copy: bool = False,
    ) -> None:
        super().__init__(path, reason, advice, traceback, run, is_copy)
        self.path = path
        self.reason = reason
        self.advice = advice
        self.traceback = traceback
        self.run = run
        self.is_copy = is_copy

    def __str__(self) -> str:
        where = "copied for each worker thread" if self.is_copy else "sent to a worker process"
        return f"{self.path} cannot be {where}: {self.reason}. {self.advice}"

    def with_run(self, run: RunSoFar | None) -> ExecutorNotPicklable:
        """Return the same error with another `run`."""
        error = ExecutorNotPicklable(self.path, self.reason, self.advice, self.traceback, run, self.is_copy)
        error.__cause__ = self.__cause__
        return error


class JournalError(FanoutError, Exception):
    """A journal cannot be read or written, or another run is using it. Earlier entries of the journal stay readable.

    Attributes:
        reason: What went wrong.
        run: The `Run` of the steps that had been started before, all of them finished; in a loop whose next
            round cannot start, the `Run` of the round before; `None` if nothing was run.
    """

    def __init__(self, reason: str, run: RunSoFar | None = None) -> None:
        super().__init__(reason, run)
        self.reason = reason
        self.run = run

    def __str__(self) -> str:
        return self.reason


class JournalConflict(JournalError):
    """The `task_id` of a step belongs to another one: to a different step in the journal, or to one in the same run.

    Attributes:
        conflicts: The names of the fields that differ, by `task_id`; empty if the same step came twice.
        run: See `JournalError`.
    """

    def __init__(self, reason: str, conflicts: Mapping[str, tuple[str, ...]], run: RunSoFar | None = None) -> None:
        conflicts = dict(conflicts)  # because not every mapping can be pickled
        super().__init__(reason, run)
        self.args = (reason, conflicts, run)
        self.conflicts = conflicts


class FanoutInterrupted(FanoutError, KeyboardInterrupt):
    """A run was interrupted, as by Ctrl-C, and has cleaned up after itself.

    Attributes:
        run: The `Run` so far: the outcomes of the finished steps, and `cancelled` ones for the others. After a stream
            it has no outcomes that the stream had yielded. It has no outcomes of specs that had not been read, unless
            the input is a container of Python such as a list or a set, or for `fanout_map` a `range` or an array.
        yielded: How many outcomes the stream had yielded before; 0 if the call was no stream.
        total: How many steps there are; if the length of the input is not known, how many specs had been read.
    """

    def __init__(self, run: RunSoFar, yielded: int = 0, total: int | None = None, yielded_cancelled: int = 0) -> None:
        super().__init__(run, yielded, total, yielded_cancelled)
        self.run = run
        self._yielded_cancelled = yielded_cancelled
        self.yielded = yielded
        self.total = max(total or 0, yielded + len(run))

    def __str__(self) -> str:
        cancelled = sum(record.status == "cancelled" for record in self.run.records)
        done = self.yielded - self._yielded_cancelled + len(self.run) - cancelled
        return f"interrupted: {done} of {self.total} steps were done, {self.total - done} are cancelled"
