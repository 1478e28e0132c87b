"""Taking the figures: one contestant after another, round after round."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from attrs import frozen

from .functions import DEADLY
from .machine import Neighbours
from .pools import Pool
from .row import IDEAL, Contestant, Row, Verdict

ROOT = Path(__file__).parents[1]
FRESH = Path(__file__).parent / "fresh"
PATIENCE_S = 300
"""No single figure takes nearly as long."""


@frozen
class Measured:
    """A row with its figures.

    Attributes:
        row: What was measured.
        figures: Each contestant's figures, one for each round.
        verdicts: What became of the row's requirements.
        neighbours_share: How much of the machine others took meanwhile; see `Neighbours`.
    """

    row: Row
    figures: dict[str, list[float]]
    verdicts: list[Verdict]
    neighbours_share: float | None

    @property
    def medians(self) -> dict[str, float]:
        """Each contestant's median, and the ideal if there is one."""
        return _medians(self.row, self.figures)


def measure(row: Row, rounds: int) -> Measured:
    """Measure each contestant once in every round, each round in another order; a first round is dropped."""
    figures: dict[str, list[float]] = {contestant.name: [] for contestant in row.contestants}
    neighbours = Neighbours()
    for number in range(rounds + 1):
        for contestant in _rotated(row.contestants, number):
            gc.collect()
            # Pools that fork beside threads may hang; then this shows where, and ends it.
            faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
            figure = contestant.measure()
            faulthandler.cancel_dump_traceback_later()
            if number > 0:
                figures[contestant.name].append(figure)
    medians = _medians(row, figures)
    verdicts = [requirement.judge(medians, row.unit) for requirement in row.requirements]
    return Measured(row, figures, verdicts, neighbours.share())


def time_from_scratch(open_pool: Callable[[], Pool], items: Sequence[Any]) -> float:
    """Return the seconds it takes to open a pool, run all items on it and close it."""
    began = perf_counter()
    with open_pool() as run_all:
        results = run_all(items)
    elapsed_s = perf_counter() - began
    _check(results, items)
    return elapsed_s


def time_warm(
    open_pool: Callable[[], Pool],
    warm_up: Sequence[Any],
    items: Sequence[Any],
    make_input: Callable[[Any], Any] = list,
) -> float:
    """Return the seconds it takes to run all items on a pool whose workers have all had something to do before.

    Args:
        open_pool: Opens the pool.
        warm_up: Long enough that no worker can do it all before the others have started.
        items: What to run.
        make_input: Makes the iterable that the pool is given from the items.
    """
    with open_pool() as run_all:
        run_all(warm_up)
        run_all(items[: len(items) // 10])
        began = perf_counter()
        results = run_all(make_input(items))
        elapsed_s = perf_counter() - began
    _check(results, items)
    return elapsed_s


def run_fresh(script: str, *arguments: str) -> Any:
    """Run a script of the folder `fresh` in an interpreter of its own and return the JSON that it prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    # Without bytecode every import would compile; the round that is dropped leaves it for the others.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [sys.executable, str(FRESH / script), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        timeout=PATIENCE_S / 2,
        check=True,
    )
    return json.loads(done.stdout)


def _medians(row: Row, figures: dict[str, list[float]]) -> dict[str, float]:
    medians = {name: statistics.median(values) for name, values in figures.items()}
    return medians if row.ideal is None else {**medians, IDEAL: row.ideal}


def _rotated(contestants: tuple[Contestant, ...], number: int) -> tuple[Contestant, ...]:
    first = number % len(contestants)
    return contestants[first:] + contestants[:first]


def _check(results: Sequence[Any], items: Sequence[Any]) -> None:
    """Refuse figures of a contestant that did not do the work."""
    answers = [getattr(result, "output", result) for result in results]
    prompts = [getattr(item, "prompt", item) for item in items]
    is_right = [(answer == prompt) != (prompt == DEADLY) for answer, prompt in zip(answers, prompts, strict=True)]
    if not all(is_right):
        raise RuntimeError("a contestant gave wrong answers")
