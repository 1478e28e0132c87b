"""The figures as text for a terminal, and as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .measure import Measured
from .row import OURS, Verdict

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "performance.md"
BEGIN = "<!-- benchmarks:begin -->"
END = "<!-- benchmarks:end -->"

_COLUMNS = ("median", "fastest – slowest", f"{OURS} ÷ this")


def as_text(measured: Measured) -> str:
    """Return one row as a table for a terminal, with what became of its requirements."""
    lines = [f"{measured.row.title} [{measured.row.unit}]"]
    for cells in (("", *_COLUMNS), *_lines(measured)):
        lines.append(f"  {cells[0]:<32}{cells[1]:>10}{cells[2]:>22}{cells[3]:>20}".rstrip())
    lines += [f"  {verdict}" for verdict in measured.verdicts]
    lines += [f"  {note}" for note in _notes(measured)]
    return "\n".join(lines)


def as_markdown(all_measured: Sequence[Measured], facts: Mapping[str, str]) -> str:
    """Return everything as the part of a page."""
    rounds = len(next(iter(all_measured[0].figures.values())))
    parts = [
        f"Medians of {rounds} rounds, taken on:",
        table(("", ""), facts.items()),
        "## What is required, and what came of it",
        table(("row", OURS, "must", "aim"), (_summary(measured) for measured in all_measured if measured.verdicts)),
        "## All figures",
    ]
    for measured in all_measured:
        row = measured.row
        parts += [f"### {row.title}", table((row.unit, *_COLUMNS), _lines(measured)), *_notes(measured)]
    return "\n\n".join(parts)


def write_page(text: str, path: Path = PAGE) -> None:
    """Put `text` between the marks of a page; what is written by hand around them stays."""
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path.name} must hold {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _lines(measured: Measured) -> Iterable[tuple[str, str, str, str]]:
    medians = measured.medians
    ours = medians[OURS]
    for name, median in medians.items():
        values = measured.figures.get(name)
        spread = f"{_figure(min(values))} – {_figure(max(values))}" if values else ""
        yield name, _figure(median), spread, "" if name == OURS else f"{ours / median:.2f}"


def _notes(measured: Measured) -> list[str]:
    share = measured.neighbours_share
    return [] if share is None else [f"Meanwhile other processes took up to {share:.0%} of the machine."]


def _summary(measured: Measured) -> tuple[str, str, str, str]:
    ours = f"{_figure(measured.medians[OURS])} {measured.row.unit}"
    return measured.row.title, ours, _told(measured.verdicts, "must"), _told(measured.verdicts, "aim")


def _told(verdicts: list[Verdict], kind: str) -> str:
    return "; ".join(
        f"{verdict.required} – {verdict.measured}, **{'holds' if verdict.holds else 'missed'}**"
        for verdict in verdicts
        if verdict.kind == kind
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
