"""What somebody who trains or reads a run should be told: settings and numbers with which a technique cannot act."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

FEW_PROMPTS = 8
"""Below so many prompts in a mini-batch its token count is that of a few prompts (the paper has 32)."""


def prompts_per_mini_batch(batch: int, group: int, mini_batch: int) -> float:
    """Prompts that a mini-batch of shuffled rows has on average.

    A prompt is missing when none of its `group` rows is among the `mini_batch` that are drawn out of `batch`.
    """
    missing = math.comb(batch - group, mini_batch) / math.comb(batch, mini_batch)
    return batch / group * (1 - missing)


def about_config(config: Mapping[str, Any]) -> list[str]:
    """Sentences on a run's configuration.

    Args:
        config: fields of `minivapo.vapo.Config`; of those that are missing nothing is said.
    """
    sizes = [config.get(name) for name in ("batch_size", "group_size", "mini_batch")]
    found = []
    if all(isinstance(size, int) and size > 0 for size in sizes):
        batch, group, mini_batch = (int(size) for size in sizes if size is not None)
        prompts = prompts_per_mini_batch(batch, group, mini_batch)
        if prompts < FEW_PROMPTS:
            found.append(
                f"A mini-batch of {mini_batch} responses has {prompts:.1f} prompts on average (the paper: 32), fewer "
                f"than {FEW_PROMPTS}: its loss is divided by the tokens of few prompts. Raise --mini-batch or lower "
                "--group-size."
            )
    return found


def about_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Sentences on one line of metrics."""
    if metrics.get("advantage/lam_zero", 0.0) >= 0.5:
        return [
            "The median λ of the policy is 0: most responses have no more than 1/α tokens, so that an advantage is one "
            "step's error, with all of the critic's noise. Raise --alpha (docs/lambda.md)."
        ]
    return []


def about_run(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """All sentences on a run, each once."""
    return list(dict.fromkeys([*about_config(config), *(text for line in lines for text in about_metrics(line))]))
