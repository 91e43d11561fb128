"""Decoupled GAE: Monte-Carlo targets for the critic, or targets that lean on its own values."""

from __future__ import annotations

from typing import Any

import torch

from minivapo.interfaces import Metrics
from minivapo.local import LocalEngine
from minivapo.study.sweeps.machinery import Sweep, last_quarter, mean
from minivapo.study.sweeps.rows_of_locks import BASE, CRITIC, constants, five_locks


def watch_bias(engine: LocalEngine) -> Metrics:
    """Mean of V − R over the tokens in each quarter of the responses, before the update."""
    rollout = engine.rollout
    assert rollout is not None and rollout.values is not None
    place = torch.arange(rollout.tokens.shape[1]) - (rollout.totals - rollout.lengths)[:, None]
    quarter = (place * 4 // rollout.lengths[:, None]).clamp(0, 3)
    error = rollout.values - rollout.rewards.sum(1, keepdim=True)
    return {f"bias_q{q + 1}": float(error[rollout.mask & (quarter == q)].mean()) for q in range(4)}


def constants_at(start: float) -> dict[str, Any]:
    """Axis 0: the shared pretrained critic; 1: a reward model of the base, as vanilla PPO starts."""
    reward_model = {"critic_init": "reward-model", "reward_model_steps": 8, "value_pretrain_batch": 288}
    return constants(61) | {"alpha": 0.1} | (reward_model if start else {})


DECOUPLED_GAE = Sweep(
    name="decoupled-gae",
    technique="decoupled GAE",
    axis="start of the critic: 0 pretrained, 1 reward model",
    points=(0, 1),
    arms={
        "λ critic 1": {},
        "the policy's λ": {"decoupled_gae": False},
        "λ critic .95": {"lam_critic": 0.95},
        "λ critic .8": {"lam_critic": 0.8},
        "λ critic .5": {"lam_critic": 0.5},
        "λ critic 0": {"lam_critic": 0.0},
    },
    task=lambda start: five_locks(8),
    constants=constants_at,
    measure=lambda lines: {
        "score": last_quarter(lines, "reward/accuracy"),
        **{f"bias_q{q}": mean([m[f"bias_q{q}"] for m in lines]) for q in (1, 2, 3, 4)},
    },
    unit="accuracy",
    matters=(
        "It matters for a critic that starts wrong: targets that lean on its own values keep the bias at the "
        "front of a response. A pretrained critic has little bias to keep."
    ),
    prediction=(
        "Targets with λ < 1 carry what the verdict says only 1/(1 − λ) tokens towards the front in each update, so "
        "that the bias of the first quarter goes last: small for a pretrained critic, large for one that starts as a "
        "reward model."
    ),
    watch=lambda task: watch_bias,
    base=BASE,
    critic=CRITIC,
    rates=(2e-4, 8e-4, 1.6e-3),
)
