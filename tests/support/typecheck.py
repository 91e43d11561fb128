"""The run-time check of shapes that `conftest.py` switches on for minivapo."""

import re

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def check_shapes(function):
    """Beartype, for what has a jaxtyping annotation; protocols elsewhere are left to the type checker."""
    annotations = getattr(function, "__annotations__", {}).values()
    return check(function) if any(re.search(r"\b(Float|Int|Bool)\[", str(a)) for a in annotations) else function
