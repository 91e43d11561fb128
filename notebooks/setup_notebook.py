"""What every notebook starts with: where committed numbers lie, one look for figures, exercises, live figures."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch

if TYPE_CHECKING:
    from minivapo.study.sweeps.machinery import Sweep
    from minivapo.study.sweeps.summary import Rows

# Of tqdm, at its import, where ipywidgets is not installed; so this module imports ours late.
warnings.filterwarnings("ignore", message="IProgress not found")

HERE = Path(__file__).parent
REPOSITORY = HERE.parent
RESULTS = next(path for path in (HERE / "results", REPOSITORY / "docs" / "results") if path.exists())
"""Committed measurements: beside the notebooks where `minivapo notebooks` put them, else the checkout's."""


def prepare() -> None:
    """Sets the look of figures, silences notices, and takes one thread: the fastest for a model this small."""
    if str(REPOSITORY) not in sys.path:  # `scaled` is found from a checkout that was not installed, too
        sys.path.insert(0, str(REPOSITORY))
    torch.set_num_threads(1)
    logging.getLogger("minivapo").setLevel(logging.ERROR)
    plt.style.use(HERE / "style.mplstyle")


def sweep(name: str) -> tuple[Sweep, Rows]:
    """A sweep of the map and the rows of its CSV, for `minivapo.study.sweeps.summary`."""
    from minivapo.study.sweeps import SWEEPS
    from minivapo.study.sweeps.summary import read_sweep

    return SWEEPS[name], read_sweep(RESULTS / "sweeps" / f"{name}.csv")


def over_seeds(rows: Rows, column: str, arm: str, points: Iterable[float]) -> tuple[list[float], list[float], int]:
    """Means of a column of one arm at these points, half of their Student's intervals at 95 %, and the fewest seeds."""
    from minivapo.runs.statistics import t_interval
    from minivapo.study.sweeps.summary import scores

    found = [list(scores(rows, column)[point, arm].values()) for point in points]
    bounds = [t_interval(values) for values in found]
    return [(a + b) / 2 for a, b in bounds], [(b - a) / 2 for a, b in bounds], min(map(len, found))


def check(answer: Any, judge: Callable[[Any], str | None]) -> None:
    """Says whether the answer to an exercise is right.

    Args:
        answer: a value or a function; as shipped it is None, or raises NotImplementedError.
        judge: says what is wrong with an answer, or nothing.
    """
    try:
        fault = "not yet: the answer is still missing." if answer is None else judge(answer)
    except NotImplementedError:
        fault = "not yet: the answer is still missing."
    except Exception as error:  # the reader's function may do anything
        fault = f"it ends with {type(error).__name__}: {error}"
    print(fault or "right!")


def live(draw: Callable[[Any, Any], None], name: str, choices: Iterable[Any], share: bool = True) -> None:
    """A figure under a slider where ipywidgets is installed; else one panel for each choice.

    Args:
        draw: draws one choice on the axes that it is given.
        name: what is chosen.
        choices: its values, in the order of the slider.
        share: whether the panels have the same axes.
    """
    choices = list(choices)
    try:
        from ipywidgets import SelectionSlider, interact
    except ImportError:
        lines = -(-len(choices) // 4)
        columns = min(4, len(choices))
        size = (2.6 * columns, 2.6 * lines)
        _, axes = plt.subplots(lines, columns, figsize=size, sharex=share, sharey=share, squeeze=False)
        for axis in axes.flat[len(choices) :]:
            axis.set_visible(False)
        for axis, choice in zip(axes.flat, choices, strict=False):
            draw(axis, choice)
            axis.set_title(f"{name} {choice}", fontsize=9)
        plt.show()
        return

    def one(choice: Any) -> None:
        _, axis = plt.subplots()
        draw(axis, choice)
        plt.show()

    slider = SelectionSlider(options=choices, description=name, continuous_update=False)
    interact(one, choice=slider)
