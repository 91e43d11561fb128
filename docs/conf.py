"""Sphinx configuration; built with `python check.py docs`, warnings are errors.

A build writes to its output folder only. `docs/notebooks` is a link to the notebooks, and pages made from code or data
are committed: `docs/generate/` has one script for each, and a test compares what can be compared.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

project = "MiniVAPO"
author = "the MiniVAPO authors"
html_title = "MiniVAPO"
html_theme = "furo"
html_static_path = ["images"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "generate", "**.ipynb_checkpoints", "jupyter_execute"]
nb_execution_mode = "off"  # outputs are committed; the tests execute the notebooks
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["deepspeed", "vllm"]
napoleon_google_docstring = True
# ref.python: several modules have a type of the same name, such as Arguments.
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure", "ref.python"]


def site_links(page: str) -> str:
    """The explorable page for a built site: its links to sources, which a clone has, become links to pages."""
    page = re.sub(r'href="([\w-]+)\.md(#[\w-]+)?"', r'href="\1.html\2"', page)
    return re.sub(r'href="\.\./minivapo/vapo\.py(#[\w.]+)?"', r'href="_modules/minivapo/vapo.html\1"', page)


def add_explore(app: Any, error: Exception | None) -> None:
    """Puts the explorable page beside the built ones."""
    if error is None and app.builder.format == "html":
        page = (Path(__file__).parent / "explore.html").read_text("utf-8")
        (Path(app.outdir) / "explore.html").write_text(site_links(page), "utf-8")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("build-finished", add_explore)
