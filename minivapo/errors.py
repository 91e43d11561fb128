"""Errors that end a command with one line; a module of its own so that a wrong flag is refused without torch."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can mend; its text says what was wrong, what was expected and what to do."""


class UsageError(UserError):
    """A word on the command line, or a line of a config file, that cannot be read."""


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or infinite: the step was refused and the weights are as before it."""


def install(extra: str, constraints: str = "constraints.txt") -> str:
    """The line that installs an extra, in the releases that the tests run; there is no package on an index yet."""
    return f"pip install -c {constraints} -e '.[{extra}]' in the checkout"
