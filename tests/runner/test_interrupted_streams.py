"""Ctrl-C while a stream is read, in a cell of a notebook, and on the command line."""

from __future__ import annotations

import os
import signal
import textwrap
import uuid
from pathlib import Path

import pytest
from bounds import HANG_BOUND_S
from scripts import TOKEN, Launcher, await_condition, each_backend, processes_with

from fanout_sync import StepOutcome
from fanout_sync.testing import Ledger, make_specs

# Streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "order", "on_interrupt"),
    [
        ("thread", "input", "raise"),
        ("thread", "completion", "return"),
        ("process", "completion", "raise"),
        ("process", "input", "return"),
    ],
)
def test_an_interrupt_while_a_stream_waits(on_interrupt: str, order: str, backend: str, launch: Launcher) -> None:
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
    output = answer(spec)
    if spec.prompt == "1":
        told.set()
    return output

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
    """In whatever way a stream is left, no worker process is left behind, and steps on threads are told to stop."""
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


@pytest.mark.parametrize(("backend", "number"), [("thread", signal.SIGINT), ("process", signal.SIGTERM)])
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
    options = ["--executor", "agents.py:executor", "--backend", backend, "-j", "2", "-o", "out.jsonl", "--no-progress"]
    script = launch.program("-m", "fanout_sync", "run", "steps.jsonl", *options)
    script.expect("begun t0", "begun t1", "begun t2", "begun t3")
    if number == signal.SIGINT:
        script.press_ctrl_c()
    else:
        script.process.send_signal(number)
    told = "Interrupted: 2 of 5 outcomes were written; cancelled: t1, t3 and 1 more\n  outcomes: out.jsonl\n"
    assert script.end() == told
    assert script.process.returncode == 130
    written = (launch.folder / "out.jsonl").read_text().splitlines()
    assert [StepOutcome.from_json(line).task_id for line in written] == ["t0", "t2"]
    assert script.ledger.counts() == {"t0": 1, "t1": 1, "t2": 1, "t3": 1}
