"""Where steps run."""

from .backend import Backend
from .process import ProcessBackend
from .thread import ThreadBackend

__all__ = ["Backend", "ProcessBackend", "ThreadBackend"]
