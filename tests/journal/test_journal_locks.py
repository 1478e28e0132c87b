"""One run at a time on one workflow: who holds it, whether they live, and what happens to whoever loses it."""

from __future__ import annotations

import gc
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from bounds import HANG_BOUND_S
from journalled import HOLDS, edit, record, says, script, tell
from processes import eventually, is_alive

from fanout_sync.errors import JournalError
from fanout_sync.journal import Journal, MemoryJournal, OpenWorkflow, SqliteJournal, holders
from fanout_sync.journal.holders import LEASE_S, RENEW_EVERY_S, this_process


@pytest.fixture(params=["sqlite", "memory"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    return SqliteJournal(tmp_path / "runs.db") if request.param == "sqlite" else MemoryJournal()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def opened(path: Path) -> Iterator[OpenWorkflow]:
    workflow = SqliteJournal(path).open("w")
    yield workflow
    workflow.close()


def test_a_workflow_has_one_holder(journal: Journal) -> None:
    """A second run in the same process is refused, and so is deleting it; others are free, as is this later."""
    opened = journal.open("w")
    for use in (lambda: journal.open("w"), lambda: journal.delete("w")):
        with pytest.raises(JournalError, match=rf"workflow 'w' is held by this process, {os.getpid()}\b"):
            use()
    journal.open("other").close()
    opened.write([record("a")])
    opened.renew()
    opened.close()
    journal.open("w").close()


def test_a_workflow_that_nobody_refers_to_is_free(journal: Journal) -> None:
    """Whoever loses the only way to close it has let go of it."""
    opened = journal.open("w")
    opened.write([record("a")])
    del opened
    gc.collect()
    again = journal.open("w")
    assert again.find("a") == record("a")
    again.close()


def test_a_workflow_that_is_dropped_is_free_for_others_too(path: Path) -> None:
    """The file says so, unless somebody is writing it just then."""
    for is_locked in (False, True):
        opened = SqliteJournal(path).open("w")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE" if is_locked else "BEGIN")
            del opened
            gc.collect()
            other.execute("ROLLBACK")
            (token,) = other.execute("SELECT token FROM workflows").fetchone()
        assert (token is not None) == is_locked


def test_a_living_process_is_named(path: Path) -> None:
    """Its process id, its host and since when; it is waited for by nobody."""
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
        moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        message = rf"runs\.db: workflow 'w' is held by process {process.pid} on .+, since {moment}"
        with pytest.raises(JournalError, match=message):
            SqliteJournal(path).open("w")
        with pytest.raises(JournalError, match=message):
            SqliteJournal(path).delete("w")
        assert list(SqliteJournal(path).records("w")) == [record("a")]


def test_the_workflow_of_a_killed_process_is_taken_over(path: Path) -> None:
    """At once, with all that it had written."""
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
    again = SqliteJournal(path).open("w")
    assert again.find("a") == record("a")
    again.close()


def test_a_zombie_holds_nothing(path: Path) -> None:
    """A process that has ended, and whose parent has not yet asked after it, is dead."""
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
        os.kill(process.pid, 9)
        assert eventually(lambda: not is_alive(process.pid))
        assert Path(f"/proc/{process.pid}").exists()
        SqliteJournal(path).open("w").close()


def test_a_process_id_that_was_given_away_holds_nothing(path: Path) -> None:
    """The process of that number began at another time than the holder did."""
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
        edit(path, "UPDATE workflows SET started = '1'")
        SqliteJournal(path).open("w").close()


def test_where_there_is_no_proc_the_process_id_decides(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is asked whether there is such a process."""
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
        monkeypatch.setattr(holders, "_stat", lambda pid: ("", ""))
        with pytest.raises(JournalError, match=f"held by process {process.pid}"):
            SqliteJournal(path).open("w")
        process.kill()
        process.wait(HANG_BOUND_S)
        SqliteJournal(path).open("w").close()


@pytest.mark.parametrize("elsewhere", ["host = 'elsewhere'", "pid_space = 'another container'"])
def test_another_host_is_believed_for_a_minute(path: Path, opened: OpenWorkflow, elsewhere: str) -> None:
    """It cannot be asked: its last sign of life counts, also for a container of the same name."""
    edit(path, f"UPDATE workflows SET {elsewhere}, renewed = ?", time.time() - LEASE_S + 30)
    with pytest.raises(JournalError, match=rf"held by process {os.getpid()} on .*, its hold ends at \d{{4}}-"):
        SqliteJournal(path).open("w")
    edit(path, "UPDATE workflows SET renewed = ?", time.time() - LEASE_S - 1)
    SqliteJournal(path).open("w").close()
    with pytest.raises(JournalError, match="taken over"):
        opened.write([record("a")])


def test_whoever_was_taken_over_writes_nothing_any_more(path: Path, opened: OpenWorkflow) -> None:
    """The error names who has it now; neither a sign of life nor closing takes it back."""
    opened.write([record("a")])
    edit(path, "UPDATE workflows SET pid = 4194999")
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
        message = rf"another run \(process {process.pid} on .+\) has taken workflow 'w' over; nothing was written"
        with pytest.raises(JournalError, match=message):
            opened.write([record("b")])
        opened.close()
        with pytest.raises(JournalError, match=f"held by process {process.pid}"):
            SqliteJournal(path).open("w")
        assert list(SqliteJournal(path).records("w")) == [record("a")]


def test_whoever_was_deleted_writes_nothing_any_more(path: Path, opened: OpenWorkflow) -> None:
    """Also when the workflow was begun anew since, and has ended."""
    edit(path, "UPDATE workflows SET pid = 4194999")
    SqliteJournal(path).delete("w")
    with pytest.raises(JournalError, match="has been taken over by another run, which has ended since; nothing was"):
        opened.write([record("a")])
    SqliteJournal(path).open("w").close()
    with pytest.raises(JournalError, match="has been taken over by another run, which has ended since; nothing was"):
        opened.write([record("a")])


def test_a_sign_of_life_is_given_when_it_is_due(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `write` and by `renew`, not more often than every few seconds, and a lost workflow is noticed then."""
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    opened = SqliteJournal(path).open("w")
    for use in (opened.renew, lambda: opened.write([record("a")])):
        last = _renewed(path)
        now[0] += RENEW_EVERY_S - 1
        use()
        assert _renewed(path) == last
        now[0] += 1
        use()
        assert _renewed(path) == now[0]
    edit(path, "UPDATE workflows SET token = NULL")
    now[0] += RENEW_EVERY_S
    with pytest.raises(JournalError, match="taken over"):
        opened.renew()
    opened.close()


def _renewed(path: Path) -> float:
    with closing(sqlite3.connect(path)) as connection:
        return float(connection.execute("SELECT renewed FROM workflows").fetchone()[0])


_RACES = """
from fanout_sync.errors import JournalError
from fanout_sync.journal import SqliteJournal
journal = SqliteJournal(sys.argv[1])
print("ready", flush=True)
input()
try:
    opened = journal.open("w")
    print("won", flush=True)
except JournalError as error:
    print("lost" if "is held by process" in str(error) else error, flush=True)
input()
"""


def test_of_those_who_race_for_a_dead_hold_one_wins(path: Path) -> None:
    """Four processes take over at the same moment: three hear of the fourth."""
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
    with ExitStack() as stack:
        racers = [stack.enter_context(script(_RACES, path)) for _ in range(4)]
        assert [says(racer) for racer in racers] == ["ready"] * 4
        for racer in racers:
            tell(racer)
        assert sorted(says(racer) for racer in racers) == ["lost", "lost", "lost", "won"]


_FORKS = """
import os
from fanout_sync.errors import JournalError
from fanout_sync.journal import SqliteJournal
journal = SqliteJournal(sys.argv[1])
opened = journal.open("w")
opened.write([record("a")])
opened.sync()
child = os.fork()
if child == 0:
    for use in (lambda: opened.write([record("x")]), lambda: opened.find("a"), lambda: journal.open("w")):
        try:
            use()
            print("no error")
        except JournalError as error:
            print(error)
    opened.close()
    sys.exit()
print(os.waitpid(child, 0)[1], flush=True)
opened.write([record("b", 1)])
try:
    journal.open("w")
except JournalError as error:
    print("still held", flush=True)
input()
"""


def test_a_forked_child_harms_nothing(path: Path) -> None:
    """It can use neither the workflow nor its hold, and its end, with or without `close`, takes neither away."""
    with script(_FORKS, path) as process:
        assert "was opened before this process was forked" in says(process)
        assert "was opened before this process was forked" in says(process)
        assert f"held by process {process.pid}" in says(process)
        assert says(process) == "0"
        assert says(process) == "still held"
        with pytest.raises(JournalError, match=f"held by process {process.pid}"):
            SqliteJournal(path).open("w")
        assert list(SqliteJournal(path).records("w")) == [record("a"), record("b", 1)]


def test_a_hold_that_cannot_be_let_go_is_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing raises nothing, and the same process can open it again."""
    monkeypatch.setattr("fanout_sync.journal.database.BUSY_S", 0.05)
    opened = SqliteJournal(path).open("w")
    with closing(sqlite3.connect(path, isolation_level=None)) as other, caplog.at_level(logging.WARNING):
        other.execute("BEGIN IMMEDIATE")
        opened.close()
        other.execute("ROLLBACK")
    assert "could not be let go" in caplog.text
    SqliteJournal(path).open("w").close()


def test_threads_race_too(journal: Journal) -> None:
    """Of eight threads that open one workflow at once, one has it."""
    gate = threading.Barrier(8)
    won: list[OpenWorkflow] = []
    lost: list[JournalError] = []

    def race() -> None:
        gate.wait(HANG_BOUND_S)
        try:
            won.append(journal.open("w"))
        except JournalError as error:
            lost.append(error)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_BOUND_S)
    assert (len(won), len(lost)) == (1, 7)
    assert all("held by this process" in str(error) for error in lost)
    won[0].close()


def test_a_process_knows_itself() -> None:
    """What it writes down of itself tells that it lives; what never was a process does not."""
    here = this_process()
    assert here.is_this_process()
    assert here.is_alive()
    for pid in (-1, 0, 2**22 + 1, 2**70):
        assert not holders.Holder(pid, here.host, here.pid_space, "").is_alive()
    assert holders.Holder(here.pid, "elsewhere", here.pid_space, here.started).is_alive() is None


def test_a_run_without_a_journal_loads_no_sqlite() -> None:
    """Whoever wants no journal does not pay for one."""
    text = "import sys, fanout_sync, fanout_sync.runner.runner; sys.exit('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], timeout=HANG_BOUND_S, check=False).returncode == 0
