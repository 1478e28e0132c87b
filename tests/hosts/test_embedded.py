"""In a C program that embeds Python, where `sys.executable` is that program, or nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hosting import Host, assert_fanned_out, hosted, write_program
from scripts import SEARCHED, each_backend

SOURCE = Path(__file__).with_name("embedding.c")

TELL = f"""
import multiprocessing
multiprocessing.set_executable({sys.executable!r})
"""


@pytest.fixture(scope="session")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program, compiled."""
    compiler = shutil.which("cc")
    folder = sysconfig.get_config_var("LIBDIR")
    library = f"python{sysconfig.get_config_var('LDVERSION')}"
    if compiler is None or not Path(folder, f"lib{library}.so").exists():
        pytest.skip("needs a C compiler and a shared libpython")
    target = tmp_path_factory.mktemp("embedding") / "host"
    include = f"-I{sysconfig.get_path('include')}"
    libraries = (f"-L{folder}", f"-Wl,-rpath,{folder}", f"-l{library}")
    subprocess.run([compiler, include, SOURCE, "-o", target, *libraries], check=True, timeout=100)
    return target


def settings(backend: str) -> dict[str, str]:
    searched = [*SEARCHED, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return {
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": os.pathsep.join(searched),
        "PROGRAM": "app.py",
        "BACKEND": backend,
    }


def assert_started_once(host: Host) -> None:
    assert host.wait() == 0, host.log
    assert (host.folder / "starts").read_text() == "started\n", "it started itself"


@each_backend
@pytest.mark.parametrize("executable", [None, "/nonexistent/host"], ids=["itself", "nothing"])
def test_embedded_interpreter_fans_out(executable: str | None, backend: str, embedding: Path, tmp_path: Path) -> None:
    """It gets every outcome, or processes are refused before any starts; the program never starts itself."""
    write_program(tmp_path, 'fan_out(os.environ["BACKEND"])')
    named = {} if executable is None else {"EXECUTABLE": executable}
    with hosted(tmp_path, embedding, **settings(backend), **named) as host:
        assert_started_once(host)
        assert_fanned_out(host, backend)


@each_backend
def test_program_names_the_interpreter(backend: str, embedding: Path, tmp_path: Path) -> None:
    """A program that tells multiprocessing where Python is fans out on processes, too."""
    write_program(tmp_path, TELL + 'fan_out(os.environ["BACKEND"])')
    with hosted(tmp_path, embedding, **settings(backend)) as host:
        assert_started_once(host)
        assert "refused" not in host.report()
        assert_fanned_out(host, backend)
