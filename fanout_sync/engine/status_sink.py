"""Writes how a run stands into its journal, for those who watch it from another process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import evolve

from ..errors import JournalError
from ..records.status import StepError
from ..results.failures import first_line
from ..results.progress import RunView
from ..results.run_status import RunStatus

if TYPE_CHECKING:
    from ..journal.run_journal import RunJournal

logger = logging.getLogger(__name__)


MAX_ERROR_CHARS = 500
"""How many characters of the error are kept that has ended a run."""


class StatusSink:
    """Writes the status at the beginning of a call, at most once a second, and at the end.

    Args:
        journal: Where to. It must support that: see `RunJournal.keeps_status`.
        ending: Returns, at the end, what has kept the call from coming to its end; `None` if nothing has.
    """

    interval_s = 1.0
    shows_steps = True

    def __init__(self, journal: RunJournal, ending: Callable[[], BaseException | None]) -> None:
        self._journal: RunJournal | None = journal
        self._ending = ending
        self._view: RunView | None = None

    def begin(self, view: RunView) -> None:
        self._view = view
        self._write(has_ended=False)

    def update(self) -> None:
        self._write(has_ended=False)

    def end(self) -> None:
        self._write(has_ended=True)

    def _write(self, *, has_ended: bool) -> None:
        if self._journal is None or self._view is None:
            return
        status = RunStatus.of(self._view)
        if has_ended and (error := self._ending()) is not None:
            is_cut = isinstance(error, (KeyboardInterrupt, GeneratorExit))
            text = None if is_cut else first_line(str(StepError.of(error)), MAX_ERROR_CHARS)
            status = evolve(status, was_cut_short=is_cut, error=text)
        try:
            self._journal.write_status(status.to_json(), has_ended=has_ended)
        except JournalError as error:
            # A run must not end because nobody can watch it. If outcomes cannot be written either, it raises that.
            logger.info("the status of a run is not written any more: %s", error)
            self._journal = None
