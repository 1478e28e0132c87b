"""In a Jupyter kernel: a cell fans out with the agents of an earlier one, and an interrupted cell leaves no worker."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosting import AGENTS, PYTHON, Host, assert_fanned_out, hosted
from jupyter_client.blocking.client import BlockingKernelClient
from processes import eventually
from scripts import each_backend

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # jupyter_client's own


@contextlib.contextmanager
def kernel(folder: Path) -> Iterator[tuple[Host, BlockingKernelClient]]:
    """Start a kernel in which the agents are defined."""
    connection = folder / "connection.json"
    with hosted(folder, PYTHON, "-m", "ipykernel_launcher", "-f", connection) as host:
        assert eventually(lambda: connection.exists() and connection.read_text().endswith("}")), host.log
        client = BlockingKernelClient(connection_file=str(connection))
        client.load_connection_file()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            run_cell(client, AGENTS)
            yield host, client
            # Jupyter does so when a kernel that is asked to end does not within five seconds. That is so after any use
            # of multiprocessing's resource tracker, which ignores the SIGTERM with which a kernel ends its children.
            host.end(signal.SIGKILL)
        finally:
            client.stop_channels()


def run_cell(client: BlockingKernelClient, cell: str) -> None:
    reply = client.execute_interactive(cell, timeout=60)
    assert reply["content"]["status"] == "ok", reply["content"]


@each_backend
def test_cell_fans_out(backend: str, tmp_path: Path) -> None:
    """A cell gets every outcome in order."""
    with kernel(tmp_path) as (host, client):
        run_cell(client, f"fan_out({backend!r})")
        assert_fanned_out(host, backend)


@each_backend
def test_interrupted_cell_leaves_nothing(backend: str, tmp_path: Path) -> None:
    """An interrupt ends the cell with `FanoutInterrupted`; the next cell fans out."""
    with kernel(tmp_path) as (host, client):
        request = client.execute(f"fan_out_for_ever({backend!r})", stop_on_error=False)
        host.await_endless_steps()
        host.process.send_signal(signal.SIGINT)
        while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != request:
            pass
        assert reply["content"]["ename"] == "FanoutInterrupted"
        run_cell(client, f"fan_out({backend!r})")
        assert_fanned_out(host, backend)
