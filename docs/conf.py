"""Sphinx configuration; built with `python check.py docs`, warnings are errors."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

project = "MiniVAPO"
author = "the MiniVAPO authors"
html_title = "MiniVAPO"
html_theme = "furo"
html_static_path = ["images"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx.ext.mathjax"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "results-notes.md", "**.ipynb_checkpoints", "jupyter_execute"]
nb_execution_mode = "off"  # outputs are committed; the tests execute the notebooks
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["deepspeed", "vllm"]
napoleon_google_docstring = True
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]


def setup(app: object) -> None:
    """Before the pages are read: the notebooks as pages, and the page of metrics from its one home."""
    from minivapo.show.metrics_info import markdown

    (HERE / "notebooks").mkdir(exist_ok=True)
    for source in (HERE.parent / "notebooks").glob("[0-9i]*"):
        shutil.copy(source, HERE / "notebooks" / source.name)

    page, text = HERE / "metrics.md", markdown()
    if not page.exists() or page.read_text() != text:
        page.write_text(text)
