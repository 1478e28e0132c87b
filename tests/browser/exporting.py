"""Turns notebooks into HTML, as `jupyter nbconvert` does."""

from __future__ import annotations

from typing import Any

from nbconvert import exporters
from nbformat import NotebookNode

_exporters: Any = exporters  # without types

# What the pages of nbconvert load from the network, whatever is in the notebook: require.js, for outputs with scripts,
# MathJax and Mermaid, for formulas and drawings in text. Ours need none of them.
OFFLINE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""


def exported(notebook: NotebookNode, theme: str = "light", *, template: str = OFFLINE) -> str:
    """Return a notebook as a page.

    Args:
        notebook: The notebook.
        theme: `"light"` or `"dark"`.
        template: The template; `""` for that of nbconvert.
    """
    exporter = _exporters.HTMLExporter(theme=theme)
    if template:
        exporter.raw_template = template
    html, _ = exporter.from_notebook_node(notebook)
    return str(html)
