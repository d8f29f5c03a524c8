"""The site: ``make docs`` builds it into build/docs, without a network. Its pages are readable as they are."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "accel_train"
author = "The accel_train authors"
copyright = author
release = importlib.metadata.version("accel_train")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "command_help"]
exclude_patterns = ["_ext"]

# -- Markdown
myst_heading_anchors = 3
myst_links_external_new_tab = False

# -- docstrings, as they are written here: Google's sections, ``literals``
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False

# -- how it looks
html_theme = "furo"
html_title = f"accel_train {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", leave_whole, priority=400)  # before napoleon, at 500


def leave_whole(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in the first line of an attribute's docstring for its type: so that is
    an empty comment."""
    if what in ("attribute", "property"):
        lines[:0] = ["..", ""]
