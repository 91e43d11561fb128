"""How far the reward reaches, and bias and variance of advantages over λ (VAPO §3.1, §3.2, §4.1, §4.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minivapo.interfaces import Engine, Rollout, Task, derive_seed, join
from minivapo.responses import pad_id
from minivapo.study.values import at_position, continue_prefixes, response_tokens
from minivapo.vapo import gae

# ---------------------------------------------------------------------------------------------------------
# How far the reward reaches
# ---------------------------------------------------------------------------------------------------------


def reward_weight(steps: Int[Tensor, " steps"], lam: float, gamma: float = 1.0) -> Float[Tensor, " steps"]:
    """Weight (γλ)^k of the final reward in the value target of the token k before the end (VAPO §3.1, §4.1).

    The target is V(s_t) + Â_t = (γλ)^k R + (values of later tokens, with the rest of the weight when γ = 1): with
    λ = 0.95 and k = 100 the reward is 0.6 % of what the critic learns from, and its own opinion the other 99.4 %.

    Args:
        steps: k ≥ 0 in tokens; 0 is the last token.
        lam: λ of the targets.
        gamma: discount per token.
    """
    return (gamma * lam) ** steps.double()


def measured_reward_weight(length: int, lam: float, gamma: float = 1.0, seed: int = 0) -> Float[Tensor, " length"]:
    """The same for every token of a response, read off `minivapo.vapo.gae`: what a reward of 1 adds to the targets.

    Args:
        length: tokens of the response.
        lam, gamma: of the targets.
        seed: of the critic's values, which are arbitrary: the target is linear in reward and values.

    Returns:
        Weights in the order of the tokens, the last one first reached by the reward.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(1, length, generator=generator, dtype=torch.float64)
    mask, none = torch.ones(1, length), torch.zeros(1, length, dtype=torch.float64)
    reward = none.clone()
    reward[0, -1] = 1
    return (gae(reward, values, mask, gamma, lam) - gae(none, values, mask, gamma, lam))[0]


# ---------------------------------------------------------------------------------------------------------
# Bias and variance of advantages
# ---------------------------------------------------------------------------------------------------------


@dataclass
class AdvantageProbe:
    """Tokens of real responses with sampled continuations from before and from after each of them.

    Depends on the policy alone: one probe serves any critic, λ and α.
    """

    lengths: Int[Tensor, " tokens"]
    """Length of the response that the token was taken from, in tokens."""
    positions: Int[Tensor, " tokens"]
    """t, counted from the start of the response."""
    n: int
    """Continuations on each side of each token."""
    rollout: Rollout
    """2 · tokens · n rows, each a whole response: first n for each token that go on from the state before it (and
    choose their own token there), then n for each that go on from after it."""

    @property
    def outcomes(self) -> Float[Tensor, "2 tokens n"]:
        """Outcomes (1 right, 0 wrong) of the continuations from before and from after the token."""
        return self.rollout.correct.view(2, -1, self.n).to(torch.get_default_dtype())

    @property
    def truth(self) -> Float[Tensor, " tokens"]:
        """A(s_t, a_t) = V(s_{t+1}) − V(s_t), as estimated from n continuations on either side."""
        before, after = self.outcomes.mean(2)
        return after - before


def choices(rollout: Rollout, logprobs: Float[Tensor, "batch time"], neutral: Sequence[int]) -> list[list[int]]:
    """For each response, the positions where the policy had a choice that may matter.

    These are tokens of probability below 0.9 that are not neutral words. Advantages of all others are close to 0,
    and a random token says little about how well advantages are estimated.

    Args:
        rollout: responses.
        logprobs: log π of their tokens, in nats.
        neutral: ids of tokens that are known not to matter.
    """
    fillers = torch.as_tensor(list(neutral), dtype=torch.long)
    where = rollout.mask & (logprobs < math.log(0.9)) & ~torch.isin(rollout.tokens, fillers)
    starts = (rollout.totals - rollout.lengths).tolist()
    ends = (rollout.lengths - 1).tolist()
    return [
        [c - start for c in row.nonzero()[:, 0].tolist() if c - start < end]
        for row, start, end in zip(where, starts, ends, strict=True)
    ]


def probe_advantages(
    engine: Engine, task: Task, rollout: Rollout, rows: Sequence[int], positions: Sequence[int], n: int, seed: int
) -> AdvantageProbe:
    """Samples what `advantage_errors` needs.

    Args:
        engine, task: see `continue_prefixes`.
        rollout: responses of the same policy, with their problems.
        rows, positions: the tokens: row of the rollout, and t in 0 … length − 2 (no state follows the last token).
        n: continuations before and after each token; even, at least 4.
        seed: of the sampling.

    Raises:
        ValueError: a position is out of range, or n is odd or too small.
    """
    lengths = rollout.lengths[torch.as_tensor(rows)]
    at = torch.as_tensor(positions)
    if n < 4 or n % 2 or not bool(((at >= 0) & (at < lengths - 1)).all()):
        raise ValueError(f"probe_advantages: n is {n} (even, ≥ 4), positions must lie in 0 … length − 2")
    problems = [rollout.problems[i] for i in rows]
    responses = [response_tokens(rollout, i) for i in rows]
    parts = []
    for shift in (0, 1):
        starts = [r[: t + shift] for r, t in zip(responses, positions, strict=True)]
        parts.append(continue_prefixes(engine, task, problems, starts, n, derive_seed(seed, shift)))
    return AdvantageProbe(lengths, at, n, join(parts, pad_id(engine.tokenizer)))


def probe_estimates(
    probe: AdvantageProbe,
    values: Float[Tensor, "batch time"],
    lam: float | Float[Tensor, " batch"],
    gamma: float = 1.0,
) -> Float[Tensor, "2 tokens n"]:
    """Â_t, from `minivapo.vapo.gae`, under every continuation from before and from after each probed token.

    Args:
        probe: from `probe_advantages`.
        values: a critic's values of `probe.rollout`, in reward units.
        lam: λ, one for all or one for each row of `probe.rollout` (as length-adaptive GAE gives it).
        gamma: discount per token.
    """
    rollout = probe.rollout
    advantages = gae(rollout.rewards, values, rollout.mask, gamma, lam)
    positions = probe.positions.repeat_interleave(probe.n).repeat(2).tolist()
    return at_position(advantages, rollout, range(len(rollout)), positions).view(2, -1, probe.n)


def advantage_errors(
    probe: AdvantageProbe,
    values: Float[Tensor, "batch time"],
    lam: float | Float[Tensor, " batch"],
    gamma: float = 1.0,
) -> dict[str, Float[Tensor, " tokens"]]:
    """Error of Â_t against the true advantage, token by token, in three parts (VAPO §3.2, §4.2).

    The error of one estimate, E (Â − A)², is the sum of three parts.

    - `variance`: of Â over the continuations after the token;
    - `baseline_squared`: (E[Â | s_t])², an error common to all actions of the state. As any baseline it does not
      turn the policy gradient; like variance it is noise, and averages out over samples;
    - `bias_squared`: (E[Â | s_t, a_t] − E[Â | s_t] − A)², the error in how actions compare. It alone remains
      however many samples there are; 0 for λ = 1, whatever the critic.

    The last two are free of the noise in A and in the means: each is estimated twice, from halves of the
    continuations that share nothing, and the two are multiplied (so single numbers can be negative, and means over
    tokens are unbiased). (Between bias and baseline there is a cross term, 0 on average over actions.)

    Args:
        probe, values, lam, gamma: see `probe_estimates`.

    Returns:
        Tensors over tokens: variance, baseline_squared, bias_squared, truth_square (A²), square (Â²) and product
        (Â A, for `cosine`).
    """
    estimates = probe_estimates(probe, values, lam, gamma).double()
    outcomes = probe.outcomes.double()
    half = probe.n // 2
    parts = []
    for s in (slice(half), slice(half, None)):
        before, after = estimates[..., s].mean(2)
        truth = outcomes[1, :, s].mean(1) - outcomes[0, :, s].mean(1)
        parts.append({"truth": truth, "baseline": before, "bias": after - before - truth, "estimate": after})
    one, two = parts
    return {
        "variance": estimates[1].var(1),
        "baseline_squared": one["baseline"] * two["baseline"],
        "bias_squared": one["bias"] * two["bias"],
        "truth_square": one["truth"] * two["truth"],
        "square": estimates[1].square().mean(1),
        "product": (one["estimate"] * two["truth"] + two["estimate"] * one["truth"]) / 2,
    }


def error_of_mean(errors: dict[str, Float[Tensor, " tokens"]], samples: int) -> float:
    """Squared error of the mean of so many estimates of one advantage: bias² + (variance + baseline²) / samples.

    A rollout sees the same decision many times, in other responses; what averages out matters less than what stays.

    Args:
        errors: from `advantage_errors`.
        samples: how often the decision is seen.
    """
    noise = errors["variance"].mean() + errors["baseline_squared"].mean()
    return float(errors["bias_squared"].mean() + noise / samples)


def cosine(errors: dict[str, Float[Tensor, " tokens"]]) -> float:
    """Cosine between single estimates and true advantages over tokens: 1 is the truth up to scale, 0 is noise.

    It does not change when all advantages are scaled, as learning rates or whitening do.

    Args:
        errors: from `advantage_errors`.
    """
    product, square, truth = (float(errors[k].mean()) for k in ("product", "square", "truth_square"))
    return product / math.sqrt(square * truth) if square > 0 and truth > 0 else 0.0
