"""The progress bar: what a person sees of it in a terminal and in a notebook, and what it must not do to a run."""

from __future__ import annotations

import io
import logging
import os
import re
import select
import signal
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyte
import pytest
from attrs import frozen
from bounds import HANG_BOUND_S
from command_line import ENVIRONMENT
from scripts import Launcher, each_backend, run_python
from tqdm import tqdm

from fanout_sync import FunctionExecutor, OptionError, Progress, Runner, Usage, current_step, fanout_map
from fanout_sync.results.bar import counts_of
from fanout_sync.testing import make_specs

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # jupyter_client's own

COLUMNS, LINES = 100, 30

IN_A_WINDOW = f"""
import fcntl, random, struct, termios
from fanout_sync import *
fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", {LINES}, {COLUMNS}, 0, 0))
"""

ECHO = FunctionExecutor({"tester": lambda spec: spec.prompt})


def _screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after a program has written this text."""
    screen = pyte.Screen(COLUMNS, LINES)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(text)
    return "\n".join(line.rstrip() for line in screen.display).rstrip().splitlines()


@pytest.fixture
def seen_of(launch: Launcher) -> Callable[[str], list[str]]:
    """Runs a script in a terminal of its own and returns what is seen at its end."""
    return lambda source: _screen(launch.script(IN_A_WINDOW + textwrap.dedent(source)).end())


# In a terminal --------------------------------------------------------------------------------------------------------


@each_backend
def test_a_bar_shows_how_far_it_is_and_what_it_has_cost(backend: str, seen_of: Callable[[str], list[str]]) -> None:
    """Done of total, the rate, the time left, and the counts that are not zero."""
    shown = seen_of(
        f"""
        def work(spec):
            current_step().add_usage(prompt_tokens=1000, completion_tokens=25, cost_usd=0.011)
            if spec.task_id in ("t3", "t4") or (spec.task_id == "t5" and current_step().attempt == 1):
                raise ValueError("no")
            return "done"

        if __name__ == "__main__":
            retry = Retry(attempts=2, wait=0)
            executor = FunctionExecutor({{"tester": work}})
            Runner(executor, backend={backend!r}, retry=retry, progress=True).run(make_specs(12))
            print("the end")
        """
    )
    assert shown[1:] == ["the end"]
    assert re.fullmatch(
        r"100%\|█+\| 12/12 \[00:\d\d<00:00, +[\d.]+(step/s|s/step), failed=2, retried=3, tokens=15\.4k, cost=\$0\.17]",
        shown[0],
    )


def test_the_bar_is_drawn_while_steps_run(launch: Launcher) -> None:
    """From the beginning on."""
    script = launch.script(
        IN_A_WINDOW
        + textwrap.dedent(
            """
            def wait(spec):
                current_step().cancelled.wait(60) if spec.task_id == "t3" else None
                return "done"

            Runner(FunctionExecutor({"tester": wait}), progress=True).run(make_specs(4))
            """
        )
    )
    while "3/4" not in script.said:
        assert script._read(), script.said
    assert _screen(script.said)[-1].startswith(" 75%|")
    script.press_ctrl_c()
    script.end()


@each_backend
def test_ctrl_c_closes_the_bar(backend: str, launch: Launcher) -> None:
    """It stays where it was: what was cancelled was not done. What comes after it has lines of its own."""
    script = launch.script(
        IN_A_WINDOW
        + textwrap.dedent(
            """
            def wait(spec):
                if spec.task_id == "t2":
                    current_step().cancelled.wait(60)
                return "done"

            if __name__ == "__main__":
                executor = FunctionExecutor({"tester": wait})
                try:
                    Runner(executor, backend=BACKEND, max_concurrency=1, progress=True).run(make_specs(8))
                except FanoutInterrupted:
                    print("the end")
            """
        ),
        backend=backend,
    )
    while "2/8" not in script.said:
        assert script._read(), script.said
    script.press_ctrl_c()
    shown = _screen(script.end() or script.said)
    assert shown[1:] == ["the end"]
    assert re.match(r" (25|38)%\|█+.* +\| [23]/8 .*cancelled=[56]", shown[0])


def test_other_early_ends_close_the_bar(seen_of: Callable[[str], list[str]]) -> None:
    """A stream that is left, an input that raises, and one of unknown length."""
    shown = seen_of(
        """
        executor = FunctionExecutor({"tester": lambda spec: "done"})

        def specs():
            yield from make_specs(3)
            raise LookupError("no more")

        for outcome in Runner(executor, max_concurrency=1, progress=True).stream(make_specs(9)):
            break
        print("left")
        try:
            Runner(executor, progress=True).run(specs())
        except InputError:
            print("raised")
        """
    )
    assert [shown[1], *shown[3:]] == ["left", "raised"]
    assert re.match(r" [12][12]%\|█+.*\| [12]/9 ", shown[0])
    assert re.fullmatch(r"3step \[00:00, +[\d.]+step/s]", shown[2])


def test_what_workers_print_does_not_tear_the_bar(seen_of: Callable[[str], list[str]]) -> None:
    """Each line is whole, and the bar below them."""
    shown = seen_of(
        """
        def loud(item):
            print("line of", item)
            current_step().cancelled.wait(0.15)
            print("more of", item, file=sys.stderr)
            return item

        if __name__ == "__main__":
            backend = ProcessBackend(capture_output=True)
            fanout_map(loud, range(6), backend=backend, max_concurrency=2, progress=True)
            print("the end")
        """
    )
    assert sorted(shown[:12]) == sorted(f"[{n}] {what} of {n}" for n in range(6) for what in ("line", "more"))
    assert shown[12].startswith("100%|")
    assert shown[13:] == ["the end"]


def test_what_is_printed_through_tqdm_does_not_tear_the_bar(seen_of: Callable[[str], list[str]]) -> None:
    """By steps on threads, and by the consumer of a stream."""
    shown = seen_of(
        """
        from tqdm import tqdm

        def loud(item):
            tqdm.write(f"step {item}")
            current_step().cancelled.wait(0.1)
            return item

        for outcome in fanout_stream(loud, range(8), max_concurrency=2, progress=True):
            tqdm.write(f"outcome {outcome.task_id}")
        """
    )
    assert sorted(shown[:-1]) == sorted(f"{what} {n}" for n in range(8) for what in ("step", "outcome"))
    assert shown[-1].startswith("100%|")


def test_bars_of_nested_runs_come_and_go(seen_of: Callable[[str], list[str]]) -> None:
    """At the end there is the outer one, where it began."""
    shown = seen_of(
        """
        def outer(item):
            return len(fanout_map(lambda n: current_step().cancelled.wait(0.02 * n), range(item), progress=True))

        print("the beginning")
        fanout_map(outer, [5, 9, 3, 7, 4], max_concurrency=3, progress=True)
        print("the end")
        """
    )
    assert [shown[0], *shown[2:]] == ["the beginning", "the end"]
    assert re.match(r"100%\|█+\| 5/5 ", shown[1])


def test_bars_of_runs_in_several_threads_each_have_a_line(seen_of: Callable[[str], list[str]]) -> None:
    """All of them stay, in the order in which the runs end."""
    shown = seen_of(
        """
        def nap(item):
            return current_step().cancelled.wait(0.02)

        def go(count):
            fanout_map(nap, range(count), max_concurrency=2, progress=True)

        threads = [threading.Thread(target=go, args=(count,)) for count in (20, 60, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("the end")
        """
    )
    assert [line.partition("[")[0].rpartition("|")[2].strip() for line in shown[:3]] == ["20/20", "60/60", "100/100"]
    assert shown[3:] == ["the end"]


def test_a_forked_child_draws_nothing(seen_of: Callable[[str], list[str]]) -> None:
    """Neither one that is forked by a step nor one that has inherited an open stream."""
    shown = seen_of(
        """
        def fork(item):
            if item == 2:
                if not (child := os.fork()):
                    gc.collect()
                    sys.exit(0)
                os.waitpid(child, 0)
            return item

        fanout_map(fork, range(4), max_concurrency=1, progress=True)
        stream = fanout_stream(str, range(4), max_concurrency=1, progress=True)
        next(stream)
        if not (child := os.fork()):
            del stream
            gc.collect()
            sys.exit(0)
        os.waitpid(child, 0)
        list(stream)
        print("the end")
        """
    )
    assert [line[:5] for line in shown] == ["100%|", "100%|", "the e"]


def test_a_child_forked_while_a_bar_is_drawn_can_draw_one() -> None:
    """No lock of tqdm is held in it."""
    is_drawn, has_forked = threading.Event(), threading.Event()
    exit_codes: list[int] = []

    class Slow(tqdm):  # type: ignore[misc]  # tqdm has no types
        def display(self, *args: Any, **options: Any) -> None:
            if threading.current_thread() is threading.main_thread() and self.n == 1:
                is_drawn.set()
                has_forked.wait(0.5)  # it waits for us, so this is in vain
            super().display(*args, **options)

    def fork(item: int) -> int:
        if item == 1:
            assert is_drawn.wait(HANG_BOUND_S)
            if not (child := os.fork()):
                tqdm.write("a child", file=io.StringIO())
                os._exit(3)
            has_forked.set()
            with open(os.pidfd_open(child), "rb") as end:  # noqa: PTH123 - it has no path
                if not select.select([end], [], [], 10)[0]:
                    os.kill(child, signal.SIGKILL)  # it hangs
            exit_codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        else:
            current_step().cancelled.wait(0.15)
        return item

    fanout_map(fork, range(2), max_concurrency=2, progress=partial(Slow, file=io.StringIO()))
    assert exit_codes == [3]


def test_a_run_in_a_step_in_another_process_has_no_bar(seen_of: Callable[[str], list[str]]) -> None:
    """It does not know where the other bars are."""
    shown = seen_of(
        """
        def outer(item):
            return len(fanout_map(str, range(item), progress=True))

        if __name__ == "__main__":
            fanout_map(outer, [5, 6], backend="process", max_concurrency=2)
            print("the end")
        """
    )
    assert shown == ["the end"]


def test_the_rate_is_that_of_steps_that_ran(tmp_path: Path) -> None:
    """What the journal had took no time."""
    shown = io.StringIO()
    slow = FunctionExecutor({"tester": lambda spec: str(current_step().cancelled.wait(0.2))})
    options: dict[str, Any] = {"journal": tmp_path / "run.db", "progress": partial(tqdm, file=shown)}
    Runner(ECHO, **options).run(make_specs(1000))
    Runner(slow, **options).run(make_specs(1001))
    last = shown.getvalue().splitlines()[-1]
    assert "1001/1001" in last
    assert "reused=1000" in last
    rate = re.search(r"([\d.]+)(s/step|step/s)", last)
    assert rate is not None
    assert rate[2] == "s/step" or float(rate[1]) < 5


# Elsewhere ------------------------------------------------------------------------------------------------------------

NO_TERMINAL = """
import sys
from fanout_sync import fanout_map

class StandIn:
    def flush(self):
        pass

{prepared}
fanout_map(str, range(3), progress=True)
print("tqdm" in sys.modules)
"""


@pytest.mark.parametrize("prepared", ["", "sys.stderr = None", "sys.stderr = StandIn()", "sys.stderr.close()"])
def test_nothing_is_drawn_where_nobody_looks(prepared: str) -> None:
    """Nor is tqdm imported; standard error may be anything."""
    done = run_python("-W", "error", "-c", NO_TERMINAL.format(prepared=prepared))
    assert (done.stdout, done.stderr, done.returncode) == ("False\n", "", 0)


def test_a_class_is_drawn_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    """Where it draws is its own business; its options go before those of the bar."""
    shown = io.StringIO()
    fanout_map(str, range(3), progress=partial(tqdm, file=shown, desc="reviews", unit="file", ncols=70))
    assert re.search(r"\rreviews: 100%\|#+\| 3/3 \[00:00<00:00, +[\d.]+file/s]\n", shown.getvalue())
    fanout_map(str, range(3), progress=tqdm)
    assert "| 3/3 [00:00<00:00, " in capsys.readouterr().err


def test_a_class_of_ones_own_is_used_as_tqdm_is() -> None:
    """It is told of what is done, and closed."""
    told: list[Any] = []

    class Mine(tqdm):  # type: ignore[misc]  # tqdm has no types
        def update(self, n: int = 1) -> None:
            told.append(n)
            super().update(n)

        def close(self) -> None:
            told.append(self.total)
            super().close()

    fanout_map(str, range(7), progress=partial(Mine, file=io.StringIO()))
    assert sum(told[:-1]) == 7
    assert told[-1] == 7


def test_a_stand_in_for_a_class_is_used(make_runner: Callable[..., Runner]) -> None:
    """It needs three methods, and takes the options of tqdm."""
    bars: list[Any] = []

    class StandIn:
        total: int | None = None

        def __init__(self, total: int | None, unit: str, **others: Any) -> None:
            self.calls: list[Any] = [(total, unit)]
            bars.append(self)

        def update(self, n: int) -> None:
            self.calls.append(n)

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            assert not refresh

        def close(self) -> None:
            self.calls.append("closed")

    make_runner(ECHO, progress=StandIn).run(make_specs(4))
    assert bars[0].calls[0] == (4, "step")
    assert sum(bars[0].calls[1:-1]) == 4
    assert bars[0].calls[-1] == "closed"


@pytest.mark.parametrize("method", ["__init__", "display", "set_postfix_str", "close"])
def test_a_bar_that_raises_costs_the_run_nothing(method: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged once; the bar is closed, and tqdm can be used from all threads."""

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("the screen is gone")

    bar_class: Any = type("Broken", (tqdm,), {method: broken})
    run = fanout_map(str, range(20), progress=partial(bar_class, file=io.StringIO()))
    assert len(run.succeeded) == 20
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "the screen is gone" in (caplog.records[0].exc_text or "")
    written = threading.Event()

    def write() -> None:
        tqdm.write("free", file=io.StringIO())
        written.set()

    threading.Thread(target=write, daemon=True).start()
    assert written.wait(HANG_BOUND_S)
    assert all(bar.disable for bar in tqdm._instances if isinstance(bar, bar_class))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1, "got int 1"),
        ("yes", "got str 'yes'"),
        (dict, "got type <class 'dict'>"),
        (object(), "got object <object"),
        (object.__new__(tqdm), "give its class"),
        (partial(tqdm, [1]), "give the class keyword arguments only"),
    ],
)
def test_what_cannot_show_progress_is_refused(value: Any, said: str) -> None:
    """The error says what can."""
    with pytest.raises(OptionError, match=r"progress must be True, False, None, a tqdm class or a function") as refusal:
        Runner(ECHO, progress=value)
    assert said in str(refusal.value)


@pytest.mark.parametrize("function", [lambda: None, lambda progress, more: None])
def test_a_function_that_cannot_be_called_is_refused(function: Any) -> None:
    """Otherwise every call would fail, and nobody would see how far the run is."""
    with pytest.raises(OptionError, match=r"progress must take \(progress\), but its signature is \("):
        Runner(ECHO, progress=function)


def test_an_async_function_is_refused() -> None:
    """Nobody would await it."""

    async def show(progress: Progress) -> None: ...

    with pytest.raises(OptionError, match="which is async: nobody would await it"):
        Runner(ECHO, progress=show)


@pytest.mark.parametrize("name", ["show_progress", "progress_bar", "pbar", "verbose"])
def test_progress_as_others_call_it(name: str) -> None:
    """There is a hint."""
    with pytest.raises(OptionError, match=rf"no option '{name}' \(did you mean progress\?\)"):
        Runner(ECHO, **{name: True})  # type: ignore[arg-type]  # its name is progress


@pytest.mark.parametrize("nothing", [None, False])
def test_nothing_is_shown_without_progress(nothing: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    """That is the default."""
    Runner(ECHO, progress=nothing).run(make_specs(2))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(total=5, done=2, succeeded=2, running=3), ""),
        (Progress(failed=2, retried=5, reused=40, waiting=3), "failed=2, retried=5, reused=40, waiting=3"),
        (Progress(cancelled=1, usage=Usage(12_300, 45)), "cancelled=1, tokens=12.3k"),
        (Progress(usage=Usage(900, 99, 0.42)), "tokens=999, cost=$0.42"),
        (Progress(usage=Usage(999_700, cost_usd=0.0042)), "tokens=1M, cost=$0.004"),
        (Progress(usage=Usage(2**62, cost_usd=1234.5)), "tokens=4611686T, cost=$1234.50"),
    ],
)
def test_counts_that_are_zero_are_left_out(progress: Progress, text: str) -> None:
    """Large numbers are short."""
    assert counts_of(progress) == text


# In a notebook --------------------------------------------------------------------------------------------------------


@frozen
class Shown:
    """What a cell has shown.

    Attributes:
        text: What it has written to standard output and standard error.
        displays: The text of what it has displayed.
        error: The lines of its error.
    """

    text: str
    displays: list[str]
    error: list[str]


@pytest.fixture(params=[True, False], ids=["with ipywidgets", "without ipywidgets"])
def cell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Shown]]:
    """Runs cells in a kernel; has the attribute `has_widgets`."""
    from jupyter_client.manager import start_new_kernel

    if request.param:
        pytest.importorskip("ipywidgets", reason="tox installs it")
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path), env=ENVIRONMENT)

    def run(source: str) -> Shown:
        text, displays, error = "", list[str](), list[str]()

        def note(message: dict[str, Any]) -> None:
            nonlocal text
            content = message["content"]
            if message["msg_type"] == "stream":
                text += content["text"]
            elif message["msg_type"] == "display_data":
                displays.append(content["data"]["text/plain"])
            elif message["msg_type"] == "error":
                error.extend(content["traceback"])

        client.execute_interactive(textwrap.dedent(source), timeout=HANG_BOUND_S, output_hook=note)
        return Shown(text, displays, error)

    run.has_widgets = request.param  # type: ignore[attr-defined]
    try:
        prepared = "" if request.param else "import sys; sys.modules['ipywidgets'] = None"
        assert run(f"{prepared}\nfrom fanout_sync import *\nfrom fanout_sync.testing import make_specs") == Shown(
            "", [], []
        )
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_notebook_has_a_bar(cell: Any) -> None:
    """A widget where there are widgets, else text, and no warning."""
    shown = cell(
        """
        import warnings
        warnings.simplefilter("error")
        run = fanout_map(lambda n: current_step().cancelled.wait(0.05), range(8), max_concurrency=2, progress=True)
        """
    )
    assert shown.error == []
    if cell.has_widgets:
        assert shown.text == ""
        assert re.match(r" *0%\|.*\| 0/8 \[00:00<\?", shown.displays[0])
    else:
        assert shown.displays == []
        lines = [line for line in _screen(shown.text) if line]
        assert len(lines) == 1
        assert re.match(r"100%\|█+\| 8/8 \[00:0\d<00:00", lines[0])


def test_an_interrupted_cell_closes_the_bar(cell: Any) -> None:
    """The next cell has a bar of its own."""
    shown = cell(
        """
        import os, signal
        def interrupt(item):
            if item == 2:
                os.kill(os.getpid(), signal.SIGINT)
                current_step().cancelled.wait(60)
            return item
        fanout_map(interrupt, range(5), max_concurrency=1, progress=True)
        """
    )
    assert "FanoutInterrupted" in "".join(shown.error)
    if not cell.has_widgets:
        assert shown.text.endswith("\n")
        assert re.match(r" [46]0%\|█+ +\| [23]/5 ", _screen(shown.text)[-1])
    again = cell(
        'run = fanout_map(str, range(3), progress=True)\nfrom tqdm import tqdm\nprint("open:", len(tqdm._instances))'
    )
    assert again.error == []
    assert "open: 0" in again.text
