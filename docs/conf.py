"""Sphinx configuration; built with `python check.py docs`, warnings are errors.

A build writes to its output folder only. `docs/notebooks` is a link to the notebooks, and pages made from code or data
are committed: `docs/generate/` has one script for each, and a test compares what can be compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

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
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]
