"""An end with a reason: what a rank says when it fails, and a watchdog for ranks that hang, freeze or vanish.

Whatever fails where: one line names the rank, what it did and why. It stands on the terminal of the rank's machine, on
rank 0's, and in the run folder's failures.log.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from minivapo.interfaces import NonFiniteError, UserError
from scaled.alarm import Alarm, Failure, this_host

LOST = ("connection closed", "connection reset", "broken pipe", "timed out", "remote process exited")
SIGN = "another rank was lost or hangs"
FAILURES = "failures.log"


def reason(error: BaseException) -> str:
    """One line that says what happened and what to do."""
    text = " ".join(str(error).split())[:400]
    if isinstance(error, UserError | NonFiniteError):
        return text
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory ({text[:160]}); lower token_budget or sampler_memory, or see python -m scaled.plan"
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if any(sign in text.lower() for sign in LOST):
        return f"{SIGN}: see its own line, if any ({type(error).__name__}: {text[:160]})"
    return f"{type(error).__name__}: {text}"


def leave(error: BaseException, rank: int) -> None:
    """Ends this process at once with one line; the launcher then ends the other ranks.

    At once: a normal exit would first wait for communication with ranks that no longer answer.
    MINIVAPO_TRACEBACK=1 shows where it happened.
    """
    if os.environ.get("MINIVAPO_TRACEBACK") and not isinstance(error, UserError):
        traceback.print_exception(error)
    code = 2 if isinstance(error, UserError) else 1
    if _watchdog is not None:
        _watchdog.end(reason(error), code)
    # Before the ranks have found each other they most likely fail alike: one line a machine.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        say(Failure(rank, this_host(), "start", reason(error)))
    os._exit(code)


def say(failure: Failure) -> None:
    """Prints a failure's line."""
    print(failure.line(this_host()), file=sys.stderr, flush=True)
    sys.stdout.flush()


def kill_frozen(failure: Failure) -> None:
    """Ends a silent rank of this machine: one that is frozen heeds nothing but SIGKILL."""
    if failure.process and failure.host == this_host():
        with contextlib.suppress(OSError):
            os.kill(failure.process, signal.SIGKILL)


class Watchdog:
    """Ends this process, with a reason, if a phase lasts too long or another rank fails, freezes or vanishes.

    Backends have timeouts of their own, but not every group that libraries make inherits them.

    Args:
        seconds: the longest that a phase may last.
        rank: this one.
        size: ranks.
        silence: seconds without a sign of life after which a rank is taken for lost.
    """

    def __init__(self, seconds: float, rank: int, size: int = 1, silence: float = 45.0) -> None:
        self.seconds, self.rank, self.size, self.silence = seconds, rank, size, silence
        self.phase, self.since = "start", time.monotonic()
        self.run: Path | None = None
        self.alarm: Alarm | None = None
        self.ending = threading.Lock()
        self.reached = time.monotonic()
        threading.Thread(target=self.watch, daemon=True).start()
        if size > 1:
            threading.Thread(target=self.listen, daemon=True).start()

    def tick(self, phase: str) -> None:
        """Says that the process lives, and what it does next."""
        self.phase, self.since = phase, time.monotonic()

    def watch(self) -> None:
        """The thread that watches this process."""
        while True:
            time.sleep(min(1.0, self.seconds / 4))
            now = time.monotonic()
            if now - self.since > self.seconds:
                self.end(
                    f"'{self.phase}' has lasted {now - self.since:.0f} s: this rank or one it waits for hangs; raise "
                    "timeout_minutes if that was not long enough",
                    1,
                )
            if self.alarm is not None and now - self.reached > self.silence:
                where = os.environ.get("MASTER_ADDR", "")
                text = f"rank 0's machine ({where}) has not answered for {now - self.reached:.0f} s"
                self.finish(Failure(self.rank, this_host(), self.phase, text), 1, alone=True)

    def listen(self) -> None:
        """The thread that speaks with the other ranks; where the store hangs, `watch` notices."""
        alarm = None
        while alarm is None:
            try:
                alarm = Alarm(self.rank, self.size)
            except (RuntimeError, KeyError):  # rank 0 has not opened it yet
                time.sleep(1.0)
        self.reached, self.alarm = time.monotonic(), alarm
        while True:
            with contextlib.suppress(RuntimeError):
                alarm.beat(self.phase)
                found = alarm.heard()
                if found is None and (found := alarm.silent(self.silence)):
                    self.finish(found, 1)
                if found is not None:
                    if self.rank == 0 and found.host != alarm.host:
                        say(found)
                        self.log(found)
                    kill_frozen(found)
                    time.sleep(2.0)  # the rank that failed should be the first that the launcher sees end
                    os._exit(1)
                self.reached = time.monotonic()
            time.sleep(1.0)

    def end(self, text: str, code: int) -> None:
        """Ends this process for a reason of its own; what follows from another rank's failure is not repeated."""
        if SIGN in text and self.alarm is not None:  # who it was comes to light: by its own line, or by its silence
            time.sleep(self.silence + 5)
        self.finish(Failure(self.rank, this_host(), self.phase, text), code)

    def finish(self, failure: Failure, code: int, alone: bool = False) -> None:
        """Says and publishes a failure, unless another came first, and ends this process."""
        self.ending.acquire()  # never released: one thread ends the process
        threading.Timer(20.0, os._exit, [code]).start()  # should the store hang
        for _ in range(20):  # a failure in the first second: without the store two ranks would both speak
            if self.alarm is None and self.size > 1:
                time.sleep(0.25)
        first = True
        if self.alarm is not None and not alone:
            with contextlib.suppress(RuntimeError):
                first = self.alarm.claim()
                earlier = None if first else self.wait_for_news()
                first = first or (earlier is None and SIGN not in failure.text)
        if first:
            say(failure)
            self.log(failure)
            with contextlib.suppress(RuntimeError):
                if self.alarm is not None and not alone:
                    self.alarm.publish(failure)
            kill_frozen(failure)
        os._exit(code)

    def wait_for_news(self) -> Failure | None:
        """What the rank that failed first says; None if it does not come to that."""
        assert self.alarm is not None
        for _ in range(10):
            if found := self.alarm.heard():
                return found
            time.sleep(0.3)
        return None

    def log(self, failure: Failure) -> None:
        """Adds a failure to the run folder, where there is one that can be written."""
        if self.run is None:
            return
        when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        with contextlib.suppress(OSError), (self.run / FAILURES).open("a") as file:
            file.write(f"{when}  {failure.line('everywhere')}\n")

    def heed_sigterm(self) -> None:
        """Lets a SIGTERM end the process with a reason, also while the main thread waits inside a library."""
        ours, self.wakeup = socket.socketpair()
        self.wakeup.setblocking(False)
        signal.set_wakeup_fd(self.wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)

        def wait() -> None:
            while True:
                if signal.SIGTERM in ours.recv(64):
                    self.stopped()

        threading.Thread(target=wait, daemon=True).start()

    def stopped(self) -> None:
        """A SIGTERM came: from the launcher because a rank of this machine died, or to end the job."""
        dead = None
        if self.alarm is not None:
            with contextlib.suppress(RuntimeError):
                dead = self.alarm.dead()
        text = "ended by SIGTERM: the job was cancelled or its time is over; go on with --resume"
        self.finish(dead or Failure(self.rank, this_host(), self.phase, text), 1)


_watchdog: Watchdog | None = None


def start_watchdog(seconds: float, rank: int, size: int = 1, silence: float = 45.0) -> None:
    """Starts this process's watchdog, see `Watchdog`."""
    global _watchdog
    _watchdog = Watchdog(seconds, rank, size, silence)
    _watchdog.heed_sigterm()


def tick(phase: str) -> None:
    """Tells the watchdog, where there is one, that a new phase begins."""
    if _watchdog is not None:
        _watchdog.tick(phase)


def write_failures_to(run: Path) -> None:
    """Names the run folder, where a failure is written down as well."""
    if _watchdog is not None:
        _watchdog.run = run


def farewell() -> None:
    """Tells the other ranks that this one ends as it should."""
    if _watchdog is not None and _watchdog.alarm is not None:
        _watchdog.tick("done")
        with contextlib.suppress(RuntimeError):
            _watchdog.alarm.beat("done")


@contextlib.contextmanager
def one_line_end(rank: int) -> Iterator[None]:
    """Ends the process through `leave` if the block raises."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        leave(error, rank)
