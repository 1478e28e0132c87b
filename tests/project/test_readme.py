"""Every example in README and the docs runs, and prints what its page says it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

import fanout_sync

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
"""Programs that the examples call, and that a machine need not have."""

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
END_OF_BLOCK = "\x1e"


@frozen
class Block:
    """A fenced block of a page; `line` is the number of its first line, from 1."""

    language: str
    line: int
    text: str


def blocks_of(page: str) -> Iterator[Block]:
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield Block(match[1], page.count("\n", 0, match.start()) + 2, match[2])


def script_of(page: str) -> str:
    """Return the page's Python at the very lines where the page has it, so that tracebacks point into the page."""
    lines = [""] * (page.count("\n") + 1)
    for block in blocks_of(page):
        if block.language == "python":
            code = [*block.text.splitlines(), f"print({END_OF_BLOCK!r})"]
            lines[block.line - 1 : block.line - 1 + len(code)] = code
    return "\n".join(lines)


def outputs_of(page: str) -> list[str | None]:
    """Return what each Python block should print: the `text` block right after it, or None if there is none."""
    blocks = list(blocks_of(page))
    return [
        after.text if after is not None and after.language == "text" else None
        for block, after in zip(blocks, [*blocks[1:], None], strict=True)
        if block.language == "python"
    ]


def files_of(page: str) -> Iterator[tuple[str, str]]:
    """Yield name and content of each file that the page shows."""
    for block in blocks_of(page):
        if block.language.startswith("{code-block}"):
            caption, _, content = block.text.partition("\n\n")
            yield caption.removeprefix(":caption: "), content


def sessions_of(page: str) -> Iterator[tuple[str, str]]:
    """Yield each command that the page shows after a `$`, with the output it shows."""
    for block in blocks_of(page):
        if block.language == "console":
            for session in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, output = session.partition("\n")
                yield command, output


def pages_with(language: str) -> list[Any]:
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES}
    return [
        pytest.param(page, id=path.name)
        for path, page in pages.items()
        if any(block.language == language for block in blocks_of(page))
    ]


def assert_shown(shown: str, printed: str) -> None:
    """Check an output against what a page shows of it, where `...` stands for anything."""
    pattern = re.escape(shown).replace(r"\.\.\.", ".*")
    if not re.fullmatch(pattern, printed, re.DOTALL):
        assert printed == shown


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_of_a_page_prints_what_the_page_shows(page: str, tmp_path: Path) -> None:
    """The Python blocks of a page run in order as one script; a text block after one is what it prints."""
    (tmp_path / "page.py").write_text(script_of(page), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        cwd=tmp_path,
        env={**os.environ, "PATH": os.pathsep.join([str(STAND_INS), os.environ["PATH"]])},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for shown, printed in zip(outputs_of(page), done.stdout.split(f"{END_OF_BLOCK}\n"), strict=False):
        if shown is not None:
            assert_shown(shown, printed)


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_of_a_page_print_what_the_page_shows(page: str, tmp_path: Path) -> None:
    """The commands of a page run in a folder that holds the files it shows."""
    for name, content in files_of(page):
        (tmp_path / name).write_text(content, encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command, shown in sessions_of(page):
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert_shown(shown, done.stdout)


def test_readme_opens_with_an_example() -> None:
    """README has Python to run, and shows what it prints: the tests above have not gone blind."""
    shown, *_ = outputs_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown is not None


@pytest.mark.parametrize("name", ["run", "test"])
def test_commands_are_one_line_each(name: str) -> None:
    """The two commands that .ci/run takes out of README can be copied and pasted as one line."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(rf"^<!-- command: {name} -->\n```sh\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert len(command.splitlines()) == 1
    assert command.startswith("python3 -m venv .venv && ")


def test_reference_lists_every_public_name() -> None:
    """Whatever `fanout_sync` exports is documented in docs/reference."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^\.\. (?:auto\w+|py:data):: (\w+)", pages, re.MULTILINE))
    assert documented == set(vars(fanout_sync)["__all__"])
