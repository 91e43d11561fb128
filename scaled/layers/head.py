"""Log-probabilities and entropy in chunks of tokens: [tokens, vocabulary] is never held whole."""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minivapo.critics import score_in_float32


class ChunkedLogProbs(torch.autograd.Function):
    """log softmax(h Wᵀ + b)[target] for each token, in fp32, with logits recomputed in the backward pass.

    Backward: ∂ log p_y / ∂ logits = 1[y] − softmax. The weight's gradient is summed in fp32 over chunks.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        """Returns log-probs and entropies (zeros unless asked for), [tokens] in fp32."""
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropies = torch.zeros_like(logprobs)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = nn.functional.linear(hidden[part], weight, bias).float()
            norm = logits.logsumexp(-1)
            logprobs[part] = logits.gather(-1, targets[part, None])[:, 0] - norm
            if entropy:
                entropies[part] = norm - (torch.exp(logits - norm[:, None]) * logits).sum(-1)
        ctx.save_for_backward(hidden, targets)
        # Kept as attributes: ZeRO-3 empties a saved weight after the forward pass and fills the *parameter* again
        # before the backward pass.
        ctx.weight, ctx.bias, ctx.chunk = weight, bias, chunk
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Gradients with respect to hidden, weight and bias."""
        hidden, targets = ctx.saved_tensors
        weight, bias = ctx.weight, ctx.bias
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        grad_bias = None if bias is None else torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = nn.functional.linear(hidden[part], weight, bias).float()
            delta = logits.softmax(-1).mul_(-grad[part, None])
            delta.scatter_add_(-1, targets[part, None], grad[part, None].to(delta.dtype))
            if grad_bias is not None:
                grad_bias += delta.sum(0)
            delta = delta.to(hidden.dtype)
            grad_hidden[part] = delta @ weight
            grad_weight += delta.T @ hidden[part]
        if grad_bias is not None:
            grad_bias = grad_bias.to(weight.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), grad_bias, None, None, None


def token_logprobs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Tensor | None,
    targets: Int[Tensor, " tokens"],
    chunk: int,
    entropy: bool = False,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """log π(target) and entropy of each token's distribution, in nats and fp32.

    Args:
        hidden: last hidden states.
        weight, bias: of the output embedding.
        targets: token ids.
        chunk: tokens whose logits are held at once.
        entropy: compute the entropies; without it they are 0. They carry no gradient.
    """
    return ChunkedLogProbs.apply(hidden, weight, bias, targets, chunk, entropy)


class PolicyModule(nn.Module):
    """A causal LM that returns log-probs and entropies of given next tokens instead of logits.

    The chunks run *inside* the output embedding's own forward, so that ZeRO-3 gathers its weight once a pass on
    every rank, however many chunks a rank has.
    """

    def __init__(self, model: Any, chunk: int) -> None:
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()
        head.forward = functools.partial(head_logprobs, head, chunk)

    def forward(
        self, tokens: Tensor, positions: Tensor, targets: Tensor, entropy: bool, **attention: Any
    ) -> tuple[Tensor, Tensor]:
        """[1, total] tokens and positions, [total] targets → log-probs and entropies [total]."""
        hidden = self.model.base_model(
            input_ids=tokens, position_ids=positions, use_cache=False, **attention
        ).last_hidden_state
        return self.model.get_output_embeddings()(hidden[0], targets, entropy)


def head_logprobs(head: nn.Linear, chunk: int, hidden: Tensor, targets: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
    """The forward of an output embedding under `PolicyModule`."""
    return token_logprobs(hidden, head.weight, head.bias, targets, chunk, entropy)


class Body:
    """Stands for what a network's body gives: these hidden states, and None for all else that a head may ask for."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor | None:
        return self.last_hidden_state if index == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


def changes_logits(model: Any) -> bool:
    """Whether a causal LM computes more than its output embedding on its body's last hidden state, as soft caps do.

    Its own forward is asked, between a body and an output embedding that give fixed numbers: no weight is read.
    """
    head, body = model.get_output_embeddings(), model.get_decoder()
    hidden, given = torch.ones(1, 1, 1), torch.linspace(-30, 30, 16)[None, None]  # [1, 1, 16]
    seen: list[Tensor] = []

    def give(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return given

    head.forward, body.forward = give, lambda *_, **__: Body(hidden)
    try:
        logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).logits
    finally:
        del head.forward, body.forward
    return not (torch.equal(logits.float(), given) and torch.equal(seen[0].float(), hidden))


class CriticModule(nn.Module):
    """A token classifier with one output; its head computes in fp32, for bf16 keeps three digits of a value."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        score_in_float32(model)

    def forward(self, tokens: Tensor, positions: Tensor, **attention: Any) -> Tensor:
        """[1, total] tokens and positions → scores [total] in fp32, V after each token."""
        logits = self.model(input_ids=tokens, position_ids=positions, use_cache=False, **attention).logits
        return logits[0, :, 0]
