"""Displays can be read: in light and dark themes, in wide and narrow windows, with long and with foreign texts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, Page, browser

from fanout_sync import AgentStepSpec, FunctionExecutor, Retry, Run, Runner, current_step

THEMES = {
    "bare": ("light", "", "<style>body { background: #fff; color: #000 }</style>"),
    "bare dark": ("dark", "", "<style>body { background: #000; color: #ccc }</style>"),
    "preferred light": ("light", "", "<style>@media (prefers-color-scheme: dark) { body { color: #f0f }}</style>"),
    "preferred dark": (
        "dark",
        "",
        "<style>body { background: #fff } "
        "@media (prefers-color-scheme: dark) { body { background: #131416; color: #cfd0d0 }}</style>",
    ),
    "JupyterLab": (
        "light",
        "data-jp-theme-light=true",
        "<style>body { background: #fff; color: rgba(0, 0, 0, .87); --jp-border-color2: #e0e0e0 }"
        "tbody tr:nth-child(odd) { background: #f5f5f5 }</style>",
    ),
    "JupyterLab dark": (
        "dark",
        "data-jp-theme-light=false",
        "<style>body { background: #111; color: #fff; --jp-border-color2: #616161 }"
        "body[data-jp-theme-light=false] tbody tr:nth-child(odd) { background: #212121 }</style>",
    ),
    "VS Code": (
        "light",
        "class=vscode-light",
        "<style>body { --vscode-foreground: #3b3b3b; background: #fff; color: var(--vscode-foreground) }</style>",
    ),
    "VS Code dark": (
        "dark",
        "class=vscode-dark",
        "<style>body { background: #1f1f1f }"
        "body.vscode-dark { --vscode-foreground: #ccc; color: var(--vscode-foreground) }</style>",
    ),
    "Colab dark": ("dark", "theme=dark", "<style>body { background: #383838; color: #d5d5d5 }</style>"),
}
"""The scheme that the user prefers, the attributes of the body, and the style; colours are those of the programs."""

COLOURS = """
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const paint = colour => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].map(each => each / 255);
    };
    const channels = (element, name = "color") => paint(getComputedStyle(element)[name]);
"""

CONTRASTS = f"""
    {COLOURS}
    const over = ([r, g, b, alpha], under) => [r, g, b].map((each, n) => each * alpha + under[n] * (1 - alpha));
    const linear = each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const background = element => {{
        if (!element) return [1, 1, 1];
        const colour = channels(element, "backgroundColor");
        return colour[3] == 1 ? colour.slice(0, 3) : over(colour, background(element.parentElement));
    }};
    const opacity = element => element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
    const found = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {{
        const text = texts.currentNode, element = text.parentElement;
        if (!text.data.trim() || element.localName == "style") continue;
        const behind = background(element), [r, g, b, alpha] = channels(element);
        const bright = [over([r, g, b, alpha * opacity(element)], behind), behind].map(luminance).sort((a, b) => b - a);
        found.push([text.data, (bright[0] + 0.05) / (bright[1] + 0.05)]);
    }}
    return found;
"""
"""Returns each text with its contrast, as WCAG 2.2 defines it: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""

LINES_OF = """
    const lines = element => {
        const range = document.createRange();
        range.selectNodeContents(element);
        return new Set([...range.getClientRects()].map(box => Math.round(box.bottom))).size;
    };
    return [...document.querySelectorAll(arguments[0])].map(element => [element.innerText, lines(element)]);
"""
"""Returns each element's text, and on how many lines it stands."""


def work(spec: AgentStepSpec) -> str:
    current_step().add_usage(prompt_tokens=123_456, completion_tokens=5_678, cost_usd=0.0123)
    if spec.prompt == "raise":
        raise RuntimeError("Error code: 429 - you exceeded your current quota, please check your plan and " + "x" * 300)
    if spec.prompt == "abort":
        os.abort()
    if spec.prompt == "hang":
        time.sleep(60)
    return spec.prompt


PROMPTS = [
    *("raise", "abort", "hang", "fine", "", "long text " * 1000, "x" * 5000, "line one\nline two\n\tindented"),
    *("مرحبا بالعالم \u202e \x00 (12)", "שלום, עולם!", "你好，世界", "\U0001f600", "Z\u0301\u0302\u0303\u0304" * 40),
]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def run() -> Run:
    """A run with all that makes a table wide."""
    agent = "an-agent-with-a-long-name"
    executor = FunctionExecutor({agent: work, "<lambda>": work})
    specs = [
        AgentStepSpec(f"reviews/2026-11/part-{place}" if place % 2 else f"t{place}", agent, "", prompt)
        for place, prompt in enumerate(PROMPTS)
    ]
    specs += [AgentStepSpec("u" * 150, "<lambda>", "", "one word")] * 30
    return Runner(executor, backend="process", max_concurrency=4, timeout=5, retry=Retry(2, wait=0)).run(specs)


@pytest.fixture(scope="module")
def cancelled() -> Run:
    """A run whose last steps were not started."""
    executor = FunctionExecutor({"worker": work})
    specs = [AgentStepSpec(f"t{n}", "worker", "", "raise") for n in range(5)]
    return Runner(executor, max_concurrency=1, max_failures=1).run(specs)


@pytest.fixture
def show(run: Run, cancelled: Run, chromium: Browser, tmp_path: Path) -> Callable[..., Page]:
    """Opens a page with a display of each kind."""
    shown: list[Any] = [run, cancelled, run[6], run.records[0], run.records[2], run[8]]

    def page(theme: str = "bare", **how: Any) -> Page:
        scheme, attributes, style = THEMES[theme]
        displays = "".join(f"<section>{each._repr_html_()}</section>" for each in shown)
        head = f"<!DOCTYPE html><meta charset=utf-8><style>body {{ font: 13px sans-serif }}</style>{style}"
        return chromium.open(f"{head}<body {attributes}>{displays}", tmp_path / "page.html", scheme=scheme, **how)

    return page


@pytest.mark.parametrize("theme", THEMES)
def test_every_text_has_contrast(theme: str, show: Callable[..., Page]) -> None:
    """At least that which WCAG asks of text, 4.5 to 1; what failed is red all the same."""
    page = show(theme)
    contrasts = page.run(CONTRASTS)
    assert len(contrasts) > 200
    assert [(text, contrast) for text, contrast in contrasts if contrast < 4.5] == []
    red, green, blue = page.run(f"{COLOURS} return channels(document.querySelector('td span')).slice(0, 3)")
    assert red > 1.7 * green
    assert red > 1.7 * blue
    page.store_picture(f"looks-{theme.replace(' ', '-')}.png", "body")


@pytest.mark.parametrize("width", [320, 500, 1000, 2000])
def test_words_and_numbers_stay_whole(width: int, show: Callable[..., Page]) -> None:
    """In a window of any width: all but long names and outputs are on one line, and the page does not scroll."""
    page = show(width=width)
    short = "section:nth-child(-n+2) :is(th, td:not(:last-child):not(:has(div)))"
    cells = page.run(LINES_OF, short)
    assert len(cells) > 100
    assert [(text, lines) for text, lines in cells if lines > 1] == []
    names = page.run(LINES_OF, "td div[style*=max-content]")
    assert {lines for text, lines in names if len(text) < 10} == {1}
    assert max(lines for _, lines in names) <= 18
    assert page.run("return document.documentElement.scrollWidth") <= width
    page.store_picture(f"looks-{width}.png", "body")


def test_outputs_have_the_place_that_is_left(show: Callable[..., Page]) -> None:
    """At 1000 pixels, long names and all columns leave enough of it without scrolling."""
    page = show(width=1000)
    frame, table, output = page.run(
        "return ['.mathjax_ignore', 'table', 'tbody td:last-child']"
        ".map(each => document.querySelector(each).getBoundingClientRect().width)"
    )
    assert table <= frame
    assert output > 200


def test_text_runs_in_its_own_direction(show: Callable[..., Page]) -> None:
    """Arabic from right to left; the escape of a control character, within it, from left to right."""
    page = show()
    escape_left, escape_right, word_left, end_left = page.run(
        """
        const cell = document.querySelector("section:nth-child(6) tr:last-child td");
        const box = (node, from, to) => {
            const range = document.createRange();
            range.setStart(node, from);
            range.setEnd(node, to);
            return range.getBoundingClientRect();
        };
        const escape = cell.querySelector("span"), texts = escape.parentElement.childNodes;
        const end = texts[texts.length - 1];
        return [
            box(escape.firstChild, 0, 1).left, box(escape.firstChild, 1, 6).left,
            box(texts[0], 0, 5).left, box(end, 1, end.length).left,
        ]
        """
    )
    assert escape_left < escape_right
    assert end_left < escape_left < word_left
