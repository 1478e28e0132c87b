"""In Flask's development server, with its reloader, which runs the application in a child process."""

from __future__ import annotations

from pathlib import Path

from hosting import PYTHON, ask, assert_fanned_out, hosted, write_program
from scripts import each_backend

APP = """
from flask import Flask

app = Flask(__name__)

@app.get("/<backend>")
def view(backend):
    return fan_out(backend)

if __name__ == "__main__":
    app.run(host=f"unix://{FOLDER / 'socket'}", use_reloader=True)
"""


@each_backend
def test_request_fans_out(backend: str, tmp_path: Path) -> None:
    """A request, which the server handles in a thread, gets every outcome in order."""
    program = write_program(tmp_path, APP)
    with hosted(tmp_path, PYTHON, program) as host:
        ask(host, f"/{backend}")
        assert_fanned_out(host, backend)
