"""What an error says about an executor that cannot be pickled: the path to what is at fault, and what to do instead."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import io
import logging
import multiprocessing
import queue
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fanout_sync import (
    AgentExecutor,
    AgentStepSpec,
    Budget,
    EventChannel,
    ExecutorNotPicklable,
    FunctionExecutor,
    RateLimit,
    StepOutcome,
)
from fanout_sync.workers.pickling.executor import pickle_executor

LOCK = threading.Lock()

PREAMBLE = """
import collections, dataclasses, functools, threading, types
import attrs

class Client:
    def __init__(self):
        self._lock = threading.Lock()
    def ask(self, spec):
        return "an answer"

CLIENT = Client()
"""


class Holder(AgentExecutor):
    """Holds `it`."""

    def __init__(self, it: Any) -> None:
        self.it = it

    def execute_step(self, spec: AgentStepSpec, event_tx: Any = None) -> StepOutcome:
        raise AssertionError("no step may run")


def refusal_of(it: Any, executor: AgentExecutor | None = None) -> ExecutorNotPicklable:
    """Return the error for an executor that holds `it` as its attribute of that name."""
    with pytest.raises(ExecutorNotPicklable) as caught:
        pickle_executor(executor or Holder(it), None)
    return caught.value


def from_main(source: str) -> Any:
    """Return the `it` of a script, whose functions and classes are pickled by value."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(PREAMBLE + textwrap.dedent(source), namespace)
    return namespace["it"]


# The path -----------------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "global": ("it = lambda spec: CLIENT.ask(spec)", " (global CLIENT)._lock"),
    "global in a comprehension": ("it = lambda spec: [CLIENT.ask(part) for part in spec]", " (global CLIENT)._lock"),
    "global in a generator expression": ("it = lambda spec: any(CLIENT for _ in spec)", " (global CLIENT)._lock"),
    "global in a lambda": ("it = lambda spec: (lambda: CLIENT)()", " (global CLIENT)._lock"),
    "global two functions deep": (
        """
        def it(spec):
            def inner():
                return lambda: CLIENT
            return inner
        """,
        " (global CLIENT)._lock",
    ),
    "global function": (
        """
        def helper():
            return CLIENT
        def it(spec):
            return helper()
        """,
        " (global helper) (global CLIENT)._lock",
    ),
    "closure": ("it = (lambda client: lambda spec: client)(CLIENT)", " (closure client)._lock"),
    "default": ("def it(spec, client=CLIENT): ...", " (default of client)._lock"),
    "second default": ("def it(spec, limit=3, client=CLIENT): ...", " (default of client)._lock"),
    "keyword-only default": ("def it(spec, *, limit=3, client=CLIENT): ...", " (default of client)._lock"),
    "attribute of a function": ("def it(spec): ...\nit.client = CLIENT", ".client._lock"),
    "decorated function": (
        """
        def logged(function):
            @functools.wraps(function)
            def wrapper(spec):
                return function(spec)
            return wrapper
        @logged
        def it(spec):
            return CLIENT
        """,
        " (closure function) (global CLIENT)._lock",
    ),
    "__wrapped__": ("def it(spec): ...\nit.__wrapped__ = lambda spec: CLIENT", ".__wrapped__ (global CLIENT)._lock"),
    "bound method": ("it = CLIENT.ask", ".__self__._lock"),
    "method of a builtin": ("it = CLIENT._lock.acquire", ".__self__"),
    "argument of a partial": ("it = functools.partial(print, CLIENT)", ".args[0]._lock"),
    "keyword of a partial": ("it = functools.partial(print, file=CLIENT)", ".keywords['file']._lock"),
    "function of a partial": ("it = functools.partial(CLIENT.ask)", ".func.__self__._lock"),
}

CLASSES = {
    "class attribute": ("class Agent:\n    client = CLIENT\nit = Agent()", " (class Agent).client._lock"),
    "inherited class attribute": (
        """
        class Base:
            client = CLIENT
        class Agent(Base): ...
        it = Agent()
        """,
        " (class Agent) (base class Base).client._lock",
    ),
    "metaclass": (
        """
        class Meta(type):
            client = CLIENT
        class Agent(metaclass=Meta): ...
        it = Agent()
        """,
        " (class Agent) (metaclass Meta).client._lock",
    ),
    "class itself": ("class it:\n    client = CLIENT", ".client._lock"),
    "method": (
        "class Agent:\n    def ask(self): return CLIENT\nit = Agent()",
        " (class Agent).ask (global CLIENT)._lock",
    ),
    "static method": (
        "class Agent:\n    @staticmethod\n    def ask(): return CLIENT\nit = Agent()",
        " (class Agent).ask (global CLIENT)._lock",
    ),
    "class method": (
        "class Agent:\n    @classmethod\n    def ask(cls): return CLIENT\nit = Agent()",
        " (class Agent).ask (global CLIENT)._lock",
    ),
    "property": (
        "class Agent:\n    @property\n    def ask(self): return CLIENT\nit = Agent()",
        " (class Agent).ask.fget (global CLIENT)._lock",
    ),
    "__reduce__": (
        """
        class Agent:
            def __init__(self, client):
                self.client = client
            def __reduce__(self):
                return Agent, (self.client,)
        it = Agent(CLIENT)
        """,
        ".client._lock",
    ),
    "__reduce__ to something new": (
        """
        class Agent:
            def __reduce__(self):
                return Agent, (1, [Client()])
        it = Agent()
        """,
        ".__reduce__()[1][1][0]._lock",
    ),
    "__getstate__": (
        "class Agent:\n    def __getstate__(self): return {'x': Client()}\nit = Agent()",
        ".__getstate__()['x']._lock",
    ),
}

CONTAINERS = {
    "dict": ("it = {'a': 1, 'b': [2, CLIENT]}", "['b'][1]._lock"),
    "number as key": ("it = {7: CLIENT}", "[7]._lock"),
    "tuple as key": ("it = {('a', 7): CLIENT}", "[('a', 7)]._lock"),
    "object as key": ("it = {Client: {CLIENT: 1}}", "[<type>] (key <Client>)._lock"),
    "long key": ("it = {'x' * 1000: CLIENT}", "['xxxxxxxxxxxxxxxxxxxx'…]._lock"),
    "huge number as key": ("it = {10**5000: CLIENT}", "[<int>]._lock"),
    "set": ("it = {CLIENT}", " (an element)._lock"),
    "deque": ("it = collections.deque([1, CLIENT])", "[1]._lock"),
    "defaultdict": ("it = collections.defaultdict(list, a=CLIENT)", "['a']._lock"),
    "factory": ("it = collections.defaultdict(lambda: CLIENT)", ".default_factory (global CLIENT)._lock"),
    "OrderedDict": ("it = collections.OrderedDict(a=CLIENT)", "['a']._lock"),
    "mappingproxy": ("it = types.MappingProxyType({'a': CLIENT})", "['a']._lock"),
    "namedtuple": ("it = collections.namedtuple('Pair', 'a b')(1, CLIENT)", "[1]._lock"),
    "subclass of list": ("class Agents(list): ...\nit = Agents([CLIENT])", "[0]._lock"),
    "subclass of dict": ("class Agents(dict): ...\nit = Agents(a=CLIENT)", "['a']._lock"),
    "dataclass": ("@dataclasses.dataclass\nclass D:\n    x: object\nit = D(CLIENT)", ".x._lock"),
    "dataclass with slots": ("@dataclasses.dataclass(slots=True)\nclass D:\n    x: object\nit = D(CLIENT)", ".x._lock"),
    "attrs class": ("@attrs.define\nclass D:\n    x: object\nit = D(CLIENT)", ".x._lock"),
    "private slot": (
        "class D:\n    __slots__ = ('__x',)\n    def __init__(self): self.__x = CLIENT\nit = D()",
        "._D__x._lock",
    ),
    "attribute that is no name": ("it = Client()\nit.__dict__ = {'a b': CLIENT}", ".__dict__['a b']._lock"),
}


@pytest.mark.parametrize(("source", "path"), [*FUNCTIONS.values(), *CLASSES.values(), *CONTAINERS.values()])
def test_the_path_leads_to_the_object_at_fault(source: str, path: str) -> None:
    """The path reads like Python, with a remark in parentheses where the language has no expression."""
    refusal = refusal_of(from_main(source))
    assert refusal.path == f"executor.it{path}"
    assert "it is a lock" in refusal.reason


def test_the_path_to_an_agent_of_a_function_executor() -> None:
    """For the commonest case it names the agent and the global variable."""
    executor = FunctionExecutor({"ask": from_main("it = lambda spec: CLIENT.ask(spec)")})
    assert refusal_of(None, executor).path == "executor._functions['ask'] (global CLIENT)._lock"


def test_what_pickling_leaves_out_is_not_blamed() -> None:
    """An attribute that `__getstate__` drops is not at fault, although it cannot be pickled."""
    it = from_main(
        """
        class Agent:
            def __init__(self):
                self.a_lock, self.client = threading.Lock(), CLIENT
            def __getstate__(self):
                return {"client": self.client}
        it = Agent()
        """
    )
    assert refusal_of(it).path == "executor.it.client._lock"


def test_a_long_path_is_shortened() -> None:
    """Of a path through a hundred objects the beginning and the end are shown."""
    it: Any = LOCK
    for _ in range(100):
        it = [it]
    path = refusal_of(it).path
    assert path.startswith("executor.it[0][0]")
    assert path.endswith("[0][0]")
    assert " … " in path
    assert len(path) < 100


# The search ---------------------------------------------------------------------------------------------------------


class Node:
    """Notes how often it is pickled."""

    pickled = 0

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __getstate__(self) -> dict[str, Any]:
        Node.pickled += 1
        return self.__dict__


@pytest.fixture
def count() -> type[Node]:
    Node.pickled = 0
    return Node


@pytest.mark.timeout(60)
def test_objects_that_refer_to_each_other(count: type[Node]) -> None:
    """The search pickles each of ten thousand objects once more and not again, although each refers to all others."""
    root = Node()
    root.__dict__["nodes"] = [Node(root=root, number=number) for number in range(10_000)]
    root.nodes[-1].lock = LOCK  # type: ignore[attr-defined]
    assert refusal_of(root).path == "executor.it.nodes[9999].lock"
    assert count.pickled == 2 * 10_001


@pytest.mark.timeout(60)
def test_a_large_list() -> None:
    """The last item of a large list is found."""
    assert refusal_of([*range(300_000), LOCK]).path == "executor.it[300000]"


@pytest.mark.parametrize("nest", [lambda inner: [inner], lambda inner: Node(next=inner)], ids=["lists", "objects"])
def test_too_deeply_nested(nest: Any) -> None:
    """If nothing but the depth is at fault, the error says that."""
    it: Any = None
    for _ in range(50_000):
        it = nest(it)
    refusal = refusal_of(it)
    assert "nested too deeply" in refusal.reason
    assert "flatter" in refusal.advice
    while isinstance(it, (list, Node)):  # taken apart here, because Python itself may fail to when it frees them
        it = it.pop() if isinstance(it, list) else it.__dict__.pop("next")


def _stop(*args: Any) -> Any:
    raise AssertionError("called")


HOSTILE: dict[str, dict[str, Any]] = {
    "__getattr__": {"__getattr__": _stop},
    "__repr__": {"__repr__": _stop},
    "__eq__": {"__eq__": _stop, "__hash__": lambda self: 1},
    "__hash__": {"__hash__": _stop},
    "__len__": {"__len__": _stop},
    "__iter__": {"__iter__": _stop},
    "__bool__": {"__bool__": _stop},
    "property": {"lock": property(_stop)},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_code_of_the_objects_is_not_called(name: str) -> None:
    """The search calls nothing of an object that pickling does not call."""
    kind = type("Hostile", (Node,), {**HOSTILE[name], "__module__": "__main__"})
    it: Any = object.__new__(kind)
    it.__dict__["held"] = [LOCK]
    assert refusal_of(it).path == "executor.it.held[0]"


@pytest.mark.parametrize(
    ("namespace", "text"),
    [
        ({"__reduce_ex__": lambda self, protocol: 5}, "must return a string or tuple"),
        ({"__reduce_ex__": lambda self, protocol: (1, 2)}, "must be callable"),
        ({"__reduce_ex__": lambda self, protocol: 1 / 0}, "ZeroDivisionError"),
        ({"__getstate__": lambda self: 1 / 0}, "ZeroDivisionError"),
        ({"__getattribute__": lambda self, name: 1 / 0}, "ZeroDivisionError"),
        ({"__class__": property(lambda self: 1 / 0), "__getstate__": lambda self: LOCK}, "ZeroDivisionError|lock"),
        ({"__reduce_ex__": lambda self, protocol: (list, (), None, _items())}, "ZeroDivisionError"),
    ],
    ids=["no tuple", "not callable", "reduce", "state", "attributes", "class", "items"],
)
def test_objects_that_cannot_even_be_asked(namespace: dict[str, Any], text: str) -> None:
    """If pickling an object raises, that object is at fault, and the error says what was raised."""
    kind = type("Hostile", (), {**namespace, "__module__": "__main__"})
    refusal = refusal_of([1, object.__new__(kind)])
    assert refusal.path.startswith("executor.it[1]")
    assert any(part in refusal.reason for part in text.split("|"))


def _items() -> Iterator[Any]:
    yield Node()
    raise ZeroDivisionError


def test_what_can_be_pickled_at_the_second_try() -> None:
    """If the search finds nothing, the error is the one that pickling has raised before."""
    failures = iter([ZeroDivisionError])

    class Once:
        def __reduce__(self) -> tuple[Any, ...]:
            for failure in failures:
                raise failure
            return (list, ())

    refusal = refusal_of(Once())
    assert (refusal.path, refusal.reason) == ("executor", "ZeroDivisionError")


# What to do instead -------------------------------------------------------------------------------------------------


async def _coroutine() -> None: ...


@pytest.mark.parametrize(
    ("it", "noun", "advice"),
    [
        (LOCK, "a lock", "Create it in the executor's setup()"),
        (threading.RLock(), "a lock", "Create it in the executor's setup()"),
        (threading.local(), "a threading.local", "setup()"),
        ((number for number in range(3)), "a generator", "list of its items"),
        (threading.Thread(target=print), "in a thread, executor.it", "Start the thread in"),
        (queue.Queue(), "in a queue, executor.it", "no memory"),
        (queue.SimpleQueue(), "a queue", "no memory"),
        (concurrent.futures.ThreadPoolExecutor(1), "a queue in a pool of workers, executor.it", "Create the pool in"),
        (concurrent.futures.Future(), "in a future, executor.it", "Keep its result"),
        (logging.StreamHandler(), "a lock in a logging handler, executor.it", "logging.getLogger(name)"),
        (type("MyLogger", (logging.Logger,), {})("mine"), "a logger", "logging.getLogger(name)"),
        (contextvars.copy_context(), "a context", "copy_context()"),
        (weakref.ref(Holder), "a weak reference", "Keep the object itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_advice_fits_what_is_at_fault(it: Any, noun: str, advice: str) -> None:
    """The error says what is at fault, and what to do instead of just that."""
    refusal = refusal_of(it)
    assert f"{noun} (" in refusal.reason
    assert advice in refusal.advice
    assert str(refusal).endswith(refusal.advice)


def test_advice_for_what_has_to_be_closed(tmp_path: Path) -> None:
    """Open files, sockets, databases, programs and coroutines each have their own advice."""
    file = (tmp_path / "log").open("w")
    binary = (tmp_path / "log").open("rb")
    connection = sqlite3.connect(":memory:")
    plug = socket.socket()
    program = subprocess.Popen([sys.executable, "-c", ""])
    coroutine = _coroutine()
    loop = asyncio.new_event_loop()
    with file, binary, plug, program:
        expected = {
            file: ("an open file", "Keep its path"),
            binary: ("an open file", "Keep its path"),
            connection: ("an open connection", "Connect in"),
            plug: ("a socket", "Connect in"),
            program: ("in a running program, executor.it", "Start the program in"),
            coroutine: ("a coroutine", "Keep the async function"),
            loop: ("in part of an event loop", "Create it in the step"),
        }
        refusals = {it: refusal_of(it) for it in expected}
    coroutine.close()
    connection.close()
    loop.close()
    for it, (noun, advice) in expected.items():
        assert noun in refusals[it].reason
        assert advice in refusals[it].advice


def test_advice_for_shared_memory() -> None:
    """A lock or a queue of multiprocessing is of no use in a worker, however it is sent."""
    refusal = refusal_of(multiprocessing.get_context("spawn").Lock())
    assert "a shared object of multiprocessing" in refusal.reason
    assert "return what a step has found in its outcome" in refusal.advice


def test_advice_for_standard_streams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program that keeps the standard input, or a stream that stands for `sys.stdout`, is told not to."""
    with (tmp_path / "log").open("w") as file:
        for name, noun, advice in (
            ("stdin", "the standard input", "read what the steps need before the run"),
            ("stdout", "a standard stream", "use sys.stdout or sys.stderr in the step"),
        ):
            stream = type("Tee", (io.TextIOWrapper,), {})(file.buffer)
            monkeypatch.setattr(sys, name, stream)
            refusal = refusal_of(stream)
            monkeypatch.undo()
            stream.detach()
            assert noun in refusal.reason
            assert advice in refusal.advice


@pytest.mark.parametrize("it", [EventChannel(), RateLimit(requests_per_minute=1), Budget(max_steps=1)])
def test_advice_for_what_belongs_to_the_runner(it: Any) -> None:
    """A channel, a limit or a budget is given to the runner; `setup()` would not help."""
    refusal = refusal_of(it)
    assert refusal.path == "executor.it"
    assert "lives in one process: give it to the runner" in refusal.reason
    assert "setup()" not in str(refusal)


class Odd:
    """Says that it is a global variable of its module, and is none."""

    def __reduce__(self) -> str:
        return "NO_SUCH_NAME"


def test_something_else() -> None:
    """Anything else is named after its class."""
    refusal = refusal_of(Odd())
    assert refusal.path == "executor.it"
    assert f"it is an instance of {__name__}.Odd (" in refusal.reason
    assert "setup()" in refusal.advice


def test_the_executor_itself() -> None:
    """If the executor itself cannot be pickled, nothing can be made in its `setup()`."""

    class Odd(Holder):
        def __reduce__(self) -> Any:
            raise TypeError("not for sending")

    refusal = refusal_of(None, Odd(1))
    assert refusal.path == "executor"
    assert "TypeError: not for sending" in refusal.reason
    assert refusal.advice == "Use backend='thread'."


def test_no_repr_in_the_message() -> None:
    """The message has no `repr` of an object: it may be long, and holds addresses that change."""
    it = from_main("it = lambda spec: CLIENT")
    assert "0x" not in str(refusal_of([it, "x" * 10_000]))
