"""True values: what a prefix of a response is worth, computed from what is still to be done.

A response whose lines are all right so far succeeds with the product of the chances of the lines still to come, and one
with a wrong line fails; the chances are counted in the policy's own responses, by operation.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from minivapo.interfaces import Rollout
from minivapo.tasks.embedded import EmbeddedTask


class TrueValues:
    """Counts how often a policy does each thing, and tells the value of every prefix from it.

    Args:
        task: one whose prefixes have exact values: locks, proof.
        tokenizer: of the policy, one token per word.
        memory: weight of what was counted before, at each new rollout.

    Raises:
        ValueError: the task cannot tell the value of a prefix.
    """

    def __init__(self, task: EmbeddedTask, tokenizer: Any, memory: float = 0.8) -> None:
        if not task.exact_values:
            raise ValueError(f"{task.name} cannot tell the value of a prefix; use locks or proof")
        self.task, self.tokenizer, self.memory = task, tokenizer, memory
        self.tried: dict[str, float] = {}
        self.done: dict[str, float] = {}

    def watch(self, rollout: Rollout) -> torch.Tensor:
        """Values [rows, time] of the rollout's tokens, after its lines have been counted."""
        pending = [self.pending(rollout, i) for i in range(len(rollout))]
        self.count(pending, rollout.correct.tolist())
        return self.values(rollout, pending)

    def values(self, rollout: Rollout, pending: list[list[list[str] | None]] | None = None) -> torch.Tensor:
        """Values [rows, time] by what was counted so far."""
        pending = pending or [self.pending(rollout, i) for i in range(len(rollout))]
        values = torch.zeros(rollout.tokens.shape)
        for i, states in enumerate(pending):
            first = int(rollout.last[i]) + 1 - len(states)
            chances = [0.0 if keys is None else math.prod(map(self.chance, keys)) for keys in states]
            values[i, first : first + len(states)] = torch.tensor(chances)
        return values

    def pending(self, rollout: Rollout, row: int) -> list[list[str] | None]:
        """What is still to be done before each token of a response; None once a line is wrong."""
        last = int(rollout.last[row])
        tokens = rollout.tokens[row, last + 1 - int(rollout.lengths[row]) : last + 1].tolist()
        return self.task.pending(rollout.problems[row], self.tokenizer.convert_ids_to_tokens(tokens))

    def count(self, pending: list[list[list[str] | None]], correct: list[bool]) -> None:
        """Counts how often what came next was tried and was done."""
        for counts in (self.tried, self.done):
            for key in counts:
                counts[key] *= self.memory
        for states, right in zip(pending, correct, strict=True):
            seen: list[str] | None = None
            for t, keys in enumerate(states):
                if not keys or keys == seen:
                    continue
                seen = keys
                later = [len(k) for k in states[t + 1 :] if k is not None]
                self.tried[keys[0]] = self.tried.get(keys[0], 0.0) + 1
                self.done[keys[0]] = self.done.get(keys[0], 0.0) + (right or min(later, default=99) < len(keys))

    def chance(self, key: str) -> float:
        """How often it succeeds; one half when it was never tried."""
        return (self.done.get(key, 0.0) + 0.5) / (self.tried.get(key, 0.0) + 1)
