"""The picture of the live view in README, and the script that draws it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from scripts import run_python

DOCS = Path(__file__).parents[2] / "docs"
PICTURE = DOCS / "images" / "live-view.svg"


def text_of(picture: Path) -> str:
    """Return what is written in a picture, which must be valid XML."""
    texts = ElementTree.fromstring(picture.read_text(encoding="utf-8")).iter("{http://www.w3.org/2000/svg}text")
    return "\n".join((text.text or "").replace("\xa0", " ") for text in texts)


@pytest.mark.parametrize("page", ["../README.md", "how-to/command-line.md", "how-to/progress.md"])
def test_pages_show_the_picture(page: str) -> None:
    """The path that they name leads to it."""
    path = DOCS / page
    (named,) = re.findall(r"!\[[^\]]+\]\((\S+live-view\.svg)\)", path.read_text(encoding="utf-8"))
    assert (path.parent / named).resolve() == PICTURE.resolve()


def test_the_picture_needs_nothing_else() -> None:
    """It has no script, and loads no font or image: a browser may show it anywhere."""
    source = PICTURE.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|@import|@font-face|href|<script", source)
    text = text_of(PICTURE)
    for said in ("fanout-sync run", "/400 steps (45 %)", "retried", "/min", "projected", "running longest", "failures"):
        assert said in text


def test_the_script_draws_a_real_run(tmp_path: Path) -> None:
    """It shows what a terminal shows in the middle of a run."""
    picture = tmp_path / "picture.svg"
    done = run_python(DOCS / "draw_live_view.py", "--steps", "40", "-o", picture, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = text_of(picture)
    assert re.search(r"\b(\d+)/40 steps", text), text
    assert "running longest" in text
    assert [path.name for path in tmp_path.iterdir()] == ["picture.svg"]
