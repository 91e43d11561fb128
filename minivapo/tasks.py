"""Embedded verifiable tasks: no download, problems made on demand, verdict on the final answer alone.

`chain` runs a small program step by step (long chains, one slip ruins the answer); `proof` wants every line right.
`make_task` also gives the mathematics tasks of `minivapo.math_tasks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minivapo.data import Problem, UserError, derive_seed

HELD_OUT = 8
"""One prompt in so many is held out, decided by a hash of its text: training can never contain it."""


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the test split."""
    return hashlib.blake2b(prompt.encode(), digest_size=4).digest()[0] % HELD_OUT == 0


class EmbeddedTask:
    """Streams of made problems, split by a hash of the prompt. A subclass says what a problem is.

    Subclasses define `name`, `words` (the whole vocabulary), `make(rng)`, `is_correct(problem, response)`
    and `demonstrate(problem, rng)` (a noisy demonstration to train a base model on).
    """

    name = ""
    words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()

    def make(self, rng: np.random.Generator) -> Problem:
        """A random problem, of either split."""
        raise NotImplementedError

    def is_correct(self, problem: Problem, response: str) -> bool:
        """Verdict on the final answer; must not raise on any text."""
        raise NotImplementedError

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> list[str]:
        """The words of a demonstration, right or not."""
        raise NotImplementedError

    def first_error(self, problem: Problem, tokens: Sequence[str]) -> int | None:
        """Index of the response token where the reasoning first went wrong; None if nowhere or unknown."""
        return None

    def draw(self, key: tuple[object, ...], held_out: bool) -> Problem:
        """The problem that a key stands for, in the wanted split."""
        rng = np.random.default_rng(derive_seed(self.name, *key))
        while True:
            problem = self.make(rng)
            if is_held_out(problem.prompt) == held_out:
                return problem

    def train_problems(self, start: int, count: int, seed: int) -> list[Problem]:
        """See `minivapo.vapo.Task.train_problems`."""
        return [self.draw((seed, i), held_out=False) for i in range(start, start + count)]

    def test_problems(self, count: int | None = None) -> list[Problem]:
        """Held-out problems without repetition, in a fixed order; 1,024 if no count is given."""
        wanted = 1024 if count is None else count
        found: dict[str, Problem] = {}
        for i in range(64 * wanted):
            if len(found) == wanted:
                break
            problem = self.draw(("test", i), held_out=True)
            found.setdefault(problem.prompt, problem)
        return list(found.values())

    def judge(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool | None]:
        """See `minivapo.vapo.Task.judge`."""
        return [self.is_correct(p, r) for p, r in zip(problems, responses, strict=True)]


# ---------------------------------------------------------------------------------------------------------
# chain: run a program on one digit
# ---------------------------------------------------------------------------------------------------------

LABELS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef")
FILLERS = (
    "hm",
    "so",
    "well",
    "ok",
    "now",
    "then",
    "let",
    "see",
    "right",
    "fine",
    "next",
    "go",
    "on",
    "and",
    "still",
    "yes",
)
EASY = {"inc": 1, "add3": 3, "sub2": -2}
"""Operations that demonstrations get right: name -> what is added to the digit, mod 10."""
HARD = {
    "twist": (3, 7, 0, 9, 1, 4, 8, 2, 6, 5),
    "fold": (5, 2, 9, 6, 0, 8, 3, 1, 7, 4),
    "knot": (8, 4, 6, 1, 7, 0, 2, 9, 3, 5),
}
"""Operations by table: name -> the digit that each digit becomes."""


@dataclass(frozen=True)
class ChainSpec:
    """The constants of the chain task; they decide how its three problems look (see docs/results.md)."""

    min_steps: int = 2
    """Operations in the shortest program."""
    max_steps: int = 32
    """Operations in the longest program."""
    long_tail: bool = True
    """Many short programs and a long tail (of 2 to 32 operations, half have 5 or fewer); if False, all alike."""
    fillers: int = 3
    """Neutral words in each step, each of 16 choices."""
    hard_share: float = 0.4
    """Share of hard operations."""
    every_line: bool = False
    """The verdict wants every line right, as a proof checker does, and not the final answer alone."""
    careful: float = 0.2
    """Share of hard operations that a demonstration works out carefully."""
    careful_right: float = 0.98
    """Share of careful steps that are right."""
    hasty_right: float = 0.25
    """Share of hard operations right when not careful; else a fixed wrong rule is followed."""
    slip: float = 0.002
    """Share of easy operations with a random wrong digit."""
    guess: float = 0.15
    """Share of demonstrations that answer at once, without a chain."""
    give_up: float = 0.01
    """Chance, before each step, to stop the chain and guess."""


class Chain(EmbeddedTask):
    """Run a program of up to 32 operations on a digit and state the result.

    Prompt: `4 A inc B twist C add3 ?` (start digit; label and operation of each line).
    Response: for each line its label, some neutral words and the new digit; then `= answer`:
    `A hm so well 5 B ok now see careful 5 twist 4 C … 7 = 7`. A hard operation may be worked out carefully
    (digit and operation are written again before the result) or hastily (often wrong). Guessing at once is
    possible: `= 3`.
    """

    name = "chain"

    def __init__(self, spec: ChainSpec | None = None) -> None:
        self.spec = spec or ChainSpec()
        digits = tuple("0123456789")
        self.words = (*digits, *LABELS, *EASY, *HARD, *FILLERS, "careful", "=", "?")

    def make(self, rng: np.random.Generator) -> Problem:
        """A program of min_steps to max_steps operations."""
        low, beyond, u = self.spec.min_steps, self.spec.max_steps + 1, rng.random()
        steps = int(low * np.exp(u**1.5 * np.log(beyond / low)) if self.spec.long_tail else low + u * (beyond - low))
        digit = int(rng.integers(10))
        operations = [
            str(rng.choice(list(HARD) if rng.random() < self.spec.hard_share else list(EASY))) for _ in range(steps)
        ]
        lines = [word for label, operation in zip(LABELS, operations, strict=False) for word in (label, operation)]
        prompt = " ".join([str(digit), *lines, "?"])
        return Problem(prompt, str(run_program(prompt)[-1]), prompt)

    def is_correct(self, problem: Problem, response: str) -> bool:
        """The word after the last `=` must be the answer, and nothing may follow it; `every_line` wants more."""
        _, equals, answer = response[-4096:].rpartition("=")
        if not equals or answer.strip() != problem.answer:
            return False
        return not self.spec.every_line or self.first_error(problem, response.split()) is None

    def first_error(self, problem: Problem, tokens: Sequence[str]) -> int | None:
        """Index of the first wrong digit, wrong label, or answer before the chain was done."""
        digits = run_program(problem.prompt)
        step, label = 0, None
        result: tuple[int, str] | None = None  # where the current line's digit stands
        for i, raw in enumerate([*tokens, "="]):
            word = raw.strip()
            if word in LABELS or word == "=":
                if label is not None:
                    if result is None or result[1] != str(digits[step + 1]):
                        return result[0] if result else min(i, len(tokens) - 1)
                    step += 1
                if word == "=":
                    return None if step == len(digits) - 1 or i == len(tokens) else i
                if step >= len(digits) - 1 or word != LABELS[step]:
                    return i
                label, result = word, None
            elif word.isdigit():
                result = (i, word)
        return None

    def pending(self, problem: Problem, tokens: Sequence[str]) -> list[list[str] | None]:
        """What is still to be done before each token of a response; None once something is wrong.

        A line stands there as its operation, or as `careful …` once it was begun so; the answer as `=`.
        """
        operations = problem.prompt.split()[2:-1:2]
        wrong = self.first_error(problem, tokens)
        states: list[list[str] | None] = []
        left = [*operations, "="]
        line, careful, digits = -1, False, 0
        for i, raw in enumerate(tokens):
            states.append(left if wrong is None or i <= wrong else None)
            word = raw.strip()
            if word in LABELS:
                line, careful, digits = line + 1, False, 0
            elif word == "careful":
                careful = True
            elif word.isdigit():
                digits += 1
            done = line + (digits >= 1 + careful)  # a careful line writes its digit again first
            left = [*operations[max(done, 0) :], "="]
            if careful and done == line < len(operations):
                left[0] = f"careful {left[0]}"
        return states

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> list[str]:
        """A noisy chain: guesses, hasty and careful steps, slips."""
        spec = self.spec
        words = problem.prompt.split()
        operations = words[2:-1:2]
        digit = int(words[0])
        if rng.random() < spec.guess:
            return ["=", str(rng.integers(10))]
        out: list[str] = []
        for label, operation in zip(LABELS, operations, strict=False):
            if rng.random() < spec.give_up:
                return [*out, "=", str(rng.integers(10))]
            out += [label, *(FILLERS[i] for i in rng.integers(len(FILLERS), size=spec.fillers))]
            right = apply_operation(operation, digit)
            if operation in HARD:
                careful = rng.random() < spec.careful
                if careful:
                    out += ["careful", str(digit), operation]
                chance = spec.careful_right if careful else spec.hasty_right
                digit = right if rng.random() < chance else (right + 4) % 10
            else:
                digit = right if rng.random() >= spec.slip else int(rng.integers(10))
            out.append(str(digit))
        return [*out, "=", str(digit)]


def apply_operation(operation: str, digit: int) -> int:
    """What an operation makes of a digit."""
    return (digit + EASY[operation]) % 10 if operation in EASY else HARD[operation][digit]


def run_program(prompt: str) -> list[int]:
    """The digit before the first and after each operation of a chain prompt."""
    words = prompt.split()
    digits = [int(words[0])]
    for operation in words[2:-1:2]:
        digits.append(apply_operation(operation, digits[-1]))
    return digits


class Proof(Chain):
    """Chains of 8 to 28 operations, few of them hard, where every line must be right.

    Nothing but working through the chain is rewarded, one slip loses everything, and three words in five do not
    matter: what a value model is for. The task of the miniature Table 1 (docs/protocol.md).
    """

    name = "proof"

    def __init__(self, spec: ChainSpec | None = None) -> None:
        super().__init__(
            spec or ChainSpec(min_steps=8, max_steps=28, long_tail=False, hard_share=0.15, every_line=True)
        )


TASKS: dict[str, Any] = {"chain": Chain, "proof": Proof}


def make_task(name: str, **options: Any) -> Any:
    """A task by its name: chain, proof, or one of `minivapo.math_tasks` (gsm8k, dapo-math, aime2024, jsonl:PATH …).

    Raises:
        UserError: there is no such task.
    """
    if name in TASKS:
        return TASKS[name]()
    from minivapo import math_tasks

    if name.partition(":")[0] not in math_tasks.MATH_TASKS:
        known = ", ".join([*TASKS, *math_tasks.MATH_TASKS])
        raise UserError(f"there is no task '{name}'; choose one of {known}.")
    return math_tasks.make_math_task(name, **options)


def load_task(name: str, options: dict[str, Any], model: str | None, max_prompt_tokens: int) -> tuple[Any, str]:
    """A task and the policy's model; mathematics tasks get its tokenizer, to render and to count prompts.

    Raises:
        UserError: there is no such task, its data cannot be read, or it has no default model.
    """
    from minivapo.local import load_tokenizer
    from minivapo.math_tasks import MATH_TASKS

    if name.partition(":")[0] not in MATH_TASKS:
        task = make_task(name, **options)
        return task, model or default_model(name)
    model = model or default_model(name)
    return make_task(name, **options, tokenizer=load_tokenizer(model), max_prompt_tokens=max_prompt_tokens), model


def default_model(task: str) -> str:
    """The embedded base of a task.

    Raises:
        UserError: the task has none.
    """
    from minivapo.base import BASES

    folder = BASES / ("chain" if task == "proof" else task)  # proof: the same words, other problems
    if not folder.exists():
        raise UserError(f"task '{task}' has no embedded base model: name one with --model, say Qwen/Qwen2.5-0.5B.")
    return str(folder)
