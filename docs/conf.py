"""How Sphinx builds these pages."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from sphinx.application import Sphinx

import fanout_sync

project = "fanout_sync"
author = "The fanout_sync authors"
copyright = "2026, The fanout_sync authors"
release = version = metadata.version("fanout_sync")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fanout_sync {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True  # attrs fields are documented in their class, once
myst_heading_anchors = 3

# Names of the standard library and of attrs. Links to their own pages would need the network at every build.
nitpick_ignore_regex = [
    (r"py:.*", r"(abc|asyncio|attrs?|collections|concurrent|contextvars|datetime|io|os|pathlib|queue|typing)\..*"),
    (r"py:class", r"BaseRetrying|RetryCallState|retry_base|wait_base"),  # tenacity's
    (r"py:class", r"AgentFunction|NextRound|Stage|T"),  # what they stand for is said where they are taken
    (r"py:class", r"(functools\.)?partial"),
]


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
    """Show what docstrings have in single backticks as code; in reStructuredText that takes two."""
    lines[:] = [re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Register the hooks above."""
    app.connect("autodoc-process-docstring", show_code)
    app.connect("missing-reference", find_public_name)
