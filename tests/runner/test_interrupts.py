"""Ctrl-C, as users press it: real signals to real scripts on terminals of their own, and to a kernel."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import define, field
from conftest import HANG_BOUND_S

from fanout_sync import StepOutcome
from fanout_sync.testing import Ledger, make_specs

EXIT_BOUND_S = 20
"""Far more than a script takes from its interrupt to its end: one that takes this long hangs."""

BACKENDS = ["thread", "process"]
SEARCHED = [str(Path(folder).absolute()) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
TOKEN = "FANOUT_SYNC_TEST"

each_backend = pytest.mark.parametrize("backend", BACKENDS)


# Scripts on terminals -------------------------------------------------------------------------------------------------

ON_ITS_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Makes the terminal that it is started on the controlling one, and becomes `python` with the same arguments."""

PREAMBLE = """
import gc, json, os, signal, subprocess, sys, threading, time
from pathlib import Path
from fanout_sync import FanoutInterrupted, FunctionExecutor, Runner, SubagentEnd, current_step
from fanout_sync.testing import Ledger, make_specs

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def statuses(run):
    assert [outcome.task_id for outcome in run] == [f"t{i}" for i in range(len(run))]
    return " ".join(record.status for record in run.records)

def left():
    # What runs of this script, but for itself and multiprocessing's bookkeeper, which ends with it.
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                is_ours = TOKEN in (process / "environ").read_text(errors="replace")
                command = (process / "cmdline").read_text().replace("\\0", " ")
                if is_ours and command and "resource_tracker" not in command:
                    found.append(command)
            except OSError:
                pass
    return found

def begin(spec):
    Ledger("ledger").note(spec.task_id)
    say("begun", spec.task_id)

def is_stopped(spec):
    # Waits as long as it may, and says whether it was told to stop.
    begin(spec)
    current_step().cancelled.wait(3600)
    say("told", spec.task_id)
    return "stopped by itself"

def hang(spec):
    begin(spec)
    time.sleep(3600)

def answer(spec):
    begin(spec)
    return spec.prompt
"""


@define
class Script:
    """A Python program that has a terminal of its own, of which it is the foreground process.

    Attributes:
        process: The program.
        terminal: The master's side.
        token: In the environment of the program and all that it starts.
        ledger: Where its steps are noted.
        said: What it has written, and nobody has asked for yet.
    """

    process: subprocess.Popen[bytes]
    terminal: int
    token: str
    ledger: Ledger
    said: str = ""

    def expect(self, *lines: str) -> None:
        """Read on until each of these lines was written, in any order; they, and nothing else, have come."""
        missing = sorted(lines)
        while missing:
            line, is_whole, rest = self.said.partition("\n")
            if not is_whole:
                assert self._read(), f"it has ended and has not written {missing}: {self.said}"
                continue
            assert line in missing, f"one of {missing} was expected: {self.said}"
            missing.remove(line)
            self.said = rest

    def press_ctrl_c(self) -> None:
        os.write(self.terminal, b"\x03")

    def end(self) -> str:
        """Wait for its end, and that of all that it started; return what it had still written."""
        while self._read(EXIT_BOUND_S):
            pass
        self.process.wait(EXIT_BOUND_S)
        await_condition(lambda: not processes_with(self.token))
        return self.said

    def _read(self, bound_s: float = HANG_BOUND_S) -> bool:
        ready, _, _ = select.select([self.terminal], [], [], bound_s)
        assert ready, f"it hangs, having written: {self.said}"
        try:
            more = os.read(self.terminal, 65536)
        except OSError:  # nobody has the terminal open any more
            return False
        self.said += more.decode()
        return True


@define
class Launcher:
    """Starts programs, and ends all of them."""

    folder: Path
    scripts: list[Script] = field(factory=list)

    def script(self, source: str, **constants: object) -> Script:
        """Start a script: the constants, in capitals, the preamble, and `source`."""
        token = uuid.uuid4().hex
        named = "".join(f"{name.upper()} = {value!r}\n" for name, value in constants.items())
        path = self.folder / "script.py"
        path.write_text(f"TOKEN = {token!r}\n{named}{PREAMBLE}{textwrap.dedent(source)}")
        return self.program(str(path), token=token)

    def program(self, *arguments: str, token: str | None = None, **environment: str) -> Script:
        """Start `python` with these arguments."""
        token = token or uuid.uuid4().hex
        master, slave = pty.openpty()
        settings = termios.tcgetattr(slave)
        settings[1] &= ~termios.OPOST  # "\n" is "\n"
        settings[3] &= ~termios.ECHO  # no "^C"
        settings[3] |= termios.NOFLSH  # what was written just before Ctrl-C is not lost
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        search = os.pathsep.join([environment.pop("PYTHONPATH", ""), *SEARCHED])
        process = subprocess.Popen(
            [sys.executable, "-c", ON_ITS_TERMINAL, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": search.strip(os.pathsep), TOKEN: token, "NO_COLOR": "1", **environment},
            start_new_session=True,
        )
        os.close(slave)
        self.scripts.append(Script(process, master, token, Ledger(self.folder / "ledger")))
        return self.scripts[-1]

    def end(self) -> None:
        for script in self.scripts:
            for pid in processes_with(script.token):
                os.kill(pid, signal.SIGKILL)
            script.process.kill()
            script.process.wait(HANG_BOUND_S)
            os.close(script.terminal)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.end()


def processes_with(token: str) -> list[int]:
    """Return the processes in whose environment `token` is; those that are dead have none."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                environment = (process / "environ").read_bytes()
            except OSError:  # gone by now, or somebody else's
                continue
            if token.encode() in environment:
                found.append(int(process.name))
    return found


def await_condition(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # something of another process is what is awaited


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
    """A step on a thread is told to stop, and has a second: one that does is done, one that does not is cancelled."""
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


def test_whatever_the_steps_started_is_dead(launch: Launcher) -> None:
    """When the script goes on, nothing runs of what its worker processes had started, wherever that had got to."""
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
def test_a_script_that_does_not_catch_it_ends(backend: str, launch: Launcher) -> None:
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
def test_more_of_them_while_it_cleans_up(backend: str, launch: Launcher) -> None:
    """Pressing Ctrl-C again and again, while the first one is being seen to, changes nothing."""
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


def test_while_workers_start(launch: Launcher) -> None:
    """A worker that has hardly begun to start, and that the terminal interrupts too, complains of nothing."""
    (launch.folder / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import os, sys, time
            if "loky.backend.popen_loky_posix" in sys.orig_argv:
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


@each_backend
@pytest.mark.parametrize("handler", ["default", "raising"])
def test_a_handler_that_raises_is_there_again(handler: str, backend: str, launch: Launcher) -> None:
    """After a run that came to its end, and after one that was interrupted, the handler is the one of before."""
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
    """What the program's own handler makes of a signal is what counts: a run is not interrupted behind its back."""
    os.mkfifo(launch.folder / "gate")
    script = launch.script(
        HANDLERS
        + '''
def pass_gate(spec):
    begin(spec)
    return Path("gate").read_text()

# Somebody else whom the terminal interrupts, and who tells when it does.
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


def test_a_handler_that_is_set_meanwhile_stays(launch: Launcher) -> None:
    """Who replaces the handler while a stream is read keeps the new one, and can put back what was there before."""
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


@each_backend
@pytest.mark.parametrize("blocking", ["time.sleep(3600)", "os.read(os.pipe()[0], 1)"], ids=["sleep", "pipe"])
@pytest.mark.parametrize("call", ["run", "stream"])
def test_an_input_that_blocks(call: str, blocking: str, backend: str, launch: Launcher) -> None:
    """What waits for the next spec is interrupted there and then; what was read before is in the run."""
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


# Streams --------------------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("order", ["input", "completion"])
@pytest.mark.parametrize("on_interrupt", ["raise", "return"])
def test_while_a_stream_waits(on_interrupt: str, order: str, backend: str, launch: Launcher) -> None:
    """What the stream has not yielded yet is in the run of its exception, or is yielded then."""
    script = launch.script(
        """
        executor = FunctionExecutor({"tester": lambda spec: hang(spec) if spec.prompt in "13" else answer(spec)})
        runner = Runner(executor, backend=BACKEND, max_concurrency=2, on_interrupt=ON_INTERRUPT)
        try:
            for outcome in runner.stream(make_specs(5), order=ORDER):
                say(outcome.task_id, outcome.success)
        except FanoutInterrupted as interrupted:
            say("raised")
            for outcome, record in zip(interrupted.run, interrupted.run.records):
                say(outcome.task_id, outcome.success)
        say(left())
        """,
        backend=backend,
        order=order,
        on_interrupt=on_interrupt,
    )
    yielded = ["t0 True"] if order == "input" else ["t0 True", "t2 True"]
    script.expect("begun t0", "begun t1", "begun t2", "begun t3", *yielded)
    script.press_ctrl_c()
    rest = [f"t{number} {number == 2}" for number in range(1, 5) if number != 2 or order == "input"]
    raised = ["raised"] if on_interrupt == "raise" else []
    assert script.end().splitlines() == [*raised, *rest, "[]"]
    assert script.ledger.counts() == {"t0": 1, "t1": 1, "t2": 1, "t3": 1}


# On threads the second step tells when it has been told to stop; a worker process is gone.
HALF_READ = """
def step(spec):
    if spec.prompt == "1":
        is_stopped(spec)
        told.set()
    return answer(spec)

if BACKEND == "thread":
    told = threading.Event()
else:
    step = lambda spec: hang(spec) if spec.prompt == "1" else answer(spec)

def check():
    if BACKEND == "thread":
        told.wait()
    say(left())

runner = Runner(FunctionExecutor({"tester": step}), backend=BACKEND, max_concurrency=2)
specs = make_specs(3)
"""

LEAVING = {
    "interrupt": """
        try:
            for outcome in runner.stream(specs):
                gate.readline()
                say("reading")
                gate.readline()
        except KeyboardInterrupt as interrupt:
            say(type(interrupt).__name__)
            check()
    """,
    "break": """
        for outcome in runner.stream(specs):
            gate.readline()
            break
        check()
    """,
    "exception": """
        try:
            for outcome in runner.stream(specs):
                gate.readline()
                raise ValueError
        except ValueError:
            check()
    """,
    "del": """
        stream = runner.stream(specs)
        next(stream)
        gate.readline()
        del stream
        check()
    """,
    "collected": """
        stream = runner.stream(specs)
        next(stream)
        gate.readline()
        cycle = [stream]
        cycle.append(cycle)
        del stream, cycle
        gc.collect()
        check()
    """,
    "thread": """
        stream = runner.stream(specs)
        next(stream)
        gate.readline()
        closing = threading.Thread(target=stream.close)
        closing.start()
        closing.join()
        del stream
        check()
        Runner(FunctionExecutor({"tester": answer})).run(make_specs(1))
        say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """,
    "with": """
        try:
            with runner:
                runner.run(specs[:1])
                stream = runner.stream(specs)
                next(stream)
                gate.readline()
                del stream
                raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            check()
    """,
}


@each_backend
@pytest.mark.parametrize("leaving", LEAVING)
def test_a_stream_that_is_left_half_read(leaving: str, backend: str, launch: Launcher) -> None:
    """However one leaves a stream: no worker process is left, and steps on threads are told to stop."""
    script = launch.script(HALF_READ + "gate = sys.stdin\n" + textwrap.dedent(LEAVING[leaving]), backend=backend)
    script.expect(*["begun t0"] * (2 if leaving == "with" else 1), "begun t1")
    os.write(script.terminal, b"go on\n")
    if leaving == "interrupt":
        script.expect("reading")
        script.press_ctrl_c()
    told = ["told t1", "begun t1"] if backend == "thread" else []
    if leaving == "interrupt":
        script.expect("KeyboardInterrupt", *told)
    else:
        script.expect(*told)
    assert script.end() == ("[]\nbegun t0\nTrue\n" if leaving == "thread" else "[]\n")


TEARDOWN = """
class Slow(FunctionExecutor):
    def teardown(self):
        say("tearing down")
        time.sleep(3600)

executor = Slow({"tester": answer, "hanging": hang})
runner = Runner(executor, backend=BACKEND, max_concurrency=1)
"""
"""Its `teardown` never ends, and so does a run or a `with`, unless it is given up."""


def test_leaving_with_by_an_interrupt(launch: Launcher) -> None:
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


def test_while_warm_workers_are_ended(launch: Launcher) -> None:
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
    assert script.end() == "KeyboardInterrupt [] True\n"


@each_backend
def test_while_a_run_is_being_ended(backend: str, launch: Launcher) -> None:
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


# Notebooks ------------------------------------------------------------------------------------------------------------


@each_backend
def test_a_cell_of_a_notebook(backend: str, tmp_path: Path) -> None:
    """Interrupting the kernel ends the cell with the run's exception; the next cell runs as if nothing had been."""
    from jupyter_client.manager import start_new_kernel

    ledger = Ledger(tmp_path / "ledger")
    interrupted_cell = f"""
        import time
        from fanout_sync import FanoutInterrupted, FunctionExecutor, Runner
        from fanout_sync.testing import Ledger, make_specs

        def hang(spec):
            Ledger("ledger").note(spec.task_id)
            time.sleep(3600)

        executor = FunctionExecutor({{"tester": hang, "quick": lambda spec: spec.prompt}})
        runner = Runner(executor, backend={backend!r}, max_concurrency=2)
        runner.run(make_specs(3))
    """
    next_cell = """
        assert [outcome.output for outcome in runner.run(make_specs(3, agent="quick"))] == ["0", "1", "2"]
    """
    token = uuid.uuid4().hex
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path), env={**os.environ, TOKEN: token})
    try:
        kernel_alone = processes_with(token)
        request = client.execute(textwrap.dedent(interrupted_cell))
        await_condition(lambda: len(ledger.counts()) == 2)
        manager.interrupt_kernel()
        while (reply := client.get_shell_msg(timeout=HANG_BOUND_S))["parent_header"]["msg_id"] != request:
            pass
        assert (reply["content"]["status"], reply["content"]["ename"]) == ("error", "FanoutInterrupted")
        assert reply["content"]["evalue"] == "interrupted: 0 of 3 steps were done, 3 are cancelled"
        assert workers_among(processes_with(token)) == []
        reply = client.execute_interactive(textwrap.dedent(next_cell), timeout=HANG_BOUND_S)
        assert reply["content"]["status"] == "ok", reply["content"]
        assert workers_among(processes_with(token)) == []
        assert set(kernel_alone) <= set(processes_with(token))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        for pid in processes_with(token):
            os.kill(pid, signal.SIGKILL)


def workers_among(pids: list[int]) -> list[int]:
    return [pid for pid in pids if b"fanout-worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


# The command line -----------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_line(number: signal.Signals, backend: str, launch: Launcher) -> None:
    """What was done is written, though an earlier step was not; standard error names the steps that were not done."""
    (launch.folder / "agents.py").write_text(
        textwrap.dedent(
            """
            import os, time
            from fanout_sync import FunctionExecutor
            from fanout_sync.testing import Ledger

            def agent(spec):
                Ledger("ledger").note(spec.task_id)
                os.write(2, f"begun {spec.task_id}\\n".encode())
                if spec.prompt in "13":
                    time.sleep(3600)
                return spec.prompt

            executor = FunctionExecutor({"tester": agent})
            """
        )
    )
    (launch.folder / "steps.jsonl").write_text("".join(f"{spec.to_json()}\n" for spec in make_specs(5)))
    options = ["--executor", "agents.py:executor", "--backend", backend, "-j", "2", "-o", "out.jsonl"]
    script = launch.program("-m", "fanout_sync", "run", "steps.jsonl", *options)
    script.expect("begun t0", "begun t1", "begun t2", "begun t3")
    if number == signal.SIGINT:
        script.press_ctrl_c()
    else:
        script.process.send_signal(number)
    assert script.end() == "Interrupted: 2 of 5 outcomes were written; cancelled: t1, t3 and 1 more\n"
    assert script.process.returncode == 130
    written = (launch.folder / "out.jsonl").read_text().splitlines()
    assert [StepOutcome.from_json(line).task_id for line in written] == ["t0", "t2"]
    assert script.ledger.counts() == {"t0": 1, "t1": 1, "t2": 1, "t3": 1}


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
