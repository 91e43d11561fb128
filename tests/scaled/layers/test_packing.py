"""Packing and chunked log-probs: pure functions."""

import pytest
import torch

from scaled.layers.head import token_logprobs
from scaled.layers.packing import pack, unpack


def test_pack_and_unpack_by_hand():
    tokens = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0], [4, 3, 2, 1]])
    totals = torch.tensor([3, 2, 4])
    packed = pack(tokens, totals, "cpu")
    assert packed.tokens.tolist() == [[5, 6, 7, 8, 9, 4, 3, 2, 1]]
    assert packed.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert packed.targets.tolist() == [6, 7, 0, 9, 0, 3, 2, 1, 0]
    assert packed.bounds.tolist() == [0, 3, 5, 9]
    assert packed.attention()["max_length_q"] == 4
    x = torch.arange(1.0, 10.0)
    assert unpack(x, totals, 4, shift=False).tolist() == [[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 9]]
    assert unpack(x, totals, 4, shift=True).tolist() == [[0, 1, 2, 0], [0, 4, 0, 0], [0, 6, 7, 8]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunked_log_probs_are_those_of_log_softmax(bias, chunk):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator).requires_grad_() for n in (20, 30))
    offset = torch.randn(30, generator=generator).requires_grad_() if bias else None
    targets = torch.randint(30, (20,), generator=generator)
    grad = torch.randn(20, generator=generator)
    inputs = [x for x in (hidden, weight, offset) if x is not None]
    reference = torch.log_softmax(torch.nn.functional.linear(hidden, weight, offset), -1)
    expected = torch.autograd.grad(reference.gather(-1, targets[:, None])[:, 0], inputs, grad)
    logprobs, entropy = token_logprobs(hidden, weight, offset, targets, chunk, entropy=True)
    torch.testing.assert_close(logprobs, reference.gather(-1, targets[:, None])[:, 0])
    torch.testing.assert_close(entropy, -(reference.exp() * reference).sum(-1))
    for got, want in zip(torch.autograd.grad(logprobs, inputs, grad), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["varlen", "sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama-tied", "qwen2-untied"])
def test_packed_rows_do_not_see_each_other(models, attention, name):
    """The log-probs and gradients of a row are the same alone and beside other rows, in any place."""
    import scaled.layers.attention  # noqa: F401  # registers varlen
    from minivapo.loading import load_actor
    from scaled.layers.head import PolicyModule

    model = load_actor(models / name)
    model.set_attn_implementation(attention)
    policy = PolicyModule(model, chunk=5)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 64, (n,), generator=generator) for n in (1, 6, 9, 1, 4)]

    def run(index):
        width = max(len(rows[i]) for i in index)
        tokens = torch.stack([torch.nn.functional.pad(rows[i], (0, width - len(rows[i]))) for i in index])
        totals = torch.tensor([len(rows[i]) for i in index])
        packed = pack(tokens, totals, "cpu")
        bounds = packed.attention() if attention == "varlen" else {}
        out = policy(packed.tokens, packed.positions, packed.targets, False, **bounds)[0]
        values = unpack(out, totals, width, shift=True)
        place = index.index(2)
        model.zero_grad()
        (values[place] * torch.arange(width)).sum().backward()
        return values[place, : len(rows[2])].detach(), [p.grad.clone() for p in model.parameters()]

    alone, gradients = run([2])
    for index in ([1, 2], [2, 4, 1], [0, 3, 1, 2, 4]):
        beside, others = run(index)
        torch.testing.assert_close(beside, alone, atol=2e-6, rtol=1e-5)
        for a, b in zip(gradients, others, strict=True):
            torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)
