"""What is measured of a rollout: every metric is a ratio of sums over all ranks."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minivapo.interfaces import Metrics, Rollout, World


def reduce_sums(world: World, parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Sums dictionaries of equal keys over a list and over all ranks, in float64."""
    local = torch.tensor([[p[k] for k in parts[0]] for p in parts], dtype=torch.float64).sum(0)
    return dict(zip(parts[0], world.sum(local).tolist(), strict=True))


def explained_variance(rollout: Rollout, world: World, bins: int = 4) -> Metrics:
    """1 − Var(R − V)/Var(R) over all tokens of all ranks, and by quarter of the response.

    A ratio of *global* variances: averaging it over micro-batches would be another number. R is the
    Monte-Carlo return (γ = 1: the sum of the rewards still to come), whatever λ the targets use.
    """
    assert rollout.values is not None
    returns = rollout.rewards.flip(1).cumsum(1).flip(1).double()
    residual = returns - rollout.values.double()
    start = (rollout.totals - rollout.lengths)[:, None]
    where = ((torch.arange(rollout.tokens.shape[1]) - start) * bins // rollout.lengths[:, None]).clamp(0, bins - 1)
    rows = []
    for b in [*range(bins), None]:
        mask = rollout.mask if b is None else rollout.mask & (where == b)
        r, e = returns[mask], residual[mask]
        rows.append(torch.stack([mask.sum().double(), r.sum(), r.square().sum(), e.sum(), e.square().sum()]))
    n, r, rr, e, ee = world.sum(torch.stack(rows)).unbind(1)
    n = n.clamp(min=1)
    variance, left = rr / n - (r / n).square(), ee / n - (e / n).square()
    ev = torch.where(variance > 1e-12, 1 - left / variance.clamp(min=1e-12), 0.0).tolist()
    return {"value/explained_variance": ev[-1]} | {f"value/explained_variance_q{b + 1}": ev[b] for b in range(bins)}


def describe(rollout: Rollout, world: World) -> Metrics:
    """Metrics of a rollout before its update; each is explained in docs/metrics.md."""
    assert rollout.old_logprobs is not None and rollout.advantages is not None
    assert rollout.entropy is not None and rollout.mixed is not None
    mask, judged = rollout.mask, rollout.judged
    length = rollout.lengths.double()
    gap = torch.where(mask, rollout.old_logprobs - rollout.sampled_logprobs, 0).abs()
    a = rollout.advantages.double()
    sums = {
        "responses": float(len(rollout)),
        "judged": float(judged.sum()),
        "tokens": float(mask.sum()),
        "reward": float(rollout.rewards.sum()),
        "correct": float(rollout.correct.sum()),
        "length": float(length.sum()),
        "length_correct": float(length[rollout.correct].sum()),
        "truncated": float((~rollout.terminated).sum()),
        "entropy": float(torch.where(mask, rollout.entropy, 0).sum()),
        "gap": float(gap.sum()),
        "advantage": float(a.sum()),
        "advantage_square": float(a.square().sum()),
        "value": float(torch.where(mask, rollout.values, 0).double().sum()) if rollout.values is not None else 0.0,
        "mixed": float(rollout.mixed.sum()),
        "lam_zero": float((rollout.lam == 0).sum()) if rollout.lam is not None else 0.0,
    }
    s = reduce_sums(world, [sums])
    lam = torch.zeros(1) if rollout.lam is None else rollout.lam
    peaks = torch.stack([largest(gap), largest(-lam), largest(lam), largest(rollout.lengths)])
    gap_max, lam_min, lam_max, longest = world.max(peaks).tolist()
    n, tokens = s["responses"], max(s["tokens"], 1.0)
    advantage_mean = s["advantage"] / tokens
    metrics = {
        "reward/mean": s["reward"] / max(s["judged"], 1.0),
        "reward/accuracy": s["correct"] / max(s["judged"], 1.0),
        "reward/verifier_errors": 1 - s["judged"] / n,
        "reward/mixed_groups": s["mixed"] / n,
        "response/length": s["length"] / n,
        "response/length_correct": s["length_correct"] / max(s["correct"], 1.0),
        "response/length_wrong": (s["length"] - s["length_correct"]) / max(n - s["correct"], 1.0),
        "response/length_max": longest,
        "response/truncated": s["truncated"] / n,
        "response/tokens": s["tokens"],
        "policy/entropy": s["entropy"] / tokens,
        "policy/sampler_gap_mean": s["gap"] / tokens,
        "policy/sampler_gap_max": gap_max,
        "advantage/mean": advantage_mean,
        "advantage/std": math.sqrt(max(s["advantage_square"] / tokens - advantage_mean**2, 0.0)),
    }
    if rollout.values is not None:
        metrics |= {"advantage/lam_min": -lam_min, "advantage/lam_max": lam_max}
        metrics["advantage/lam_zero"] = s["lam_zero"] / n
        metrics |= {"value/mean": s["value"] / tokens, **explained_variance(rollout, world)}
    return metrics


def largest(x: Tensor) -> Tensor:
    """The maximum in float64; −∞ where there is nothing, as on a rank that holds no rows."""
    return x.double().max() if x.numel() else torch.tensor(-math.inf, dtype=torch.float64)


def evaluation_interval(every: int, steps: int, rollouts: float) -> int:
    """Steps from one evaluation to the next.

    Args:
        every: the configuration's `eval_every`.
        steps: of the run.
        rollouts: what one evaluation costs, in rollouts of training.

    Returns:
        `every`; if that is 0, as many as leave room for three evaluations between start and end, or for fewer, so that
        these cost at most a tenth of the run.
    """
    between = min(3, int(steps / 10 / rollouts))
    return every or max(1, -(-steps // (between + 1)))


class Clock:
    """Seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.seconds: Metrics = {}
        self.start = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Times a with-block under the name of its phase."""
        start = time.perf_counter()
        yield
        self.seconds[f"time/{phase}"] = time.perf_counter() - start

    def metrics(self, tokens: float) -> Metrics:
        """The phases, the total since the clock was made, and so many tokens per second of it."""
        total = time.perf_counter() - self.start
        return {**self.seconds, "time/total": total, "time/tokens_per_second": tokens / max(total, 1e-9)}
