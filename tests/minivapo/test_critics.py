"""A critic of every family: transformers' own class where it has one, else its body under our head."""

import subprocess
import sys
import textwrap

import pytest
import torch
from toy import ToyTask
from toy_models import make_toy

from minivapo.critics import TokenScores, value_head
from minivapo.loading import load_critic
from minivapo.local import LocalEngine, LocalLearner
from minivapo.probe import probe
from minivapo.vapo import Config

PROBLEMS = ToyTask().test_problems(3)
SHORT = Config(max_prompt_tokens=60, max_new_tokens=20, micro_batch=6)
NONE_IN_TRANSFORMERS = (
    "Gemma 3",
    "OLMo 2",
    "OLMo 3",
    "Granite",
    "Cohere",
    "OPT",
    "Qwen 3.5",
    "LFM 2",
    "Falcon H1",
)


@pytest.mark.parametrize("name", NONE_IN_TRANSFORMERS)
def test_a_critic_of_a_family_without_a_token_classifier(name, tmp_path, caplog):
    """It starts at 0 with the policy's body, is probed as any other, and its checkpoint loads again."""
    folder = make_toy(name, tmp_path / "policy")
    engine = LocalEngine(folder, SHORT)
    probe(engine, PROBLEMS, SHORT)
    critic = engine.critic.model
    assert isinstance(critic, TokenScores) and not value_head(critic).weight.any() and "score.weight" in caplog.text
    body = dict(engine.actor.model.base_model.named_parameters()) | dict(engine.actor.model.base_model.named_buffers())
    assert all(torch.equal(p, body[n]) for n, p in critic.base_model.named_parameters())
    assert all(torch.equal(p, body[n]) for n, p in critic.base_model.named_buffers())
    torch.nn.init.normal_(value_head(critic).weight)
    engine.critic.save(tmp_path / "critic")
    caplog.clear()
    again = load_critic(tmp_path / "critic")
    assert not caplog.text
    tokens = torch.arange(2, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(input_ids=tokens).logits, critic(input_ids=tokens).logits)


@pytest.mark.parametrize("name", ["GPT-2", "Falcon", "BLOOM", "Mixtral"])
def test_a_critic_of_transformers_own_class(name, tmp_path):
    critic = load_critic(make_toy(name, tmp_path))
    assert not isinstance(critic, TokenScores) and not value_head(critic).weight.any()


def test_the_value_head_computes_in_float32_under_autocast(tmp_path):
    """Values near 0.9 that differ by 0.001 stay apart; bfloat16 has steps of 0.004 there."""
    critic = load_critic(make_toy("Llama", tmp_path))
    LocalLearner(critic, "critic", Config(), autocast=True)
    head = value_head(critic)
    torch.nn.init.constant_(head.bias, 0.9)
    hidden = torch.ones(1, 2, head.in_features, dtype=torch.bfloat16)
    torch.nn.init.constant_(head.weight, 0.001 / head.in_features)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(hidden)
    assert found.dtype == torch.float32 and found[0, 0, 0].item() == pytest.approx(0.901, abs=1e-5)


def test_critics_load_whatever_was_imported_before(tmp_path):
    """A policy's class of transformers first, in a new process: transformers then shows no submodule by its name."""
    code = f"""
        from transformers import LlamaForCausalLM
        from minivapo.loading import load_critic
        load_critic({str(make_toy("OLMo 2", tmp_path))!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=240, capture_output=True)
