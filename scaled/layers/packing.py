"""Rows without padding: laid end to end for a network, and what it says of them back in padded rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Rows laid end to end, without padding.

    The position ids restart at 0 in each segment. With them alone, transformers' sdpa and eager attention build
    a block-diagonal causal mask, and flash attention takes the segment bounds: no token sees another segment.
    """

    tokens: Int[Tensor, "1 total"]
    positions: Int[Tensor, "1 total"]
    targets: Int[Tensor, " total"]
    """The next token of the same row; 0 after its last one, where the prediction is not read."""
    bounds: Int[Tensor, " segments_plus_1"]
    """Where segments start, and the end: cumulative lengths."""

    def attention(self) -> dict[str, Any]:
        """Segment bounds as flash attention's variable-length kernels take them."""
        bounds = self.bounds.to(torch.int32)
        longest = int(self.bounds.diff().max())
        return {
            "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest
        }  # fmt: skip


def pack(tokens: Int[Tensor, "batch time"], totals: Int[Tensor, " batch"], device: torch.device | str) -> Packed:
    """Packs padded rows of `totals` tokens each."""
    where = torch.arange(tokens.shape[1]) < totals[:, None]
    following = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], 1)
    following = torch.where(torch.arange(tokens.shape[1]) < totals[:, None] - 1, following, 0)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    bounds = torch.nn.functional.pad(totals.cumsum(0), (1, 0))
    return Packed(
        tokens[where][None].to(device), positions[where][None].to(device), following[where].to(device),
        bounds.to(device),
    )  # fmt: skip


def slice_of(packed: Packed, place: int, ranks: int) -> Packed:
    """A rank's equal share of the tokens, for ranks that share rows; the bounds stay those of all tokens.

    Where the ranks do not divide the tokens, a last segment that nobody reads fills up.
    """
    total = len(packed.targets)
    short = -total % ranks
    filler = torch.arange(short, device=packed.targets.device)
    n = (total + short) // ranks
    mine = slice(place * n, (place + 1) * n)
    return Packed(
        torch.cat([packed.tokens[0], filler * 0])[None, mine],
        torch.cat([packed.positions[0], filler])[None, mine],
        torch.cat([packed.targets, filler * 0])[mine],
        torch.cat([packed.bounds, packed.bounds[-1:] + short]) if short else packed.bounds,
    )


def unpack(x: Float[Tensor, " total"], totals: Int[Tensor, " batch"], width: int, shift: bool) -> Tensor:
    """Packed values as padded rows [batch, width]; differentiable.

    With `shift`, what was computed after token t goes to column t + 1 (it speaks of the next token), column 0
    is 0 and what comes after a row's last token is dropped.
    """
    columns = torch.arange(width, device=x.device)
    totals = totals.to(x.device)
    starts = torch.nn.functional.pad(totals.cumsum(0), (1, 0))[:-1]
    source = columns[None] - int(shift)
    read = (source >= 0) & (columns[None] < totals[:, None])
    return torch.where(read, x[(starts[:, None] + source).clamp(0, len(x) - 1)], 0)
