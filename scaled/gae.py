"""Generalised advantage estimation without a loop over time (VAPO §2, eq. 3).

The same answer as `minivapo.vapo.gae`, for long batches and for packed tokens. What was rearranged: let S_t
be what token t hands to the token before it, S_t = γ (V_t + λ Â_t). Then

    Â_t = r_t + S_{t+1} − V_t,      S_t = γ(1 − λ) V_t + γλ r_t + γλ S_{t+1},      S = 0 after the last token.

No token looks at a neighbour's value any more, so a masked token just hands on what it was handed,
S_t = S_{t+1}, and gaps need no compaction. The recurrence is solved on two levels: rows are cut into chunks of
`CHUNK` tokens, and all chunks of the batch step through their tokens together; what flows from chunk to
chunk is the same recurrence on tokens / CHUNK elements, solved by doubling in log₂ steps. Coefficients are
products of γλ ∈ [0, 1] and never their inverses, so λ = 0, λ = 1 and powers that underflow need no care.

**Rounding.** Everything is summed in float64 and rounded once to the dtype of the inputs. For float32 inputs
and rows of up to 2²⁰ tokens, with

    scale_t = |r_t| + |V_t| + Σ_{k≥1} (γλ)^{k−1} (γ(1 − λ) |V_{t+k}| + γλ |r_{t+k}|),

    |error_t| ≤ 2⁻²⁴ |Â_t| + 2⁻³⁰ scale_t,

which is half a unit in the last place and does not grow with the length. For float64 inputs the error is
(3n + 40) 2⁻⁵³ scale_t when n tokens follow: (γλ)ⁿ repeats the rounding of γλ n times, here as in any loop.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK = 16
"""Tokens a chunk: the price is CHUNK steps plus log₂(tokens / CHUNK), and short chunks waste less padding."""

CPU_TOKENS = 2**17
"""Tokens worked on at a time on a CPU (whole rows), so that the float64 buffers stay in its cache."""

CPU_GRAIN = 2**15 - 1
"""Largest operation that torch keeps on one thread; waking a second costs more than these operations."""


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Tensor,
    gamma: float = 1.0,
    lam: float | Float[Tensor, " batch"] = 1.0,
) -> Float[Tensor, "batch time"]:
    """Advantages of padded rows, equal to `minivapo.vapo.gae` (VAPO §2, eq. 3).

    Â_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V(s_{t+1}) − V(s_t), where t+1 is the next token under the
    mask and V = 0 after the last one.

    Args:
        rewards: r_t, in reward units; float32 or another floating dtype.
        values: V(s_t), in reward units, of the same dtype.
        mask: [batch, time], 0/1 in any dtype; 1 on response tokens. Where it is 0, rewards and values have no
            influence, NaN and infinities included; where it is 1 they must be finite.
        gamma: discount per token, in [0, 1].
        lam: λ in [0, 1]; a float, or one for each row.

    Returns:
        Advantages in reward units, 0 where the mask is 0, not whitened and without gradient.

    Raises:
        ValueError: shapes or devices differ, or γ or λ lies outside [0, 1]. A λ on an accelerator is checked there,
            without waiting for the answer: a bad one ends the process with a device-side assertion.
        TypeError: rewards and values are not of one floating dtype.
    """
    if rewards.ndim != 2 or not rewards.shape == values.shape == mask.shape:
        shapes = [tuple(x.shape) for x in (rewards, values, mask)]
        raise ValueError(f"gae: rewards, values and mask must share one shape [batch, time], got {shapes}")
    batch, time = rewards.shape
    lam = _check(rewards, values, gamma, lam, batch, "batch")
    if mask.device != rewards.device:
        raise ValueError(f"gae: mask is on {mask.device}, rewards on {rewards.device}")
    advantages = torch.empty_like(rewards, memory_format=torch.contiguous_format)
    if not advantages.numel():
        return advantages

    chunk = min(CHUNK, time)
    chunks = -(-time // chunk)  # of one row
    rows = min(batch, max(1, CPU_TOKENS // time)) if rewards.device.type == "cpu" else batch
    buffers = torch.empty(3, chunk, rows, chunks, dtype=torch.float64, device=rewards.device)
    linked = torch.ones(rows, chunks, dtype=torch.float64, device=rewards.device)
    linked[:, -1] = 0
    for first in range(0, batch, rows):
        part = slice(first, first + rows)
        r, v, products = buffers[:, :, : min(rows, batch - first)]
        keep = torch.zeros(r.shape, dtype=torch.bool, device=rewards.device)  # 0 past the end of a row
        for chunked, source in ((r, rewards), (v, values), (keep, mask)):
            for to, tokens in _same_tokens(chunked, source[part]):
                to.copy_(tokens)
        lam_part = lam[part, None].expand(r.shape[1:])
        flat = (x.flatten(1) for x in (r, v, products, keep))
        _solve(*flat, lam_part.flatten(), linked[: r.shape[1]].flatten(), gamma)
        for of, tokens in _same_tokens(r, advantages[part]):
            tokens.copy_(of)
    return advantages


@torch.no_grad()
def packed_gae(
    rewards: Float[Tensor, " tokens"],
    values: Float[Tensor, " tokens"],
    cu_seqlens: Int[Tensor, " boundaries"],
    gamma: float = 1.0,
    lam: float | Float[Tensor, " segments"] = 1.0,
) -> Float[Tensor, " tokens"]:
    """Advantages of segments packed one after the other, each as if it were alone (VAPO §2, eq. 3).

    Â_t = Σ_l (γλ)^l δ_{t+l} within the segment of t, V = 0 after its last token.

    Args:
        rewards: r_t, in reward units; float32 or another floating dtype.
        values: V(s_t), in reward units, of the same dtype.
        cu_seqlens: [segments + 1] of an integer dtype, where segments begin and end: 0 first, never decreasing
            (equal neighbours are an empty segment), the number of tokens last. It may stay on the CPU.
        gamma: discount per token, in [0, 1].
        lam: λ in [0, 1]; a float, or one for each segment.

    Returns:
        Advantages in reward units, not whitened and without gradient.

    Raises:
        ValueError: shapes or devices differ, γ or λ lies outside [0, 1], or cu_seqlens is not as above. What an
            accelerator holds is checked there, without waiting for the answer: a bad value ends the process with
            a device-side assertion.
        TypeError: rewards and values are not of one floating dtype, or cu_seqlens is not of an integer one.
    """
    if rewards.ndim != 1 or rewards.shape != values.shape:
        shapes = [tuple(x.shape) for x in (rewards, values)]
        raise ValueError(f"gae: packed rewards and values must share one shape [tokens], got {shapes}")
    if cu_seqlens.is_floating_point() or cu_seqlens.is_complex() or cu_seqlens.dtype == torch.bool:
        raise TypeError(f"gae: cu_seqlens must be of an integer dtype, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or not len(cu_seqlens):
        raise ValueError(f"gae: cu_seqlens must have shape [segments + 1], got {tuple(cu_seqlens.shape)}")
    tokens, segments, device = len(rewards), len(cu_seqlens) - 1, rewards.device
    lam = _check(rewards, values, gamma, lam, segments, "segments")
    starts = cu_seqlens.long()
    lengths = starts.diff()
    right = (starts[0] == 0) & (starts[-1] == tokens) & (lengths >= 0).all()
    _require(right, f"gae: cu_seqlens must rise from 0 to the number of tokens, {tokens}")
    if not tokens:
        return torch.empty_like(rewards)

    # Every segment gets chunks of its own. How many in all is known only where cu_seqlens lives, so the buffers
    # have room for the most there can be, and nothing waits for an accelerator.
    starts, lengths = starts.to(device, non_blocking=True), lengths.to(device, non_blocking=True)
    chunks = tokens // CHUNK + segments
    count = (lengths + CHUNK - 1) // CHUNK
    last = count.cumsum(0)
    segment = torch.arange(segments, device=device).repeat_interleave(lengths, output_size=tokens)
    offset = torch.arange(tokens, device=device) - starts[segment]
    place = offset % CHUNK * chunks + offset // CHUNK + (last - count)[segment]

    r, v, products = torch.zeros(3, CHUNK, chunks, dtype=torch.float64, device=device)
    keep = torch.zeros(CHUNK, chunks, dtype=torch.bool, device=device)
    r.view(-1)[place] = rewards.double()
    v.view(-1)[place] = values.double()
    keep.view(-1)[place] = True
    chunk = torch.arange(chunks, device=device)
    owner = torch.searchsorted(last, chunk, right=True).clamp(max=segments - 1)
    _solve(r, v, products, keep, lam[owner], (chunk + 1 < last[owner]).double(), gamma)
    return r.view(-1)[place].to(rewards.dtype)


def _solve(
    r: Float[Tensor, "chunk chunks"],
    v: Float[Tensor, "chunk chunks"],
    products: Float[Tensor, "chunk chunks"],
    keep: Bool[Tensor, "chunk chunks"],
    lam: Float[Tensor, " chunks"],
    linked: Float[Tensor, " chunks"],
    gamma: float,
) -> None:
    """Turn rewards into advantages, in place; all float64, a column a chunk.

    Args:
        r: rewards; on return, advantages.
        v: values.
        products: room for the coefficients from a token to the end of its chunk.
        keep: the mask.
        lam: λ of each chunk.
        linked: 1 where the next chunk continues the same row, else 0.
        gamma: discount per token.
    """
    zero, one = lam.new_zeros(()), lam.new_ones(())
    decay, bootstrap = gamma * lam, gamma * (1 - lam)
    handed, own = torch.zeros_like(lam), torch.empty_like(lam)  # S_{t+1} and the part of S_t that is t's own
    rows = list(zip(r.unbind(), v.unbind(), products.unbind(), keep.unbind(), strict=True))
    product = torch.ones_like(lam)
    for reward, value, reach, here in reversed(rows):
        reach.copy_(product)
        # where and not a multiplication: what is masked may be NaN, and 0 · NaN = NaN.
        torch.mul(value, bootstrap, out=own).addcmul_(reward, decay)
        torch.where(here, own, zero, out=own)
        step = torch.where(here, decay, one)
        reward.sub_(value).add_(handed)
        torch.addcmul(own, step, handed, out=handed)
        product.mul_(step)
    # So far every chunk was handed 0. What it is really handed comes from the next chunk of its row.
    incoming = torch.zeros_like(lam)
    torch.mul(_suffix_scan(product * linked, handed)[1:], linked[:-1], out=incoming[:-1])
    for advantage, _, reach, here in rows:
        advantage.addcmul_(reach, incoming)
        torch.where(here, advantage, zero, out=advantage)


def _suffix_scan(decay: Float[Tensor, " n"], source: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """S_i = source_i + decay_i S_{i+1}, in log₂ n steps; both arguments are overwritten."""
    step = 1
    while step < len(source):  # here source_i is the sum of the next `step` terms, decay_i their product
        source[:-step] = torch.addcmul(source[:-step], decay[:-step], source[step:])
        decay[:-step] = decay[:-step] * decay[step:]
        step *= 2
    return source


def _same_tokens(chunked: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair views of [chunk, rows, chunks] with views of [rows, time], token for token, in small pieces."""
    chunk, (_, time) = len(chunked), rows.shape
    whole, rest = divmod(time, chunk)
    piece = max(1, CPU_GRAIN // time) if rows.device.type == "cpu" else len(rows)
    for to, of in zip(chunked.split(piece, dim=1), rows.split(piece), strict=True):
        yield to[:, :, :whole], of[:, : time - rest].unflatten(1, (whole, chunk)).permute(2, 0, 1)
        if rest:
            yield to[:rest, :, -1], of[:, time - rest :].t()


def _check(
    rewards: Tensor, values: Tensor, gamma: float, lam: float | Tensor, n: int, axis: str
) -> Float[Tensor, " n"]:
    """Refuse what both functions refuse, and return λ as [n] in float64."""
    if rewards.dtype != values.dtype or not rewards.is_floating_point():
        raise TypeError(f"gae: rewards and values must share a floating dtype, got {rewards.dtype}, {values.dtype}")
    if rewards.device != values.device:
        raise ValueError(f"gae: values are on {values.device}, rewards on {rewards.device}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gae: gamma must lie in [0, 1], got {gamma}")
    if not isinstance(lam, Tensor):
        if not 0 <= lam <= 1:
            raise ValueError(f"gae: lam must lie in [0, 1], got {lam}")
        return torch.full((n,), lam, dtype=torch.float64, device=rewards.device)
    if lam.shape != (n,):
        raise ValueError(f"gae: lam must be a float or have shape [{axis}] = [{n}], got {tuple(lam.shape)}")
    _require(((lam >= 0) & (lam <= 1)).all(), "gae: every lam must lie in [0, 1]")
    return lam.to(rewards.device, torch.float64, non_blocking=True)


def _require(condition: Bool[Tensor, ""], message: str) -> None:
    """Raise where looking is free; on an accelerator leave an assertion in its queue and go on."""
    if condition.device.type != "cpu":
        torch._assert_async(condition, message)
    elif not condition:
        raise ValueError(message)
