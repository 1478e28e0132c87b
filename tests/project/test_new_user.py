"""What a new user writes in a few lines survives the faults of a server, Ctrl-C and `kill -9`."""

from __future__ import annotations

from pathlib import Path

from scripts import run_python

SCRIPT = Path(__file__).parents[1] / "new_user.py"


def test_nothing_is_paid_twice_that_need_not_be() -> None:
    """Undisturbed, interrupted or killed, the program gets every answer, and pays twice only for what was running."""
    # It takes ten seconds; it starts the SDK five times, which takes long on a machine that has much else to do.
    done = run_python(SCRIPT, "--prompts", "64", bound_s=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": holds") == 15, done.stdout
