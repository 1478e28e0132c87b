"""Executors from the box."""

from .function import FunctionExecutor

__all__ = ["FunctionExecutor"]
