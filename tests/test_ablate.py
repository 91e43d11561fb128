"""The table of presets: how rows are named, and what a table refuses to mix."""

import pytest

from minivapo import ablate
from minivapo.data import UserError
from minivapo.local import LocalEngine
from minivapo.tasks import Chain
from minivapo.vapo import PRESETS, pretrain_critic


def test_a_row_is_a_preset_with_changes_on_the_constants_of_the_table():
    overrides = {"actor_lr": 7e-5, "group_size": 4}
    plain = ablate.row_config("vapo-wo-group-sampling", 3, overrides)
    assert (plain.actor_lr, plain.group_size, plain.seed) == (7e-5, 1, 3)
    changed = ablate.row_config("ppo+actor_lr=1e-5+lam=0.5", 3, overrides)
    assert (changed.actor_lr, changed.lam, changed.group_size) == (1e-5, 0.5, PRESETS["ppo"].group_size)
    for wrong in ("vpao", "vapo+actor_lr", "vapo+rate=1"):
        with pytest.raises(UserError):
            ablate.row_config(wrong, 0, {})


def test_rows_that_differ_only_in_training_share_a_critic():
    jobs = ablate.plan_jobs(["vapo", "vapo+actor_lr=1e-5", "ppo", "grpo"], [1000], {})
    assert [job.name for job, _ in jobs if job.kind != "run"] == ["critic-1000", "reward-model-1000"]
    needs = {job.row: need.kind if need else None for job, need in jobs if job.kind == "run"}
    assert needs == {"vapo": "critic", "vapo+actor_lr=1e-5": "critic", "ppo": "reward-model", "grpo": None}


def test_a_table_is_not_mixed_from_two_sets_of_constants(tmp_path):
    ablate.claim(tmp_path / "t", "chain", ["base"], {"steps": 2})
    ablate.claim(tmp_path / "t", "chain", ["base"], {"steps": 2})
    with pytest.raises(UserError, match=r'begun with overrides \{"steps": 2\}, not \{"steps": 3\}'):
        ablate.claim(tmp_path / "t", "chain", ["base"], {"steps": 3})


def test_pretraining_may_use_larger_rollouts(tiny_model, small):
    config = small("vapo", value_pretrain_batch=32, reward_model_steps=1, value_pretrain_steps=2, steps=0)
    assert config.batch_size < 32
    engine = LocalEngine(tiny_model, config)
    engine.sampler.sync(engine.actor)
    updates = config.batch_size // config.mini_batch
    rollouts = sum(1 for _ in pretrain_critic(config, Chain(), engine))
    assert (rollouts, engine.progress.samples, engine.critic.version) == (3, 3 * 32, 3 * updates)
    with pytest.raises(UserError, match="value_pretrain_batch"):
        small("vapo", value_pretrain_batch=config.batch_size + 1)
