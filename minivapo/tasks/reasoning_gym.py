"""Problems that nobody here wrote: any generator of the package reasoning-gym as a task, its scorer as the verdict.

    task = make_reasoning_gym_task("chain_sum", min_terms=2, max_terms=2, max_digits=2)

Generator and scorer run in a process of their own (`minivapo.tasks.reasoning_gym_worker`), which is killed when it
takes too long: some scorers evaluate the text that they judge, and some generators search.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import math
import os
import re
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from minivapo.errors import install
from minivapo.interfaces import Problem, UserError, derive_seed
from minivapo.responses import encode_prompt
from minivapo.tasks.embedded import is_held_out

TIME_LIMIT = 3.0
"""Seconds of processor time for one verdict, or for making one problem; by the clock ten times as many."""
MEMORY_LIMIT = 2**31
"""Bytes of address space of the worker."""
START_SECONDS = 120.0
"""How long the worker may take to import the package (3 s on an idle core)."""
EVALUATING = (
    "binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24",
    "simple_integration", "spiral_matrix", "string_insertion",
)  # fmt: skip
"""Generators whose scorer evaluates the answer as Python."""
CODE = re.compile(r"__|\b(import|lambda|exec|eval|open|getattr|globals|compile)\b")
"""What only an answer written to be executed contains: with these generators it is wrong without being scored."""
OUR_OPTIONS = ("threshold", "template")


def known_wrong(name: str, options: dict[str, Any]) -> str | None:
    """Why a generator with these options has wrong gold answers, as far as is known; None if it has not.

    `basic_arithmetic` rounds some quotients down, and without parentheses computes from left to right: 0.7 % of its
    answers are wrong with parentheses, 65 % without (of 3,000 problems of 2 to 6 terms).
    """
    if name != "basic_arithmetic":
        return None
    operators, several = options.get("operators", ["+", "-", "*", "/"]), options.get("max_terms", 6) > 2
    parentheses = options.get("allow_parentheses", True)
    if "/" in operators and (several or not parentheses):
        return """some quotients are rounded down; give --task-option 'operators=["+", "-", "*"]'"""
    if {"+", "-"} & {*operators} and "*" in operators and several and not parentheses:
        return "it computes from left to right; keep the parentheses, give max_terms=2, or no '*'"
    return None


def stated_answer(response: str) -> str:
    """What is scored: the last `<answer>…</answer>`; else all after the last line start `Answer:`; else everything."""
    for closed in reversed(response.split("</answer>")[:-1]):  # a regex would search to the end from each open tag
        _, tag, answer = closed.partition("<answer>")
        if tag:
            return answer.strip()
    return re.split(r"(?mi)^[ \t]*(?:final )?answer:", response)[-1].strip()


class Worker:
    """The process that holds a generator; started when first needed, and again after it was killed. Thread-safe.

    Args:
        name: of the generator.
        options: of its configuration.
        time_limit: seconds of processor time for one request.

    Raises:
        UserError: on the first request: no such generator or option, or it refuses the options.
    """

    def __init__(self, name: str, options: dict[str, Any], time_limit: float = TIME_LIMIT) -> None:
        self.name, self.options, self.time_limit = name, options, time_limit
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, *request: Any, seconds: float = math.inf) -> dict[str, Any]:
        """The reply to one request, see the worker; {"error": …} if there is none within the limits."""
        if seconds <= 0:
            return {"error": "no time is left"}
        with self.lock:
            if self.process is None:
                self.start()
            patience = min(10 * self.time_limit + 1, seconds)
            return self.exchange(list(request), patience) or self.kill("it died, or took too long")

    def start(self) -> None:
        """Starts the process and waits until it has the generator."""
        self.process = subprocess.Popen(
            self.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C reaches the parent alone
        )
        weakref.finalize(self, stop, self.process)
        settings = {
            "name": self.name,
            "options": self.options,
            "time_limit": self.time_limit,
            "memory_limit": MEMORY_LIMIT,
        }
        reply = self.exchange(settings, START_SECONDS) or self.kill("the process did not start")
        if "error" in reply:
            self.kill("")
            raise UserError(self.explain(reply))

    def command(self) -> list[str]:
        """What to run: a script by its path, without its folder on sys.path (-P), so no torch and none of our names."""
        script = importlib.util.find_spec("minivapo.tasks.reasoning_gym_worker")
        assert script and script.origin
        return [sys.executable, "-P", script.origin]

    def explain(self, reply: dict[str, Any]) -> str:
        """Why there is no such generator, in one line."""
        if "names" in reply:
            near = difflib.get_close_matches(self.name, reply["names"], n=3, cutoff=0.4)
            hint = f"perhaps you meant {' or '.join(near)}" if near else f"known are {', '.join(reply['names'])}"
            return f"reasoning-gym has no generator '{self.name}'; {hint}."
        if "options" in reply:
            wrong = min(set(self.options) - set(reply["options"]))
            known = ", ".join([*reply["options"], *OUR_OPTIONS])
            return f"reasoning-gym:{self.name} has no option '{wrong}'; it has {known}."
        reason = " ".join(reply["error"].split())[:200]
        return f"reasoning-gym:{self.name} refuses {json.dumps(self.options)}: {reason}."

    def exchange(self, request: Any, patience: float) -> dict[str, Any] | None:
        """One line out, one line back; None if the process is gone or takes more than `patience` seconds."""
        assert self.process and self.process.stdin and self.process.stdout
        deadline, received = time.monotonic() + patience, b""
        with contextlib.suppress(OSError), selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            while selector.select(max(0.0, deadline - time.monotonic())):
                part = os.read(self.process.stdout.fileno(), 65536)
                received += part
                if received.endswith(b"\n"):
                    return json.loads(received)
                if not part:
                    break
        return None

    def kill(self, reason: str) -> dict[str, Any]:
        """Ends the process; the next request starts another."""
        if self.process is not None:
            stop(self.process)
            self.process = None
        return {"error": reason}


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a worker."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()  # type: ignore[union-attr]


class ReasoningGym:
    """A generator of reasoning-gym as a `minivapo.interfaces.Task`; made by `make_reasoning_gym_task`.

    Args:
        worker: holds the generator.
        threshold: a response with at least this score is right; scorers give fractions for what is nearly right.
        render: question -> prompt.
        fits: whether a prompt is short enough; others are passed over.
    """

    stop: tuple[str, ...] = ()

    def __init__(self, worker: Worker, threshold: float, render: Any, fits: Any) -> None:
        self.name = f"reasoning-gym:{worker.name}"
        self.about = (
            f"Problems of reasoning-gym's generator {worker.name}. Its own scorer judges the answer; a score of "
            f"{threshold:g} or more counts as right."
        )
        self.worker, self.threshold, self.render, self.fits = worker, threshold, render, fits

    def __repr__(self) -> str:
        return f"ReasoningGym({self.name!r}, {self.worker.options})"

    def draw(self, key: tuple[object, ...], held_out: bool) -> Problem | None:
        """The problem that a key stands for, in the wanted split; None if a thousand draws found none.

        Raises:
            UserError: the generator fails.
        """
        failures = 0
        for attempt in range(1000):
            index = derive_seed("reasoning-gym", *key, attempt) % 2**31
            reply = self.worker.ask(index)
            if "error" in reply:
                failures += 1
                if failures == 5:  # a search that takes long now and then is no reason to end a run
                    reason = " ".join(reply["error"].split())[:200]
                    raise UserError(
                        f"{self.name} cannot make problems with {json.dumps(self.worker.options)}: {reason}."
                    )
            elif is_held_out(reply["question"]) == held_out:
                prompt = self.render(reply["question"])
                if self.fits(prompt):
                    return Problem(prompt, reply["answer"], f"{self.name}/{index}")
        return None

    def train_problems(self, start: int, count: int, seed: int) -> list[Problem]:
        """See `minivapo.interfaces.Task.train_problems`."""
        return [self.some(self.draw((seed, i), held_out=False)) for i in range(start, start + count)]

    def test_problems(self, count: int | None = None) -> list[Problem]:
        """Held-out problems without repetition, in a fixed order; up to 1,024 if no count is given."""
        wanted = 1024 if count is None else count
        found: dict[str, Problem] = {}
        for i in range(8 * wanted):
            if len(found) == wanted:
                break
            problem = self.some(self.draw(("test", i), held_out=True))
            found.setdefault(problem.prompt, problem)
        return list(found.values())

    def some(self, problem: Problem | None) -> Problem:
        """A problem that was found.

        Raises:
            UserError: it was not.
        """
        if problem is None:
            raise UserError(
                f"{self.name} has too few different problems, or all are longer than max_prompt_tokens: "
                "choose other options, or raise it."
            )
        return problem

    def judge(
        self, problems: Sequence[Problem], responses: Sequence[str], seconds: float = math.inf
    ) -> list[bool | None]:
        """Right if the generator's scorer gives at least `threshold`; None where it failed or its time was up."""
        end = time.monotonic() + seconds
        return [self.verdict(p, stated_answer(r), end) for p, r in zip(problems, responses, strict=True)]

    def verdict(self, problem: Problem, answer: str, end: float) -> bool | None:
        """On one answer, by this time of the monotonic clock."""
        if self.worker.name in EVALUATING and CODE.search(answer):
            return False
        index = int(problem.id.rpartition("/")[2])
        score = self.worker.ask(index, answer, seconds=end - time.monotonic()).get("score")
        return None if score is None else score >= self.threshold


def make_reasoning_gym_task(
    generator: str,
    *,
    template: str | None = None,
    threshold: float = 1.0,
    tokenizer: Any = None,
    max_prompt_tokens: int | None = None,
    **options: Any,
) -> ReasoningGym:
    """A generator as a task.

    Args:
        generator: its name in reasoning-gym, such as chain_sum.
        template: `none` (default): the question as it is; `base` or `chat`: as for the mathematics tasks.
        threshold: see `ReasoningGym`.
        tokenizer: for the chat template, and to count tokens.
        max_prompt_tokens: problems with longer prompts are passed over; None keeps all.
        options: of the generator's configuration.

    Raises:
        UserError: reasoning-gym is not installed; there is no such generator, or it is known to be wrong with these
            options; a wrong threshold or template.
    """
    from minivapo.tasks.math import render

    if importlib.util.find_spec("reasoning_gym") is None:
        raise UserError(f"the task reasoning-gym:{generator} needs the package reasoning-gym: {install('real')}")
    if not generator:
        raise UserError("the task reasoning-gym needs the name of a generator: reasoning-gym:chain_sum.")
    if not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise UserError(f"threshold is {threshold}; it must lie in (0, 1].")
    if reason := known_wrong(generator, options):
        raise UserError(f"reasoning-gym:{generator} has wrong gold answers with these options: {reason}.")
    template = template or "none"
    render("", template, tokenizer)  # refuses one that cannot work

    def fits(prompt: str) -> bool:
        return (
            tokenizer is None
            or not max_prompt_tokens
            or len(encode_prompt(tokenizer, prompt, sys.maxsize)) <= max_prompt_tokens
        )

    task = ReasoningGym(
        Worker(generator, options), threshold, lambda question: render(question, template, tokenizer), fits
    )
    task.train_problems(0, 1, 0)  # whatever the generator refuses, it refuses now
    return task
