"""Rows whose every figure comes from an interpreter of its own."""

from __future__ import annotations

from functools import partial

from ..measure import run_fresh
from ..row import OURS, Condition, Contestant, Limit, Row, Sizes

HEAVY = ("loky", "tenacity", "jsonschema", "tqdm", "click")
"""What `import fanout_sync` must leave for later."""

COLD_CONTESTANTS = (OURS, "loky", "ProcessPoolExecutor, spawn", "ProcessPoolExecutor", "pebble")


def from_main(sizes: Sizes) -> Row:
    """The row of no-op steps in processes once more, with all that runs defined in the script itself."""

    def contestant(name: str, pool: str, place: str) -> Contestant:
        count = str(sizes.process_steps)
        return Contestant(name, lambda: run_fresh("in_main.py", pool, place, count)["s"] * 1e6 / sizes.process_steps)

    imported = f"{OURS}, imported"
    return Row(
        f"{sizes.process_steps:,} no-op steps, 2 warm processes, executor and classes defined in `__main__`",
        "µs a step",
        (
            contestant(OURS, "fanout_sync", "main"),
            contestant(imported, "fanout_sync", "imported"),
            contestant("loky", "loky", "main"),
            contestant("loky, imported", "loky", "imported"),
        ),
        (Limit("must", 1.5, (imported,)), Limit("aim", 1.05, (imported,))),
    )


def cold_start(sizes: Sizes) -> Row:
    """From just before the pool is made to the first answer."""
    return _cold_start("cold start to first outcome, 2 workers, all imports done", with_import=False)


def cold_start_with_import(sizes: Sizes) -> Row:
    """The same, from before the library is imported: whoever imports late pays here."""
    return _cold_start("cold start to first outcome, 2 workers, importing the library included", with_import=True)


def imports(sizes: Sizes) -> Row:
    """What the import statement costs."""

    def contestant(name: str, *modules: str) -> Contestant:
        return Contestant(name, lambda: run_fresh("import_time.py", *modules)["s"] * 1e3)

    return Row(
        "`import fanout_sync`",
        "ms",
        (
            contestant(OURS, "fanout_sync"),
            contestant("… and every name it exports", "fanout_sync:*"),
            contestant("attrs, cattrs", "attrs", "cattrs"),
        ),
        (
            Limit("must", 1.3, ("attrs, cattrs",)),
            Condition("must", f"loads none of {', '.join(HEAVY)}", _heavy_modules_loaded),
        ),
    )


def stream_memory(sizes: Sizes) -> Row:
    """Peak memory of a long stream and of a short one."""

    def contestant(name: str, count: int) -> Contestant:
        return Contestant(name, lambda: run_fresh("peak_memory.py", str(count))["mb"])

    short = f"{sizes.streamed // 100:,} specs"
    return Row(
        f"peak memory of `stream` of {sizes.streamed:,} generated specs, thread",
        "MB",
        (contestant(OURS, sizes.streamed), contestant(short, sizes.streamed // 100)),
        (Limit("must", 1.0, (short,), extra=20.0),),
    )


def _cold_start(title: str, *, with_import: bool) -> Row:
    def measure(name: str) -> float:
        seconds = run_fresh("cold_start.py", name)
        return float(seconds["start_s"] + (seconds["import_s"] if with_import else 0.0)) * 1e3

    return Row(
        title,
        "ms",
        tuple(Contestant(name, partial(measure, name)) for name in COLD_CONTESTANTS),
        (Limit("must", 1.2, ("loky",)), Limit("aim", 1.0, ("loky",))),
    )


def _heavy_modules_loaded() -> str:
    loaded = run_fresh("import_time.py", "fanout_sync")["loaded"]
    return ", ".join(name for name in HEAVY if name in loaded)
