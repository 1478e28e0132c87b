"""What a live view says of a run: its lines, as plain text and for rich. Pure functions; nothing is drawn here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..results.run_status import RunStatus
from .output import shown

if TYPE_CHECKING:
    from rich.console import RenderableType

SEPARATOR = " · "
MIN_BAR = 8
"""How many columns the bar has at least."""

MAX_BAR = 60
MAX_ID_CHARS = 60
"""How many characters of a task id or an agent are shown."""


def rendered(status: RunStatus, width: int, *, is_over: bool = False) -> RenderableType:
    """Return how a run stands, to be drawn by rich. Each line of it fits into the width.

    Args:
        status: How it stands.
        width: How many columns there are.
        is_over: Whether the run is over: then what is running, and what it waits for, is left out, and so are the
            failures, of which the summary tells.
    """
    from rich.console import Group
    from rich.text import Text  # imported lazily: slow, and only a terminal needs it

    lines = [_bar(status, width)]
    facts = [_counts(status), [*_pace(status, is_over=is_over), f"{duration(status.progress.elapsed_s)} elapsed"]]
    facts.append(_usage(status))
    lines += [Text(line, no_wrap=True, overflow="ellipsis") for parts in facts for line in _packed(parts, width)]
    if not is_over:
        lines += [_styled(line, style) for line, style in _details(status)]
    return Group(*lines)


def plain_line(status: RunStatus, *, is_over: bool = False) -> str:
    """Return how a run stands in one line, for a log."""
    parts = [f"{_done(status)}: {', '.join(_counts(status))}", *_pace(status, is_over=is_over), *_usage(status)]
    if status.held_back_by is not None and not is_over:
        parts.append(f"held back by {shown(status.held_back_by)}")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Return seconds as text such as `"7 s"`, `"1:02"` or `"2:03:04"`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# The parts of a line --------------------------------------------------------------------------------------------------


def _done(status: RunStatus) -> str:
    done, total = _finished(status), status.progress.total
    if total is None:
        return _of_unit(done, status)
    percent = f" ({100 * done // total} %)" if total else ""
    return f"{done}/{_of_unit(total, status)}{percent}"


def _finished(status: RunStatus) -> int:
    """Return how many have come to their end; what was cancelled has not."""
    progress = status.progress
    return progress.done - progress.cancelled if status.unit == "step" else progress.done


def _of_unit(count: int, status: RunStatus) -> str:
    return f"{count} {status.unit}" if count == 1 else f"{count} {status.unit}s"


def _counts(status: RunStatus) -> list[str]:
    progress = status.progress
    counts = {
        "ok": progress.succeeded,
        "failed": progress.failed,
        "retried": progress.retried,
        "reused": progress.reused,
        "running": progress.running,
        "waiting": progress.waiting,
    }
    told = [f"{count} {name}" for name, count in counts.items()]
    return [*told, *[f"{progress.cancelled} cancelled"] * bool(progress.cancelled)]


def _pace(status: RunStatus, *, is_over: bool) -> list[str]:
    progress = status.progress
    # What was reused took no time.
    timed = _finished(status) - (progress.reused if status.unit == "step" else 0)
    parts = []
    if timed > 0 and progress.elapsed_s > 0:
        parts.append(f"{_short(timed * 60 / progress.elapsed_s)}/min")
    if progress.eta_s is not None and not is_over:
        parts.append(f"ETA {duration(progress.eta_s)}")
    return parts


def _usage(status: RunStatus) -> list[str]:
    usage = status.progress.usage
    parts = []
    if usage.tokens:
        parts.append(f"{_short(usage.prompt_tokens)} tokens in, {_short(usage.completion_tokens)} out")
    if usage.cost_usd:
        projected = _projected_usd(status)
        parts.append(f"${_money(usage.cost_usd)} so far")
        parts += [] if projected is None else [f"${_money(projected)} projected"]
    return parts


def _projected_usd(status: RunStatus) -> float | None:
    """Return what the whole run will cost if its other steps cost as much as those that have ended.

    Returns:
        `None` if nobody can tell.

    Steps from the journal cost nothing.
    """
    progress = status.progress
    reused = progress.reused if status.unit == "step" else 0
    paid = progress.done - reused
    if progress.total is None or paid <= 0 or progress.done >= progress.total:
        return None
    if not status.ended_cost_usd:
        return None
    return max(progress.usage.cost_usd, status.ended_cost_usd * (progress.total - reused) / paid)


def _details(status: RunStatus) -> Iterable[tuple[str, str]]:
    """Yield further lines, each with its style."""
    if status.held_back_by is not None:
        yield f"held back by {shown(status.held_back_by)}", "yellow"
    if status.running:
        yield "running longest", "bold"
        times = [duration(step.running_s) for step in status.running]
        widest = max(map(len, times))
        for time, step in zip(times, status.running, strict=True):
            who = f"{shown(step.task_id, MAX_ID_CHARS)} ({shown(step.agent, MAX_ID_CHARS)})"
            yield f"  {time:>{widest}}  {who}", ""
    if status.failures:
        yield "last failures", "bold"
        for group in status.failures:
            yield f"  {group.count} × {shown(group.reason)}", "red"


def _bar(status: RunStatus, width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    text = Text(_done(status), no_wrap=True, overflow="ellipsis")
    room = width - len(text) - 1
    if room < MIN_BAR:
        return text
    progress = status.progress
    bar = ProgressBar(
        # A total of 0 would be drawn as nothing done.
        total=None if progress.total is None else max(1, progress.total),
        completed=1 if progress.total == 0 else _finished(status),
        width=min(MAX_BAR, room),
        pulse=progress.total is None,
        complete_style="green",
        finished_style="green",
        animation_time=progress.elapsed_s,
    )
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_column(width=min(MAX_BAR, room))
    line.add_column(no_wrap=True)
    line.add_row(bar, text)
    return line


def _styled(line: str, style: str) -> RenderableType:
    from rich.text import Text

    return Text(line, style=style, no_wrap=True, overflow="ellipsis")


def _packed(parts: Iterable[str], width: int) -> list[str]:
    """Return lines, each with as many of the parts as fit into the width."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(SEPARATOR) + len(part) <= width:
            lines[-1] += SEPARATOR + part
        else:
            lines.append(part)
    return lines


def _short(number: float) -> str:
    """Return a number of three digits or so: `0.52`, `7.1`, `118`, `12.3k`, `4.50M`."""
    if number < 10:
        return f"{number:.2g}"
    for limit, divisor, suffix in ((1e4, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if number < limit:
            return f"{number / divisor:.{0 if divisor == 1 else 1}f}{suffix}"
    return f"{number / 1e9:.1f}G"


def _money(dollars: float) -> str:
    return f"{dollars:.2f}" if dollars >= 0.1 else f"{dollars:.2g}"
