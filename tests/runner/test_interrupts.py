"""Ctrl-C in scripts, as users press it: a real signal on a terminal of their own."""

from __future__ import annotations

import os
import signal
import textwrap

import pytest
from scripts import Launcher, each_backend

# What an interrupt gives back -----------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("on_interrupt", ["raise", "return"])
def test_what_was_done_is_kept(on_interrupt: str, backend: str, launch: Launcher) -> None:
    """The run has an outcome for each spec of a list, in order, those that were done too; no step begins any more."""
    script = launch.script(
        """
        executor = FunctionExecutor({"tester": lambda spec: answer(spec) if spec.prompt == "0" else hang(spec)})
        try:
            run = Runner(executor, backend=BACKEND, max_concurrency=2, on_interrupt=ON_INTERRUPT).run(make_specs(5))
            say("returned")
        except KeyboardInterrupt as interrupt:
            say(f"{type(interrupt).__name__}: {interrupt}")
            run = interrupt.run
        say(left(), statuses(run), run[0].output)
        """,
        backend=backend,
        on_interrupt=on_interrupt,
    )
    script.expect("begun t0", "begun t1", "begun t2")
    script.press_ctrl_c()
    told = (
        "returned"
        if on_interrupt == "return"
        else "FanoutInterrupted: interrupted: 1 of 5 steps were done, 4 are cancelled"
    )
    assert script.end() == f"{told}\n[] succeeded cancelled cancelled cancelled cancelled 0\n"
    assert script.process.returncode == 0
    assert script.ledger.counts() == {"t0": 1, "t1": 1, "t2": 1}


def test_steps_on_threads_may_stop_by_themselves(launch: Launcher) -> None:
    """A step on a thread is told to stop and has a second: one that returns in time is done, another is cancelled."""
    script = launch.script(
        """
        executor = FunctionExecutor({"tester": lambda spec: hang(spec) if spec.prompt == "1" else is_stopped(spec)})
        try:
            Runner(executor, max_concurrency=3).run(make_specs(5))
        except FanoutInterrupted as interrupted:
            say(statuses(interrupted.run), interrupted.run[0].output)
        """,
    )
    script.expect("begun t0", "begun t1", "begun t2")
    script.press_ctrl_c()
    script.expect("told t0", "told t2")
    assert script.end() == "succeeded cancelled succeeded cancelled cancelled stopped by itself\n"


def test_processes_started_by_steps_are_killed(launch: Launcher) -> None:
    """When the run has ended, no process runs that a worker process had started, also in the background."""
    script = launch.script(
        """
        def start_others(spec):
            subprocess.Popen(["sleep", "3600"])
            subprocess.Popen(["sleep", "3600"], start_new_session=True)
            subprocess.run(["sh", "-c", "sleep 3600 & setsid sleep 3600 &"])
            subprocess.run(["sh", "-c", "trap '' INT TERM HUP; echo begun; sleep 3600"], start_new_session=True)

        try:
            Runner(FunctionExecutor({"tester": start_others}), backend="process", max_concurrency=2).run(make_specs(3))
        except FanoutInterrupted as interrupted:
            say(left(), statuses(interrupted.run))
        """,
    )
    script.expect("begun", "begun")
    script.press_ctrl_c()
    assert script.end() == "[] cancelled cancelled cancelled\n"


@each_backend
def test_a_script_that_does_not_catch_the_interrupt_ends(backend: str, launch: Launcher) -> None:
    """Sixty-four steps that sleep for an hour do not keep a script from ending as any other does on Ctrl-C."""
    count = 64 if backend == "thread" else 4
    script = launch.script(
        """
        Runner(FunctionExecutor({"tester": hang}, concurrency=64), backend=BACKEND).run(make_specs(COUNT))
        """,
        backend=backend,
        count=count,
    )
    script.expect(*(f"begun t{number}" for number in range(count)))
    script.press_ctrl_c()
    *_, last, end = script.end().split("\n")
    assert (last, end) == (
        f"fanout_sync.errors.FanoutInterrupted: interrupted: 0 of {count} steps were done, {count} are cancelled",
        "",
    )
    assert script.process.returncode == -signal.SIGINT


@each_backend
def test_further_interrupts_during_the_cleanup(backend: str, launch: Launcher) -> None:
    """Pressing Ctrl-C again and again, while the run cleans up after the first one, changes nothing."""
    script = launch.script(
        """
        class Listener:
            def send(self, event):
                if isinstance(event, SubagentEnd) and pressed == 1:  # the run has been given up
                    say("cleaning up")
                    while pressed < 3:
                        time.sleep(0.01)

        def count(number, frame):
            global pressed
            pressed += 1
            say("pressed", pressed)
            raise KeyboardInterrupt

        pressed = 0
        signal.signal(signal.SIGINT, count)
        executor = FunctionExecutor({"tester": hang})
        try:
            Runner(executor, backend=BACKEND, max_concurrency=2, event_tx=Listener()).run(make_specs(3))
        except FanoutInterrupted as interrupted:
            say(left(), statuses(interrupted.run))
        """,
        backend=backend,
    )
    script.expect("begun t0", "begun t1")
    script.press_ctrl_c()
    script.expect("pressed 1", "cleaning up")
    script.press_ctrl_c()
    script.expect("pressed 2")
    script.press_ctrl_c()
    script.expect("pressed 3")
    assert script.end() == "[] cancelled cancelled cancelled\n"
    assert script.process.returncode == 0


def test_an_interrupt_while_workers_start(launch: Launcher) -> None:
    """A worker that has just been started, and that the terminal interrupts, too, prints no error."""
    (launch.folder / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import os, sys, time
            if "fanout_sync.workers.boot" in sys.orig_argv[-1]:
                os.write(1, b"starting\\n")
                time.sleep(3600)
            """
        )
    )
    (launch.folder / "script.py").write_text(
        textwrap.dedent(
            """
            from fanout_sync import FanoutInterrupted, FunctionExecutor, Runner
            from fanout_sync.testing import make_specs

            try:
                Runner(FunctionExecutor(), backend="process", max_concurrency=2).run(make_specs(3))
            except FanoutInterrupted as interrupted:
                print([record.status for record in interrupted.run.records])
            """
        )
    )
    script = launch.program("script.py", PYTHONPATH=str(launch.folder))
    script.expect("starting", "starting")
    script.press_ctrl_c()
    assert script.end() == "['cancelled', 'cancelled', 'cancelled']\n"


# Handlers of the program ----------------------------------------------------------------------------------------------

HANDLERS = """
def raising(number, frame):
    say("handled")
    raise KeyboardInterrupt

def noting(number, frame):
    say("handled")

handler = {
    "default": signal.default_int_handler, "raising": raising, "noting": noting, "ignoring": signal.SIG_IGN
}[HANDLER]
signal.signal(signal.SIGINT, handler)
"""


@pytest.mark.parametrize(("backend", "handler"), [("thread", "raising"), ("process", "default")])
def test_a_handler_that_raises_is_restored(handler: str, backend: str, launch: Launcher) -> None:
    """After a complete run, and after an interrupted one, the signal handler is the earlier one."""
    script = launch.script(
        HANDLERS
        + """
executor = FunctionExecutor({"tester": answer, "hanging": hang})
runner = Runner(executor, backend=BACKEND, max_concurrency=1)
runner.run(make_specs(1))
say(signal.getsignal(signal.SIGINT) is handler)
try:
    runner.run(make_specs(1, agent="hanging"))
except FanoutInterrupted:
    say(signal.getsignal(signal.SIGINT) is handler)
try:
    say("sleeping")
    time.sleep(3600)
except KeyboardInterrupt as interrupt:
    say(type(interrupt).__name__)
""",
        backend=backend,
        handler=handler,
    )
    handled = ["handled"] if handler == "raising" else []
    script.expect("begun t0", "True", "begun t0")
    script.press_ctrl_c()
    script.expect(*handled, "True", "sleeping")
    script.press_ctrl_c()
    script.expect(*handled, "KeyboardInterrupt")
    assert script.end() == ""


@each_backend
@pytest.mark.parametrize("handler", ["noting", "ignoring"])
def test_a_handler_that_does_not_raise_lets_the_run_go_on(handler: str, backend: str, launch: Launcher) -> None:
    """If the program's own handler does not raise, the run is not interrupted."""
    os.mkfifo(launch.folder / "gate")
    script = launch.script(
        HANDLERS
        + '''
def pass_gate(spec):
    begin(spec)
    return Path("gate").read_text()

# Another process on the terminal that reports when it is interrupted.
LISTEN = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
os.write(1, b"here\\\\n")
signal.sigwait([signal.SIGINT])
os.write(1, b"heard\\\\n")  # at once: others write there, too
"""
neighbour = subprocess.Popen([sys.executable, "-c", LISTEN])

executor = FunctionExecutor({"tester": pass_gate})
run = Runner(executor, backend=BACKEND).run(make_specs(1))
say(statuses(run), run[0].output, signal.getsignal(signal.SIGINT) is handler)
neighbour.wait()
''',
        backend=backend,
        handler=handler,
    )
    script.expect("here", "begun t0")
    script.press_ctrl_c()
    script.expect("heard", *(["handled"] if handler == "noting" else []))
    (launch.folder / "gate").write_text("open")
    assert script.end() == "succeeded open True\n"


def test_a_handler_that_is_set_during_a_stream_stays(launch: Launcher) -> None:
    """A handler that the program sets while a stream is read stays, and the program can restore the earlier one."""
    script = launch.script(
        """
        stream = Runner(FunctionExecutor({"tester": answer})).stream(make_specs(1))
        next(stream)
        mine = lambda number, frame: before(number, frame)
        before = signal.signal(signal.SIGINT, mine)
        list(stream)
        say(signal.getsignal(signal.SIGINT) is mine)
        for handler in mine, before:
            signal.signal(signal.SIGINT, handler)
            try:
                say("ready")
                time.sleep(3600)
            except KeyboardInterrupt:
                say("interrupted")
            try:
                Runner(FunctionExecutor({"tester": hang})).run(make_specs(1))
            except FanoutInterrupted:
                say(signal.getsignal(signal.SIGINT) is handler)
        """
    )
    script.expect("begun t0", "True")
    for _ in range(2):
        script.expect("ready")
        script.press_ctrl_c()
        script.expect("interrupted", "begun t0")
        script.press_ctrl_c()
        script.expect("True")
    assert script.end() == ""


@each_backend
def test_a_run_in_another_thread(backend: str, launch: Launcher) -> None:
    """A run outside the main thread touches no handler: the interrupt is the main thread's, and the run goes on."""
    os.mkfifo(launch.folder / "gate")
    script = launch.script(
        """
        def pass_gate(spec):
            begin(spec)
            return Path("gate").read_text()

        def work():
            run = Runner(FunctionExecutor({"tester": pass_gate}), backend=BACKEND).run(make_specs(1))
            say(statuses(run), run[0].output)
            done.set()

        say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        done = threading.Event()
        threading.Thread(target=work).start()
        try:
            input()
            say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
            done.wait()
        except KeyboardInterrupt as interrupt:
            say(type(interrupt).__name__)
        done.wait()
        """,
        backend=backend,
    )
    script.expect("True", "begun t0")
    os.write(script.terminal, b"\n")
    script.expect("True")
    script.press_ctrl_c()
    script.expect("KeyboardInterrupt")
    (launch.folder / "gate").write_text("open")
    assert script.end() == "succeeded open\n"


@each_backend
def test_a_run_inside_a_step(backend: str, launch: Launcher) -> None:
    """A run that a step on a thread waits for is given up together with the run of that step."""
    script = launch.script(
        """
        ended = threading.Event()

        def run_more(spec):
            inner = FunctionExecutor({"tester": is_stopped if BACKEND == "thread" else hang})
            try:
                Runner(inner, backend=BACKEND, max_concurrency=2).run(make_specs(3))
            except FanoutInterrupted as interrupted:
                say("inner", statuses(interrupted.run), left())
                raise
            finally:
                ended.set()

        try:
            Runner(FunctionExecutor({"outer": run_more}), max_concurrency=1).run(make_specs(2, agent="outer"))
        except FanoutInterrupted as interrupted:
            ended.wait()
            say("outer", len(interrupted.run), interrupted.run.records[1].status, left())
        """,
        backend=backend,
    )
    script.expect("begun t0", "begun t1")
    script.press_ctrl_c()
    if backend == "thread":
        script.expect("told t0", "told t1")
        script.expect("inner succeeded succeeded cancelled []")
    else:
        script.expect("inner cancelled cancelled cancelled []")
    assert script.end() == "outer 2 cancelled []\n"


# Inputs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "call", "blocking"),
    [
        ("thread", "run", "time.sleep(3600)"),
        ("thread", "stream", "os.read(os.pipe()[0], 1)"),
        ("process", "run", "os.read(os.pipe()[0], 1)"),
        ("process", "stream", "time.sleep(3600)"),
    ],
)
def test_an_input_that_blocks(call: str, blocking: str, backend: str, launch: Launcher) -> None:
    """An input that waits for its next spec is interrupted at once; the specs read before are in the run."""
    script = launch.script(
        f"""
        def read():
            yield from make_specs(2)
            try:
                say("blocked")
                {blocking}
            except KeyboardInterrupt:
                say("interrupted")
                raise

        executor = FunctionExecutor({{"tester": lambda spec: answer(spec) if spec.prompt == "0" else hang(spec)}})
        runner = Runner(executor, backend=BACKEND, max_concurrency=2)
        try:
            for outcome in getattr(runner, CALL)(read()):
                say(outcome.output)
        except FanoutInterrupted as interrupted:
            say(left(), [(outcome.task_id, outcome.success) for outcome in interrupted.run])
        """,
        backend=backend,
        call=call,
    )
    if call == "run":
        script.expect("begun t0", "begun t1", "blocked")
    else:
        script.expect("begun t0", "begun t1", "0", "blocked")
    script.press_ctrl_c()
    kept = [("t0", True), ("t1", False)] if call == "run" else [("t1", False)]
    assert script.end() == f"interrupted\n[] {kept}\n"


# The end of a run ---------------------------------------------------------------------------------------------------


TEARDOWN = """
class Slow(FunctionExecutor):
    def teardown(self):
        say("tearing down")
        time.sleep(3600)

executor = Slow({"tester": answer, "hanging": hang})
runner = Runner(executor, backend=BACKEND, max_concurrency=1)
"""
"""Its `teardown` never ends, and so does a run or a `with`, unless it is given up."""


def test_an_interrupt_that_leaves_a_with_block(launch: Launcher) -> None:
    """Workers that were kept warm are killed, without `teardown`, when an interrupt leaves the `with`."""
    script = launch.script(
        TEARDOWN
        + """
try:
    with runner:
        runner.run(make_specs(1))
        say("ready")
        time.sleep(3600)
except KeyboardInterrupt as interrupt:
    say(type(interrupt).__name__, left())
""",
        backend="process",
    )
    script.expect("begun t0", "ready")
    script.press_ctrl_c()
    assert script.end() == "KeyboardInterrupt []\n"


def test_an_interrupt_while_warm_workers_are_shut_down(launch: Launcher) -> None:
    """Ctrl-C while the end of a `with` waits for `teardown` kills those workers, and is raised as such."""
    script = launch.script(
        TEARDOWN
        + """
try:
    with runner:
        runner.run(make_specs(1))
    say("not reached")
except KeyboardInterrupt as interrupt:
    say(type(interrupt).__name__, left(), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
""",
        backend="process",
    )
    script.expect("begun t0", "tearing down")
    script.press_ctrl_c()
    assert script.end() == "FanoutInterrupted [] True\n"


@each_backend
def test_an_interrupt_while_a_run_is_shut_down(backend: str, launch: Launcher) -> None:
    """Ctrl-C while a run waits for `teardown` ends that; all outcomes are there."""
    script = launch.script(
        TEARDOWN
        + """
try:
    runner.run(make_specs(1))
    say("not reached")
except FanoutInterrupted as interrupted:
    say(statuses(interrupted.run), left())
""",
        backend=backend,
    )
    script.expect("begun t0", "tearing down")
    script.press_ctrl_c()
    assert script.end() == "succeeded []\n"


# The caller's code ----------------------------------------------------------------------------------------------------


INLINE = """
from concurrent.futures import Executor, Future

class Inline(Executor):
    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future

class Asked(FunctionExecutor):
    def timeout_for(self, spec):
        hang(spec)

if WHERE == "submit":
    runner = Runner(FunctionExecutor({"tester": hang}), backend=Inline())
else:
    runner = Runner(Asked({"tester": hang}))
try:
    runner.run(make_specs(3))
except FanoutInterrupted as interrupted:
    say(statuses(interrupted.run).split()[-1], left())
"""


@pytest.mark.parametrize("where", ["submit", "timeout_for"])
def test_code_of_the_caller_that_runs_in_the_main_thread_is_interrupted(where: str, launch: Launcher) -> None:
    """Ctrl-C reaches a step of a pool that runs it then and there, and an executor that is asked for a timeout."""
    script = launch.script(INLINE, WHERE=where)
    script.expect("begun t0")
    script.press_ctrl_c()
    assert script.end() == "cancelled []\n"
