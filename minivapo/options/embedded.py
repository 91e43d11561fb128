"""What the embedded tasks change in every preset, since their responses are a hundred times shorter than the paper's.

The paper's responses have some 5,000 tokens: its α = 0.05 is a horizon 1/(1 − λ) of 250 tokens, its fixed λ = 0.95 one
of 20. What has to stay when responses shrink is the horizon *in tokens against the critic's noise*, which enters an
advantage with weight 1/horizon, and the ratio 250 : 20 of the two. So α rises, and the fixed λ falls:

    task    tokens a response   α     horizon α·l   fixed λ   its horizon
    paper               5,000   0.05          250      0.95            20
    locks                  42   0.5            21      0.40           1.7
    chain                  40   0.5            20      0.38           1.6
    proof                 100   0.3            30      0.58           2.4
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")

LENGTHS: dict[str, dict[str, float]] = {
    "locks": {"alpha": 0.5, "lam": 0.40},
    "chain": {"alpha": 0.5, "lam": 0.38},
    "proof": {"alpha": 0.3, "lam": 0.58},
}
"""Task -> fields of the configuration, as in the table above."""

WITH_CRITIC = ("locks",)
"""Tasks whose base comes with its value-pretrained critic (§4.1: save that critic, start every run from it)."""


def fitted(config: T, task: str, critic: bool = False) -> T:
    """A preset's configuration with what a task changes in it; for a task that is not embedded, the same.

    Args:
        config: a `minivapo.vapo.Config`.
        task: its name.
        critic: whether the critic that comes with the base may take the place of value-pretraining.
    """
    fields: dict[str, Any] = dict(LENGTHS.get(task, {}))
    given: Any = config
    if critic and task in WITH_CRITIC and given.value_pretrain_steps and given.advantage == "gae":
        fields |= {"critic_init": "shipped", "value_pretrain_steps": 0}
    return dataclasses.replace(given, **fields)
