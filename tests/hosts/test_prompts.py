"""At prompts and in documents: IPython's terminal, `python -i`, standard input, `-c`, doctest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosting import PYTHON, assert_fanned_out, hosted, write_program
from scripts import each_backend

ON_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
"""Runs the program that its arguments name on a terminal of its own."""

PROMPTS = {
    "python": ("-i",),
    "python_with_script": ("-i", "-c", "'the script'"),
    "ipython": ("-m", "IPython", "--no-banner", "--simple-prompt", "--quick", "--HistoryManager.enabled=False"),
}

DOCTEST = '''
def documented():
    """Fan out with an agent of the example itself, which no module has.

    >>> def shout(spec):
    ...     return spec.prompt.upper()
    >>> fan_out(os.environ["BACKEND"])["steps"][0]
    ['t0', 'succeeded', 'answer 0']
    >>> specs = [AgentStepSpec(f"t{n}", "shout", "", f"word {n}") for n in range(3)]
    >>> run = Runner(FunctionExecutor({"shout": shout}), backend=os.environ["BACKEND"]).run(specs)
    >>> [outcome.output for outcome in run]
    ['WORD 0', 'WORD 1', 'WORD 2']
    """
'''


@each_backend
@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompt_fans_out(prompt: str, backend: str, tmp_path: Path) -> None:
    """What is typed at a prompt gets every outcome in order."""
    write_program(tmp_path, "", "agents.txt")
    typed = f"exec(open('agents.txt').read())\nreport = fan_out({backend!r})\nexit()\n"
    with hosted(tmp_path, PYTHON, "-c", ON_A_TERMINAL, PYTHON, *PROMPTS[prompt], typed=typed, TERM="dumb") as host:
        assert_fanned_out(host, backend)
        assert host.wait() == 0, host.log


@each_backend
def test_program_on_standard_input_fans_out(backend: str, tmp_path: Path) -> None:
    """A program that Python reads from its standard input gets every outcome in order."""
    program = write_program(tmp_path, f"fan_out({backend!r})", "program.txt").read_text()
    with hosted(tmp_path, PYTHON, "-", typed=program) as host:
        assert_fanned_out(host, backend)
        assert host.wait() == 0, host.log


@each_backend
def test_program_of_the_command_line_fans_out(backend: str, tmp_path: Path) -> None:
    """A program in the argument of `-c` gets every outcome in order."""
    program = write_program(tmp_path, f"fan_out({backend!r})", "program.txt").read_text()
    with hosted(tmp_path, PYTHON, "-c", program) as host:
        assert_fanned_out(host, backend)
        assert host.wait() == 0, host.log


@each_backend
@pytest.mark.parametrize(
    "runner", [("-m", "doctest"), ("-m", "pytest", "--doctest-modules")], ids=["doctest", "pytest"]
)
def test_doctest_fans_out(runner: tuple[str, ...], backend: str, tmp_path: Path) -> None:
    """The example of a docstring runs with the agents of its module, and with one that it defines itself."""
    write_program(tmp_path, DOCTEST)
    with hosted(tmp_path, PYTHON, *runner, "app.py", BACKEND=backend) as host:
        assert host.wait() == 0, host.log
        assert_fanned_out(host, backend)
