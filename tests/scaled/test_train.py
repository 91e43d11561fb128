"""The whole thing: a small model trained by real ZeRO-3 and real vLLM on two ranks, through `minivapo.vapo.train`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from compare_runs import numbers
from launch import environment, fork, rank_processes, require, start_torchrun, torchrun, try_fork
from toy_models import make_toy

from minivapo.runs.folder import read_metrics, refuse_a_run

pytestmark = pytest.mark.cluster

SMALL = [
    "--steps", "2", "--batch-size", "8", "--group-size", "2", "--mini-batch", "4", "--max-new-tokens", "24",
    "--max-prompt-tokens", "200", "--eval-problems", "4", "--value-pretrain-steps", "1", "--save-every", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps, never stopped."""
    require("deepspeed", "vllm")
    run = tmp_path_factory.mktemp("runs") / "finished"
    words = ["--config", "scaled/configs/smoke.yaml", "--run-dir", run, *SMALL]
    done = torchrun(2, "-m", "scaled.train", *words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return run


@pytest.fixture(scope="module")
def killed(finished, tmp_path_factory):
    """The same run, one of whose ranks is killed after its first step."""
    run = tmp_path_factory.mktemp("runs") / "killed"
    words = ["-m", "scaled.train", "--config", "scaled/configs/smoke.yaml", "--run-dir", run, *SMALL]
    job = start_torchrun(2, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("step 1 "):
            break
    os.kill(rank_processes(job)[1], signal.SIGKILL)
    start = time.monotonic()
    job.communicate(timeout=120)
    assert job.returncode != 0
    assert time.monotonic() - start < 90
    return run


def test_a_run_folder_is_that_of_the_laptop(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"config.json", "metrics.jsonl", "samples.jsonl", "checkpoint", "report.html"} <= names
    parts = {p.name for p in (finished / "checkpoint").iterdir()}
    assert {"actor", "critic", "progress.json", "manifest.json"} <= parts
    record = json.loads((finished / "config.json").read_text())
    assert record["settings"]["zero_stage"] == 3 and record["ranks"] == 2
    metrics = read_metrics(finished)
    assert metrics[0]["step"] == 0 and "eval/accuracy" in metrics[0]
    assert metrics[-1]["step"] == 2 and "eval/accuracy" in metrics[-1]
    assert 1 <= metrics[-1]["actor/imbalance"] < 2
    assert 0 <= metrics[-1]["time/straggler_share"] < 1


def test_sampler_and_learner_agree_in_every_step(finished):
    for line in read_metrics(finished):
        if line["step"] > 0:
            assert line["policy/sampler_gap_max"] < 1e-4


def test_the_checkpoint_opens_in_transformers_and_on_the_laptop(finished):
    from transformers import AutoModelForCausalLM

    from minivapo.local import LocalEngine
    from minivapo.runs.folder import read_config

    config, _ = read_config(finished)
    plain = AutoModelForCausalLM.from_pretrained(finished / "checkpoint" / "actor")
    engine = LocalEngine(finished / "checkpoint" / "actor", config)
    engine.load(finished / "checkpoint")
    assert engine.progress.step == 2
    live = dict(engine.actor.model.named_parameters())
    assert all(torch.equal(p, live[name]) for name, p in plain.named_parameters())
    assert engine.actor.version == 4  # two steps of two mini-batches


def test_minivapo_eval_takes_it(finished, tmp_path):
    words = ["eval", str(finished), "--problems", "4", "--samples", "2", "--max-new-tokens", "16"]
    done = subprocess.run(
        [sys.executable, "-m", "minivapo.cli", *words], capture_output=True, text=True, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout


def test_resuming_on_as_many_ranks_is_as_if_it_had_never_stopped(finished, killed, tmp_path):
    run = tmp_path / "again"
    shutil.copytree(killed, run)
    fork(2, "scaled.train", "--resume", run, log=tmp_path / "log")
    assert numbers(run) == numbers(finished)


def test_resuming_on_other_ranks_goes_on_from_the_same_step(finished, killed, tmp_path):
    run = tmp_path / "alone"
    shutil.copytree(killed, run)
    fork(1, "scaled.train", "--resume", run, "--zero-stage", "2", "--token-budget", "300", log=tmp_path / "log")
    again, expected = numbers(run), numbers(finished)
    assert again[:-1] == expected[:-1]
    assert again[-1]["step"] == 2 and again[-1].keys() == expected[-1].keys()


def test_a_second_run_in_the_same_folder_is_refused_in_one_line(finished):
    words = ["--config", "scaled/configs/smoke.yaml", "--run-dir", finished, *SMALL]
    done = torchrun(2, "-m", "scaled.train", *words)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("scaled.train:")]
    assert len(said) == 1 and "already holds a run" in said[0]


def test_a_model_that_would_train_on_wrong_numbers_is_refused_before_the_first_step(tmp_path):
    """Falcon sees its neighbours among packed rows."""
    require("deepspeed", "vllm")
    model, run = make_toy("Falcon", tmp_path / "falcon"), tmp_path / "run"
    words = ["--config", "scaled/configs/smoke.yaml", "--ranks", "1", "--preset", "grpo", "--model", model]
    log = tmp_path / "log"
    assert try_fork(1, "scaled.train", *words, "--run-dir", run, *SMALL, log=log) != 0
    said = [line for line in log.read_text().splitlines() if line.startswith("scaled.train:")]
    assert len(said) == 1 and "would train on wrong numbers: a row's numbers in the actor depend" in said[0]
    assert [path.name for path in run.iterdir()] == ["failures.log"]
    refuse_a_run(run)  # another model may begin there
