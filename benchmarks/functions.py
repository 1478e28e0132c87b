"""What a step does, as a plain function for the peers. Imports next to nothing, because their workers import it."""

from __future__ import annotations

from time import sleep


def answer(prompt: str) -> str:
    """Return the prompt; if it is a number, after so many seconds, as a step does that waits for somebody else."""
    if prompt[0].isdigit():
        sleep(float(prompt))
    return prompt
