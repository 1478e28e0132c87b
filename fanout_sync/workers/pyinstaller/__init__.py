"""What PyInstaller needs to know to freeze a program that uses this package; it asks by itself (see `setup.cfg`).

A frozen program has no Python to start: a worker process runs the program itself. `rthooks/` has what it runs first.
"""

from __future__ import annotations

from pathlib import Path


def hook_folders() -> list[str]:
    """Return the folders with hooks, as the entry point `hook-dirs` of PyInstaller wants."""
    return [str(Path(__file__).parent)]
