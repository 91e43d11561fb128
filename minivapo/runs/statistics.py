"""Intervals of a mean, by scipy: the bootstrap's, and Student's t where values are few.

Here and not in `study` because an evaluation states an interval too, and `study` stands above it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
"""Bootstrap resamples behind an interval."""


def bootstrap_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean: how far it would move with other values of the same kind.

    Args:
        values: one number for each problem, seed or other unit that is resampled. A single one is its own interval.
        level: coverage.
        seed: of the resampling.
    """
    from scipy import stats  # late: a command line should not wait a second for it

    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 1:  # nothing to resample: scipy refuses
        return float(sample[0]), float(sample[0])
    batch = max(1, 10**7 // len(sample))  # all resamples at once would be gigabytes for a large set
    low, high = stats.bootstrap(
        (sample,), np.mean, n_resamples=RESAMPLES, batch=batch, confidence_level=level, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(low), float(high)


def pass_rate_interval(rates: Sequence[float]) -> tuple[float, float]:
    """Interval of the mean pass rate at 95 %: the bootstrap's over problems.

    Where no problem was ever solved, or each one always, resampling finds nothing else, and 0 of 100 is no proof of 0:
    Wilson's interval of as many trials as there are problems then.

    Args:
        rates: one pass rate for each problem.
    """
    from scipy import stats

    if set(rates) not in ({0.0}, {1.0}):
        return bootstrap_interval(rates)
    found = stats.binomtest(round(sum(rates)), len(rates)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean: wider than the bootstrap's where values are few, and fairer.

    Args:
        values: at least two.
        level: coverage.
    """
    from scipy import stats

    sample = np.asarray(values, dtype=np.float64)
    mean, half = sample.mean(), stats.t.ppf((1 + level) / 2, len(sample) - 1) * stats.sem(sample)
    return float(mean - half), float(mean + half)
