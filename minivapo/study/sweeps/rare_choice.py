"""Clip-higher and the positive-example loss: one right choice that the base rarely makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from minivapo.interfaces import Metrics, Problem, derive_seed
from minivapo.local import LocalEngine
from minivapo.study.sweeps.machinery import Sweep
from minivapo.tasks.embedded import EmbeddedTask

KEYS = tuple("ABCDEFGHIJKLMNOP")
ROLLOUTS = 40
"""Longest run; one that is not there by then counts as this many rollouts."""


class Rare(EmbeddedTask):
    """`A B ?` is answered by `think done`, always right, or by a guess, always wrong; the base thinks rarely."""

    def __init__(self, probability: float) -> None:
        self.probability, self.name = probability, f"rare-{probability:g}"
        self.words = (*KEYS, "?", "think", "guess", "hope", "skip", "copy", "done", "over")

    def draw(self, key: tuple[object, ...], held_out: bool) -> Problem:
        """Only 256 prompts: training and test share them, since one habit is learned, not a table."""
        rng = np.random.default_rng(derive_seed(self.name, held_out, *key))
        prompt = " ".join([*(KEYS[i] for i in rng.integers(16, size=2)), "?"])
        return Problem(prompt, "think done", prompt)

    def is_correct(self, problem: Problem, response: str) -> bool:
        """Only `think done`."""
        return response.split() == ["think", "done"]

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> list[str]:
        """The right choice with the task's probability."""
        if rng.random() < self.probability:
            return ["think", "done"]
        return [str(rng.choice(["guess", "hope", "skip", "copy"])), "over"]


def watch(engine: LocalEngine) -> Metrics:
    """Exact probability of the right choice after the update, mean over 128 of the rollout's prompts."""
    rollout = engine.rollout
    assert rollout is not None
    think = engine.tokenizer.convert_tokens_to_ids("think")
    rows = torch.arange(0, len(rollout), max(1, len(rollout) // 128))
    width = int((rollout.totals - rollout.lengths)[0])  # every prompt has as many tokens
    with torch.no_grad():
        logits = engine.actor.model(input_ids=rollout.tokens[rows, :width]).logits[:, -1]
    return {"probability": float(torch.softmax(logits.float(), -1)[:, think].mean())}


def rollouts_to_half(lines: Sequence[Metrics]) -> float:
    """Rollouts until the right choice has probability 1/2, interpolated in its logarithm; ROLLOUTS if never."""
    before = max(lines[0]["reward/accuracy"], 1e-4)
    for i, line in enumerate(lines):
        p = line["probability"]
        if p >= 0.5:
            return i + (math.log(0.5 / before) / math.log(p / before) if before < 0.5 < p else float(before < 0.5))
        before = p
    return float(ROLLOUTS)


def constants(point: float) -> dict[str, Any]:
    """1,024 responses, 64 updates a rollout, so that the clip is reached; λ = 1, since a response has 3 tokens."""
    return {
        "batch_size": 1024, "mini_batch": 16, "micro_batch": 1024, "group_size": 1, "steps": ROLLOUTS, "warmup": 1,
        "length_adaptive": False, "lam": 1.0, "critic_init": "policy", "value_pretrain_steps": 3,
        "value_pretrain_patience": 3, "actor_lr": 7e-5, "critic_lr": 1e-3, "max_prompt_tokens": 8, "max_new_tokens": 4,
        "eval_problems": 8,
    }  # fmt: skip


def measure(lines: Sequence[Metrics]) -> dict[str, float]:
    """Minus the rollouts that it took, the largest share of tokens clipped above, and the last entropy."""
    clipped = max(m["actor/clip_high"] for m in lines)
    return {"score": -rollouts_to_half(lines), "clipped_high": clipped, "entropy": lines[-1]["policy/entropy"]}


SHARED: dict[str, Any] = {
    "axis": "probability of the right choice under the base",
    "points": (0.3, 0.03, 0.003),
    "task": Rare,
    "constants": constants,
    "measure": measure,
    "unit": "minus the rollouts to a probability of 1/2",
    "gain": "rollouts saved",
    "watch": lambda task: watch,
    "rates": (3.5e-5, 1.4e-4),
    "stop": lambda lines: lines[-1]["probability"] >= 0.5,
}

CLIP_HIGHER = Sweep(
    name="clip-higher",
    technique="clip-higher",
    arms={
        "0.28": {"clip_high": 0.28, "positive_coef": 0.0},
        "0.20": {"clip_high": 0.20, "positive_coef": 0.0},
        "0.28 with LM loss": {"clip_high": 0.28, "positive_coef": 0.1},
        "0.20 with LM loss": {"clip_high": 0.20, "positive_coef": 0.1},
    },
    matters=(
        "It matters where the right choice is rare and each rollout pushes its probability up to the clip: then "
        "the higher bound lets it grow faster. The LM loss, which is not clipped, hides it."
    ),
    prediction=(
        "Growth of log p a rollout is at most log(1 + ε) plus about nine steps of Adam's momentum, .40 and .47 at this "
        "rate: saved rollouts are log(1/2p) (1/.40 − 1/.47), small at 30 % and largest at .3 %; hidden by the LM loss."
    ),
    expected={p: math.log(0.5 / p) * (1 / 0.40 - 1 / 0.47) for p in (0.3, 0.03, 0.003)},
    **SHARED,
)

POSITIVE_LOSS = Sweep(
    name="positive-loss",
    technique="positive-example loss",
    arms={
        "0.1": {"clip_high": 0.28, "positive_coef": 0.1},
        "0": {"clip_high": 0.28, "positive_coef": 0.0},
        "0.03": {"clip_high": 0.28, "positive_coef": 0.03},
        "0.3": {"clip_high": 0.28, "positive_coef": 0.3},
    },
    matters=(
        "It matters where correct responses are rare: the loss gives each of their tokens a weight of μ over the "
        "pass rate. Where a third of the responses are correct it does next to nothing."
    ),
    prediction=(
        "A token of a right response weighs μ over the pass rate in the LM loss, and is not clipped: the loss speeds "
        "training up where the pass rate is near or below μ, and does next to nothing at 30 %."
    ),
    **SHARED,
)
