"""In programs that bring their libraries along (zipapp, shiv, vendored); the interpreter has none of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipapp
from importlib import metadata
from pathlib import Path

import pytest
from hosting import PYTHON, Host, assert_fanned_out, hosted, write_program
from scripts import each_backend

import fanout_sync

MAIN = """
import sys

def main():
    fan_out(sys.argv[1])

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="session")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `fanout_sync` and all that it needs."""
    folder = tmp_path_factory.mktemp("bundle") / "vendor"
    shutil.copytree(Path(fanout_sync.__file__).parent, folder / "fanout_sync", ignore=shutil.ignore_patterns("*.pyc"))
    for name in _needed_by("fanout_sync", set()) - {"fanout_sync"}:
        _copy(metadata.distribution(name), folder)
    return folder


def _needed_by(name: str, known: set[str]) -> set[str]:
    if name not in known:
        known.add(name)
        for requirement in metadata.requires(name) or ():
            other = re.split(r"[^\w.-]", requirement)[0]
            if "extra ==" not in requirement and _is_installed(other):
                _needed_by(other, known)
    return known


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:  # what other versions of Python need
        return False
    return True


def _copy(distribution: metadata.Distribution, folder: Path) -> None:
    for file in distribution.files or ():
        if file.parts[0] != ".." and file.suffix != ".pyc":
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), target)


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has no libraries."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    python = folder / "bin" / "python"
    found = subprocess.run([python, "-c", "import fanout_sync"], cwd=folder, env={}, capture_output=True, timeout=60)
    assert found.returncode == 1
    return python


def assert_runs(host: Host, backend: str) -> None:
    host.wait()
    assert_fanned_out(host, backend)
    assert host.process.returncode == 0, host.log


def write_vendored(folder: Path, path: str, before: str = "") -> Path:
    """Write a program that searches `path` first, and does `before` just before it fans out."""
    program = write_program(folder, MAIN.replace("    main()", f"    {before}\n    main()"), "main.py")
    search = f"import sys\nsys.path.insert(0, {path!r})\n"
    program.write_text(program.read_text().replace("import json\n", f"{search}import json\n", 1))
    return program


@each_backend
@pytest.mark.parametrize(
    ("path", "before"),
    [("vendor", ""), ("{folder}/vendor", ""), ("{folder}/vendor", "os.chdir('/')"), ("vendor", "os.chdir('/')")],
    ids=["relative", "absolute", "absolute_from_elsewhere", "relative_from_elsewhere"],
)
def test_vendored_library_fans_out(
    path: str, before: str, backend: str, vendor: Path, bare_python: Path, tmp_path: Path
) -> None:
    """A script that puts its own copy on `sys.path` fans out, also when it has changed its working directory."""
    (tmp_path / "vendor").symlink_to(vendor)
    program = write_vendored(tmp_path, path.format(folder=tmp_path), before)
    with hosted(tmp_path, bare_python, program, backend, PYTHONPATH="") as host:
        assert_runs(host, backend)


@each_backend
@pytest.mark.parametrize("entry", ["main_module", "entry_point"])
def test_zipapp_fans_out(entry: str, backend: str, vendor: Path, bare_python: Path, tmp_path: Path) -> None:
    """A zipapp runs its steps, be they defined in its `__main__.py` or in a module that this calls."""
    source = tmp_path / "source"
    shutil.copytree(vendor, source)
    write_program(source, MAIN, "__main__.py" if entry == "main_module" else "program.py")
    target = tmp_path / "program.pyz"
    zipapp.create_archive(source, target, main="program:main" if entry == "entry_point" else None)
    shutil.rmtree(source)
    with hosted(tmp_path, bare_python, target, backend, PYTHONPATH="") as host:
        assert_runs(host, backend)


@each_backend
def test_shiv_fans_out(backend: str, vendor: Path, bare_python: Path, tmp_path: Path) -> None:
    """A program that shiv has packed, which unpacks itself when it is run, runs its steps."""
    site = tmp_path / "site"
    shutil.copytree(vendor, site)
    write_program(site, MAIN, "program.py")
    target = tmp_path / "program.pyz"
    options = ["--site-packages", site, "--entry-point", "program:main", "--python", bare_python]
    subprocess.run([PYTHON, "-m", "shiv", *map(str, options), "--output-file", target], check=True, timeout=110)
    shutil.rmtree(site)
    with hosted(tmp_path, target, backend, PYTHONPATH="", SHIV_ROOT=str(tmp_path / "unpacked")) as host:
        assert_runs(host, backend)


@each_backend
@pytest.mark.parametrize("options", ["-I", "-S", "-E"])
def test_isolated_interpreter_fans_out(
    options: str, backend: str, vendor: Path, bare_python: Path, tmp_path: Path
) -> None:
    """Under `-I`, `-S` and `-E` a worker finds what the program has put on `sys.path`."""
    program = write_vendored(tmp_path, str(vendor))
    with hosted(tmp_path, bare_python, options, program, backend, PYTHONPATH="") as host:
        assert_runs(host, backend)
