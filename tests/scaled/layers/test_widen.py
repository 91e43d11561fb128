"""A model with wider heads is the same function, and stays so in training."""

import pytest
import torch
import transformers
from launch import ROOT

from minivapo.interfaces import UserError
from minivapo.loading import load_actor
from scaled.layers.widen import widen


def test_wider_heads_compute_the_same(tmp_path):
    base = ROOT / "minivapo" / "tasks" / "bases" / "chain"
    narrow = load_actor(base)
    assert narrow.config.head_dim < 32
    wide = load_actor(widen(base, tmp_path / "wide"))
    assert wide.config.head_dim == 32
    tokens = torch.randint(len(transformers.AutoTokenizer.from_pretrained(base)), (3, 50))
    torch.testing.assert_close(wide(tokens).logits, narrow(tokens).logits, atol=1e-4, rtol=1e-5)
    wide(tokens).logits.square().mean().backward()
    for name, p in wide.named_parameters():
        if any(part in name for part in ("q_proj", "k_proj", "v_proj", "o_proj")):
            assert (p.grad[p == 0] == 0).all(), name


def test_what_cannot_be_widened_is_refused(models, tmp_path):
    with pytest.raises(UserError, match="cannot be widened"):
        widen(models / "qwen2-tied", tmp_path / "wide")
