"""One process at a time: a lock of the operating system on a file, which dies with the process that holds it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from minivapo.interfaces import UserError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

RUN_LOCK = ".lock"
"""The file in a run folder that is locked by the process that writes there; it is empty, and stays."""


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Holds a file for this process alone; it is made if it is not there, and never written to.

    Args:
        path: the file.
        busy: what to say if another process holds it.

    Raises:
        UserError: another process holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(busy) from None
            except OSError:  # a file system without locks
                pass
        yield
    finally:
        os.close(handle)


def run_lock(run: Path) -> contextlib.AbstractContextManager[None]:
    """Holds a run folder, see `locked`."""
    text = f"another process is writing in {run}: wait until it ends (`minivapo watch {run}` shows it)"
    return locked(run / RUN_LOCK, f"{text}, or choose another --run.")
