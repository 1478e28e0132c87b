"""The arguments of `Command` and `CommandExecutor`: what they take, and how they refuse the rest."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
from programs import one, run_command

from fanout_sync import Command, CommandExecutor, OptionError, Runner


async def coroutine(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"argv": "cat -n"}, r"argv of Command must be a list of str, got str 'cat -n': no shell splits it"),
        ({"argv": []}, r"argv of Command must begin with the name of a program, got list \[\]"),
        ({"argv": [""]}, r"argv of Command must begin with the name of a program"),
        ({"argv": None}, r"argv of Command must be a list of str, got None"),
        ({"argv": ["cat", 3]}, r"argv of Command must be a list of str"),
        ({"argv": ["cat", b"x"]}, r"argv of Command must be a list of str, got the item bytes b'x'"),
        ({"argv": ["cat", "a\0b"]}, r"argv of Command must have no NUL characters"),
        ({"extra_args": "-v"}, r"extra_args of Command must be a list of str, got str '-v'"),
        ({"prompt": "file"}, r"prompt of Command must be 'stdin' or 'argument', got str 'file'"),
        ({"prompt": "arguments"}, r"did you mean 'argument'"),
        ({"cwd": 3}, r"cwd of Command must be the path of a folder, got int 3"),
        ({"cwd": ""}, r"cwd of Command must be the path of a folder"),
        ({"env": ["A=b"]}, r"env of Command must map names of variables to str or None, got list"),
        ({"env": {"A=": "b"}}, r"env of Command must have names of variables as keys, got str 'A='"),
        ({"env": {1: "b"}}, r"env of Command must have names of variables as keys, got int 1"),
        ({"env": {"A_KEY": b"s3cr3t"}}, r"env of Command must map 'A_KEY' to a str without NUL .* None, got a bytes$"),
        ({"output": "xml"}, r"output of Command \(if it is no function\) must be 'text' or 'json', got str 'xml'"),
        ({"output": None}, r"output of Command must be 'text', 'json' or a function of the text, got None"),
        ({"output": str}, r"output of Command must be 'text', 'json' or a function of the text, got type"),
        ({"output": coroutine}, r"output of Command must be a plain function, got the async one"),
        ({"answer": "result"}, r"answer of Command is a place in JSON: it needs output='json', got 'text'"),
        ({"output": "json", "answer": ""}, r"answer of Command must be a path such as 'result.text', got str ''"),
        ({"output": "json", "answer": "a..b"}, r"answer of Command must be a path such as 'result.text'"),
        ({"output": "json", "answer": "a[x]"}, r"answer of Command must be a path such as 'result.text'"),
        ({"output": "json", "answer": "a."}, r"answer of Command must be a path such as 'result.text'"),
        ({"output": "json", "answer": 3}, r"answer of Command must be a path such as 'result.text', got int 3"),
        ({"max_output_bytes": 0}, r"max_output_bytes of Command must be an int of at least 1, got int 0"),
        ({"max_output_bytes": 1e6}, r"max_output_bytes of Command must be an int of at least 1"),
        ({"idle_timeout": 0}, r"idle_timeout of Command must be a number of seconds greater than 0, got int 0"),
        ({"idle_timeout": "1"}, r"idle_timeout of Command must be a number of seconds"),
        ({"exit_grace": -1}, r"exit_grace of Command must be a number of seconds of at least 0, got int -1"),
        ({"exit_grace": None}, r"exit_grace of Command must be a number of seconds"),
        ({"start_interval": float("nan")}, r"start_interval of Command must be a number of seconds"),
    ],
)
def test_an_argument_without_a_usable_value(arguments: dict[str, Any], expected: str) -> None:
    """The error names the argument, what came and what is allowed."""
    with pytest.raises(OptionError, match=expected):
        Command(**{"argv": ["cat"], **arguments})


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ([Command(["cat"])], r"commands must map agent names to Commands, got list"),
        ({1: Command(["cat"])}, r"the name of an agent must be a str, got int 1"),
        ({"a": ["cat"]}, r"agent 'a' must be a Command, got list \['cat'\]; write Command\(\['cat'\]\)"),
        ({"a": len}, r"agent 'a' must be a Command, got builtin"),
    ],
)
def test_what_is_no_command(commands: Any, expected: str) -> None:
    """The error says what came in the place of commands."""
    with pytest.raises(OptionError, match=expected):
        CommandExecutor(commands)


def test_the_concurrency() -> None:
    """`concurrency` is the hint for runs, 8 by default."""
    assert CommandExecutor({}).concurrency_hint() == 8
    assert CommandExecutor({}, concurrency=3).concurrency_hint() == 3
    with pytest.raises(OptionError, match="concurrency must be an int of at least 1"):
        CommandExecutor({}, concurrency=0)


def test_paths_are_arguments(tmp_path: Path) -> None:
    """Paths may stand in `argv`, `extra_args` and `cwd`."""
    (tmp_path / "file").write_text("text")
    command = Command([Path("/bin/cat"), Path("file")], cwd=tmp_path)
    assert one(run_command(command)) == ("succeeded", "text")


def test_a_command_is_a_value() -> None:
    """Equal commands are equal, and hash, copy and pickle."""
    command = Command(["cat"], env={"A": "b"}, output=str.strip, extra_args=["-"])
    assert command == Command(["cat"], env={"A": "b"}, output=str.strip, extra_args=["-"])
    assert hash(command) == hash(Command(["cat"], env={"A": "b"}, extra_args=["-"]))
    assert pickle.loads(pickle.dumps(command)) == command
    assert copy.deepcopy(command) == command


def test_an_executor_copies_and_pickles() -> None:
    """A copy of an executor runs programs like the original."""
    executor = CommandExecutor({"a": Command(["cat"])}, concurrency=2)
    for copied in (copy.deepcopy(executor), pickle.loads(pickle.dumps(executor))):
        assert copied.concurrency_hint() == 2
        assert Runner(copied).run([])[:] == []


def test_options_of_a_preset_are_checked() -> None:
    """A preset takes the options of `Command` that it does not set itself, and refuses others."""
    with pytest.raises(
        OptionError, match=r"Command.claude\(\) has no option 'idle_timeoutt' \(did you mean 'idle_timeout'"
    ):
        Command.claude(idle_timeoutt=3)
    with pytest.raises(OptionError, match=r"model of Command.codex\(\) must be a str, got int 3"):
        Command.codex(model=3)  # type: ignore[arg-type]  # as many write it
