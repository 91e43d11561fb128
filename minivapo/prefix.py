"""A learner's pass that computes each prompt once for all its responses, with the gradient of the plain pass.

The keys and values of a prompt are made once and repeated for its rows; autograd sums what comes back from them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from minivapo.caches import PLAIN, arguments, layers_of
from minivapo.critics import TokenScores
from minivapo.interfaces import Rollout

PAYS = 0.85
"""Share of the plain pass' tokens, padding included, up to which two passes are faster than one."""


def attends_only(model: Any) -> bool:
    """Whether all that a model remembers are keys and values: a state cannot be continued for many tokens at once."""
    layers = layers_of(model)
    return bool(layers) and all(type(layer) in PLAIN for layer in layers)


def distinct_prompts(rows: Rollout) -> tuple[list[int], Tensor]:
    """The first row of each prompt, and for each row [batch] the place of its prompt in that list."""
    places: dict[bytes, int] = {}
    firsts, of = [], []
    for i, start in enumerate((rows.totals - rows.lengths).tolist()):
        key = rows.tokens[i, :start].numpy().tobytes()
        if key not in places:
            places[key] = len(firsts)
            firsts.append(i)
        of.append(places[key])
    return firsts, torch.tensor(of)


def pays(rows: Rollout, firsts: list[int]) -> bool:
    """Whether two passes compute so many tokens less than one that they are faster; padding counts."""
    starts = rows.totals - rows.lengths
    shared = len(firsts) * int(starts[firsts].max()) + len(rows) * int(rows.lengths.max())
    return int(starts.min()) > 0 and shared <= PAYS * rows.tokens.numel()


def shared_pass(model: Any, rows: Rollout, firsts: list[int], of: Tensor, device: str, whole: bool) -> Tensor:
    """Outputs of a model after each token, prompts computed once.

    Args:
        model: of transformers, see `attends_only`.
        rows: [batch], on the CPU.
        firsts, of: see `distinct_prompts`.
        device: where the model lives.
        whole: the outputs after every token, as a critic's losses want them.

    Returns:
        whole: [batch, time, outputs]; else [batch, longest response, outputs] for the tokens of the responses: from
        each row's last token of the prompt on.
    """
    starts, tokens = (rows.totals - rows.lengths).to(device), rows.tokens.to(device)
    of = of.to(device)
    width, length = int(starts.max()), int(rows.lengths.max())
    column = torch.arange(width, device=device) - (width - starts[firsts])[:, None]
    known = (column >= 0).long()  # padding on the left: all responses begin in one column
    column = column.clamp(min=0)
    cache = Cache(layers=[DynamicLayer() for _ in layers_of(model)])
    # Our head hands on to the body whatever it is told, so that only the body shows the names.
    kind = type(model.base_model if issubclass(type(model), TokenScores) else model)
    told = arguments(kind, cache, known, column)
    wanted = {} if whole else {"logits_to_keep": 1}
    outputs = model(input_ids=tokens[firsts].gather(1, column), use_cache=True, **wanted, **told)
    outputs = outputs.logits[of]
    if not whole:  # nothing is asked after the last token
        length -= 1
    if length:
        cache.reorder_cache(of)  # type: ignore[arg-type]  # any integer tensor
        column = starts[:, None] + torch.arange(length, device=device)
        response = tokens.gather(1, column.clamp(max=tokens.shape[1] - 1))
        told = arguments(kind, cache, torch.cat([known[of], torch.ones_like(response)], 1), column)
        outputs = torch.cat([outputs, model(input_ids=response, use_cache=True, **told).logits], 1)
    if not whole:
        return outputs
    column = (width - starts)[:, None] + torch.arange(tokens.shape[1], device=device)
    return outputs.gather(1, column.clamp(max=width + length - 1)[..., None].expand(-1, -1, outputs.shape[-1]))


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
