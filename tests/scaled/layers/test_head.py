"""Models that do more than an output embedding on the last hidden state, and the value head's precision."""

import pytest
import torch
from toy_models import make_toy

from minivapo.critics import value_head
from minivapo.loading import load_actor, load_critic
from scaled.layers.head import CriticModule, changes_logits

OTHERS = {
    "Gemma 2": {}, "Granite": {}, "Cohere": {}, "Falcon H1": {"lm_head_multiplier": 0.5},
    "Granite 4 hybrid": {"logits_scaling": 3.0},
}  # fmt: skip
PLAIN = ["Llama", "Gemma 3", "Qwen 3 MoE", "GPT-2", "OPT", "Mamba 2", "DeepSeek V3 (MLA)", "Falcon H1"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_changes_its_logits_is_recognised(name, tmp_path):
    assert changes_logits(load_actor(make_toy(name, tmp_path, **OTHERS[name])))


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_model_is_left_as_it_is(name, tmp_path):
    model = load_actor(make_toy(name, tmp_path))
    tokens = torch.arange(5)[None]
    before = model(input_ids=tokens).logits
    assert not changes_logits(model)
    assert torch.equal(model(input_ids=tokens).logits, before)


def test_a_scale_before_the_output_embedding_is_recognised(tmp_path):
    model = load_actor(make_toy("Llama", tmp_path))
    model.lm_head.register_forward_pre_hook(lambda _, arguments: (arguments[0] / 2,))
    assert changes_logits(model)


def test_the_value_head_of_a_bf16_critic_computes_in_float32(tmp_path):
    critic = load_critic(make_toy("Llama", tmp_path), dtype=torch.bfloat16)
    module, head = CriticModule(critic), value_head(critic)
    torch.nn.init.normal_(head.weight, std=0.001)
    tokens = torch.arange(9)[None]
    found = module(tokens, tokens)
    hidden = critic.base_model(input_ids=tokens, position_ids=tokens).last_hidden_state[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (hidden.float() @ head.weight.float().T)[:, 0] + head.bias.float())
