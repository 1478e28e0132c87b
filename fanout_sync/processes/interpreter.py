"""Which Python runs worker processes, and with which flags."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from functools import lru_cache

from ..errors import OptionError

_PYTHON_NAME = re.compile(r"(python|pypy)[\d.]*t?d?w?(\.exe)?", re.IGNORECASE)
_TRIAL_S = 10.0
"""So many seconds, at most, a program of another name than Python's has to show that it is one."""

FROZEN_OPTION = "--fanout-sync-process"
"""The first argument of a frozen program that is to run a process of this package; see `pyinstaller/`."""


def command(program: str) -> list[str]:
    """Return the command line that runs `program`, source text, in an interpreter like this one.

    Raises:
        OptionError: This program cannot start another Python.
    """
    if os.name != "posix":
        raise OptionError(f"backend='process' is not supported on {sys.platform}: use backend='thread'")
    if getattr(sys, "frozen", False):
        return [_frozen_executable(), FROZEN_OPTION, program]
    return [executable(), *flags(), "-c", program]


def executable() -> str:
    """Return the Python that runs worker processes.

    It is the one of `multiprocessing.set_executable`, if that was called, or else `sys.executable`. Programs that embed
    Python, such as uWSGI, have there a name that is not Python's; then it is the one beside their standard library.

    Raises:
        OptionError: There is none.
    """
    chosen = _chosen()
    if chosen is not None and chosen != sys.executable and (_is_python(chosen) or _runs_python(chosen)):
        return chosen
    for candidate in _candidates():
        if _is_python(candidate):
            return candidate
    raise OptionError(
        "backend='process' starts worker processes with the Python of sys.executable, which is "
        f"{sys.executable!r}, and neither that nor a file in {sys.exec_prefix!r} is a Python: call "
        "multiprocessing.set_executable() with the path of one, or use backend='thread'"
    )


def flags() -> list[str]:
    """Return the flags that this interpreter was started with: `-O`, `-W`, `-X`, `-I` and so on."""
    # As `multiprocessing.spawn` does. It leaves out those options of `-X` that only some versions know.
    import subprocess  # imported lazily: slow

    given: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    passed = {given[place + 1].partition("=")[0] for place, flag in enumerate(given) if flag == "-X"}
    for name, value in sys._xoptions.items():
        if name not in passed:
            given += ["-X", name if value is True else f"{name}={value}"]
    return given


def _frozen_executable() -> str:
    if not getattr(sys, "_fanout_sync_is_hooked", False):
        raise OptionError(
            "backend='process' cannot start worker processes in this frozen program, because it would start itself "
            "again and again: freeze it with PyInstaller, which finds the hook of fanout_sync by itself, or use "
            "backend='thread'"
        )
    return sys.executable


def _chosen() -> str | None:
    """Return what `multiprocessing` starts: by default what `sys.executable` was when that module was imported."""
    # `get_executable` fails while another thread imports the module.
    chosen = getattr(sys.modules.get("multiprocessing.spawn"), "_python_exe", None)
    return os.fsdecode(chosen) if chosen else None


def _candidates() -> Iterator[str]:
    if sys.executable:
        yield sys.executable
    major, minor = sys.version_info[:2]
    for prefix in dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_exec_prefix)):
        for name in (f"python{major}.{minor}", f"python{major}", "python"):
            yield os.path.join(prefix, "bin", name)  # noqa: PTH118 - pathlib would be slow to import


@lru_cache
def _runs_python(path: str) -> bool:
    """Return whether a program that has another name, such as a script that starts a Python, runs programs."""
    import subprocess  # imported lazily: slow, and hardly ever needed

    command = [path, "-c", "print('Python')"]
    nowhere = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, stdin=nowhere, stdout=subprocess.PIPE, stderr=nowhere, timeout=_TRIAL_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() == b"Python"


def _is_python(path: str) -> bool:
    names = (os.path.basename(path), os.path.basename(os.path.realpath(path)))  # noqa: PTH119 - as above
    return any(map(_PYTHON_NAME.fullmatch, names)) and os.access(path, os.X_OK)
