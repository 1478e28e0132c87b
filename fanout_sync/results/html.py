"""What notebooks display of runs, outcomes and records: tables in HTML.

Prompts, outputs and task ids are text of others. All of it is escaped, stands between tags and never in one, and is
marked as no mathematics, which notebooks would typeset. There is no script and no link, nothing is loaded, and all
styles are inline: they cannot reach the rest of the page. Colours are those of the notebook, whatever its theme: red is
as dark or as light as its text, because no single red can be read on white and on dark grey.

Columns are as wide as what they hold, up to a bound at which its lines are broken. So words stay whole, and in a narrow
window the table scrolls sideways.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from ..formatting import describe, printable
from ..records.conversion import record_of
from ..records.report import Report, reason_in
from ..records.step_record import AttemptRecord, JournalRecord, StepRecord, iso_time
from ..records.steps import Json, StepOutcome
from ..records.usage import Usage
from ..wire.strict_json import write_json

MAX_ROWS = 20
"""How many steps of a run are displayed at most."""

MAX_PREVIEW_CHARS = 200
"""How many characters of an output or a name are displayed in a row of a table at most."""

MAX_TEXT_CHARS = 5000
"""How many characters of an output or a traceback are displayed of a single step at most."""

_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff]+")
"""Control characters, and those that change the direction of the text around them."""

_LINE = "1px solid var(--jp-border-color2,rgba(128,128,128,.4))"
_CELL = "text-align:left;vertical-align:top;padding:.2em .6em"
_SHORT = f"{_CELL};white-space:nowrap"
# `plaintext`: a text in Arabic runs from right to left, whatever the language of the page.
_TEXT = f"{_CELL};min-width:12em;overflow-wrap:anywhere;unicode-bidi:plaintext"
_NAME = "width:max-content;max-width:10em;white-space:normal;overflow-wrap:break-word;unicode-bidi:plaintext"
_LONG = "margin:0;max-height:24em;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext"
_RED = "color:oklch(from currentColor clamp(.5,l,.75) .18 25)"
_PALE = "opacity:.7"
_TABLE = '<table style="border-collapse:collapse;margin:.4em 0">'

Step = tuple[StepOutcome, StepRecord]
Column = tuple[str, Callable[[StepOutcome, StepRecord], str]]
"""The name of a column, and what makes its cells."""

# Of a run -------------------------------------------------------------------------------------------------------------


def run_html(heading: Sequence[str], reports: Sequence[Report]) -> str:
    """Return the table of a run: failed steps first, then cancelled ones, then the others, `MAX_ROWS` at most.

    Args:
        heading: The lines above the table.
        reports: The steps.
    """
    places = _most_important(reports)
    steps = [(report.outcome, record_of(report)) for report in map(reports.__getitem__, places)]
    lines = [f"<div>{_preview(line)}</div>" for line in heading]
    table = _table_of_steps(steps) if steps else ""
    rest = _rest(reports, places)
    return _framed(*lines, table, f'<div style="{_PALE}">{_preview(rest)}</div>' if rest else "")


def _most_important(reports: Sequence[Report]) -> list[int]:
    """Return the places of the steps to show."""
    ranked: tuple[list[int], list[int], list[int]] = [], [], []
    for place, report in enumerate(reports):
        rank = ranked[2 if report.outcome.success else 1 if report.status == "cancelled" else 0]
        if len(rank) < MAX_ROWS:
            rank.append(place)
    return [place for rank in ranked for place in rank][:MAX_ROWS]


def _rest(reports: Sequence[Report], places: Iterable[int]) -> str:
    """Return how many steps are not shown, by status; `""` if all are."""
    left = Counter(report.status for report in reports)
    left.subtract(reports[place].status for place in places)
    counts = ", ".join(f"{count} {status}" for status, count in left.most_common() if count)
    return f"… and {sum(left.values())} more: {counts}" if counts else ""


def _table_of_steps(steps: Sequence[Step]) -> str:
    columns: list[Column] = [
        ("status", lambda outcome, record: _status(record)),
        ("task", lambda outcome, record: _name(outcome.task_id)),
        ("agent", lambda outcome, record: _name(outcome.agent)),
        ("duration", lambda outcome, record: _preview(_seconds(record.duration_s))),
        ("attempts", lambda outcome, record: str(len(record.attempts))),
        *_columns_of_usage(record.usage for _, record in steps),
        ("output", lambda outcome, record: _preview(_output(outcome))),
    ]
    rows = [[cell(outcome, record) for _, cell in columns] for outcome, record in steps]
    return _table([name for name, _ in columns], rows)


def _columns_of_usage(usages: Iterable[Usage | None]) -> list[Column]:
    """Return columns for tokens and cost, if there are any."""
    reported = [usage for usage in usages if usage is not None]
    columns: list[Column] = []
    if any(usage.tokens for usage in reported):
        columns.append(("tokens", lambda _, record: "" if record.usage is None else str(record.usage.tokens)))
    if any(usage.cost_usd for usage in reported):
        columns.append(("cost", lambda _, record: "" if record.usage is None else dollars(record.usage.cost_usd)))
    return columns


def _output(outcome: StepOutcome) -> str:
    if not outcome.success:
        return reason_in(outcome.output)
    if outcome.output or outcome.structured is None:
        return outcome.output
    return _json(outcome.structured)


# Of one step ----------------------------------------------------------------------------------------------------------


def record_html(record: StepOutcome | StepRecord) -> str:
    """Return the table of an outcome or a record."""
    if isinstance(record, StepOutcome):
        return _framed(_list(_lines_of_outcome(record)))
    lines = _lines_of_record(record)
    if isinstance(record, JournalRecord):
        lines += _lines_of_outcome(record.outcome)
    return _framed(_list(lines))


def _lines_of_outcome(outcome: StepOutcome) -> list[tuple[str, str]]:
    lines = [
        ("task", _preview(outcome.task_id)),
        ("agent", _preview(outcome.agent)),
        ("session", _preview(outcome.session_id)),
        ("success", "yes" if outcome.success else f'<span style="{_RED}">no</span>'),
        ("output", _long(outcome.output)),
    ]
    return lines if outcome.structured is None else [*lines, ("structured", _long(_json(outcome.structured)))]


def _lines_of_record(record: StepRecord) -> list[tuple[str, str]]:
    error, usage = record.error, record.usage
    lines = [("index", _preview(str(record.index))), ("status", _status(record))]
    if error is not None:
        lines.append(("error", _long(str(error))))
    facts = {
        "started": None if record.started is None else iso_time(record.started),
        "duration": _seconds(record.duration_s),
        "worker": record.worker,
        "exit code": record.exit_code,
        "signal": record.signal,
        "usage": None if usage is None else usage_line(usage),
        "from the journal": "yes" if record.from_journal else None,
    }
    lines += [(name, _preview(str(fact))) for name, fact in facts.items() if fact not in (None, "")]
    lines.append(("attempts", _attempts(record.attempts)))
    if error is not None and error.traceback:
        trace = f"<details><summary>show</summary>{_long(error.traceback, from_end=True)}</details>"
        lines.append(("traceback", trace))
    return lines


def _attempts(attempts: Sequence[AttemptRecord]) -> str:
    if len(attempts) < 2:
        return str(len(attempts))
    shown = attempts[-MAX_ROWS:]
    rows = [
        [str(each.number), _preview(each.status), _preview(_seconds(each.duration_s)), _preview(each.reason or "")]
        for each in shown
    ]
    before = f"<div>… {len(attempts) - len(shown)} before these</div>" if len(shown) < len(attempts) else ""
    return before + _table(["", "status", "duration", "reason"], rows)


# Text -----------------------------------------------------------------------------------------------------------------


def usage_line(usage: Usage) -> str:
    """Return tokens and cost in words; `""` if there are none."""
    parts = [f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out"] * bool(usage.tokens)
    parts += [dollars(usage.cost_usd)] * bool(usage.cost_usd)
    return ", ".join(parts)


def dollars(cost_usd: float) -> str:
    """Return an amount of money: whole cents if it is a dollar or more."""
    return f"${cost_usd:,.2f}" if cost_usd >= 1 else f"${cost_usd:.3g}"


def _seconds(duration_s: float | None) -> str:
    if duration_s is None:
        return ""
    if duration_s < 0.001:
        return "< 0.001 s"
    return f"{duration_s:.3g} s" if duration_s < 100 else f"{duration_s:.0f} s"


def _json(value: Json) -> str:
    try:
        return write_json(value)
    except Exception:  # an outcome that somebody made by hand: it may hold any object, of any class
        return describe(value)


def _preview(text: str) -> str:
    """Return text on one line, cut and escaped."""
    text = str.__str__(text)
    line = " ".join(text[: 4 * MAX_PREVIEW_CHARS].split())
    is_cut = len(line) > MAX_PREVIEW_CHARS or len(text) > 4 * MAX_PREVIEW_CHARS
    return _escaped(f"{line[:MAX_PREVIEW_CHARS]} …" if is_cut else line)


def _name(text: str) -> str:
    """Return text for a column that has only as much place as it needs."""
    return f'<div style="{_NAME}">{_preview(text)}</div>'


def _long(text: str, *, from_end: bool = False) -> str:
    """Return text with its lines, cut and escaped."""
    text = str.__str__(text)
    more = len(text) - MAX_TEXT_CHARS
    if more > 0:
        note = f"[{more} more characters]"
        text = f"{note}\n{text[-MAX_TEXT_CHARS:]}" if from_end else f"{text[:MAX_TEXT_CHARS]}\n{note}"
    return f'<div style="{_LONG}">{_escaped(text)}</div>'


def _escaped(text: str) -> str:
    return _NOT_SHOWN.sub(_as_escapes, escape(printable(text.replace("\r\n", "\n"))))


def _as_escapes(found: re.Match[str]) -> str:
    # Isolated: in a text that runs from right to left, the backslash would stand behind its digits.
    return f'<span style="unicode-bidi:isolate">{found[0].encode("unicode_escape").decode()}</span>'


# Markup ---------------------------------------------------------------------------------------------------------------
# What these functions get is HTML already.


def _framed(*parts: str) -> str:
    # The classes tell MathJax to leave the text alone.
    return f'<div class="tex2jax_ignore mathjax_ignore" style="max-width:100%;overflow-x:auto">{"".join(parts)}</div>'


def _table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the last column takes the place that the others leave."""
    head = "".join(_cell("th", _SHORT, name) for name in header)
    body = "".join(_row(*(_cell("td", _SHORT, cell) for cell in row[:-1]), _cell("td", _TEXT, row[-1])) for row in rows)
    return f"{_TABLE}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _list(lines: Iterable[tuple[str, str]]) -> str:
    rows = "".join(_row(_cell("th", _SHORT, name), _cell("td", _TEXT, cell)) for name, cell in lines)
    return f"{_TABLE}<tbody>{rows}</tbody></table>"


def _row(*cells: str) -> str:
    return f'<tr style="border-top:{_LINE}">{"".join(cells)}</tr>'


def _cell(tag: str, style: str, content: str) -> str:
    return f'<{tag} style="{style}">{content}</{tag}>'


def _status(record: Any) -> str:
    text = _preview(record.status)
    if record.status == "succeeded":
        return f"✓ {text}"
    style = _PALE if record.status == "cancelled" else _RED
    return f'<span style="{style}">✗ {text}</span>'
