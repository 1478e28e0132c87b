"""What real programs have printed, and what the readers of the presets make of it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from fanout_sync import AgentStepSpec
from fanout_sync.events.types import Event
from fanout_sync.executors.command.answer import Answer
from fanout_sync.executors.command.presets.preset import Preset

FOLDER = Path(__file__).with_name("cli_samples")

NAMES = ("claude", "codex", "gemini", "opencode", "copilot")

SPEC = AgentStepSpec("t1", "agent", "a step", "hi")

GEMINI_STATUSES = {"401": 145, "429": 173, "503": 247, "key": 41}


def preset_named(name: str, model: str | None = None) -> Preset:
    """Return the preset of a program."""
    module = importlib.import_module(f"fanout_sync.executors.command.presets.{name}")
    preset: Preset = getattr(module, f"{name.capitalize()}Preset")(model)
    return preset


def sample(name: str) -> str:
    """Return what a program has printed."""
    return FOLDER.joinpath(f"{name}.txt").read_text(encoding="utf-8")


def exit_status_of(name: str) -> int:
    """Return the exit status of a recorded program."""
    what = name.removesuffix(".stderr").removesuffix(".tail").split("-")[-1]
    if what in ("ok", "schema", "tool", "empty", "stream"):
        return 0
    return GEMINI_STATUSES[what] if name.startswith("gemini") else 1


def read(program: str, lines: Iterable[str], exit_status: int | None, stderr: str = "") -> tuple[Answer, list[Event]]:
    """Return the answer and the events that the reader of a preset finds."""
    reader = preset_named(program).reader(SPEC)
    events = [event for line in lines for event in reader.line(line)]
    return reader.answer(exit_status, stderr), events


def read_sample(name: str) -> tuple[Answer, list[Event]]:
    """Return the answer and the events that a preset finds in what its program has printed."""
    program = name.partition("-")[0]
    if name.endswith(".stderr"):
        return read(program, (), exit_status_of(name), sample(name))
    return read(program, sample(name).splitlines(), exit_status_of(name))
