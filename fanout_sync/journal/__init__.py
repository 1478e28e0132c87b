"""Durable stores of outcomes, that let a run resume."""

from .journal import DEFAULT_WORKFLOW_ID, Journal, OpenWorkflow, Workflow
from .memory import MemoryJournal
from .sqlite import SqliteJournal

__all__ = ["DEFAULT_WORKFLOW_ID", "Journal", "MemoryJournal", "OpenWorkflow", "SqliteJournal", "Workflow"]
