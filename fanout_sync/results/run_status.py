"""How a run stands: what a live view shows, in this process or in another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

import attrs
from attrs import asdict, frozen

from ..records.usage import Usage
from .progress import Progress, RunView, Unit

MOST_STEPS = 5
"""How many of the running steps are told: those that have run longest."""

MOST_REASONS = 5
"""How many reasons of failures are told: the latest ones."""


@frozen
class RunningStep:
    """A step that is running.

    Attributes:
        task_id: Its task id.
        agent: Its agent.
        running_s: For how many seconds it has run.
    """

    task_id: str
    agent: str
    running_s: float


@frozen
class FailureReason:
    """Why steps failed.

    Attributes:
        count: How many did for this reason.
        reason: The reason of the first of them, in one line.
    """

    count: int
    reason: str


@frozen(kw_only=True)
class RunStatus:
    """How a run stands.

    Its texts, such as task ids, are those of the run: they may hold anything, also control characters.

    Attributes:
        progress: How far it is.
        unit: What `progress.total` and `progress.done` count.
        held_back_by: What keeps waiting steps from starting; `None` if nothing does.
        ended_cost_usd: What the steps that have ended have cost, without those from the journal.
        running: The steps that have run longest, the longest first.
        failures: Why steps failed, the latest reason first.
        was_cut_short: Whether the run was interrupted, or left by the one who read its outcomes.
        error: The error that has ended the run, in one line; `None` if none has.
    """

    progress: Progress
    unit: Unit = "step"
    held_back_by: str | None = None
    ended_cost_usd: float = 0.0
    running: tuple[RunningStep, ...] = ()
    failures: tuple[FailureReason, ...] = ()
    was_cut_short: bool = False
    error: str | None = None

    @classmethod
    def of(cls, view: RunView) -> RunStatus:
        """Return how a run stands now."""
        return cls(
            progress=view.progress(),
            unit=view.unit,
            held_back_by=view.held_back_by(),
            ended_cost_usd=view.ended_cost_usd(),
            running=tuple(
                RunningStep(spec.task_id, spec.agent, running_s)
                for spec, running_s in view.running_steps()[:MOST_STEPS]
            ),
            failures=tuple(FailureReason(count, reason) for count, reason in view.latest_failures(MOST_REASONS)),
        )

    def later(self, seconds: float) -> RunStatus:
        """Return the same after some seconds in which nothing has happened."""
        progress = attrs.evolve(self.progress, elapsed_s=self.progress.elapsed_s + seconds)
        running = tuple(attrs.evolve(step, running_s=step.running_s + seconds) for step in self.running)
        return attrs.evolve(self, progress=progress, running=running)

    def to_json(self) -> str:
        """Return it as JSON, in which any text can be encoded as UTF-8."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> RunStatus:
        """Return what `to_json` has written. Fields that are missing have their defaults; unknown ones do not count.

        Raises:
            ValueError: This is not what `to_json` writes.
        """
        try:
            return cls._of_fields(json.loads(text))
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"this is not the status of a run: {error!r}") from error

    @classmethod
    def _of_fields(cls, fields: Mapping[str, Any]) -> RunStatus:
        error = fields.get("error")
        unit, held_back_by, known = fields["unit"], fields.get("held_back_by"), fields["progress"]
        if unit not in get_args(Unit):
            raise ValueError(f"there is no unit {unit!r}")
        numbers = {
            name: _number(known[name])
            for name in attrs.fields_dict(Progress)
            if name != "usage" and known.get(name) is not None
        }
        usage = {name: known["usage"][name] for name in attrs.fields_dict(Usage)} if known.get("usage") else {}
        return cls(
            progress=Progress(**numbers, usage=Usage(**usage)),
            unit=unit,
            held_back_by=None if held_back_by is None else str(held_back_by),
            ended_cost_usd=float(_number(fields.get("ended_cost_usd", 0.0))),
            running=tuple(
                RunningStep(str(step["task_id"]), str(step["agent"]), float(_number(step["running_s"])))
                for step in fields.get("running", ())
            ),
            failures=tuple(
                FailureReason(int(_number(group["count"])), str(group["reason"]))
                for group in fields.get("failures", ())
            ),
            was_cut_short=bool(fields.get("was_cut_short", False)),
            error=None if error is None else str(error),
        )


def _number(value: Any) -> Any:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value or abs(value) == float("inf"):
        raise ValueError(f"a number was expected, got {value!r}")
    return value
