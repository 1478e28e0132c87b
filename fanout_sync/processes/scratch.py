"""The folder for the temporary files of programs.

It goes away with the process that has started them, or its workers, however these end. Imports nothing of this package,
because the guard process uses it, too (see `guard_process.py`).
"""

from __future__ import annotations

import os

_PREFIX = "fanout-sync-"


def make_folder(mark: str) -> str:
    """Return the path of the folder that belongs to a mark; it is made if there is none.

    Raises:
        OSError: It cannot be made.
    """
    path = _path(mark)
    os.makedirs(path, mode=0o700, exist_ok=True)  # noqa: PTH103 - pathlib is slow to import
    return path


def remove_folder(mark: str | None) -> None:
    """Remove the folder that belongs to a mark, with all that is in it; links are not followed.

    Args:
        mark: The mark; `None` has no folder.
    """
    if mark is not None and os.path.isdir(path := _path(mark)):  # noqa: PTH112 - as above
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def _path(mark: str) -> str:
    # As `tempfile` does it, which cannot tell without a free descriptor, and is slow to import.
    folder = next(filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), "/tmp")
    return os.path.join(folder, _PREFIX + mark)  # noqa: PTH118 - as above
