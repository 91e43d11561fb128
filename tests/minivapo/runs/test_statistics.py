"""Intervals of a mean against definitions written out here."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivapo.runs.statistics import bootstrap_interval, pass_rate_interval, t_interval


def test_bootstrap_interval_against_the_normal_approximation():
    rates = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(rates.tolist())
    half = 1.96 * rates.std() / math.sqrt(len(rates))
    assert low == pytest.approx(rates.mean() - half, abs=0.003)
    assert high == pytest.approx(rates.mean() + half, abs=0.003)
    assert bootstrap_interval([0.5] * 7) == (0.5, 0.5)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert bootstrap_interval(rates.tolist()) == (low, high)


@pytest.mark.once
@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.integers(0, 3))
def test_bootstrap_interval_is_that_of_means_of_redrawn_values(values, seed):
    generator = np.random.default_rng(seed)
    means = [np.asarray(values)[generator.integers(len(values), size=len(values))].mean() for _ in range(10_000)]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values, seed=seed) == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622), (20, 2.0930)])
def test_t_interval_uses_the_quantiles_of_the_printed_table(count, quantile):
    values = [float(i % 3) for i in range(count)]
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    low, high = t_interval(values)
    half = quantile * deviation / math.sqrt(count)
    assert (low, high) == pytest.approx((mean - half, mean + half), rel=1e-4)
    assert t_interval([2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize("n", [1, 30, 100])
def test_no_problem_solved_is_no_proof_that_none_can_be(n):
    """Against Wilson's formula: z² / (n + z²) is the upper end at 0 of n."""
    z2 = 1.959964**2
    assert pass_rate_interval([0.0] * n) == pytest.approx((0, z2 / (n + z2)), abs=1e-6)
    assert pass_rate_interval([1.0] * n) == pytest.approx((n / (n + z2), 1), abs=1e-6)


def test_a_pass_rate_between_has_the_interval_of_the_bootstrap():
    rates = [0.0, 1.0, 0.5, 0.25]
    assert pass_rate_interval(rates) == bootstrap_interval(rates)
