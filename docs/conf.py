"""How Sphinx builds these pages."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

import fanout_sync

project = "fanout_sync"
author = "The fanout_sync authors"
copyright = "2026, The fanout_sync authors"
release = version = metadata.version("fanout_sync")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fanout_sync {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88  # a longer signature has one line for each parameter
napoleon_use_ivar = True  # attrs fields are documented in their class, once
myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

# The button copies the commands of a console, without their prompt and their output; of other blocks all.
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

# Names of the standard library and of attrs. Links to their own pages would need the network at every build.
nitpick_ignore_regex = [
    (r"py:.*", r"(abc|asyncio|attrs?|collections|concurrent|contextvars|datetime|io|os|pathlib|queue|typing)\..*"),
    (r"py:class", r"BaseRetrying|RetryCallState|retry_base|wait_base"),  # tenacity's
    # What these stand for is said where they are taken.
    (r"py:class", r"(fanout_sync\..*\.)?(NextRound|SpecFunction|Stage|F|P|P\.args|P\.kwargs|T)"),
    (r"py:class", r"pandas\.DataFrame|PathOrFile"),  # what they are is said where they are used
    (r"py:class", r"(functools\.)?partial"),
]

# What signatures say that readers need not know, or know by another name.
IN_SIGNATURES = {
    r", \*\*unknown: [\w.~]+": "",  # takes what is misspelt, to say so
    r"\*unnamed: [\w.~]+": "*",  # takes what has to be named, to say so
    r"~fanout_sync\.errors\.RunSoFar": "~fanout_sync.Run",  # the type of a layer that knows no Run
    r"\bExecutor\b": "~concurrent.futures.Executor",
    r"<class '(\w+)'>": r"\1",
    r"\[~P\]": "P",
    r"\*args: ~typing\.~P, \*\*kwargs: ~typing\.~P": "*args: P.args, **kwargs: P.kwargs",
}

for field in PyObject.doc_field_types:  # attrs fields; the label is "Variables" otherwise
    if field.name == "variable":
        field.label = "Attributes"


def find_public_name(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """Link `fanout_sync.steps.StepOutcome` to `fanout_sync.StepOutcome`, where it is documented.

    Type hints name a class by the module that defines it; readers import it from the package.
    """
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in fanout_sync.__all__:
        return None
    target = f"fanout_sync.{name}"
    return env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, contnode)


def show_code(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Show what docstrings have in single backticks as code; in reStructuredText that takes two.

    The types of attributes are shown without the module, as in signatures.
    """
    lines[:] = [
        re.sub(r"(?<![\w.~])(?=\w+\.\w)", "~", line)
        if line.startswith(":vartype ")
        else re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line)
        for line in lines
    ]


def name_types(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Give the signature of `name` the names that readers know."""
    for private, public in IN_SIGNATURES.items():
        signature = signature and re.sub(private, public, signature)
    if returns == "~fanout_sync.records.steps.R":  # of a method that AgentStepSpec and StepOutcome inherit
        returns = f"~{name.rpartition('.')[0]}"
    return signature, returns


def setup(app: Sphinx) -> None:
    """Register the hooks above."""
    app.connect("autodoc-process-docstring", show_code)
    app.connect("autodoc-process-signature", name_types)
    app.connect("missing-reference", find_public_name)
