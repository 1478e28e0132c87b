"""What a target of the command line may be, and what is said of one that cannot be run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from fanout_sync import AgentExecutor, AgentStepSpec, FunctionExecutor, OptionError
from fanout_sync.cli.import_target import resolve_target

SPEC = AgentStepSpec("a", "shout", "Shout it", "hello")

AGENTS = """
    from fanout_sync import AgentExecutor, FunctionExecutor, StepOutcome

    def shout(spec):
        return spec.prompt.upper()

    class Shouter(AgentExecutor):
        def execute_step(self, spec, event_tx=None):
            return StepOutcome.completed(spec, spec.prompt.upper())

    class Named(Shouter):
        def __init__(self, name):
            self.name = name

    class Holder:
        executor = Shouter()
        missing = property(lambda self: 1 / 0)

    holder = Holder()
    shouter = Shouter()
    functions = {"shout": shout}
    empty = {}
    number = 3
    numbers = {"shout": 3}

    def make():
        return Shouter()

    def make_functions():
        return functions

    def make_nothing():
        return None

    def make_trouble():
        number = 1 - 1
        return number / number

    def leave():
        raise SystemExit("not today")

    async def make_later():
        return Shouter()
"""


@pytest.fixture(autouse=True)
def _pristine_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test in a folder of its own, and forget what it imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: str | Path, text: str) -> Path:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(dedent(text), encoding="utf-8")
    return place


def refusal(target: str) -> str:
    """Return why `target` is refused."""
    with pytest.raises(OptionError) as caught:
        resolve_target(target)
    message = str(caught.value)
    assert message.startswith(f"executor target {target!r}: ")
    return message.partition(": ")[2]


def output_of(executor: AgentExecutor) -> str:
    return executor.execute_step(SPEC).output


# What it may be -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shouter", "Shouter", "make", "functions", "make_functions", "holder.executor"])
@pytest.mark.parametrize("place", ["agents.py", "./agents.py", "agents"])
def test_targets_that_become_executors(place: str, name: str) -> None:
    """An executor, a class, a factory and a dict of functions can be run, from a file and from a module."""
    write("agents.py", AGENTS)
    assert output_of(resolve_target(f"{place}:{name}")) == "HELLO"


def test_executor_is_taken_as_it_is() -> None:
    """The executor that a module holds is the one that runs, not a copy."""
    write("agents.py", AGENTS)
    executor = resolve_target("agents.py:shouter")
    assert executor is sys.modules["agents"].shouter
    assert resolve_target("agents:shouter") is executor


def test_dict_becomes_function_executor() -> None:
    """A dict of functions runs in a `FunctionExecutor`."""
    write("agents.py", AGENTS)
    assert isinstance(resolve_target("agents:functions"), FunctionExecutor)


def test_module_of_a_package_in_the_current_directory() -> None:
    """A package need not be installed if it stands in the current directory; its relative imports work."""
    write("team/__init__.py", "")
    write("team/words.py", "suffix = '!'")
    write(
        "team/inner/agents.py", "from ..words import suffix\nfunctions = {'shout': lambda spec: spec.prompt + suffix}"
    )
    assert output_of(resolve_target("team.inner.agents:functions")) == "hello!"


def test_file_finds_its_siblings(tmp_path: Path) -> None:
    """A file imports what stands beside it, wherever it is, by a relative and by an absolute path."""
    write("deep/down/words.py", "suffix = '!'")
    write("deep/down/agents.py", "from words import suffix\nfunctions = {'shout': lambda spec: spec.prompt + suffix}")
    assert output_of(resolve_target("deep/down/agents.py:functions")) == "hello!"
    assert output_of(resolve_target(f"{tmp_path}/deep/../deep/down/agents.py:functions")) == "hello!"


def test_file_beats_its_namesake_in_the_current_directory() -> None:
    """The file that is named is imported, though the current directory has one of the same name."""
    write("agents.py", "functions = {'shout': lambda spec: 'the wrong one'}")
    write("deep/agents.py", "functions = {'shout': lambda spec: 'the right one'}")
    assert output_of(resolve_target("deep/agents.py:functions")) == "the right one"


@pytest.mark.parametrize("name", ["my-agents.py", "größe.py", "a b.py"])
def test_file_with_a_name_that_no_import_statement_can_write(name: str) -> None:
    """The name of a file need not be an identifier."""
    write(name, AGENTS)
    assert output_of(resolve_target(f"{name}:functions")) == "HELLO"


def test_path_may_have_colons() -> None:
    """The name comes after the last colon."""
    write("a:b/agents.py", AGENTS)
    assert output_of(resolve_target("a:b/agents.py:functions")) == "HELLO"


# What it may not be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["", ":", "agents", "agents:", ":executor", "agents:not-a-name", r"C:\agents.py"])
def test_target_in_neither_form(target: str) -> None:
    """The error names the two forms of a target."""
    assert "expected package.module:name or path/file.py:name" in refusal(target)


def test_file_without_a_name() -> None:
    """If the target is only a file, the error shows how to name the executor in it."""
    assert "such as 'agents.py:executor'" in refusal("agents.py")


def test_dot_in_place_of_the_colon() -> None:
    """If the target has a dot where the colon belongs, the error shows the right form."""
    assert "(did you mean 'team.agents:functions'?)" in refusal("team.agents.functions")


def test_relative_module() -> None:
    """A relative module name is refused."""
    assert "'.agents' is not an absolute module name" in refusal(".agents:functions")


def test_missing_file(tmp_path: Path) -> None:
    """A file that does not exist is named in full."""
    assert f"there is no file {tmp_path / 'nope' / 'agents.py'}" in refusal("nope/agents.py:functions")


def test_missing_file_on_a_windows_drive() -> None:
    """The colon of a drive is not the one before the name."""
    assert r"there is no file" in refusal(r"C:\work\agents.py:functions")
    assert r"C:\work\agents.py" in refusal(r"C:\work\agents.py:functions")


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """A folder is no file, whatever it is called."""
    (tmp_path / "agents.py").mkdir()
    assert f"{tmp_path / 'agents.py'} is not a file" in refusal("agents.py:functions")


def test_file_that_is_not_python() -> None:
    """A path has to lead to a Python file."""
    write("agents.txt", AGENTS)
    assert "'./agents.txt' is not a Python file" in refusal("./agents.txt:functions")


def test_missing_module(tmp_path: Path) -> None:
    """The error names a similar module, and where the module was looked for."""
    write("team/__init__.py", "")
    write("team/agents.py", AGENTS)
    message = refusal("team.agnets:functions")
    assert "No module named 'team.agnets' (did you mean 'team.agents'?)" in message
    assert str(tmp_path) in message
    assert "No module named 'taem' (did you mean 'team'?)" in refusal("taem.agents:functions")


def test_missing_name(tmp_path: Path) -> None:
    """The error names a similar name in the module."""
    write("agents.py", AGENTS)
    assert refusal("agents:function").endswith(
        f"{tmp_path / 'agents.py'} has no 'function' (did you mean 'functions'?)"
    )
    assert "'holder' in " in refusal("agents:holder.exekutor")
    assert "has no 'exekutor' (did you mean 'executor'?)" in refusal("agents:holder.exekutor")


def test_name_that_raises_when_it_is_looked_up(tmp_path: Path) -> None:
    """A property that raises is reported with its line."""
    write("agents.py", AGENTS)
    message = refusal("agents:holder.missing")
    assert "looking up 'missing' in " in message
    assert "raised ZeroDivisionError: division by zero" in message
    assert str(tmp_path / "agents.py") in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("number", "number is int 3; expected an executor, an executor class"),
        ("empty", "empty is empty; expected functions by the name of their agent"),
        ("numbers", "numbers is not a dict of functions: agent 'shout' must be a function, got int 3"),
        ("shout", "shout(spec) needs arguments; expected an executor, an executor class or a function without"),
        ("shout", "an agent's function belongs in a dict: {'shout': shout}"),
        ("Named", "Named(name) needs arguments; expected"),
        ("Holder", "Holder() returned Holder <"),
        ("make_nothing", "make_nothing() returned None; expected an executor or a dict of functions"),
        ("make_trouble", "make_trouble() raised ZeroDivisionError: division by zero"),
        ("make_trouble", "agents.py, line 37)"),
        ("leave", "leave() raised SystemExit: not today"),
        ("make_later", "make_later() is async"),
        ("AgentExecutor", "AgentExecutor() raised TypeError: Can't instantiate abstract class AgentExecutor"),
    ],
)
def test_targets_that_are_not_runnable(name: str, said: str) -> None:
    """The error names the target, what it is and what is expected."""
    write("agents.py", AGENTS)
    assert said in refusal(f"agents.py:{name}")


# What goes wrong on import --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("\nraise ValueError('boom')", "ValueError: boom", 2),
        ("import sys\n\nsys.exit(3)", "SystemExit: 3", 3),
        ("def f(:\n    pass", "SyntaxError: ", 1),
        ("import json\n\njson.loads('{')", "json.decoder.JSONDecodeError: ", 3),
        ("from no_such_module import x", "ModuleNotFoundError: No module named 'no_such_module'", 1),
        ("import fanout_sync\nfanout_sync.FunctionExecutor({'a': 3})", "OptionError: agent 'a' must be a function", 2),
    ],
)
@pytest.mark.parametrize("place", ["agents.py", "agents"])
def test_error_on_import_names_the_line_in_the_file(
    place: str, text: str, said: str, line: int, tmp_path: Path
) -> None:
    """The message has the type, the message and the line in the user's own code, not one in a library."""
    write("agents.py", text)
    message = refusal(f"{place}:functions")
    assert said in message
    assert f"({tmp_path / 'agents.py'}, line {line})" in message


def test_error_on_import_names_the_line_in_a_sibling(tmp_path: Path) -> None:
    """An error in a module that the file imports is found there."""
    write("words.py", "\n\n1 / 0")
    write("agents.py", "import words")
    assert f"ZeroDivisionError: division by zero ({tmp_path / 'words.py'}, line 3)" in refusal("agents.py:functions")


def test_error_on_import_is_the_cause() -> None:
    """The error that the import raised is the cause of the `OptionError`."""
    write("agents.py", "raise ValueError('boom')")
    with pytest.raises(OptionError) as caught:
        resolve_target("agents.py:functions")
    assert isinstance(caught.value.__cause__, ValueError)


def test_ctrl_c_during_the_import_is_no_error_of_the_target() -> None:
    """Ctrl-C while a module is imported raises `KeyboardInterrupt`."""
    write("agents.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        resolve_target("agents.py:functions")


def test_file_of_a_package_with_relative_imports() -> None:
    """The error says to name the package instead of the file."""
    write("team/__init__.py", "")
    write("team/agents.py", "from . import words")
    assert "the file is in a package: write the target as package.module:name" in refusal("team/agents.py:functions")


def test_file_that_hides_the_library_it_wants() -> None:
    """The error says that the file hides the library that it imports."""
    write("installed/sdk.py", "client = 1")
    write("here/sdk.py", "from sdk import client")
    sys.path.append(str(Path("installed").absolute()))
    message = refusal("here/sdk.py:functions")
    assert f"the file hides the module 'sdk' of {Path('installed').absolute() / 'sdk.py'}" in message


@pytest.mark.parametrize("name", ["json", "sys", "statistics", "__main__", "pytest"])
def test_file_named_after_another_module(name: str) -> None:
    """A file with the name of another module, imported or not, is refused: it has to be renamed."""
    write(f"deep/{name}.py", AGENTS)
    message = refusal(f"deep/{name}.py:functions")
    assert f"the module {name!r}" in message or f"library's module {name!r}" in message
    assert message.endswith("rename the file")


def test_file_behind_a_package_of_its_name(tmp_path: Path) -> None:
    """Where a package and a file have the same name, Python imports the package, and the file has to be renamed."""
    write("agents/__init__.py", "")
    write("agents.py", AGENTS)
    assert f"is hidden by {tmp_path / 'agents' / '__init__.py'}" in refusal("agents.py:functions")


def test_file_with_a_dot_in_its_name() -> None:
    """A dot would make a package of it."""
    write("agents.v2.py", AGENTS)
    assert "cannot be imported with a dot in its name; rename it" in refusal("agents.v2.py:functions")


# Where worker processes find it ---------------------------------------------------------------------------------------

SEARCHED = [str(Path(folder).absolute()) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]

WHEREABOUTS = """
    import os
    import sys
    from {words} import suffix

    def shout(spec):
        return f"{{spec.prompt}}{{suffix}} {{__name__}} {{'parent' if 'fanout_sync.cli' in sys.modules else 'worker'}}"

    functions = {{"shout": shout}}
"""


@pytest.mark.parametrize(("backend", "process"), [("thread", "parent"), ("process", "worker")])
@pytest.mark.parametrize("as_module", [False, True], ids=["fanout-sync", "python -m"])
@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("work/my-agents.py:functions", "my-agents"),
        ("team.agents:functions", "team.agents"),
        ("top:functions", "top"),
    ],
)
def test_steps_find_the_module_of_the_target(
    target: str, module: str, as_module: bool, backend: str, process: str, tmp_path: Path
) -> None:
    """A file, a package and a module of the current directory are found, with their siblings, on both backends."""
    write("work/words.py", "suffix = '!'")
    write("work/my-agents.py", WHEREABOUTS.format(words="words"))
    write("team/__init__.py", "")
    write("team/words.py", "suffix = '!'")
    write("team/agents.py", WHEREABOUTS.format(words=".words"))
    write("top.py", WHEREABOUTS.format(words="team.words"))
    write("steps.jsonl", SPEC.to_json())
    # The script that installing makes starts with its own folder on `sys.path`, `python -m` with the current one.
    script = write("elsewhere/bin/script.py", "from fanout_sync.cli.group import main\nmain()")
    start = ["-m", "fanout_sync"] if as_module else [str(script)]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(SEARCHED)}
    done = subprocess.run(
        [sys.executable, "-W", "error", *start, "run", "steps.jsonl", "--executor", target, "--backend", backend],
        env=surroundings,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f'"output":"hello! {module} {process}"' in done.stdout
