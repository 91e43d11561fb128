"""The toy models of `benchmarks/which_models.py`."""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("which_models", Path(__file__).parents[2] / "benchmarks/which_models.py")
which_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(which_models)
ARCHITECTURES, make_toy = which_models.ARCHITECTURES, which_models.make_toy
