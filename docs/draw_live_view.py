"""Draws `images/live-view.svg`: what a terminal shows in the middle of a real run of the command line.

    pip install '.[test]' && python docs/draw_live_view.py

Only the agents are not real: they wait instead of asking a model.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = Path(__file__).parent / "images" / "live-view.svg"
COLUMNS, ROWS = 115, 22
STEPS = 400
PATIENCE_S = 60

AGENTS = """
import random
import time

from fanout_sync import current_step


class RateLimitError(Exception):
    pass


def review(spec):
    number = int(spec.task_id.rpartition("-")[2])
    chance = random.Random(number + 1000 * current_step().attempt)
    if number % 90 == 41:
        time.sleep(600)
    time.sleep(chance.uniform(0.4, 1.6))
    if chance.random() < 0.04:
        raise RateLimitError("429 Too Many Requests")
    if number % 57 == 13:
        raise FileNotFoundError(f"no file {spec.prompt}")
    if number % 31 == 7:
        raise ValueError("no JSON in the answer")
    current_step().add_usage(prompt_tokens=chance.randrange(1200, 4200), completion_tokens=400, cost_usd=0.006)
    return "looks good"


agents = {"reviewer": review}
"""
COMMAND = (
    "fanout-sync run steps.jsonl --executor agents.py:agents -j 16 --retry 3 --rpm 900 --journal run.db -o out.jsonl"
)

# Colours that can be told apart on their own background, whatever the page around the picture looks like.
THEME = TerminalTheme(
    (24, 26, 31),
    (220, 223, 228),
    [
        (40, 44, 52),
        (240, 113, 120),
        (126, 211, 133),
        (229, 192, 123),
        (97, 175, 239),
        (198, 120, 221),
        (86, 182, 194),
        (220, 223, 228),
    ],
)
# rich's own frame would load its font from another server.
FRAME = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
    <title>A run of 400 steps on a terminal, with its bar, counts, rate, cost, and the last failures</title>
    <style>
    .{unique_id}-matrix {{
        font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace;
        font-size: {char_height}px;
        line-height: {line_height}px;
    }}
    .{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
    </g>
</svg>
"""


def main() -> None:
    """Run the steps, and draw what is seen when nearly half of them are done."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        screen = seen_in_the_middle(Path(folder), arguments.steps)
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(picture_of(screen), encoding="utf-8")


def seen_in_the_middle(folder: Path, steps: int) -> pyte.Screen:
    """Return the screen as it is when nearly half of the steps are done; the run is interrupted then."""
    (folder / "agents.py").write_text(AGENTS, encoding="utf-8")
    with (folder / "steps.jsonl").open("w", encoding="utf-8") as file:
        for number in range(steps):
            step = {
                "task_id": f"review-{number}",
                "agent": "reviewer",
                "description": "Review a module",
                "prompt": f"module-{number}.py",
            }
            file.write(f"{json.dumps(step)}\n")
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(f"$ {COMMAND}\r\n".encode())
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-m", *COMMAND.replace("-", "_", 1).split()],
        cwd=folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**environment, "TERM": "xterm-256color"},
        start_new_session=True,
    ) as process:
        os.close(slave)
        try:
            wanted = 45 * steps // 100
            while not _is_in_the_middle(screen.display, wanted):
                if not select.select([master], [], [], PATIENCE_S)[0]:
                    raise SystemExit(f"the run does not come to {wanted} steps: {screen.display}")
                stream.feed(os.read(master, 65536))
        finally:
            process.terminate()
            while _reads(master):
                pass
            os.close(master)
    return screen


def _is_in_the_middle(rows: list[str], wanted: int) -> bool:
    """Return whether so many steps are done, and some are running."""
    return any(_done(row) >= wanted for row in rows) and any(row.startswith("running longest") for row in rows)


def _done(row: str) -> int:
    """Return how many steps are done, if this row is the one with the bar; else -1."""
    count = row.partition("/")[0].split(" ")[-1]
    return int(count) if " steps (" in row and count.isdecimal() else -1


def _reads(terminal: int) -> bool:
    try:
        return bool(os.read(terminal, 65536))
    except OSError:  # no process has it open any more
        return False


def picture_of(screen: pyte.Screen) -> str:
    """Return a screen as SVG that needs nothing but itself."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=screen.columns, file=nowhere, force_terminal=True, legacy_windows=False)
        rows = [number for number, row in enumerate(screen.display) if row.strip()]
        for number in range(max(rows) + 1):
            console.print(_row(screen, number), no_wrap=True, crop=True)
        return console.export_svg(title="fanout-sync", theme=THEME, code_format=FRAME, unique_id="live-view")


def _row(screen: pyte.Screen, number: int) -> Text:
    text = Text()
    cells = [screen.buffer[number][column] for column in range(screen.columns)]
    for (color, is_bold), group in groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
        text.append("".join(cell.data for cell in group), Style(color=_color(color), bold=is_bold))
    text.rstrip()
    return text


def _color(name: str) -> str | None:
    """Return what rich calls a colour of pyte."""
    if name == "default":
        return None
    names = {"brown": "yellow"}
    return names.get(name) or (f"#{name}" if len(name) == 6 and not name.isalpha() else name)


if __name__ == "__main__":
    main()
