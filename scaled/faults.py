"""An end with a reason: what a rank says when it fails, and a watchdog for ranks that hang."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from minivapo.interfaces import NonFiniteError, UserError

LOST = ("connection closed", "connection reset", "broken pipe", "timed out", "remote process exited")


def reason(error: BaseException) -> str:
    """One line that says what happened and what to do."""
    text = " ".join(str(error).split())[:400]
    if isinstance(error, UserError | NonFiniteError):
        return text
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory ({text[:160]}); lower token_budget or sampler_memory, or see python -m scaled.plan"
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if any(sign in text.lower() for sign in LOST):
        return f"another rank was lost or hangs: see its own line, if any ({type(error).__name__}: {text[:160]})"
    return f"{type(error).__name__}: {text}"


def leave(error: BaseException, rank: int) -> None:
    """Ends this process at once with one line; the launcher then ends the other ranks.

    At once: a normal exit would first wait for communication with ranks that no longer answer.
    MINIVAPO_TRACEBACK=1 shows where it happened.
    """
    if os.environ.get("MINIVAPO_TRACEBACK") and not isinstance(error, UserError):
        traceback.print_exception(error)
    if not isinstance(error, UserError) or rank == 0:
        print(f"scaled.train: rank {rank}: {reason(error)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2 if isinstance(error, UserError) else 1)


class Watchdog:
    """Ends this process if a phase lasts longer than the timeout: a dead rank leaves the others waiting.

    Backends have timeouts of their own, but not every group that libraries make inherits them.

    Args:
        seconds: the longest that a phase may last.
        rank: for the message.
    """

    def __init__(self, seconds: float, rank: int) -> None:
        self.seconds, self.rank = seconds, rank
        self.phase, self.since = "start", time.monotonic()
        threading.Thread(target=self.watch, daemon=True).start()

    def tick(self, phase: str) -> None:
        """Says that the process lives, and what it does next."""
        self.phase, self.since = phase, time.monotonic()

    def watch(self) -> None:
        """The thread."""
        while True:
            time.sleep(min(1.0, self.seconds / 4))
            waited = time.monotonic() - self.since
            if waited > self.seconds:
                print(
                    f"scaled.train: rank {self.rank}: '{self.phase}' has lasted {waited:.0f} s: this rank or one it "
                    "waits for hangs; raise timeout_minutes if that was not long enough.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)


_watchdog: Watchdog | None = None


def start_watchdog(seconds: float, rank: int) -> None:
    """Starts this process's watchdog."""
    global _watchdog
    _watchdog = Watchdog(seconds, rank)


def tick(phase: str) -> None:
    """Tells the watchdog, where there is one, that a new phase begins."""
    if _watchdog is not None:
        _watchdog.tick(phase)


@contextlib.contextmanager
def one_line_end(rank: int) -> Iterator[None]:
    """Ends the process through `leave` if the block raises."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        leave(error, rank)
