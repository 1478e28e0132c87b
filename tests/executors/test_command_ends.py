"""How programs end: by themselves, or killed with all that they have started."""

from __future__ import annotations

import os
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from processes import eventually
from programs import backend_named, each_backend, one, own_backends, run_command, shell, spec_for
from scripts import Launcher, await_condition, processes_with

from fanout_sync import Command, CommandExecutor, Retry, Runner

pytestmark = pytest.mark.usefixtures("no_program_left")

SOON_S = 30
"""Far more than it takes to kill a program, and less than a program would go on."""

GOING_ON = {
    "it sleeps": "exec sleep 600",
    "it ignores SIGTERM": "trap '' TERM INT HUP; while :; do sleep 0.2; done",
    "it has children": "sleep 600 & sleep 601 & wait",
    "its grandchildren are in the background": "(sleep 600 & sleep 601 &) ; exec sleep 602",
    "its child has a session of its own": "setsid sleep 600 & exec sleep 601",
    "it has forked twice": "(setsid sh -c 'sleep 600 >/dev/null 2>&1 </dev/null &' &) ; exec sleep 601",
    "its child has cleared its environment": "env -i setsid sh -c 'sleep 600; :' $FANOUT_SYNC_TEST & exec sleep 601",
    "it is stopped": "kill -STOP $$",
    "it has closed its outputs": "exec >&- 2>&-; exec sleep 600",
    "it writes for ever": "exec yes",
}

each_program = pytest.mark.parametrize("source", GOING_ON.values(), ids=GOING_ON)


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the timeout is a soft one")
        yield


# Timeouts and interrupts ----------------------------------------------------------------------------------------------


@each_program
@each_backend
def test_a_timeout(source: str, backend: str, no_program_left: str) -> None:
    """When the timeout of a step is over, its program is killed with all that it has started; no thread is left."""
    began = time.monotonic()
    status, output = one(run_command(Command(shell(source)), backend=backend, timeout=1))
    assert status == "timed_out"
    assert time.monotonic() - began < SOON_S
    if backend == "thread":
        assert "; sh (process " in output
        assert ") and all that it had started were killed" in output
    assert eventually(lambda: _programs(no_program_left) == [])


def _programs(token: str) -> list[int]:
    """Return the programs with a mark: not the workers of pools, nor resource trackers."""
    return [pid for pid in processes_with(token) if b"python" not in _command_line(pid)]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@own_backends
def test_the_message_of_a_timeout_has_the_end_of_stderr(backend: str) -> None:
    """What the program was doing is in the message."""
    command = Command(shell("echo waiting for the server >&2; exec sleep 600"))
    output = one(run_command(command, backend=backend, timeout=0.7))[1]
    assert output.startswith("timed out after 0.7 s; sh (process ")
    assert output.endswith(" and all that it had started were killed; stderr: waiting for the server")


@own_backends
def test_other_steps_go_on_after_a_timeout(backend: str) -> None:
    """The place of a step that was overdue is free for the next one."""
    slow, fast = spec_for("sleep 600", "slow"), [spec_for("echo ok", f"fast-{i}") for i in range(5)]
    run = run_command(Command(["sh"]), slow, *fast, backend=backend, timeout=1, max_concurrency=1)
    assert [record.status for record in run.records] == ["timed_out", *["succeeded"] * 5]


def test_many_timeouts_at_once() -> None:
    """Many programs that are overdue at the same time are killed together; no thread is abandoned."""
    specs = [spec_for(task_id=f"t{i}") for i in range(64)]
    command = Command(shell("setsid sleep 600 & exec sleep 601"))
    run = run_command(command, *specs, timeout=3, max_concurrency=64)
    assert {record.status for record in run.records} == {"timed_out"}
    assert not [outcome.output for outcome in run if "abandoned" in outcome.output]


@own_backends
def test_a_timeout_may_be_tried_again(backend: str) -> None:
    """`on_timeout` covers a program that was killed."""
    run = run_command(Command(["sleep", "600"]), backend=backend, timeout=0.3, retry=Retry(2, wait=0, on_timeout=True))
    assert [attempt.status for attempt in run.records[0].attempts] == ["timed_out"] * 2


@each_backend
@each_program
def test_a_run_that_is_cancelled(source: str, backend: str, tmp_path: Path, no_program_left: str) -> None:
    """`RunHandle.cancel` kills the programs with all that they have started."""
    executor = CommandExecutor({"a": Command(shell(f"touch begun; {source}"), cwd=tmp_path)})
    began = time.monotonic()
    with backend_named(backend) as place:
        handle = Runner(executor, backend=place, on_interrupt="return").start([spec_for()])
        assert eventually((tmp_path / "begun").exists)
        handle.cancel()
        run = handle.result(HANG_BOUND_S)
        assert [record.status for record in run.records] == ["cancelled"]
        assert eventually(lambda: _programs(no_program_left) == [])
    assert time.monotonic() - began < SOON_S


@own_backends
def test_a_stream_that_is_left(backend: Any) -> None:
    """Leaving a stream kills the programs of the steps that are running."""
    executor = CommandExecutor({"a": Command(["sh"])})
    runner = Runner(executor, backend=backend, max_concurrency=4)
    specs = [spec_for("echo ok", "ok"), *[spec_for("sleep 600", f"{i}") for i in range(3)]]
    for outcome in runner.stream(specs, order="completion"):
        assert outcome.output == "ok"
        break


@pytest.mark.parametrize("source", [GOING_ON["it sleeps"], GOING_ON["its child has a session of its own"]])
@pytest.mark.parametrize("backend", ["thread", "process", "pool of threads"])
@pytest.mark.parametrize("how", ["it is closed", "the caller raises"])
def test_nothing_is_left_when_a_stream_is_closed(
    how: str, backend: str, source: str, tmp_path: Path, no_program_left: str
) -> None:
    """The programs of the steps that are running have been killed by then, so no warning tells of them."""
    executor = CommandExecutor({"a": Command(["sh"], cwd=tmp_path)})
    specs = [spec_for("echo ok", "ok"), *[spec_for(f"touch begun-{i}; {source}", f"{i}") for i in range(3)]]
    with backend_named(backend) as place:
        stream = Runner(executor, backend=place, max_concurrency=4).stream(specs, order="completion")
        assert next(stream).output == "ok"
        assert eventually(lambda: len(list(tmp_path.glob("begun-*"))) == 3)
        if how == "it is closed":
            stream.close()
        else:
            with pytest.raises(ZeroDivisionError):
                stream.throw(ZeroDivisionError())
        assert _programs(no_program_left) == []


SCRIPT = """
    from fanout_sync import AgentStepSpec, Command, CommandExecutor
    source = "touch begun-$1; {source}"
    executor = CommandExecutor({{"a": Command(["sh", "-c", source, "sh", "{{task_id}}"])}})
    specs = [AgentStepSpec(str(i), "a", "", "") for i in range(3)]
    say("ready")
    try:
        Runner(executor, backend={backend!r}, max_concurrency=3).run(specs)
    except FanoutInterrupted as interrupted:
        say(statuses_of(interrupted.run), left())
"""

STATUSES = """
    def statuses_of(run):
        return " ".join(record.status for record in run.records)
"""


def _begun(launch: Launcher) -> bool:
    return all((launch.folder / f"begun-{i}").exists() for i in range(3))


@own_backends
@each_program
def test_ctrl_c(source: str, backend: str, launch: Launcher) -> None:
    """Ctrl-C kills the programs with all that they have started."""
    script = launch.script(STATUSES + SCRIPT.format(source=source, backend=backend))
    script.expect("ready")
    await_condition(lambda: _begun(launch))
    script.press_ctrl_c()
    script.expect("cancelled cancelled cancelled []")
    script.end()


@own_backends
def test_ctrl_c_again_and_again(backend: str, launch: Launcher) -> None:
    """However often Ctrl-C is pressed, nothing is left of the programs."""
    source = GOING_ON["its child has a session of its own"]
    script = launch.script(STATUSES + SCRIPT.format(source=source, backend=backend))
    script.expect("ready")
    await_condition(lambda: _begun(launch))
    for _ in range(3):
        script.press_ctrl_c()
    script.end()


@own_backends
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
@each_program
def test_the_caller_is_killed(source: str, ending: signal.Signals, backend: str, launch: Launcher) -> None:
    """When the caller is killed, its programs are killed with all that they have started."""
    script = launch.script(STATUSES + SCRIPT.format(source=source, backend=backend))
    await_condition(lambda: _begun(launch))
    script.process.send_signal(ending)
    script.end()


@own_backends
def test_the_caller_ends_in_the_middle(backend: str, launch: Launcher) -> None:
    """A script that ends while programs are running leaves none of them."""
    script = launch.script(
        f"""
        from fanout_sync import AgentStepSpec, Command, CommandExecutor
        executor = CommandExecutor({{"a": Command(["sh", "-c", "touch begun-$1; sleep 600", "sh", "{{task_id}}"])}})
        specs = [AgentStepSpec(str(i), "a", "", "") for i in range(3)]
        handle = Runner(executor, backend={backend!r}).start(specs)
        while not all(Path(f"begun-{{i}}").exists() for i in range(3)):
            time.sleep(0.01)
        """
    )
    script.end()


def test_a_worker_that_dies(no_program_left: str, tmp_path: Path) -> None:
    """When a worker process dies, its program is killed, and the step has crashed."""
    command = Command(
        shell("echo $PPID > worker.part; mv worker.part worker; setsid sleep 600 & exec sleep 601"), cwd=tmp_path
    )
    handle = Runner(CommandExecutor({"a": command}), backend="process").start([spec_for()])
    assert eventually((tmp_path / "worker").exists)
    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)
    assert [record.status for record in handle.result(HANG_BOUND_S).records] == ["crashed"]
    assert eventually(lambda: _programs(no_program_left) == [])


def test_a_process_of_a_pool_that_dies(no_program_left: str, tmp_path: Path) -> None:
    """When a process of a pool of yours dies, its program is killed as well."""
    command = Command(
        shell("echo $PPID > worker.part; mv worker.part worker; setsid sleep 600 & exec sleep 601"), cwd=tmp_path
    )
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(run_command, command, backend="pool of processes")
        assert eventually((tmp_path / "worker").exists)
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)
        assert [record.status for record in run.result(HANG_BOUND_S).records] == ["crashed"]
    assert eventually(lambda: _programs(no_program_left) == [])


def test_a_listener_that_interrupts_the_step(tmp_path: Path) -> None:
    """Whatever is raised while a program is read, the program is killed."""
    executor = CommandExecutor({"a": Command(shell("echo one; exec sleep 600"))})

    class Sender:
        def send(self, event: object) -> None:
            raise KeyboardInterrupt

        def usage(self, **_: object) -> None:
            raise NotImplementedError

    with pytest.raises(KeyboardInterrupt):
        executor.execute_step(spec_for(), Sender())


# What goes on after the answer ----------------------------------------------------------------------------------------

LEFT_BEHIND = {
    "a child that holds the pipes": "echo answer; sleep 600 &",
    "a child that holds stderr": "echo answer; sleep 600 >&2 &",
    "a child of the group without the pipes": "echo answer; sleep 600 >/dev/null 2>&1 &",
    "a daemon that holds the pipes": "echo answer; setsid sleep 600 &",
    "a daemon without the pipes": "echo answer; setsid sleep 600 >/dev/null 2>&1 &",
    "a daemon that was forked twice": "echo answer; (setsid sh -c 'sleep 600 >/dev/null 2>&1 </dev/null &' &)",
    "itself, with stdout closed": "echo answer; exec >&-; exec sleep 600",
    "itself, with both closed": "echo answer; exec >&- 2>&-; exec sleep 600",
}


@each_backend
@pytest.mark.parametrize("source", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_what_goes_on_after_the_answer(source: str, backend: str, no_program_left: str) -> None:
    """What is left of a program after its answer is killed, at the latest at the end of the run; the answer counts."""
    began = time.monotonic()
    command = Command(shell(source), exit_grace=0.3)
    assert one(run_command(command, backend=backend)) == ("succeeded", "answer")
    assert time.monotonic() - began < SOON_S
    assert eventually(lambda: _programs(no_program_left) == [])


WHOLE_JSON = {
    "one line": ("""echo '{"answer": "yes"}'""", "answer"),
    "no newline": ("""printf '{"answer": "yes"}'""", "answer"),
    "many lines": ("""echo '{"more":'; echo '[], "answer":'; echo '"yes"}'""", "answer"),
    "one line, all of it": ("""echo '"yes"'""", None),
    "many lines, all of them": ("""echo; echo '"yes"'; echo""", None),
    "JSON lines": ("""echo '{"n": 1}'; echo '{"answer": "yes"}'""", "answer"),
    "JSON lines after the answer": ("""echo '{"answer": "yes"}'; echo '{"n": 1}'""", "answer"),
    "JSON lines, the last without newline": ("""echo '{"n": 1}'; printf '{"answer": "yes"}'""", "answer"),
    "JSON lines after other lines": ("""echo '[info] begun'; echo '{"n": 1}'; echo '{"answer": "yes"}'""", "answer"),
}


@pytest.mark.parametrize(("source", "answer"), WHOLE_JSON.values(), ids=WHOLE_JSON)
def test_json_that_is_complete(source: str, answer: str | None) -> None:
    """A program that falls silent after its whole answer, in JSON, is killed, and the answer counts."""
    command = Command(shell(f"{source}; exec sleep 600"), output="json", answer=answer, exit_grace=0.3)
    assert one(run_command(command, retry=Retry(attempts=1))) == ("succeeded", "yes")


PART_OF_JSON = {
    "nothing": ("true", """echo '"yes"'""", None),
    "the beginning of a document": (
        """echo '{"answer": "no", "more": ['""",
        """echo '], "answer": "yes"}'""",
        "answer",
    ),
    "a document within another": (
        """echo '{"parts": ['; echo '{"answer": "no"}'""",
        """echo '], "answer": "yes"}'""",
        "answer",
    ),
    "a line without the answer": ("""echo '{"n": 1}'""", """echo '{"answer": "yes"}'""", "answer"),
    "the beginning of a line": (
        """echo '{"answer": "no"}'; printf '{"answer": '""",
        """echo '"yes"}'""",
        "answer",
    ),
    "lines of which any may be the last": ("""echo '"no"'; echo '"perhaps"'""", """echo '"yes"'""", None),
}


@pytest.mark.parametrize(("begin", "end", "answer"), PART_OF_JSON.values(), ids=PART_OF_JSON)
def test_json_that_is_not_complete(begin: str, end: str, answer: str | None) -> None:
    """A program whose answer is still to come, or may be, is left alone, however long it is silent."""
    command = Command(shell(f"{begin}; sleep 0.7; {end}"), output="json", answer=answer, exit_grace=0.1)
    assert one(run_command(command, retry=Retry(attempts=1))) == ("succeeded", "yes")


def test_a_number_may_go_on() -> None:
    """Digits without a newline may be the beginning of a larger number."""
    command = Command(shell("printf 4; sleep 0.7; echo 2; exec sleep 600"), output="json", exit_grace=0.1)
    assert run_command(command)[0].structured == 42


def test_lines_that_follow_each_other() -> None:
    """Any line of JSON lines may be followed by a better one, so each one begins the grace anew."""
    lines = """for n in 1 2 3 4 5 6 7; do echo '{"answer": "'$n'"}'; sleep 0.3; done; exec sleep 600"""
    command = Command(shell(lines), output="json", answer="answer", exit_grace=1.5)
    assert one(run_command(command)) == ("succeeded", "7")


@own_backends
def test_an_answer_before_the_timeout_counts(backend: str) -> None:
    """The grace ends before the timeout, so that an answer is not lost because something is left of the program."""
    command = Command(shell("echo answer; sleep 600 &"), exit_grace=600)
    assert one(run_command(command, backend=backend, timeout=2)) == ("succeeded", "answer")


def test_what_ends_within_the_grace_may_end() -> None:
    """What a program has left behind may finish within `exit_grace`, and its output is part of the answer."""
    command = Command(shell("echo first; (sleep 0.3; echo second) &"), exit_grace=HANG_BOUND_S)
    assert one(run_command(command)) == ("succeeded", "first\nsecond")


def test_a_failure_with_something_left_behind() -> None:
    """The exit status of the program counts, whatever is left of it."""
    command = Command(shell("sleep 600 & exit 3"), exit_grace=0.2)
    assert "exit status 3" in one(run_command(command))[1]


def test_stdout_that_is_closed_early() -> None:
    """A program that closes stdout without an answer may go on, and fails as its exit status says."""
    assert "exit status 3" in one(run_command(Command(shell("exec >&-; sleep 0.5; exit 3"), exit_grace=0.1)))[1]
    assert "without an answer" in one(run_command(Command(shell("exec >&-; sleep 0.5"), exit_grace=0.1)))[1]


@each_backend
def test_silence(backend: str) -> None:
    """A program that writes nothing for `idle_timeout` is killed, and the step fails; it may be tried again."""
    command = Command(shell("echo begun >&2; exec sleep 600"), idle_timeout=0.4)
    run = run_command(command, backend=backend, retry=Retry(2, wait=0))
    status, output = one(run)
    assert status == "raised"
    assert "sh was killed with all that it had started: it had written nothing for 0.4 s; stderr: begun" in output
    assert len(run.records[0].attempts) == 2


def test_a_program_that_is_not_silent() -> None:
    """Output on either stream counts; the time does not run after the end of the program."""
    source = "for i in 1 2 3 4 5; do sleep 0.2; echo $i >&2; done; echo done"
    assert one(run_command(Command(shell(source), idle_timeout=1))) == ("succeeded", "done")


def test_programs_stop_with_their_caller(launch: Launcher) -> None:
    """Ctrl-Z stops programs of steps on threads, too, and `fg` lets them go on."""
    source = "while :; do date +%N > tick.part; mv tick.part tick; sleep 0.02; done"
    script = launch.script(
        f"""
        from fanout_sync import AgentStepSpec, Command, CommandExecutor
        Runner(CommandExecutor({{"a": Command(["sh", "-c", {source!r}])}})).run([AgentStepSpec("t", "a", "", "")])
        """
    )
    tick = launch.folder / "tick"
    await_condition(tick.exists)
    script.process.send_signal(signal.SIGSTOP)

    def is_still() -> bool:
        before = tick.read_text()
        time.sleep(0.3)
        return tick.read_text() == before

    assert eventually(is_still)
    script.process.send_signal(signal.SIGCONT)
    assert eventually(lambda: not is_still())
    script.process.kill()
    script.end()


def test_a_forked_child_holds_no_pipe(tmp_path: Path) -> None:
    """A child that the caller forks meanwhile does not keep the standard input of a program open."""
    command = Command(shell("touch begun; while [ ! -e go ]; do sleep 0.01; done; cat"), cwd=tmp_path)
    prompt = "x" * 300_000
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(run_command, command, spec_for(prompt))
        assert eventually((tmp_path / "begun").exists)
        child = os.fork()
        if child == 0:
            signal.pause()
        (tmp_path / "go").touch()
        try:
            assert one(run.result(HANG_BOUND_S)) == ("succeeded", prompt)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
