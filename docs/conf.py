"""Sphinx's configuration."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "sa_wfstate"
author = "sa_wfstate contributors"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name for it
release = version = version_of("sa-wfstate")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "bench", "changelog.d", "examples"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist", "smartquotes"]
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
    # Annotations name the module that defines a class, pages the package it is
    # imported from.
    (r"py:.*", r"sa_wfstate\.[a-z_]+\.\w+"),
]

html_theme = "furo"
html_title = "sa_wfstate"
