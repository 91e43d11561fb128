"""What embedded tasks share: problems made on demand, split by a hash of the prompt, nothing to download."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minivapo.interfaces import Problem, derive_seed

HELD_OUT = 8
"""One prompt in so many is held out, decided by a hash of its text: training can never contain it."""


def is_held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the test split."""
    return hashlib.blake2b(prompt.encode(), digest_size=4).digest()[0] % HELD_OUT == 0


@dataclass(frozen=True)
class Recipe:
    """How a task's base model, and the critic that is shipped beside it, are made."""

    steps: int = 2000
    """Gradient steps on demonstrations."""
    lr: float = 3e-3
    """Their peak learning rate."""
    width: int = 64
    """Width of the network."""
    layers: int = 3
    """Its layers."""
    critic: bool = False
    """Whether a critic is pretrained on the base's responses and shipped."""


class EmbeddedTask:
    """Streams of made problems, split by a hash of the prompt. A subclass says what a problem is.

    Subclasses define `name`, `words` (the whole vocabulary), `make(rng)`, `is_correct(problem, response)`
    and `demonstrate(problem, rng)` (a noisy demonstration to train a base model on).
    """

    name = ""
    words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    about = ""
    """What a problem asks, for people, in one or two sentences."""
    recipe = Recipe()
    """How its base is made."""
    exact_values = False
    """Whether a prefix's value is the product of the chances of what is `pending`."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.words)} words)"

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

    def example(self) -> tuple[Problem, str | None]:
        """A short problem and a right response, to show people; None where no demonstration in a thousand is right."""
        problem = min((self.draw(("example", i), held_out=False) for i in range(16)), key=lambda p: len(p.prompt))
        for i in range(1000):
            response = " ".join(self.demonstrate(problem, np.random.default_rng(i)))
            if self.is_correct(problem, response):
                return problem, response
        return problem, None

    def pending(self, problem: Problem, tokens: Sequence[str]) -> list[list[str] | None]:
        """What is still to be done right before each token of a response; None once the answer is lost.

        Raises:
            NotImplementedError: the task cannot tell.
        """
        raise NotImplementedError

    def draw(self, key: tuple[object, ...], held_out: bool) -> Problem:
        """The problem that a key stands for, in the wanted split."""
        rng = np.random.default_rng(derive_seed(self.name, *key))
        while True:
            problem = self.make(rng)
            if is_held_out(problem.prompt) == held_out:
                return problem

    def train_problems(self, start: int, count: int, seed: int) -> list[Problem]:
        """See `minivapo.interfaces.Task.train_problems`."""
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
        """See `minivapo.interfaces.Task.judge`."""
        return [self.is_correct(p, r) for p, r in zip(problems, responses, strict=True)]
