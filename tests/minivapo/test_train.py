"""Whole runs: every preset, the same run twice, and runs killed at arbitrary moments and resumed."""

import json
import math
import signal
import time

import pytest
import torch
from child import finish, start, train_child
from compare_runs import content, without_time

from minivapo.local import LocalEngine
from minivapo.runs.folder import read_metrics, write_config
from minivapo.runs.training import run_training
from minivapo.show.metrics_info import explain
from minivapo.vapo import PRESETS, gae, train


def weights(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def test_the_laptop_computes_advantages_by_the_loop_of_vapo(tiny_model, chain, small):
    """And by nothing else: advantages and returns of each rollout; see tests/scaled/test_engine.py for the cluster."""
    config = small("vapo")
    engine = LocalEngine(tiny_model, config)
    assert engine.gae is gae
    calls = []

    def counted(*arguments):
        calls.append(arguments[0].shape)
        return gae(*arguments)

    engine.gae = counted
    list(train(config, chain, engine))
    assert len(calls) == 2 * (config.value_pretrain_steps + config.steps)


@pytest.mark.parametrize("preset", [pytest.param(p, marks=[pytest.mark.once] * ("-wo-" in p)) for p in PRESETS])
def test_every_preset_trains_end_to_end(preset, tiny_model, chain, small):
    config = small(preset)
    engine = LocalEngine(tiny_model, config)
    before = weights(engine.actor.model)
    lines = list(train(config, chain, engine))
    assert all(math.isfinite(v) for line in lines for v in line.values())
    assert [name for line in lines for name in line if explain(name) is None] == []
    steps = [line for line in lines if "actor/loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert "eval/accuracy" in lines[0]
    assert lines[0]["step"] == 0
    assert "eval/accuracy" in lines[-1]
    assert not torch.equal(weights(engine.actor.model), before)
    mini_batches = config.batch_size // config.mini_batch
    assert engine.actor.version == config.steps * mini_batches
    if config.advantage == "group":
        assert engine.critic is None
        assert not any(k.startswith(("critic/", "value/", "pretrain/")) for line in lines for k in line)
        assert len(lines) == 3
    else:
        pretraining = [line for line in lines if "pretrain/rollout" in line]
        assert len(pretraining) == config.reward_model_steps + config.value_pretrain_steps
        assert all(line["step"] == 0 for line in pretraining)
        assert engine.critic.version == (config.steps + len(pretraining)) * mini_batches
        shared = {id(p) for p in engine.critic.model.parameters()} & {id(p) for p in engine.actor.model.parameters()}
        assert not shared
    assert all(line["policy/sampler_gap_max"] < 1e-5 for line in steps)
    assert {line["response/tokens"] > 0 for line in steps} == {True}
    # What is logged is what was used.
    assert steps[-1]["actor/lr"] == config.actor_lr
    assert steps[0]["samples"] >= config.batch_size


def test_the_distance_to_the_reference_policy_is_logged(tiny_model, chain, small):
    config = small("grpo", kl_coef=0.1)
    lines = list(train(config, chain, LocalEngine(tiny_model, config)))
    assert lines[1]["actor/kl_reference"] >= 0
    assert lines[-1]["actor/kl_reference"] > 0  # the policy has moved
    assert explain("actor/kl_reference")


def test_value_pretraining_teaches_the_critic_alone(tiny_model, chain, small):
    config = small("vapo", value_pretrain_steps=6, reward_model_steps=1, value_pretrain_lr=3e-3, steps=0)
    engine = LocalEngine(tiny_model, config)
    actor, critic = weights(engine.actor.model), weights(engine.critic.model)
    losses = [line["pretrain/value_loss"] for line in train(config, chain, engine) if "pretrain/value_loss" in line]
    assert len(losses) == 6
    assert torch.equal(weights(engine.actor.model), actor)
    assert not torch.equal(weights(engine.critic.model), critic)
    assert engine.progress.pretrain_done


def test_value_pretraining_stops_when_the_critic_is_stuck(tiny_model, chain, small):
    """A critic that cannot learn (learning rate ≈ 0) has its patience used up."""
    config = small("vapo", value_pretrain_steps=20, value_pretrain_patience=2, value_pretrain_lr=1e-30, steps=0)
    engine = LocalEngine(tiny_model, config)
    lines = [line for line in train(config, chain, engine) if "value/explained_variance" in line]
    assert 3 <= len(lines) < 20


def test_same_seed_same_run_another_seed_another(tiny_model, chain, small):
    def run(seed):
        config = small("vapo", seed=seed)
        engine = LocalEngine(tiny_model, config)
        lines = [without_time(line) for line in train(config, chain, engine)]
        return lines, weights(engine.actor.model), weights(engine.critic.model)

    torch.manual_seed(1)
    first = run(0)
    torch.manual_seed(2)  # the global generator has no say
    again, other = run(0), run(1)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[2], again[2])
    assert first[0] != other[0]


# Killed and resumed

CASES = {
    "vapo": {"kl_coef": 0.05},
    "dapo": {"eval_every": 2, "steps": 3},
}


@pytest.fixture(scope="module")
def uninterrupted(tiny_model, chain, small, tmp_path_factory):
    """For each case (configuration, uninterrupted run, operations on files that it took)."""
    runs = {}
    for preset, changes in CASES.items():
        config, run = small(preset, **changes), tmp_path_factory.mktemp("whole") / preset
        assert finish(train_child, run, tiny_model, chain, config, 0, 1) == 0
        runs[preset] = config, run, int(run.with_suffix(".operations").read_text())
    return runs


@pytest.mark.once
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize("preset", CASES)
@pytest.mark.parametrize("places", [(0.3, 0.11, 0.17), (0.55, 0.2), (0.83,), (0.97,)], ids=str)
def test_killed_at_any_operation_on_files_and_resumed(uninterrupted, tiny_model, chain, tmp_path, preset, places):
    """Each child dies after a share of the operations that the whole run takes; the last one finishes."""
    config, whole, operations = uninterrupted[preset]
    run = tmp_path / "run"
    for place in places:
        code = finish(train_child, run, tiny_model, chain, config, max(1, int(place * operations)), 1)
        assert code == -signal.SIGKILL
    assert finish(train_child, run, tiny_model, chain, config, 0, 1) == 0
    assert content(run) == content(whole)
    assert {p.name for p in run.iterdir()} == {p.name for p in whole.iterdir()}


@pytest.mark.once
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize("lines", [2, 3, 5])
def test_killed_from_outside_between_rare_checkpoints(uninterrupted, tiny_model, chain, tmp_path, lines):
    """Killed while it computes, after so many lines of metrics: in value-pretraining, and after it."""
    config, whole, _ = uninterrupted["vapo"]
    run = tmp_path / "run"
    process = start(train_child, run, tiny_model, chain, config, 0, 2)
    deadline = time.monotonic() + 200
    while len(read_metrics(run)) < lines and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.005)
    process.kill()
    process.join()
    assert finish(train_child, run, tiny_model, chain, config, 0, 2) == 0
    assert content(run) == content(whole)


@pytest.mark.once
def test_resume_in_value_pretraining_in_one_process(tiny_model, chain, small, tmp_path):
    """The generator is dropped after the second line of pretraining; a new engine goes on from the checkpoint."""
    config = small("vapo")

    def train_in(run, stop_after=None):
        write_config(run, config, {}) if not (run / "config.json").exists() else None
        engine = LocalEngine(tiny_model, config)
        resume = (run / "checkpoint").exists()
        for i, _ in enumerate(run_training(config, chain, engine, run, resume=resume, save_every=1)):
            if i == stop_after:
                return None
        return weights(engine.actor.model), weights(engine.critic.model)

    whole = train_in(tmp_path / "whole")
    train_in(tmp_path / "cut", stop_after=2)
    progress = json.loads((tmp_path / "cut/checkpoint/progress.json").read_text())
    assert progress["reward_model"] == 1
    assert progress["pretrain"] == 1
    resumed = train_in(tmp_path / "cut")
    assert torch.equal(whole[0], resumed[0])
    assert torch.equal(whole[1], resumed[1])
    assert content(tmp_path / "whole") == content(tmp_path / "cut")
