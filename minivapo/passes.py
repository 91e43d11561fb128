"""A learner's passes without the two wastes of a batch: prompts computed again for each response, and padding.

The keys and values of a prompt are made once and repeated for its rows; autograd sums what comes back from them. Rows
of like lengths go through the network together. Numbers and gradients are those of one plain pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from minivapo.caches import PLAIN, arguments, layers_of
from minivapo.critics import TokenScores
from minivapo.interfaces import Outputs, Rollout

LOGITS_AT_ONCE = 2**26
"""Logits whose softmax is taken at once: 256 MiB in fp32. With a vocabulary of 150,000 all would be many GB."""
PAYS = 0.85
"""Share of the plain passes' cost up to which prompts are computed apart."""
PRICE = 128
"""Tokens that one more pass costs on a CPU: 40 measured from 6 million parameters on, some 200 at 70,000."""


def cut(lengths: Tensor, price: float) -> list[list[int]]:
    """Rows in pieces of like length, as few padded tokens and passes as possible.

    Args:
        lengths: [rows].
        price: tokens that a pass costs besides its own; infinite: one piece.

    Returns:
        The rows of each piece; one piece of all rows has them in their order.
    """
    order = torch.argsort(lengths, stable=True).tolist()
    sizes = lengths[order].tolist()
    best = {0: (0.0, 0)}  # rows dealt with -> (their cost, where their last piece begins)
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or sizes[end - 1] < sizes[end]:  # a cut between equal lengths saves nothing
            best[end] = min((cost + price + (end - start) * sizes[end - 1], start) for start, (cost, _) in best.items())
    pieces, end = list[list[int]](), len(sizes)
    while end:
        pieces, end = [order[best[end][1] : end], *pieces], best[end][1]
    return pieces if len(pieces) > 1 else [list(range(len(sizes)))]


def cost(pieces: Sequence[Sequence[int]], lengths: Tensor) -> int:
    """Tokens that go through a network for rows in pieces, padding and the price of each pass included."""
    return sum(PRICE + len(piece) * int(lengths[piece].max()) for piece in pieces)


def attends_only(model: Any) -> bool:
    """Whether all that a model remembers are keys and values: a state cannot be continued for many tokens at once."""
    layers = layers_of(model)
    return bool(layers) and all(type(layer) in PLAIN for layer in layers)


class Prompts(NamedTuple):
    """The distinct prompts of some rows."""

    firsts: list[int]
    """The first row of each."""
    of: Tensor
    """[batch]: the place of each row's prompt in that list."""


def distinct_prompts(rows: Rollout) -> Prompts:
    """The prompts of these rows, known by their tokens."""
    places: dict[bytes, int] = {}
    firsts, of = [], []
    for i, start in enumerate((rows.totals - rows.lengths).tolist()):
        key = rows.tokens[i, :start].numpy().tobytes()
        if key not in places:
            places[key] = len(firsts)
            firsts.append(i)
        of.append(places[key])
    return Prompts(firsts, torch.tensor(of))


def cheapest(rows: Rollout, price: float, may_share: bool) -> tuple[list[list[int]], Prompts | None]:
    """How a micro-batch costs least: the rows of each pass, and its prompts where these are computed apart.

    Args:
        rows: a micro-batch.
        price: see `cut`.
        may_share: whether the model can compute prompts apart, see `attends_only`.
    """
    starts, whole = rows.totals - rows.lengths, cut(rows.totals, price)
    if may_share and len(rows) > 1 and int(starts.min()) > 0:
        prompts, apart = distinct_prompts(rows), cut(rows.lengths, price)
        if cost([prompts.firsts], starts) + cost(apart, rows.lengths) <= PAYS * cost(whole, rows.totals):
            return apart, prompts
    return whole, None


def plain_pass(model: Any, rows: Rollout, device: str, whole: bool) -> Tensor:
    """Outputs [rows, time, outputs] of a model after each token; if not whole, from one before the first response's."""
    tokens = rows.tokens.to(device)
    wanted = {} if whole else {"logits_to_keep": tokens.shape[1] - first_response(rows) + 1}
    attention = (torch.arange(tokens.shape[1]) < rows.totals[:, None]).to(device)
    return model(input_ids=tokens, attention_mask=attention, use_cache=False, **wanted).logits


def shared_passes(
    model: Any, rows: Rollout, pieces: list[list[int]], prompts: Prompts, device: str, whole: bool
) -> Iterator[Tensor]:
    """Outputs of a model after each token, prompts computed once; one tensor for each piece.

    Args:
        model: of transformers, see `attends_only`.
        rows: [batch], on the CPU.
        pieces: rows that go through the network together.
        prompts: those of the rows.
        device: where the model lives.
        whole: the outputs after every token, as a critic's losses want them.

    Yields:
        whole: [piece, time of its longest row, outputs]; else [piece, its longest response, outputs] for the tokens of
        the responses: from each row's last token of the prompt on.
    """
    firsts, of = prompts
    starts, tokens = (rows.totals - rows.lengths).to(device), rows.tokens.to(device)
    width = int(starts.max())
    column = torch.arange(width, device=device) - (width - starts[firsts])[:, None]
    known = (column >= 0).long()  # padding on the left: all responses begin in one column
    column = column.clamp(min=0)
    cache = Cache(layers=[DynamicLayer() for _ in layers_of(model)])
    # Our head hands on to the body whatever it is told, so that only the body shows the names.
    kind = type(model.base_model if issubclass(type(model), TokenScores) else model)
    told = arguments(kind, cache, known, column)
    wanted = {} if whole else {"logits_to_keep": 1}
    before = model(input_ids=tokens[firsts].gather(1, column), use_cache=True, **wanted, **told).logits
    for piece in pieces:
        mine, start = of[piece].to(device), starts[piece]
        length, total = int(rows.lengths[piece].max()), int(rows.totals[piece].max())
        outputs = before[mine]
        if not whole:  # nothing is asked after the last token
            length -= 1
        if length:
            past = Cache(layers=[copy.copy(layer) for layer in cache.layers])
            past.reorder_cache(mine)  # type: ignore[arg-type]  # any integer tensor
            column = start[:, None] + torch.arange(length, device=device)
            response = tokens[piece].gather(1, column.clamp(max=tokens.shape[1] - 1))
            told = arguments(kind, past, torch.cat([known[mine], torch.ones_like(response)], 1), column)
            outputs = torch.cat([outputs, model(input_ids=response, use_cache=True, **told).logits], 1)
        if whole:
            column = (width - start)[:, None] + torch.arange(total, device=device)
            place = column.clamp(max=width + length - 1)[..., None].expand(-1, -1, outputs.shape[-1])
            outputs = outputs.gather(1, place)
        yield outputs


def responses_of(rows: Rollout) -> Tensor:
    """[batch, longest response]: each row from its first response token on; behind its end anything."""
    column = (rows.totals - rows.lengths)[:, None] + torch.arange(int(rows.lengths.max()))
    return rows.tokens.gather(1, column.clamp(max=rows.tokens.shape[1] - 1))


def in_columns(x: Tensor, rows: Rollout) -> Tensor:
    """Moves [batch, longest response] to the columns of the rollout, [batch, time]; 0 in prompts and padding."""
    column = torch.arange(rows.tokens.shape[1])
    starts = rows.totals - rows.lengths
    inside = (column >= starts[:, None]) & (column < rows.totals[:, None])
    place = (column - starts[:, None]).clamp(0, x.shape[1] - 1)
    return torch.where(inside.to(x.device), x.gather(1, place.to(x.device)), 0)


def first_response(rows: Rollout) -> int:
    """The first column in which a response may begin: at 1, for nothing is known before the first token."""
    return max(1, int((rows.totals - rows.lengths).min()))


def joined(found: Sequence[Outputs], pieces: Sequence[Sequence[int]], rows: Rollout) -> Outputs:
    """The outputs of pieces, [piece, time], as those of all rows in their order, [rows, time]."""
    width, order = rows.tokens.shape[1], torch.tensor([i for piece in pieces for i in piece])

    def join(parts: list[Tensor]) -> Tensor:
        padded = torch.cat([nn.functional.pad(x, (0, width - x.shape[1])) for x in parts])
        return padded[torch.argsort(order).to(padded.device)]

    return {name: join([outputs[name] for outputs in found]) for name in found[0]}


def token_scores(logits: Tensor, targets: Tensor, entropy: bool) -> Outputs:
    """Log-probs of tokens and, without a gradient, entropies; all [rows, time].

    Args:
        logits: [rows, time or longer, vocabulary]; float16 and bfloat16 are computed with in float32.
        targets: [rows, time].
        entropy: whether entropies are wanted.
    """
    if not entropy:
        return {"logprobs": LogProbs.apply(logits, targets)}
    logprobs, entropies = [], []
    for some in spans(logits, targets):
        part = log_softmax(logits[:, some])
        logprobs.append(part.gather(-1, targets[:, some, None])[..., 0])
        entropies.append(-(part.exp() * part).sum(-1))
    return {"logprobs": torch.cat(logprobs, 1), "entropy": torch.cat(entropies, 1).detach()}


class LogProbs(torch.autograd.Function):
    """log π of targets from logits, keeping nothing of the vocabulary's size but the logits and their gradient.

    The softmax is taken for a few tokens at once and again in the backward pass, where
    ∂ log π(a)/∂ logits = onehot(a) − softmax.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        """[rows, time]."""
        ctx.save_for_backward(logits, targets)
        parts = [log_softmax(logits[:, x]).gather(-1, targets[:, x, None])[..., 0] for x in spans(logits, targets)]
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Of the logits."""
        (logits, targets), (gradient,) = ctx.saved_tensors, gradients
        found = torch.empty_like(logits)
        found[:, targets.shape[1] :] = 0
        for some in spans(logits, targets):
            weight = gradient[:, some, None]
            part = log_softmax(logits[:, some]).exp_().mul_(-weight)
            found[:, some] = part.scatter_add_(-1, targets[:, some, None], weight)
        return found, None


def spans(logits: Tensor, targets: Tensor) -> Iterator[slice]:
    """Columns of targets [rows, time], so many at once that their softmax fits into memory."""
    width = max(1, LOGITS_AT_ONCE // (len(logits) * logits.shape[-1]))
    yield from (slice(i, min(i + width, targets.shape[1])) for i in range(0, targets.shape[1], width))


def log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
