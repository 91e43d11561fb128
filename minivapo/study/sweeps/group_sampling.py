"""Group sampling: a table of facts, learned with a critic from few prompts many times or many prompts once."""

from __future__ import annotations

from typing import Any

import numpy as np

from minivapo.interfaces import Problem, derive_seed
from minivapo.study.sweeps.machinery import Base, Sweep, last_quarter
from minivapo.tasks.embedded import EmbeddedTask


class Facts(EmbeddedTask):
    """128 keys, each with its own right answer among ten; the base guesses. The score is over all keys."""

    name = "facts"
    facts, answers = 128, 10

    def __init__(self) -> None:
        self.words = (*(f"k{i}" for i in range(self.facts)), "?", *(f"y{i}" for i in range(self.answers)))

    def problem(self, i: int) -> Problem:
        """The question for one key."""
        return Problem(f"k{i} ?", f"y{derive_seed('fact', i) % self.answers}", f"k{i}")

    def draw(self, key: tuple[object, ...], held_out: bool) -> Problem:
        """Any key: a table is learned, so training and test must share it."""
        return self.problem(derive_seed(*key) % self.facts)

    def train_problems(self, start: int, count: int, seed: int) -> list[Problem]:
        """Goes through all keys, in a new order each time."""
        numbers = range(start, start + count)
        orders = {
            c: np.random.default_rng(derive_seed("facts", seed, c)).permutation(self.facts)
            for c in {i // self.facts for i in numbers}
        }
        return [self.problem(int(orders[i // self.facts][i % self.facts])) for i in numbers]

    def is_correct(self, problem: Problem, response: str) -> bool:
        """The key's answer and nothing else."""
        return response.split() == [problem.answer]

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> list[str]:
        """A guess."""
        return [f"y{rng.integers(self.answers)}"]


def constants(group: float) -> dict[str, Any]:
    """512 responses whatever the group, 16 updates a rollout."""
    return {
        "batch_size": 512, "mini_batch": 32, "micro_batch": 512, "steps": 50, "warmup": 1, "length_adaptive": False,
        "lam": 1.0, "positive_coef": 0.0, "critic_init": "policy", "value_pretrain_steps": 3, "group_size": int(group),
        "value_pretrain_patience": 3, "actor_lr": 3e-4, "critic_lr": 1e-3, "max_prompt_tokens": 4, "max_new_tokens": 3,
        "eval_problems": 8,
    }  # fmt: skip


GROUP_SAMPLING = Sweep(
    name="group-sampling",
    technique="group sampling",
    axis="responses for each prompt, at 512 responses a rollout",
    points=(2, 4, 8, 16),
    arms={"group": {}, "one response a prompt": {"group_size": 1}, "group, no critic": {"advantage": "group"}},
    task=lambda group: Facts(),
    constants=constants,
    measure=lambda lines: {"score": last_quarter(lines, "reward/accuracy")},
    unit="accuracy over all facts",
    matters=(
        "With a critic nothing is compared within a group, so several responses to one prompt only mean fewer prompts."
    ),
    prediction=(
        "With a critic, responses of one prompt are independent given the prompt: a group changes nothing in the "
        "expected gradient and makes a rollout see fewer prompts: zero at best, a loss where groups are large."
    ),
    expected={2: 0.0, 4: 0.0, 8: 0.0, 16: 0.0},
    base=Base(steps=100),
    rates=(1.5e-4, 6e-4, 1.2e-3, 2.4e-3),
)
