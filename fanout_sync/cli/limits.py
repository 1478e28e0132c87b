"""The journal and the limits that the command line names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import frozen

from ..errors import OptionError

if TYPE_CHECKING:
    from ..journal import Workflow
    from ..limits.budget import Budget
    from ..limits.rate_limit import RateLimit


@frozen(kw_only=True)
class Limits:
    """The journal and the limits of a run; each is `None` if the command line does not give it."""

    journal: str | None
    workflow: str | None
    on_conflict: Literal["refuse", "rerun"] | None
    retry: int | None
    timeout: float | None
    rpm: float | None
    tpm: int | None
    max_cost: float | None
    max_failures: int | None

    def journal_workflow(self) -> Workflow | None:
        """Return the workflow of the journal; `None` without a journal.

        Raises:
            OptionError: There is no journal, but an option that needs one.
        """
        if self.journal is None:
            for name, value in (("--workflow", self.workflow), ("--on-conflict", self.on_conflict)):
                if value is not None:
                    raise OptionError(f"{name} needs a journal; name its file with --journal")
            return None
        from ..journal import DEFAULT_WORKFLOW_ID, SqliteJournal  # imported lazily: slow, and few need it

        return SqliteJournal(self.journal).workflow(self.workflow or DEFAULT_WORKFLOW_ID, self.on_conflict or "refuse")

    def rate_limit(self) -> RateLimit | None:
        """Return the rate limit; `None` if there is none."""
        if self.rpm is self.tpm is None:
            return None
        from ..limits.rate_limit import RateLimit  # imported lazily: slow, and few need it

        return RateLimit(self.rpm, self.tpm)

    def budget(self) -> Budget | None:
        """Return the budget; `None` if there is none."""
        if self.max_cost is None:
            return None
        from ..limits.budget import Budget  # imported lazily: slow, and few need it

        return Budget(max_cost_usd=self.max_cost)
