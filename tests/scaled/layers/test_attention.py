"""Attention over packed rows against the masked form, and the CUDA kernel's call as far as no GPU is needed for it."""

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, Qwen2Config

from minivapo.errors import UserError
from scaled.layers.attention import attend, attends_plainly

LENGTHS = (3, 1, 7, 5)
BOUNDS = torch.tensor([0, 3, 4, 11, 16], dtype=torch.int32)


def inputs(kv_heads, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, sum(LENGTHS), 8, generator=generator).to(dtype).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_rows_attend_as_under_a_block_diagonal_causal_mask(kv_heads, scaling):
    query, key, value = inputs(kv_heads)
    got, weights = attend(None, query, key, value, None, cu_seq_lens_q=BOUNDS, max_length_q=7, scaling=scaling)
    # The definition: softmax(q k / √d) over earlier tokens of the same row.
    row = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    seen = (row[:, None] == row[None]) & torch.ones(len(row), len(row)).tril().bool()
    wide = [x.repeat_interleave(4 // kv_heads, 1) for x in (key, value)]
    logits = query @ wide[0].transpose(-1, -2) * (scaling or 8**-0.5)
    expected = (logits.masked_fill(~seen, -torch.inf).softmax(-1) @ wide[1]).transpose(1, 2)
    assert weights is None and got.shape == (1, 16, 4, 8)
    torch.testing.assert_close(got, expected)
    grad = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad(got, (query, key, value), grad), torch.autograd.grad(expected, (query, key, value), grad),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_torchs_kernel_is_called_with_shapes_that_it_takes(kv_heads):
    """On tensors without contents: torch's own rules for shapes, forward and backward."""
    query, key, value = (
        torch.empty(1, heads, 16, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    )
    bounds = torch.empty(5, dtype=torch.int32, device="meta")
    got, _ = attend(None, query, key, value, None, cu_seq_lens_q=bounds, max_length_q=7, scaling=0.125)
    assert got.shape == (1, 16, 4, 64) and got.dtype == torch.bfloat16
    got.sum().backward()
    assert [x.grad.shape for x in (query, key, value)] == [x.shape for x in (query, key, value)]


def test_models_that_attend_in_another_way_are_told_apart():
    assert attends_plainly(LlamaConfig()) and attends_plainly(Qwen2Config())
    assert not attends_plainly(Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=2))
    assert not attends_plainly(AutoConfig.for_model("mistral", sliding_window=128))
    assert attends_plainly(AutoConfig.for_model("mistral", sliding_window=None))
    assert not attends_plainly(AutoConfig.for_model("gemma2")) and not attends_plainly(AutoConfig.for_model("gpt_oss"))
    query, key, value = inputs(4)
    with pytest.raises(UserError, match="sliding_window, which attention varlen does not"):
        attend(None, query, key, value, None, cu_seq_lens_q=BOUNDS, max_length_q=7, sliding_window=4)


@pytest.mark.cluster
def test_auto_chooses_by_the_model_and_never_raises(models):
    from minivapo.loading import load_actor
    from scaled.config import Settings
    from scaled.learner import attention_name

    model = load_actor(models / "qwen2-tied")
    for dtype in ("float32", "bfloat16"):
        assert attention_name(model, "actor", Settings(dtype=dtype)) == "varlen"
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert attention_name(model, "actor", Settings()) == "sdpa"
    with pytest.raises(UserError, match="attention is flash_attention_2"):
        attention_name(model, "actor", Settings(attention="flash_attention_2"))
