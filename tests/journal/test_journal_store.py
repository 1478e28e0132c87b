"""Journals: what is written comes back, whatever happens to the process, the file or the disk."""

from __future__ import annotations

import gc
import os
import random
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import pytest
from attrs import evolve
from disks import read_only, small_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from journalled import HOLDS, edit, record, says, script

from fanout_sync.errors import JournalError, OptionError
from fanout_sync.journal import Journal, MemoryJournal, SqliteJournal, database
from fanout_sync.journal.lock_file import path_of_lock_file
from fanout_sync.records.status import Status, StepError
from fanout_sync.records.step_record import AttemptRecord, JournalRecord
from fanout_sync.records.steps import AgentStepSpec, StepOutcome
from fanout_sync.records.usage import Usage


@pytest.fixture(params=["sqlite", "memory"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return SqliteJournal(tmp_path / "runs.db") if request.param == "sqlite" else MemoryJournal()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def written(path: Path, *records: JournalRecord, workflow_id: str = "w") -> SqliteJournal:
    journal = SqliteJournal(path)
    opened = journal.open(workflow_id)
    opened.write(records)
    opened.close()
    return journal


# --- the contract, of both ------------------------------------------------------------------------------------------


def test_what_is_written_is_found(journal: Journal) -> None:
    """A step is found by its id at once, and by `records` too, while the workflow is open and after."""
    opened = journal.open("w")
    opened.write([record("a"), record("b", 1, success=False)])
    assert opened.find("a") == record("a")
    assert list(journal.records("w")) == [record("a"), record("b", 1, success=False)]
    opened.sync()
    opened.close()
    assert list(journal.records("w")) == [record("a"), record("b", 1, success=False)]
    assert journal.workflows() == ["w"]


def test_missing_steps_and_workflows_are_not_errors(journal: Journal) -> None:
    """A missing step is `None`, a missing workflow is empty; text that UTF-8 cannot encode is never found."""
    opened = journal.open("w")
    assert opened.find("a") is None
    assert opened.find("\ud800") is None
    assert opened.identities(["a", "\ud800"]) == {}
    assert list(journal.records("other")) == []
    opened.close()
    journal.delete("other")


def test_writing_a_step_again_replaces_it(journal: Journal) -> None:
    """Each step has one record; if one `write` has a step twice, the last record counts."""
    opened = journal.open("w")
    opened.write([record("a", success=False)])
    opened.write([record("a", output="first"), record("a", output="second")])
    assert opened.find("a") == record("a", output="second")
    assert len(journal.records("w")) == 1
    opened.close()


def test_identities_are_those_of_the_steps_asked_for(journal: Journal) -> None:
    """Any number of ids is asked for at once; those that are journalled come back, failed and unknown ones too."""
    opened = journal.open("w")
    steps = [record(f"{i}", i, success=i % 2 == 0) for i in range(3000)]
    opened.write([*steps, evolve(record("x", 3000), identity=None, spec=None)])
    asked = (f"{i}" for i in range(2, 10000))
    assert opened.identities(asked) == {step.task_id: step.identity for step in steps[2:]}
    assert opened.identities(["x"]) == {"x": None}
    opened.close()


def test_steps_come_in_the_order_of_their_indices(journal: Journal) -> None:
    """`records` is a sequence by index, and by task_id where that is the same."""
    opened = journal.open("w")
    expected = [record(f"{i:03}", i // 2) for i in range(200)]
    opened.write(random.Random(1).sample(expected, 200))
    opened.close()
    records = journal.records("w")
    assert list(records) == expected
    assert list(reversed(records)) == expected[::-1]
    assert (len(records), records[3], records[-1]) == (200, expected[3], expected[-1])
    assert records[5:150:7] == expected[5:150:7]
    assert records[150:5:-7] == expected[150:5:-7]
    assert records[9:3] == []
    with pytest.raises(IndexError):
        records[200]


def test_workflows_do_not_mix(journal: Journal) -> None:
    """A task_id stands for another step in each workflow; to delete one leaves the others as they are."""
    for workflow_id in ("z", "a", "m"):
        opened = journal.open(workflow_id)
        opened.write([record("step", output=workflow_id)])
        opened.close()
    assert journal.workflows() == ["z", "a", "m"]
    journal.delete("a")
    assert journal.workflows() == ["z", "m"]
    assert list(journal.records("a")) == []
    assert [journal.records(each)[0].outcome.output for each in ("z", "m")] == ["z", "m"]


def test_a_record_that_cannot_be_journalled_is_named(journal: Journal) -> None:
    """The error names the step, and nothing of the same `write` is journalled."""
    opened = journal.open("w")
    with pytest.raises(JournalError, match=r"step 'b' cannot be journalled: output: a lone surrogate"):
        opened.write([record("a"), record("b", output="\udcff")])
    with pytest.raises(JournalError, match=r"step '\\ud800' cannot be journalled"):
        opened.write([record("a"), evolve(record("c"), task_id="\ud800")])
    assert opened.find("a") is None
    opened.close()


def test_a_closed_workflow_cannot_be_used(journal: Journal) -> None:
    """Closing twice is fine; everything else says that it is closed."""
    opened = journal.open("w")
    opened.close()
    opened.close()
    for use in (
        lambda: opened.find("a"),
        lambda: opened.write([record("a")]),
        opened.sync,
        lambda: opened.identities([]),
    ):
        with pytest.raises(JournalError, match="closed; open it again"):
            use()


def test_what_is_journalled_does_not_change_with_the_outcome(journal: Journal) -> None:
    """Changing the data of an outcome, or of a record that was read, does not change the journal."""
    opened = journal.open("w")
    step = evolve(record("a"), outcome=StepOutcome("a", "s", "coder", "", True, {"k": [1]}))
    opened.write([step])
    step.outcome.structured["k"].append(2)  # type: ignore[index]
    found = opened.find("a")
    assert found is not None
    assert found.outcome.structured == {"k": [1]}
    opened.close()


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
seconds = st.floats(0, 1e6)
moments = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(timezone.utc))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
statuses: st.SearchStrategy[Status] = st.sampled_from(get_args(Status))
usages = st.builds(Usage, st.integers(0, 2**63 - 1), st.integers(0, 9), seconds)
attempts = st.builds(
    AttemptRecord, st.integers(1, 9), statuses, st.none() | texts, st.none() | seconds, st.none() | seconds
)


@st.composite
def records(draw: st.DrawFn) -> JournalRecord:
    task_id, started, duration_s = draw(texts), draw(st.none() | moments), draw(st.none() | seconds)
    is_timed = started is not None and duration_s is not None
    return JournalRecord(
        index=draw(st.integers(0, 2**40)),
        status=draw(statuses),
        error=draw(st.none() | st.builds(StepError, texts, texts, st.none() | texts)),
        attempts=tuple(draw(st.lists(attempts, max_size=3))),
        started=started,
        finished=started + timedelta(seconds=duration_s) if is_timed else None,  # type: ignore[operator,arg-type]
        duration_s=duration_s,
        worker=draw(st.none() | texts | st.integers(0, 2**22) | st.just("17")),
        exit_code=draw(st.none() | st.integers(-64, 255)),
        signal=draw(st.sampled_from([None, "SIGKILL"])),
        usage=draw(st.none() | usages),
        from_journal=draw(st.booleans()),
        task_id=task_id,
        outcome=StepOutcome(task_id, draw(texts), draw(texts), draw(texts), draw(st.booleans()), draw(json_values)),
        spec=draw(st.none() | st.builds(AgentStepSpec, st.just(task_id), texts, texts, texts, st.none(), st.none())),
        identity=draw(st.none() | texts),
    )


@settings(max_examples=150, deadline=None)
@given(step=records())
def test_a_record_comes_back_as_it_was(step: JournalRecord, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every field of a record survives, in either journal, but that it comes from a journal now."""
    for journal in (_shared_journal(tmp_path_factory), MemoryJournal()):
        opened = journal.open("w")
        opened.write([step])
        found = opened.find(step.task_id)
        opened.close()
        assert found == evolve(step, from_journal=True)
        assert found.started is None or found.started.tzinfo is timezone.utc
        assert type(found.worker) is type(step.worker)


_FOLDERS: list[Path] = []


def _shared_journal(factory: pytest.TempPathFactory) -> SqliteJournal:
    if not _FOLDERS:
        _FOLDERS.append(factory.mktemp("roundtrip"))
    return SqliteJournal(_FOLDERS[0] / "runs.db")


# --- the file -------------------------------------------------------------------------------------------------------


def test_creating_the_object_creates_no_file(path: Path) -> None:
    """Only a run creates the file; reading a missing one is an error, and does not create it."""
    journal = SqliteJournal(str(path))
    for use in (journal.workflows, lambda: journal.records("w"), lambda: journal.delete("w")):
        with pytest.raises(JournalError, match="there is no such file"):
            use()
    with pytest.raises(JournalError, match="there is no such file"):
        journal.export_checkpoint("w")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("wrong", ["", None, 7, "a\0b", ":memory:"])
def test_an_invalid_path_is_refused(wrong: Any) -> None:
    """It is refused when the object is created."""
    with pytest.raises(OptionError, match="path must be the path of a file"):
        SqliteJournal(wrong)


def test_a_relative_path_stays_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing the working directory later does not change the journal; unusual file names work."""
    monkeypatch.chdir(tmp_path)
    journal = written(Path("odd ?mode=memory#%41 ü.db"), record("a"))
    monkeypatch.chdir("/")
    assert list(journal.records("w")) == [record("a")]
    name = "odd ?mode=memory#%41 ü.db"
    assert sorted(each.name for each in tmp_path.iterdir()) == [name, f"{name}-lock"]


def test_a_symbolic_link_leads_to_the_journal(path: Path) -> None:
    """Through a link a journal is written, synced and read, and its side files stand beside the real one."""
    (path.parent / "real").mkdir()
    path.symlink_to(path.parent / "real" / "there.db")
    journal = SqliteJournal(path)
    opened = journal.open("w")
    opened.write([record("a")])
    opened.sync()
    opened.close()
    assert list(journal.records("w")) == [record("a")]


def test_an_empty_file_is_a_fresh_journal(path: Path) -> None:
    """A file of no bytes reads as a journal without workflows, and a run may use it."""
    path.touch()
    assert SqliteJournal(path).workflows() == []
    assert list(SqliteJournal(path).records("w")) == []
    assert path.stat().st_size == 0
    assert list(written(path, record("a")).records("w")) == [record("a")]


def test_reading_leaves_nothing_behind(path: Path) -> None:
    """After all is closed, only the journal and the empty lock file are there."""
    journal = written(path, record("a"), record("b", 1))
    for step in journal.records("w"):
        assert step.task_id == "a"
        break
    gc.collect()
    assert sorted(path.parent.iterdir()) == [path, path_of_lock_file(path)]
    assert path_of_lock_file(path).stat().st_size == 0


def test_the_file_is_marked_as_ours(path: Path) -> None:
    """It has the application id and the schema version, which `file` shows, too."""
    written(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (database.APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def _all_uses(path: Path) -> list[Any]:
    journal = SqliteJournal(path)
    return [
        lambda: journal.open("w"),
        lambda: list(journal.records("w")),
        journal.workflows,
        lambda: journal.delete("w"),
        lambda: journal.export_checkpoint("w"),
    ]


def test_other_files_are_refused_and_not_changed(path: Path) -> None:
    """Neither a text nor another program's database is changed, and the error says which it is."""
    path.write_bytes(b"This is no database. " * 200)
    for use in _all_uses(path):
        with pytest.raises(JournalError, match="is not an SQLite database, so not a journal"):
            use()
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    for use in _all_uses(path):
        with pytest.raises(JournalError, match="is an SQLite database, but not a journal of fanout_sync"):
            use()
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused(path: Path) -> None:
    """The error names the version of the file and says to upgrade."""
    written(path)
    edit(path, "PRAGMA user_version = 3")
    for use in _all_uses(path):
        with pytest.raises(JournalError, match=r"newer version of fanout_sync \(schema 3, this one reads up to 2\)"):
            use()


def test_a_workflow_id_that_utf_8_cannot_encode_is_refused(path: Path) -> None:
    """Opening, reading, deleting and exporting it raise a `JournalError`."""
    journal = written(path)
    for use in (journal.open, journal.records, journal.delete, journal.export_checkpoint):
        with pytest.raises(JournalError, match=r"surrogates not allowed|there is no workflow '\\ud800'"):
            use("\ud800")


def test_paths_that_are_not_files_are_refused(tmp_path: Path) -> None:
    """The error says whether it is a directory, a missing directory or a device."""
    with pytest.raises(JournalError, match="is a directory"):
        SqliteJournal(tmp_path).open("w")
    with pytest.raises(JournalError, match=f"there is no directory {tmp_path}/missing"):
        SqliteJournal(tmp_path / "missing" / "runs.db").open("w")
    with pytest.raises(JournalError, match="is not a regular file"):
        SqliteJournal("/dev/null").open("w")
    (tmp_path / "file").write_text("x")
    with pytest.raises(JournalError, match="there is no directory"):
        SqliteJournal(tmp_path / "file" / "runs.db").open("w")


def test_damage_is_found_before_anything_runs(path: Path) -> None:
    """A page overwritten in the middle of a large journal, or a file cut short, is refused when it is opened."""
    written(path, *(record(f"{i}", i) for i in range(5000)))
    whole = path.read_bytes()
    middle = len(whole) // 2 // 4096 * 4096
    for damaged in (whole[:middle] + b"\xa5" * 4096 + whole[middle + 4096 :], whole[:middle]):
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match="is damaged"):
            SqliteJournal(path).open("w")
        with pytest.raises(JournalError, match="is damaged"):
            list(SqliteJournal(path).records("w"))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("outcome", '{"task_id":"a"'),
        ("outcome", "[]"),
        ("outcome", 7),
        ("spec", "{}"),
        ("attempts", "7"),
        ("attempts", '[{"number":1}]'),
        ("error", '["x"]'),
        ("status", "odd"),
        ("started", "soon"),
        ("started", 1e300),
        ("prompt_tokens", "many"),
        ("prompt_tokens", -1),
    ],
)
def test_a_row_that_cannot_be_read_back_is_named(path: Path, column: str, value: Any) -> None:
    """The error names the step whose row was edited."""
    usage = Usage(1, 2, 3.0)
    journal = written(path, evolve(record("a"), usage=usage))
    edit(path, f"UPDATE steps SET {column} = ?", value)
    with pytest.raises(JournalError, match=r"runs\.db: step 'a' cannot be read back: "):
        list(journal.records("w"))
    opened = journal.open("w")
    with pytest.raises(JournalError, match=r"runs\.db: step 'a' cannot be read back: "):
        opened.find("a")
    opened.close()


def test_a_journal_without_its_tables_is_damaged(path: Path) -> None:
    """A file with the right ids but without tables, or with invalid text, is damaged."""
    journal = written(path, record("a"))
    edit(path, "UPDATE steps SET spec = CAST(x'ff' AS TEXT)")
    with pytest.raises(JournalError, match="is damaged"):
        list(journal.records("w"))
    edit(path, "DROP TABLE steps")
    with pytest.raises(JournalError, match=r"is damaged \(no such table"):
        journal.records("w")


def test_a_program_that_keeps_the_file_locked_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a bounded time; then the error says that the file is locked."""
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    journal = written(path)
    opened = journal.open("w")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="is locked by another program"):
            opened.write([record("a")])
        with pytest.raises(JournalError, match="is locked by another program"):
            journal.open("v")
        other.execute("ROLLBACK")
    opened.write([record("a")])
    opened.close()


def test_an_interrupted_write_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during a write: nothing is written, and the workflow can still be used."""
    opened = SqliteJournal(path).open("w")
    with monkeypatch.context() as patched:
        patched.setattr("fanout_sync.journal.sqlite.transaction", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened.write([record(f"a{n}") for n in range(100)])
    assert opened.find("a0") is None
    opened.write([record("b")])
    opened.close()
    assert list(SqliteJournal(path).records("w")) == [record("b")]


@contextmanager
def _interrupted(connection: sqlite3.Connection) -> Iterator[None]:
    with database.transaction(connection):
        yield
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "explanation"),
    [
        (sqlite3.OperationalError("locking protocol"), "its file system cannot lock files; put it on a local disk"),
        (
            sqlite3.OperationalError("disk I/O error"),
            r"reading or writing failed \(disk I/O error\); make sure that the disk",
        ),
        (sqlite3.DataError("string or blob too big"), "a record is too big for SQLite"),
        (sqlite3.OperationalError("something new"), r"SQLite fails \(OperationalError: something new\)"),
        (sqlite3.OperationalError("unable to open database file"), "make sure that .* not too many files are open"),
        (OverflowError("string longer than INT_MAX bytes"), "SQLite fails"),
    ],
)
def test_every_error_of_sqlite_is_explained(path: Path, error: Exception, explanation: str) -> None:
    """No error of SQLite leaves a journal as it is: it becomes one that names the file."""
    with pytest.raises(JournalError, match=rf"runs\.db: .*{explanation}"), database.explained(path):
        raise error


def test_a_journal_that_is_deleted_in_use_is_missed(path: Path) -> None:
    """SQLite would go on writing where nobody ever looks: the next sync says so, and closing does no harm."""
    opened = SqliteJournal(path).open("w")
    opened.write([record("a")])
    for each in path.parent.iterdir():
        each.unlink()
    opened.write([record("b")])
    with pytest.raises(JournalError, match="has been deleted or replaced"):
        opened.sync()
    opened.close()


def test_a_sync_reaches_the_log_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is synced with the names of the files, then only the log, and only if there is something new."""
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink().name))
    opened = SqliteJournal(path).open("w")
    opened.write([record("a")])
    opened.sync()
    assert synced == ["runs.db-wal", path.parent.name]
    opened.sync()
    opened.write([record("b")])
    opened.sync()
    assert synced[2:] == ["runs.db-wal"]
    opened.close()


def test_a_storage_that_fails_to_sync_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says of it is in the message."""

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    opened = SqliteJournal(path).open("w")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(JournalError, match="Input/output error"):
        opened.sync()
    opened.close()


# --- the disk -------------------------------------------------------------------------------------------------------


def test_a_read_only_directory_can_be_read(tmp_path: Path) -> None:
    """What cannot be written can be read, and a run is told that it cannot be written."""
    (tmp_path / "folder").mkdir()
    journal = written(tmp_path / "folder" / "runs.db", record("a"))
    with read_only(tmp_path / "folder"):
        assert list(journal.records("w")) == [record("a")]
        assert journal.workflows() == ["w"]
        for use in (lambda: journal.open("w"), lambda: journal.delete("w")):
            with pytest.raises(JournalError, match="cannot be written"):
                use()
        with pytest.raises(JournalError, match="cannot be written"):
            SqliteJournal(tmp_path / "folder" / "new.db").open("w")


def test_a_read_only_directory_hides_nothing(tmp_path: Path) -> None:
    """What a killed run has left in the log is read too, or it is an error: never the state before it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with script(HOLDS, folder / "runs.db", "w") as process:
        assert says(process) == "held"
        journal = SqliteJournal(folder / "runs.db")
        with read_only(folder):
            assert list(journal.records("w")) == [record("a")]
    with read_only(folder):
        assert list(journal.records("w")) == [record("a")]
    (folder / "runs.db-shm").unlink()
    with read_only(folder), pytest.raises(JournalError, match=r"copy it and runs\.db-wal elsewhere"):
        journal.records("w")


def test_a_full_disk_can_be_read(tmp_path: Path) -> None:
    """Even where there is no room for SQLite's side files; whoever wants to write is told to make room."""
    with small_disk(tmp_path / "disk") as disk:
        journal = written(disk / "runs.db", record("a"))
        with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(b"x" * 4096)
        assert list(journal.records("w")) == [record("a")]
        for use in (lambda: journal.open("w"), lambda: journal.delete("w"), lambda: written(disk / "new.db")):
            with pytest.raises(JournalError, match=r"\.db: .*(disk is full|has room)"):
                use()
        (disk / "ballast").unlink()
        assert list(written(disk / "runs.db", record("b", 1)).records("w")) == [record("a"), record("b", 1)]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The write that does not fit is an error and leaves nothing; all before it is there, and room lets it go on."""
    with small_disk(tmp_path / "disk") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 300_000)
        journal = SqliteJournal(disk / "runs.db")
        opened = journal.open("w")
        done: list[JournalRecord] = []

        def fill() -> None:
            while True:
                steps = [record(f"{len(done) + j}", len(done) + j, output="x" * 500) for j in range(3)]
                opened.write(steps)
                done.extend(steps)

        with pytest.raises(JournalError, match=r"runs\.db: .*(disk is full|has room)"):
            fill()
        assert len(done) > 100
        assert opened.find(done[-1].task_id) == done[-1]
        assert list(journal.records("w")) == done
        opened.close()
        assert list(journal.records("w")) == done
        ballast.unlink()
        again = journal.open("w")
        again.write([record("last", 10**6)])
        again.sync()
        again.close()
        assert list(journal.records("w")) == [*done, record("last", 10**6)]


# --- other processes --------------------------------------------------------------------------------------------------

_WRITES = """
from fanout_sync.journal import SqliteJournal
opened = SqliteJournal(sys.argv[1]).open(sys.argv[2])
for i in range(int(sys.argv[3])):
    opened.write([record(f"{i}", i)])
    print(i, flush=True)
opened.close()
"""


def test_a_killed_process_loses_nothing_that_was_written(path: Path) -> None:
    """Killed at any moment, ten times: every write that had returned is there, and the next run goes on at once."""
    chance = random.Random(7)
    for _ in range(10):
        last = chance.randrange(1, 60)
        with script(_WRITES, path, "w", 10**6) as process:
            while int(says(process)) < last:
                pass
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split() if process.stdout else []
            last = max([last, *map(int, rest)])
        steps = list(SqliteJournal(path).records("w"))
        assert steps[: last + 1] == [record(f"{i}", i) for i in range(last + 1)]
        assert steps == [record(f"{i}", i) for i in range(len(steps))]
        SqliteJournal(path).delete("w")


def test_two_processes_write_at_once_while_others_read(path: Path) -> None:
    """Each on its own workflow of one file; a reader sees whole steps, and more each time."""
    with script(_WRITES, path, "a", 400) as first, script(_WRITES, path, "b", 400) as second:
        says(first), says(second)
        journal = SqliteJournal(path)
        seen = 0
        drains = [threading.Thread(target=each.stdout.read) for each in (first, second) if each.stdout]
        for drain in drains:
            drain.start()
        while any(drain.is_alive() for drain in drains):
            steps = list(journal.records("a"))
            assert steps == [record(f"{i}", i) for i in range(len(steps))]
            assert len(steps) >= seen
            seen = len(steps)
        for drain in drains:
            drain.join()
        assert first.wait(60) == second.wait(60) == 0
    for workflow_id in ("a", "b"):
        assert list(journal.records(workflow_id)) == [record(f"{i}", i) for i in range(400)]


def test_a_file_is_made_by_several_at_once(path: Path) -> None:
    """Threads that open a journal that is not there yet, each a workflow of it, all succeed."""
    gate = threading.Barrier(8)
    errors: list[BaseException] = []

    def use(workflow_id: str) -> None:
        try:
            gate.wait(60)
            written(path, record("a"), workflow_id=workflow_id)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(f"{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert sorted(SqliteJournal(path).workflows()) == [f"{i}" for i in range(8)]
