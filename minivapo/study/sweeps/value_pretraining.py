"""Value-pretraining: how many rollouts of the fixed policy a critic should learn from first."""

from __future__ import annotations

from typing import Any

from minivapo.study.sweeps.machinery import Sweep, mean
from minivapo.study.sweeps.rows_of_locks import BASE, constants, five_locks


def constants_at(rollouts: float) -> dict[str, Any]:
    """Twelve rollouts of training after so many of 288 responses for the critic, which starts from the policy."""
    return constants(36) | {
        "steps": 12, "critic_init": "policy", "value_pretrain_steps": int(rollouts), "value_pretrain_patience": 99,
        "value_pretrain_batch": 288,
    }  # fmt: skip


VALUE_PRETRAINING = Sweep(
    name="value-pretraining",
    technique="value-pretraining",
    axis="rollouts of value-pretraining",
    points=(1, 2, 4, 8, 16),
    arms={"pretrained": {}, "not pretrained": {"value_pretrain_steps": 0}},
    task=lambda rollouts: five_locks(3),
    constants=constants_at,
    measure=lambda lines: {
        "score": mean([m["reward/accuracy"] for m in lines]),
        "explained_variance_first": lines[0]["value/explained_variance"],
    },
    unit="mean accuracy over the first 12 rollouts",
    matters=(
        "A critic that starts blank must first learn what a return is; rollouts of the fixed policy save training "
        "that time."
    ),
    prediction=(
        "A critic whose head starts at zero gives every token the whole return for the first rollouts; pretraining "
        "saves them. The gain comes with the first few rollouts and then stays."
    ),
    base=BASE,
    rates=(2e-4, 8e-4, 1.6e-3),
)
