r"""The verifier of the mathematics tasks: text in, verdicts out, in bounded time whatever the text is.

    grade(r"… so the answer is \boxed{\frac{1}{2}}", "0.5")   # True

How an answer is found and compared is told, with every choice made, in `minivapo.tasks.answers`. Ordinary answers
are decided in the calling process; what needs algebra is sent to another one (`minivapo.tasks.answers.server`), whose
workers can be killed. Importing this module loads neither math-verify nor sympy.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from minivapo.errors import install
from minivapo.tasks.answers import PATIENCE, Unreadable
from minivapo.tasks.answers.compare import equal
from minivapo.tasks.answers.extract import extract_answer, gold_answer

START_SECONDS = 120.0
"""How long the other process may take to import math-verify (2 s on an idle core)."""
CACHE_SIZE = 100_000
"""Pairs (predicted, gold) whose verdict is remembered: a group of 16 responses often states one answer."""

Pair = tuple[str, str]
"""(predicted, gold)."""

logger = logging.getLogger("minivapo")


def require_math(*modules: str) -> None:
    """Raise ImportError, saying what to install, unless the optional packages are there."""
    missing = [name for name in modules or ("math_verify", "pebble") if not _installed(name)]
    if missing:
        raise ImportError(f"the mathematics tasks need {', '.join(missing)}: {install('math')}")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # sys.modules holds None for it: blocked on purpose
        return False


class Algebra:
    """The process that compares by algebra, started when first asked and again when it has died. POSIX only."""

    def __init__(self, workers: int, time_limit: float, memory_limit: int) -> None:
        """Prepare it; nothing starts yet. The limits are those of `Verifier`."""
        self.workers, self.time_limit, self.memory_limit = workers, time_limit, memory_limit
        self.process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._finalizer: weakref.finalize | None = None

    def close(self) -> None:
        """End the process and its workers."""
        if self._finalizer is not None:
            self._finalizer()
        self.process = self._finalizer = None

    def compare(self, pairs: Sequence[Pair], seconds: float = math.inf) -> Iterator[tuple[int, bool | None, str]]:
        """Yield (number of the pair, verdict, reason why there is none) once for each pair, within so many seconds."""
        end = time.monotonic() + seconds
        waiting = list(range(len(pairs)))
        for _ in range(2):  # a process that died for no fault of ours deserves a successor
            for i, verdict, reason in self._ask([pairs[i] for i in waiting], end) if waiting else ():
                yield waiting[i], verdict, reason
                waiting[i] = -1
            waiting = [i for i in waiting if i >= 0]
        late = time.monotonic() >= end
        yield from ((i, None, "time limit" if late else "no worker") for i in waiting)

    def _ask(self, pairs: Sequence[Pair], end: float) -> Iterator[tuple[int, bool | None, str]]:
        """Replies until all have come, the process is gone or the time is up."""
        if time.monotonic() >= end:
            return
        if self._owner != os.getpid():  # after a fork: the parent's process is not ours to talk to
            if self._finalizer is not None:
                self._finalizer.detach()
            self.process, self._owner = None, os.getpid()
        fresh = self.process is None or self.process.poll() is not None
        if fresh:
            self._start()
        process = self.process
        assert process is not None and process.stdin and process.stdout
        unread = len(pairs)
        # The workers keep their own limits; this one is for a process that has stopped altogether.
        patience = START_SECONDS if fresh else 0.0
        try:
            request = memoryview(json.dumps(pairs).encode() + b"\n")
            while request:
                request = request[process.stdin.write(request) :]
            while unread:
                seconds = min(patience + 3 * PATIENCE * self.time_limit + 5, end - time.monotonic())
                if not select.select([process.stdout], [], [], max(seconds, 0.0))[0]:
                    return
                line = process.stdout.readline()  # written at once
                if not line:
                    return
                yield tuple(json.loads(line))
                unread, patience = unread - 1, 0.0
        except OSError:
            return  # it died before it had read all
        finally:
            if unread:  # it died, or the consumer stopped, by Ctrl-C say: what is left to read is not for the next
                self.close()

    def _start(self) -> None:
        self.close()
        # `answers` as a package of its own, last on the path: no torch, and none of our modules' names in the way.
        code = "import sys; sys.path.append(sys.argv[1]); from answers.server import main; main(*sys.argv[2:])"
        limits = (self.workers, self.time_limit, self.memory_limit)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, str(Path(__file__).parent), *map(str, limits)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C reaches the parent alone
        )
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self.process, self._owner)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a forked child has the object too, but not the process
        return
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too: they are of its session
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe:
                pipe.close()


class Verifier:
    """Grades final answers, with algebra in worker processes that are killed when they take too long.

    Ordinary answers are decided in the calling process. The rest goes to another process and its `workers`, started
    when first needed, restarted when they die, and gone with the calling process. POSIX only. Thread-safe.

    Attributes:
        reasons: Answers without a verdict so far, by what failed: time limit, memory, died, gold, undecided, no worker,
            error.
    """

    def __init__(self, workers: int = 2, time_limit: float = 3.0, memory_limit: int = 2**30) -> None:
        """Prepare a verifier; no process starts yet.

        Args:
            workers: Processes at most.
            time_limit: Seconds of processor time that one answer may take; by the clock at most
                `answers.PATIENCE` times as long, so that verdicts do not depend on how busy the machine is.
            memory_limit: Bytes of address space of one worker.

        Raises:
            ImportError: math-verify is not installed.
        """
        require_math()
        self.algebra = Algebra(workers, time_limit, memory_limit)
        self.reasons: Counter[str] = Counter()
        self._cache: dict[Pair, bool] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the workers; the next answer that needs one starts it anew."""
        with self._lock:
            self.algebra.close()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def grade_many(
        self, responses: Sequence[str], answers: Sequence[str], seconds: float = math.inf
    ) -> list[bool | None]:
        """Judge each response by its final answer alone.

        Args:
            responses: Texts of the policy; anything is allowed in them.
            answers: The gold answer of each.
            seconds: What algebra has not decided by then has no verdict.

        Returns:
            True or False for each; None where the verifier failed (time limit, memory, a worker that died
            twice on one answer, a gold answer that cannot be read). Never raises because of a text.
        """
        verdicts: list[bool | None] = []
        undecided: dict[Pair, list[int]] = {}
        failures: Counter[str] = Counter()
        for i, (response, answer) in enumerate(zip(responses, answers, strict=True)):
            verdict, pair = self._decide(response, answer, failures)
            verdicts.append(verdict)
            if pair is not None:
                undecided.setdefault(pair, []).append(i)
        with self._lock:
            pairs = list(undecided)
            for number, verdict, reason in self.algebra.compare(pairs, seconds) if pairs else ():
                rows = undecided[pairs[number]]
                for i in rows:
                    verdicts[i] = verdict
                if verdict is None:
                    failures[reason] += len(rows)
                elif len(self._cache) < CACHE_SIZE:
                    self._cache[pairs[number]] = verdict
                else:
                    self._cache = {pairs[number]: verdict}
            self.reasons.update(failures)
        return verdicts

    def _decide(self, response: str, answer: str, failures: Counter[str]) -> tuple[bool | None, Pair | None]:
        """Decide without algebra: (verdict, None), or (None, what a worker has to compare)."""
        if not isinstance(response, str):
            return False, None
        try:
            gold = gold_answer(answer)
            pred = extract_answer(response)
            if not gold:
                failures["gold"] += 1
                return None, None
            if pred is None:
                return False, None
            pair = (pred, gold)
            if pair in self._cache:
                return self._cache[pair], None
            verdict = equal(pred, gold)
            return verdict, None if verdict is not None else pair
        except Unreadable:
            failures["gold"] += 1
        except Exception:  # a bug here must cost one verdict, not a run of days
            logger.exception("the verifier failed on an answer; it counts as a verifier error")
            failures["gold" if not isinstance(answer, str) else "error"] += 1
        return None, None


@functools.cache
def _shared_verifier() -> Verifier:
    return Verifier(workers=1)


def grade(response: str, answer: str) -> bool:
    r"""Whether the final answer that a response states is the right one.

    Only the final answer counts: the last `\boxed{…}`, `Answer: …` or `#### …`; see `minivapo.tasks.answers` for
    all forms and for what counts as equal. For many answers use `Verifier.grade_many`, which also tells a
    wrong answer from a verifier that failed.

    Args:
        response: The policy's text; anything at all.
        answer: The gold answer, plain, in LaTeX, boxed, or a GSM8K solution that ends in `#### 18`.

    Returns:
        True if it is right; False if it is wrong, absent, or could not be compared within 3 s of processor time.

    Raises:
        ImportError: math-verify is not installed. No text makes it raise.
    """
    if not isinstance(response, str) or not isinstance(answer, str):
        require_math()
        return False
    return _shared_verifier().grade_many([response], [answer])[0] is True
