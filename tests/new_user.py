"""Do the job of `new_user_program.py` against a server with faults: undisturbed, with Ctrl-C, and with `kill -9`.

Prints what came of it; exits with status 1 if an outcome is missing, or if something is paid twice that need not be.
Run directly: `python tests/new_user.py --help`. `test_new_user.py` runs it with fewer prompts.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from attrs import field, frozen
from bounds import HANG_BOUND_S
from chat_server import ChatServer, answer_to, chat_server
from command_line import ENVIRONMENT

from fanout_sync import SqliteJournal, StepOutcome

PROGRAM = Path(__file__).parent / "new_user_program.py"
TEXT = PROGRAM.read_text(encoding="utf-8")
MAX_CONCURRENCY = int(re.findall(r"max_concurrency=(\d+)", TEXT)[0])
MOST_LINES = 25
FEWEST_PROMPTS = 3 * MAX_CONCURRENCY
"""With fewer, there would be nothing left to start when the program is stopped in the middle."""

ENDS = {"undisturbed": None, "Ctrl-C, then resumed": signal.SIGINT, "kill -9, then resumed": signal.SIGKILL}


@frozen
class Check:
    """Something that has to hold.

    Attributes:
        told: What was found.
        holds: Whether that is as it should be.
    """

    told: str
    holds: bool

    def __str__(self) -> str:
        return f"  {self.told}: {'holds' if self.holds else 'MISSED'}"


@frozen
class Stop:
    """How the program was stopped.

    Attributes:
        seconds: How long it took to end.
        status: Its exit status: minus the signal's number.
        error: What it printed on standard error.
        journalled: The prompts whose answers are in the journal.
        asked: How often each prompt had been asked by then.
        paid: How many answers had been paid by then.
    """

    seconds: float
    status: int
    error: str
    journalled: frozenset[str]
    asked: dict[str, int]
    paid: int


@frozen
class Job:
    """A folder in which the program runs, and the server that it asks."""

    server: ChatServer
    prompts: list[str]
    folder: Path = field(converter=Path)

    def stop_in_the_middle(self, number: signal.Signals) -> Stop:
        """Start the program, and send it a signal when half of the prompts are paid."""
        with self._program() as program:
            self.server.until(lambda: self._is_half_paid() or program.poll() is not None, self._bound_s)
            sent = time.monotonic()
            program.send_signal(number)
            _, error = program.communicate(timeout=HANG_BOUND_S)
            seconds = time.monotonic() - sent
        self.server.until_idle()
        paid = self.server.paid.total()
        return Stop(seconds, program.returncode, error, self._journalled(), dict(self.server.asked), paid)

    def finish(self) -> list[StepOutcome]:
        """Run the program to its end and return the outcomes that it has written.

        Raises:
            RuntimeError: The program failed.
        """
        with self._program() as program:
            _, error = program.communicate(timeout=self._bound_s)
        if program.returncode != 0:
            raise RuntimeError(error)
        lines = (self.folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        return [StepOutcome.from_json(line) for line in lines]

    @property
    def _bound_s(self) -> float:
        """Far more than the program takes."""
        return HANG_BOUND_S + len(self.prompts) / 10

    def _is_half_paid(self) -> bool:
        return self.server.paid.total() >= len(self.prompts) // 2

    def _journalled(self) -> frozenset[str]:
        records = SqliteJournal(self.folder / "answers.db").records("default")
        return frozenset(record.spec.prompt for record in records if record.spec and record.outcome.success)

    @contextmanager
    def _program(self) -> Iterator[subprocess.Popen[str]]:
        settings = {"OPENAI_API_KEY": "x", "OPENAI_BASE_URL": self.server.url, "NO_PROXY": "127.0.0.1"}
        with subprocess.Popen(
            [sys.executable, PROGRAM],
            cwd=self.folder,
            env={**ENVIRONMENT, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as program:
            try:
                yield program
            finally:
                program.kill()


def main() -> int:
    """Do the job in three ways, print what came of it, and return the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=400, metavar="N", help=f"at least {FEWEST_PROMPTS}; 400")
    parser.add_argument("--seed", type=int, default=1, help="decides which prompts have faults; 1")
    options = parser.parse_args()
    if options.prompts < FEWEST_PROMPTS:
        parser.error(f"--prompts must be at least {FEWEST_PROMPTS}")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts a command in the background with Ctrl-C ignored, and the programs would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    checks = [_check_program()]
    print("the user's program", checks[0], sep="\n", flush=True)
    # At once, because most of the time is spent in waiting.
    with ThreadPoolExecutor(len(ENDS)) as pool:
        for name, found in zip(ENDS, pool.map(partial(_do_job, options), ENDS.values()), strict=True):
            checks += found
            print(f"{options.prompts} prompts, {name}", *found, sep="\n", flush=True)
    return 0 if all(check.holds for check in checks) else 1


def _check_program() -> Check:
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return Check(f"{len(lines)} lines of code (at most {MOST_LINES})", len(lines) <= MOST_LINES)


def _do_job(options: argparse.Namespace, end: signal.Signals | None) -> list[Check]:
    prompts = [f"question {number}" for number in range(options.prompts)]
    with tempfile.TemporaryDirectory() as folder, chat_server(prompts, options.seed) as server:
        job = Job(server, prompts, folder)
        (job.folder / "prompts.txt").write_text("\n".join(prompts), encoding="utf-8")
        stop = None if end is None else job.stop_in_the_middle(end)
        outcomes = job.finish()
        server.until_idle()
        came_up = server.planned - server.faults_left
        return [
            *_check_outcomes(prompts, outcomes),
            Check(f"{came_up} of the server's {server.planned} faults came up", came_up == server.planned),
            *([_check_paid_once(server)] if stop is None or end is None else _check_stop(server, stop, end)),
        ]


def _check_outcomes(prompts: list[str], outcomes: list[StepOutcome]) -> Iterator[Check]:
    answers = [outcome.output for outcome in outcomes if outcome.success]
    is_right = answers == [answer_to(prompt) for prompt in prompts]
    yield Check(f"{len(answers)} of {len(prompts)} prompts answered, in order", is_right)


def _check_paid_once(server: ChatServer) -> Check:
    paid = server.paid.total()
    return Check(f"{paid} answers paid, {paid - len(server.paid)} of them twice", paid == len(server.paid))


def _check_stop(server: ChatServer, stop: Stop, number: signal.Signals) -> Iterator[Check]:
    status = f"stopped by {number.name} after {stop.paid} answers were paid, within {stop.seconds:.1f} s"
    yield Check(status, stop.status == -number)
    if number == signal.SIGINT:
        told = re.search(r"interrupted: (\d+) of ", stop.error)
        done = int(told[1]) if told else -1
        is_kept = done == len(stop.journalled)
        yield Check(f"{done} steps done, says FanoutInterrupted, {len(stop.journalled)} journalled", is_kept)
    asked_again = [prompt for prompt in stop.journalled if server.asked[prompt] > stop.asked[prompt]]
    is_none_asked = bool(stop.journalled) and not asked_again
    yield Check(f"{len(stop.journalled)} journalled, {len(asked_again)} of them asked again", is_none_asked)
    twice = {prompt for prompt, times in server.paid.items() if times > 1}
    again = server.paid.total() - len(server.paid)
    is_bounded = again <= MAX_CONCURRENCY and not twice & stop.journalled
    told_paid = (
        f"{server.paid.total()} answers paid, {again} of them twice (at most {MAX_CONCURRENCY}, none journalled)"
    )
    yield Check(told_paid, is_bounded)


if __name__ == "__main__":
    sys.exit(main())
