"""What is installed agrees with what the checkout says."""

from __future__ import annotations

import configparser
import re
from importlib import metadata, resources
from pathlib import Path

import fanout_sync

ROOT = Path(__file__).parents[2]


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def test_installed_version_is_that_of_the_checkout() -> None:
    """The tests run against what this checkout holds, and not against an older installation."""
    assert metadata.version("fanout_sync") == read_setup()["metadata"]["version"]


def test_changelog_describes_the_version() -> None:
    """The changelog has an entry for the version that setup.cfg states."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(metadata.version('fanout_sync'))}\b", changelog, re.MULTILINE)


def test_type_hints_are_marked_as_such() -> None:
    """Type checkers believe the hints of an installed package only if it ships `py.typed`."""
    assert resources.files(fanout_sync).joinpath("py.typed").is_file()


def test_command_is_installed() -> None:
    """`fanout-sync` points at the command line."""
    (command,) = metadata.entry_points(group="console_scripts", name="fanout-sync")
    assert command.value == "fanout_sync.cli:main"


def test_lowest_deps_are_the_lower_bounds() -> None:
    """The environment `lowest-deps` tests exactly the versions from which setup.cfg says that it works."""
    bounds = read_setup()["options"]["install_requires"].replace(">=", "==").split()
    pins = (ROOT / "tests" / "lowest-deps.txt").read_text(encoding="utf-8").splitlines()
    assert [pin for pin in pins if not pin.startswith("#")] == bounds
