"""Sequence parallelism by DeepSpeed's Ulysses: neighbouring ranks share each row, and each holds a slice of its tokens.

Everything but attention works on single tokens, so a rank needs only its slice. For attention the ranks of a group
trade tokens for heads (all-to-all), attend over whole rows with a share of the heads, and trade back.

Trap: `UlyssesSPAttentionHF.register_with_transformers` replaces the process's attention function by one that drops
the mask, so that rows packed together would see each other. Here the same module gets `scaled.layers.attention.attend`,
which keeps to the bounds of the rows, under a name of its own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AttentionInterface

from scaled.layers.attention import attend


@functools.lru_cache
def group_of(size: int) -> Any:
    """This rank's group of `size` neighbouring ranks. Collective."""
    groups = [dist.new_group(list(range(start, start + size))) for start in range(0, dist.get_world_size(), size)]
    return groups[dist.get_rank() // size]


def install(model: Any, size: int, name: str) -> str:
    """Registers Ulysses attention for a model with transformers, and returns the name to set it by. Collective."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    config = model.config
    heads = config.num_attention_heads
    attention = UlyssesSPAttentionHF(
        attn=attend,
        batch_size=1,
        attn_head_count=heads,
        attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        kv_head_count=getattr(config, "num_key_value_heads", None) or heads,
        num_hidden_layers=config.num_hidden_layers,
        process_group=group_of(size),
        seq_length_is_variable=True,
    )
    # A name that transformers knows no mask for: it makes none.
    AttentionInterface.register(name, attention.__call__)
    return name


class JoinSlices(torch.autograd.Function):
    """The whole of what every rank of a group has a slice of.

    All of them compute the same loss from it. So the gradient of a rank's own slice is there already, and the sum
    over ranks counts every token once.
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        """[tokens / ranks] → [tokens]."""
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, part.contiguous(), group)
        start = dist.get_rank(group) * len(part)
        ctx.mine = slice(start, start + len(part))
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The gradient's own slice."""
        return grad[ctx.mine], None
