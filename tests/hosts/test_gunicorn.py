"""In gunicorn: a request fans out, in each kind of worker, with and without a preloaded application."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hosting import PYTHON, WSGI, ask, assert_fanned_out, hosted, write_program
from scripts import each_backend

GUNICORN = (PYTHON, "-m", "gunicorn", "app:application", "--bind", "unix:socket", "--no-control-socket")

PRELOADED = """
from agents import *
loaded = {backend: fan_out(backend, f"loaded_{backend}") for backend in ("thread", "process")}
"""
"""Fans out while it is loaded. Its agents are in another module, because workers import what agents are in."""

KEPT = """
RUNNERS = {backend: Runner(HostAgents("kept"), backend=backend).__enter__() for backend in ("thread", "process")}

def fan_out(backend, name="report"):
    run = RUNNERS[backend].run([AgentStepSpec(f"t{n}", "answer", "", str(n)) for n in range(4)])
    (FOLDER / f"{name}.json").write_text(json.dumps([[os.getpid(), *(outcome.output for outcome in run)]]))

for backend in RUNNERS:
    fan_out(backend, f"loaded_{backend}")
"""
"""Enters runners while it is loaded, and uses them at once and in each request."""

KEPT = """
runners = {backend: Runner(HostAgents("kept"), backend=backend).__enter__() for backend in ("thread", "process")}

def fan_out(backend, name):
    run = runners[backend].run([AgentStepSpec(f"t{n}", "answer", "", str(n)) for n in range(4)])
    (FOLDER / f"{name}.json").write_text(json.dumps({"outputs": [outcome.output for outcome in run]}))
"""
"""Enters a runner for each backend while it is loaded, and uses it in each request."""

each_kind = pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])


@each_backend
@each_kind
def test_request_fans_out(kind: str, backend: str, tmp_path: Path) -> None:
    """A request gets every outcome in order, in each kind of worker."""
    write_program(tmp_path, WSGI)
    with hosted(tmp_path, *GUNICORN, "--worker-class", kind) as host:
        ask(host, f"/fan_out/{backend}")
        assert_fanned_out(host, backend)


@each_backend
def test_forked_worker_fans_out_after_its_master_did(backend: str, tmp_path: Path) -> None:
    """With --preload, the application fans out while the master loads it, and again in a worker that is forked then."""
    write_program(tmp_path, "", "agents.py")
    (tmp_path / "app.py").write_text(PRELOADED + WSGI)
    with hosted(tmp_path, *GUNICORN, "--preload", "--workers", "2") as host:
        ask(host, f"/fan_out/{backend}")
        assert_fanned_out(host, backend)
        assert_fanned_out(host, backend, f"loaded_{backend}")


def test_requests_at_the_same_time_fan_out(tmp_path: Path) -> None:
    """Several threads of one worker fan out at once, and each gets the outcomes of its own steps."""
    write_program(tmp_path, WSGI)
    with hosted(tmp_path, *GUNICORN, "--threads", "4") as host:
        runs = [(backend, f"{backend}{n}") for backend in ("thread", "process") for n in range(2)]
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(lambda run: ask(host, f"/fan_out/{run[0]}/{run[1]}"), runs))
        for backend, name in runs:
            assert_fanned_out(host, backend, name)


@each_backend
@pytest.mark.parametrize("options", [("--threads", "4"), ("--preload",)], ids=["threads", "preload"])
def test_kept_runner_serves_requests(options: tuple[str, ...], backend: str, tmp_path: Path) -> None:
    """A runner that is entered once serves requests at the same time; also those of a process that was forked later."""
    write_program(tmp_path, "", "agents.py")
    used = "for backend in runners:\n    fan_out(backend, 'loaded')\n" if "--preload" in options else ""
    (tmp_path / "app.py").write_text(f"from agents import *\n{KEPT}{used}{WSGI}")
    names = [f"report{n}" for n in range(4)]
    with hosted(tmp_path, *GUNICORN, *options) as host:
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(lambda name: ask(host, f"/fan_out/{backend}/{name}"), names))
        for name in names:
            assert host.report(name) == {"outputs": [f"answer {n}" for n in range(4)]}


@each_backend
def test_worker_that_takes_too_long_leaves_nothing(backend: str, tmp_path: Path) -> None:
    """When gunicorn kills a worker at its --timeout, the steps of that end, too; the next request fans out."""
    write_program(tmp_path, WSGI)
    with hosted(tmp_path, *GUNICORN, "--timeout", "2") as host:
        ask(host, f"/fan_out_for_ever/{backend}")
        ask(host, f"/fan_out/{backend}")
        assert_fanned_out(host, backend)
