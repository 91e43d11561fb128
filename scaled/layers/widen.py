"""The same Llama with wider attention heads: vLLM's CPU attention knows none under 32, and small models have them.

    python -m scaled.layers.widen FOLDER NEW_FOLDER

Each head of width d becomes one of width 2^n d that computes the same. Rotary pair i of d turns at the rate of pair
2^n i of 2^n d, so that is where its components go; the rest of q, k, v and the output projection is zero, and stays
zero in training, since its gradient is zero. Scores are divided by √(2^n d) instead of √d: q is scaled up for it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivapo.interfaces import UserError
from minivapo.loading import load_actor, load_tokenizer

NARROWEST = 32


def widen(source: str | Path, target: Path) -> Path:
    """Writes the widened model and its tokenizer to `target`.

    Raises:
        UserError: it is no Llama, or its heads cannot be widened.
    """
    model: Any = load_actor(source)
    old = model.config
    width = getattr(old, "head_dim", None) or NARROWEST + 1
    factor = NARROWEST // width
    if (
        old.model_type != "llama"
        or factor < 2
        or factor * width != NARROWEST
        or factor & (factor - 1)
        or old.attention_bias
    ):
        raise UserError(f"{source} cannot be widened: only a Llama with heads of 2, 4, 8 or 16 can.")
    if getattr(old, "rope_parameters", None) and old.rope_parameters.get("rope_type", "default") != "default":
        raise UserError(f"{source} cannot be widened: its rotary embedding is scaled.")
    config = type(old).from_dict({**old.to_dict(), "head_dim": NARROWEST})
    wide: Any = type(model)(config)
    with torch.no_grad():
        state = {name: convert(name, x, width) for name, x in model.state_dict().items()}
        wide.load_state_dict(state)
    wide.generation_config = model.generation_config
    wide.save_pretrained(target)
    load_tokenizer(source).save_pretrained(target)
    return target


def convert(name: str, x: Tensor, width: int) -> Tensor:
    """One tensor of the widened model."""
    part = name.rpartition(".weight")[0].rpartition(".")[2]
    if part == "q_proj":
        return spread(x, width) * (NARROWEST / width) ** 0.5
    if part in ("k_proj", "v_proj"):
        return spread(x, width)
    if part == "o_proj":
        return spread(x.T, width).T.contiguous()
    return x


def spread(x: Tensor, width: int) -> Tensor:
    """Rows [heads · width, …] to [heads · NARROWEST, …]: row i of a head's half goes to row factor · i of it."""
    factor = NARROWEST // width
    halves = x.view(-1, 2, width // 2, 1, x.shape[1])
    padded = torch.nn.functional.pad(halves, (0, 0, 0, factor - 1))
    return padded.reshape(-1, x.shape[1])


if __name__ == "__main__":
    print(widen(sys.argv[1], Path(sys.argv[2])))
