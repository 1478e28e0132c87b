"""What an executor raises about a program: errors that `retry` covers."""

from __future__ import annotations

import subprocess


class ProgramFailed(subprocess.CalledProcessError):
    """A program has ended without an answer.

    Args:
        message: What has happened.
        returncode: Its exit status; negative if a signal has ended it.
        cmd: The program, without its arguments, which may hold the prompt.
        output: The end of its stdout.
        stderr: The end of its stderr.
    """

    def __init__(self, message: str, returncode: int, cmd: str, output: str = "", stderr: str = "") -> None:
        super().__init__(returncode, cmd, output, stderr)
        self.args = (message, returncode, cmd, output, stderr)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ProgramIdle(subprocess.TimeoutExpired):
    """A program was killed because it had written nothing for `idle_timeout` seconds.

    Args:
        cmd: The program, without its arguments.
        timeout: The seconds.
        output: The end of its stdout.
        stderr: The end of its stderr.
    """

    def __str__(self) -> str:
        return f"{self.cmd} was killed with all that it had started: it had written nothing for {self.timeout:g} s"
