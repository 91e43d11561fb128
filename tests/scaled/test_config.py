"""Config files and what is refused before any weights load."""

from pathlib import Path

import pytest
from launch import ROOT

from minivapo.interfaces import UserError
from minivapo.vapo import PRESETS
from scaled.config import Settings, check_ranks, coerce, make_job, read_job, split_overrides, with_settings

CONFIGS = sorted((ROOT / "scaled" / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_run_on_the_ranks_they_name_and_repeat_no_default(path):
    job = read_job(path)
    check_ranks(job, job.settings.ranks)
    import yaml

    default = {**vars(PRESETS[job.preset]), **vars(Settings())}
    given = yaml.safe_load(path.read_text())
    same = [
        k for k, v in given.items() if k in default and coerce(k, v, type(default[k])) == default[k] and k != "ranks"
    ]
    assert not same, f"{path.name} repeats defaults: {same}"


def test_the_32b_config_is_the_papers():
    config = read_job(ROOT / "scaled/configs/qwen2.5-32b-64gpu.yaml").config
    assert (config.prompts_per_step, config.group_size, config.mini_batch) == (512, 16, 512)
    assert (config.actor_lr, config.critic_lr, config.value_pretrain_steps) == (1e-6, 2e-6, 50)
    assert config.batch_size // config.mini_batch * config.steps == pytest.approx(5000, abs=16)


def test_overrides_are_flags_or_assignments():
    words = ["--steps", "3", "--actor-lr=1e-6", "dtype=float32", "--offload-optimizer", "true"]
    assert split_overrides(words) == {
        "steps": "3", "actor_lr": "1e-6", "dtype": "float32", "offload_optimizer": "true"
    }  # fmt: skip
    job = read_job(ROOT / "scaled/configs/smoke.yaml", [*words, "--run-dir", "there"])
    assert job.run == "there"
    assert (job.config.steps, job.config.actor_lr) == (3, 1e-6)
    assert (job.settings.dtype, job.settings.offload_optimizer) == ("float32", True)
    assert with_settings(job, {"token_budget": "77"}).settings.token_budget == 77


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("task: chain\nmini_bach: 4", [], "unknown key 'mini_bach'; did you mean 'mini_batch'?"),
        ("task: chain", ["--stepz", "3"], "unknown key 'stepz'; did you mean 'steps'?"),
        ("task: chain", ["--steps"], "cannot read the override '--steps'"),
        ("task: chain", ["steps=many"], "steps is 'many'; it must be of type int."),
        ("task: chain", ["zero_stage=1"], "zero_stage is 1; it must be one of 2, 3."),
        ("task: chain", ["dtype=float16"], "dtype is 'float16'; it must be one of float32, bfloat16."),
        ("task: chain", ["token_budget=0"], "token_budget is 0; it must be at least 1."),
        ("task: chain", ["mini_batch=7"], "mini_batch is 7; it must divide batch_size 256."),
        ("task: chain\npreset: vappo", [], "unknown preset 'vappo'"),
        ("model: x", [], "the config names no task."),
        ("- a\n- b", [], "must hold `key: value` lines."),
        ("a: [", [], "is not YAML"),
    ],
)
def test_a_wrong_config_is_one_message(tmp_path, text, words, message):
    with pytest.raises(UserError, match=r"(?s).*") as error:
        read_job(write(tmp_path, text), words)
    assert message in str(error.value)


def test_a_missing_file_is_one_message(tmp_path):
    with pytest.raises(UserError, match="no such config file"):
        read_job(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("changes", "ranks", "message"),
    [
        ({}, 3, "prompts per step (32) must be a multiple of the 3 ranks."),
        ({"mini_batch": 8}, 16, "mini_batch (8) must be a multiple of the 16 ranks."),
        ({"tensor_parallel": 4}, 2, "tensor_parallel is 4, but there are 2 ranks"),
        ({"sequence_parallel": 4}, 2, "sequence_parallel is 4, but there are 2 ranks"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(changes, ranks, message):
    with pytest.raises(UserError) as error:
        check_ranks(make_job({"task": "chain", **changes}), ranks)
    assert message in str(error.value)


def test_bf16_where_the_gpu_lacks_it_and_a_plan_that_does_not_fit_are_refused(monkeypatch):
    import torch

    from scaled import train
    from scaled.planning import hardware

    job = read_job(ROOT / "scaled/configs/qwen2.5-32b-64gpu.yaml")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(UserError, match="dtype is bfloat16"):
        train.check_hardware(job, 64, "check")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(hardware, "this_gpu", lambda: hardware.GPUS["h100-80"])
    with pytest.raises(UserError, match="will not fit"):
        train.check_hardware(job, 8, "check")
    train.check_hardware(job, 8, "skip")


def test_words_outside_the_flags_of_train_are_refused(tmp_path):
    from scaled.train import run_rank

    with pytest.raises(UserError, match="name a config file"):
        run_rank(["--steps", "3"], 0)
    with pytest.raises(UserError, match="is not a run folder"):
        run_rank(["--resume", str(tmp_path)], 0)
