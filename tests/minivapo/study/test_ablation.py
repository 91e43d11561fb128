"""The table of presets: how rows are named, and what a table refuses to mix."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from minivapo.cli import main
from minivapo.interfaces import UserError
from minivapo.local import LocalEngine
from minivapo.study import ablation as ablate
from minivapo.study import table
from minivapo.tasks.chain import Chain
from minivapo.vapo import PRESETS, pretrain_critic


def test_a_row_is_a_preset_with_changes_on_the_constants():
    overrides = {"actor_lr": 7e-5, "group_size": 4}
    plain = ablate.row_config("vapo-wo-group-sampling", 3, overrides)
    assert (plain.actor_lr, plain.group_size, plain.seed) == (7e-5, 1, 3)
    changed = ablate.row_config("ppo+actor_lr=1e-5+lam=0.5", 3, overrides)
    assert (changed.actor_lr, changed.lam, changed.group_size) == (1e-5, 0.5, PRESETS["ppo"].group_size)
    assert ablate.row_config(
        "ppo+decoupled_gae=true", 3, overrides
    ).decoupled_gae  # a change of what the preset changes
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


@pytest.mark.once
def test_a_killed_table_goes_on_where_it_was(tiny_model, tmp_path, capsys):
    """Killed with its processes in the middle of a run, then started again: the same table, finished runs untouched."""
    sizes = ["steps=6", "batch_size=16", "mini_batch=8", "group_size=4", "eval_problems=8", "max_new_tokens=24"]
    sizes += ["value_pretrain_steps=2", "reward_model_steps=1", "warmup=2"]
    order = ["--task", "chain", "--bases", str(tiny_model), "--presets", "vapo", "--seeds", "1"]
    order += ["--jobs", "1", "--overrides", *sizes]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "minivapo", "ablate", "--out", str(killed), *order]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as job:
        under_way = killed / "vapo-1000" / "metrics.jsonl"
        while job.poll() is None and not (under_way.exists() and len(under_way.read_text().splitlines()) > 3):
            time.sleep(0.02)
        assert job.poll() is None
        os.killpg(job.pid, signal.SIGKILL)
    done = {path: path.stat().st_mtime_ns for path in killed.glob("*/result.json")}
    assert [path.parent.name for path in done] == ["critic-1000"]
    assert main(command[3:]) == 0 and "VAPO's lead" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    assert {path.name for path in killed.glob("*.png")} == {"table1.png", "curves.png"}
    overrides = ablate.parse_overrides(sizes)
    for work, _ in ablate.plan_jobs(["vapo"], [1000], overrides):  # the same in this process, without a stop
        ablate.run_job(work, whole, "chain", [str(tiny_model)], overrides)
    [expected] = table.collect_rows(whole, ["vapo"], [1000])
    with (killed / "table1.csv").open() as file:
        [row] = csv.DictReader(file)
    same = [name for name in table.COLUMNS if name != "cpu_seconds"]
    assert {name: row[name] for name in same} == {name: str(expected[name]) for name in same}
    assert expected["samples"] == (6 + 1 + 2) * 16 and expected["accuracy"] > 0  # the critic is charged
