"""Runs in a frozen program before its own code. A program that was started to be a worker is that and nothing else."""


def _begin() -> None:
    import sys

    sys._fanout_sync_is_hooked = True  # type: ignore[attr-defined]  # `processes/interpreter.py` looks for it
    if sys.argv[1:2] == ["--fanout-sync-process"]:
        program = sys.argv[2]
        del sys.argv[1:]
        exec(program, {"__name__": "__main__"})
        sys.exit()


_begin()
del _begin
