"""A prompt computed once for all its responses gives the numbers and gradients of the plain pass, in every family."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_models import ARCHITECTURES, make_toy

from minivapo import passes
from minivapo.critics import value_head
from minivapo.interfaces import Sample, World, make_rollout
from minivapo.loading import load_actor, load_critic
from minivapo.local import LocalLearner
from minivapo.vapo import Config, actor_loss, count_tokens, critic_loss

STATES = {
    "Qwen 3.5", "Qwen 3 Next", "Granite 4 hybrid", "Falcon H1", "LFM 2", "Mamba", "Mamba 2", "Jamba",
}  # fmt: skip
"""Families that remember more than keys and values: their prompts are computed for each response."""


def rollout_of(prompt_lengths, lengths, of):
    """Random prompts, the one of each row, and random responses."""
    g = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, 250, (n,), generator=g).tolist() for n in prompt_lengths]
    samples = [Sample(torch.randint(5, 250, (n,), generator=g).tolist(), [-1.0] * n, True) for n in lengths]
    rollout = make_rollout([prompts[i] for i in of], samples, of, 0)
    rollout.advantages = torch.randn(rollout.tokens.shape, generator=g, dtype=torch.float64) * rollout.mask
    rollout.returns, rollout.values = rollout.advantages, torch.zeros_like(rollout.advantages)
    rollout.old_logprobs = rollout.sampled_logprobs - 1.0
    return rollout


ROLLOUT = ([3, 14, 9], [5, 1, 8, 12, 2, 7], [0, 0, 1, 1, 1, 2])


def pass_of(model, kind, rollout, monkeypatch, pays, price):
    """(outputs on response tokens, gradient) with prompts shared or not, and rows cut into pieces at some price."""
    monkeypatch.setattr(passes, "PAYS", pays)
    learner = LocalLearner(model, kind, Config(batch_size=8, mini_batch=8, max_grad_norm=1e12))
    learner.price = price
    counts = count_tokens(rollout, rollout, World())
    found = learner.forward(rollout)
    learner.step(rollout, (actor_loss if kind == "actor" else critic_loss)(learner.config, counts), 0.0)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {name: x[rollout.mask] for name, x in found.items()}, gradient


@pytest.fixture
def exact(float64, monkeypatch):
    """float64 throughout: norms of transformers go through float32, which rounds at another place."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("kind", ["actor", "critic"])
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in STATES])
def test_numbers_and_gradients_are_those_of_the_plain_pass(name, kind, tmp_path, monkeypatch):
    folder = make_toy(name, tmp_path)
    model = (load_actor if kind == "actor" else load_critic)(folder).double()
    model.set_experts_implementation("eager")  # the other one knows no float64
    if kind == "critic":
        torch.nn.init.normal_(value_head(model).weight, std=0.5, generator=torch.Generator().manual_seed(1))
    rollout = rollout_of(*ROLLOUT)
    assert LocalLearner(model, kind, Config()).shares
    plain, gradient = pass_of(model, kind, rollout, monkeypatch, 0.0, math.inf)
    assert gradient.norm() > 1e-3
    for pays, price in ((math.inf, math.inf), (math.inf, 0.0), (0.0, 0.0)):
        other, found = pass_of(model, kind, rollout, monkeypatch, pays, price)
        for key, x in plain.items():
            torch.testing.assert_close(other[key], x, rtol=0, atol=1e-10)
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", sorted(STATES))
def test_a_state_is_never_shared(name, tmp_path):
    assert not passes.attends_only(load_actor(make_toy(name, tmp_path)))


lengths_of_rows = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(lengths_of_rows, st.integers(0, 60))
def test_no_way_to_cut_rows_by_length_costs_less(lengths, price):
    sizes = torch.tensor(lengths)
    pieces = passes.cut(sizes, price)
    assert sorted(i for piece in pieces for i in piece) == list(range(len(lengths)))

    def tokens(parts):
        return sum(price + len(part) * max(part) for part in parts)

    ordered, places = sorted(lengths), range(1, len(lengths))
    ways = itertools.chain.from_iterable(itertools.combinations(places, n) for n in range(len(lengths)))
    cuts = ([ordered[a:b] for a, b in itertools.pairwise([0, *way, len(ordered)])] for way in ways)
    assert tokens([[lengths[i] for i in piece] for piece in pieces]) == min(map(tokens, cuts))


@given(lengths_of_rows)
def test_where_one_large_pass_is_best_rows_stay_together_and_in_order(lengths):
    assert passes.cut(torch.tensor(lengths), math.inf) == [list(range(len(lengths)))]


@pytest.mark.usefixtures("float64")
@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(2, 9), st.integers(0, 1), st.integers(1, 40), st.integers(0, 99)
)
def test_log_probs_have_the_gradient_of_a_softmax(rows, time, vocabulary, more, at_once, seed):
    g = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(rows, time + more, vocabulary, generator=g)).requires_grad_()
    targets, weights = torch.randint(vocabulary, (rows, time), generator=g), torch.randn(rows, time, generator=g)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "LOGITS_AT_ONCE", at_once)
        found = passes.token_scores(logits, targets, False)["logprobs"]
        (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
        entropy = passes.token_scores(logits, targets, True)["entropy"]
    softmax = torch.distributions.Categorical(logits=logits[:, :time])
    (expected,) = torch.autograd.grad((softmax.log_prob(targets) * weights).sum(), logits)
    torch.testing.assert_close(found, softmax.log_prob(targets), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, softmax.entropy(), rtol=0, atol=1e-12)


def test_half_precision_is_computed_with_in_float32():
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    targets = torch.zeros(2, 3, dtype=torch.long)
    found = passes.token_scores(logits, targets, False)["logprobs"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.log_softmax(logits.detach().float(), -1)[..., 0])
    found.sum().backward()
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16
