"""What each technique of VAPO acts on, measured against the truth; everything that notebooks and benchmarks call.

A score says whether a part helps; these functions measure *why* it should. In a task with a verifier, the true value
of any prefix can be had by sampling the policy on from it many times, so value and advantage estimates can be
compared with what they estimate.

    true value of a prefix                 §2        `values`: true_values
    bias of a critic along the response    §3.1      `values`: value_bias, fit_critic
    how far the reward reaches             §3.1 §4.1 `advantages`: reward_weight
    bias and variance of advantages over λ §3.2 §4.2 `advantages`: choices, probe_advantages, advantage_errors
    gradient share by response length      §4.2      here: gradient_share
    who is clipped                         §4.3      here: probability_ceiling
    sparse rewards                         §3.3 §4.3 here: mixed_share, samples_to_successes, ProblemSet
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from minivapo.interfaces import Problem, Rollout, derive_seed
from minivapo.study.advantages import AdvantageProbe as AdvantageProbe
from minivapo.study.advantages import advantage_errors as advantage_errors
from minivapo.study.advantages import choices as choices
from minivapo.study.advantages import cosine as cosine
from minivapo.study.advantages import error_of_mean as error_of_mean
from minivapo.study.advantages import measured_reward_weight as measured_reward_weight
from minivapo.study.advantages import probe_advantages as probe_advantages
from minivapo.study.advantages import probe_estimates as probe_estimates
from minivapo.study.advantages import reward_weight as reward_weight
from minivapo.study.table import read_table
from minivapo.study.values import at_position as at_position
from minivapo.study.values import continue_prefixes as continue_prefixes
from minivapo.study.values import fit_critic as fit_critic
from minivapo.study.values import positions_at as positions_at
from minivapo.study.values import response_tokens as response_tokens
from minivapo.study.values import true_values as true_values
from minivapo.study.values import value_bias as value_bias
from minivapo.vapo import loss_weights

# ---------------------------------------------------------------------------------------------------------
# Gradient share by response length
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
# Who is clipped
# ---------------------------------------------------------------------------------------------------------


def probability_ceiling(probability: Float[Tensor, " n"], clip_high: float) -> Float[Tensor, " n"]:
    """Largest probability that a token can reach within one rollout's updates before its gradient stops.

    π_old (1 + ε_high), at most 1 (VAPO §4.3, eq. 8): a token of probability 0.01 may gain 0.002 with ε = 0.2, one
    of 0.8 may gain 0.16.
    """
    return (probability * (1 + clip_high)).clamp(max=1)


# ---------------------------------------------------------------------------------------------------------
# Sparse rewards
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
