"""The value-pretrained critic that is shipped beside an embedded base (VAPO §4.1: every run starts from it)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from minivapo.interfaces import Task
from minivapo.local import LocalEngine, LocalLearner
from minivapo.vapo import Config, pretrain_critic

PRETRAINING = Config(
    batch_size=512,
    mini_batch=16,
    micro_batch=64,
    group_size=1,
    critic_init="policy",
    critic_epochs=2,
    value_pretrain_steps=10,
    value_pretrain_patience=10,
    max_new_tokens=128,
)
"""5,120 responses at the usual rate; then `CALM` more rollouts at a fifth of it."""
CALM = 4


def make_critic(
    task: Task,
    base: Path,
    folder: Path,
    seed: int = 0,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Path:
    """Pretrains a critic on the base's responses by `minivapo.vapo.pretrain_critic` and saves a transformers folder.

    Args:
        task: judges the responses.
        base: the policy, a transformers folder.
        folder: where the critic goes.
        seed: of the prompts and the sampling.
        progress: called after each rollout with (rollout, rollouts, explained variance before it).
    """
    first = dataclasses.replace(PRETRAINING, seed=seed)
    calm = dataclasses.replace(
        first, value_pretrain_steps=first.value_pretrain_steps + CALM, value_pretrain_lr=first.value_pretrain_lr / 5
    )
    engine = LocalEngine(base, first, stop=task.stop)
    engine.sampler.sync(engine.actor)
    for config in (first, calm):
        engine.progress.pretrain_done = False
        for metrics in pretrain_critic(config, task, engine):
            progress(engine.progress.pretrain, calm.value_pretrain_steps, metrics["value/explained_variance"])
    assert isinstance(engine.critic, LocalLearner)
    engine.critic.model.eval().save_pretrained(folder)
    return folder
