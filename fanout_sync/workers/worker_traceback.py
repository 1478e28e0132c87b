"""The traceback of a worker, as the cause of an exception that is raised in the caller."""

from __future__ import annotations


class WorkerTraceback(Exception):
    """Shows the traceback of a worker process when the exception is printed that it is the cause of.

    Attributes:
        text: The traceback.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n\n{self.text}"
