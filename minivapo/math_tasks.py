"""`grade` and the mathematics tasks live in `minivapo.tasks.math`; this name keeps answering."""

from minivapo.tasks.math import grade, make_math_task

__all__ = ["grade", "make_math_task"]
