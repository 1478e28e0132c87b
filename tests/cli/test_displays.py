"""What the progress of a run looks like, without a terminal: pure functions, and lines at the right moments."""

from __future__ import annotations

import io

import pytest
from attrs import evolve
from rich.console import Console

from fanout_sync import Progress, Usage
from fanout_sync.cli.captured import without_movements
from fanout_sync.cli.displays import LINE_S, PlainLines
from fanout_sync.cli.run_text import duration, plain_line, rendered
from fanout_sync.results.run_status import FailureReason, RunningStep, RunStatus

STATUS = RunStatus(
    progress=Progress(
        total=400,
        done=121,
        succeeded=118,
        failed=3,
        retried=5,
        reused=40,
        running=8,
        waiting=2,
        elapsed_s=60.0,
        eta_s=206.0,
        usage=Usage(1_234_567, 4_500, 0.81),
    ),
    held_back_by="60 requests per minute",
    ended_cost_usd=0.81,
    running=(RunningStep("task-17", "coder", 72.4), RunningStep("測試" * 10, "coder", 3.0)),
    failures=(FailureReason(12, "RateLimitError: slow down"), FailureReason(1, "ValueError: no")),
)


def text_of(status: RunStatus, width: int, *, is_over: bool = False, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, color_system=None)
    with console.capture() as capture:
        console.print(rendered(status, width, is_over=is_over))
    return [line.rstrip() for line in capture.get().rstrip("\n").split("\n")]


def test_the_view_has_all_that_is_known() -> None:
    """One line each for the bar, the counts, the pace, the usage and the limit; then what runs, and what failed."""
    lines = text_of(STATUS, 100)
    assert lines[0].endswith(" 121/400 steps (30 %)")
    assert lines[1:8] == [
        "118 ok · 3 failed · 5 retried · 40 reused · 8 running · 2 waiting",
        "81/min · ETA 3:26 · 1:00 elapsed",
        "1.2M tokens in, 4500 out · $0.81 so far · $3.60 projected",
        "held back by 60 requests per minute",
        "running longest",
        "  1:12  task-17 (coder)",
        "   3 s  測試測試測試測試測試測試測試測試測試測試 (coder)",
    ]
    assert lines[8:] == ["last failures", "  12 × RateLimitError: slow down", "  1 × ValueError: no"]


def test_the_last_view_has_what_remains_true() -> None:
    """When the run is over, nothing runs and nothing is waited for; of failures the summary tells."""
    lines = text_of(evolve(STATUS, progress=evolve(STATUS.progress, done=400, eta_s=0.0)), 100, is_over=True)
    assert lines[-1] == "1.2M tokens in, 4500 out · $0.81 so far"
    assert "ETA" not in "".join(lines)


@pytest.mark.parametrize("width", [1, 5, 20, 39, 80, 200])
def test_each_line_fits_into_any_width(width: int) -> None:
    """Lines are packed and cut, also such with wide characters; a bar that does not fit is left out."""
    from rich.cells import cell_len

    assert all(cell_len(line) <= width for line in text_of(STATUS, width))


@pytest.mark.parametrize(
    ("progress", "seen"),
    [
        (Progress(total=None, done=7, succeeded=7), "7 steps"),
        (Progress(total=0), "0/0 steps"),
        (Progress(total=1, done=1, succeeded=1), "1/1 step (100 %)"),
        (Progress(total=4, done=4, succeeded=1, cancelled=3), "1/4 steps (25 %)"),
    ],
)
def test_how_much_is_done(progress: Progress, seen: str) -> None:
    """The total may be unknown or 0, and what was cancelled is not done."""
    assert text_of(RunStatus(progress=progress), 80)[0].endswith(seen)
    assert plain_line(RunStatus(progress=progress)).startswith(f"{seen}: ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (1e6, "277:46:40")],
)
def test_durations(seconds: float, text: str) -> None:
    """Seconds up to a minute, then as a clock shows them."""
    assert duration(seconds) == text


def test_a_plain_line() -> None:
    """It has counts, percent, pace and usage, and no control characters whatever the limit is called."""
    line = plain_line(evolve(STATUS, held_back_by="\x1b[31mlimit\nof mine"))
    assert line == (
        "121/400 steps (30 %): 118 ok, 3 failed, 5 retried, 40 reused, 8 running, 2 waiting; 81/min; ETA 3:26; "
        r"1.2M tokens in, 4500 out; $0.81 so far; $3.60 projected; held back by \x1b[31mlimit …"
    )


def test_plain_lines_come_every_ten_seconds() -> None:
    """There is none at the beginning, one every ten seconds, and one at the end."""
    now, out = [0.0], io.StringIO()
    lines = PlainLines(out, clock=lambda: now[0])
    seen = []
    for second in range(35):
        now[0] = float(second)
        lines.show(STATUS)
        seen.append(out.getvalue().count("\n"))
    assert LINE_S == 10.0
    assert [second for second in range(1, 35) if seen[second] > seen[second - 1]] == [10, 20, 30]
    lines.finish(STATUS)
    assert out.getvalue().count("\n") == 4


def test_a_short_run_has_one_line_at_its_end() -> None:
    """It ends before the first ten seconds are over."""
    now, out = [0.0], io.StringIO()
    lines = PlainLines(out, clock=lambda: now[0])
    lines.show(STATUS)
    assert out.getvalue() == ""
    lines.finish(STATUS)
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("printed", "seen"),
    [
        ("plain\ttext ☃", "plain\ttext ☃"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
        ("\x1b[2Jclear\x1b[3;4Hmove\x1b[?25lhide", "clearmovehide"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", "ab"),
        ("\x1bPdevice\x1b\\c\x1b7d\x1b(Be", "cde"),
        ("0 %\r50 %\r100 %\r", "100 %"),
        ("a\x08\x07\x7f\x9b2Jb", "a2Jb"),
        ("\x1b]0;without an end", ""),
        ("\x1b", ""),
    ],
)
def test_printed_lines_cannot_move_the_cursor(printed: str, seen: str) -> None:
    """Colours of a step's output stay, and end with the line; everything that moves or hides the cursor is left out."""
    assert without_movements(printed) == seen
