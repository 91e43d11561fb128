"""What the four sweeps on locks share: bases, critics, and the constants of the regime."""

from __future__ import annotations

from typing import Any

from minivapo.study.sweeps.machinery import Base
from minivapo.tasks.locks import Locks, LocksSpec

BASE = Base(
    task=lambda: Locks(LocksSpec(min_locks=1, talk=(0, 1, 3, 8), delay=(0, 0, 0, 3, 12)), name="locks-every-kind"),
    steps=1000,
    width=48,
    layers=2,
    lr=4e-3,
)
"""One base serves every number of neutral words and every delay."""

CRITIC: dict[str, Any] = {
    "critic_init": "policy", "batch_size": 512, "mini_batch": 16, "micro_batch": 64, "group_size": 1,
    "critic_epochs": 2, "value_pretrain_steps": 8, "value_pretrain_patience": 8, "value_pretrain_lr": 1e-3,
}  # fmt: skip
"""Value-pretraining of the critic that each base gets once at each point: 4,096 responses, two passes."""


def five_locks(talk: int) -> Locks:
    """Five locks with so many neutral words before each."""
    return Locks(LocksSpec(min_locks=5, max_locks=5, talk=(talk,)), name=f"locks-5-talk{talk}")


def constants(longest: int) -> dict[str, Any]:
    """96 responses = 12 prompts × 8, four updates a rollout, ten prompts or more in each mini-batch.

    Args:
        longest: tokens of the longest right response.
    """
    return {
        "batch_size": 96, "mini_batch": 24, "micro_batch": 96, "group_size": 8, "steps": 16, "warmup": 8, "alpha": 0.3,
        "critic_init": "shared", "value_pretrain_steps": 0, "actor_lr": 4e-4, "critic_lr": 8e-4, "eval_problems": 8,
        "max_prompt_tokens": 24, "max_new_tokens": longest + 16,
    }  # fmt: skip
