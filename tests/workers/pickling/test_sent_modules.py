"""A step in a worker finds in `__main__`, and in modules that no worker can import, what it finds on a thread."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import run_python

SCRIPT = '''
from __future__ import annotations

import collections, concurrent.futures, contextvars, dataclasses, enum, functools, importlib.util, json, os, pickle
import shelve, sys, tempfile, threading, typing, xml.dom.minidom
from fanout_sync import AgentStepSpec, FunctionExecutor, Runner
from typing import Optional
import lazy_library
from os import environ
from sys import argv, path
from library import CALLER, STEP, caller_and_step

class Color(enum.Enum):
    RED = 1

class Planet(enum.Enum):
    EARTH = (5.9, 6.4)

    def __init__(self, mass, radius):
        self.mass = mass
        self.radius = radius

class Size(enum.Enum):
    SMALL = (1, "small")

    def __new__(cls, value, label):
        made = object.__new__(cls)
        made._value_ = value
        made.label = label
        return made

@dataclasses.dataclass
class Note:
    text: str
    color: Optional[Color] = None
    other: Only = None

class Only:
    """Only a string annotation names it."""

class Unused(Note):
    """Nothing names it."""

class Counting:
    made = 0

    def __init__(self):
        Counting.made += 1

    @functools.cached_property
    def once(self):
        return Note("once")

    @functools.lru_cache(maxsize=None)
    def cached(self, number):
        return number

Point = collections.namedtuple("Point", "x y")
UNPICKLABLE = threading.Lock()
LABEL = contextvars.ContextVar("LABEL", default="unset")
MISSING = contextvars.ContextVar("MISSING")
DEFAULTED = contextvars.ContextVar("DEFAULTED", default="its default")
LIMIT = 3
UNUSED = "unused"
SETTINGS = {"a": 1}
AGENTS = {}

def uses_what_does_not_pickle():
    return UNPICKLABLE

def agent(function):
    AGENTS[function.__name__] = function
    return function

@agent
def registered():
    return "registered"

@functools.lru_cache
def client():
    return object()

@functools.cache
def fibonacci(number):
    return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)

@functools.singledispatch
def describe(value):
    return "any"

@describe.register
def _(value: int):
    return "int"

@describe.register(list)
def _(value):
    return f"list of {', '.join(map(describe, value))}"

def unused():
    return f"unused {LIMIT}"

def annotated(note: Note, only: "Only | None" = None) -> Optional[Unused]:
    return None

def counter():
    count = 0
    def increase():
        nonlocal count
        count += 1
        return count
    return increase, lambda: count

increase, counted = counter()

def factorial(number):
    return 1 if number == 0 else number * factorial(number - 1)

def defines_a_class():
    class Inner:
        limit = LIMIT
        notes = [Note(str(number)).text for number in range(LIMIT)]
    return Inner.limit, Inner.notes

class Missing:
    def __reduce__(self):
        return "MISSING_VALUE"

MISSING_VALUE = Missing()

def optional(value=MISSING_VALUE):
    return value is MISSING_VALUE

UserId = typing.NewType("UserId", int)
Arguments = typing.ParamSpec("Arguments")
Result = typing.TypeVar("Result")

def unchanged(function: typing.Callable[Arguments, Result]) -> typing.Callable[Arguments, Result]:
    return function

class Registered:
    kinds = []

    def __init_subclass__(cls, *, key):
        super().__init_subclass__()
        cls.key = key
        cls.kinds.append(cls)

class First(Registered, key="first"):
    pass

class Second(First, key="second"):
    pass

def subclasses():
    class Local(Registered, key="local"):
        pass
    Registered.kinds.pop()
    return [First.key, Second.key, Local.key, len(Registered.kinds), Registered.kinds[1] is Second]

class Outer:
    class Inner:
        pass

class Meta(type):
    def __call__(cls, *args):
        return super().__call__(*args)

class WithMeta(metaclass=Meta):
    __slots__ = ("value",)

    def __init__(self, value=LIMIT):
        self.value = value

def by_name(name):
    import __main__
    return getattr(__main__, name)

def round_trip(value):
    return pickle.loads(pickle.dumps(value))

def in_a_shelf(value):
    with tempfile.TemporaryDirectory() as folder, shelve.open(os.path.join(folder, "shelf")) as shelf:
        shelf["value"] = value
        return shelf["value"]

def square(number):
    return number * number

def in_a_pool():
    import multiprocessing
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(square, range(3))

spec = importlib.util.spec_from_file_location("plugin", os.environ["PLUGIN"])
plugin = sys.modules["plugin"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)

os.chdir(os.environ["OTHER_FOLDER"])
sys.path.insert(0, "")
import beside
os.chdir(os.environ["EMPTY_FOLDER"])

CHECKS = {
    "a function with a cache": lambda: client() is client(),
    "a recursive function with a cache": lambda: fibonacci(20),
    "a cache on a method": lambda: Counting().cached(3),
    "a property that is computed once": lambda: Counting().once.text,
    "single dispatch": lambda: describe([1, "x"]),
    "a registry": lambda: AGENTS["registered"](),
    "a class counts its objects": lambda: (Counting(), Counting(), Counting.made)[2] >= 2,
    "pickle of an object": lambda: round_trip(Note("x", Color.RED)) == Note("x", Color.RED),
    "pickle of an enum": lambda: round_trip(Color.RED) is Color.RED,
    "pickle of a named tuple": lambda: round_trip(Point(1, 2)),
    "pickle of a class": lambda: round_trip(Note) is Note,
    "pickle of a function": lambda: round_trip(factorial) is factorial,
    "pickle of an object with slots": lambda: round_trip(WithMeta(4)).value,
    "an object that pickles as a name": lambda: (optional(), round_trip(MISSING_VALUE) is MISSING_VALUE),
    "a new type": lambda: (UserId(3), round_trip(UserId) is UserId),
    "parameters of types": lambda: (unchanged(len)("xy"), round_trip(Arguments) is Arguments),
    "an enum whose members have attributes": lambda: (Planet.EARTH.mass, Size.SMALL.label, Size(1) is Size.SMALL),
    "what each process has one of": lambda: (environ is os.environ, argv is sys.argv, path is sys.path),
    "an attribute that a module makes": lambda: plugin.made_when_looked_up,
    "a class that registers its subclasses": subclasses,
    "pickle of a class in a class": lambda: type(round_trip(Outer.Inner())) is Outer.Inner,
    "a shelf": lambda: in_a_shelf(Note("x")).text,
    "type hints of a class": lambda: sorted(typing.get_type_hints(Note)),
    "type hints of a function": lambda: sorted(typing.get_type_hints(annotated)),
    "`import __main__`": lambda: by_name("unused")(),
    "a class that nothing names": lambda: round_trip(by_name("Unused")("x")).text,
    "what `__main__` does not have": lambda: hasattr(sys.modules["__main__"], "nothing"),
    "the file of the script": lambda: os.path.basename(__file__),
    "closures that share a variable": lambda: (increase(), counted() >= 1)[1],
    "a recursive function": lambda: factorial(5),
    "a class in a function": defines_a_class,
    "a context variable": lambda: LABEL.get(),
    "a context variable without a value": lambda: MISSING.get("none"),
    "a context variable with a default": lambda: DEFAULTED.get(),
    "context variables of a library": lambda: (STEP.set("set by the step"), CALLER.get(), caller_and_step())[1:],
    "a module that loads lazily": lambda: lazy_library.answer(),
    "a submodule": lambda: concurrent.futures.Future.__name__,
    "a submodule of a submodule": lambda: xml.dom.minidom.Document.__name__,
    "`globals`": lambda: globals()["unused"](),
    "a constant that nothing names": lambda: by_name("UNUSED"),
    "a dictionary that nothing names": lambda: by_name("SETTINGS")["a"],
    "a pool in the step": in_a_pool,
    "a module loaded from a path": lambda: plugin.greet("x"),
    "a class of such a module": lambda: round_trip(plugin.Greeting("x")).text,
    "a cache in such a module": lambda: plugin.cached() is plugin.cached(),
    "a global of such a module": lambda: plugin.CONFIG["language"],
    "an import of such a module": lambda: __import__("plugin") is plugin,
    "a module of another folder": lambda: beside.answer(),
}

def check(spec):
    try:
        return json.dumps(CHECKS[spec.prompt]())
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

if __name__ == "__main__":
    LABEL.set("set by the script")
    CALLER.set("set by the script")
    specs = [AgentStepSpec(f"t{number}", "check", "", name) for number, name in enumerate(CHECKS)]
    found = {}
    for backend in ("thread", "process"):
        run = Runner(FunctionExecutor({"check": check}), backend=backend, max_concurrency=1).run(specs)
        found[backend] = {spec.prompt: outcome.output for spec, outcome in zip(specs, run)}
    print(json.dumps(found))
'''

PLUGIN = """
import functools

CONFIG = {"language": "en"}

class Greeting:
    def __init__(self, text):
        self.text = text

def __getattr__(name):
    if name == "made_when_looked_up":
        return len(CONFIG)
    raise AttributeError(name)

def greet(name):
    return Greeting(f"{CONFIG['language']} {name}").text

@functools.lru_cache
def cached():
    return object()
"""

LIBRARY = """
import contextvars

CALLER = contextvars.ContextVar("CALLER")
STEP = contextvars.ContextVar("STEP")

def caller_and_step():
    return CALLER.get(), STEP.get()
"""

LAZY_LIBRARY = """
import sys, types

class LazyModule(types.ModuleType):
    def __getattr__(self, name):
        if name == "answer":
            return lambda: "from a lazy library"
        raise AttributeError(name)

sys.modules[__name__].__class__ = LazyModule
"""

CHECKED = [line.split('"')[1] for line in SCRIPT.splitlines() if line.startswith('    "') and '": ' in line]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Return what the steps of the script answer, by backend."""
    folder = tmp_path_factory.mktemp("script")
    script, plugin, other, empty = (folder / name for name in ("script.py", "plugin.py", "other", "empty"))
    script.write_text(SCRIPT)
    (folder / "plugins").mkdir()
    plugin = folder / "plugins" / "plugin.py"
    plugin.write_text(PLUGIN)
    other.mkdir()
    empty.mkdir()
    (folder / "library.py").write_text(LIBRARY)
    (folder / "lazy_library.py").write_text(LAZY_LIBRARY)
    (other / "beside.py").write_text("def answer():\n    return 'from beside'\n")
    folders = {"PLUGIN": str(plugin), "OTHER_FOLDER": str(other), "EMPTY_FOLDER": str(empty)}
    done = run_python(script, environment=folders)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", CHECKED)
def test_a_worker_finds_what_a_thread_finds(name: str, found: dict[str, dict[str, str]]) -> None:
    """A step gives the same answer in a worker process as on a thread."""
    assert "Error" not in found["thread"][name]
    assert found["process"][name] == found["thread"][name]


def run_script(tmp_path: Path, source: str) -> Any:
    """Return what a script has shown."""
    script = tmp_path / "script.py"
    script.write_text(source)
    done = run_python(script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_worker_does_not_run_the_script_nor_import_what_no_step_needs(tmp_path: Path) -> None:
    """What only other functions of the script import is not imported in a worker."""
    (tmp_path / "slow_library.py").write_text("import os; open('imported', 'a').write(f'{os.getpid()} ')")
    source = """
import json, sys
import slow_library
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

def report():
    return slow_library.__name__

def agent(spec):
    return str("slow_library" in sys.modules)

run = Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=2).run(make_specs(2))
print(json.dumps([outcome.output for outcome in run]))
"""
    # `sys.modules` may be searched for anything, so it would count as a use; `sys` is spelled otherwise here.
    source = source.replace('"slow_library" in sys.modules', "'slow_library' in getattr(sys, 'mod' + 'ules')")
    assert run_script(tmp_path, source) == ["False", "False"]
    assert len((tmp_path / "imported").read_text().split()) == 1


def test_what_no_step_needs_may_be_large_or_unpicklable(tmp_path: Path) -> None:
    """Neither costs anything: a large table of the script stays where it is."""
    source = """
import json, threading
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

TABLE = b"x" * 200_000_000
LOCK = threading.Lock()

def plot():
    with LOCK:
        return len(TABLE)

def size():
    return len(TABLE)

class Plotter:
    lock = LOCK

def agent(spec):
    import __main__
    return f"{hasattr(__main__, 'plot')} {hasattr(__main__, 'Plotter')} {hasattr(__main__, 'size')} {__main__.other()}"

def other():
    return "other"

run = Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=1).run(make_specs(1))
print(json.dumps(run[0].output))
"""
    assert run_script(tmp_path, source) == "False False False other"


def test_a_traceback_shows_file_line_and_source(tmp_path: Path) -> None:
    """An error in a function of the script shows where it was raised, in a worker as on a thread."""
    source = """
import json
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

def fail(spec):
    raise ValueError("no")  # here

found = []
for backend in ("thread", "process"):
    run = Runner(FunctionExecutor({"tester": fail}), backend=backend, max_concurrency=1).run(make_specs(1))
    found.append(run.records[0].error.traceback)
print(json.dumps(found))
"""
    on_thread, in_worker = run_script(tmp_path, source)
    expected = on_thread[on_thread.index(f'File "{tmp_path}') :]
    assert "line 7, in fail" in expected
    assert 'raise ValueError("no")  # here' in expected
    assert in_worker.endswith(expected)


def test_a_traceback_shows_the_source_that_only_the_caller_has() -> None:
    """The lines of code that was never in a file, such as a cell of a notebook, are sent with it."""
    import linecache

    from fanout_sync import FunctionExecutor, Runner
    from fanout_sync.testing import make_specs

    text = "def fail(spec):\n    raise ValueError('in a cell')\n"
    linecache.cache["<cell 1>"] = (len(text), None, text.splitlines(keepends=True), "<cell 1>")
    namespace: dict[str, Any] = {"__name__": "cells"}
    exec(compile(text, "<cell 1>", "exec"), namespace)
    run = Runner(FunctionExecutor({"tester": namespace["fail"]}), backend="process", max_concurrency=1).run(
        make_specs(1)
    )
    error = run.records[0].error
    assert error is not None
    assert "raise ValueError('in a cell')" in str(error.traceback)


def test_a_compiled_module_that_no_worker_finds_is_refused(tmp_path: Path) -> None:
    """The code of a compiled module cannot be sent; the error names the module before any step runs."""
    import importlib.util

    from fanout_sync import ExecutorNotPicklable, FunctionExecutor, Runner
    from fanout_sync.testing import make_specs

    found = importlib.util.find_spec("_testcapi") or importlib.util.find_spec("_decimal")
    assert found is not None
    assert found.origin is not None
    compiled = tmp_path / Path(found.origin).name
    compiled.write_bytes(Path(found.origin).read_bytes())
    spec = importlib.util.spec_from_file_location(found.name, compiled)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__name__ = "compiled_elsewhere"
    sys.modules["compiled_elsewhere"] = module
    try:
        runner = Runner(FunctionExecutor({"tester": lambda spec: str(module)}), backend="process")
        with pytest.raises(ExecutorNotPicklable, match="compiled_elsewhere"):
            runner.run(make_specs(1))
    finally:
        del sys.modules["compiled_elsewhere"]


def test_a_context_variable_of_an_importable_module(tmp_path: Path) -> None:
    """A variable that the script has imported is the module's own in a worker, too."""
    (tmp_path / "labels.py").write_text(
        "import contextvars\nlabel = contextvars.ContextVar('other name')\ndef get():\n    return label.get('unset')\n"
    )
    source = """
import json
from labels import get, label
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

def agent(spec):
    label.set(spec.prompt)
    return get()

run = Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=1).run(make_specs(2))
print(json.dumps([outcome.output for outcome in run]))
"""
    assert run_script(tmp_path, source) == ["0", "1"]


def test_a_kept_worker_has_the_newest_definitions(tmp_path: Path) -> None:
    """What the script defines anew between two runs is what a kept worker has, under its name as well."""
    source = """
import json, pickle
from fanout_sync import AgentExecutor, Runner, StepOutcome
from fanout_sync.testing import make_specs

def define(version):
    text = f'''
class Note:
    version = {version}

def looked_up():
    return {version}

class Asker(AgentExecutor):
    def execute_step(self, spec, event_tx=None):
        import __main__
        same = type(pickle.loads(pickle.dumps(self))) is type(self) and pickle.loads(pickle.dumps(Note)) is Note
        versions = Note.version, __main__.looked_up(), __main__.Later.version
        return StepOutcome.completed(spec, str((same, *versions)))

class Later:
    version = {version}
'''
    exec(text, globals())

found = []
define(1)
runner = Runner(Asker(), backend="process", max_concurrency=1)
with runner:
    for version in (2, 3):
        found.append(runner.run(make_specs(1))[0].output)
        define(version)
        runner._plan = type(runner._plan)(executor=Asker(), backend=runner._plan.backend)
    found.append(runner.run(make_specs(1))[0].output)
print(json.dumps(found))
"""
    assert run_script(tmp_path, source) == [f"(True, {n}, {n}, {n})" for n in (1, 2, 3)]


def test_a_large_script(tmp_path: Path) -> None:
    """Thousands of functions that no step needs cost little, though some of them do not pickle."""
    source = """
import json, threading
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

LOCK = threading.Lock()
for number in range(2500):
    exec(f"def f{number}():\\n    return {number}, {'LOCK' if number % 100 == 0 else 'agent'}")

def agent(spec):
    import __main__
    names = "f1", "f2499", "f0"
    return json.dumps([getattr(__main__, name, lambda: [None])()[0] for name in names])

with Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=1) as runner:
    for _ in range(4):
        run = runner.run(make_specs(1))
print(run[0].output)
"""
    assert run_script(tmp_path, source) == [1, 2499, None]


def test_a_kept_worker_sees_names_that_are_defined_anew(tmp_path: Path) -> None:
    """What a step looks up by name, or in an annotation, is what the script has when the run begins."""
    source = """
from __future__ import annotations
import json, typing
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

def define(number):
    exec(f"def only_looked_up(): return {number}", globals())
    exec(f"class OnlyNamed: number = {number}", globals())

def annotated(value: OnlyNamed): ...

def agent(spec):
    module = __import__("__ma" + "in__")  # so that nothing says that it looks up names
    looked_up = getattr(module, "only_looked_up", lambda: None)()
    return json.dumps([looked_up, typing.get_type_hints(annotated)["value"].number])

define(1)
found = []
with Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=1) as runner:
    for number in (1, 2, 3):
        define(number)
        if number == 3:
            del only_looked_up
        found.append(json.loads(runner.run(make_specs(1))[0].output))
print(json.dumps(found))
"""
    assert run_script(tmp_path, source) == [[1, 1], [2, 2], [None, 3]]


def test_a_module_whose_import_has_begun_the_run(tmp_path: Path) -> None:
    """A module that runs steps while it is imported is sent: a worker that imported it would run them, too."""
    (tmp_path / "job.py").write_text("""
import os
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

with open("imports", "a") as file:
    file.write("imported ")

def agent(spec):
    return helper()

def helper():
    return "done"

assert len(open("imports").read().split()) < 3
run = Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=1).run(make_specs(1))
""")
    source = """
import json, job
print(json.dumps([job.run[0].output, open("imports").read()]))
"""
    assert run_script(tmp_path, source) == ["done", "imported "]


def test_a_module_that_a_worker_would_not_find_under_its_name(tmp_path: Path) -> None:
    """Sent are a plugin named as a module of the standard library, and what a relative search path found before."""
    for folder, name in (("relative", "found_before"), ("plugins", "calendar"), ("elsewhere", "nothing")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text("def answer():\n    return __name__\n")
    source = """
import importlib.util, json, os, sys
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

sys.path.append("relative")
import found_before
os.chdir("elsewhere")
spec = importlib.util.spec_from_file_location("calendar", "../plugins/calendar.py")
calendar = sys.modules["calendar"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(calendar)

def agent(spec):
    return f"{found_before.answer()} {calendar.answer()}"

run = Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=1).run(make_specs(1))
print(json.dumps(run[0].output))
"""
    assert run_script(tmp_path, source) == "found_before calendar"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is that of Python 3.12")
def test_type_aliases_and_type_parameters(tmp_path: Path) -> None:
    """Aliases of types, recursive ones too, and type parameters are there in a worker."""
    source = """
import json, pickle, typing
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

type Vector = list[float]
type Tree = int | list[Tree]
type Pair[T] = tuple[T, T]

def first[T](pair: Pair[T], tree: Tree = 0) -> T:
    return pair[0]

class Box[T]:
    def get(self, vector: Vector) -> T: ...

def agent(spec):
    same = [pickle.loads(pickle.dumps(alias)) is alias for alias in (Vector, Tree)]
    return f"{first((1, 2))} {Vector.__value__} {Tree.__value__} {Box[int]} {same}"

run = Runner(FunctionExecutor({"tester": agent}), backend="process", max_concurrency=1).run(make_specs(1))
print(json.dumps(run[0].output))
"""
    assert run_script(tmp_path, source) == "1 list[float] int | list[Tree] __main__.Box[int] [True, True]"


@pytest.mark.parametrize("folder", ["", "plugins"], ids=["importable", "sent"])
def test_an_executor_of_another_module_sees_the_script(folder: str, tmp_path: Path) -> None:
    """`__main__` is the script's, with file, functions and globals, also when no agent is from there."""
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "agents.py").write_text("""
import os, pickle

LABEL = "shared"

def agent(spec):
    import __main__
    note = pickle.loads(pickle.dumps(__main__.Note()))
    return f"{LABEL} {__main__.helper()} {type(note).__name__} {os.path.basename(__main__.__file__)}"
""")
    source = f"""
import importlib.util, json, sys
from fanout_sync import FunctionExecutor, Runner
from fanout_sync.testing import make_specs

spec = importlib.util.spec_from_file_location("agents", {str(tmp_path / folder / "agents.py")!r})
agents = sys.modules["agents"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(agents)
TEXT = "shared"

class Note: ...

def helper():
    return TEXT

run = Runner(FunctionExecutor({{"tester": agents.agent}}), backend="process", max_concurrency=1).run(make_specs(1))
print(json.dumps(run[0].output))
"""
    assert run_script(tmp_path, source) == "shared shared Note script.py"
