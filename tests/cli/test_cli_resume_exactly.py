"""The command that resumes a run does what the run did, however the shell has led its input and its output."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, LIMIT_S, Folder, outcomes_in

AGENTS = """
from pathlib import Path

def once(spec):
    # Fails the first time.
    mark = Path(__file__).with_name("tried " + spec.task_id)
    if spec.prompt == "bad" and not mark.exists():
        mark.touch()
        raise ValueError("not yet")
    return "done"

agents = {"once": once}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "agents.py").write_text(AGENTS)
    folder = Folder(tmp_path)
    folder.steps(("once", "a"), ("once", "bad"), name="s.jsonl")
    return folder


def bash(folder: Folder, script: str | bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script in which `$RUN` is `run` with an executor and a journal."""
    fanout = shlex.join([sys.executable, "-m", "fanout_sync"])
    return subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=folder.path,
        env={**ENVIRONMENT, "RUN": f"{fanout} run --executor agents.py:agents --journal run.db", **variables},
        timeout=LIMIT_S,
        check=False,
    )


def last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 1, done.stderr.decode()
    return done.stderr.decode().splitlines()[-1].strip()


@pytest.mark.parametrize(
    ("script", "place", "said"),
    [
        ("$RUN /dev/stdin -o out < s.jsonl", "out", "outcomes"),
        ("$RUN - -o out < s.jsonl", "out", "outcomes"),
        ("$RUN /proc/self/fd/0 < s.jsonl > out", "out", "outcomes"),
        ("$RUN s.jsonl -o o1 --events - > 'the out'", "the out", "events"),
        ("$RUN s.jsonl --events /dev/stdout -o o1 >> out", "out", "events"),
        ("$RUN s.jsonl -o /dev/stdout > out", "out", "outcomes"),
        ("$RUN s.jsonl -o/dev/fd/1 > out", "out", "outcomes"),
        ("$RUN s.jsonl --events=/dev/fd/4 -o o1 4> out", "out", "events"),
        ("$RUN /dev/fd/3 -o out 3< s.jsonl", "out", "outcomes"),
        ("$RUN s.jsonl --output=/dev/fd/5 5> out", "out", "outcomes"),
        ("$RUN s.jsonl -o out --events - > /dev/null", "out", "outcomes"),
    ],
)
def test_the_command_reads_and_writes_the_same_files(script: str, place: str, said: str, folder: Folder) -> None:
    """Alone, without the redirections that the run had, it succeeds, and writes to the same places."""
    command = last_line(bash(folder, script))
    assert command.startswith("resume: "), command
    (folder / place).write_text("")
    again = bash(folder, command.removeprefix("resume: "))
    assert (again.returncode, again.stdout) == (0, b""), again.stderr.decode()
    assert "from the journal: 1" in again.stderr.decode()
    lines = (folder / place).read_text()
    if said == "outcomes":
        assert [outcome.success for outcome in outcomes_in(lines)] == [True, True]
    else:
        assert lines.count('"type":"run_end"') == 1


@pytest.mark.parametrize(
    ("script", "note", "before", "after"),
    [
        ("cat s.jsonl | $RUN - > 'o 2'", "with the same steps on the standard input", "cat s.jsonl | ", ""),
        ("cat s.jsonl | $RUN /dev/stdin -o o2", "with the same steps on the standard input", "cat s.jsonl | ", ""),
        ("$RUN <(cat s.jsonl) -o o2", "with the same steps in the place of /dev/fd/63", "", " 63< s.jsonl"),
        ("$RUN s.jsonl -o >(cat > o2)", "with an output in the place of /dev/fd/63", "", " 63> o2"),
    ],
)
def test_what_has_to_be_given_again_is_told(script: str, note: str, before: str, after: str, folder: Folder) -> None:
    """What came or went through a pipe is not there any more; the rest of the command is exact."""
    said, _, command = last_line(bash(folder, script)).partition(": ")
    assert said == f"resume, {note}"
    again = bash(folder, f"{before}{command}{after}")
    assert (again.returncode, again.stdout) == (0, b""), again.stderr.decode()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8", "cp1252"])
def test_a_name_that_the_standard_error_encodes_otherwise(encoding: str, folder: Folder) -> None:
    """The bytes of the name are those of the file, whatever encoding the standard error has."""
    run = "$RUN s.jsonl -o 'é★.jsonl' --workflow 'é'"
    first = bash(folder, run.encode(), PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    command = first.stderr.splitlines()[-1].strip().removeprefix(b"resume: ")
    again = bash(folder, command, PYTHONUTF8="0")
    assert again.returncode == 0, again.stderr
    assert b"from the journal: 1" in again.stderr
    assert sorted(path.name for path in folder.path.glob("*★*")) == ["é★.jsonl"]


@pytest.mark.parametrize("mode", [0o644, 0o755])
@pytest.mark.parametrize(
    "start", ["cd bin; $PYTHON fanout-sync", "cd bin; $PYTHON ./fanout-sync", "$PYTHON -c '{code}'"]
)
def test_a_program_that_is_not_on_the_path(start: str, mode: int, folder: Folder) -> None:
    """It is named so that a shell finds it, and with the interpreter if it cannot be started by itself."""
    code = "from fanout_sync.cli import main; main()"
    program = folder / "bin" / "fanout-sync"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(mode)
    steps = folder / "s.jsonl"
    options = f"--executor {folder / 'agents.py'}:agents --journal {folder / 'run.db'} -o {folder / 'out'}"
    script = f"{start.replace('{code}', code)} run {steps} {options}"
    command = last_line(bash(folder, script, PYTHON=sys.executable)).removeprefix("resume: ")
    where = "cd bin; " if start.startswith("cd") else ""
    again = bash(folder, f"{where}{command}")
    assert again.returncode == 0, again.stderr.decode()


@pytest.mark.parametrize("options", [[], ["--journal", "run.db"]])
def test_a_reader_that_leaves_is_told_how_to_resume(options: list[str], folder: Folder) -> None:
    """If a reader such as `head` needs no more, a run with a journal says how to go on; one without says nothing."""
    folder.steps(*[("once", "x" * 1000)] * 2000, name="s.jsonl")
    journal = shlex.join(options)
    fanout = shlex.join([sys.executable, "-m", "fanout_sync"])
    script = f"set -o pipefail; {fanout} run s.jsonl --no-progress --executor agents.py:agents {journal} | head -2"
    done = bash(folder, script)
    assert done.returncode == 1
    assert done.stdout.count(b"\n") == 2
    said = done.stderr.decode().splitlines()
    assert len(said) == len(options) // 2
    if options:
        again = bash(folder, said[-1].strip().removeprefix("resume: "))
        assert again.returncode == 0
        assert b"from the journal: " in again.stderr
        assert again.stdout.count(b"\n") == 2000
