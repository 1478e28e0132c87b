"""In a Jupyter kernel: a handle follows its run in the output of a cell, while other cells run and are interrupted."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from bounds import HANG_BOUND_S
from jupyter_client.blocking.client import BlockingKernelClient
from scripts import each_backend
from test_jupyter import kernel, run_cell

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # jupyter_client's own

AGENT = """
import threading, time
(FOLDER / "gate").mkdir()

def wait(spec):
    # A step of its own for each file that the test or a cell makes.
    while not (FOLDER / "gate" / spec.task_id).exists():
        time.sleep(0.01)
    if spec.prompt == "bad":
        raise ValueError("<script>bad</script>")
    return spec.prompt

def let_go(*task_ids):
    for task_id in task_ids:
        (FOLDER / "gate" / task_id).touch()

def seen(count):
    while len(handle.snapshot()) < count:
        time.sleep(0.01)

specs = [AgentStepSpec(f"t{n}", "wait", "", "bad" if n == 1 else str(n)) for n in range(4)]
runner = Runner(FunctionExecutor({"wait": wait}), backend=BACKEND, max_concurrency=4)
"""


def messages_of(client: BlockingKernelClient, cell: str) -> list[dict[str, Any]]:
    """Run a cell; return what was published meanwhile."""
    published: list[dict[str, Any]] = []
    reply = client.execute_interactive(cell, timeout=HANG_BOUND_S, output_hook=published.append)
    assert reply["content"]["status"] == "ok", reply["content"]
    return published


def shown(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message["content"] for message in messages if message["msg_type"] == kind]


def outputs(messages: list[dict[str, Any]], display: str) -> list[str]:
    """Return the HTML of the updates of an output."""
    updates = shown(messages, "update_display_data")
    assert {content["transient"]["display_id"] for content in updates} <= {display}
    return [content["data"]["text/html"] for content in updates]


@each_backend
def test_the_output_of_a_handle_follows_its_run(backend: str, tmp_path: Path) -> None:
    """It is shown once, and replaced while other cells run, for the last time at the end of the run."""
    with kernel(tmp_path) as (host, client):
        run_cell(client, AGENT.replace("BACKEND", repr(backend)))
        first = messages_of(client, "handle = runner.start(specs)\nhandle")
        (display,) = shown(first, "display_data")
        name = display["transient"]["display_id"]
        assert display["data"]["text/html"].startswith("<div><b>running</b>: 0 of 4 steps done")
        assert display["data"]["text/plain"].startswith("<RunHandle running: 0 of 4 steps done")
        assert shown(first, "execute_result") == [], "the output stands for the repr"

        # Both cells run while the run goes on: the updates belong to the output above, wherever they arrive.
        second = messages_of(client, "let_go('t0', 't1'); seen(2); time.sleep(1); 'free'")
        assert shown(second, "execute_result")[0]["data"]["text/plain"] == "'free'"
        assert outputs(second, name)[-1].startswith("<div><b>running</b>: 2 of 4 steps done · 1 failed · 2 running · ")

        third = messages_of(client, "let_go('t2', 't3'); print(handle.result())")
        assert "<Run of 4 steps, 1 failed" in shown(third, "stream")[0]["text"]
        last = outputs(third, name)[-1]
        assert last.startswith("<div><b>done</b>: 4 of 4 steps done · 1 failed · ")
        assert "<script>" not in last
        assert shown(messages_of(client, "time.sleep(1)"), "update_display_data") == []
        assert "Traceback" not in host.log


@each_backend
def test_the_interrupt_of_a_cell_leaves_the_handle_alone(backend: str, tmp_path: Path) -> None:
    """A cell that waits for the result is interrupted; its run goes on, and the next cell gets the result."""
    with kernel(tmp_path) as (host, client):
        run_cell(client, AGENT.replace("BACKEND", repr(backend)))
        run_cell(client, "handle = runner.start(specs); let_go('t0'); seen(1)")
        for cell in ("handle.result()", "runner.run(specs[2:])"):
            request = client.execute(f"print('waiting', flush=True); {cell}", stop_on_error=False)
            await_text(client, "waiting")
            host.process.send_signal(signal.SIGINT)
            while (reply := client.get_shell_msg(timeout=HANG_BOUND_S))["parent_header"]["msg_id"] != request:
                pass
            assert reply["content"]["ename"] in ("KeyboardInterrupt", "FanoutInterrupted")
            run_cell(client, "assert not handle.done() and handle.progress().running == 3")
        run_cell(client, "let_go('t1', 't2', 't3'); run = handle.result()")
        run_cell(client, "assert run.values() == ['0', None, '2', '3'], run.summary()")


def test_the_end_of_the_kernel_cancels_the_run(tmp_path: Path) -> None:
    """The kernel ends, with all workers, while a run goes on."""
    with kernel(tmp_path) as (host, client):
        run_cell(client, AGENT.replace("BACKEND", "'process'"))
        run_cell(client, "handle = runner.start(specs); let_go('t0'); seen(1)")
        client.shutdown()
        host.wait()
        assert "Traceback" not in host.log, host.log


def test_unread_failures_are_shown(tmp_path: Path) -> None:
    """A handle that is dropped shows its failures where the user looks."""
    with kernel(tmp_path) as (_, client):
        run_cell(client, AGENT.replace("BACKEND", "'thread'"))
        run_cell(client, "let_go('t0', 't1', 't2', 't3'); handle = runner.start(specs)")
        messages = messages_of(
            client, "while not handle.done(): time.sleep(0.01)\ndel handle; import gc; gc.collect();"
        )
        told = "".join(content["text"] for content in shown(messages, "stream") if content["name"] == "stderr")
        assert told.count("the result of a run of 4 steps was never read; 1 step failed:") == 1
        assert "t1 (wait) raised: ValueError: <script>bad</script>" in told


def await_text(client: BlockingKernelClient, text: str) -> None:
    while True:
        message = client.get_iopub_msg(timeout=HANG_BOUND_S)
        if message["msg_type"] == "stream" and text in message["content"]["text"]:
            return
