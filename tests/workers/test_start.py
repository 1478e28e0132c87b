"""Workers start wherever their caller runs, and import only what it would import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from bounds import HANG_BOUND_S
from scripts import run_python

import fanout_sync

PREAMBLE = """
import json, os, sys
from fanout_sync import FunctionExecutor, OptionError, Runner
from fanout_sync.testing import make_specs

def run(agent, count=1):
    runner = Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=1)
    return runner.run(make_specs(count))

def show(value):
    print(json.dumps(value))
"""

SITE_PACKAGES = str(Path(cloudpickle.__file__).parents[1])
PACKAGE_FOLDER = str(Path(fanout_sync.__file__).parents[1])


def run_script(
    tmp_path: Path, source: str, *flags: str, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> Any:
    """Return what a script has shown; it lies in a folder of its own."""
    folder = tmp_path / "script"
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(PREAMBLE + source)
    done = run_python(*flags, script, cwd=cwd or tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


SHADOWED = ["random", "queue", "json", "signal", "threading", "attr", "loky", "fanout_sync", "encodings", "site"]


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """Return a folder with modules that shadow others, and note it when they are imported."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in [*SHADOWED, "sitecustomize", "usercustomize"]:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'a').write({name!r})\nraise SystemExit")
    return folder


LOCK_IN_A_STEP = """
def lock(spec):
    import multiprocessing  # whose semaphores need a resource tracker
    kept.append(multiprocessing.get_context("spawn").Lock())
    return os.getcwd()

kept = []
show([record.status for record in run(lock).records])
"""


@pytest.mark.parametrize(
    ("flags", "environment"),
    [([], {}), (["-P"], {}), (["-I"], {}), ([], {"PYTHONSAFEPATH": "1"})],
    ids=["plain", "-P", "-I", "PYTHONSAFEPATH"],
)
def test_nothing_is_imported_from_the_current_directory(
    flags: list[str], environment: dict[str, str], trap: Path, tmp_path: Path
) -> None:
    """Neither a worker nor the processes beside it run a module of the current directory, which may be a trap."""
    if flags == ["-P"] and sys.version_info < (3, 11):
        flags = []
    if flags == ["-I"]:  # which ignores PYTHONPATH
        source = f"import sys; sys.path[1:1] = {[PACKAGE_FOLDER, SITE_PACKAGES]!r}\n" + LOCK_IN_A_STEP
    else:
        source = LOCK_IN_A_STEP
    assert run_script(tmp_path, source, *flags, cwd=trap, environment=environment) == ["succeeded"]
    assert not (tmp_path / "sprung").exists()


def test_nothing_is_imported_from_a_relative_search_path_after_a_change_of_directory(
    trap: Path, tmp_path: Path
) -> None:
    """A relative PYTHONPATH means the folder where the caller was started, not that where it is now."""
    source = f"os.chdir({str(trap)!r})\n{LOCK_IN_A_STEP}"
    search = os.pathsep.join([".", *sys.path])
    assert run_script(tmp_path, source, environment={"PYTHONPATH": search}) == ["succeeded"]
    assert not (tmp_path / "sprung").exists()


def test_workers_search_where_the_caller_searches(tmp_path: Path) -> None:
    """The search path of a worker is the caller's, in its order, whatever the script has done to it."""
    source = """
sys.path.insert(0, "vendor")
sys.path.append("/nowhere")
show([sys.path, json.loads(run(lambda spec: json.dumps(sys.path))[0].output)])
"""
    ours, theirs = run_script(tmp_path, source)
    assert ours == theirs


@pytest.mark.parametrize("value", ["'/bin/false'", "'/nonexistent/uwsgi'", "''", "None"])
def test_a_program_that_embeds_python(value: str, tmp_path: Path) -> None:
    """Workers run with the Python beside the library where `sys.executable` is no Python at all."""
    source = f"sys.executable = {value}\nshow(run(lambda spec: 'answer')[0].output)"
    assert run_script(tmp_path, source) == "answer"


@pytest.mark.parametrize("name", ["python3", "run-app"])
def test_the_executable_of_multiprocessing_is_used(name: str, tmp_path: Path) -> None:
    """`multiprocessing.set_executable` decides which Python runs the workers; it may have any name."""
    python = tmp_path / name
    python.write_text(f'#!/bin/sh\necho started >> "{tmp_path}/log"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    source = f"""
import multiprocessing
multiprocessing.set_executable({str(python)!r})
show(run(lambda spec: 'answer')[0].output)
"""
    assert run_script(tmp_path, source) == "answer"
    assert "started" in (tmp_path / "log").read_text()


def test_without_any_python_the_run_is_refused(tmp_path: Path) -> None:
    """Where no Python can be found, the error says what to do, and no step runs."""
    source = """
sys.executable = "/bin/false"
sys.prefix = sys.exec_prefix = sys.base_exec_prefix = "/nowhere"
try:
    run(lambda spec: 'answer')
except OptionError as error:
    show(str(error))
"""
    message = run_script(tmp_path, source)
    assert "'/bin/false'" in message
    assert "multiprocessing.set_executable()" in message


def test_a_frozen_program_that_cannot_start_workers_is_refused(tmp_path: Path) -> None:
    """A frozen program starts no worker if that would start the program itself."""
    source = """
sys.frozen = True
try:
    run(lambda spec: 'answer')
except OptionError as error:
    show(str(error))
"""
    assert "PyInstaller" in run_script(tmp_path, source)


def test_vendored_libraries(tmp_path: Path) -> None:
    """Workers find this package and its dependencies where the script has found them, on a path of its own."""
    vendor = tmp_path / "vendor"
    vendor.mkdir()
    for name in ["attr", "attrs", "cattr", "cattrs", "cloudpickle", "loky", "typing_extensions.py", "exceptiongroup"]:
        if (Path(SITE_PACKAGES) / name).exists():
            (vendor / name).symlink_to(Path(SITE_PACKAGES) / name)
    (vendor / "fanout_sync").symlink_to(Path(PACKAGE_FOLDER) / "fanout_sync")
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(vendor)!r})\n{PREAMBLE}\nshow(run(lambda spec: 'answer')[0].output)"
    )
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(base), "-I", "-S", str(script)],
        capture_output=True,
        text=True,
        timeout=HANG_BOUND_S,
        check=False,
        env=environment,
    )
    assert (done.stdout, done.stderr) == ('"answer"\n', "")


def test_a_directory_that_was_deleted(tmp_path: Path) -> None:
    """Workers start in a directory that is gone."""
    source = """
import tempfile
home = tempfile.mkdtemp()
os.chdir(home)
os.rmdir(home)
show(run(lambda spec: 'answer')[0].output)
"""
    assert run_script(tmp_path, source) == "answer"


FLAGS = [
    "-O",
    "-B",
    "-s",
    "-X",
    "utf8",
    "-X",
    "int_max_str_digits=5000",
    "-X",
    "faulthandler",
    "-W",
    "error::FutureWarning",
]


def test_the_flags_of_the_interpreter_are_passed_on(tmp_path: Path) -> None:
    """A worker runs with the flags that its caller was started with."""
    source = """
def flags(spec=None):
    return json.dumps([sys.flags, sys._xoptions, sys.warnoptions, __debug__])

show([flags(), run(flags)[0].output])
"""
    ours, theirs = run_script(tmp_path, source, *FLAGS)
    assert json.loads(ours) == json.loads(theirs)
    assert json.loads(ours)[3] is False


def test_in_a_daemonic_process(tmp_path: Path) -> None:
    """Steps run in workers of a daemonic process, such as those of `multiprocessing.Pool` and of task queues."""
    source = """
def task():
    return [outcome.output for outcome in run(lambda spec: spec.prompt, 3)]

if __name__ == "__main__":
    import multiprocessing
    found = []
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            found.append(pool.apply(task))
    show(found)
"""
    assert run_script(tmp_path, source) == [["0", "1", "2"]] * 2


@pytest.mark.parametrize("call", ["run()", "list(stream())", "submit()"])
def test_a_module_that_fans_out_while_it_is_imported(call: str, tmp_path: Path) -> None:
    """A worker that imports such a module by way of another one does not fan out in turn: the run is refused."""
    (tmp_path / "agents.py").write_text("def agent(spec):\n    return 'answer'\n\nimport pipeline\n")
    (tmp_path / "pipeline.py").write_text(
        f"""
import os
from fanout_sync import FunctionExecutor, ProcessBackend, Runner
from fanout_sync.testing import make_specs

open({str(tmp_path / "imports")!r}, "a").write("x")

def runner():
    from agents import agent
    return Runner(FunctionExecutor({{"tester": agent}}), backend="process", max_concurrency=1)

def run():
    return runner().run(make_specs(1))

def stream():
    return runner().stream(make_specs(1))

def submit():
    from agents import agent
    with ProcessBackend(1) as backend:
        return backend.submit(agent, None).result()

if os.path.getsize({str(tmp_path / "imports")!r}) < 20:
    {call}
"""
    )
    source = f"""
sys.path.insert(0, {str(tmp_path)!r})
try:
    import pipeline
except Exception as error:
    show(f"{{type(error).__name__}}: {{error}}")
"""
    message = run_script(tmp_path, source)
    assert "if __name__ == '__main__'" in message
    assert len((tmp_path / "imports").read_text()) <= 4


def test_a_worker_inherits_no_other_descriptors(tmp_path: Path) -> None:
    """Descriptors of the script that are inheritable, as those of libraries in C are, do not come along."""
    source = """
import socket
pipes = [os.pipe() for _ in range(3)]
for end in (end for pipe in pipes for end in pipe):
    os.set_inheritable(end, True)
inodes = [os.fstat(end).st_ino for pipe in pipes for end in pipe]

def look(spec):
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.fstat(int(name)).st_ino)
        except OSError:
            pass
    return json.dumps([inode in found for inode in inodes])

show(json.loads(run(look)[0].output))
"""
    assert run_script(tmp_path, source) == [False] * 6


def test_descriptors_that_a_sitecustomize_has_opened_stay_open(tmp_path: Path) -> None:
    """What a `sitecustomize` opens in each process, such as the connection of a debugger, works in a worker."""
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nsys.opened = os.open('/dev/null', os.O_RDONLY)\n")
    source = "show(run(lambda spec: str(os.fstat(sys.opened).st_rdev == os.stat('/dev/null').st_rdev))[0].output)"
    search = os.pathsep.join([str(tmp_path), *sys.path])
    assert run_script(tmp_path, source, environment={"PYTHONPATH": search}) == "True"


@pytest.mark.parametrize(
    "name", ["multiprocessing.resource_tracker", "loky.backend.resource_tracker", "multiprocessing.spawn"]
)
def test_a_module_that_another_thread_is_importing(name: str, tmp_path: Path) -> None:
    """A worker starts while another thread has begun to import a module that starting one has a look at."""
    source = f"""
import types
sys.modules[{name!r}] = types.ModuleType({name!r})  # as it is at first
from fanout_sync.workers.worker_start import start_worker
worker = start_worker(captures_output=False)
worker.discard()
show(worker.pid > 0)
"""
    assert run_script(tmp_path, source) is True


@pytest.mark.parametrize("name", ["PYTHONINSPECT", "LONG"])
def test_environment_variables_that_no_process_can_be_started_with(name: str, tmp_path: Path) -> None:
    """A variable of any length comes to the worker, and none has a process ask for input."""
    source = f"""
value = "x" * 200_000
os.environ[{name!r}] = value
show(run(lambda spec: str(os.environ[{name!r}] == value))[0].output)
"""
    assert run_script(tmp_path, source) == "True"
