"""In programs that PyInstaller has frozen, as a folder or one file, with and without `freeze_support()`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hosting import PYTHON, assert_fanned_out, hosted, write_program
from scripts import SEARCHED, each_backend

MAIN = """
import multiprocessing

if __name__ == "__main__":
    if os.environ["FREEZE_SUPPORT"] == "yes":
        multiprocessing.freeze_support()
    mains = Ledger(FOLDER / "mains")
    mains.note("main")
    if mains.counts().total() > 3:
        raise SystemExit("the program starts itself again and again")
    fan_out(os.environ["BACKEND"])
"""
"""Its settings are in the environment, because a program that starts itself as a worker has other arguments."""

SPEC = """
analysis = Analysis(["main.py"], pathex=PATHS)
pyz = PYZ(analysis.pure)
EXE(pyz, analysis.scripts, analysis.binaries, analysis.datas, name="one_file")
COLLECT(
    EXE(pyz, analysis.scripts, exclude_binaries=True, name="one_folder"),
    analysis.binaries,
    analysis.datas,
    name="one_folder",
)
"""
"""Builds both kinds from one analysis."""

PROGRAMS = {"one_file": "one_file", "one_folder": "one_folder/one_folder"}

each_kind = pytest.mark.parametrize("kind", PROGRAMS)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the frozen programs, which are built once for all tests."""
    folder = tmp_path_factory.mktemp("frozen")
    write_program(folder, MAIN, "main.py")
    (folder / "main.spec").write_text(f"PATHS = {SEARCHED!r}\n{SPEC}")
    command = [PYTHON, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", "main.spec"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(SEARCHED)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "dist"


@each_backend
@pytest.mark.parametrize("freeze_support", ["yes", "no"])
@each_kind
def test_frozen_program_fans_out(kind: str, freeze_support: str, backend: str, built: Path, tmp_path: Path) -> None:
    """It gets every outcome, or processes are refused before any starts; it never starts itself all over again."""
    settings = {"FREEZE_SUPPORT": freeze_support, "BACKEND": backend, "PYTHONPATH": ""}
    with hosted(tmp_path, built / PROGRAMS[kind], **settings) as host:
        host.wait()
        assert (tmp_path / "mains").read_text() == "main\n", host.log
        assert_fanned_out(host, backend)
