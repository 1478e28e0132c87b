"""Executes the notebook of examples/ and stores it with its outputs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kernels import EXAMPLE, execute, read_notebook, write_notebook

if __name__ == "__main__":
    notebook = read_notebook(EXAMPLE)
    with tempfile.TemporaryDirectory() as folder:
        # Without widgets: where a notebook is only looked at, they are shown as they were at their beginning.
        execute(notebook, Path(folder), with_widgets=False)
    notebook.metadata.language_info = {"name": "python"}  # not the version of the Python that has stored it
    write_notebook(notebook, EXAMPLE)
