"""Programs that gevent or eventlet has monkey-patched, so that their threads are greenlets."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from bounds import HANG_BOUND_S
from scripts import each_backend

each_library = pytest.mark.parametrize("library", ["gevent", "eventlet"])

PREAMBLE = """
import sys
library, backend = sys.argv[1:]
if library == "gevent":
    from gevent import monkey
    monkey.patch_all()
    from gevent import Timeout, sleep, spawn
    def wait_for(greenlets):
        return [greenlet.get() for greenlet in greenlets]
else:
    import eventlet
    eventlet.monkey_patch()
    from eventlet import Timeout, sleep, spawn
    def wait_for(greenlets):
        return [greenlet.wait() for greenlet in greenlets]

import os, time
from fanout_sync import *
from fanout_sync.testing import make_specs

def answer(spec):
    time.sleep(0.02)
    return spec.prompt

def hang(spec):
    time.sleep(3600)

def outputs(outcomes):
    return " ".join(outcome.output for outcome in outcomes)

def runner_of(function, **options):
    return Runner(FunctionExecutor({"tester": function}), **{"backend": backend, "max_concurrency": 2, **options})

turns = 0
def count_turns():
    global turns
    while True:
        turns += 1
        sleep(0.01)
spawn(count_turns)
"""


def said_by(folder: Path, library: str, backend: str, source: str) -> list[str]:
    """Return the lines that a program prints; it ends by itself and raises nothing."""
    command = [sys.executable, "-W", "ignore", "-c", PREAMBLE + textwrap.dedent(source), library, backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_BOUND_S, check=False, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@each_library
@each_backend
def test_async_agents(library: str, backend: str, tmp_path: Path) -> None:
    """They run in an event loop of their process, at the same time, and share what belongs to it."""
    source = """
    import asyncio

    class Sharing(FunctionExecutor):
        def setup(self):
            self.lock = asyncio.Lock()

        async def ask(self, spec):
            async with self.lock:
                await asyncio.to_thread(time.sleep, 0.01)
            return spec.prompt

    executor = Sharing()
    executor.register("tester")(executor.ask)
    for _ in range(2):
        print(outputs(Runner(executor, backend=backend, max_concurrency=2).run(make_specs(4))))
    """
    assert said_by(tmp_path, library, backend, source) == ["0 1 2 3", "0 1 2 3"]


@each_library
@each_backend
def test_runs_and_streams(library: str, backend: str, tmp_path: Path) -> None:
    """Each gives every outcome, from a list and from a generator, with a journal and with events."""
    source = """
    channel, events = EventChannel(), []
    channel.listen(events.append)
    options = {}, {"journal": "run.db"}, {"event_tx": channel}
    for given in options:
        print(outputs(runner_of(answer, **given).run(make_specs(4))))
        print(outputs(runner_of(answer).run(iter(make_specs(4)))))
        print(outputs(runner_of(answer, **given).stream(make_specs(4))))
    print(sum(isinstance(event, SubagentEnd) for event in events))
    with runner_of(answer) as runner:
        print(outputs(runner.run(make_specs(4))), outputs(runner.run(make_specs(4))))
    """
    assert said_by(tmp_path, library, backend, source) == ["0 1 2 3"] * 9 + ["8", "0 1 2 3 0 1 2 3"]


@each_library
@each_backend
def test_early_ends(library: str, backend: str, tmp_path: Path) -> None:
    """A stream that is left, a timeout of the run's, one of the library's, and Ctrl-C end what is running."""
    source = """
    for outcome in runner_of(answer).stream(make_specs(8)):
        print(outcome.output)
        break
    print(*{record.status for record in runner_of(hang, timeout=0.3).run(make_specs(2)).records})
    for run in (runner_of(hang).run, lambda specs: list(runner_of(hang).stream(specs))):
        try:
            with Timeout(0.3):
                run(make_specs(2))
        except Timeout:
            print("cut short")
    def press_ctrl_c():
        sleep(0.3)
        os.kill(os.getpid(), 2)
    spawn(press_ctrl_c)
    try:
        runner_of(hang).run(make_specs(2))
    except FanoutInterrupted as interrupt:
        print(*{record.status for record in interrupt.run.records})
    print(outputs(runner_of(answer).run(make_specs(2))))
    """
    expected = ["0", "timed_out", "cut short", "cut short", "cancelled", "0 1"]
    assert said_by(tmp_path, library, backend, source) == expected


@each_library
@each_backend
def test_greenlets_that_run_steps_at_once(library: str, backend: str, tmp_path: Path) -> None:
    """Each has its own outcomes; other greenlets get turns meanwhile, and Ctrl-C still reaches the program."""
    source = """
    import signal
    before = turns
    def work():
        return outputs(runner_of(answer).run(make_specs(4))), outputs(runner_of(answer).stream(make_specs(4)))
    print(wait_for([spawn(work) for _ in range(3)]) == [("0 1 2 3", "0 1 2 3")] * 3)
    print(turns > before, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    """
    assert said_by(tmp_path, library, backend, source) == ["True", "True False"]


@each_library
def test_workers_that_die_or_print(library: str, tmp_path: Path) -> None:
    """A dead worker costs one step; what workers print comes with the steps."""
    source = """
    def misbehave(spec):
        print("step", spec.prompt, flush=True)
        if spec.prompt == "1":
            os._exit(3)
        return spec.prompt
    run = runner_of(misbehave, backend=ProcessBackend(capture_output=True)).run(make_specs(3))
    print(*[record.status for record in run.records])
    """
    said = said_by(tmp_path, library, "process", source)
    assert (sorted(said[:3]), said[3:]) == (
        ["[t0] step 0", "[t1] step 1", "[t2] step 2"],
        ["succeeded crashed succeeded"],
    )


@each_library
@each_backend
def test_forks(library: str, backend: str, tmp_path: Path) -> None:
    """A child that is forked in the loop over a stream has runs of its own, and the parent all its outcomes.

    In the child the hub of eventlet still watches the descriptors of the parent, also when they are other files by
    then; there runs of the child use threads.
    """
    source = """
    def own_runner():
        return Runner(FunctionExecutor({"tester": answer})) if "eventlet" in sys.argv else runner_of(answer)

    stream = runner_of(answer).stream(make_specs(8))
    got = [next(stream).output]
    child = os.fork()
    if not child:
        stream.close()
        os._exit(len(own_runner().run(make_specs(3)).succeeded))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *got, outputs(stream))
    """
    assert said_by(tmp_path, library, backend, source) == ["3 0 1 2 3 4 5 6 7"]
