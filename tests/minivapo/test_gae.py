"""GAE and length-adaptive λ: against sums written out from their definitions, and numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from minivapo.vapo import gae, length_adaptive_lambda

pytestmark = pytest.mark.usefixtures("float64")

UNIT = st.floats(0, 1)
NUMBER = st.floats(-10, 10)


def sum_by_definition(rewards, values, mask, gamma, lam):
    """Â_t = Σ_l (γλ)^l δ_{t+l} over the tokens under the mask: a double sum, for one row of Python numbers."""
    places = [t for t, m in enumerate(mask) if m]
    advantages = [0.0] * len(mask)
    for i, t in enumerate(places):
        for length, j in enumerate(range(i, len(places))):
            here, following = places[j], places[j + 1 : j + 2]
            next_value = values[following[0]] if following else 0.0
            delta = rewards[here] + gamma * next_value - values[here]
            advantages[t] += (gamma * lam) ** length * delta
    return advantages


@st.composite
def batches(draw, masked=True, rows=4, width=10):
    """(rewards, values, mask, γ, λ per row), with gaps in the mask if `masked`."""
    b, t = draw(st.integers(1, rows)), draw(st.integers(1, width))

    def table(element):
        return torch.tensor(draw(st.lists(st.lists(element, min_size=t, max_size=t), min_size=b, max_size=b)))

    mask = table(st.booleans()) if masked else torch.ones(b, t, dtype=torch.bool)
    lam = torch.tensor(draw(st.lists(UNIT, min_size=b, max_size=b)))
    return table(NUMBER), table(NUMBER), mask, draw(UNIT), lam


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@given(batches())
def test_equals_the_double_sum_with_gaps_and_a_lambda_per_row(batch):
    rewards, values, mask, gamma, lam = batch
    rows = zip(rewards.tolist(), values.tolist(), mask.tolist(), lam.tolist(), strict=True)
    expected = torch.tensor([sum_by_definition(r, v, m, gamma, x) for r, v, m, x in rows])
    close(gae(rewards, values, mask, gamma, lam), expected)
    close(gae(rewards, values, mask.double(), gamma, lam), expected)  # a mask of 0.0 and 1.0 is a mask too


@given(batches())
def test_a_lambda_for_each_row_is_that_row_alone(batch):
    rewards, values, mask, gamma, lam = batch
    together = gae(rewards, values, mask, gamma, lam)
    for i in range(len(mask)):
        close(together[i : i + 1], gae(rewards[i : i + 1], values[i : i + 1], mask[i : i + 1], gamma, float(lam[i])))


@given(batches(masked=False))
def test_lambda_one_is_return_minus_value(batch):
    rewards, values, mask, gamma, _ = batch
    returns = torch.zeros_like(rewards)
    for t in range(rewards.shape[1]):
        discounts = torch.tensor([gamma**k for k in range(rewards.shape[1] - t)])
        returns[:, t] = (rewards[:, t:] * discounts).sum(1)
    close(gae(rewards, values, mask, gamma, 1.0), returns - values)


@given(batches(masked=False))
def test_lambda_zero_is_the_td_error(batch):
    rewards, values, mask, gamma, _ = batch
    next_values = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], 1)
    close(gae(rewards, values, mask, gamma, 0.0), rewards + gamma * next_values - values)


@given(batches(masked=False))
def test_undiscounted_sum_of_td_errors_telescopes(batch):
    """γ = λ = 1: all values but the first cancel, so the first advantage knows only the total and V(s_0)."""
    rewards, values, mask, _, _ = batch
    other = torch.cat([values[:, :1], values[:, 1:].flip(1) * 3 + 1], 1)
    first = gae(rewards, values, mask, 1.0, 1.0)[:, 0]
    close(first, rewards.sum(1) - values[:, 0])
    close(first, gae(rewards, other, mask, 1.0, 1.0)[:, 0])


@given(batches(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_stands_under_the_mask_is_never_read(batch, garbage):
    rewards, values, mask, gamma, lam = batch
    clean = gae(rewards, values, mask, gamma, lam)
    dirty = gae(torch.where(mask, rewards, garbage), torch.where(mask, values, garbage), mask, gamma, lam)
    assert torch.equal(clean, dirty)
    assert torch.equal(clean[~mask], torch.zeros(int((~mask).sum())))


@given(batches(), st.integers(0, 4), st.integers(0, 4), st.sampled_from([0.0, math.nan, 1e30]))
def test_padding_on_either_side_changes_nothing(batch, left, right, filling):
    rewards, values, mask, gamma, lam = batch

    def pad(x, value):
        return torch.nn.functional.pad(x, (left, right), value=value)

    wide = gae(pad(rewards, filling), pad(values, filling), pad(mask, 0), gamma, lam)
    assert torch.equal(wide[:, left : wide.shape[1] - right], gae(rewards, values, mask, gamma, lam))
    assert not wide[:, :left].any()
    assert not wide[:, wide.shape[1] - right :].any()


@given(batches())
def test_an_interior_gap_is_as_if_it_were_cut_out(batch):
    rewards, values, mask, gamma, lam = batch
    whole = gae(rewards, values, mask, gamma, lam)
    for i in range(len(mask)):
        m = mask[i]
        if m.any():
            short = gae(rewards[i, m][None], values[i, m][None], torch.ones(1, int(m.sum())), gamma, float(lam[i]))
            close(whole[i, m], short[0])


@given(batches(), NUMBER, NUMBER, st.randoms(use_true_random=False))
def test_linear_in_rewards_and_values_together(batch, a, b, random):
    rewards, values, mask, gamma, lam = batch
    rewards2, values2 = (torch.tensor([[random.uniform(-5, 5) for _ in row] for row in rewards]) for _ in range(2))
    mixed = gae(a * rewards + b * rewards2, a * values + b * values2, mask, gamma, lam)
    close(mixed, a * gae(rewards, values, mask, gamma, lam) + b * gae(rewards2, values2, mask, gamma, lam))
    without_values = torch.zeros_like(values)
    close(
        gae(rewards + rewards2, without_values, mask, gamma, lam),
        gae(rewards, without_values, mask, gamma, lam) + gae(rewards2, without_values, mask, gamma, lam),
    )


@given(NUMBER, NUMBER, UNIT, UNIT)
def test_one_token(reward, value, gamma, lam):
    close(gae(torch.tensor([[reward]]), torch.tensor([[value]]), torch.ones(1, 1), gamma, lam)[0, 0],
          torch.tensor(reward - value))  # fmt: skip


@given(batches(masked=False))
def test_no_whitening(batch):
    """Advantages keep the scale and offset of the rewards: ten times the reward, ten times the advantage."""
    rewards, values, mask, gamma, lam = batch
    close(gae(10 * rewards, 10 * values, mask, gamma, lam), 10 * gae(rewards, values, mask, gamma, lam))


def test_a_truncated_response_ends_there():
    """Choice: V = 0 after the last token, said EOS or cut; the value that stands in the padding is not bootstrapped."""
    rewards, mask = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[1, 1, 0]])
    cut = gae(rewards, torch.tensor([[0.25, 0.5, 0.9]]), mask, 1.0, 0.9)
    assert cut[0, 1] == 1.0 - 0.5
    close(cut[0, 0], torch.tensor((0.5 - 0.25) + 0.9 * 0.5))


def test_numbers_worked_out_by_hand():
    # r = (0, 0, 1), V = (0.5, 0.25, 0.75).
    # γ = 1, λ = 0.5.  δ_3 = 1 − 0.75 = 0.25;  δ_2 = 0 + 0.75 − 0.25 = 0.5;  δ_1 = 0 + 0.25 − 0.5 = −0.25.
    #   Â_3 = 0.25;  Â_2 = 0.5 + 0.5·0.25 = 0.625;  Â_1 = −0.25 + 0.5·0.625 = 0.0625.
    # γ = λ = 0.5.  δ_3 = 0.25;  δ_2 = 0.5·0.75 − 0.25 = 0.125;  δ_1 = 0.5·0.25 − 0.5 = −0.375.  γλ = 0.25.
    #   Â_3 = 0.25;  Â_2 = 0.125 + 0.25·0.25 = 0.1875;  Â_1 = −0.375 + 0.25·0.1875 = −0.328125.
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.75]])
    mask = torch.ones(1, 3)
    assert gae(rewards, values, mask, 1.0, 0.5).tolist() == [[0.0625, 0.625, 0.25]]
    assert gae(rewards, values, mask, 0.5, 0.5).tolist() == [[-0.328125, 0.1875, 0.25]]
    # With a gap after the first token and padding at the end the same three numbers move apart, and no more.
    nan = math.nan
    gap = gae(
        torch.tensor([[0.0, nan, 0.0, 1.0, nan]]), torch.tensor([[0.5, nan, 0.25, 0.75, nan]]),
        torch.tensor([[1, 0, 1, 1, 0]]), 1.0, 0.5,
    )  # fmt: skip
    assert gap.tolist() == [[0.0625, 0.0, 0.625, 0.25, 0.0]]


def test_reward_reaches_back_as_lambda_to_the_distance():
    """§3.1: with V = 0 a reward k steps ahead has weight λ^k; at λ = 0.95 and k = 100 it is 0.006."""
    rewards = torch.zeros(1, 101)
    rewards[0, -1] = 1
    advantages = gae(rewards, torch.zeros(1, 101), torch.ones(1, 101), 1.0, 0.95)
    assert advantages[0, 0].item() == pytest.approx(0.95**100, rel=1e-9)
    assert round(advantages[0, 0].item(), 3) == 0.006


@pytest.mark.parametrize(("gamma", "lam"), [(1.1, 1.0), (-0.1, 1.0), (1.0, 1.01), (1.0, -0.5), (math.nan, 1.0)])
def test_out_of_range_is_refused(gamma, lam):
    with pytest.raises(ValueError, match="must lie in"):
        gae(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2), gamma, lam)


def test_one_lambda_out_of_range_among_many_is_refused():
    with pytest.raises(ValueError, match="must lie in"):
        gae(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2, 2), 1.0, torch.tensor([0.5, 1.5]))


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        gae(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 3))


def test_inputs_are_left_alone():
    rewards, values, mask = torch.ones(1, 3), torch.ones(1, 3), torch.tensor([[1, 0, 1]])
    gae(rewards, values, mask, 0.9, 0.9)
    assert rewards.tolist() == values.tolist() == [[1, 1, 1]]
    assert mask.tolist() == [[1, 0, 1]]


# Length-adaptive λ (§4.2, eq. 4-5)

ALPHA = st.floats(0.001, 1)


@given(st.integers(1, 100_000), ALPHA)
def test_lambda_is_the_formula_clamped(length, alpha):
    lam = length_adaptive_lambda(torch.tensor([length]), alpha).item()
    assert 0 <= lam <= 1
    assert lam == pytest.approx(max(0.0, 1 - 1 / (alpha * length)), abs=1e-12)
    if alpha * length < 1:
        assert lam == 0


@given(st.lists(st.integers(1, 100_000), min_size=2, max_size=20), ALPHA)
def test_longer_responses_never_get_a_smaller_lambda(lengths, alpha):
    lam = length_adaptive_lambda(torch.tensor(sorted(lengths)), alpha)
    assert bool((lam.diff() >= 0).all())


@given(st.integers(1_000, 50_000), st.floats(0.01, 0.1))
def test_horizon_is_alpha_times_the_length(length, alpha):
    """Σ_t λ^t over the response ≈ α l (eq. 4)."""
    assume(alpha * length > 2)
    lam = length_adaptive_lambda(torch.tensor([length]), alpha)
    total = (lam ** torch.arange(length)).sum().item()
    assert total == pytest.approx(alpha * length, rel=1e-4)


def test_lambda_of_the_paper():
    # α = 0.05: l = 20 → 1 − 1/1 = 0;  l = 40 → 1 − 1/2 = 0.5;  l = 100 → 1 − 1/5 = 0.8;  l = 2000 → 1 − 1/100 = 0.99.
    lam = length_adaptive_lambda(torch.tensor([1, 20, 40, 100, 2000]), 0.05)
    close(lam, torch.tensor([0.0, 0.0, 0.5, 0.8, 0.99]))


@pytest.mark.parametrize("alpha", [0.0, -0.05, math.nan])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match="above 0"):
        length_adaptive_lambda(torch.tensor([10]), alpha)
