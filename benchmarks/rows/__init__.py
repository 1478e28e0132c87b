"""All rows, by the names that the command line knows them by."""

from __future__ import annotations

from collections.abc import Callable

from ..row import Row, Sizes
from . import async_agents, commands, fresh, journals, live_view, processes, refusals, threads

ROWS: dict[str, Callable[[Sizes], Row]] = {
    "thread-noop": threads.noop,
    "thread-sleep": threads.naps,
    "process-noop": processes.noop,
    "thread-guarded": threads.guarded,
    "process-guarded": processes.guarded,
    "thread-progress": threads.shown,
    "process-main": fresh.from_main,
    "cold-start": fresh.cold_start,
    "cold-start-import": fresh.cold_start_with_import,
    "import": fresh.imports,
    "stream-memory": fresh.stream_memory,
    "process-uneven": processes.uneven,
    "process-deaths": processes.deaths,
    "journal-sleep": journals.naps,
    "journal-noop": journals.noop,
    "journal-resume": journals.resume,
    "async-sleep": async_agents.naps,
    "async-noop": async_agents.noop,
    "live-view": live_view.noop,
    "commands": commands.short,
    "few-refusals": refusals.few_refusals,
    "thread-extras": threads.extras,
    "process-extras": processes.extras,
}
