"""How a run stands, in its journal: written seldom, found by those who watch, and in nobody's way.

These tests show the fourth point of section 1 of "Progress", below the command line.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve
from journalled import HOLDS, edit, record, says, script

from fanout_sync import AgentStepSpec, FunctionExecutor, JournalError, Run, Runner, Usage, current_step
from fanout_sync.journal import Journal, MemoryJournal, OpenWorkflow, SqliteJournal
from fanout_sync.journal.lock_file import is_held
from fanout_sync.journal.watching import WatchedRun, look_at
from fanout_sync.records.step_record import JournalRecord
from fanout_sync.results.progress import Progress
from fanout_sync.results.run_status import FailureReason, RunningStep, RunStatus


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def answer(spec: AgentStepSpec) -> str:
    current_step().add_usage(prompt_tokens=3, cost_usd=0.5)
    if spec.prompt == "bad":
        raise ValueError("no")
    return spec.prompt


def run_in(journal: Path | Journal, *prompts: str) -> Run:
    specs = [AgentStepSpec(f"t{n}", "a", "d", prompt) for n, prompt in enumerate(prompts)]
    return Runner(FunctionExecutor({"a": answer}), journal=journal).run(specs)


def status_in(path: Path) -> RunStatus:
    found = look_at(path, "default")
    assert found.text is not None
    return RunStatus.from_json(found.text)


def test_the_end_of_a_run_is_found(path: Path) -> None:
    """After a run its status has all counts, the usage and the reasons of failures, and says that it is over."""
    run_in(path, "ok", "bad", "bad")
    found, status = look_at(path, "default"), status_in(path)
    assert (found.is_held, found.has_ended) == (False, True)
    progress = evolve(status.progress, elapsed_s=0.0, eta_s=None)
    assert progress == Progress(total=3, done=3, succeeded=1, failed=2, usage=Usage(9, 0, 1.5))
    assert status.failures == (FailureReason(2, "ValueError: no"),)
    assert status.running == ()


def test_a_run_that_goes_on_is_found(path: Path) -> None:
    """As long as it goes on, the workflow is held, and its latest status is not that of the end."""
    runner = Runner(FunctionExecutor({"a": answer}), journal=path)
    stream = runner.stream([AgentStepSpec("t0", "a", "d", "x")])
    next(stream)
    found = look_at(path, "default")
    assert (found.is_held, found.has_ended) == (True, False)
    stream.close()
    assert look_at(path, "default").has_ended


def test_the_status_of_an_earlier_run_does_not_count(path: Path) -> None:
    """What an earlier run of the workflow wrote is not taken for that of the run that holds it now."""
    run_in(path, "ok")
    assert look_at(path, "default").text is not None
    opened = SqliteJournal(path).open("default")
    assert look_at(path, "default") == WatchedRun(is_held=True)
    opened.close()
    assert look_at(path, "default") == WatchedRun(is_held=False)


def test_a_status_is_written_seldom(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many steps a run has, its status is written at its beginning, once a second and at its end."""
    written: list[bool] = []
    opened_class = type(SqliteJournal(path).open("other"))
    write_status = opened_class.write_status

    def counted(self: OpenWorkflow, text: str, *, has_ended: bool) -> None:
        written.append(has_ended)
        write_status(self, text, has_ended=has_ended)

    monkeypatch.setattr(opened_class, "write_status", counted)
    run = run_in(path, *["ok"] * 500)
    assert (written[0], written[-1]) == (False, True)
    assert len(written) <= 3 + run.elapsed


def test_a_journal_of_an_earlier_version(path: Path) -> None:
    """A journal without the table is read as it is, and gets it when it is written."""
    run_in(path, "ok")
    edit(path, "DROP TABLE status")
    journal = SqliteJournal(path)
    assert [each.task_id for each in journal.records("default")] == ["t0"]
    assert look_at(path, "default") == WatchedRun(is_held=False)
    assert [each.from_journal for each in run_in(path, "ok", "ok").records] == [True, False]
    assert status_in(path).progress.reused == 1


def test_an_earlier_version_can_use_the_file(path: Path) -> None:
    """The file has the same version of the schema as before, so that earlier versions of the package take it."""
    run_in(path, "ok")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_deleting_a_workflow_deletes_its_status(path: Path) -> None:
    """A new workflow never gets the status of one that was deleted."""
    run_in(path, "ok")
    SqliteJournal(path).delete("default")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM status").fetchone() == (0,)
    assert look_at(path, "default") == WatchedRun(is_held=False)


def test_what_does_not_exist_is_not_held(path: Path) -> None:
    """To look at a journal or a workflow that is not there creates neither."""
    assert look_at(path, "default") == WatchedRun(is_held=False)
    assert list(path.parent.iterdir()) == []
    run_in(path, "ok")
    assert look_at(path, "other") == WatchedRun(is_held=False)


def test_looking_at_a_lock_leaves_it_alone(path: Path) -> None:
    """The process that has the lock may ask, and so may others; the holder keeps it, and no one else gets it."""
    journal = SqliteJournal(path)
    opened = journal.open("mine")
    opened.write([record("a")])
    assert is_held(path, "mine")
    assert not is_held(path, "another")
    with script(HOLDS, path, "theirs") as holder:
        says(holder)
        assert is_held(path, "theirs")
        with pytest.raises(JournalError, match="held by"):
            journal.open("theirs")
        asks = "from pathlib import Path\nfrom fanout_sync.journal.lock_file import is_held\n"
        with script(asks + "print(is_held(Path(sys.argv[1]), 'mine'))", path) as other:
            assert says(other) == "True"
        with script(HOLDS, path, "mine") as refused:
            assert says(refused) != "open"
    assert is_held(path, "mine")
    opened.write([record("b")])
    opened.close()
    assert not is_held(path, "mine")


def test_a_status_that_cannot_be_written_costs_the_run_nothing(path: Path) -> None:
    """A run goes on whose status is refused."""
    run_in(path, "ok")
    edit(path, "CREATE TRIGGER full BEFORE INSERT ON status BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    run = run_in(path, "ok", "ok", "ok")
    assert [outcome.success for outcome in run] == [True] * 3


class ListWorkflow(OpenWorkflow):
    """A workflow of a user's own, which knows nothing of a status."""

    def __init__(self, records: dict[str, JournalRecord]) -> None:
        self.records = records

    def identities(self, task_ids: Iterable[str]) -> dict[str, str | None]:
        return {task_id: self.records[task_id].identity for task_id in task_ids if task_id in self.records}

    def find(self, task_id: str) -> JournalRecord | None:
        return self.records.get(task_id)

    def write(self, records: Sequence[JournalRecord]) -> None:
        self.records.update((each.task_id, each) for each in records)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class ListJournal(Journal):
    """A journal of a user's own."""

    def __init__(self) -> None:
        self.kept: dict[str, JournalRecord] = {}

    def open(self, workflow_id: str) -> OpenWorkflow:
        return ListWorkflow(self.kept)

    def workflows(self) -> list[str]:
        return ["default"]

    def records(self, workflow_id: str) -> Sequence[JournalRecord]:
        return list(self.kept.values())

    def delete(self, workflow_id: str) -> None:
        self.kept.clear()


@pytest.mark.parametrize("make_journal", [MemoryJournal, ListJournal])
def test_journals_need_not_keep_a_status(make_journal: type[Journal]) -> None:
    """Journals in memory and those of users work as before."""
    journal = make_journal()
    assert len(run_in(journal, "ok", "ok").succeeded) == 2
    assert len(journal.records("default")) == 2


# Its text -------------------------------------------------------------------------------------------------------------

STATUS = RunStatus(
    progress=Progress(total=None, done=3, succeeded=2, failed=1, elapsed_s=1.5, eta_s=None, usage=Usage(1, 2, 0.5)),
    unit="item",
    held_back_by="1 requests per minute",
    running=(RunningStep("\ud800 \x1b[2J", "agent", 2.5),),
    failures=(FailureReason(2, "ValueError: ☃"),),
    was_cut_short=True,
    error="InputError: ☃",
)


def test_a_status_survives_its_json() -> None:
    """Whatever texts a run has, also ones that UTF-8 cannot encode."""
    text = STATUS.to_json()
    assert text.isascii()
    assert RunStatus.from_json(text) == STATUS


def test_a_status_of_another_version_is_read() -> None:
    """Unknown fields do not count, and missing ones have their defaults."""
    newer = json.loads(STATUS.to_json())
    newer["color"] = newer["progress"]["mood"] = "blue"
    assert RunStatus.from_json(json.dumps(newer)) == STATUS
    assert RunStatus.from_json('{"unit":"step","progress":{"done":2}}') == RunStatus(progress=Progress(done=2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"unit":"step"}',
        '{"unit":"year","progress":{}}',
        '{"unit":"step","progress":{"done":"2"}}',
        '{"unit":"step","progress":{"done":true}}',
        '{"unit":"step","progress":{"elapsed_s":NaN}}',
        '{"unit":"step","progress":{},"running":[3]}',
        '{"unit":"step","progress":{},"failures":[{"count":1}]}',
        '{"unit":"step","progress":{"usage":{"prompt_tokens":-1,"completion_tokens":0,"cost_usd":0}}}',
    ],
)
def test_what_is_no_status_is_refused(text: str) -> None:
    """Anything else is a `ValueError`."""
    with pytest.raises(ValueError, match=r".+"):
        RunStatus.from_json(text)
