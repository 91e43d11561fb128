"""Config files and what is refused before any weights load."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from launch import ROOT

from minivapo.commands import train
from minivapo.interfaces import UserError
from minivapo.runs.folder import read_config, write_config
from minivapo.vapo import PRESETS
from scaled.config import Settings, check_ranks, make_job, read_job
from scaled.train import read_arguments, record, run_folder, start_model

CONFIGS = sorted((ROOT / "scaled" / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_fit_their_ranks_and_repeat_no_default(path):
    job = read_job(path)
    check_ranks(job, job.settings.ranks)
    told = vars(job.config) | vars(job.settings)
    default = vars(PRESETS[job.preset]) | vars(Settings())
    same = [k for k in yaml.safe_load(path.read_text()) if k in default and told[k] == default[k] and k != "ranks"]
    assert not same, f"{path.name} repeats defaults: {same}"


def test_the_32b_config_is_the_papers():
    config = read_job(ROOT / "scaled/configs/qwen2.5-32b-64gpu.yaml").config
    assert (config.prompts_per_step, config.group_size, config.mini_batch) == (512, 16, 512)
    assert (config.actor_lr, config.critic_lr, config.value_pretrain_steps) == (1e-6, 2e-6, 50)
    assert config.batch_size // config.mini_batch * config.steps == pytest.approx(5000, abs=16)


def test_overrides_are_flags_or_assignments():
    words = ["--steps", "3", "--actor-lr=1e-6", "dtype=float32", "--offload-optimizer", "true", "--no-decoupled-gae"]
    job = read_job(ROOT / "scaled/configs/smoke.yaml", [*words, "--run-dir", "there", "--whiten=true"])
    assert job.run == read_job(ROOT / "scaled/configs/smoke.yaml", ["--run", "there"]).run == Path("there")
    assert (job.config.steps, job.config.actor_lr, job.config.decoupled_gae, job.config.whiten) == (
        3,
        1e-6,
        False,
        True,
    )
    assert (job.settings.dtype, job.settings.offload_optimizer) == ("float32", True)
    assert make_job({"task": "chain", "actor_lr": "1e-6", "whiten": True, "model": None}).config.actor_lr == 1e-6


@pytest.mark.parametrize(
    "words", [["--preset", "dapo", "--steps", "3"], ["--no-clip-high"], ["--alpha", "0.1"], ["--lam=2"]]
)
def test_flags_mean_the_same_on_laptop_and_cluster(tmp_path, words):
    """Also the mistakes: the same sentence, but for the name of the command."""

    def told(read):
        try:
            return read(words)
        except UserError as error:
            return str(error).partition(" `")[0]

    laptop = told(lambda words: train.read([*words, "--task", "chain"]).config)
    path = write(tmp_path, "task: chain")
    assert laptop == told(lambda words: read_job(path, words).config)
    assert laptop == told(lambda words: read_arguments([str(path), *words])[0].job.config)


def test_a_run_goes_on_with_other_settings_alone(tmp_path):
    info = {"task": "chain", "model": "m", "preset": "grpo", "critic": None}
    write_config(tmp_path / "run", PRESETS["grpo"], info)
    args, _ = read_arguments(["--resume", str(tmp_path / "run"), "--token-budget", "77"])
    assert (args.job.settings.token_budget, args.job.settings.dtype) == (77, "float32")
    assert (args.job.config, args.job.run) == (PRESETS["grpo"], tmp_path / "run")
    with pytest.raises(UserError, match="--seed cannot be changed on --resume; only the cluster's settings and"):
        read_arguments(["--resume", str(tmp_path / "run"), "--seed", "3"])
    with pytest.raises(UserError, match="--task and --seed cannot be changed on --resume; only the cluster's"):
        read_arguments(["--resume", str(tmp_path / "run"), "--seed", "3", "--task", "proof"])
    args, options = read_arguments(["--resume", str(tmp_path / "run"), "--steps", "99"])
    assert run_folder(args.job, args.resume) == tmp_path / "run"
    assert read_config(tmp_path / "run")[0].steps != 99  # before the model is looked at
    record(args.job, tmp_path / "run", True, options)
    assert read_config(tmp_path / "run")[0].steps == 99
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 7}\n')
    args, _ = read_arguments(["--resume", str(tmp_path / "run"), "--steps", "6"])
    with pytest.raises(UserError, match=r"--steps is 6, but .* has taken 7"):
        run_folder(args.job, args.resume)


def test_a_folder_serves_again_until_the_model_was_found_fit(tmp_path, monkeypatch):
    """First the embedded base, widened in the folder, and refused; then another model."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = tmp_path / "run"
    words = ["--config", str(write(tmp_path, "task: chain")), "--run-dir", str(run), "--resume", "auto"]
    for _ in range(2):
        args, options = read_arguments(words)
        assert run_folder(args.job, None) == run and {p.name for p in run.iterdir()} == {"base"}
        assert start_model(args.job, run) == str(run / "base")
    (tmp_path / "base").mkdir()
    args, options = read_arguments([*words, "--model", str(tmp_path / "base")])
    assert start_model(args.job, run_folder(args.job, None)) == str(tmp_path / "base")
    args, options = read_arguments(words)
    record(args.job, run_folder(args.job, None), False, options)
    with pytest.raises(UserError, match="already holds a run"):
        run_folder(args.job, None)
    run.rename(tmp_path / "moved")
    args, _ = read_arguments(["--resume", str(tmp_path / "moved")])
    assert start_model(args.job, args.resume, True) == str(tmp_path / "moved" / "base")


def test_a_run_does_not_go_on_with_another_reference_policy(tmp_path):
    run, weights = tmp_path / "run", tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"some weights")
    info = {"task": "chain", "model": str(weights.parent), "preset": "grpo", "critic": None}
    write_config(run, dataclasses.replace(PRESETS["grpo"], kl_coef=0.1), info)
    args, _ = read_arguments(["--resume", str(run)])
    assert run_folder(args.job, args.resume) == run
    weights.write_bytes(b"others")
    with pytest.raises(UserError, match=r"to which kl_coef holds .* has other weights now"):
        run_folder(args.job, args.resume)


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (
            "task: chain\nmini_bach: 4",
            [],
            "x.yaml: Unrecognized options: --mini_bach=4; perhaps you meant --mini-",
        ),
        ("task: chain", ["--stepz", "3"], "Unrecognized options: --stepz, 3; perhaps you meant --steps"),
        ("task: chain", ["--steps"], "--steps needs a value"),
        ("task: chain", ["steps=many"], "--steps takes INT: invalid literal for int() with base 10: 'many'."),
        ("task: chain\nsteps: [1, 2]", [], "x.yaml: Unrecognized options: 2"),
        ("task: chain\nsteps: many", [], "x.yaml: --steps takes INT"),
        ("task: chain", ["zero_stage=1"], "--zero-stage is 1; it must be one of 2, 3."),
        ("task: chain", ["dtype=float16"], "--dtype is float16; it must be one of float32, bfloat16."),
        ("task: chain", ["token_budget=0"], "token_budget is 0; it must be at least 1."),
        ("task: chain", ["mini_batch=7"], "mini_batch is 7; it must divide batch_size 256."),
        ("task: chain\npreset: vappo", [], "there is no preset 'vappo'"),
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


def test_a_gpu_without_bf16_or_without_room_is_refused(monkeypatch):
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
