"""Causal attention within rows that lie end to end: no token sees another row, and no mask of [tokens, tokens] exists.

On CUDA in bfloat16 it is torch's own variable-length kernel (`torch.nn.attention.varlen`), which needs no package
besides; elsewhere torch's fused kernel runs row by row. Where the ranks share rows (`scaled.layers.ulysses`) the same
function attends.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from minivapo.interfaces import UserError

NAME = "varlen"
OTHER_WAYS = ("sliding_window", "softcap", "s_aux")
"""What transformers hands to an attention function of a model that attends in another way."""


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: None, *, cu_seq_lens_q: Tensor,
    max_length_q: int, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention within each packed row; [1, heads, tokens, width] → [1, tokens, heads, width].

    Args:
        module: of the model, for messages.
        query, key, value: key and value may have fewer heads.
        cu_seq_lens_q: where rows start, and the end; [rows + 1], int32, on the device.
        max_length_q: tokens of the longest row.
        options: of transformers.

    Raises:
        UserError: the model attends in another way.
    """
    for option in OTHER_WAYS:
        if options.get(option) is not None:
            raise UserError(f"{type(module).__name__} uses {option}, which attention {NAME} does not: use sdpa.")
    scale, grouped = options.get("scaling"), key.shape[1] != query.shape[1]
    on_cpu = query.device.type == "cpu"
    if not on_cpu and query.dtype in (torch.bfloat16, torch.float16):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        bounds = cu_seq_lens_q
        found = varlen_attn(
            q, k, v, bounds, bounds, max_length_q, max_length_q, scale=scale, window_size=(-1, 0), enable_gqa=grouped
        )
        assert isinstance(found, Tensor)
        return found[None], None
    if grouped and not on_cpu:  # the fused kernels for fp32 know no groups
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    rows = [
        scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], is_causal=True, scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        for start, end in itertools.pairwise(cu_seq_lens_q.tolist())
    ]  # fmt: skip
    return torch.cat(rows, 2).transpose(1, 2), None


# A name that transformers knows no mask for: it makes none.
AttentionInterface.register(NAME, attend)


def attends_plainly(config: Any) -> bool:
    """Whether a model's attention is causal and nothing else, by its transformers config."""
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if getattr(config, "layer_types", None) is None:
        windows = bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)
    return not windows and getattr(config, "attn_logit_softcapping", None) is None and config.model_type != "gpt_oss"
