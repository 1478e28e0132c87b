"""What the figures were taken on, and with."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

LIBRARIES = ("attrs", "cattrs", "joblib", "loky", "mpire", "pebble")


def facts() -> dict[str, str]:
    """Return what has to be known about the machine and the software to read the figures."""
    return {
        "CPU": f"{_cpu_model()}, {_cpu_count()} cores",
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


class Neighbours:
    """How busy other people's processes keep the machine, from now on; figures of a busy one are to be distrusted."""

    def __init__(self) -> None:
        self._before = _cpu_times()

    def share(self) -> float | None:
        """Return their share of the time of all CPUs, 0 to 1; `None` where the system does not tell."""
        now = _cpu_times()
        if self._before is None or now is None:
            return None
        total_s, busy_s, own_s = (after - before for before, after in zip(self._before, now, strict=True))
        return max(0.0, busy_s - own_s) / total_s if total_s else 0.0


def _cpu_times() -> tuple[float, float, float] | None:
    """Return the seconds that all CPUs have had, were busy, and were busy for this process and its children."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    busy = user + nice + system + irq + softirq + steal
    ticks = os.sysconf("SC_CLK_TCK")
    return (busy + idle + iowait) / ticks, busy / ticks, sum(os.times()[:4])


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, OSError, ValueError):
        return "unknown"
