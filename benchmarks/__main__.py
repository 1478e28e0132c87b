"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec

from attrs import evolve

PEERS = ("diskcache", "joblib", "loky", "mpire", "pebble")
FEWEST_ROUNDS = 5


def main() -> int:
    """Measure the rows that are asked for and return the exit status."""
    missing = [name for name in PEERS if find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)} must be installed: pip install '.[benchmarks]'", file=sys.stderr)
        return 2

    from . import machine, report
    from .measure import measure
    from .row import FULL, QUICK
    from .rows import ROWS

    options = _options(list(ROWS))
    if options.list:
        print("\n".join(f"{name:<20}{make_row(FULL).title}" for name, make_row in ROWS.items()))
        return 0
    sizes = QUICK if options.quick else FULL
    if options.rounds is not None:
        sizes = evolve(sizes, rounds=options.rounds)
    facts = machine.facts()
    all_measured = []
    for name in options.rows or ROWS:
        began = time.monotonic()
        all_measured.append(measure(ROWS[name](sizes), sizes.rounds))
        print(f"{report.as_text(all_measured[-1])}\n  ({name}, {time.monotonic() - began:.0f} s)\n", flush=True)
    if options.write:
        report.write_page(report.as_markdown(all_measured, facts))
    missed = [verdict for each in all_measured for verdict in each.verdicts if not verdict.holds]
    print(f"{len(missed)} requirements missed", *missed, sep="\n  ")
    return 1 if options.check and any(verdict.kind == "must" for verdict in missed) else 0


def _options(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against the usual alternatives.")
    parser.add_argument("--rows", nargs="+", metavar="NAME", choices=names, help="only these rows, in this order")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"how often each is measured, at least {FEWEST_ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, the figures mean little")
    parser.add_argument("--list", action="store_true", help="print the rows and measure nothing")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a must is missed")
    parser.add_argument("--write", action="store_true", help="put the result into docs/explanation/performance.md")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds must be at least {FEWEST_ROUNDS}")
    if options.write and (options.quick or options.rows):
        parser.error("--write needs all rows in full size")
    return options


if __name__ == "__main__":
    sys.exit(main())
