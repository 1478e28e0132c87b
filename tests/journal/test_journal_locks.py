"""One run at a time on one workflow: who holds it, whether they live, and what happens to whoever loses it."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from disks import small_disk
from journalled import HOLDS, record, says, script, tell
from processes import eventually, is_alive

from fanout_sync import AgentStepSpec, FunctionExecutor, Runner
from fanout_sync.errors import JournalError
from fanout_sync.journal import Journal, MemoryJournal, OpenWorkflow, SqliteJournal
from fanout_sync.journal.lock_file import ByteLock, byte_lock, path_of_lock_file


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
    opened.close()
    journal.open("w").close()


def test_a_workflow_without_references_is_free(journal: Journal) -> None:
    """An open workflow to which nothing refers any more is released."""
    opened = journal.open("w")
    opened.write([record("a")])
    del opened
    gc.collect()
    again = journal.open("w")
    assert again.find("a") == record("a")
    again.close()


_OPENS = """
from fanout_sync.errors import JournalError
from fanout_sync.journal import SqliteJournal
try:
    SqliteJournal(sys.argv[1]).open(sys.argv[2]).close()
    print("free", flush=True)
except JournalError as error:
    print(error, flush=True)
"""
"""A script that says whether a workflow is free; if not, then why."""


def what_others_hear(path: Path, workflow_id: str = "w") -> str:
    with script(_OPENS, path, workflow_id) as process:
        return says(process)


def test_a_workflow_that_is_dropped_is_free_for_others_too(path: Path) -> None:
    """It is free for other processes, too, even if another process is writing the file at that moment."""
    opened = SqliteJournal(path).open("w")
    assert "held by process" in what_others_hear(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        del opened
        gc.collect()
        other.execute("ROLLBACK")
    assert what_others_hear(path) == "free"


def test_a_workflow_in_a_cycle_is_free_when_it_is_collected(path: Path) -> None:
    """Such as the cycle of an exception and its traceback."""
    opened = SqliteJournal(path).open("w")
    cycle: list[object] = [opened]
    cycle.append(cycle)
    del opened, cycle
    gc.collect()
    assert what_others_hear(path) == "free"


def test_a_workflow_is_released_on_a_full_disk(tmp_path: Path) -> None:
    """Releasing writes nothing: dropped or closed, the workflow is free as soon as there is room for the next run."""
    with small_disk(tmp_path / "disk") as disk:
        journal = SqliteJournal(disk / "runs.db")
        dropped, closed = journal.open("dropped"), journal.open("closed")
        with (disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(b"x" * 4096)
        closed.close()
        del dropped
        gc.collect()
        (disk / "ballast").unlink()
        for workflow_id in ("dropped", "closed"):
            journal.open(workflow_id).close()
            assert what_others_hear(disk / "runs.db", workflow_id) == "free"


def test_closing_one_workflow_keeps_the_others(path: Path) -> None:
    """The workflows of one file in one process share a descriptor, which is closed with the last of them."""
    before = descriptors()
    journals = [SqliteJournal(path), SqliteJournal(str(path))]
    opened = [journals[n % 2].open(f"{n}") for n in range(3)]
    for n, each in enumerate(opened):
        assert all("held by process" in what_others_hear(path, f"{k}") for k in range(n, 3))
        each.close()
        assert what_others_hear(path, f"{n}") == "free"
    assert descriptors() == before


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_living_process_is_named(path: Path) -> None:
    """The error names process, host and time, and is raised at once."""
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
    """The next run holds it at once, and finds all that was written."""
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
    again = SqliteJournal(path).open("w")
    assert again.find("a") == record("a")
    again.close()


def test_a_zombie_does_not_hold_its_workflow(path: Path) -> None:
    """A process that has ended and is not reaped yet does not hold a workflow."""
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
        os.kill(process.pid, signal.SIGKILL)
        assert eventually(lambda: not is_alive(process.pid))
        assert Path(f"/proc/{process.pid}").exists()
        SqliteJournal(path).open("w").close()


@pytest.mark.parametrize("days", [1, 1000])
def test_a_hold_lasts_while_nothing_is_written(path: Path, days: int) -> None:
    """The consumer of a stream may take any time: a hold does not expire, on any host."""
    executor = FunctionExecutor({"coder": lambda spec: "done"})
    specs = [AgentStepSpec(f"{n}", "coder", "a step", "do it") for n in range(50)]
    stream = Runner(executor, journal=SqliteJournal(path).workflow("w"), max_concurrency=2).stream(specs)
    next(stream)
    later = f"import socket, time\nnow = time.time()\ntime.time = lambda: now + {days} * 86400\n"
    with script(f"{later}socket.gethostname = lambda: 'elsewhere'\n{_OPENS}", path, "w") as process:
        assert f"held by process {os.getpid()} on " in says(process)
    assert len(list(stream)) == 49
    assert what_others_hear(path) == "free"


@pytest.mark.parametrize(
    "row",
    [
        "token = 'a', pid = 4194999, host = 'elsewhere', pid_space = 'x', started = '1', since = 1e12, renewed = 1e12",
        "token = 'a', pid = 1, host = 'here', pid_space = '', started = '', since = 1, renewed = 1e12",
        "token = 'a', pid = NULL, host = NULL, since = NULL",
    ],
)
def test_the_row_of_a_dead_run_does_not_hold_the_workflow(path: Path, row: str) -> None:
    """Also in a journal of schema version 1, which can be read and written."""
    written = SqliteJournal(path).open("w")
    written.write([record("a")])
    written.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for column in ("token TEXT", "pid_space TEXT", "started TEXT", "renewed REAL"):
            with suppress(sqlite3.OperationalError):  # it is there already
                connection.execute(f"ALTER TABLE workflows ADD COLUMN {column}")
        connection.execute(f"UPDATE workflows SET {row}")
    again = SqliteJournal(path).open("w")
    assert again.find("a") == record("a")
    again.write([record("b", 1)])
    assert f"held by process {os.getpid()}" in what_others_hear(path)
    again.close()
    assert list(SqliteJournal(path).records("w")) == [record("a"), record("b", 1)]
    SqliteJournal(path).delete("w")


def test_deleting_is_refused_while_another_process_holds(path: Path) -> None:
    """Only that workflow cannot be deleted, and its steps stay; when the process is dead, it can be deleted."""
    SqliteJournal(path).open("other").close()
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
        with pytest.raises(JournalError, match=f"held by process {process.pid}"):
            SqliteJournal(path).delete("w")
        assert list(SqliteJournal(path).records("w")) == [record("a")]
        SqliteJournal(path).delete("other")
    SqliteJournal(path).delete("w")
    assert SqliteJournal(path).workflows() == []


def test_a_workflow_that_takes_the_row_of_another_is_another(path: Path) -> None:
    """The lock is that of the workflow id, because the id of a deleted row is used again."""
    journal = SqliteJournal(path)
    journal.open("first").close()
    journal.delete("first")
    second = journal.open("second")
    journal.open("first").close()
    assert "held by process" in what_others_hear(path, "second")
    second.close()


def test_paths_that_lead_to_one_file_share_its_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to the file or to its directory, and relative paths, in this process and in others."""
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "link.db").symlink_to("folder/runs.db")
    monkeypatch.chdir(tmp_path)
    paths = [Path(each) for each in ("real/runs.db", "folder/runs.db", "link.db", "folder/../link.db")]
    for holding in paths:
        opened = SqliteJournal(holding).open("w")
        for other in paths:
            with pytest.raises(JournalError, match="held by this process"):
                SqliteJournal(other).open("w")
        others = paths[paths.index(holding) - 1]
        assert f"held by process {os.getpid()}" in what_others_hear(others)
        opened.close()
    assert what_others_hear(paths[0]) == "free"
    assert sorted(each.name for each in (tmp_path / "real").iterdir()) == ["runs.db", "runs.db-lock"]


def test_deleting_the_lock_file_of_a_run_is_an_error(path: Path, opened: OpenWorkflow) -> None:
    """Another run could hold the workflow then, too, so the next sync raises."""
    opened.write([record("a")])
    opened.sync()
    lock_file = path_of_lock_file(path)
    for replace in (lock_file.unlink, lock_file.touch):
        replace()
        opened.write([record("b", 1)])
        with pytest.raises(JournalError, match=r"runs\.db: its lock file runs\.db-lock has been deleted or replaced"):
            opened.sync()


@pytest.mark.parametrize("with_lock_file", [False, True])
def test_replacing_a_journal_in_use(path: Path, opened: OpenWorkflow, with_lock_file: bool) -> None:
    """The new file can be used; if the lock file is the old one, only when the old run has ended."""
    opened.write([record("a")])
    for each in path.parent.iterdir():
        if with_lock_file or each != path_of_lock_file(path):
            each.unlink()
    if with_lock_file:
        SqliteJournal(path).open("w").close()
    else:
        with pytest.raises(JournalError, match="workflow 'w' is held by another run; let that run end"):
            SqliteJournal(path).open("w")
        assert "workflow 'w' is held by another run" in what_others_hear(path)
    SqliteJournal(path).open("other").close()
    with pytest.raises(JournalError, match="has been deleted or replaced"):
        opened.sync()
    opened.close()
    assert what_others_hear(path) == "free"


def test_a_lock_dropped_by_reading_the_lock_file_is_taken_again(path: Path, opened: OpenWorkflow) -> None:
    """Closing any descriptor of the lock file drops the lock; the next write takes it again."""
    assert path_of_lock_file(path).read_bytes() == b""
    opened.write([record("a")])
    assert "held by process" in what_others_hear(path)
    path_of_lock_file(path).read_bytes()
    with script(HOLDS, path, "w") as process:
        assert says(process) == "held"
        with pytest.raises(JournalError, match=r"closed runs\.db-lock.* another run holds it now; nothing was written"):
            opened.write([record("b")])
        assert [each.task_id for each in SqliteJournal(path).records("w")] == ["a"]
        opened.close()
        with pytest.raises(JournalError, match=f"held by process {process.pid}"):
            SqliteJournal(path).open("w")


def test_readers_need_no_lock(path: Path) -> None:
    """A reader does not create the lock file, does not need it, and is never refused."""
    journal = SqliteJournal(path)
    opened = journal.open("w")
    opened.write([record("a")])
    assert list(journal.records("w")) == [record("a")]
    assert journal.workflows() == ["w"]
    opened.close()
    path_of_lock_file(path).unlink()
    assert list(journal.records("w")) == [record("a")]
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_file_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    """The journal is there and may be written, but its lock file is a directory, or leads nowhere."""
    path, lock_file = tmp_path / "runs.db", tmp_path / "runs.db-lock"
    SqliteJournal(path).open("w").close()
    lock_file.unlink()
    for is_folder in (True, False):
        lock_file.mkdir() if is_folder else lock_file.symlink_to("missing/lock")
        for use in (SqliteJournal(path).open, SqliteJournal(path).delete):
            with pytest.raises(JournalError, match=rf"runs\.db: its lock file {lock_file} cannot be opened and locked"):
                use("w")
        lock_file.rmdir() if is_folder else lock_file.unlink()
    SqliteJournal(path).open("w").close()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOLCK, "its file system cannot lock files; put it on a local disk"),
        (errno.EIO, "cannot be opened and locked .*Input/output error"),
    ],
)
def test_a_file_system_without_locks_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    """The workflow is not opened without a lock, and no descriptor is left open."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    before = descriptors()
    with monkeypatch.context() as patched:
        patched.setattr("fcntl.lockf", fail)
        with pytest.raises(JournalError, match=rf"runs\.db: .*{message}"):
            SqliteJournal(path).open("w")
    assert descriptors() == before
    SqliteJournal(path).open("w").close()


def test_the_lock_file_has_the_permissions_of_the_journal(path: Path) -> None:
    """Whatever the umask is."""
    written = SqliteJournal(path).open("w")
    written.close()
    path_of_lock_file(path).unlink()
    path.chmod(0o660)
    mask = os.umask(0o077)
    try:
        SqliteJournal(path).open("w").close()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path_of_lock_file(path).stat().st_mode) == 0o660


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


def test_one_of_several_processes_takes_over_a_dead_hold(path: Path) -> None:
    """Of four processes that open the workflow at the same time, one holds it and three get a `JournalError`."""
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


def test_a_forked_child_does_not_affect_its_parents_hold(path: Path) -> None:
    """It can use neither the workflow nor the hold; its end, with or without `close`, releases neither."""
    with script(_FORKS, path) as process:
        assert "was opened before this process was forked" in says(process)
        assert "was opened before this process was forked" in says(process)
        assert "was open when this process was forked" in says(process)
        assert says(process) == "0"
        assert says(process) == "still held"
        with pytest.raises(JournalError, match=f"held by process {process.pid}"):
            SqliteJournal(path).open("w")
        assert list(SqliteJournal(path).records("w")) == [record("a"), record("b", 1)]


_FORKS_AND_DIES = """
import os
from fanout_sync.journal import SqliteJournal
journal = SqliteJournal(sys.argv[1])
opened = journal.open("w")
if os.fork() == 0:
    sys.stdin.readline()
    print("still there", flush=True)
    sys.stdin.readline()
    os._exit(0)
print("held", flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_forked_child_does_not_keep_the_hold_of_a_dead_parent(path: Path) -> None:
    """When the parent is killed while the child runs on, the workflow is free."""
    with script(_FORKS_AND_DIES, path) as process:
        assert says(process) == "held"
        assert process.wait(HANG_BOUND_S) == -signal.SIGKILL
        assert what_others_hear(path) == "free"
        tell(process)
        assert says(process) == "still there"
        assert what_others_hear(path) == "free"
        tell(process)


_FORKS_AND_OPENS = """
import os
from fanout_sync.journal import SqliteJournal
journal = SqliteJournal(sys.argv[1])
earlier = SqliteJournal(sys.argv[2])
earlier.open("w").close()
opened = journal.open("w")
child = os.fork()
if child == 0:
    own = earlier.open("own")
    own.write([record("a")])
    print("open", flush=True)
    input()
    own.close()
    os._exit(0)
os.waitpid(child, 0)
print("alone", flush=True)
input()
opened.close()
print("closed", flush=True)
input()
"""


def test_a_forked_child_can_use_other_journals(path: Path) -> None:
    """Also one that its parent has used before; that does not affect the holds of its parent."""
    own = path.with_name("own.db")
    with script(_FORKS_AND_OPENS, path, own) as process:
        assert says(process) == "open"
        assert f"held by process {process.pid}" in what_others_hear(path, "w")
        assert "held by process" in what_others_hear(own, "own")
        tell(process)
        assert says(process) == "alone"
        assert f"held by process {process.pid}" in what_others_hear(path, "w")
        assert what_others_hear(own, "own") == "free"
        tell(process)
        assert says(process) == "closed"
        assert what_others_hear(path, "w") == "free"


_FORKS_AMONG_THREADS = """
import os, signal, threading
from pathlib import Path
from fanout_sync.journal.lock_file import byte_lock
sys.setswitchinterval(1e-6)
path = Path(sys.argv[1])
is_over = threading.Event()
def use(name):
    while not is_over.is_set():
        lock = byte_lock(path, name)
        assert lock.take()
        lock.release()
threads = [threading.Thread(target=use, args=(f"{n}",)) for n in range(3)]
kept = byte_lock(path, "kept")
assert kept.take()
for thread in threads:
    thread.start()
ends = []
for n in range(100):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        own = byte_lock(path, "own")
        os._exit(0 if own.take() and not byte_lock(path, "kept").take() else 1)
    ends.append(os.waitpid(child, 0)[1])
is_over.set()
for thread in threads:
    thread.join()
print(set(ends), flush=True)
"""


def test_a_fork_while_other_threads_take_locks(path: Path) -> None:
    """The child can take locks: no mutex is left locked in it by a thread that it does not have."""
    path.touch()
    with script(_FORKS_AMONG_THREADS, path) as process:
        assert says(process) == "{0}"


_ASKS = """
from pathlib import Path
from fanout_sync.journal.lock_file import byte_lock
names = sys.argv[2:]
print(*[name for name in names if not byte_lock(Path(sys.argv[1]), name).take()], flush=True)
"""


def test_the_garbage_collector_may_release_a_lock_at_any_moment(path: Path) -> None:
    """Also while a thread takes or releases another lock of the same file."""
    path.touch()
    before = descriptors()
    kept: list[ByteLock] = []
    threads = [threading.Thread(target=_take_and_drop, args=(path, f"{n}", kept)) for n in range(3)]
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_BOUND_S)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    names = [f"{n}-{m}" for n in range(3) for m in range(100)]
    with script(_ASKS, path, *names) as process:
        assert says(process).split() == [name for name in names if name.endswith("5")]
    for lock in kept:
        lock.release()
    assert descriptors() == before


def _take_and_drop(path: Path, prefix: str, kept: list[ByteLock]) -> None:
    for n in range(100):
        lock = byte_lock(path, f"{prefix}-{n}")
        assert lock.take()
        if n % 10 == 5:
            kept.append(lock)
        elif n % 2:
            lock.release()
        else:
            cycle: list[object] = [lock]
            cycle.append(cycle)


def test_one_of_several_threads_opens_a_workflow(journal: Journal) -> None:
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


@pytest.fixture
def _busy() -> Iterator[None]:
    """Two threads that compute, and many more turns for all than usual."""
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            pass

    threads = [threading.Thread(target=compute) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    for thread in threads:
        thread.start()
    yield
    is_over.set()
    for thread in threads:
        thread.join(HANG_BOUND_S)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_busy")
def test_of_two_threads_exactly_one_wins(path: Path) -> None:
    """Always: for each of a hundred and fifty workflows, beside threads that keep the processor busy."""
    journal = SqliteJournal(path)
    journal.open("w").close()
    names = [f"w{n}" for n in range(150)]
    gate = threading.Barrier(2)
    won: dict[str, list[OpenWorkflow]] = {name: [] for name in names}

    def race() -> None:
        for name in names:
            gate.wait(HANG_BOUND_S)
            with suppress(JournalError):
                won[name].append(journal.open(name))

    threads = [threading.Thread(target=race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_BOUND_S)
    counts = [len(won[name]) for name in names]
    for each in won.values():
        for opened in each:
            opened.close()
    assert counts == [1] * len(names)


def test_whenever_another_thread_comes_exactly_one_wins(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two lines of opening a workflow another thread opens it too: one of them has it."""
    monkeypatch.setattr("fanout_sync.journal.database.BUSY_S", 0.0)
    journal = SqliteJournal(path)
    journal.open("w").close()
    outcomes: list[list[str]] = []
    while not outcomes or len(outcomes[-1]) == 2:
        outcomes.append(_open_with_an_intruder(journal, f"w{len(outcomes)}", at_line=len(outcomes)))
    assert outcomes.pop() == ["won"]  # it has not so many lines
    assert {tuple(sorted(each)) for each in outcomes} == {("lost", "won")}
    assert ["won", "lost"] in outcomes
    assert ["lost", "won"] in outcomes


def _open_with_an_intruder(journal: SqliteJournal, workflow_id: str, at_line: int) -> list[str]:
    # In a thread of its own, as it is traced; what became of the intruder, if it ever came, is first.
    opened: list[OpenWorkflow] = []
    outcomes: list[str] = []
    lines = itertools.count()

    def attempt() -> None:
        try:
            opened.append(journal.open(workflow_id))
            outcomes.append("won")
        except JournalError:
            outcomes.append("lost")

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        place = Path(frame.f_code.co_filename)
        if place.parent.name != "journal" or place.name == "database.py":
            return None
        if event == "line" and next(lines) == at_line:
            intruder = threading.Thread(target=attempt)
            intruder.start()
            intruder.join(HANG_BOUND_S)
        return trace

    def traced() -> None:
        sys.settrace(trace)
        try:
            attempt()
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=traced)
    thread.start()
    thread.join(HANG_BOUND_S)
    for each in opened:
        each.close()
    return outcomes


_RACES_FOR_ALL = """
from fanout_sync.errors import JournalError
from fanout_sync.journal import SqliteJournal
journal = SqliteJournal(sys.argv[1])
print("ready", flush=True)
input()
won = {}
for n in range(40):
    try:
        won[n] = journal.open(f"{n}")
    except JournalError as error:
        assert "is held by process" in str(error), error
print(*won, flush=True)
input()
"""


def test_of_several_processes_exactly_one_wins(path: Path) -> None:
    """For each of forty workflows of a file that is not there yet."""
    with ExitStack() as stack:
        racers = [stack.enter_context(script(_RACES_FOR_ALL, path)) for _ in range(3)]
        assert [says(racer) for racer in racers] == ["ready"] * 3
        for racer in racers:
            tell(racer)
        won = [int(each) for racer in racers for each in says(racer).split()]
        assert sorted(won) == list(range(40))


def test_a_run_without_a_journal_loads_no_sqlite() -> None:
    """Without a journal, `sqlite3` is not imported."""
    text = "import sys, fanout_sync, fanout_sync.runner.runner; sys.exit('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], timeout=HANG_BOUND_S, check=False).returncode == 0
