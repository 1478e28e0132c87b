"""Items on their way through the stages of a pipeline, each on its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from attrs import define

from .. import forks
from ..checks import refuse_signature
from ..errors import OptionError
from ..formatting import describe
from ..records.report import Report
from ..records.status import StepError
from ..records.steps import AgentStepSpec, StepOutcome
from ..results.progress import Unit
from ..results.run import Run
from .call import Call
from .input import NOT_YET, an_iterator, length_of
from .plan import RunPlan

Stage = Callable[["StepOutcome | None", Any], "AgentStepSpec | None"]
"""Makes an item's next spec of the outcome before, if there is one, and the item; `None` ends the item's chain."""

AGENT = "pipeline"
"""The agent of a failed outcome that no step stands behind."""


def run_pipeline(plan: RunPlan, items: Iterable[Any], stages: Sequence[Stage]) -> list[StepOutcome | None]:
    """Take each item through the stages on its own; see `Runner.pipeline`."""
    chains, call, run = Pipeline(items, stages), Call(plan), Run([], 0.0)
    with call.scope:
        with call.opened(chains):
            run = call.run(chains, on_report=chains.take)
        call.end(run)
    if call.is_interrupted:
        chains.give_up()
    return chains.outcomes


@define(eq=False)
class _Chain:
    """One item.

    Attributes:
        index: Its place among the items.
        item: As given.
        outcome: Of its last step.
        stage: How many stages it has been through.
        is_done: Whether nothing more is to come.
    """

    index: int
    item: Any
    outcome: StepOutcome | None = None
    stage: int = 0
    is_done: bool = False


class Pipeline(Iterator[Any]):
    """Gives the specs of all items as they fall due: those of items under way before those of new ones.

    An iterator for `StepInput`: it gives `NOT_YET` while everything that is left depends on steps that are running.

    Args:
        items: Any iterable, consumed lazily. If it raises, the items before go on to their ends first.
        stages: What each item goes through.

    Attributes:
        unit: What `total` and `done` count.
        total: How many items there are; `None` if that is not known.
        done: How many have come to their end.

    Raises:
        InputError: `items` is not iterable.
        OptionError: `stages` is no sequence of functions, or an empty one.
    """

    unit: Unit = "item"

    def __init__(self, items: Iterable[Any], stages: Sequence[Stage]) -> None:
        self.total = length_of(items)
        self.done = 0
        self._stages = _checked(stages)
        self._items: Iterator[Any] | None = an_iterator(items, "items", "")
        self._items_error: BaseException | None = None
        self._chains: list[_Chain] = []
        self._ended: deque[_Chain] = deque()
        self._running: dict[int, _Chain] = {}
        self._given = 0
        self._forks = forks.count

    @property
    def outcomes(self) -> list[StepOutcome | None]:
        """The last outcome of each item that was read."""
        return [chain.outcome for chain in self._chains]

    def take(self, report: Report) -> None:
        """Take the last report of a step; its item's next spec comes when the iterator is asked."""
        chain = self._running.pop(report.index)
        chain.outcome = report.outcome
        if report.outcome.success and chain.stage < len(self._stages):
            self._ended.append(chain)
        else:
            self._end(chain)

    def _end(self, chain: _Chain) -> None:
        chain.is_done = True
        self.done += 1

    def give_up(self) -> None:
        """Have what was not through all its stages end as cancelled: the run was interrupted."""
        # By what is known of each, not by where it stood: the interrupt may have come while it was between two places.
        for chain in self._chains:
            if chain.outcome is not None and not chain.is_done:
                message = "the run was interrupted before the item was through all stages"
                chain.outcome = StepOutcome.failed(chain.outcome.task_id, chain.outcome.agent, message)

    def __next__(self) -> Any:
        while (chain := self._next_chain()) is not None:
            if (spec := self._advanced(chain)) is not None:
                self._running[self._given] = chain
                self._given += 1
                return spec
            self._end(chain)
        if self._running:
            return NOT_YET
        if self._items_error is not None:
            raise self._items_error
        raise StopIteration

    def _next_chain(self) -> _Chain | None:
        if self._ended:
            return self._ended.popleft()
        if self._items is None:
            return None
        try:
            chain = _Chain(len(self._chains), next(self._items))
        except StopIteration:
            self._items = None
            return None
        except (Exception, SystemExit) as error:
            forks.pass_on_in_child(self._forks)
            self._items_error = error
            self._items = None
            return None
        self._chains.append(chain)
        return chain

    def _advanced(self, chain: _Chain) -> AgentStepSpec | None:
        """Return the chain's next spec; `None` if it ends here."""
        stage = self._stages[chain.stage]
        chain.stage += 1
        try:
            spec: Any = stage(chain.outcome, chain.item)
        except (Exception, SystemExit) as error:  # the caller's function: it costs this chain alone
            forks.pass_on_in_child(self._forks)
            self._fail(chain, f"raised {StepError.of(error)}")
            return None
        if spec is None or isinstance(spec, AgentStepSpec):
            return spec
        self._fail(chain, f"returned {describe(spec)}, expected an AgentStepSpec or None")
        return None

    def _fail(self, chain: _Chain, what: str) -> None:
        stage = self._stages[chain.stage - 1]
        name = getattr(stage, "__name__", None) or type(stage).__name__
        message = f"stage {chain.stage} of {len(self._stages)} ({name}) {what}"
        before = chain.outcome
        task_id = f"item-{chain.index}" if before is None else before.task_id
        chain.outcome = StepOutcome.failed(task_id, AGENT if before is None else before.agent, message)


def _checked(stages: Any) -> list[Stage]:
    if not isinstance(stages, Iterable) or isinstance(stages, (str, bytes)):
        way_out = "; put it into a list: [stage]" if callable(stages) else ""
        raise OptionError(f"stages must be a list of functions, got {describe(stages)}{way_out}")
    checked = list(stages)
    if not checked:
        raise OptionError("stages must be a list of at least one function, got none")
    for index, stage in enumerate(checked):
        if not callable(stage):
            raise OptionError(f"stages[{index}] must be a function (outcome, item) -> spec, got {describe(stage)}")
        refuse_signature(f"stages[{index}]", stage, "(outcome, item)", None, None)
    return checked
