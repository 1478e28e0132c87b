"""Host programs: how tests start them, what they must report, and that nothing of them is left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from bounds import HANG_BOUND_S
from processes import eventually
from scripts import SEARCHED, TOKEN, processes_with

from fanout_sync.testing import Ledger

AGENTS = Path(__file__).with_name("fan_out.py").read_text(encoding="utf-8")
"""Defines the agents, `fan_out(backend)` and `fan_out_for_ever(backend)`."""

WSGI = """
def application(environ, start_response):
    function, *arguments = environ["PATH_INFO"].strip("/").split("/")
    report = {"fan_out": fan_out, "fan_out_for_ever": fan_out_for_ever}[function](*arguments)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(report).encode()]
"""
"""A web application: a request for `/fan_out/thread` calls `fan_out("thread")`."""

STEPS = {
    "thread": ["answer", "refuse", "answer", "overrun", "answer"],
    "process": ["answer", "refuse", "answer", "die", "overrun", "answer"],
}
"""The agents of the steps of `fan_out`."""

EXPECTED = {
    "answer": "succeeded answer {}",
    "refuse": "raised ValueError: refused {}",
    "overrun": "timed_out timed out after 1 s.*",
    # gevent collects the exit codes of all child processes.
    "die": "crashed .* (was killed by SIGKILL|died; its exit code was collected by other code of this program).*",
}
"""What becomes of the step of each agent: patterns of status and output, with the number of the step."""

PYTHON = sys.executable


@define
class Host:
    """A running host program.

    Attributes:
        folder: Its working directory, where it writes its report.
        process: The program.
        token: In the environment of the program and of all that it starts.
    """

    folder: Path
    process: subprocess.Popen[bytes]
    token: str

    @property
    def log(self) -> str:
        """What it has written to its standard output and standard error."""
        return (self.folder / "host.log").read_text(encoding="utf-8", errors="replace")

    def report(self, name: str = "report") -> dict[str, Any]:
        """Wait for the report of this name."""
        path = self.folder / f"{name}.json"
        assert eventually(lambda: path.exists() or self.process.poll() is not None), f"no report comes: {self.log}"
        assert path.exists(), f"it has ended with {self.process.returncode} and not reported: {self.log}"
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report

    def steps_begun(self, name: str = "report") -> list[str]:
        """Return the ids of the steps that have begun for the report of this name, each as often as it did."""
        return sorted(Ledger(self.folder / f"{name}.begun").counts().elements())

    def await_endless_steps(self) -> None:
        """Wait until both steps of `fan_out_for_ever` have begun."""
        assert eventually(lambda: self.steps_begun("endless") == ["t0", "t1"]), f"no step begins: {self.log}"

    def wait(self) -> int:
        """Wait until the program has ended by itself; return its exit code."""
        try:
            return self.process.wait(HANG_BOUND_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end: {self.log}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Have the program end, unless it has, and wait for it."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.wait()

    def assert_nothing_left(self) -> None:
        """Check that every process that the program started has ended."""
        eventually(lambda: not processes_with(self.token))
        assert [command_of(pid) for pid in processes_with(self.token)] == []


def write_program(folder: Path, tail: str, name: str = "app.py") -> Path:
    """Write a module that defines the agents, and then does what `tail` says."""
    path = folder / name
    path.write_text(f"{AGENTS}\n\n{textwrap.dedent(tail)}", encoding="utf-8")
    return path


@contextlib.contextmanager
def hosted(folder: Path, *command: object, typed: str = "", **environment: str) -> Iterator[Host]:
    """Start a host program; afterwards it has ended, as it does on SIGTERM, and nothing of it is left.

    Args:
        folder: Its working directory.
        *command: The program and its arguments.
        typed: Its standard input.
        **environment: What its environment has besides that of the tests.
    """
    (folder / "typed").write_text(typed, encoding="utf-8")
    host = _start(folder, [str(word) for word in command], environment)
    try:
        yield host
        host.end()
        host.assert_nothing_left()
    finally:
        kill_all_with(host.token)
        host.process.wait(HANG_BOUND_S)


def kill_all_with(token: str) -> None:
    """Kill every process in whose environment `token` is, and those that they start meanwhile."""
    while pids := processes_with(token):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _start(folder: Path, command: list[str], environment: dict[str, str]) -> Host:
    token = uuid.uuid4().hex
    ours = {"PYTHONPATH": os.pathsep.join(SEARCHED), TOKEN: token, "FANOUT_SYNC_HOST_FOLDER": str(folder)}
    with (folder / "typed").open("rb") as typed, (folder / "host.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=typed,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ours, **environment},
            start_new_session=True,
        )
    return Host(folder, process, token)


def ask(host: Host, path: str) -> None:
    """Send a request to the host's socket, when that is there, and wait for the answer or the end of the connection."""
    address = host.folder / "socket"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(HANG_BOUND_S)
        assert eventually(lambda: _connects(connection, address) or host.process.poll() is not None), host.log
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            while connection.recv(65536):
                pass


def _connects(connection: socket.socket, address: Path) -> bool:
    try:
        connection.connect(str(address))
    except (FileNotFoundError, ConnectionRefusedError):  # the server does not listen yet
        return False
    return True


def assert_fanned_out(host: Host, backend: str, name: str = "report") -> None:
    """Check that the steps ran as they do in a script, or were refused before any began; then the test is skipped."""
    report = host.report(name)
    assert "error" not in report, report["error"]
    if "refused" in report:
        assert backend == "process", report
        assert host.steps_begun(name) == []
        pytest.skip(f"refused: {report['refused']}")
    lines = [" ".join(step) for step in report["steps"]]
    expected = [f"t{n} {EXPECTED[agent].format(n)}" for n, agent in enumerate(STEPS[backend])]
    assert all(map(re.fullmatch, expected, lines)), f"{lines} came, {expected} was expected: {host.log}"
    assert len(lines) == len(expected)
    assert host.steps_begun(name) == [line.split()[0] for line in lines]


def command_of(pid: int) -> str:
    """Return the command line of a process, for messages."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
    except OSError:
        return f"process {pid}"
