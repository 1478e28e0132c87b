"""Disks in a bad state, for tests: a full one, and one that cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(path: Path, kib: int = 1024) -> Iterator[Path]:
    """Make a directory a disk of `kib` KiB; skip the test if mounting is not permitted."""
    path.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(path))
    try:
        yield path
    finally:
        _run("umount", "--lazy", str(path))


@contextmanager
def read_only(path: Path) -> Iterator[Path]:
    """Make a directory and its content read-only: by permissions, or for root, which ignores them, by a mount."""
    if os.geteuid():
        with _without_permission(path):
            yield path
        return
    _run("mount", "--bind", str(path), str(path))
    try:
        _run("mount", "-o", "remount,ro,bind", str(path))
        yield path
    finally:
        _run("umount", "--lazy", str(path))


@contextmanager
def _without_permission(path: Path) -> Iterator[None]:
    modes = {each: each.stat().st_mode for each in (path, *path.rglob("*"))}
    for each, mode in modes.items():
        each.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for each, mode in modes.items():
            each.chmod(mode)


def _run(*command: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]} here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"cannot do '{' '.join(command)}': {done.stderr.strip().splitlines()[0]}")
