"""Measures the peak memory of a process that streams generated specs: `peak_memory.py COUNT`."""

from __future__ import annotations

import json
import sys
from collections import deque
from pathlib import Path

from benchmarks.executors import Answering, generate_specs
from benchmarks.functions import answer
from fanout_sync import Runner


def peak_mb() -> float:
    """Return the largest resident size that this process has had, in MB."""
    # Linux's ru_maxrss begins with the size of the process that started this one; VmHWM does not.
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e6
    import resource

    peak_size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_size / 1e6 if sys.platform == "darwin" else peak_size * 1024 / 1e6


def main(count: int) -> None:
    """Stream `count` specs and keep nothing of what comes."""
    deque(Runner(Answering(answer)).stream(generate_specs(count)), maxlen=0)
    print(json.dumps({"mb": peak_mb()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
