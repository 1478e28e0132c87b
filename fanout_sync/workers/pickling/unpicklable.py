"""What it is that cannot be pickled or unpickled, in words, and what to do instead."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import frozen

from ...errors import ExecutorNotPicklable
from ...records.status import StepError
from ..loss import LoadFailure
from ..worker_traceback import WorkerTraceback
from .culprit import Culprit, find_culprit
from .parts import name_of
from .setup_advice import item_function_advice, setup_advice, takes_items

T = TypeVar("T")


@frozen
class Kind:
    """A kind of object that does not leave its process.

    Attributes:
        noun: What it is, with its article.
        advice: What to do instead, in whole sentences.
    """

    noun: str
    advice: str


_IN_SETUP = "in the executor's setup(), which runs in each worker, or use backend='thread'."
_CREATE = f"Create it {_IN_SETUP}"
_NO_SHARED_MEMORY = (
    "Workers share no memory with this program: return what a step has found in its outcome, send it as an event, or "
    "use backend='thread'."
)
_IN_A_MODULE = "Define it at the top level of a module that workers can import, or use backend='thread'."

_FILE = Kind("an open file", f"Keep its path instead, and open the file {_IN_SETUP}")
_CONNECTION = Kind("an open connection", f"Connect {_IN_SETUP}")
_POOL = Kind("a pool of workers", f"Create the pool {_IN_SETUP}")
_EVENT_LOOP = Kind("part of an event loop", "Create it in the step, or in the executor's setup().")
_QUEUE = Kind("a queue", _NO_SHARED_MEMORY)
_SHARED = Kind("a shared object of multiprocessing", _NO_SHARED_MEMORY)
_LOCK = Kind("a lock", _CREATE)

_KINDS = {
    "_io._IOBase": _FILE,
    "tempfile._TemporaryFileWrapper": _FILE,
    "mmap.mmap": _FILE,
    "socket.socket": Kind("a socket", f"Connect {_IN_SETUP}"),
    "_socket.socket": Kind("a socket", f"Connect {_IN_SETUP}"),
    "_ssl._SSLContext": Kind("an SSL context", _CREATE),
    "sqlite3.Connection": _CONNECTION,
    "sqlite3.Cursor": _CONNECTION,
    "generator": Kind(
        "a generator", f"Keep a list of its items, or keep the function that makes it and call that {_IN_SETUP}"
    ),
    "coroutine": Kind("a coroutine", "Keep the async function, and call it in the step."),
    "async_generator": Kind("an async generator", "Keep the function that makes it, and call it in the step."),
    "threading.Thread": Kind("a thread", f"Start the thread {_IN_SETUP}"),
    "_thread._local": Kind("a threading.local", _CREATE),
    "subprocess.Popen": Kind("a running program", f"Start the program {_IN_SETUP}"),
    "multiprocessing.process.BaseProcess": Kind("a process", f"Start the process {_IN_SETUP}"),
    "concurrent.futures._base.Executor": _POOL,
    "multiprocessing.pool.Pool": _POOL,
    "concurrent.futures._base.Future": Kind("a future", "Keep its result instead."),
    "queue.Queue": _QUEUE,
    "_queue.SimpleQueue": _QUEUE,
    "multiprocessing.queues.Queue": _QUEUE,
    "multiprocessing.queues.SimpleQueue": _QUEUE,
    "multiprocessing.synchronize.SemLock": _SHARED,
    "multiprocessing.sharedctypes.SynchronizedBase": _SHARED,
    "logging.Handler": Kind(
        "a logging handler",
        "Keep no handler: log with logging.getLogger(name), and what steps log in workers reaches the handlers of this "
        "program.",
    ),
    "logging.Logger": Kind("a logger", "Keep its name, and call logging.getLogger(name) in the step."),
    "loguru._logger.Logger": Kind("a loguru logger", "Import it in the step: from loguru import logger."),
    "asyncio.events.AbstractEventLoop": _EVENT_LOOP,
    "asyncio.futures.Future": _EVENT_LOOP,
    "_asyncio.Future": _EVENT_LOOP,
    "_contextvars.Context": Kind("a context", "Call contextvars.copy_context() in the step."),
    "weakref.ReferenceType": Kind("a weak reference", "Keep the object itself, or use backend='thread'."),
    "_thread.lock": _LOCK,
    "_thread.RLock": _LOCK,
    "threading._RLock": _LOCK,
}
"""By the name of the class; a subclass is of the same kind. By name, so that nothing is imported just for this."""

_PACKAGE, _, _ = __name__.partition(".")
_OURS = {
    f"{_PACKAGE}.events.channel.EventChannel": "Agents send events with the event_tx that execute_step is given.",
    f"{_PACKAGE}.limits.rate_limit.RateLimit": "Or use backend='thread'.",
    f"{_PACKAGE}.limits.budget.Budget": "Or use backend='thread'.",
}
"""What says itself why it cannot be pickled."""


def refuse_unpicklable(
    values: Mapping[str, Any], pickler: type[pickle.Pickler], error: Exception
) -> ExecutorNotPicklable:
    """Return the error for values that cannot be pickled.

    Args:
        values: What was pickled in a row, by name.
        pickler: What has pickled them.
        error: What it raised.
    """
    culprit = find_culprit(values, pickler)
    if culprit is None:  # it could be pickled this time
        return ExecutorNotPicklable("executor", str(StepError.of(error)), "Use backend='thread'.")
    reason, advice = _explain(culprit)
    if advice.endswith(_IN_SETUP):
        owners = [owner for _, owner in culprit.owners]
        if takes_items(owners):
            advice = advice.removesuffix(_IN_SETUP) + item_function_advice(culprit.path, owners)
        else:
            advice += setup_advice(culprit.path, owners)
    return ExecutorNotPicklable(culprit.path, reason, _advice_by_argument(culprit.path, advice))


def refuse_unloadable(failure: LoadFailure) -> ExecutorNotPicklable:
    """Return the error for what was pickled, but no worker can unpickle."""
    error = failure.error
    what = f"unpickling it in a worker raised {error}" if failure.has_raised else error.message
    advice = _ADVICE_BY_ERROR.get(error.type, f"Create what cannot be unpickled {_IN_SETUP}")
    reason = f"it was pickled, but {what}"
    refusal = ExecutorNotPicklable(failure.name, reason, _advice_by_argument(failure.name, advice), error.traceback)
    if error.traceback is not None:
        refusal.__cause__ = WorkerTraceback(error.traceback)
    return refusal


_ADVICE_BY_ERROR = {
    "ModuleNotFoundError": "Put the module where workers can import it, or use backend='thread'.",
    "AttributeError": _IN_A_MODULE,
}


def _advice_by_argument(path: str, advice: str) -> str:
    return "Use a strategy that does without it, or backend='thread'." if path.startswith("retry") else advice


def _explain(culprit: Culprit) -> tuple[str, str]:
    """Return what a culprit is, with the error that pickling it raised, and what to do instead."""
    value, error = culprit.value, StepError.of(culprit.error)
    if _is_too_deep(culprit.error):
        return f"it is nested too deeply to be pickled ({error})", f"Make it flatter, or create it {_IN_SETUP}"
    if (advice := _by_class(_OURS, value)) is not None:
        return str(error), advice
    kind = _kind_of(value) or Kind(_noun_for(value), _advice_for(value, is_part=bool(culprit.owners)))
    for path, owner in culprit.owners:  # the outermost says most: a pool that has a queue that has a lock
        if (owner_kind := _kind_of(owner)) is not None:
            return f"it is {kind.noun} in {owner_kind.noun}, {path} ({error})", owner_kind.advice
    return f"it is {kind.noun} ({error})", kind.advice


def _kind_of(value: Any) -> Kind | None:
    if any(value is stream for stream in (sys.stdin, sys.__stdin__)):
        return Kind("the standard input", "Workers read nothing from it: read what the steps need before the run.")
    if any(value is stream for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)):
        return Kind("a standard stream", "Do not keep it: use sys.stdout or sys.stderr in the step.")
    return _by_class(_KINDS, value)


def _by_class(table: Mapping[str, T], value: Any) -> T | None:
    """Return what the table has for the class of an object or the next of its base classes."""
    names = (_full_name(kind) for kind in type(value).__mro__)
    return next((table[name] for name in names if name in table), None)


def _full_name(kind: type) -> str:
    module = _MODULE.__get__(kind)
    return name_of(kind) if module in ("builtins", "__main__") else f"{module}.{name_of(kind)}"


_MODULE: Any = type.__dict__["__module__"]  # a metaclass may hide it, too


def _noun_for(value: Any) -> str:
    """Return what an object is, without its `repr`, which may be long, raise, or never return."""
    if issubclass(type(value), type):
        return f"the class {name_of(value)}"
    if type(value) is types.FunctionType:
        return f"the function {value.__qualname__}"
    return f"an instance of {_full_name(type(value))}"


def _advice_for(value: Any, *, is_part: bool) -> str:
    if issubclass(type(value), (type, types.FunctionType)):
        return _IN_A_MODULE
    return _CREATE if is_part else "Use backend='thread'."


def _is_too_deep(error: BaseException) -> bool:
    # cloudpickle raises a PicklingError instead.
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)
