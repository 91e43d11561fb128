"""Token-level loss: short and long problems that want different choices, in one mini-batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from minivapo.interfaces import Metrics, Problem, derive_seed
from minivapo.local import LocalEngine
from minivapo.study.sweeps.machinery import Base, Sweep, last_quarter
from minivapo.tasks.embedded import EmbeddedTask

KEYS = tuple("ABCDEFGHIJKLMNOP")


class Mix(EmbeddedTask):
    """`short A B ?` wants `red`, `long A B ?` wants `blue`: one of four colours, neutral words, `done`.

    A short response has 3 tokens with its end, a long one `ratio` times as many; a `share` of the problems is long.
    """

    def __init__(self, ratio: int, share: float = 0.5) -> None:
        self.ratio, self.share = ratio, share
        self.name = f"mix-{ratio}" + (f"-{share:g}" if share != 0.5 else "")
        self.colours = ("red", "blue", "green", "grey")
        self.words = (*KEYS, "?", "short", "long", *self.colours, "so", "done")

    def draw(self, key: tuple[object, ...], held_out: bool) -> Problem:
        """Sixteen keys leave only 512 prompts: training and test share them, since a rule is learned, not a table."""
        rng = np.random.default_rng(derive_seed("mix", held_out, *key))
        kind = "long" if rng.random() < self.share else "short"
        prompt = " ".join([kind, *(KEYS[i] for i in rng.integers(16, size=2)), "?"])
        return Problem(prompt, "blue" if kind == "long" else "red", prompt)

    def is_correct(self, problem: Problem, response: str) -> bool:
        """The right colour first, `done` last."""
        words = response.split()
        return len(words) > 1 and words[0] == problem.answer and words[-1] == "done"

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> list[str]:
        """Any colour, as often as another."""
        length = 3 if problem.answer == "red" else 3 * self.ratio
        return [str(rng.choice(self.colours)), *["so"] * (length - 3), "done"]


def watch(engine: LocalEngine) -> Metrics:
    """Accuracy of the rollout on each kind of problem."""
    rollout = engine.rollout
    assert rollout is not None
    right: dict[str, list[bool]] = {"red": [], "blue": []}
    for problem, verdict in zip(rollout.problems, rollout.correct.tolist(), strict=True):
        right[problem.answer].append(verdict)
    return {"short": float(np.mean(right["red"])), "long": float(np.mean(right["blue"]))}


def constants(ratio: float) -> dict[str, Any]:
    """256 responses, 16 updates a rollout; no horizon and no LM loss, which would act on lengths as well."""
    return {
        "batch_size": 256, "mini_batch": 16, "micro_batch": 256, "group_size": 1, "steps": 40, "length_adaptive": False,
        "lam": 1.0, "positive_coef": 0.0, "critic_init": "policy", "value_pretrain_steps": 8, "warmup": 1,
        "value_pretrain_patience": 8, "actor_lr": 1e-4, "critic_lr": 1e-3, "max_prompt_tokens": 8, "eval_problems": 8,
        "max_new_tokens": 3 * int(ratio) + max(2, int(ratio)),
    }  # fmt: skip


TOKEN_LOSS = Sweep(
    name="token-loss",
    technique="token-level loss",
    axis="length of long responses over short ones",
    points=(1, 4, 16),
    arms={"token": {"token_level_loss": True}, "sample": {"token_level_loss": False}},
    task=lambda ratio: Mix(int(ratio)),
    constants=constants,
    measure=lambda lines: {"score": last_quarter(lines, "long"), "score_short": last_quarter(lines, "short")},
    unit="accuracy on long problems",
    matters=(
        "It matters where responses have unequal lengths: per-sample means give a decision in a long response a "
        "fraction of the weight. At equal lengths both losses are the same."
    ),
    prediction=(
        "A sample-level loss gives a decision in a long response 1/ratio of the weight: no difference at ratio 1, "
        "and long problems not learned from ratio 4 on, since the short ones' habit takes the shared network first."
    ),
    expected={1: 0.0, 4: 0.7, 16: 0.9},
    watch=lambda task: watch,
    base=Base(steps=300),
    rates=(5e-5, 2e-4, 4e-4, 8e-4),
)

SHARE_OF_LONG = dataclasses.replace(
    TOKEN_LOSS,
    name="token-loss-share",
    technique="token-level loss, at length ratio 4",
    axis="share of long problems",
    points=(0.1, 0.5, 0.9),
    task=lambda share: Mix(4, share),
    constants=lambda share: constants(4),
    matters=(
        "Short problems pull the shared network with the larger weight while there are many of them: long ones that "
        "are nearly all of a batch are learned under either loss."
    ),
    prediction=(
        "Under a sample-level loss long problems weigh share/4 against 1 − share for short ones: less at a share of "
        ".1 and .5, about twice as much at .9. So a large difference at .5, about none at .9, and little at .1, where "
        "under the token-level loss too the short ones weigh more (.9 against 4 × .1)."
    ),
    expected=None,
)
