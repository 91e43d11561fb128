"""What every notebook starts with: where committed numbers lie, one look for figures, one thread."""

import logging
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
RESULTS = REPOSITORY / "docs" / "results" / "mechanisms"
"""Committed measurements; each file names the command and the commit that made it."""


def prepare() -> None:
    """Sets the look of figures, silences notices, and takes one thread: the fastest for a model this small."""
    if str(REPOSITORY) not in sys.path:  # `scaled` is found from a checkout that was not installed, too
        sys.path.insert(0, str(REPOSITORY))
    torch.set_num_threads(1)
    logging.getLogger("minivapo").setLevel(logging.ERROR)
    plt.style.use(HERE / "style.mplstyle")
