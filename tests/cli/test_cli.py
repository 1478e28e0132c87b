"""The command line, run as users run it: as a program of its own, on real files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, LIMIT_S, Folder, NamedPipe, command, outcomes_in, outputs_in, summary_in

from fanout_sync import AgentStepSpec, Event

BACKENDS = ["thread", "process"]

AGENTS = """
import os
import subprocess
import sys
import threading
from pathlib import Path

from fanout_sync import AgentExecutor, FunctionExecutor, StepOutcome, TextDelta

HERE = Path(__file__).parent

def leave_mark(spec):
    with (HERE / "marks").open("a") as marks:
        marks.write(spec.task_id + "\\n")
    return "done"

def shout(spec):
    return spec.prompt.upper()

def parse(spec):
    return float(spec.prompt)

def fail(spec):
    raise ValueError(spec.prompt)

def die(spec):
    os._exit(int(spec.prompt))

def tell_pid(spec):
    return str(os.getpid())

def measure(spec):
    return str(len(spec.prompt))

def repeat(spec):
    return "x" * int(spec.prompt)

def wait(spec):
    with (HERE / spec.prompt.split()[-1]).open() as gate:
        return gate.readline()

def begin_and_wait(spec):
    begun, gate = spec.prompt.split()
    (HERE / begun).write_text("begun\\n")
    return wait(spec)

def open_gate(spec):
    for name in spec.prompt.split():
        with (HERE / name).open("w") as gate:
            gate.write("opened by a step\\n")
    return "done"

def say(spec, event_tx):
    event_tx.send(TextDelta(spec.task_id, spec.prompt))
    return "done"

def chatter(spec):
    print(f"printed {spec.prompt}\\n", end="", flush=True)
    print(f"complained {spec.prompt}\\n", end="", file=sys.stderr, flush=True)
    subprocess.run(["echo", "printed by a child"], check=True)
    return "done"

def read_stdin(spec):
    return repr(subprocess.run(["cat"], capture_output=True, text=True, check=True).stdout)

def add_line(spec):
    with (HERE / "steps.jsonl").open("a") as steps:
        steps.write("this is no step\\n")
    return "done"

def cut_steps(spec):
    lines = (HERE / "steps.jsonl").read_text().splitlines(keepends=True)
    os.truncate(HERE / "steps.jsonl", sum(map(len, lines[:int(spec.prompt)])))
    return "done"

functions = {name: value for name, value in list(globals().items()) if callable(value) and value.__module__ == __name__}
executor = FunctionExecutor(functions, concurrency=3)

class Unpicklable(AgentExecutor):
    def __init__(self):
        self.client = {"lock": threading.Lock()}

    def execute_step(self, spec, event_tx=None):
        return StepOutcome.completed(spec, leave_mark(spec))

class Broken(Unpicklable):
    def concurrency_hint(self):
        return 1 // 0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "agents.py").write_text(AGENTS, encoding="utf-8")
    return Folder(tmp_path)


@pytest.fixture
def gate(folder: Folder) -> Iterator[NamedPipe]:
    gate = NamedPipe(folder / "gate")
    yield gate
    gate.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Outcomes and exit status ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_outcomes_come_in_the_order_of_the_steps(backend: str, folder: Folder) -> None:
    """Each step has one line on the standard output, in UTF-8 as it is; all succeeded, so the status is 0."""
    folder.steps(("shout", "größe"), ("parse", "2.5"), ("shout", "日本 😀"))
    done = folder.run("--backend", backend)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        '{"task_id":"t0","session_id":"task-run-t0","agent":"shout","output":"GRÖSSE","success":true}',
        '{"task_id":"t1","session_id":"task-run-t1","agent":"parse","output":"2.5","success":true,"structured":2.5}',
        '{"task_id":"t2","session_id":"task-run-t2","agent":"shout","output":"日本 😀","success":true}',
    ]
    assert re.fullmatch(r"3 steps in \d+\.\d s: 3 succeeded\n  outcomes: standard output\n", summary_in(done.stderr))


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_is_kept_when_a_later_step_ends_first(backend: str, folder: Folder, gate: NamedPipe) -> None:
    """The first step waits for the third, which needs three at once, as the executor hints."""
    folder.steps(("wait", "gate"), ("shout", "b"), ("open_gate", "gate"))
    done = folder.run("--backend", backend)
    assert outputs_in(done.stdout) == ["opened by a step\n", "B", "done"], done.stderr


def test_jobs_says_how_many_run_at_once(folder: Folder, gate: NamedPipe) -> None:
    """Of an executor that hints three, four steps run at once: three of them wait for the fourth."""
    gates = [NamedPipe(folder / "second"), NamedPipe(folder / "third")]
    folder.steps(("wait", "gate"), ("wait", "second"), ("wait", "third"), ("open_gate", "gate second third"))
    done = folder.run("--jobs", "4")
    for each in gates:
        each.close()
    assert outputs_in(done.stdout) == ["opened by a step\n"] * 3 + ["done"], done.stderr


@pytest.mark.parametrize("destination", ["stdout", "file"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_outcome_is_written_as_soon_as_order_allows(
    backend: str, destination: str, folder: Folder, gate: NamedPipe
) -> None:
    """The second step ends only after the outcome of the first has been read."""
    folder.steps(("shout", "first"), ("wait", "gate"))
    os.mkfifo(folder / "out")
    options = [] if destination == "stdout" else ["-o", "out"]
    with folder.running("--backend", backend, *options) as process:
        assert process.stdout is not None
        lines = process.stdout if destination == "stdout" else (folder / "out").open(encoding="utf-8")
        with lines:
            assert outputs_in(lines.readline()) == ["FIRST"]
            gate.open()
            assert outputs_in(lines.readline()) == ["opened by the test\n"]
            assert process.wait(LIMIT_S) == 0


def test_failed_steps_are_summed_up(folder: Folder) -> None:
    """The summary counts, and gives each failed step with the first line of its reason; the status is 1."""
    folder.steps(("shout", "a"), ("parse", "many"), ("fail", "one\ntwo"), ("unheard", "of"))
    done = folder.run("-o", "out.jsonl")
    assert done.returncode == 1
    assert done.stdout == ""
    head, *failures, _ = summary_in(done.stderr).splitlines()
    assert re.fullmatch(r"4 steps in \d+\.\d s: 1 succeeded, 3 failed", head)
    assert failures[0] == "  t1 (parse) raised: ValueError: could not convert string to float: 'many'"
    assert failures[1] == "  t2 (fail) raised: ValueError: one …"
    assert failures[2].startswith("  t3 (unheard) failed: no agent 'unheard' is registered; known agents: ")
    assert [outcome.success for outcome in outcomes_in((folder / "out.jsonl").read_text())] == [True, *[False] * 3]


def test_summary_has_one_line_for_each_reason(folder: Folder) -> None:
    """Failed steps with the same reason are counted; it is cut to a line that a terminal can show."""
    folder.steps(*[("fail", "\x1b[31mred " + "x" * 1000)] * 25)
    done = folder.run()
    assert done.returncode == 1
    head, failures, where = summary_in(done.stderr).splitlines()
    assert head.endswith("s: 25 failed")
    assert failures.startswith(r"  25 raised: ValueError: \x1b[31mred xxx")
    assert failures.endswith("x … (t0, t1, t2 and 22 more)")
    assert len(failures) < 280
    assert where == "  outcomes: standard output"
    assert len(outcomes_in(done.stdout)[24].output) > 1000


def test_cancelled_steps_are_counted_for_themselves(folder: Folder) -> None:
    """They are one line, and no failures."""
    folder.steps(("fail", "bad"), *[("shout", "a")] * 9)
    done = folder.run("--max-failures", "1", "--jobs", "1")
    assert done.returncode == 1
    head, *lines = summary_in(done.stderr).splitlines()
    assert re.fullmatch(r"10 steps in \d+\.\d s: 1 failed, 9 cancelled", head)
    assert lines[0] == "  t0 (fail) raised: ValueError: bad"
    assert lines[1].startswith("  9 cancelled: no more steps are started: 1 step had failed")


@pytest.mark.parametrize(
    "option",
    ["--max-concurrency", "--workers", "--processes", "--threads", "--concurrency", "--max-workers", "--max_workers"],
)
def test_jobs_as_others_call_them(option: str, folder: Folder) -> None:
    """What other programs call --jobs gets a hint."""
    folder.steps(("shout", "a"))
    done = folder.run(option, "3")
    assert done.returncode == 2
    assert "--jobs" in done.stderr.splitlines()[-1]
    assert option in done.stderr.splitlines()[-1]
    done = folder.run("--no-such-option", "3")
    assert "--jobs" not in done.stderr


def test_dead_worker_costs_one_step(folder: Folder) -> None:
    """A step that ends its worker process fails, and the summary names the exit code; the others succeed."""
    folder.steps(("shout", "a"), ("die", "7"), ("shout", "c"))
    done = folder.run("--backend", "process")
    assert done.returncode == 1
    assert [outcome.success for outcome in outcomes_in(done.stdout)] == [True, False, True]
    assert re.search(r"^  t1 \(die\) crashed: worker process \d+ exited with code 7$", done.stderr, re.MULTILINE)


def test_no_steps_at_all(folder: Folder) -> None:
    """An empty file is a run of no steps, which all succeeded."""
    folder.steps()
    done = folder.run("-o", "out.jsonl", "--events", "events.jsonl")
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"0 steps in \d+\.\d s: nothing to do\n", summary_in(done.stderr))
    assert (folder / "out.jsonl").read_text() == ""
    assert len((folder / "events.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_steps_print_stays_out_of_the_outcomes(backend: str, folder: Folder) -> None:
    """The standard output is for outcomes; what a step, or a program that it starts, prints goes to standard error."""
    folder.steps(("chatter", "one"), ("chatter", "two"))
    done = folder.run("--backend", backend)
    assert done.returncode == 0, done.stderr
    assert outputs_in(done.stdout) == ["done", "done"]
    said = Counter(summary_in(done.stderr).splitlines()[:-2])
    assert said == {
        **{f"{verb} {prompt}": 1 for verb in ("printed", "complained") for prompt in ("one", "two")},
        "printed by a child": 2,
    }


def test_what_steps_print_is_theirs_where_outcomes_go_to_a_file(folder: Folder) -> None:
    """With -o the standard output is left to the steps."""
    folder.steps(("chatter", "one"))
    done = folder.run("-o", "out.jsonl")
    assert done.stdout == "printed one\nprinted by a child\n"
    assert outputs_in((folder / "out.jsonl").read_text()) == ["done"]


# Where steps come from ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["$FANOUT {} - < steps.jsonl", "cat steps.jsonl | $FANOUT {} -", "$FANOUT {} pipe"])
@pytest.mark.parametrize("action", ["run --executor agents.py:executor", "validate"])
def test_steps_come_from_a_pipe(action: str, way: str, folder: Folder) -> None:
    """Steps may come from the standard input, a file or a pipe, and from a pipe that has a name."""
    folder.steps(("shout", "a"), ("shout", "b"))
    os.mkfifo(folder / "pipe")
    fill = "cat steps.jsonl > pipe & " if way.endswith("pipe") else ""
    done = folder.shell(fill + way.format(action))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 steps are valid\n" if action == "validate" else outputs_in(done.stdout) == ["A", "B"]


def test_steps_from_a_pipe_may_be_many(folder: Folder) -> None:
    """What comes from a pipe is kept on disk while it is checked, if it is too much to be held."""
    specs = [AgentStepSpec(f"t{n}", "measure", "", "x" * 9_000_000) for n in range(2)]
    done = folder.call(
        *["run", "-", "--executor", "agents.py:executor"], input="".join(spec.to_json() + "\n" for spec in specs)
    )
    assert outputs_in(done.stdout) == ["9000000", "9000000"], done.stderr


def test_steps_cannot_eat_the_steps(folder: Folder) -> None:
    """A program that a step starts finds the standard input at its end, and not the steps that are still to run."""
    folder.steps(("read_stdin", ""), *[("measure", "x" * 100_000)] * 5, ("read_stdin", ""))
    done = folder.shell("$FANOUT run - --executor agents.py:executor -j 1 < steps.jsonl")
    assert outputs_in(done.stdout) == ["''", *["100000"] * 5, "''"], done.stderr


def test_blank_lines_and_line_ends_of_windows(folder: Folder) -> None:
    """Blank lines are skipped, here as in `read_specs`."""
    spec = AgentStepSpec("a", "shout", "", "x").to_json()
    (folder / "steps.jsonl").write_bytes(f"\r\n{spec}\r\n\n  \n{spec}".encode())
    assert outputs_in(folder.run().stdout) == ["X", "X"]


def test_line_that_is_added_during_the_run(folder: Folder) -> None:
    """What was not checked is not run."""
    folder.steps(("add_line", ""), ("shout", "b"))
    done = folder.run("-j", "1")
    assert outputs_in(done.stdout) == ["done", "B"]
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("left", [0, 3])
def test_steps_that_are_deleted_during_the_run(left: int, folder: Folder) -> None:
    """If checked steps are missing when the run reads them, an error says so; outcomes of done steps are written."""
    folder.steps(("cut_steps", str(left)), *[("measure", "x" * 100_000)] * 5)
    done = folder.run("-j", "1")
    assert done.returncode == 1
    outputs = outputs_in(done.stdout)
    assert outputs == ["done", "100000", "100000"][: len(outputs)]
    assert len(outputs) == max(left, 1)
    shorter = "EOFError: steps.jsonl had 6 steps when they were checked, and has 3 now"
    reason = shorter if left else "WireError: steps.jsonl:2: "
    assert done.stderr.startswith(f"Error: the input raised after {len(outputs)} specs: ")
    assert reason in done.stderr
    assert done.stderr.endswith(f"; {len(outputs)} of 6 outcomes were written\n")


# Where outcomes go ----------------------------------------------------------------------------------------------------


def test_output_replaces_what_was_there(folder: Folder) -> None:
    """Nothing of a longer earlier file is left."""
    (folder / "out.jsonl").write_text("old\n" * 1000)
    (folder / "events.jsonl").write_text("old\n" * 1000)
    folder.steps(("shout", "a"))
    assert folder.run("-o", "out.jsonl", "--events", "events.jsonl").returncode == 0
    assert outputs_in((folder / "out.jsonl").read_text()) == ["A"]
    assert "old" not in (folder / "events.jsonl").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ["--backend", "process"],
        ["--executor", "agents.py:nope"],
        ["--events", "nope/events.jsonl"],
        ["--events", "out.jsonl"],
    ],
)
@pytest.mark.parametrize("is_new", [False, True])
def test_refused_run_leaves_files_as_they_are(options: list[str], is_new: bool, folder: Folder) -> None:
    """The outcomes of an earlier run are still there, and no empty file has been created."""
    folder.steps(("leave_mark", ""))
    if not is_new:
        (folder / "out.jsonl").write_text("precious\n")
    done = folder.run("-o", "out.jsonl", *options, target="agents.py:Unpicklable")
    assert done.returncode == 2, done.stderr
    if is_new:
        assert not (folder / "out.jsonl").exists()
    else:
        assert (folder / "out.jsonl").read_text() == "precious\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_reader_that_leaves_ends_the_run_quietly(backend: str, folder: Folder, gate: NamedPipe) -> None:
    """When the reader of the outcomes leaves, the run ends without a message, and no worker is left."""
    folder.steps(("tell_pid", ""), ("wait", "gate"), *[("tell_pid", "")] * 50)
    with folder.running("--backend", backend, "-j", "2") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        (pid,) = outputs_in(process.stdout.readline())
        process.stdout.close()
        gate.open()
        assert process.stderr.read() == ""
        assert process.wait(LIMIT_S) == 1
    assert not is_alive(int(pid))


@pytest.mark.parametrize("backend", BACKENDS)
def test_piping_into_head(backend: str, folder: Folder) -> None:
    """`| head` gets its lines and no complaint."""
    folder.steps(*[("repeat", "10000")] * 100)
    done = folder.shell(f"$FANOUT run steps.jsonl --executor agents.py:executor --backend {backend} | head -n 2")
    assert outputs_in(done.stdout) == ["x" * 10000] * 2
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("destination", ["-o /dev/full", "> /dev/full"])
def test_full_disk_stops_the_run(destination: str, backend: str, folder: Folder) -> None:
    """When outcomes cannot be written, the run ends and says how many were."""
    folder.steps(*[("shout", "a")] * 3)
    done = folder.shell(f"$FANOUT run steps.jsonl --executor agents.py:executor --backend {backend} {destination}")
    name = "/dev/full" if destination.startswith("-o") else "<stdout>"
    assert done.returncode == 1
    assert done.stderr == f"Error: cannot write outcomes to {name}: No space left on device; 0 were written\n"


def test_disk_that_fills_up_leaves_whole_lines(folder: Folder) -> None:
    """Of the outcome that does not fit nothing is left, so that the file is still JSON Lines."""
    folder.steps(*[("repeat", "1000")] * 20)
    done = folder.shell(
        "ulimit -f 8; PYTHONDONTWRITEBYTECODE=1 $FANOUT run steps.jsonl --executor agents.py:executor -o out.jsonl"
    )
    assert done.returncode == 1
    outputs = outputs_in((folder / "out.jsonl").read_text())
    assert outputs == ["x" * 1000] * len(outputs)
    assert 0 < len(outputs) < 20
    assert done.stderr == f"Error: cannot write outcomes to out.jsonl: File too large; {len(outputs)} were written\n"


def test_slow_reader_of_a_pipe_that_does_not_block(folder: Folder, gate: NamedPipe) -> None:
    """A full pipe that another program made non-blocking is waited for."""
    # The waiting step comes first: on a slow machine the others may be done before the last one of a list begins.
    folder.steps(("begin_and_wait", "begun gate"), *[("repeat", "50000")] * 10)
    os.mkfifo(folder / "begun")
    gate.open()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = 0
    with suppress(BlockingIOError):
        while True:
            filled += os.write(writer, b"\n" * 1000)
    with subprocess.Popen(
        command("run", "steps.jsonl", "--executor", "agents.py:executor", "-j", "20"),
        cwd=folder.path,
        env=ENVIRONMENT,
        stdout=writer,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        guard = threading.Timer(LIMIT_S, process.kill)
        guard.start()
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as lines:
            assert (folder / "begun").read_text() == "begun\n"
            outputs = outputs_in(lines.read()[filled:])
        assert outputs == ["opened by the test\n"] + ["x" * 50000] * 10
        assert process.wait(LIMIT_S) == 0
        guard.cancel()


def test_closed_standard_output(folder: Folder) -> None:
    """Without a standard output outcomes need a file."""
    folder.steps(("leave_mark", ""))
    done = folder.shell("$FANOUT run steps.jsonl --executor agents.py:executor >&-")
    assert done.returncode == 2
    assert done.stderr == "Error: cannot write to the standard output, it is closed; name a file with -o\n"
    done = folder.shell("$FANOUT run steps.jsonl --executor agents.py:executor -o out.jsonl >&-")
    assert done.returncode == 0, done.stderr


# Events ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_events_tell_the_whole_run(backend: str, folder: Folder) -> None:
    """The events file has the run's start and end, one start and one end a step, and what steps say in between."""
    last = ("die", "7") if backend == "process" else ("fail", "7")
    folder.steps(("say", "größe"), ("fail", "x"), ("say", "two"), last)
    folder.run("--backend", backend, "--events", "events.jsonl")
    text = (folder / "events.jsonl").read_text(encoding="utf-8")
    events = [Event.from_json(line).to_dict() for line in text.splitlines()]
    assert (events[0]["type"], events[0]["total"]) == ("run_start", 4)
    assert events[-1]["type"] == "run_end"
    assert (events[-1]["succeeded"], events[-1]["failed"]) == (2, 2)
    for task_id, word in [("t0", "größe"), ("t1", None), ("t2", "two"), ("t3", None)]:
        own = [event for event in events if event.get("task_id") == task_id]
        said = [] if word is None else ["text_delta"]
        assert [event["type"] for event in own] == ["subagent_start", *said, "subagent_end"]
        assert own[-1]["success"] is (word is not None)
        if word is not None:
            assert own[1]["text"] == word


@pytest.mark.parametrize("backend", BACKENDS)
def test_events_are_written_live(backend: str, folder: Folder, gate: NamedPipe) -> None:
    """What a step says can be read before the last step is allowed to end."""
    folder.steps(("say", "hello"), ("wait", "gate"))
    with folder.running("--backend", backend, "-o", "out.jsonl", "--events", "-") as process:
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["type"] != "text_delta":
            pass
        gate.open()
        assert json.loads(process.stdout.readlines()[-1])["type"] == "run_end"
        assert process.wait(LIMIT_S) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_events_that_cannot_be_written_cost_no_step(folder: Folder) -> None:
    """The run goes on without them, then says so, and the status is 1."""
    folder.steps(("say", "a"), ("say", "b"))
    done = folder.run("--events", "/dev/full")
    assert outputs_in(done.stdout) == ["done", "done"]
    assert done.returncode == 1
    summary, where, error = summary_in(done.stderr).splitlines()
    assert where == "  outcomes: standard output"
    assert summary.endswith("2 succeeded")
    assert error == "Error: cannot write events to /dev/full: No space left on device; 0 were written"


def test_reader_of_events_that_leaves_ends_nothing(folder: Folder) -> None:
    """When `| head` on the events ends, the run goes on."""
    folder.steps(*[("say", "x" * 10_000)] * 50)
    done = folder.shell(
        "($FANOUT run steps.jsonl --executor agents.py:executor -o out.jsonl --events -; echo $? > status) | head -n 1"
    )
    assert json.loads(done.stdout)["type"] == "run_start"
    assert done.stderr.endswith("50 succeeded\n  outcomes: out.jsonl\n")
    assert (folder / "status").read_text() == "0\n"
    assert outputs_in((folder / "out.jsonl").read_text()) == ["done"] * 50


# What is refused ------------------------------------------------------------------------------------------------------

GOOD = '{"task_id":"a","agent":"leave_mark","description":"","prompt":""}'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope.jsonl"], "Error: cannot read nope.jsonl: No such file or directory\n"),
        (["."], "Error: cannot read .: Is a directory\n"),
        (["bad.jsonl"], "bad.jsonl:3: prompt: missing"),
        (["-j", "0"], "Invalid value for '-j' / '--jobs': 0 is not in the range x>=1."),
        (["--jobs", "many"], "Invalid value for '-j' / '--jobs': 'many' is not a valid integer"),
        (["--backend", "proces"], "Invalid value for '--backend': 'proces' is not one of 'thread', 'process'."),
        (["--job", "3", "--nope"], "No such option"),
        (["-o", "nope/out.jsonl"], "Error: cannot write nope/out.jsonl: No such file or directory\n"),
        (["-o", "."], "Error: cannot write .: Is a directory\n"),
        (
            ["-o", "steps.jsonl"],
            "Error: cannot use steps.jsonl for the outcomes: it is the file of the steps; give another one\n",
        ),
        (
            ["-o", "./link"],
            "Error: cannot use ./link for the outcomes: it is the file of the steps; give another one\n",
        ),
        (
            ["--events", "steps.jsonl"],
            "Error: cannot use steps.jsonl for the events: it is the file of the steps; give another one\n",
        ),
        (["--events", "-"], "Error: outcomes and events cannot both go to the standard output; name a file with -o\n"),
        (["--executor", "nope:x"], "Error: executor target 'nope:x': No module named 'nope'"),
        (["--executor", "agents"], "Error: executor target 'agents': expected package.module:name or path/file.py:n"),
        (["--executor", "agents:exec"], "agents.py has no 'exec' (did you mean 'executor'?)\n"),
        (["--executor", "agents:HERE"], "HERE is PosixPath PosixPath("),
        (["--executor", "raises.py:x"], "raises.py raised ValueError: boom ("),
        (["--executor", "raises.py:x"], "raises.py, line 2)\n"),
    ],
)
def test_bad_command_line_is_refused(arguments: list[str], said: str, folder: Folder) -> None:
    """What is wrong is named, nothing is run, and the status is 2."""
    (folder / "steps.jsonl").write_text(f"{GOOD}\n")
    (folder / "bad.jsonl").write_text(GOOD + "\n\n" + GOOD.replace("prompt", "promtp") + "\n" + GOOD)
    (folder / "raises.py").write_text("\nraise ValueError('boom')")
    (folder / "link").hardlink_to(folder / "steps.jsonl")
    steps = [] if arguments[0][-1] == "." or arguments[0].endswith(".jsonl") else ["steps.jsonl"]
    done = folder.call("run", "--executor", "agents.py:executor", *arguments, *steps)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert folder.nothing_ran()
    assert (folder / "steps.jsonl").read_text() == f"{GOOD}\n"


def test_missing_executor(folder: Folder) -> None:
    """There is no run without something that runs the steps."""
    folder.steps()
    done = folder.call("run", "steps.jsonl")
    assert done.returncode == 2
    assert "nothing to run the steps with: give --executor, --command or --preset" in done.stderr


@pytest.mark.parametrize("redirection", ["- < steps.jsonl -o steps.jsonl", "steps.jsonl >> steps.jsonl"])
def test_outcomes_are_not_added_to_the_steps(redirection: str, folder: Folder) -> None:
    """Steps and outcomes in one file are refused however they got there."""
    folder.steps(("leave_mark", ""))
    before = (folder / "steps.jsonl").read_text()
    done = folder.shell(f"$FANOUT run --executor agents.py:executor {redirection}")
    assert done.returncode == 2
    assert "for the outcomes: it is the file of the steps; give another one" in done.stderr
    assert (folder / "steps.jsonl").read_text() == before
    assert folder.nothing_ran()


def test_bad_line_of_the_standard_input(folder: Folder) -> None:
    """The last of many lines is checked before the first is run, from a pipe too."""
    done = folder.call("run", "-", "--executor", "agents.py:executor", input=f"{GOOD}\n" * 1000 + "[1]\n")
    assert done.returncode == 2
    assert done.stderr.startswith("<stdin>:1001: ")
    assert folder.nothing_ran()


def test_closed_standard_input(folder: Folder) -> None:
    """Without a standard input there is nothing to read from it."""
    done = folder.shell("$FANOUT validate - <&-")
    assert (done.returncode, done.stderr) == (2, "Error: cannot read <stdin>: it is closed\n")


def test_executor_that_does_not_pickle(folder: Folder) -> None:
    """The attribute at fault is named, and no step has run."""
    folder.steps(("leave_mark", ""))
    done = folder.run("--backend", "process", target="agents:Unpicklable")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: executor.client['lock'] cannot be sent to a worker process: ")
    assert "Traceback" not in done.stderr
    assert folder.nothing_ran()
    assert folder.run(target="agents:Unpicklable").returncode == 0


def test_unforeseen_error_is_not_hidden(folder: Folder) -> None:
    """An unexpected error, here a bug in the executor, shows its traceback."""
    folder.steps(("shout", "a"))
    done = folder.run(target="agents:Broken")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "ZeroDivisionError" in done.stderr


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "number"), [("thread", signal.SIGTERM), ("process", signal.SIGINT)])
def test_ctrl_c_ends_the_run(backend: str, number: signal.Signals, folder: Folder, gate: NamedPipe) -> None:
    """An interrupt ends the run without a traceback, says how far it came and what it cost, and leaves no worker."""
    folder.steps(("tell_pid", ""), ("begin_and_wait", "begun gate"), ("shout", "c"))
    os.mkfifo(folder / "begun")
    with folder.running("--backend", backend, "-j", "1", "--events", "events.jsonl") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        (pid,) = outputs_in(process.stdout.readline())
        assert (folder / "begun").read_text() == "begun\n"
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 130
        said = "Interrupted: 1 of 3 outcomes were written; cancelled: t1 and 1 more\n  outcomes: standard output\n"
        assert summary_in(process.stderr.read()) == said
    assert not is_alive(int(pid))
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    kinds = Counter(event["type"] for event in events)
    assert kinds["subagent_start"] == kinds["subagent_end"]
    assert events[-1]["type"] == "run_end"


def test_the_command_runs_in_any_thread(folder: Folder) -> None:
    """A program may call the command in a thread in which signal handlers cannot be set."""
    folder.steps(("shout", "a"), ("shout", "b"))
    program = (
        "import threading\n"
        "from fanout_sync.cli.group import main\n"
        "arguments = ['run', 'steps.jsonl', '--executor', 'agents.py:executor']\n"
        "thread = threading.Thread(target=main, args=(arguments,), kwargs={'standalone_mode': False})\n"
        "thread.start(); thread.join()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        cwd=folder.path,
        env=ENVIRONMENT,
        encoding="utf-8",
        timeout=LIMIT_S,
        check=False,
    )
    assert outputs_in(done.stdout) == ["A", "B"], done.stderr


# The other commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "said"), [(0, "0 steps are"), (1, "1 step is"), (3, "3 steps are")])
def test_validate_counts_the_steps(count: int, said: str, folder: Folder) -> None:
    """A file of steps is valid, and nothing of it is run."""
    folder.steps(*[("leave_mark", "")] * count)
    done = folder.call("validate", "steps.jsonl")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{said} valid\n", "")
    assert folder.nothing_ran()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (GOOD.replace('"prompt":""', '"prompt":3'), "steps.jsonl:2: prompt: expected a string, got "),
        (GOOD.replace("}", ',"max_steps":true}'), "steps.jsonl:2: max_steps: "),
        ("{", "steps.jsonl:2: "),
        (b"\xff", "steps.jsonl:2: "),
        (GOOD + GOOD, "steps.jsonl:2: "),
    ],
)
def test_validate_names_the_line_and_the_field(line: str | bytes, said: str, folder: Folder) -> None:
    """The message begins with file and line, as those of compilers do."""
    data = line.encode() if isinstance(line, str) else line
    (folder / "steps.jsonl").write_bytes(GOOD.encode() + b"\n" + data + b"\n" + b"nonsense\n")
    done = folder.call("validate", "steps.jsonl")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


def test_validate_names_a_missing_file(folder: Folder) -> None:
    """The message names the file, and the status is 2."""
    done = folder.call("validate", "nope.jsonl")
    assert (done.returncode, done.stderr) == (2, "Error: cannot read nope.jsonl: No such file or directory\n")


def test_version(folder: Folder) -> None:
    """`--version` tells what is installed."""
    assert folder.call("--version").stdout == f"fanout-sync, version {metadata.version('fanout_sync')}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["validate", "-h"]])
def test_help(arguments: list[str], folder: Folder) -> None:
    """Each command explains itself."""
    done = folder.call(*arguments)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")


def test_library_does_without_the_command_line(folder: Folder) -> None:
    """Importing the package does not import click."""
    code = "import sys, fanout_sync; sys.exit('click' in sys.modules or 'fanout_sync.cli.group' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder.path, env=ENVIRONMENT, timeout=LIMIT_S, check=False)
    assert done.returncode == 0
