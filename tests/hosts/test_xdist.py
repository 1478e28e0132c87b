"""In tests that pytest runs in the worker processes of pytest-xdist."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosting import PYTHON, assert_fanned_out, hosted, write_program
from scripts import each_backend

TESTS = """
import pytest

@pytest.mark.parametrize("number", range(2))
def test_fans_out(number):
    fan_out(os.environ["BACKEND"], f"report{number}")
"""


@each_backend
@pytest.mark.parametrize("mode", ["prepend", "importlib"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_test_fans_out(workers: str, mode: str, backend: str, tmp_path: Path) -> None:
    """The agents of a test module run, also if pytest gives the module a name that nobody can import."""
    (tmp_path / "tests").mkdir()
    write_program(tmp_path / "tests", TESTS, "test_app.py")
    command = (PYTHON, "-m", "pytest", "-n", workers, "--import-mode", mode, "tests")
    with hosted(tmp_path, *command, BACKEND=backend) as host:
        assert host.wait() == 0, host.log
        assert_fanned_out(host, backend, "report0")
        assert_fanned_out(host, backend, "report1")
