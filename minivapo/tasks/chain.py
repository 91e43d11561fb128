"""chain: run a small program on one digit, step by step. Long chains; one slip ruins the answer.

`proof` is the same with longer programs, where every line must be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minivapo.interfaces import Problem
from minivapo.tasks.embedded import EmbeddedTask

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
    about = (
        "A small program turns one digit into another, step by step, and the last digit is wanted; the response writes "
        "each step down. One slip, and all that follows starts from a wrong digit."
    )

    def __init__(self, spec: ChainSpec | None = None) -> None:
        self.spec = spec or ChainSpec()
        self.exact_values = self.spec.every_line  # else a wrong line can still be right in the end
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
    about = (
        "A small program turns one digit into another, step by step, and the response writes each step down. It is "
        "right only if every line is, as a proof is."
    )

    def __init__(self, spec: ChainSpec | None = None) -> None:
        super().__init__(
            spec or ChainSpec(min_steps=8, max_steps=28, long_tail=False, hard_share=0.15, every_line=True)
        )
