"""The value model: what credit for each token is worth where many tokens do not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from minivapo.interfaces import Metrics
from minivapo.local import LocalEngine
from minivapo.study.oracle import OracleCritic
from minivapo.study.sweeps.machinery import Sweep, last_quarter, mean
from minivapo.study.sweeps.rows_of_locks import BASE, CRITIC, constants, five_locks
from minivapo.tasks.embedded import EmbeddedTask


def watch_cosine(task: EmbeddedTask) -> Callable[[LocalEngine], Metrics]:
    """Measures cos² of the angle between the advantages and the true ones, over all tokens of a rollout.

    The true ones are the rises of the oracle's value from token to token, and to the reward at the end.
    """
    oracle: OracleCritic | None = None

    def measure(engine: LocalEngine) -> Metrics:
        nonlocal oracle
        oracle = oracle or OracleCritic(task, engine.tokenizer)
        rollout = engine.rollout
        assert rollout is not None and rollout.advantages is not None
        values = oracle.forward(rollout)["values"]
        following = torch.nn.functional.pad(values[:, 1:], (0, 1))
        last = torch.arange(values.shape[1]) == rollout.last[:, None]
        true = (torch.where(last, rollout.rewards, following) - values)[rollout.mask].double()
        found = rollout.advantages[rollout.mask].double()
        cosine = float((true * found).sum() / (true.norm() * found.norm()).clamp(min=1e-12))
        return {"cos2": max(cosine, 0.0) ** 2}

    return measure


def constants_at(talk: float) -> dict[str, Any]:
    """Five locks."""
    return constants(5 * (int(talk) + 4) + 1)


VALUE_MODEL = Sweep(
    name="value-model",
    technique="value model",
    axis="neutral tokens before each decision",
    points=(0, 1, 3, 8),
    arms={
        "vapo": {},
        "grpo": {"advantage": "group"},
        "vapo, λ = 1": {"length_adaptive": False, "lam": 1.0},
        "oracle critic": {"critic_init": "policy"},
    },
    task=lambda talk: five_locks(int(talk)),
    constants=constants_at,
    measure=lambda lines: {
        "score": last_quarter(lines, "reward/accuracy"),
        "cos2": mean([m["cos2"] for m in lines]),
    },
    unit="accuracy",
    matters=(
        "It matters where many tokens do not: the critic gives neutral words no credit, while GRPO gives every "
        "word its response's."
    ),
    prediction=(
        "Without a value model every token gets its response's outcome, and the share of its advantage that points the "
        "right way (cos²) falls like one over the number of neutral tokens; a critic that sees gives them nothing, so "
        "that its lead grows along the axis: about none at 0, and several points at 8."
    ),
    watch=watch_cosine,
    critics={"oracle critic": lambda engine, task, seed: OracleCritic(task, engine.tokenizer)},
    base=BASE,
    critic=CRITIC,
    rates=(2e-4, 8e-4, 1.6e-3),
)
