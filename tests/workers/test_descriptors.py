"""When descriptors run out, those of failed starts are closed, and the program can go on."""

from __future__ import annotations

import errno
import multiprocessing
import os
import selectors
import textwrap
from pathlib import Path
from typing import Any

import pytest
from scripts import run_python

from fanout_sync import AgentStepSpec, FunctionExecutor, ProcessBackend, Runner
from fanout_sync.testing import make_specs
from fanout_sync.workers.output import open_outputs

PREAMBLE = """
import errno, gc, multiprocessing, os, resource, time
from fanout_sync import FunctionExecutor, ProcessBackend, Runner, TextDelta
from fanout_sync.testing import make_specs
from fanout_sync.workers.lane import Lane
from fanout_sync.workers.worker_start import start_worker

most = resource.getrlimit(resource.RLIMIT_NOFILE)

def descriptors():
    \"\"\"Return what is behind each open descriptor.\"\"\"
    gc.collect()
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor that listed the folder
            pass
    return found

def leave(room):
    \"\"\"Let this process open so many descriptors more.\"\"\"
    taken = descriptors()
    limit = 0
    while limit - sum(number < limit for number in taken) < room:
        limit += 1
    while limit in taken:
        limit += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most[1]))

def leave_any():
    resource.setrlimit(resource.RLIMIT_NOFILE, most)

def end(started):
    lane = Lane.of(started)
    lane.kill()
    assert lane.await_exit(60)
    lane.close()
    lane.process.join()
    multiprocessing.active_children()

def agent(spec):
    return spec.prompt
"""


def run_script(tmp_path: Path, source: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(PREAMBLE + textwrap.dedent(source))
    done = run_python(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("is_first", [False, True], ids=["later worker", "first worker"])
def test_a_failed_start_of_a_worker_leaves_no_descriptor(captures: bool, is_first: bool, tmp_path: Path) -> None:
    """With any number of descriptors left, a start that fails raises an error and leaves as many open as before."""
    printed = run_script(
        tmp_path,
        f"""
        from fanout_sync.workers.trackers import _pipes

        def kept():
            \"\"\"Return the descriptors that may stay open, because all later workers use them.\"\"\"
            return {{descriptor for pipe in _pipes.values() for descriptor in (pipe.reader, pipe.writer)}}

        if not {is_first}:
            end(start_worker({captures}))
        descriptors()
        before, failures = set(descriptors()), 0
        for room in range(40):
            leave(room)
            try:
                end(start_worker({captures}))
            except OSError as error:
                assert error.errno == errno.EMFILE, error
                failures += 1
            else:
                break
            finally:
                leave_any()
                left = set(descriptors()) - before - kept()
                assert not left, f"with room for {{room}}: {{descriptors()}}"
        assert multiprocessing.active_children() == []
        print(room == failures > 3)
        """,
    )
    assert printed == "True\n"


@pytest.mark.parametrize("room", [3, 8])
def test_a_run_without_descriptors_fails_and_the_next_one_works(room: int, tmp_path: Path) -> None:
    """Steps fail with the reason, no descriptor and no process is left, and the runner can be used again."""
    printed = run_script(
        tmp_path,
        f"""
        runner = Runner(
            FunctionExecutor({{"tester": agent}}), backend=ProcessBackend(capture_output=True), max_concurrency=2
        )
        runner.run(make_specs(1))
        before = descriptors()
        leave({room})
        run = runner.run(make_specs(3))
        leave_any()
        print({{record.error.type + str(record.error.message) for record in run.records}})
        print(sorted(descriptors()) == sorted(before), multiprocessing.active_children())
        print([outcome.output for outcome in runner.run(make_specs(3))])
        """,
    )
    reason = "OSError[Errno 24] Too many open files"
    assert printed == f"{ {reason} }\nTrue []\n['0', '1', '2']\n"


@pytest.mark.parametrize(
    ("call", "room"),
    [
        ("runner.run(make_specs(3))", 0),
        ("list(runner.stream(make_specs(3)))", 1),
        ("runner.run(make_specs(3))", 2),
    ],
)
def test_warm_workers_are_ended_when_a_run_cannot_begin(call: str, room: int, tmp_path: Path) -> None:
    """A run that cannot take over its warm workers raises the error and ends them; the runner can be used again."""
    printed = run_script(
        tmp_path,
        f"""
        outside = descriptors()
        with Runner(FunctionExecutor({{"tester": agent}}), backend="process", max_concurrency=2) as runner:
            runner.run(make_specs(2))
            leave({room})
            try:
                {call}
            except OSError as error:
                print(error.errno == errno.EMFILE)
            leave_any()
            print(multiprocessing.active_children())
            print([outcome.output for outcome in runner.run(make_specs(2))])
        # All later workers use the two resource trackers.
        print(multiprocessing.active_children(), len(descriptors()) - len(outside) <= 2)
        """,
    )
    assert printed == "True\n[]\n['0', '1']\n[] True\n"


def test_warm_workers_are_ended_without_any_descriptor(tmp_path: Path) -> None:
    """The end of a runner's `with` block leaves no worker behind, even if no descriptor is left to wait with."""
    printed = run_script(
        tmp_path,
        """
        with Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=2) as runner:
            runner.run(make_specs(2))
            leave(0)
        leave_any()
        print(multiprocessing.active_children())
        """,
    )
    assert printed == "[]\n"


def test_an_overdue_step_is_killed_without_any_descriptor(tmp_path: Path) -> None:
    """An overdue step is killed and reported, even if /proc cannot be read to find what it has started."""
    printed = run_script(
        tmp_path,
        """
        class Listener:
            def send(self, event):
                if isinstance(event, TextDelta):
                    leave(0)

        def hang(spec, event_tx):
            event_tx.send(TextDelta(spec.task_id, "begun"))
            time.sleep(3600)

        executor = FunctionExecutor({"tester": hang})
        run = Runner(executor, backend="process", max_concurrency=1, timeout=1, event_tx=Listener()).run(make_specs(1))
        leave_any()
        print([record.status for record in run.records], multiprocessing.active_children())
        """,
    )
    assert printed == "['timed_out'] []\n"


class RefusingOnce(selectors.DefaultSelector):
    """A selector that refuses one registration, like a kernel that watches no more descriptors."""

    refused = 0
    count = 0

    def register(self, *args: Any, **kwargs: Any) -> Any:
        type(self).count += 1
        if self.count == self.refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().register(*args, **kwargs)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> type[RefusingOnce]:
    monkeypatch.setattr(RefusingOnce, "count", 0)
    monkeypatch.setattr(selectors, "DefaultSelector", RefusingOnce)
    return RefusingOnce


def open_descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("refused", [2, 3, 4, 5], ids=["link", "pidfd", "stdout", "stderr"])
def test_a_worker_that_cannot_be_watched_is_ended(
    refused: int, refusing: type[RefusingOnce], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new worker whose descriptors the system does not watch is ended, and another one is started."""
    runner = Runner(
        FunctionExecutor({"tester": lambda spec: spec.prompt}),
        backend=ProcessBackend(capture_output=True),
        max_concurrency=1,
    )
    runner.run(make_specs(1))
    before = open_descriptors()
    monkeypatch.setattr(refusing, "count", 0)
    monkeypatch.setattr(refusing, "refused", refused)
    assert [outcome.output for outcome in runner.run(make_specs(2))] == ["0", "1"]
    assert open_descriptors() == before
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("refused", [1, 2, 3, 4, 5], ids=["wake pipe", "link", "pidfd", "link 2", "pidfd 2"])
def test_warm_workers_that_cannot_be_watched_are_ended(
    refused: int, refusing: type[RefusingOnce], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If a run cannot watch its warm workers, it raises the error, ends all of them and leaves nothing open."""
    os.mkfifo(tmp_path / "meeting")

    def meet(spec: AgentStepSpec) -> str:
        """Return when the other step runs as well: so there are two workers."""
        with (tmp_path / "meeting").open("r" if spec.prompt == "0" else "w"):
            return spec.prompt

    executor = FunctionExecutor({"tester": meet})
    Runner(executor, backend="process", max_concurrency=2).run(make_specs(2))
    before = open_descriptors()
    with Runner(executor, backend="process", max_concurrency=2) as runner:
        runner.run(make_specs(2))
        monkeypatch.setattr(refusing, "count", 0)
        monkeypatch.setattr(refusing, "refused", refused)
        with pytest.raises(OSError, match="No space left"):
            runner.run(make_specs(2))
        assert multiprocessing.active_children() == []
        assert open_descriptors() == before
        assert [outcome.output for outcome in runner.run(make_specs(2))] == ["0", "1"]
    assert open_descriptors() == before


def test_a_pipe_for_one_stream_alone_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the pipe for the second stream cannot be opened, the first one is closed."""
    open_pipe = os.pipe
    opened: list[tuple[int, int]] = []

    def only_one() -> tuple[int, int]:
        if opened:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        opened.append(open_pipe())
        return opened[0]

    monkeypatch.setattr(os, "pipe", only_one)
    with pytest.raises(OSError, match="Too many open files"):
        open_outputs()
    for end in opened[0]:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)
