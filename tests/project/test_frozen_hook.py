"""The hook that PyInstaller finds: the frozen program itself is run by `tox -e hosts`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

from bounds import HANG_BOUND_S

from fanout_sync.processes import interpreter
from fanout_sync.workers.pyinstaller import hook_folders


def test_pyinstaller_finds_the_hook() -> None:
    """The entry point leads to a folder with the hook and the runtime hook."""
    found = [entry for entry in entry_points(group="pyinstaller40") if entry.value.startswith("fanout_sync.")]
    assert [entry.load()() for entry in found] == [hook_folders()]
    (folder,) = map(Path, hook_folders())
    assert (folder / "hook-fanout_sync.py").is_file()
    (script,) = json.loads((folder / "rthooks.dat").read_text())["fanout_sync"]
    assert (folder / "rthooks" / script).is_file()


def test_the_runtime_hook_runs_a_worker_instead_of_the_program() -> None:
    """A frozen program that is started to be a worker runs the given text and ends; otherwise it goes on."""
    (folder,) = map(Path, hook_folders())
    hook = (folder / "rthooks" / "pyi_rth_fanout_sync.py").read_text()
    program = f"{hook}\nimport sys\nprint('the program', sys._fanout_sync_is_hooked, sys.argv[1:])"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=HANG_BOUND_S,
            check=True,
        )
        return done.stdout

    assert run("a", "b") == "the program True ['a', 'b']\n"
    assert run(interpreter.FROZEN_OPTION, "import sys; print('a worker', sys.argv[1:])") == "a worker []\n"
