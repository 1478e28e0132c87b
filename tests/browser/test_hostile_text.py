"""Nothing that an agent, a prompt or an error says acts in a browser, wherever a notebook shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, Page, browser
from exporting import exported
from kernels import execute, notebook_of
from nbformat import NotebookNode

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # jupyter_client's own

TEXTS = [
    "<script>attacked('script')</script>",
    "</script></style></textarea></title><script>attacked('closing')</script>",
    "<img src=x onerror=\"attacked('image')\">",
    "<svg onload=\"attacked('svg')\"><script>attacked('script in svg')</script></svg>",
    "' onmouseover='attacked(\"quote\")' autofocus onfocus='attacked(\"focus\")' x='",
    '" onclick="attacked(\'double quote\')" style="position:fixed;inset:0" x="',
    "<a href=\"javascript:attacked('link')\">here</a>",
    "[here](javascript:attacked('markdown'))",
    "javascript:attacked('address')",
    "<iframe srcdoc=\"<script>parent.attacked('frame')</script>\"></iframe>",
    "<iframe src='https://evil.example/frame'></iframe>",
    "<details open ontoggle=\"attacked('toggle')\"><summary>here</summary></details>",
    "</td></tr></table></div></div><form action=\"javascript:attacked('form')\"><button>here</button></form>",
    "<style>@import 'https://evil.example/style'; * { background: url(https://evil.example/url) !important }</style>",
    "<link rel=stylesheet href=https://evil.example/link><base href=https://evil.example/base>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/refresh'>",
    "<object data=https://evil.example/object></object><embed src=https://evil.example/embed>",
    "<video><source onerror=\"attacked('video')\" src=https://evil.example/video></video>",
    "--><script>attacked('comment')</script><!--",
    "]]><script>attacked('cdata')</script>",
    "<noscript><p title=\"</noscript><img src=x onerror=attacked('noscript')>\">",
    "<math><mtext><table><mglyph><style><img src=x onerror=attacked('mutation')>",
    "&lt;script&gt;attacked('escaped')&lt;/script&gt;",
    "\uff1cscript\uff1eattacked('wide')\uff1c/script\uff1e",
    "+ADw-script+AD4-attacked('utf-7')+ADw-/script+AD4-",
    "<\x00script>attacked('nul')</\x00script>\x1b]8;;javascript:attacked('terminal')\x07here\x1b]8;;\x07",
    "\ud800<script>attacked('surrogate')</script>",
    "$\\href{javascript:attacked('formula')}{here}$ \\(\\unicode{<img src=x onerror=attacked('tex')>}\\)",
    "{{constructor.constructor('attacked(1)')()}} ${attacked('template')} <%= attacked('erb') %>",
]

CELLS = {
    "prepare": f"""
        from IPython.display import display
        from fanout_sync import AgentStepSpec, FunctionExecutor, Retry, Runner, SqliteJournal, StepOutcome

        TEXTS = {TEXTS!a}

        def attack(spec):
            if spec.description == "raise":
                name = spec.prompt.replace("\\0", "").encode("utf-8", "replace").decode()
                raise type(name, (Exception,), {{}})(spec.prompt)
            return StepOutcome(
                spec.task_id, spec.prompt, spec.agent, spec.prompt, spec.description == "succeed", {{spec.prompt: 1}}
            )

        def specs_of(text):
            return [
                AgentStepSpec(text + str(n), text, how, text) for n, how in enumerate(["succeed", "fail", "raise"])
            ]
    """,
    "runs": """
        for text in TEXTS:
            run = Runner(FunctionExecutor({text: attack}), retry=Retry(2, wait=0)).run(specs_of(text))
            display(run, *run, *run.records)
    """,
    "stream": """
        stream = Runner(FunctionExecutor(dict.fromkeys(TEXTS, attack))).stream(sum(map(specs_of, TEXTS), []))
        outcomes = list(stream)
        stream
    """,
    "handle": """
        handle = Runner(FunctionExecutor({TEXTS[0]: attack})).start(specs_of(TEXTS[0]))
        result = handle.result()
        handle
    """,
    "journal": """
        encodable = [text for text in TEXTS if text.isprintable() or "\\0" in text]
        executor = FunctionExecutor(dict.fromkeys(encodable, attack))
        Runner(executor, journal="run.db").run(sum(map(specs_of, encodable), []))
        journal = SqliteJournal("run.db")
        display(*journal.records(journal.workflows()[0]))
    """,
}

TRAP = """
<script>
    window.attacks = [];
    window.attacked = name => window.attacks.push(name);
    for (const name of ["alert", "confirm", "prompt", "open", "print"]) window[name] = () => window.attacked(name);
</script>
"""

TRY_ALL = """
    for (const element of document.querySelectorAll(arguments[0])) {
        for (const each of [element, ...element.querySelectorAll("*")]) {
            for (const name of ["mouseover", "mouseenter", "mousedown", "focus", "toggle", "error", "load", "submit"])
                each.dispatchEvent(new Event(name));
            each.click();
        }
    }
"""

MARKUP = """
    const found = {};
    for (const each of document.querySelectorAll(`${arguments[0]}, ${arguments[0]} *`))
        for (const name of [each.localName, ...each.getAttributeNames().map(name => "@" + name)])
            found[name] = (found[name] || 0) + 1;
    return found;
"""

DISPLAY = ".mathjax_ignore"
ALLOWED = {
    "div",
    "span",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "details",
    "summary",
    "@style",
    "@class",
    "@open",
}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    notebook = notebook_of(CELLS)
    execute(notebook, tmp_path_factory.mktemp("hostile"), with_widgets=False)
    return notebook


def displays_in(notebook: NotebookNode) -> list[str]:
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.outputs]
    return [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]


def assert_harmless(page: Page, displays: int) -> None:
    assert page.run("return document.querySelectorAll(arguments[0]).length", DISPLAY) == displays
    page.run(TRY_ALL, DISPLAY)
    page.note()
    assert page.run("return attacks") == []
    assert page.requests == []
    assert page.messages == []
    assert page.driver.current_url == page.address
    assert set(page.run(MARKUP, DISPLAY)) <= ALLOWED


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_exported_notebook_is_harmless(
    theme: str, executed: NotebookNode, chromium: Browser, tmp_path: Path
) -> None:
    """Every text is in prompts, outputs, names, ids and errors of runs, outcomes, records and journals."""
    html = exported(executed, theme).replace("<head>", f"<head>{TRAP}", 1)
    page = chromium.open(html, tmp_path / "page.html")
    shown = displays_in(executed)
    assert len(shown) > 7 * len(TEXTS)
    assert_harmless(page, sum(html.count('class="tex2jax_ignore') for html in shown))


def test_displays_are_harmless_where_scripts_are_run(executed: NotebookNode, chromium: Browser, tmp_path: Path) -> None:
    """Notebooks put a display into the page as it is and run its scripts; what is read back and put in again, too."""
    page = chromium.open(f"<!DOCTYPE html><head><meta charset=utf-8>{TRAP}</head><body></body>", tmp_path / "page.html")
    shown = displays_in(executed)
    page.run(
        """
        for (const html of arguments[0]) {
            const output = document.body.appendChild(document.createElement("div"));
            output.innerHTML = html;
            output.innerHTML = output.innerHTML;
            for (const script of output.querySelectorAll("script")) eval(script.textContent);
        }
        """,
        shown,
    )
    assert_harmless(page, sum(html.count('class="tex2jax_ignore') for html in shown))


def test_the_trap_works(chromium: Browser, tmp_path: Path) -> None:
    """The same texts do attack where they are not escaped."""
    page = chromium.open(f"<!DOCTYPE html><head><meta charset=utf-8>{TRAP}</head><body></body>", tmp_path / "page.html")
    page.run(
        "document.body.innerHTML = `<div class=mathjax_ignore>${arguments[0]}</div>`",
        "".join([TEXTS[2], TEXTS[6], TEXTS[10]]),
    )
    page.run(TRY_ALL, DISPLAY)
    page.note()
    assert {"image", "link"} <= set(page.run("return attacks"))
    assert "https://evil.example/frame" in page.requests
