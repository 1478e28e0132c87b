"""Everything that a step can do to harm a run, as functions that worker processes can import."""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import stat
import sys
import threading
import time
from typing import Any

from fanout_sync import AgentStepSpec, StepOutcome


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


class Unloadable(Exception):
    """Pickles, but cannot be loaded: it needs two arguments and `args` has one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even text")


class KillsItsLoader:
    def __reduce__(self) -> Any:
        return os._exit, (13,)


# Raising ----------------------------------------------------------------------------------------------------------


def raise_value_error(spec: AgentStepSpec) -> Any:
    raise ValueError("boom")


def raise_system_exit(spec: AgentStepSpec) -> Any:
    sys.exit(3)


def raise_keyboard_interrupt(spec: AgentStepSpec) -> Any:
    raise KeyboardInterrupt("from a step")


def raise_generator_exit(spec: AgentStepSpec) -> Any:
    raise GeneratorExit("odd")


def raise_falsy(spec: AgentStepSpec) -> Any:
    raise Falsy("nothing to see")


def raise_unpicklable(spec: AgentStepSpec) -> Any:
    raise Unpicklable("cannot travel")


def raise_unloadable(spec: AgentStepSpec) -> Any:
    raise Unloadable("cannot arrive", "second")


def raise_unprintable(spec: AgentStepSpec) -> Any:
    raise Unprintable


def raise_surrogate(spec: AgentStepSpec) -> Any:
    raise ValueError("half a character: \ud800")


def recurse(spec: AgentStepSpec) -> Any:
    return recurse(spec)


# Returning garbage ------------------------------------------------------------------------------------------------


def return_none(spec: AgentStepSpec) -> Any:
    return None


def return_text(spec: AgentStepSpec) -> Any:
    return "text"


def return_surrogate(spec: AgentStepSpec) -> Any:
    return StepOutcome.completed(spec, "half: \ud800")


def return_object(spec: AgentStepSpec) -> Any:
    return StepOutcome.completed(spec, "fine", {"deep": [object()]})


def return_nan(spec: AgentStepSpec) -> Any:
    return StepOutcome.completed(spec, "fine", [float("nan")])


def return_cycle(spec: AgentStepSpec) -> Any:
    cycle: list[Any] = []
    cycle.append(cycle)
    return StepOutcome.completed(spec, "fine", cycle)


def return_uninitialized_outcome(spec: AgentStepSpec) -> Any:
    return StepOutcome.__new__(StepOutcome)


def return_outcome_that_kills_its_loader(spec: AgentStepSpec) -> Any:
    return StepOutcome.completed(spec, "fine", KillsItsLoader())


# Dying ------------------------------------------------------------------------------------------------------------


def exit_at_once(spec: AgentStepSpec) -> Any:
    os._exit(7)


def segfault(spec: AgentStepSpec) -> Any:
    import faulthandler

    faulthandler.disable()
    ctypes.string_at(0)


def abort(spec: AgentStepSpec) -> Any:
    os.abort()


def kill_myself(spec: AgentStepSpec) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def terminate_myself(spec: AgentStepSpec) -> Any:
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()


def run_out_of_memory(spec: AgentStepSpec) -> Any:
    """Die as the out-of-memory killer of the system would do it: SIGKILL in the middle of an allocation."""
    memory = bytearray(50_000_000)
    os.kill(os.getpid(), signal.SIGKILL)
    return memory


def die_while_sending(spec: AgentStepSpec) -> Any:
    """Die once the worker is in the middle of writing a 100 MB outcome to its caller."""

    def kill_when_sending() -> None:
        while not _main_thread_is_sending():
            time.sleep(0.0005)  # waits for another thread's stack
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill_when_sending, daemon=True).start()
    return StepOutcome.completed(spec, "x" * 100_000_000)


def _main_thread_is_sending() -> bool:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return frame is not None and frame.f_code.co_filename.endswith("link.py") and frame.f_code.co_name == "_send_now"


def fork_and_die(spec: AgentStepSpec) -> Any:
    """Leave a child behind that keeps every descriptor of the worker open, then die."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    pathlib.Path(spec.description).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def close_descriptors(spec: AgentStepSpec) -> Any:
    os.closerange(3, 1024)
    return StepOutcome.completed(spec, "never seen")


def replace_descriptors(spec: AgentStepSpec) -> Any:
    """Close every descriptor and open files of its own in their place."""
    os.closerange(3, 64)
    for _ in range(20):
        os.open(spec.description, os.O_RDWR | os.O_CREAT, 0o600)
    return StepOutcome.completed(spec, "never seen")


def write_to_every_socket(spec: AgentStepSpec) -> Any:
    """Write to every open socket, which is the worker's own."""
    for descriptor in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, b"this is no message at all, but it is long enough to look like one")
        except OSError:
            continue
    time.sleep(60)


# Harmless, if contained -------------------------------------------------------------------------------------------


def return_large(spec: AgentStepSpec) -> Any:
    return StepOutcome.completed(spec, "y" * 200_000_000)


RELEASE = threading.Event()


def leave_a_thread(spec: AgentStepSpec) -> Any:
    """Start a non-daemon thread that waits for `RELEASE`, which is never set in a worker."""
    threading.Thread(target=RELEASE.wait, daemon=False).start()
    return StepOutcome.completed(spec, spec.prompt)


def change_directory_and_environment(spec: AgentStepSpec) -> Any:
    os.chdir("/")
    os.environ["FANOUT_TEST_MARK"] = "left behind"
    os.environ.pop("PATH", None)
    return StepOutcome.completed(spec, spec.prompt)


def report_directory_and_environment(spec: AgentStepSpec) -> Any:
    found = {"cwd": os.getcwd(), "mark": os.environ.get("FANOUT_TEST_MARK"), "path": os.environ.get("PATH")}
    return StepOutcome.completed(spec, spec.prompt, found)


def fork_and_return(spec: AgentStepSpec) -> Any:
    """Fork, and let both processes return from the step."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return StepOutcome.completed(spec, spec.prompt)
