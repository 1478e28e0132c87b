"""The layers of the design: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import fanout_sync

PACKAGE = Path(fanout_sync.__file__).parent

LAYERS = [
    {"wording", "logs"},
    {"errors"},
    {"strict_json"},
    {"steps"},
    {"wire"},
    {"jsonl"},
    {"events"},
    {"channel"},
    {"executor", "status", "options", "interrupts", "futures"},
    {"usage", "retry_after"},
    {"current", "retry", "records"},
    {"attempt"},
    {"admission", "gate", "rate_windows"},
    {"rate_limit", "budget"},
    {"governor"},
    {"workers", "executors", "journal", "metering", "intake", "retrying"},
    {"backends"},
    {"run", "turnstile"},
    {"announcer", "journalling", "pipeline", "loop", "inputs"},
    {"dispatch", "arguments"},
    {"runner"},
    {"combinators", "testing"},
    {"target", "line_files"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up. Modules of one layer do not import each other; a folder's modules may import their siblings."""


def test_imports_only_go_down() -> None:
    """No module imports one of its own or a higher layer; imports for typing alone are free."""
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for path, unit in _modules():
        for imported in _imported_units(path):
            assert imported in rank, f"{path}: {imported} has no layer"
            if imported != unit:
                assert rank[imported] < rank[unit], f"{path}: {unit} imports {imported}"


def test_every_module_has_a_layer() -> None:
    """A new module has to be given its place."""
    assert {unit for _, unit in _modules()} == set().union(*LAYERS)


def test_one_module_knows_cattrs() -> None:
    """All that is cattrs is in `wire`."""
    users = {unit for path, unit in _modules() if "cattrs" in _names_imported(ast.parse(path.read_text()))}
    assert users == {"wire"}


def _modules() -> list[tuple[Path, str]]:
    found = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            found.append((path, parts[0]))
    return found


def _imported_units(path: Path) -> set[str]:
    depth = len(path.relative_to(PACKAGE).parts)
    units = set()
    for node in ast.walk(_without_typing_imports(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            units |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return units


def _without_typing_imports(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return tree


def _names_imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names
