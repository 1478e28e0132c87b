"""The built pages show what readers look for."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fanout_sync

pytest.importorskip("sphinx_copybutton", reason="the pages are built with the extra `docs`")

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the pages, as .ci/run does, and return their folder."""
    built = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(built)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return built


def text_of(page: Path) -> str:
    """Return the text of a page without its sidebars, each run of white space as one blank."""
    article = re.search(r"<article.*?</article>", page.read_text(encoding="utf-8"), re.DOTALL)
    assert article is not None
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", article[0])).split())


@pytest.mark.parametrize(
    "signature",
    [
        "fanout_map( function: Callable[[T], object], items: Iterable[T], *, task_id:",
        "max_concurrency: int | None = None, timeout: float | None = None,",
        "backend: Literal['thread', 'process'] | Executor = 'thread'",
        "executor: AgentExecutor, specs: Iterable[AgentStepSpec], event_tx:",
        "stream( specs: Iterable[AgentStepSpec], order: Literal['input', 'completion'] = 'input', ) → OutcomeStream",
        "from_json(text: str | bytes) → StepOutcome",
        "retry_on: type[BaseException] | tuple[type[BaseException], ...]",
    ],
)
def test_signatures_show_types(pages: Path, signature: str) -> None:
    """The types of arguments and results stand in the signature, by the names that readers know."""
    assert signature in text_of(pages / "reference" / "api.html")


@pytest.mark.parametrize("page", ["api", "events", "errors"])
def test_attributes_are_called_attributes(pages: Path, page: str) -> None:
    """Fields of attrs classes are listed as attributes."""
    text = text_of(pages / "reference" / f"{page}.html")
    assert "Attributes:" in text
    assert "Variables:" not in text


def test_nothing_private_stands_in_signatures(pages: Path) -> None:
    """No module of the package, and nothing that only serves the package, is in a page of the API."""
    text = text_of(pages / "reference" / "api.html")
    modules = set(re.findall(r"fanout_sync\.([a-z]\w*)\.", text))
    assert not modules, f"names of modules: {modules}"
    assert "NoReturn" not in text
    assert "attr_dict" not in text
    assert "<class" not in text


def test_public_names_have_an_entry_to_link_to(pages: Path) -> None:
    """Whatever `fanout_sync` exports can be linked to in the reference."""
    reference = "".join(page.read_text(encoding="utf-8") for page in (pages / "reference").glob("*.html"))
    entries = set(re.findall(r'id="fanout_sync\.(\w+)"', reference))
    assert set(vars(fanout_sync)["__all__"]) <= entries


def test_no_markup_is_left(pages: Path) -> None:
    """What the pages write as lists, definitions and links is shown as such."""
    left = [
        f"{page.relative_to(pages)}: {text}"
        for page in pages.rglob("*.html")
        for text in re.findall(r"<p>.*?</p>", page.read_text(encoding="utf-8"), re.DOTALL)
        if re.search(r"\n: |\n- |\]\(|```", text)
    ]
    assert not left


def test_code_can_be_copied(pages: Path) -> None:
    """Pages load the copy button."""
    assert "copybutton.js" in (pages / "index.html").read_text(encoding="utf-8")


def test_home_page_does_not_repeat_the_sidebar(pages: Path) -> None:
    """The home page has code and a table, and no list of all pages."""
    home = (pages / "index.html").read_text(encoding="utf-8")
    article = home[home.index("<article") : home.index("</article>")]
    assert "toctree-l1" not in article
    assert "<table" in article
    assert "fanout_map" in article
