"""Folders of a program's own in which it still finds what the user has set up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path


def link_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Make links in a folder to the files and folders of another one that are there; what is there already stays."""
    for name in names:
        if (source / name).exists():
            with contextlib.suppress(FileExistsError):
                (target / name).symlink_to((source / name).absolute())
