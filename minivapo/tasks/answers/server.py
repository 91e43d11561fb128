"""The process that decides by algebra: its workers hold limits and are replaced when they die.

`minivapo.tasks.verifier` starts it, sends a JSON list of pairs on one line, and gets one line for each pair.
Its workers are forks, made in milliseconds: whatever an answer does to one costs nothing but that answer.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any

from pebble import ProcessExpired, ProcessPool

from . import PATIENCE
from .algebra import same_by_algebra
from .compare import equal

REASONS = {"MemoryError": "memory", "Unreadable": "gold", "Undecided": "undecided"}


def main(workers: str, limit: str, memory: str) -> None:
    """Answer lines on standard input until it closes; `limit` is seconds of processor time, `memory` bytes."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing a library prints may reach the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _limit_memory(int(memory))
    at_rest: set[BaseProcess] = set()
    with ProcessPool(int(workers), context=multiprocessing.get_context("fork")) as pool:
        for line in requests:
            try:
                for reply in judge(pool, json.loads(line), float(limit), at_rest):
                    at_rest = set(multiprocessing.active_children())  # before anybody knows that they rest
                    os.write(replies, json.dumps(reply).encode() + b"\n")
            except RuntimeError:  # the pool broke, by a foreign kill between two answers: the parent starts anew
                os._exit(1)


def judge(pool: ProcessPool, pairs: Sequence[tuple[str, str]], limit: float, at_rest: set[BaseProcess]) -> Any:
    """Yield (number of the pair, verdict, reason why there is none).

    Raises:
        RuntimeError: the pool broke.
    """
    futures = [submit(pool, pair, limit) for pair in pairs]
    wait_for_a_worker(futures[0], at_rest)
    again = []
    for i, future in enumerate(futures):
        verdict, reason, sure = outcome(future)
        if sure:
            yield i, verdict, reason
        else:
            again.append(i)
    for i in again:
        verdict, reason, _ = outcome(submit(pool, pairs[i], limit))
        yield i, verdict, reason


def submit(pool: ProcessPool, pair: tuple[str, str], limit: float) -> Future[bool | None]:
    """Has a worker compare a pair."""
    return pool.schedule(compare, (*pair, limit), timeout=PATIENCE * limit)


def wait_for_a_worker(future: Future[bool | None], at_rest: set[BaseProcess]) -> None:
    """Returns as soon as one of the workers, which had nothing to do, has begun.

    Raises:
        RuntimeError: one of them was killed: it may have held the lock of the pool's pipe, which opens for nobody then.
    """
    while not (future.running() or future.done()):
        if not at_rest.issubset(multiprocessing.active_children()):
            raise RuntimeError("a worker was killed at rest")
        time.sleep(0.001)


def outcome(future: Future[bool | None]) -> tuple[bool | None, str, bool]:
    """(verdict, reason why there is none, whether another attempt would say the same)."""
    try:
        return future.result(), "", True
    except ProcessExpired as death:
        # Killed by its own limit, the answer is at fault. Killed by something else (another process, the kernel short
        # of memory), it gets a second chance.
        late = -death.exitcode == signal.SIGPROF
        return None, "time limit" if late else "died", late
    except TimeoutError:
        return None, "time limit", False  # a sleeper, or a worker whose death pebble did not see
    except BrokenProcessPool:
        raise
    except Exception as error:
        return None, REASONS.get(type(error).__name__, "error"), True


def compare(pred: str, gold: str, limit: float) -> bool | None:
    """`equal` with algebra, in a worker; past the limit the process ends."""
    # The default action of the signal ends the process: that works where Python code cannot run, inside a C call,
    # and without a parent. The limit is processor time, so that a busy machine does not change verdicts.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        return equal(pred, gold, same_by_algebra)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory(memory: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # a stricter limit is in force already, or the system has none
