"""In uWSGI, where `sys.executable` is uWSGI's binary, and threads run between requests only if it is told so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hosting import WSGI, ask, assert_fanned_out, hosted, write_program
from scripts import each_backend

UWSGI = (
    *(Path(sys.executable).with_name("uwsgi"), "--virtualenv", sys.prefix),
    *("--http-socket", "socket", "--wsgi-file", "app.py", "--need-app", "--die-on-term"),
)

each_mode = pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="plain"),
        pytest.param(("--enable-threads",), id="enable_threads"),
        pytest.param(("--master", "--processes", "2"), id="preforked"),
        pytest.param(("--master", "--lazy-apps", "--enable-threads"), id="lazy_apps"),
        pytest.param(("--master", "--threads", "2"), id="threads"),
    ],
)


@each_backend
@each_mode
def test_request_fans_out(options: tuple[str, ...], backend: str, tmp_path: Path) -> None:
    """A request gets every outcome in order."""
    write_program(tmp_path, WSGI)
    with hosted(tmp_path, *UWSGI, *options) as host:
        ask(host, f"/fan_out/{backend}")
        assert_fanned_out(host, backend)


@each_backend
def test_application_names_the_interpreter(backend: str, tmp_path: Path) -> None:
    """An application that tells multiprocessing where Python is fans out on processes, too."""
    write_program(tmp_path, f"import multiprocessing\nmultiprocessing.set_executable({sys.executable!r})\n" + WSGI)
    with hosted(tmp_path, *UWSGI, "--enable-threads") as host:
        ask(host, f"/fan_out/{backend}")
        assert_fanned_out(host, backend)
        assert "refused" not in host.report()


@each_backend
def test_worker_that_takes_too_long_leaves_nothing(backend: str, tmp_path: Path) -> None:
    """When uWSGI kills a worker at its --harakiri, the steps of that end, too; the next request fans out."""
    write_program(tmp_path, WSGI)
    with hosted(tmp_path, *UWSGI, "--master", "--enable-threads", "--harakiri", "3") as host:
        ask(host, f"/fan_out_for_ever/{backend}")
        ask(host, f"/fan_out/{backend}")
        assert_fanned_out(host, backend)
