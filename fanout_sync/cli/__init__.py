"""The command line: `fanout-sync`, one module for each command."""

from .group import main

__all__ = ["main"]
