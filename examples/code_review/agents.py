"""Four agents that review Python source code: `outline`, `complexity`, `smells` and `plan`.

A step's prompt is the name of a module, such as `argparse` or `email.message`. The agents find its source in the Python
that runs them, never import it, and answer with a text for people and the same findings as JSON in `structured`.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from typing import Any

from attrs import asdict, frozen
from radon.complexity import cc_rank, cc_visit
from radon.metrics import h_visit, mi_visit
from radon.raw import analyze

from fanout_sync import AgentStepSpec, EventSender, FunctionExecutor, StepOutcome, ToolEnd, ToolStart

SHOWN = 10
"""How many functions a text lists; `structured` has more."""

COMPLEX, LONG_LINES, MANY_PARAMETERS, DEEP_LEVELS = 10, 60, 7, 4
"""The limits above which a function is worth a remark; radon calls a complexity of up to 10 low (ranks A and B)."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef


# The agents -----------------------------------------------------------------------------------------------------------


def outline(spec: AgentStepSpec) -> StepOutcome:
    """List the classes and functions of a module, with what is documented and what is not."""
    module = Module.find(spec.prompt)
    functions = [asdict(function) for function in module.functions()]
    classes = [describe_class(name, node) for name, node in module.classes()]
    undocumented = [each["name"] for each in [*classes, *functions] if each["public"] and not each["documented"]]
    lines = [f"{module.name}: {module.summary or 'no docstring'}"]
    lines += [f"  class {each['name']}({', '.join(each['bases'])}), line {each['line']}" for each in classes]
    lines += [f"  {each['name']}, line {each['line']}" for each in functions]
    lines += [f"  {len(undocumented)} public names without a docstring"]
    structured = {
        "module": module.name,
        "lines": module.text.count("\n"),
        "classes": classes,
        "functions": functions,
        "undocumented": undocumented,
    }
    return StepOutcome.completed(spec, "\n".join(lines), structured)


def complexity(spec: AgentStepSpec) -> StepOutcome:
    """Rank the functions of a module by their cyclomatic complexity."""
    module = Module.find(spec.prompt)
    ranked = rank_functions(module)
    mean = sum(each["complexity"] for each in ranked) / max(1, len(ranked))
    lines = [f"{module.name}: {len(ranked)} functions, mean complexity {mean:.1f}"]
    lines += [f"  {each['complexity']:3} {each['rank']} {each['name']}, line {each['line']}" for each in ranked[:SHOWN]]
    structured = {"module": module.name, "mean": round(mean, 2), "functions": ranked}
    return StepOutcome.completed(spec, "\n".join(lines), structured)


def smells(spec: AgentStepSpec) -> StepOutcome:
    """Measure how maintainable a module is, and list the habits in it that cause trouble later."""
    module = Module.find(spec.prompt)
    raw, halstead = analyze(module.text), h_visit(module.text).total
    found = sorted(find_smells(module), key=lambda smell: smell["line"])
    metrics = {
        "maintainability": round(mi_visit(module.text, multi=True), 1),
        "logical_lines": raw.lloc,
        "comment_share": round(raw.comments / max(1, raw.sloc), 2),
        "halstead_difficulty": round(halstead.difficulty, 1),
    }
    lines = [f"{module.name}: " + ", ".join(f"{name} {value}" for name, value in metrics.items())]
    lines += [f"  line {each['line']}: {each['smell']}" for each in found]
    return StepOutcome.completed(spec, "\n".join(lines), {"module": module.name, **metrics, "smells": found})


def plan(spec: AgentStepSpec, event_tx: EventSender | None = None) -> StepOutcome:
    """Say which functions of a module to refactor first and why, from its outline and its complexity."""
    shape, measured = (use_tool(tool, spec, event_tx) for tool in (outline, complexity))
    tasks = plan_tasks(shape["functions"], measured["functions"])
    lines = [f"{shape['module']}: {len(tasks)} of {len(shape['functions'])} functions are worth refactoring"]
    lines += [
        f"  {place}. {task['name']}, line {task['line']}: {'; '.join(task['reasons'])}"
        for place, task in enumerate(tasks[:SHOWN], start=1)
    ]
    return StepOutcome.completed(spec, "\n".join(lines), {"module": shape["module"], "tasks": tasks})


executor = FunctionExecutor({"outline": outline, "complexity": complexity, "smells": smells, "plan": plan})


# What they look at ----------------------------------------------------------------------------------------------------


@frozen
class Function:
    """A function or method as it stands in the source."""

    name: str
    line: int
    length: int
    parameters: int
    public: bool
    documented: bool


@frozen
class Module:
    """The source of a module."""

    name: str
    text: str
    tree: ast.Module

    @classmethod
    def find(cls, name: str) -> Module:
        """Read the module `name` from where the running Python would import it.

        Raises:
            LookupError: There is no such module, or it has no Python source.
        """
        locations: Sequence[str] | None = None
        found = None
        parts = name.split(".")
        for depth in range(len(parts)):
            # importlib.util.find_spec would import the parent packages; PathFinder only looks.
            found = PathFinder.find_spec(".".join(parts[: depth + 1]), locations)
            if found is None:
                break
            locations = found.submodule_search_locations or []
        if found is None or not found.origin or not found.origin.endswith(".py"):
            raise LookupError(f"Python {sys.version.split()[0]} has no source of a module {name!r}")
        with tokenize.open(found.origin) as file:
            text = file.read()
        return cls(name, text, ast.parse(text))

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]

    def definitions(self) -> Iterator[tuple[str, Definition | ast.ClassDef]]:
        """Yield every class, function and method with its qualified name, but nothing from inside a function."""
        pending: list[tuple[str, ast.AST]] = [("", self.tree)]
        while pending:
            prefix, parent = pending.pop(0)
            for node in ast.iter_child_nodes(parent):
                if isinstance(node, Definition | ast.ClassDef):
                    yield prefix + node.name, node
                if isinstance(node, ast.ClassDef):
                    pending.append((f"{prefix}{node.name}.", node))
                elif isinstance(node, ast.If | ast.Try):
                    pending.append((prefix, node))

    def classes(self) -> Iterator[tuple[str, ast.ClassDef]]:
        """Yield every class with its qualified name."""
        return ((name, node) for name, node in self.definitions() if isinstance(node, ast.ClassDef))

    def functions(self) -> Iterator[Function]:
        """Yield every function and method."""
        return (describe_function(name, node) for name, node in self.definitions() if isinstance(node, Definition))


def describe_class(name: str, node: ast.ClassDef) -> dict[str, Any]:
    """Return what the outline says about a class."""
    return {
        "name": name,
        "line": node.lineno,
        "bases": [ast.unparse(base) for base in node.bases],
        "methods": [child.name for child in node.body if isinstance(child, Definition)],
        "public": is_public(name),
        "documented": ast.get_docstring(node) is not None,
    }


def describe_function(name: str, node: Definition) -> Function:
    """Return what the outline says about a function."""
    return Function(
        name=name,
        line=node.lineno,
        length=length_of(node),
        parameters=count_parameters(node),
        public=is_public(name),
        documented=ast.get_docstring(node) is not None,
    )


def is_public(name: str) -> bool:
    """Tell whether no part of a qualified name begins with an underscore; `__init__` and its like count as private."""
    return not any(part.startswith("_") for part in name.split("."))


def length_of(node: Definition) -> int:
    """Return how many lines a function takes."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def count_parameters(node: Definition) -> int:
    """Return how many named parameters a function has."""
    return len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)


# What they find out ---------------------------------------------------------------------------------------------------


def rank_functions(module: Module) -> list[dict[str, Any]]:
    """Return every function with its cyclomatic complexity, the worst first."""
    blocks = [block for block in cc_visit(module.text) if block.letter != "C"]
    return [
        {
            "name": block.fullname,
            "line": block.lineno,
            "complexity": block.complexity,
            "rank": cc_rank(block.complexity),
        }
        for block in sorted(blocks, key=lambda block: (-block.complexity, block.lineno))
    ]


def find_smells(module: Module) -> Iterator[dict[str, Any]]:
    """Yield what a reviewer would point at, with its line."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield {"line": node.lineno, "smell": "bare except, which also catches KeyboardInterrupt"}
        elif isinstance(node, ast.Global):
            yield {"line": node.lineno, "smell": f"writes the global {', '.join(node.names)}"}
        elif isinstance(node, Definition):
            for smell in smells_of_function(node):
                yield {"line": node.lineno, "smell": f"{node.name} {smell}"}


def smells_of_function(node: Definition) -> Iterator[str]:
    """Yield what is wrong with one function."""
    defaults = [*node.args.defaults, *node.args.kw_defaults]
    if any(isinstance(default, ast.List | ast.Dict | ast.Set) for default in defaults):
        yield "has a mutable default argument"
    if (length := length_of(node)) > LONG_LINES:
        yield f"has {length} lines"
    if (parameters := count_parameters(node)) > MANY_PARAMETERS:
        yield f"has {parameters} parameters"
    if (levels := nesting_of(node)) > DEEP_LEVELS:
        yield f"nests {levels} levels deep"


def nesting_of(node: ast.AST) -> int:
    """Return how many blocks stand inside each other at the deepest place below `node`."""
    return max((nesting_of(child) + opens_block(node, child) for child in ast.iter_child_nodes(node)), default=0)


def opens_block(parent: ast.AST, child: ast.AST) -> bool:
    """Tell whether `child` opens one more level; an `elif` does not, although it is an `If` inside an `If`."""
    if isinstance(child, ast.If) and isinstance(parent, ast.If):
        return parent.orelse != [child]
    return isinstance(child, ast.If | ast.For | ast.AsyncFor | ast.While | ast.Try | ast.With | ast.AsyncWith)


def use_tool(tool: Any, spec: AgentStepSpec, event_tx: EventSender | None) -> dict[str, Any]:
    """Run another agent as a tool, tell whoever listens about it, and return what it found."""
    name, call_id = tool.__name__, f"{spec.task_id}/{tool.__name__}"
    if event_tx is not None:
        event_tx.send(ToolStart(task_id=spec.task_id, id=call_id, name=name))
    answer = tool(spec)
    if event_tx is not None:
        summary = answer.output.partition("\n")[0]
        event_tx.send(ToolEnd(task_id=spec.task_id, id=call_id, name=name, output=summary, exit_code=0))
    found: dict[str, Any] = answer.structured
    return found


def plan_tasks(functions: list[dict[str, Any]], ranked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the functions that have something against them, the most urgent first.

    Complexity weighs most, because every path wants a test; length counts a tenth of a path a line, a missing docstring
    as much as two paths.
    """
    complexity_at = {each["line"]: each for each in ranked}
    tasks = []
    for function in functions:
        measured = complexity_at.get(function["line"], {"complexity": 1, "rank": "A"})
        excess = max(0, measured["complexity"] - COMPLEX)
        too_long = max(0, function["length"] - LONG_LINES)
        undocumented = function["public"] and not function["documented"] and excess > 0
        reasons = [f"complexity {measured['complexity']} (rank {measured['rank']})"] if excess else []
        reasons += [f"{function['length']} lines"] if too_long else []
        reasons += ["public, but without a docstring"] if undocumented else []
        urgency = excess + too_long / 10 + 2 * undocumented
        if reasons:
            tasks.append(
                {"name": function["name"], "line": function["line"], "urgency": round(urgency, 1), "reasons": reasons}
            )
    return sorted(tasks, key=lambda task: (-task["urgency"], task["line"]))
