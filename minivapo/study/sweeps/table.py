"""Table 1 of the paper at one point of the map: its rows as arms, on long and unequal responses with late checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from minivapo.interfaces import Metrics
from minivapo.local import LocalEngine
from minivapo.study.ablation import own_fields
from minivapo.study.sweeps import rows_of_locks
from minivapo.study.sweeps.machinery import Sweep, last_quarter, mean
from minivapo.tasks.embedded import EmbeddedTask
from minivapo.tasks.locks import Locks, LocksSpec
from minivapo.vapo import PRESETS, evaluate

STEPS = 24
CRITICS_RESPONSES = 4096
"""What the shared critic of a base is pretrained on (CRITIC)."""
EQUAL_TOTAL = {"grpo": 66, "dapo": 55}
"""Rollouts after which a row without a critic has sampled as much as VAPO with its critic's responses: 6,400."""

PREDICTED: dict[str, tuple[str, ...]] = {
    "vapo-wo-value-pretraining": ("gain",),
    "vapo-wo-decoupled-gae": ("open",),
    "vapo-wo-adaptive-gae": ("gain",),
    "vapo-wo-token-loss": ("open",),
    "vapo-wo-clip-higher": ("open",),
    "vapo-wo-positive-loss": ("open",),
    "vapo-wo-group-sampling": ("open", "loss"),
    "grpo": ("gain",),
    "dapo": ("gain",),
    "ppo": ("gain",),
    **{f"{name}, {steps} rollouts": ("loss",) for name, steps in EQUAL_TOTAL.items()},
}
"""Row -> what the protocol expects of VAPO's lead over it: a gain, a loss, or an interval that includes zero."""


def row_fields(preset: str) -> dict[str, Any]:
    """What a row changes in `vapo`."""
    changed = own_fields(preset)
    if changed.pop("value_pretrain_steps", None) == 0:  # the paper's critic then starts as a reward model
        changed |= {"critic_init": "reward-model", "reward_model_steps": 8, "value_pretrain_batch": 288}
    return changed


def watch_held_out(task: EmbeddedTask) -> Callable[[LocalEngine], Metrics]:
    """Accuracy on 192 held-out problems at temperature 1 and top-p 1, after each of the last quarter's rollouts.

    Dynamic sampling keeps some groups and not others, so that a rollout's own accuracy would not compare.
    """

    def measure(engine: LocalEngine) -> Metrics:
        config = dataclasses.replace(engine.config, eval_problems=192, eval_samples=1, eval_top_p=1.0)
        late = engine.progress.step > config.steps - max(1, config.steps // 4)
        return {"held_out": evaluate(config, task, engine)["eval/accuracy"] if late else 0.0}

    return measure


def measure(lines: Sequence[Metrics]) -> dict[str, float]:
    """The score, its cost in responses without the shared critic's, and how much was clipped."""
    return {
        "score": last_quarter([*lines], "held_out"),
        "samples": lines[-1]["samples"],
        "length": mean([m["response/length"] for m in lines]),
        "clipped_high": mean([m["actor/clip_high"] for m in lines]),
    }


TABLE = Sweep(
    name="table1",
    technique="Table 1",
    axis="one point of the map",
    points=(0,),
    arms={
        "vapo": {},
        **{name: row_fields(name) for name in PRESETS if name != "vapo"},
        **{f"{name}, {steps} rollouts": row_fields(name) | {"steps": steps} for name, steps in EQUAL_TOTAL.items()},
    },
    task=lambda _: Locks(LocksSpec(min_locks=2, max_locks=7, talk=(3, 8), delay=(0, 12)), name="locks-table"),
    constants=lambda _: rows_of_locks.constants(7 * 24 + 1) | {"steps": STEPS, "alpha": 0.25, "lam": 0.4},
    measure=measure,
    unit="accuracy",
    matters="",
    prediction="",
    watch=watch_held_out,
    base=rows_of_locks.BASE,
    critic=rows_of_locks.CRITIC,
    rates=(2e-4, 8e-4),
    bracketed=4,
)
"""Its four methods have a bracket of rates; rows that start from a pretrained critic share that of their base."""
