"""What a notebook displays of a run, an outcome and a record: all text escaped, nothing that acts or is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from fanout_sync import (
    AgentStepSpec,
    AttemptRecord,
    FanoutInterrupted,
    FunctionExecutor,
    Run,
    Runner,
    SqliteJournal,
    StepError,
    StepOutcome,
    StepRecord,
    Usage,
    current_step,
)
from fanout_sync.results.html import MAX_PREVIEW_CHARS, MAX_ROWS, MAX_TEXT_CHARS
from fanout_sync.testing import make_specs

MakeRunner = Callable[..., Runner]

ALLOWED = {*("div", "span", "table", "thead", "tbody", "tr", "th", "td", "details", "summary")}
NASTY = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' onfocus='alert(1)' autofocus='",
    "<a href='javascript:alert(1)'>here</a>",
    "--><svg onload=alert(1)>",
    "</td></tr></table></div><style>*{display:none}</style>",
    "<iframe src='https://example.org'></iframe>",
    "&lt;b&gt; &amp; &#x3c;",
    "]]><![CDATA[",
    "\x00\x1b[31mred\x07",
    "half: \ud800",
    "\u202eesrever",
    "$x^2$ \\(y\\) $$\\href{javascript:alert(1)}{z}$$",
    "x" * 100_000,
]


class Page(HTMLParser):
    """What a browser would see: checks each tag as it comes."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.styles: set[str] = set()
        self.feed(html)
        self.close()
        assert self.open == [], "every tag is closed"
        html.encode()  # a kernel sends it as UTF-8

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED
        for name, value in attrs:
            assert name in ("style", "class")
            assert value is not None
            assert not re.search(r"url|expression|import|behavior|javascript|[<>]|//", value)
            self.styles.add(value)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data}")


def page_of(shown: Any) -> Page:
    return Page(shown._repr_html_())


def work(spec: AgentStepSpec) -> Any:
    """Do what the prompt says."""
    if spec.prompt == "raise":
        raise ValueError("no such thing")
    if spec.prompt == "spend":
        current_step().add_usage(prompt_tokens=30, completion_tokens=7, cost_usd=0.25)
    if spec.prompt == "structured":
        return StepOutcome.completed(spec, "", {"deep": [1, "<b>"]})
    return spec.prompt


def specs_of(*prompts: str) -> list[AgentStepSpec]:
    return [AgentStepSpec(f"t{place}", "worker", "", prompt) for place, prompt in enumerate(prompts)]


EXECUTOR = FunctionExecutor({"worker": work, "tester": work})

# Runs -----------------------------------------------------------------------------------------------------------------


def test_failures_come_first_with_their_reason(make_runner: MakeRunner) -> None:
    """A row for each step: status, task, agent, duration, attempts and output; the steps that failed lead."""
    run = make_runner(EXECUTOR).run(specs_of("fine", "raise", "well", "raise"))
    page = page_of(run)
    header, *rows = page.rows
    assert header == ["status", "task", "agent", "duration", "attempts", "output"]
    assert [row[1] for row in rows] == ["t1", "t3", "t0", "t2"]
    assert [row[0] for row in rows] == ["✗ raised", "✗ raised", "✓ succeeded", "✓ succeeded"]
    assert [row[-1] for row in rows] == ["ValueError: no such thing"] * 2 + ["fine", "well"]
    assert all(row[2] == "worker" and row[3].endswith(" s") and row[4] == "1" for row in rows)
    assert page.text.startswith("4 steps in ")


def test_tokens_and_cost_are_shown_if_there_are_any(make_runner: MakeRunner) -> None:
    """In columns, empty for steps that reported none, and as a sum."""
    page = page_of(make_runner(EXECUTOR).run(specs_of("spend", "fine", "spend")))
    assert page.rows[0] == ["status", "task", "agent", "duration", "attempts", "tokens", "cost", "output"]
    assert [row[5:7] for row in page.rows[1:]] == [["37", "$0.25"], ["", ""], ["37", "$0.25"]]
    assert "60 tokens in, 14 out, $0.5" in page.text


def test_a_long_run_has_twenty_rows_and_a_count_of_the_rest() -> None:
    """However many steps there are; failed steps before cancelled ones before the others."""
    prompts = ["fine"] * 30 + ["raise"] * 3 + ["fine"] * 8
    page = page_of(Runner(EXECUTOR, max_failures=3, max_concurrency=1).run(specs_of(*prompts)))
    rows = page.rows[1:]
    assert len(rows) == MAX_ROWS == 20
    assert [row[0] for row in rows] == ["✗ raised"] * 3 + ["✗ cancelled"] * 8 + ["✓ succeeded"] * 9
    assert page.text.endswith("… and 21 more: 21 succeeded")
    many = Runner(EXECUTOR).run(specs_of(*["raise"] * 25))
    assert page_of(many).text.endswith("… and 5 more: 5 raised")


def test_an_empty_run_has_no_table() -> None:
    """It says that there was nothing to do."""
    page = page_of(Run([], 0.0))
    assert page.rows == []
    assert "nothing to do" in page.text


def test_the_repr_stays_short() -> None:
    """The text is one line, as before."""
    run = Runner(EXECUTOR).run(specs_of(*["raise"] * 30))
    assert re.fullmatch(r"<Run of 30 steps, 30 failed, \S+ s>", repr(run))


def test_a_structured_value_stands_for_an_empty_output() -> None:
    """As JSON."""
    run = Runner(EXECUTOR).run(specs_of("structured"))
    assert page_of(run).rows[1][-1] == '{"deep":[1,"<b>"]}'
    assert '{"deep":[1,"<b>"]}' in page_of(run[0]).text


def test_a_stream_shows_the_steps_so_far() -> None:
    """And says that it has not ended, until it has."""
    stream = Runner(EXECUTOR, max_concurrency=1).stream(specs_of("a", "b", "c"))
    next(stream)
    assert page_of(stream).text.startswith("A stream that has not ended")
    assert [row[1] for row in page_of(stream).rows[1:]] == ["t0"]
    assert len(list(stream)) == 2
    assert page_of(stream).text.startswith("3 steps in ")
    assert [row[1] for row in page_of(stream).rows[1:]] == ["t0", "t1", "t2"]


def test_a_stream_says_why_it_shows_no_outputs() -> None:
    """It does not keep them, but it has the reasons of failures; of no steps there is nothing to say."""
    stream = Runner(EXECUTOR).stream(specs_of("a", "raise"))
    assert len(list(stream)) == 2
    page = page_of(stream)
    assert [row[-1] for row in page.rows[1:]] == ["ValueError: no such thing", ""]
    assert page.text.endswith("A stream does not keep outputs.")
    nothing = Runner(EXECUTOR).stream([])
    assert list(nothing) == []
    assert page_of(nothing).text.endswith("nothing to do")


def test_the_run_of_an_interrupt_is_shown() -> None:
    """With what was done and what was cancelled."""
    stream = Runner(EXECUTOR, max_concurrency=1).stream(make_specs(3))
    next(stream)
    with pytest.raises(FanoutInterrupted) as caught:
        stream.throw(KeyboardInterrupt())
    assert "✗ cancelled" in page_of(caught.value.run).text


# Outcomes and records -------------------------------------------------------------------------------------------------


def test_an_outcome_shows_its_fields() -> None:
    """All of them, the output with its lines."""
    outcome = StepOutcome("t", "a session", "an agent", "one\n  two", True, {"k": None})
    rows = dict(page_of(outcome).rows)
    assert rows == {
        "task": "t",
        "agent": "an agent",
        "session": "a session",
        "success": "yes",
        "output": "one\n  two",
        "structured": '{"k":null}',
    }
    assert dict(page_of(StepOutcome.failed("t", "a", "no")).rows)["success"] == "no"
    made_by_hand = StepOutcome("t", "s", "a", "", True, {"key": object()})
    assert "{'key': <object" in page_of(made_by_hand).text


def test_a_record_shows_what_is_known(make_runner: MakeRunner) -> None:
    """Status, error, attempts and traceback; nothing that is not known."""
    run = make_runner(EXECUTOR, retry=2).run(specs_of("raise", "spend"))
    raised, spent = (page_of(record) for record in run.records)
    assert "✗ raised" in raised.text
    assert "ValueError: no such thing" in raised.text
    assert "Traceback" in raised.text
    assert ["1", "raised"] in [row[:2] for row in raised.rows]
    assert dict(spent.rows)["usage"] == "30 tokens in, 7 out, $0.25"
    assert "exit code" not in spent.text
    assert "signal" not in spent.text


def test_a_record_of_a_journal_shows_its_outcome(tmp_path: Path) -> None:
    """Besides what every record shows."""
    journal = SqliteJournal(tmp_path / "run.db")
    Runner(EXECUTOR, journal=journal.workflow("w")).run(specs_of("fine"))
    (record,) = journal.records("w")
    assert dict(page_of(record).rows)["output"] == "fine"
    again = Runner(EXECUTOR, journal=journal.workflow("w")).run(specs_of("fine"))
    assert dict(page_of(again.records[0]).rows)["from the journal"] == "yes"


def test_a_record_of_many_attempts_shows_the_last() -> None:
    """At most as many as a run has rows."""
    attempts = tuple(AttemptRecord(number, "raised", "busy", 0.1, 1.0) for number in range(1, 101))
    page = page_of(StepRecord(0, "raised", None, attempts, None, None, None, None))
    assert "… 80 before these" in page.text
    assert [row[0] for row in page.rows if row[1:2] == ["raised"]] == [str(number) for number in range(81, 101)]


# Untrusted text -------------------------------------------------------------------------------------------------------


def run_of(text: str) -> Run:
    """Return a run whose every text is `text`."""
    executor = FunctionExecutor({text: lambda spec: StepOutcome(text, text, text, text, False, text)})
    run = Runner(executor).run([AgentStepSpec(text, text, text, text)])
    report = run._reports[0]
    outcome = StepOutcome(text, text, text, text, False, [text])
    changed = evolve(report, outcome=outcome, error=StepError(text, text, text), worker=text, signal=text)
    return Run([changed], 0.1, notes=[text])


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_text_cannot_leave_its_cell(text: str) -> None:
    """Whatever an agent answers is text, wherever it is shown."""
    run = run_of(text)
    for shown in (run, run[0], run.records[0]):
        html = shown._repr_html_()
        assert len(html) < 40_000
        page = Page(html)
        assert visible(text)[:50] in " ".join(page.text.split())


@given(st.text(st.characters(), max_size=300))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    """Nothing of it becomes markup, and nothing is lost but the layout."""
    outcome = StepOutcome.failed("t", "a", text)
    assert dict(page_of(outcome).rows)["output"] == "\n".join(visible(part) for part in text.split("\r\n"))
    page = page_of(run_of(text))
    assert page.rows[0][-1] == "output"
    assert len(page.rows) == 2
    assert len(page.rows[1][-1]) <= 11 * (MAX_PREVIEW_CHARS + 2)


def visible(text: str) -> str:
    """Return text with escapes for what cannot be seen or encoded."""
    text = text.encode("utf-8", "backslashreplace").decode()
    invisible = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]"
    return re.sub(invisible, lambda found: found[0].encode("unicode_escape").decode(), text)


def test_escapes_of_control_characters_are_read_from_left_to_right() -> None:
    """Also within a text that runs from right to left, whose direction is its own."""
    html = StepOutcome.failed("t", "a", "\u0645\u202e\x00 &\x1b<")._repr_html_()
    first, second = (f'<span style="unicode-bidi:isolate">{escapes}</span>' for escapes in (r"\u202e\x00", r"\x1b"))
    assert f"\u0645{first} &amp;{second}&lt;" in html
    assert "unicode-bidi:plaintext" in html


def test_long_text_is_cut() -> None:
    """In a table to a preview, of a single step to a few pages; a traceback to its end."""
    text = "word " * 100_000
    run = run_of(text)
    assert len(page_of(run).rows[1][-1]) == MAX_PREVIEW_CHARS + 2
    output = dict(page_of(run[0]).rows)["output"]
    assert output.endswith(f"\n[{len(text) - MAX_TEXT_CHARS} more characters]")
    trace = StepError("E", "m", f"{text}the end")
    moment = datetime.now(timezone.utc)
    record = StepRecord(0, "raised", trace, (), moment, moment, 1e9, 3, 7, "SIGKILL", Usage(), True)
    assert page_of(record).text.endswith("the end")


def test_nothing_of_the_theme_is_fixed() -> None:
    """No style sets a background, and none a colour but one made from the colour of the notebook's text."""
    run = Runner(EXECUTOR, retry=2).run(specs_of("raise", "spend"))
    styles = {style for shown in (run, run[0], *run.records) for style in page_of(shown).styles}
    assert any("var(--jp-" in style for style in styles)
    colours = [colour for style in styles for colour in re.findall(r"(?<![\w-])color:([^;]*)", style)]
    assert colours
    for style in styles:
        assert "background" not in style
    assert all(colour.startswith("oklch(from currentColor ") for colour in colours)


def test_mathematics_is_left_alone() -> None:
    """Notebooks typeset text between dollars, unless its element has these classes."""
    html = Runner(EXECUTOR).run(specs_of("$5 and $6"))._repr_html_()
    assert html.startswith('<div class="tex2jax_ignore mathjax_ignore"')


def test_displays_cost_nothing_until_they_are_used() -> None:
    """`import fanout_sync` and a run import no module for HTML."""
    script = """
        import sys
        from fanout_sync import Runner, FunctionExecutor
        from fanout_sync.testing import make_specs
        run = Runner(FunctionExecutor({"tester": len})).run(make_specs(2))
        assert "fanout_sync.results.html" not in sys.modules and "html" not in sys.modules
        assert "pandas" not in sys.modules
        run[0]._repr_html_()
        assert "fanout_sync.results.html" in sys.modules
    """
    command = [sys.executable, "-c", "\n".join(line.strip() for line in script.splitlines())]
    subprocess.run(command, check=True, timeout=60, env=os.environ)
