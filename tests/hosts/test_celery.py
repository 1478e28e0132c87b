"""In a Celery worker: a task fans out, in each kind of pool; the processes of its prefork pool are daemonic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hosting import PYTHON, assert_fanned_out, hosted, write_program
from scripts import each_backend

APP = """
import billiard
from celery import Celery
from celery.signals import worker_ready

app = Celery("app", broker="memory://")
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)

@app.task(name="fan_out")
def task(backend):
    fan_out(backend)

@app.task(name="fan_out_for_ever", **json.loads(os.environ.get("LIMIT", "{}")))
def endless_task(backend):
    fan_out_for_ever(backend)

@worker_ready.connect
def begin(**_):
    # The broker is in the memory of this process, so only this process can send.
    for name in os.environ["TASKS"].split():
        app.send_task(name, (os.environ["BACKEND"],))
"""

CELERY = (PYTHON, "-m", "celery", "--app", "app:app", "worker", "--concurrency", "1", "--without-gossip")

each_pool = pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])


@each_backend
@each_pool
def test_task_fans_out(pool: str, backend: str, tmp_path: Path) -> None:
    """A task gets every outcome in order."""
    write_program(tmp_path, APP)
    with hosted(tmp_path, *CELERY, "--pool", pool, TASKS="fan_out", BACKEND=backend) as host:
        assert_fanned_out(host, backend)


@each_backend
@pytest.mark.parametrize("limit", ["time_limit", "soft_time_limit"])
def test_task_that_takes_too_long_leaves_nothing(limit: str, backend: str, tmp_path: Path) -> None:
    """When Celery kills or interrupts a task at its time limit, its workers end, too; the next task fans out."""
    write_program(tmp_path, APP)
    settings = {"TASKS": "fan_out_for_ever fan_out", "BACKEND": backend, "LIMIT": json.dumps({limit: 3})}
    with hosted(tmp_path, *CELERY, "--pool", "prefork", **settings) as host:
        assert_fanned_out(host, backend)
