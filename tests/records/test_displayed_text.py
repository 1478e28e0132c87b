"""The text that IPython displays, and a notebook stores, of outcomes and records: never all of a long answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from IPython.lib.pretty import pretty

from fanout_sync import Run, SqliteJournal, StepOutcome, fanout_map

LONG = "x" * 1_000_000


@pytest.fixture(scope="module")
def run() -> Run:
    return fanout_map(lambda item: item, ["short", LONG, [LONG] * 3])


def show(value: Any) -> str:
    return str(pretty(value))  # type: ignore[no-untyped-call]  # IPython's


def test_short_ones_are_shown_as_their_repr(run: Run) -> None:
    """Nothing is changed."""
    assert show(run[0]) == repr(run[0])
    assert show(run.records[0]) == repr(run.records[0])


def test_long_fields_are_cut(run: Run) -> None:
    """Each with the number of characters that are left out; the other fields are whole, and so is the `repr`."""
    assert show(run[1]) == (
        f"StepOutcome(task_id='1', session_id='task-run-1', agent='<lambda>', output='{'x' * 999}… [999002 more "
        "characters], success=True, structured=None)"
    )
    assert len(show(run[2])) < 3000
    assert LONG in repr(run[1])


def test_records_with_long_errors_are_cut() -> None:
    """Also those with a long traceback."""

    def fail(item: str) -> None:
        raise ValueError(item)

    (record,) = fanout_map(fail, [LONG]).records
    shown = show(record)
    assert shown.startswith("StepRecord(index=0, status='raised', error=StepError(type='ValueError', message='xxx")
    assert "more characters], attempts=(AttemptRecord(" in shown
    assert shown.endswith("from_journal=False)")
    assert len(shown) < 5000


def test_records_of_journals_are_cut(tmp_path: Path) -> None:
    """With the outcome and the spec that they have."""
    fanout_map(lambda item: item, [LONG], journal=tmp_path / "run.db")
    journal = SqliteJournal(tmp_path / "run.db")
    shown = show(journal.records(*journal.workflows())[0])
    assert shown.startswith("JournalRecord(index=0, ")
    assert "more characters], identity=" in shown
    assert len(shown) < 5000


def test_lists_of_outcomes_are_cut(run: Run) -> None:
    """However many there are: IPython displays the first thousand."""
    assert len(show(list(run))) < 6000
    assert len(show(run.succeeded)) < 6000
    many = Run([run._reports[0]] * 5000, 0.1)
    assert show(many.records).count("StepRecord(") == 1000
    assert show(many.records).endswith("...]")


def test_values_of_any_kind_are_shown() -> None:
    """Made by hand, `structured` holds anything."""
    shown = show(StepOutcome("t", "s", "a", "", True, {"key": [LONG, {1, 2}]}))
    assert "structured={'key': ['xxx" in shown
