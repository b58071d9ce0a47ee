"""Sphinx's configuration."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docstrings import prepare_docstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PUBLIC = [
    "",
    "asyncio",
    "errors",
    "http",
    "dedup",
    "history",
    "projection",
    "outbox",
    "hooks",
    "upcasting",
    "alembic",
    "canonical",
    "testing",
    "versions",
    "sharding",
    "engines",
]
"""The public modules, below the package."""

project = "sa_wfstate"
author = "sa_wfstate contributors"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name for it
release = version = version_of("sa-wfstate")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.mermaid",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "bench", "changelog.d", "examples", "pictures/*.py"]

myst_enable_extensions = [
    "attrs_inline",
    "colon_fence",
    "deflist",
    "fieldlist",
    "smartquotes",
]
myst_fence_as_directive = ["mermaid"]  # A plain fence is rendered by GitHub, too.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# The docstrings are written for autodoc: reST with Sphinx's roles.
autodoc_preserve_defaults = True

# The names of other projects are not linked: their inventories would have to be
# fetched at each build, which has to work without a network. So every name outside
# this package is unknown here, and only ours are held to be right.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!sa_wfstate(\.|$)).*"),
    (r"py:class", r"sa_wfstate\..*\b\w*T"),  # type variables
    # Annotations and bases name internal types, too.
    (r"py:.*", rf"sa_wfstate\.(?!({'|'.join(PUBLIC[1:])})\.)[a-z_]+\..*"),
]

html_theme = "furo"
# Furo's own choice for the dark mode underlines the names of classes.
pygments_dark_style = "github-dark"
# What is copied from a console session or a shell has no prompt, and no output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_title = "sa_wfstate"
html_static_path = ["_static"]
html_css_files = ["site.css"]


@cache
def public_paths() -> dict[str, str]:
    """Return the one path of each public name, by every path that leads to it."""
    paths: dict[str, str] = {}
    for name in PUBLIC:
        module = import_module(f"sa_wfstate.{name}".rstrip("."))
        for public in module.__all__:
            value, here = getattr(module, public), f"{module.__name__}.{public}"
            path = f"{getattr(value, '__module__', module.__name__)}.{public}"
            paths[here] = paths.setdefault(path, here)
    return paths


def link_public(app: Sphinx, env: Any, node: Any, text: Any) -> Any:
    """Link what an annotation or a docstring names by another path."""
    target, paths = node.get("reftarget", ""), public_paths()
    for path in (target, f"{node.get('py:module')}.{target}", f"sa_wfstate.{target}"):
        owner, _, member = path.rpartition(".")
        found = paths.get(path) or (owner in paths and f"{paths[owner]}.{member}")
        if found and found != target:
            return env.domains["py"].resolve_xref(
                env, node["refdoc"], app.builder, node["reftype"], found, node, text
            )
    return None


def drop_borrowed_docstring(
    _app: Sphinx, what: str, _name: str, value: Any, _options: Any, lines: list[str]
) -> None:
    """Leave out what ``str`` says about itself: a text has no docstring of its own."""
    if what == "data" and isinstance(value, str) and lines == getdoc(value):
        lines.clear()


def getdoc(value: object) -> list[str]:
    """Return the docstring of the type of *value*, as autodoc prepares it."""
    return prepare_docstring(type(value).__doc__ or "")


def drop_reprs(_app: Sphinx, doctree: nodes.document) -> None:
    """Leave out values that are shown as ``<... object>``: columns are."""
    for node in list(doctree.findall(addnodes.desc_annotation)):
        if node.astext().startswith(" = <"):
            node.parent.remove(node)


def setup(app: Sphinx) -> None:
    """Extend Sphinx, which calls this."""
    app.connect("missing-reference", link_public)
    app.connect("autodoc-process-docstring", drop_borrowed_docstring)
    app.connect("doctree-read", drop_reprs)
