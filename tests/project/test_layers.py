"""The layers of the package: which folder may import which."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import fanout_sync

PACKAGE = Path(fanout_sync.__file__).parent
DRAWING = Path(__file__).parents[2] / "docs" / "explanation" / "architecture.md"

LAYERS = [
    *("formatting", "tracebacks", "errors", "checks", "forks", "interrupts", "last_resort"),
    *("records", "wire", "events", "retry", "limits", "journal", "results", "processes"),
    *("executors", "workers", "backends", "engine", "runner"),
    *("cli", "testing"),
]
"""The entries of the package, from the ground up: each may import those before it."""

NEVER_IMPORTED = {"cli", "testing"}
"""What stands at the top: neither uses the other."""

MOST_ENTRIES = 25


def test_imports_only_go_down() -> None:
    """No folder imports one that stands above it; an import for annotations alone counts as one."""
    for path, imported in _imports():
        here, there = _entry(path), imported.split(".")[0]
        if here == "__init__":
            continue  # it names what every layer offers
        assert there in LAYERS, f"{path}: {there} has no layer"
        if here in LAYERS and here != there:
            assert LAYERS.index(there) < LAYERS.index(here), f"{path}: {here} imports {there}"
            assert there not in NEVER_IMPORTED, f"{path}: {here} imports {there}"


def test_no_two_modules_import_each_other() -> None:
    """There is no circle of imports between modules, not even for annotations."""
    graph: dict[str, set[str]] = {}
    for path, imported in _imports():
        if _entry(path) != "__init__":
            graph.setdefault(_name(path), set()).add(imported)
    for start in graph:
        seen, open_ends = set(), list(graph[start])
        while open_ends:
            module = open_ends.pop()
            assert module != start, f"{start} is imported by what it imports"
            if module not in seen:
                seen.add(module)
                open_ends += graph.get(module, ())


def test_the_tree_is_the_list_of_layers() -> None:
    """A stranger learns the layers from a listing of the package, which is short."""
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert entries == {f"{name}.py" if (PACKAGE / f"{name}.py").exists() else name for name in LAYERS} | {
        *("__init__.py", "__main__.py", "py.typed")
    }
    assert len(entries) <= MOST_ENTRIES


def test_the_drawing_shows_the_layers() -> None:
    """The drawing in the docs names every layer, in order, and each of its arrows goes down to what is imported."""
    drawing = DRAWING.read_text().partition("<!-- layers -->")[2].partition("<!-- end of layers -->")[0]
    rows = [line.strip("| ") for line in drawing.splitlines() if line.startswith("| `")]
    drawn = {re.findall(r"`(\w+)`", row.split("|")[0])[0]: re.findall(r"`(\w+)`", row.split("|")[2]) for row in rows}
    ground = set(LAYERS[:7])
    assert [*reversed(drawn)] == [name for name in LAYERS if name not in ground]
    found: dict[str, set[str]] = {name: set() for name in drawn}
    for path, imported in _imports():
        here, there = _entry(path), imported.split(".")[0]
        if here in found and there != here and there not in ground:
            found[here].add(there)
    assert {name: sorted(below) for name, below in drawn.items()} == {
        name: sorted(below) for name, below in found.items()
    }


def test_one_module_knows_cattrs() -> None:
    """All that is cattrs is in the codec."""
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^\s*(from|import) cattrs", path.read_text(), re.MULTILINE)
    }
    assert users == {"wire/codec.py"}


def _imports() -> Iterator[tuple[Path, str]]:
    """Yield each import within the package: the module that imports, and the dotted name of what is imported."""
    for path in sorted(PACKAGE.rglob("*.py")):
        package = path.relative_to(PACKAGE).parts[:-1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("fanout_sync") for alias in node.names), f"{path}: absolute import"
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            for alias in node.names:
                dotted = ".".join(filter(None, base))
                is_module = (PACKAGE.joinpath(*filter(None, base)) / f"{alias.name}.py").exists()
                yield path, f"{dotted}.{alias.name}".lstrip(".") if is_module else dotted


def _entry(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
