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
and rows of up to 2²⁰ tokens the error of token t is at most 2⁻²⁴ abs(Â_t) + 2⁻³⁰ scale_t, with

    scale_t = abs(r_t) + abs(V_t) + Σ_{k≥1} (γλ)^{k−1} (γ(1 − λ) abs(V_{t+k}) + γλ abs(r_{t+k})),

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

CPU_TOKENS = 2**18
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
    buffers = torch.empty(4, chunk + 1, rows, chunks, dtype=torch.float64, device=rewards.device)
    for first in range(0, batch, rows):
        part = slice(first, min(first + rows, batch))
        r, v, s, p = buffers[:, :, : part.stop - first]
        r, v = r[:-1], v[:-1]
        keep = torch.empty(r.shape, dtype=torch.bool, device=r.device)
        if time % chunk:
            keep[time % chunk :, :, -1] = False  # what fills up the last chunk of a row
        for chunked, padded in ((r, rewards), (v, values), (keep, mask)):
            for to, tokens in _same_tokens(chunked, padded[part]):
                to.copy_(tokens)
        linked = torch.ones_like(r[0])
        linked[:, -1] = 0
        of_chunk, after = lam[part].repeat_interleave(chunks), r.new_zeros(1)
        r_, v_, s_, p_, keep_ = (x.flatten(1) for x in (r, v, s, p, keep))
        _solve(r_, v_, s_, p_, keep_, of_chunk, linked.flatten(), after, gamma)
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

    # Every segment gets chunks of its own. How many in all is known only where cu_seqlens lives, so there is room
    # for the most there can be (the spare ones hold no token), and nothing waits for an accelerator.
    starts, lengths = starts.to(device, non_blocking=True), lengths.to(device, non_blocking=True)
    chunks = tokens // CHUNK + segments
    count = (lengths + CHUNK - 1) // CHUNK
    last = count.cumsum(0)
    begin = starts[:-1] - (last - count) * CHUNK  # plus CHUNK times its index: where a chunk's tokens begin
    index = torch.arange(chunks, device=device)
    owner = torch.searchsorted(last, index, right=True).clamp_(max=segments - 1)
    group = min(chunks, CPU_TOKENS // CHUNK) if device.type == "cpu" else chunks
    buffers = torch.empty(4, CHUNK + 1, group, dtype=torch.float64, device=device)
    keeps = torch.empty(CHUNK, group, dtype=torch.bool, device=device)
    step = torch.arange(CHUNK, device=device)[:, None]
    advantages = rewards.new_empty(tokens + 1)  # one more, where what is no token goes
    after = lam.new_zeros(1)
    for stop in range(chunks, 0, -group):
        part = slice(max(0, stop - group), stop)
        here = slice(0, stop - part.start)
        mine = owner[part]
        first = begin.index_select(0, mine) + index[part] * CHUNK
        left = starts.index_select(0, mine + 1) - first  # tokens of the segment from there on
        r, v, s, p = buffers[:, :, here]
        r, v = r[:-1], v[:-1]
        keep = keeps[:, here]
        # index_select and scatter_ on flat indices stay on one thread; x[index] and take do not.
        for j, is_token, reward, value in _pieces(step, keep, r, v):
            torch.gt(left, j, out=is_token)
            source = (first + j).clamp_(max=tokens - 1).flatten()
            reward.copy_(rewards.index_select(0, source).view(reward.shape))
            value.copy_(values.index_select(0, source).view(value.shape))
        linked = (left > CHUNK).double()
        after = _solve(r, v, s, p, keep, lam.index_select(0, mine), linked, after, gamma)
        for j, is_token, advantage in _pieces(step, keep, r):
            target = torch.where(is_token, first + j, tokens)
            advantages.scatter_(0, target.flatten(), advantage.to(rewards.dtype).flatten())
    return advantages[:tokens]


def _solve(
    r: Float[Tensor, "chunk chunks"],
    v: Float[Tensor, "chunk chunks"],
    s: Float[Tensor, "chunk+1 chunks"],
    p: Float[Tensor, "chunk+1 chunks"],
    keep: Bool[Tensor, "chunk chunks"],
    lam: Float[Tensor, " chunks"],
    linked: Float[Tensor, " chunks"],
    after: Float[Tensor, "1"],
    gamma: float,
) -> Float[Tensor, "1"]:
    """Turn rewards into advantages, in place; all float64, a column a chunk.

    Args:
        r: rewards; on return, advantages.
        v: values.
        s: room for S_t, and for what the end of the chunk is handed.
        p: room for the product of the coefficients from t to the end of the chunk.
        keep: the mask.
        lam: λ of each chunk.
        linked: 1 where the next chunk continues the same row, else 0.
        after: S of the token after the last chunk.
        gamma: discount per token.

    Returns:
        S of the first token.
    """
    zero, one = lam.new_zeros(()), lam.new_ones(())
    decay, bootstrap = gamma * lam, gamma * (1 - lam)
    for reward, value, handed, product, here in _pieces(r, v, s[:-1], p[:-1], keep):
        # where and not a multiplication: what is masked may be NaN, and 0 · NaN = NaN.
        torch.mul(value, bootstrap, out=handed).addcmul_(reward, decay)
        torch.where(here, handed, zero, out=handed)
        torch.where(here, decay, one, out=product)
        reward.sub_(value)
    s[-1], p[-1] = 0, 1
    s_rows, p_rows = s.unbind(), p.unbind()
    for j in range(len(r) - 2, -1, -1):  # every chunk as if the next one handed it 0
        s_rows[j].addcmul_(p_rows[j], s_rows[j + 1])
        p_rows[j].mul_(p_rows[j + 1])
    first = _suffix_scan(torch.cat([p[0] * linked, zero[None]]), torch.cat([s[0], after]))
    incoming = linked * first[1:]
    for advantage, handed, product, here in _pieces(r, s[1:], p[1:], keep):
        advantage.add_(handed).addcmul_(product, incoming)
        torch.where(here, advantage, zero, out=advantage)
    return first[:1]


def _suffix_scan(decay: Float[Tensor, " n"], source: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """S_i = source_i + decay_i S_{i+1}, in log₂ n steps; both arguments are overwritten."""
    step = 1
    while step < len(source):  # here source_i is the sum of `step` terms from i on, decay_i their product
        near = decay[:-step]
        source[:-step] = torch.addcmul(source[:-step], near, source[step:])
        decay[:-step] = near * decay[step:]
        step *= 2
    return source


def _pieces(*columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors of [chunk, …] into rows that one thread handles; a single piece on an accelerator."""
    rows = max(1, CPU_GRAIN // columns[-1].shape[1]) if columns[-1].device.type == "cpu" else CHUNK
    return zip(*(x.split(rows) for x in columns), strict=True)


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
