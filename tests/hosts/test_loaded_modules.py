"""In modules that are loaded in unusual ways: from a path, as Airflow loads its DAGs, or while they are imported."""

from __future__ import annotations

from pathlib import Path

import pytest
from hosting import PYTHON, assert_fanned_out, hosted, write_program
from scripts import each_backend

LOADER = """
import importlib.util, multiprocessing, os, sys

def load(path, name, is_registered):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    if is_registered:
        sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

backend, name, is_registered, runs_in = sys.argv[1:]
module = load("dags/dag.py", name, is_registered == "registered")
if runs_in == "itself":
    module.fan_out(backend)
elif os.fork() == 0:
    module.fan_out(backend)
    os._exit(0)
else:
    os.wait()
"""


def write_dag(folder: Path) -> Path:
    """Write the module and the program that loads it; return the program."""
    (folder / "dags").mkdir()
    write_program(folder / "dags", "", "dag.py")
    loader = folder / "loader.py"
    loader.write_text(LOADER)
    return loader


@each_backend
@pytest.mark.parametrize("runs_in", ["itself", "fork"])
@pytest.mark.parametrize("registered", ["registered", "unregistered"])
@pytest.mark.parametrize("name", ["unusual_prefix_1a2b3c_dag", "dags.dag"])
def test_module_from_a_path_fans_out(name: str, registered: str, runs_in: str, backend: str, tmp_path: Path) -> None:
    """The agents of a module that was loaded from its path, and that nobody can import, run, also in a forked child."""
    with hosted(tmp_path, PYTHON, write_dag(tmp_path), backend, name, registered, runs_in) as host:
        assert_fanned_out(host, backend)
        assert host.wait() == 0


@each_backend
@pytest.mark.parametrize("how", ["import", "run_module"])
def test_module_that_fans_out_while_it_is_imported(how: str, backend: str, tmp_path: Path) -> None:
    """It gets every outcome or is refused; its workers, which import it, do not start workers of their own for ever."""
    write_program(tmp_path, f"fan_out({backend!r})", "pipeline.py")
    command = {"import": ("-c", "import pipeline"), "run_module": ("-m", "pipeline")}[how]
    with hosted(tmp_path, PYTHON, *command) as host:
        host.wait()
        loads = (tmp_path / "loads").read_text().split()
        assert len(loads) < 20, "its workers start workers of their own"
        assert_fanned_out(host, backend)


@each_backend
def test_custom_importer_fans_out(backend: str, tmp_path: Path) -> None:
    """The agents of a module that an import hook of the program makes run."""
    source = write_program(tmp_path, "", "source.txt")
    main = tmp_path / "main.py"
    main.write_text(f"""
import importlib.abc, importlib.util, sys
class Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "stored_agents" else None
    def exec_module(self, module):
        exec(open({str(source)!r}).read(), vars(module))
sys.meta_path.append(Hook())
import stored_agents
stored_agents.fan_out({backend!r})
""")
    with hosted(tmp_path, PYTHON, main) as host:
        assert_fanned_out(host, backend)
        assert host.wait() == 0
