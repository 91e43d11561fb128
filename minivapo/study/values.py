"""True values of prefixes, by sampling the policy on from them, and what a critic says of them (VAPO §2, §3.1).

In a task with a verifier the true value of any prefix can be had that way, without bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minivapo.interfaces import Engine, Problem, Rollout, Task
from minivapo.responses import Draw, as_rollout, pad_id, respond
from minivapo.vapo import Config, collect, critic_loss, estimate_advantages, reward_model_loss, update

VERIFIER_TIMEOUT = 300.0
"""Seconds for the verdicts of one call."""


# ---------------------------------------------------------------------------------------------------------
# True value of a prefix
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
# Bias of a critic along the response
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
            returns, λ_critic = 1 (§4.1). "bootstrap": the λ-return with λ = config.lam, as without decoupled GAE.
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
