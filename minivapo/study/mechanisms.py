"""What each repair of VAPO acts on, measured against the truth.

A score says whether a part helps; this file measures *why* it should. In a task with a verifier, the true value
of any prefix can be had by sampling the policy on from it many times, so value and advantage estimates can be
compared with what they estimate. The notebooks and `benchmarks/mechanisms.py` call these functions.

    1 true value of a prefix                 §2        `true_values`
    2 bias of a critic along the response    §3.1      `value_bias`
    3 how far the reward reaches             §3.1 §4.1 `reward_weight`
    4 bias and variance of advantages over λ §3.2 §4.2 `choices`, `probe_advantages`, `advantage_errors`
    5 gradient share by response length      §4.2      `gradient_share`
    6 who is clipped                         §4.3      `clipped_share`, `probability_ceiling`
    7 sparse rewards                         §3.3 §4.3 `mixed_share`, `samples_to_successes`, `ProblemSet`
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from minivapo.interfaces import Engine, Problem, Rollout, Task, derive_seed, join
from minivapo.responses import Draw, as_rollout, pad_id, respond
from minivapo.vapo import (
    Config,
    collect,
    critic_loss,
    estimate_advantages,
    gae,
    loss_weights,
    reward_model_loss,
    update,
)

VERIFIER_TIMEOUT = 300.0
"""Seconds for the verdicts of one call."""

# ---------------------------------------------------------------------------------------------------------
# 1  True value of a prefix
# ---------------------------------------------------------------------------------------------------------


def continue_prefixes(
    engine: Engine, task: Task, problems: Sequence[Problem], prefixes: Sequence[Sequence[int]], n: int, seed: int
) -> Rollout:
    """Samples the policy on from unfinished responses, and judges what comes out.

    The continuation is that of the policy as it is used in training (temperature 1, top-p 1, the same length
    limit for prefix and continuation together), so a mean over continuations estimates a value without bias.

    Args:
        engine: whose actor is sampled; its sampler must hold the actor's weights (`sampler.sync`).
        task: judges the whole responses.
        problems: one for each prefix.
        prefixes: token ids of the response so far; may be empty, must not have ended.
        n: continuations for each prefix.
        seed: of the sampling.

    Returns:
        A rollout of n rows for each prefix, in order, each a whole response; the reward on its last token is 1
        if it is right and 0 if not.
    """
    draw = Draw(n, seed, engine.actor.version, max_prompt_tokens=10**6, timeout=VERIFIER_TIMEOUT)
    limit = engine.sampler.max_new_tokens
    responses = respond(task, problems, engine.tokenizer, engine.sampler, draw, prefixes, limit)
    rows = [i for i in range(len(problems)) for _ in range(n)]
    rollout = as_rollout(responses, rows, pad_id(engine.tokenizer))
    rollout.rewards[torch.arange(len(rows)), rollout.last] = rollout.correct.to(rollout.rewards.dtype)
    return rollout


def true_values(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    responses: Sequence[Sequence[int]],
    positions: Sequence[int],
    n: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """V(s_t) of the policy as it stands, by Monte-Carlo continuation (VAPO §2; γ = 1, reward 1 or 0).

    Args:
        engine, task: see `continue_prefixes`.
        problems, responses: one for each prefix; a response is its token ids.
        positions: t for each prefix: s_t is the prompt and the first t tokens of the response.
        n: continuations for each prefix, at least 2.
        seed: of the sampling.

    Returns:
        Values [prefixes] and their standard errors √(v(1 − v)/n), in reward units. The v within the error is drawn
        towards ½ by one success and one failure, so that n equal outcomes do not claim certainty.
    """
    prefixes = [list(r[:t]) for r, t in zip(responses, positions, strict=True)]
    rollout = continue_prefixes(engine, task, problems, prefixes, n, seed)
    right = rollout.correct.view(-1, n).to(torch.get_default_dtype()).sum(1)
    smoothed = (right + 1) / (n + 2)
    return right / n, (smoothed * (1 - smoothed) / n).sqrt()


def response_tokens(rollout: Rollout, row: int) -> list[int]:
    """Token ids of one response of a rollout."""
    return rollout.tokens[row, int(rollout.totals[row] - rollout.lengths[row]) : int(rollout.totals[row])].tolist()


def at_position(x: Float[Tensor, "batch time"], rollout: Rollout, rows: Sequence[int], positions: Sequence[int]) -> Any:
    """Entries of a [batch, time] tensor at the given response positions (0 = first response token) of these rows."""
    index = torch.as_tensor(rows)
    return x[index, rollout.totals[index] - rollout.lengths[index] + torch.as_tensor(positions)]


# ---------------------------------------------------------------------------------------------------------
# 2  Bias of a critic along the response
# ---------------------------------------------------------------------------------------------------------


def positions_at(lengths: Int[Tensor, " batch"], shares: Sequence[float]) -> tuple[list[int], list[int], list[int]]:
    """Prefixes at the same relative positions of every response.

    Args:
        lengths: response lengths in tokens.
        shares: relative positions in [0, 1]; 0 is the state before the first token, 1 that before the last.

    Returns:
        row, position and index into `shares` of each prefix, row by row.
    """
    picks = [(i, round(s * (n - 1)), b) for i, n in enumerate(lengths.tolist()) for b, s in enumerate(shares)]
    rows, positions, bins = zip(*picks, strict=True)
    return list(rows), list(positions), list(bins)


def value_bias(
    values: Float[Tensor, " prefixes"], truth: Float[Tensor, " prefixes"], bins: Sequence[int]
) -> list[dict[str, float]]:
    """Mean of V_critic(s) − V_true(s) in each bin: the bias of §3.1 where bins are relative positions.

    Args:
        values: what the critic says of each prefix, in reward units.
        truth: its true value.
        bins: bin of each prefix, 0 … B − 1.

    Returns:
        For each bin: mean value, mean truth, bias, its standard error over prefixes, and the correlation of value
        and truth (noise in the truth lowers it).
    """
    which, found = torch.as_tensor(bins), []
    for b in range(int(which.max()) + 1):
        v, t = values[which == b].double(), truth[which == b].double()
        gap = v - t
        spread = float(v.std() * t.std())
        covariance = float(((v - v.mean()) * (t - t.mean())).sum() / (len(v) - 1))
        found.append(
            {
                "value": float(v.mean()),
                "truth": float(t.mean()),
                "bias": float(gap.mean()),
                "bias_error": float(gap.std() / math.sqrt(len(gap))),
                "correlation": covariance / spread if spread > 0 else 0.0,
            }
        )
    return found


def fit_critic(
    config: Config, task: Task, engine: Engine, rollouts: int, target: str, stream: str = "value-pretraining"
) -> Iterator[Rollout]:
    """Trains the engine's critic on samples of its *fixed* policy, towards one of three targets.

    `minivapo.vapo.pretrain_critic` is this with target "returns"; the other two are what it is compared with.

    Args:
        config: value_pretrain_lr, mini_batch, batch_size, seed are read.
        task, engine: the policy is not changed.
        rollouts: how many to sample and learn from.
        target: "score": the verdict after the last token alone, as a reward model (§3.1). "returns": Monte-Carlo
            returns, λ_critic = 1 (§4.1). "bootstrap": the λ-return with λ = config.lam, as without repair 2.
        stream: names the stream of random numbers.

    Yields:
        Each rollout with the critic's values *before* it learned from it.

    Raises:
        ValueError: there is no such target.
    """
    if target not in ("score", "returns", "bootstrap"):
        raise ValueError(f"fit_critic: target is {target!r}; it must be score, returns or bootstrap")
    changes: dict[str, Any] = {"group_size": 1, "dynamic_sampling": 0, "length_adaptive": False}
    config = Config(**(vars(config) | changes | {"decoupled_gae": target == "returns", "lam_critic": 1.0}))
    loss = reward_model_loss if target == "score" else critic_loss
    assert engine.critic is not None
    for _ in range(rollouts):
        rollout = collect(config, task, engine, stream)
        rollout.values = engine.critic.forward(rollout)["values"]
        rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(config, rollout)
        update(config, rollout, engine, "critic", loss, config.critic_epochs, config.value_pretrain_lr)
        yield rollout


# ---------------------------------------------------------------------------------------------------------
# 3  How far the reward reaches
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
# 4  Bias and variance of advantages
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


# ---------------------------------------------------------------------------------------------------------
# 5  Gradient share by response length
# ---------------------------------------------------------------------------------------------------------


def gradient_share(rollout: Rollout, edges: Sequence[int], token_level: bool) -> list[dict[str, float]]:
    """Share of responses, tokens and policy-gradient weight w_t·abs(Â_t) by response length (VAPO §4.2, eq. 6 and 7).

    Args:
        rollout: with advantages.
        edges: inner edges of the length bins in tokens; a response of l tokens is in the bin of edges ≤ l.
        token_level: which loss; see `minivapo.vapo.loss_weights`.

    Returns:
        For each bin: shares of responses, tokens and gradient, and the weight of one of its tokens relative to the
        mean token of the batch.
    """
    assert rollout.advantages is not None
    weights = loss_weights(rollout.mask, rollout.lengths, token_level)
    gradient = (weights * rollout.advantages.abs()).sum(1)
    per_token = weights.sum() / rollout.mask.sum()
    which = torch.bucketize(rollout.lengths, torch.as_tensor(list(edges)), right=True)
    found = []
    for b in range(len(edges) + 1):
        here = which == b
        tokens = rollout.mask[here].sum()
        found.append(
            {
                "responses": float(here.double().mean()),
                "tokens": float(tokens / rollout.mask.sum()),
                "gradient": float(gradient[here].sum() / gradient.sum().clamp(min=1e-30)),
                "token_weight": float(weights[here].sum() / tokens.clamp(min=1) / per_token),
            }
        )
    return found


# ---------------------------------------------------------------------------------------------------------
# 6  Who is clipped
# ---------------------------------------------------------------------------------------------------------


def probability_ceiling(probability: Float[Tensor, " n"], clip_high: float) -> Float[Tensor, " n"]:
    """Largest probability that a token can reach within one rollout's updates before its gradient stops.

    π_old (1 + ε_high), at most 1 (VAPO §4.3, eq. 8): a token of probability 0.01 may gain 0.002 with ε = 0.2, one
    of 0.8 may gain 0.16.
    """
    return (probability * (1 + clip_high)).clamp(max=1)


def clipped_share(
    logprobs: Float[Tensor, "batch time"],
    rollout: Rollout,
    clip_low: float,
    clip_high: float,
) -> dict[str, float]:
    """Share of tokens without gradient because the ratio left [1 − ε_low, 1 + ε_high] (VAPO §4.3, eq. 8).

    Args:
        logprobs: log π of the rollout's tokens now, in nats.
        rollout: with old_logprobs and advantages.
        clip_low, clip_high: ε_low, ε_high.

    Returns:
        Shares of all tokens: `low` and `high`; and the mean old probability of the tokens clipped high (NaN if none).
    """
    assert rollout.old_logprobs is not None and rollout.advantages is not None
    ratio = torch.where(rollout.mask, logprobs - rollout.old_logprobs, 0).exp()
    low = rollout.mask & (ratio < 1 - clip_low) & (rollout.advantages < 0)
    high = rollout.mask & (ratio > 1 + clip_high) & (rollout.advantages > 0)
    tokens = float(rollout.mask.sum())
    old = rollout.old_logprobs[high].exp()
    return {
        "low": float(low.sum()) / tokens,
        "high": float(high.sum()) / tokens,
        "old_probability": float(old.mean()) if len(old) else math.nan,
    }


# ---------------------------------------------------------------------------------------------------------
# 7  Sparse rewards
# ---------------------------------------------------------------------------------------------------------


def mixed_share(pass_rate: float | Float[Tensor, "..."], n: int) -> Any:
    """Chance 1 − pⁿ − (1 − p)ⁿ that n samples of a problem are not all alike (VAPO §4.3, Group-Sampling).

    Only such a group says anything to a group advantage, and it alone holds both a right and a wrong answer to
    the same question.

    Args:
        pass_rate: p.
        n: samples of the group.
    """
    return 1 - pass_rate**n - (1 - pass_rate) ** n


def estimated_mixed_share(right: Int[Tensor, " problems"], samples: int, n: int) -> Float[Tensor, " problems"]:
    """Unbiased estimate of `mixed_share` of problems whose pass rate is known from samples only.

    1 − C(r, n)/C(m, n) − C(m − r, n)/C(m, n) for r right of m samples: the share of n-subsets that are mixed.

    Args:
        right: r, right samples of each problem.
        samples: m ≥ n.
        n: samples of a group.
    """
    total = math.comb(samples, n)
    return torch.tensor([1 - (math.comb(r, n) + math.comb(samples - r, n)) / total for r in right.tolist()])


def samples_to_successes(correct: Sequence[bool], k: int) -> list[int]:
    """How many samples it took to see k right ones, again and again along a stream; on average k/p (VAPO §3.3).

    Args:
        correct: verdicts in the order of sampling.
        k: right answers to wait for.
    """
    hits = np.flatnonzero(np.asarray(correct, dtype=bool))
    ends = [-1, *hits[k - 1 :: k].tolist()]
    return [b - a for a, b in itertools.pairwise(ends)]


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV, numbers as float; lines that start with # are comments (command and commit)."""

    def convert(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text

    with path.open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [{k: convert(v) for k, v in row.items()} for row in rows]


def read_problems(path: Path) -> list[Problem]:
    """Problems from a CSV with the columns prompt and answer (whole numbers or text)."""
    rows = read_table(path)
    answers = [f"{r['answer']:g}" if isinstance(r["answer"], float) else r["answer"] for r in rows]
    return [Problem(r["prompt"], a, r["prompt"]) for r, a in zip(rows, answers, strict=True)]


class ProblemSet:
    """A task cut down to given problems, such as the ones that are hardly ever solved.

    Training cycles through them in a new order each time; evaluation asks them once each.

    Args:
        task: judges the responses.
        problems: the problems, for training and evaluation alike.
    """

    def __init__(self, task: Any, problems: Sequence[Problem]) -> None:
        self.task, self.problems = task, list(problems)
        self.name, self.stop = task.name, task.stop

    def train_problems(self, start: int, count: int, seed: int) -> list[Problem]:
        """See `minivapo.interfaces.Task.train_problems`."""
        size = len(self.problems)
        orders = {
            cycle: np.random.default_rng(derive_seed("problem set", seed, cycle)).permutation(size)
            for cycle in {i // size for i in range(start, start + count)}
        }
        return [self.problems[orders[i // size][i % size]] for i in range(start, start + count)]

    def test_problems(self, count: int | None = None) -> list[Problem]:
        """See `minivapo.interfaces.Task.test_problems`."""
        return self.problems[:count]

    def judge(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool | None]:
        """See `minivapo.interfaces.Task.judge`."""
        return self.task.judge(problems, responses)
