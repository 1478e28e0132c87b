"""Log records and output of workers, as the caller gets them."""

from __future__ import annotations

import enum
import io
import logging
import logging.config
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest

from fanout_sync import AgentExecutor, AgentStepSpec, EventSender, FunctionExecutor, ProcessBackend, Runner, StepOutcome
from fanout_sync.testing import make_specs


@pytest.fixture(autouse=True)
def _levels_as_before() -> Iterator[None]:
    before = logging.root.manager.disable
    yield
    logging.disable(before)


# Log records ----------------------------------------------------------------------------------------------------------


def log_all(spec: AgentStepSpec) -> str:
    logger = logging.getLogger("team.agent")
    logger.debug("a detail of %s", spec.task_id)
    logger.info("working on %s", spec.task_id, extra={"cost": 1.5, "secret": object()})
    logger.warning("100%% of %(what)s", {"what": "steps"})
    nothing: dict[str, str] = {}
    try:
        nothing["missing"]
    except KeyError:
        logging.getLogger("team").exception("failed")
    return str(os.getpid())


@pytest.mark.parametrize("streams", [False, True])
def test_log_records_reach_the_caller(streams: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Same logger, level, message, time and place; the exception as text; plain extras; nothing below the level."""
    caplog.set_level(logging.INFO)
    runner = Runner(FunctionExecutor({"tester": log_all}), backend="process")
    (outcome,) = list(runner.stream(make_specs(1)) if streams else runner.run(make_specs(1)))
    records = [record for record in caplog.records if record.name.startswith("team")]
    assert [(record.name, record.levelname, record.getMessage()) for record in records] == [
        ("team.agent", "INFO", "working on t0"),
        ("team.agent", "WARNING", "100% of steps"),
        ("team", "ERROR", "failed"),
    ]
    assert {str(record.process) for record in records} == {outcome.output}
    assert {record.funcName for record in records} == {"log_all"}
    assert records[0].__dict__["cost"] == 1.5
    assert "secret" not in records[0].__dict__
    assert records[2].exc_info is None
    assert records[2].exc_text is not None
    assert "KeyError: 'missing'" in records[2].exc_text
    assert "KeyError: 'missing'" in caplog.text


def test_the_levels_of_the_caller_hold_in_workers(caplog: pytest.LogCaptureFixture) -> None:
    """The levels of the caller's loggers when the run begins hold in workers, and so does `logging.disable`."""
    caplog.set_level(logging.DEBUG, logger="team.agent")
    runner = Runner(FunctionExecutor({"tester": log_all}), backend="process")
    runner.run(make_specs(1))
    assert [record.levelname for record in caplog.records] == ["DEBUG", "INFO", "WARNING", "ERROR"]
    caplog.clear()
    logging.disable(logging.WARNING)
    runner.run(make_specs(1))
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_handler_that_raises_fails_no_step(capsys: pytest.CaptureFixture[str]) -> None:
    """If a handler of the program raises, every step still has its outcome."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("a broken handler")

    handler = Broken()
    logging.getLogger("team").addHandler(handler)
    try:
        run = Runner(FunctionExecutor({"tester": log_all}), backend="process").run(make_specs(3))
    finally:
        logging.getLogger("team").removeHandler(handler)
    assert not run.failed
    assert "a broken handler" in capsys.readouterr().err


def test_log_arguments_that_do_not_fit_fail_no_step() -> None:
    """A step that logs with arguments that do not fit the message succeeds."""

    def log_badly(spec: AgentStepSpec) -> str:
        logging.getLogger("x").error("%d", "no number")
        return "fine"

    assert not Runner(FunctionExecutor({"tester": log_badly}), backend="process").run(make_specs(2)).failed


class Hooked(AgentExecutor):
    def setup(self) -> None:
        logging.getLogger("hooks").warning("setting up")

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        return StepOutcome.completed(spec, "")

    def teardown(self) -> None:
        logging.getLogger("hooks").warning("tearing down")
        raise ValueError("torn")


def test_log_records_of_setup_and_teardown_reach_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    """Records of `setup` and `teardown` reach the caller, and so does an error in `teardown`."""
    Runner(Hooked(), backend="process", max_concurrency=1).run(make_specs(1))
    assert [record.getMessage() for record in caplog.records] == [
        "setting up",
        "tearing down",
        "teardown() of Hooked raised",
    ]
    assert "ValueError: torn" in caplog.text


class Reconfiguring(AgentExecutor):
    """Configures logging in a worker as frameworks do, in `setup` or in its first step."""

    def __init__(self, in_setup: bool) -> None:
        self.in_setup = in_setup

    def setup(self) -> None:
        if self.in_setup:
            self.configure()

    def execute_step(self, spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
        if spec.prompt == "0" and not self.in_setup:
            self.configure()
        else:
            logging.getLogger("team").warning("%s", spec.task_id)
        return StepOutcome.completed(spec, "")

    def configure(self) -> None:
        quiet = {"version": 1, "root": {"level": "CRITICAL", "handlers": []}, "disable_existing_loggers": False}
        logging.config.dictConfig(quiet)
        logging.disable(logging.ERROR)


@pytest.mark.parametrize("in_setup", [True, False])
def test_records_arrive_though_a_worker_configures_logging(in_setup: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The records of the next step arrive, even if `setup` or a step changes the configuration of logging."""
    Runner(Reconfiguring(in_setup), backend="process", max_concurrency=1).run(make_specs(3))
    expected = ["t0", "t1", "t2"] if in_setup else ["t1", "t2"]
    assert [record.getMessage() for record in caplog.records] == expected


def test_warm_workers_use_the_levels_of_the_current_run(caplog: pytest.LogCaptureFixture) -> None:
    """A level that a logger of the caller had only in an earlier run has no effect."""
    with Runner(FunctionExecutor({"tester": log_all}), backend="process", max_concurrency=1) as runner:
        for level, expected in ((logging.ERROR, []), (logging.NOTSET, ["WARNING"])):
            logging.getLogger("team.agent").setLevel(level)
            caplog.clear()
            runner.run(make_specs(1))
            assert [record.levelname for record in caplog.records if record.name == "team.agent"] == expected


def test_a_level_that_is_an_enum_member_arrives_as_a_number(caplog: pytest.LogCaptureFixture) -> None:
    """A record whose level is a member of an `IntEnum` arrives with that number."""
    level = enum.IntEnum("level", {"AUDIT": 35})

    def audit(spec: AgentStepSpec) -> str:
        logging.getLogger("team").log(level.AUDIT, "noted")
        return ""

    assert not Runner(FunctionExecutor({"tester": audit}), backend="process").run(make_specs(1)).failed
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(35, "noted")]


# What they print ------------------------------------------------------------------------------------------------------


def print_all(spec: AgentStepSpec) -> str:
    print("größe", spec.prompt)
    print("problem", spec.prompt, file=sys.stderr)
    subprocess.run(["sh", "-c", "echo from a program; echo 1>&2 its error"], check=True)
    os.write(1, b"\xff raw\n")
    print("unfinished", end="")
    return ""


def captured(executor: AgentExecutor, specs: list[AgentStepSpec], **options: Any) -> tuple[list[StepOutcome], str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        run = Runner(executor, backend=ProcessBackend(capture_output=True), **options).run(specs)
    return list(run), out.getvalue(), err.getvalue()


def test_output_is_marked_with_its_step_line_by_line() -> None:
    """The caller's streams get what steps and their programs print, each line marked with the `task_id`."""
    outcomes, out, err = captured(FunctionExecutor({"tester": print_all}), make_specs(6), max_concurrency=2)
    assert all(outcome.success for outcome in outcomes)
    for number in range(6):
        mark = f"[t{number}] "
        assert [line.removeprefix(mark) for line in out.splitlines() if line.startswith(mark)] == [
            f"größe {number}",
            "from a program",
            "\ufffd raw",
            "unfinished",
        ]
        assert [line.removeprefix(mark) for line in err.splitlines() if line.startswith(mark)] == [
            f"problem {number}",
            "its error",
        ]
    assert len(out.splitlines()) == 24


def test_output_of_a_step_that_dies_is_not_lost() -> None:
    """What a step printed before it killed its worker arrives, marked with its `task_id`."""

    def print_and_die(spec: AgentStepSpec) -> None:
        print("last words", flush=True)
        os._exit(1)

    outcomes, out, _ = captured(FunctionExecutor({"tester": print_and_die}), make_specs(1))
    assert not outcomes[0].success
    assert out == "[t0] last words\n"


def test_output_arrives_while_the_step_runs(tmp_path: Any) -> None:
    """A line arrives as soon as it is printed, not when the step ends."""

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            (tmp_path / "seen").touch()
            return super().write(text)

    def print_and_wait(spec: AgentStepSpec) -> str:
        print("here I am")
        while not (tmp_path / "seen").exists():
            time.sleep(0.005)  # waits for another process
        return "seen"

    out = Watched()
    executor = FunctionExecutor({"tester": print_and_wait})
    with redirect_stdout(out):
        (outcome,) = Runner(executor, backend=ProcessBackend(capture_output=True)).stream(make_specs(1))
    assert outcome.output == "seen"
    assert out.getvalue() == "[t0] here I am\n"


def test_a_step_that_prints_100_mb_does_not_delay_the_others() -> None:
    """The other steps end long before a step that prints 100 MB, and all its output arrives."""
    lines = 100_000_000 // 1000

    def flood(spec: AgentStepSpec) -> str:
        for _ in range(lines):
            print("x" * 999)
        return ""

    def say_one_line(spec: AgentStepSpec) -> str:
        print(spec.task_id)
        return ""

    class Counting(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.counts: Counter[str] = Counter()
            self.flooded_before: list[int] = []

        def write(self, text: str) -> int:
            marks = Counter(line.partition(" ")[0] for line in text.splitlines())
            if set(marks) != {"[t0]"}:
                self.flooded_before.append(self.counts["[t0]"])
            self.counts += marks
            return len(text)

    specs = [AgentStepSpec("t0", "flood", "", ""), *(AgentStepSpec(f"t{n}", "quick", "", "") for n in range(1, 40))]
    out = Counting()
    with redirect_stdout(out):
        run = Runner(
            FunctionExecutor({"flood": flood, "quick": say_one_line}, concurrency=2),
            backend=ProcessBackend(capture_output=True),
        ).run(specs)
    assert not run.failed
    assert out.counts == {"[t0]": lines, **{f"[t{n}]": 1 for n in range(1, 40)}}
    assert max(out.flooded_before) < lines, "other steps had to wait for the long output to end"


def test_a_very_long_line_is_printed_in_pieces() -> None:
    """Output without line breaks does not fill the memory: it arrives in pieces, each marked."""

    def dribble(spec: AgentStepSpec) -> str:
        for _ in range(20):
            os.write(1, b"y" * 50_000)
        return ""

    _, out, _ = captured(FunctionExecutor({"tester": dribble}), make_specs(1))
    assert out.count("y") == 1_000_000
    assert 1 < len(out.splitlines()) < 30
    assert all(line.startswith("[t0] y") for line in out.splitlines())


def test_a_closed_stdout_of_the_caller_fails_no_step() -> None:
    """Output that cannot be written is lost, and all steps succeed."""
    out = io.StringIO()
    out.close()
    with redirect_stdout(out):
        run = Runner(FunctionExecutor({"tester": print_all}), backend=ProcessBackend(capture_output=True)).run(
            make_specs(2)
        )
    assert not run.failed


def test_a_step_may_close_its_own_stdout() -> None:
    """Its own output ends there; the next step runs in a worker that can print."""

    def close(spec: AgentStepSpec) -> str:
        print("before")
        os.close(1)
        if spec.prompt == "0":
            sys.stdout.close()
        return ""

    outcomes, out, _ = captured(FunctionExecutor({"tester": close}), make_specs(3), max_concurrency=1)
    assert len(outcomes) == 3
    assert out.startswith("[t0] before\n")


def lose_stdout(spec: AgentStepSpec) -> str:
    """Close or replace the descriptor of standard output; every other step just prints."""
    if spec.prompt == "0":
        os.close(1)
    elif spec.prompt == "2":
        os.dup2(2, 1)
    else:
        print("heard", flush=True)
    return ""


@pytest.mark.parametrize("captures", [True, False])
def test_the_step_after_one_that_closed_stdout_has_one(captures: bool) -> None:
    """The worker of a step that closes or replaces standard output is replaced, so the next step has the right one."""
    out = io.StringIO()
    backend = ProcessBackend(capture_output=captures)
    with redirect_stdout(out):
        run = Runner(FunctionExecutor({"tester": lose_stdout}), backend=backend, max_concurrency=1).run(make_specs(4))
    assert not run.failed, run.summary()
    assert out.getvalue() == ("[t1] heard\n[t3] heard\n" if captures else "")


def test_characters_that_the_stream_cannot_encode_are_escaped() -> None:
    """A stream with another encoding gets every line, with escapes for what it cannot encode."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1", write_through=True)
    with redirect_stdout(stream):
        executor = FunctionExecutor({"tester": lambda spec: os.write(1, "größer als 日本\n".encode()) and ""})
        assert not Runner(executor, backend=ProcessBackend(capture_output=True)).run(make_specs(2)).failed
    lines = raw.getvalue().decode("latin-1").splitlines()
    assert sorted(lines) == [f"[t{number}] größer als \\u65e5\\u672c" for number in range(2)]


@pytest.mark.parametrize("stdout", [None, "closed"])
def test_a_caller_without_a_stdout_can_run_steps(stdout: str | None) -> None:
    """A program whose `sys.stdout` is `None` or closed can run steps on processes."""
    closed = io.StringIO()
    closed.close()
    before = sys.stdout
    sys.stdout = None if stdout is None else closed
    try:
        run = Runner(FunctionExecutor({"tester": lambda spec: ""}), backend="process").run(make_specs(2))
    finally:
        sys.stdout = before
    assert not run.failed


def test_the_output_of_calls_is_captured() -> None:
    """What a submitted function prints arrives, marked with the process id of its worker."""
    out = io.StringIO()
    with redirect_stdout(out), ProcessBackend(1, capture_output=True) as backend:
        pid = backend.submit(say_hello).result(60)
    assert out.getvalue() == f"[worker {pid}] hello\n"


def say_hello() -> int:
    print("hello")
    return os.getpid()
