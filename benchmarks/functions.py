"""What a step does, as plain functions for the peers. Imports next to nothing, because their workers import it."""

from __future__ import annotations

import os
from time import sleep

DEADLY = "die"
"""The prompt of a step that kills its worker."""


def answer(prompt: str) -> str:
    """Return the prompt; if it is a number, after so many seconds, as a step does that waits for somebody else."""
    if prompt[0].isdigit():
        sleep(float(prompt))
    return prompt


def answer_or_die(prompt: str) -> str:
    """Return the prompt; if it is `DEADLY`, end the process at once, as a segfault would."""
    if prompt == DEADLY:
        os._exit(1)
    return prompt
