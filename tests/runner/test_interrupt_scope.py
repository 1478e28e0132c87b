"""`InterruptScope` itself: which interrupts are noted, and which are raised."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from processes import eventually

from fanout_sync.interrupts import PATIENCE_S, InterruptScope


def test_the_code_that_a_forced_interrupt_ends_has_time_again() -> None:
    """An interrupt long after the first is raised; the next one is noted, until the patience is over once more."""
    with InterruptScope() as scope:
        signal.raise_signal(signal.SIGINT)
        assert scope.is_interrupted
        for _ in range(2):
            then = time.monotonic()
            assert eventually(lambda then=then: time.monotonic() > then + PATIENCE_S)  # type: ignore[misc]  # its default
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_the_handlers_of_a_program_that_embeds_python_stay(tmp_path: Path) -> None:
    """A handler that Python does not know of gets the signals during a run, and after it."""
    host = shutil.copy(Path(sys.executable).resolve(), tmp_path / "host")  # by its name, it is not Python
    program = """if True:
        import ctypes, os, signal
        from fanout_sync import FunctionExecutor, Runner
        from fanout_sync.testing import make_specs

        calls = []
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(calls.append)
        ctypes.CDLL(None).signal(signal.SIGINT, handler)

        def interrupt(spec):
            os.kill(os.getpid(), signal.SIGINT)
            return "done"

        for _ in range(2):
            assert Runner(FunctionExecutor({"tester": interrupt})).run(make_specs(1))[0].output == "done"
        os.kill(os.getpid(), signal.SIGINT)
        assert calls == [signal.SIGINT] * 3, calls
    """
    searched = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join(searched)}
    done = subprocess.run(
        [host, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
