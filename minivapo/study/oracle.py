"""A critic that need not learn: values computed from what is still to be done.

It shows what VAPO could reach with a perfect value model, the ceiling row of the miniature Table 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from minivapo.interfaces import LossFn, Metrics, Outputs, Rollout
from minivapo.tasks.embedded import EmbeddedTask
from minivapo.tasks.truth import TrueValues


class OracleCritic(TrueValues):
    """Stands where a critic stands (`minivapo.interfaces.Learner`); an update leaves it as it is.

    Args:
        task, tokenizer, memory: see `TrueValues`.
    """

    def __init__(self, task: EmbeddedTask, tokenizer: Any, memory: float = 0.8) -> None:
        super().__init__(task, tokenizer, memory)
        self.version = 0

    def forward(self, rollout: Rollout) -> Outputs:
        """Values [rows, time] of the rollout's tokens, after its lines have been counted."""
        values = self.watch(rollout)
        return {"values": values, "scores": values}

    def step(self, rollout: Rollout, loss_fn: LossFn, lr: float) -> tuple[Metrics, Metrics]:
        """Nothing to learn."""
        self.version += 1
        return {"loss": 0.0}, {"grad_norm": 0.0}

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """It has none."""
        yield from ()

    def save(self, folder: Path) -> None:
        """Writes the counts."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "counts.json").write_text(json.dumps([self.version, self.tried, self.done]))

    def load(self, folder: Path) -> None:
        """Takes back what `save` wrote."""
        self.version, self.tried, self.done = json.loads((folder / "counts.json").read_text())
