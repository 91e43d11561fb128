"""Losses and group advantages: what their gradients are, where clipping stops them, what they are divided by."""

import math

import numpy as np
import pytest
import torch
from fakes import on_ranks
from hypothesis import given
from hypothesis import strategies as st

from minivapo.interfaces import Sample, World, make_rollout
from minivapo.measure import explained_variance
from minivapo.vapo import (
    Config,
    actor_loss,
    estimate_advantages,
    group_advantages,
    loss_weights,
    overlong_penalty,
    policy_loss,
    positive_example_loss,
    value_loss,
    whiten,
)

pytestmark = pytest.mark.usefixtures("float64")


def draw_batch(seed, rows=4, width=7):
    """(logprobs, old_logprobs, advantages, mask, lengths): ragged rows, every row with at least one token."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=g)
    mask = torch.arange(width) < lengths[:, None]
    old = -torch.rand(rows, width, generator=g) * 3
    logprobs = old + 0.5 * torch.randn(rows, width, generator=g)
    return logprobs, old, torch.randn(rows, width, generator=g), mask, lengths


SEEDS = st.integers(0, 10_000)


@given(SEEDS, st.booleans())
def test_at_ratio_one_the_gradient_is_plain_policy_gradient(seed, token_level):
    _, old, advantages, mask, lengths = draw_batch(seed)
    logprobs = old.clone().requires_grad_()
    count = mask.sum() if token_level else torch.tensor(len(mask))
    policy_loss(logprobs, old, advantages, loss_weights(mask, lengths, token_level), count).backward()
    expected = torch.zeros_like(old)
    for i, length in enumerate(lengths.tolist()):
        for t in range(length):
            share = 1 / mask.sum().item() if token_level else 1 / (len(mask) * length)
            expected[i, t] = -share * advantages[i, t]
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-12, atol=1e-14)


@given(
    st.floats(0.05, 5), st.sampled_from([-2.0, -0.1, 0.1, 2.0]), st.floats(0.05, 0.5), st.floats(0.05, 0.9)
)  # fmt: skip
def test_clipping_stops_the_gradient_on_the_right_side(ratio, advantage, clip_low, clip_high):
    """A > 0: no gradient above 1 + ε_high, full gradient below, even under 1 − ε_low. A < 0: the mirror image."""
    edge = 1 + clip_high if advantage > 0 else 1 - clip_low
    if abs(ratio - edge) < 1e-6:
        return
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    one = torch.ones(1, 1)
    loss = policy_loss(logprobs, torch.zeros(1, 1), advantage * one, one, 1.0, clip_low, clip_high)
    loss.backward()
    stopped = ratio > edge if advantage > 0 else ratio < edge
    assert loss.item() == pytest.approx(-advantage * (edge if stopped else ratio), rel=1e-9)
    # d/dlogp of −A·exp(logp − old) is −A·ratio.
    assert logprobs.grad.item() == pytest.approx(0.0 if stopped else -advantage * ratio, rel=1e-9, abs=1e-12)


def test_clip_high_and_clip_low_are_not_exchanged():
    # ε_low = 0.2, ε_high = 0.28. Ratio 1.25 at A = 1 lies between 1.2 and 1.28: still moving. Ratio 0.75 at A = −1
    # lies between 1 − 0.28 and 1 − 0.2: already stopped.
    logprobs = torch.tensor([[math.log(1.25), math.log(0.75)]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0]])
    policy_loss(logprobs, torch.zeros(1, 2), advantages, torch.ones(1, 2), 1.0, 0.2, 0.28).backward()
    assert logprobs.grad.tolist() == [[pytest.approx(-1.25), 0.0]]


@given(SEEDS)
def test_policy_loss_is_the_clipped_surrogate_summed_out(seed):
    logprobs, old, advantages, mask, lengths = draw_batch(seed)
    total = 0.0
    for i, length in enumerate(lengths.tolist()):
        for t in range(length):
            ratio, a = math.exp(logprobs[i, t] - old[i, t]), advantages[i, t].item()
            total += min(ratio * a, min(max(ratio, 0.8), 1.28) * a) / length
    loss = policy_loss(logprobs, old, advantages, loss_weights(mask, lengths, False), 3.0, 0.2, 0.28)
    assert loss.item() == pytest.approx(-total / 3.0, rel=1e-12)


@given(SEEDS)
def test_token_and_sample_level_agree_at_equal_lengths(seed):
    logprobs, old, advantages, _, _ = draw_batch(seed)
    mask, lengths = torch.ones(4, 7, dtype=torch.bool), torch.full((4,), 7)
    token = policy_loss(logprobs, old, advantages, loss_weights(mask, lengths, True), mask.sum())
    sample = policy_loss(logprobs, old, advantages, loss_weights(mask, lengths, False), 4.0)
    # A mean of 28 terms |ρ Â|: at most 28 roundings of a partial sum in each of the two, whatever cancels.
    largest = (logprobs - old).exp().max().clamp(min=1) * advantages.abs().max()
    bound = 2 * 28 * torch.finfo(token.dtype).eps * largest.item()
    torch.testing.assert_close(token, sample, rtol=0, atol=bound)


def test_token_and_sample_level_differ_at_unequal_lengths():
    # Ratio 1. Row 1: one token, A = 1. Row 2: three tokens, A = −1 each.
    # Sample level: −(1 + (−1 − 1 − 1)/3)/2 = 0. Token level: −(1 − 3)/4 = 0.5: the long row weighs three times more.
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]]).bool()
    lengths, zeros = torch.tensor([1, 3]), torch.zeros(2, 3)
    advantages = torch.tensor([[1.0, 0, 0], [-1.0, -1.0, -1.0]])
    assert policy_loss(zeros, zeros, advantages, loss_weights(mask, lengths, False), 2.0).item() == pytest.approx(0)
    assert policy_loss(zeros, zeros, advantages, loss_weights(mask, lengths, True), 4.0).item() == pytest.approx(0.5)


@given(SEEDS, st.sampled_from([math.nan, 1e30, -math.inf]))
def test_padding_changes_neither_loss_nor_gradient(seed, garbage):
    logprobs, old, advantages, mask, lengths = draw_batch(seed)
    weights = loss_weights(mask, lengths, True)

    def losses(x, o, a):
        x = x.clone().requires_grad_()
        loss = policy_loss(x, o, a, weights, 5.0) + positive_example_loss(x, mask, 5.0)
        loss = loss + value_loss(x, a, mask, 5.0) + value_loss(x, a, mask, 5.0, o, 0.2)
        loss.backward()
        return loss.detach(), torch.where(mask, x.grad, 0), x.grad

    clean = losses(logprobs, old, advantages)
    dirty = losses(*(torch.where(mask, x, garbage) for x in (logprobs, old, advantages)))
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])
    assert torch.equal(dirty[2][~mask], torch.zeros(int((~mask).sum())))


@given(SEEDS)
def test_positive_loss_is_cross_entropy_on_correct_responses(seed):
    g = torch.Generator().manual_seed(seed)
    _, _, _, mask, _ = draw_batch(seed)
    logits = torch.randn(4, 7, 11, generator=g)
    tokens = torch.randint(0, 11, (4, 7), generator=g)
    correct = torch.rand(4, generator=g) < 0.5
    chosen = mask & correct[:, None]
    logprobs = torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
    loss = positive_example_loss(logprobs, chosen, int(chosen.sum()))
    if correct.any():
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[chosen], tokens[chosen]))
    else:
        assert loss.item() == 0


def test_positive_loss_without_a_correct_response_is_zero():
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    loss = positive_example_loss(logprobs, torch.zeros(2, 3, dtype=torch.bool), 0)
    loss.backward()
    assert loss.item() == 0
    assert logprobs.grad.tolist() == [[0.0] * 3] * 2


@given(SEEDS, st.floats(0, 0.5))
def test_value_loss_summed_out(seed, clip):
    values, old, returns, mask, lengths = draw_batch(seed)
    total = 0.0
    for i, length in enumerate(lengths.tolist()):
        for t in range(length):
            v, o, r = values[i, t].item(), old[i, t].item(), returns[i, t].item()
            error = (v - r) ** 2
            if clip > 0:
                error = max(error, (min(max(v, o - clip), o + clip) - r) ** 2)
            total += error
    assert value_loss(values, returns, mask, 6.0, old, clip).item() == pytest.approx(total / 12, rel=1e-10)


# Group advantages and the overlong penalty (GRPO, DAPO)


@given(
    st.integers(2, 6).flatmap(
        lambda n: st.lists(
            st.lists(st.tuples(st.sampled_from([0.0, 1.0, -1.0, 0.3]), st.booleans()), min_size=n, max_size=n),
            min_size=1,
            max_size=4,
        )
    )
)
def test_group_advantages_are_scores_within_each_group(groups):
    size = len(groups[0])
    rewards = torch.tensor([r for group in groups for r, _ in group])
    judged = torch.tensor([j for group in groups for _, j in group])
    found = group_advantages(rewards, judged, size).view(-1, size)
    for group, row in zip(groups, found.tolist(), strict=True):
        known = np.array([r for r, j in group if j])
        for (r, j), a in zip(group, row, strict=True):
            expected = (r - known.mean()) / (known.std() + 1e-6) if j else 0.0
            assert a == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.floats(-2, 2, width=32), st.integers(2, 9))
def test_equal_rewards_give_no_advantage_whatever_the_rounding(reward, size):
    """In float32 the mean of equal numbers is not always that number: the deviation must not blow the rest up."""
    rewards = torch.full((size,), reward, dtype=torch.float32)
    found = group_advantages(rewards, torch.ones(size, dtype=torch.bool), size)
    assert found.abs().max().item() < 1e-6


def test_group_advantages_by_hand():
    # Rewards 1, 0, 0, 0: mean 0.25, population deviation √(0.25·0.75) = 0.4330127.
    # 0.75/0.4330127 = 1.7320508; −0.25/0.4330127 = −0.5773503.
    found = group_advantages(torch.tensor([1.0, 0, 0, 0]), torch.ones(4, dtype=torch.bool), 4)
    torch.testing.assert_close(found, torch.tensor([1.7320508, -0.5773503, -0.5773503, -0.5773503]), rtol=1e-5, atol=0)


def test_overlong_penalty_by_hand():
    # Limit 100, buffer 20: nothing up to 80, −0.25 at 85, −0.5 at 90, −1 at 100.
    found = overlong_penalty(torch.tensor([1, 80, 85, 90, 100]), 100, 0.2)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, -0.25, -0.5, -1.0]))
    assert not overlong_penalty(torch.tensor([1, 100]), 100, 0).any()


# Losses on a rollout


def rollout_of(seed, rows=8):
    """A rollout of random tokens with everything that `actor_loss` reads; row 3 could not be judged."""
    g = torch.Generator().manual_seed(seed)
    prompts = [[3] * int(torch.randint(1, 4, (1,), generator=g)) for _ in range(rows)]
    samples = []
    for _ in range(rows):
        n = int(torch.randint(1, 9, (1,), generator=g))
        samples.append(Sample([4] * n, [-1.0] * n, True))
    rollout = make_rollout(prompts, samples, list(range(rows)), 0)
    rollout.correct = torch.rand(rows, generator=g) < 0.5
    rollout.judged[3] = False
    rollout.correct &= rollout.judged
    rollout.mask &= rollout.judged[:, None]
    rollout.rewards[torch.arange(rows), rollout.last] = rollout.correct.double()
    shape = rollout.tokens.shape
    rollout.old_logprobs = -torch.rand(shape, generator=g) * 2
    rollout.values = torch.rand(shape, generator=g)
    return rollout


def test_actor_loss_adds_the_parts_with_their_weights():
    """L = L_PPO + μ L_NLL + β KL, each written out here over the judged rows."""
    rollout = rollout_of(1)
    config = Config(positive_coef=0.3, kl_coef=0.05, mini_batch=8, batch_size=8)
    rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(config, rollout)
    noise = torch.randn(rollout.tokens.shape, generator=torch.Generator().manual_seed(5)) * 0.3
    rollout.ref_logprobs = rollout.old_logprobs - noise
    logprobs = rollout.old_logprobs + noise
    positive = rollout.mask & rollout.correct[:, None]
    tokens = float(rollout.mask.sum())
    counts = {"tokens": tokens, "responses": 7.0, "positive_tokens": float(positive.sum()), "teaching_tokens": tokens}
    loss, sums, maxima = actor_loss(config, counts)({"logprobs": logprobs}, rollout)
    ratio = noise.exp()
    a = rollout.advantages
    ppo = -torch.min(ratio * a, ratio.clamp(0.8, 1.28) * a)[rollout.mask].mean()
    nll = -logprobs[positive].mean()
    gap = (rollout.ref_logprobs - logprobs)[rollout.mask]
    kl = (gap.exp() - gap - 1).mean()
    torch.testing.assert_close(loss, ppo + 0.3 * nll + 0.05 * kl)
    torch.testing.assert_close(sums["loss_policy"], ppo)
    torch.testing.assert_close(sums["loss_positive"], nll)
    torch.testing.assert_close(sums["kl_reference"], kl)
    low = ((ratio < 0.8) & (a < 0))[rollout.mask].double().mean()
    high = ((ratio > 1.28) & (a > 0))[rollout.mask].double().mean()
    torch.testing.assert_close(sums["clip_low"].double(), low)
    torch.testing.assert_close(sums["clip_high"].double(), high)
    torch.testing.assert_close(maxima["ratio_max"], ratio[rollout.mask].max().clamp(min=1))


def test_importance_cap_weighs_tokens_by_learner_over_sampler():
    rollout = rollout_of(2)
    config = Config(importance_cap=2.0, positive_coef=0.0, mini_batch=8, batch_size=8)
    rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(config, rollout)
    tokens = float(rollout.mask.sum())
    counts = {"tokens": tokens, "responses": 7.0, "positive_tokens": 0.0, "teaching_tokens": tokens}
    loss, _, _ = actor_loss(config, counts)({"logprobs": rollout.old_logprobs}, rollout)
    weights = (rollout.old_logprobs - rollout.sampled_logprobs).exp().clamp(max=2)
    torch.testing.assert_close(loss, -(weights * rollout.advantages)[rollout.mask].mean())


def test_decoupled_gae_gives_the_critic_its_own_lambda():
    """§4.1: targets by λ_critic, advantages by λ_policy of each response; coupled, both by λ_policy."""
    from minivapo.vapo import gae, length_adaptive_lambda

    rollout = rollout_of(3)
    lam = length_adaptive_lambda(rollout.lengths, 0.5)
    rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(Config(alpha=0.5), rollout)
    torch.testing.assert_close(rollout.advantages, gae(rollout.rewards, rollout.values, rollout.mask, 1.0, lam))
    monte_carlo = rollout.rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(rollout.returns, torch.where(rollout.mask, monte_carlo, 0))
    advantages = rollout.advantages
    rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(
        Config(alpha=0.5, decoupled_gae=False), rollout
    )
    torch.testing.assert_close(rollout.advantages, advantages)
    torch.testing.assert_close(rollout.returns, torch.where(rollout.mask, advantages + rollout.values, 0))
    rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(
        Config(length_adaptive=False, lam=0.7), rollout
    )
    torch.testing.assert_close(rollout.advantages, gae(rollout.rewards, rollout.values, rollout.mask, 1.0, 0.7))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_whitening_is_over_all_tokens_of_all_ranks(size):
    whole = rollout_of(4)

    def work(world):
        part = whole.rows(range(world.rank, len(whole), world.size))
        advantages = estimate_advantages(Config(), part).advantages
        return whiten(advantages, part.mask, world)[part.mask]

    a = torch.cat(on_ranks(size, work))
    assert a.mean().item() == pytest.approx(0, abs=1e-9)
    assert a.std(correction=0).item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_explained_variance_is_a_ratio_of_global_variances(size):
    whole = rollout_of(6)
    rewards = whole.rewards.flip(1).cumsum(1).flip(1)[whole.mask].numpy()
    values = whole.values[whole.mask].numpy()
    expected = 1 - np.var(rewards - values) / np.var(rewards)

    def measure(world):
        return explained_variance(whole.rows(range(world.rank, len(whole), world.size)), world)

    parts = on_ranks(size, measure)
    assert all(p == parts[0] for p in parts)
    assert parts[0]["value/explained_variance"] == pytest.approx(expected, rel=1e-9)
    # The mean of the ranks' own explained variances would be another number.
    alone = [explained_variance(whole.rows(range(r, 8, 4)), World())["value/explained_variance"] for r in range(4)]
    assert abs(np.mean(alone) - expected) > 0.01


def test_explained_variance_by_quarter_of_the_response():
    rollout = make_rollout([[3], [3, 3]], [Sample([4] * 8, [0.0] * 8, True)] * 2, [0, 1], 0)
    rollout.rewards[torch.tensor([0, 1]), rollout.last] = torch.tensor([1.0, 0.0])
    rollout.values = torch.full(rollout.tokens.shape, 0.5)
    for row, start in ((0, 1), (1, 2)):  # the last two tokens of each response are predicted exactly
        rollout.values[row, start + 6 : start + 8] = 1.0 - row
    found = explained_variance(rollout, World())
    assert [found[f"value/explained_variance_q{b}"] for b in (1, 2, 3, 4)] == pytest.approx([0, 0, 0, 1], abs=1e-12)
    assert found["value/explained_variance"] == pytest.approx(0.25)
