"""On every rank: whole updates by DeepSpeed against the local engine, and checkpoints. Rank 0 writes findings.

update_worker.py OUT MODELS CHECKPOINT [load]
"""

import dataclasses
import json
import math
import sys
import types
from pathlib import Path

import torch
from toy import LOSSES, record_rollout, share, toy_config

from minivapo.interfaces import NonFiniteError, World
from minivapo.loading import load_actor, load_critic
from minivapo.local import LocalLearner
from minivapo.vapo import PRESETS, update
from scaled.config import Settings
from scaled.learner import DeepSpeedLearner
from scaled.world import start

OUT, MODELS, CHECKPOINT = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
STEPS = 2
RATES = {"actor_lr": 1e-5, "critic_lr": 2e-5, "weight_decay": 0.01}
torch.set_num_threads(1)
world = start(5)
found: dict[str, dict] = {}
travels = {"exchanges": 0, "balances": 0}
exchange = world.exchange


def counted(parts):
    travels["exchanges"] += 1
    return exchange(parts)


world.exchange = counted


def distance(learner, local) -> float:
    """Largest difference of any weight; 0 on ranks that have nothing to compare with."""
    here = {name: x.clone() for name, x in learner.weights()}  # all ranks gather them
    if local is None:
        return 0.0
    return max(float((here[name] - x.detach()).abs().max()) for name, x in local.model.named_parameters())


def direction(learner, local, start) -> float:
    """Distance of the two updates over the length of the local one."""
    here = {name: x.clone() for name, x in learner.weights()}
    if local is None:
        return 0.0
    apart = length = 0.0
    for name, x in local.model.named_parameters():
        apart += float((here[name] - x.detach()).double().square().sum())
        length += float((start[name] - x.detach()).double().square().sum())
    return math.sqrt(apart / length)


def relative(a: dict, b: dict) -> float:
    """Largest difference of any metric that both have, relative to 1 or the metric."""
    assert a or world.rank > 0
    return max((abs(a[k] - b[k]) / max(1.0, abs(a[k])) for k in a), default=0.0)


def local_learner(source, kind, config):
    load = load_actor if kind == "actor" else load_critic
    return LocalLearner(load(source), kind, config)


def expectation(*args):
    """The local learner on the rank that writes the findings: what the others find is never looked at."""
    return local_learner(*args) if world.rank == 0 else None


def local_update(local, rollout, kind, loss, config) -> dict:
    """Metrics of the whole update on one machine."""
    if local is None:
        return {}
    here = types.SimpleNamespace(world=World(), **{kind: local})
    return update(config, rollout, here, kind, LOSSES[loss], 1)


def k_steps(learner, local, kind, loss, config):
    """The same updates on both; returns the metrics of the last."""
    for k in range(STEPS):
        there = types.SimpleNamespace(world=world, **{kind: learner})
        rollout = record_rollout(config, k)
        expected = local_update(local, rollout, kind, loss, config)
        # Rows as they happen to lie, many or none of a mini-batch on a rank; then balanced as in a run.
        rows = share(rollout, config, world.rank, world.size)
        if k == STEPS - 1:
            rows = learner.balance(rows, config.mini_batch)
            travels["balances"] += 1
        got = update(config, rows, there, kind, LOSSES[loss], 1)
    return expected, got


def compare_forward(learner, local, config) -> float:
    rollout = record_rollout(config, 9)
    mine = share(rollout, config, world.rank, world.size)
    got = learner.forward(mine)
    worst = 0.0
    for name, x in local.forward(mine).items():
        inside = torch.arange(x.shape[1]) < mine.totals[:, None]
        if name in ("logprobs", "entropy"):  # of a prompt's tokens the local learner computes none
            inside = mine.mask
        worst = max(worst, float(((x - got[name]) * inside).abs().max()))
    return float(world.max(torch.tensor(worst)))


def updates() -> None:
    """Every preset's losses, both stages, several budgets: weights and metrics."""
    budgets = [30, 90, 100_000]
    for stage in (2, 3):
        for kind in ("actor", "critic"):
            source = MODELS / ("qwen2-tied" if stage == 2 else "llama-untied")
            if kind == "critic":
                source = MODELS / "critic"  # a head that is not zero
            settings = Settings(
                zero_stage=stage, dtype="float32", logits_chunk=7, activation_checkpointing=stage == 3,
                attention="sdpa" if stage == 2 else "eager",
            )  # fmt: skip
            config = toy_config("vapo", **RATES)
            learner = DeepSpeedLearner(source, kind, config, settings, world)
            fresh = OUT.parent / f"fresh-{stage}-{kind}-{world.size}"
            learner.save(fresh)
            world.sum(torch.zeros(1))
            found[f"forward-{stage}-{kind}"] = {
                "outputs": compare_forward(learner, local_learner(source, kind, config), config)
            }
            for i, preset in enumerate(PRESETS):
                config = toy_config(preset, **RATES)
                if kind == "critic" and config.advantage != "gae":
                    continue
                if "-wo-" in preset and (kind == "critic" or world.size != 2):
                    continue
                learner.load(fresh)
                learner.settings = dataclasses.replace(settings, token_budget=budgets[i % 3])
                local = expectation(source, kind, config)
                begin = {name: p.detach().clone() for name, p in local.model.named_parameters()} if local else {}
                for loss in ["actor"] if kind == "actor" else ["reward-model", "critic"]:
                    expected, got = k_steps(learner, local, kind, loss, config)
                    found[f"{preset}-{loss}-zero{stage}-budget{budgets[i % 3]}"] = {
                        "weights": distance(learner, local),
                        "update": direction(learner, local, begin),
                        "metrics": relative(expected, got),
                        "imbalance": got[f"{kind}/imbalance"],
                        "version": [learner.version, local.version if local else 0],
                    }
            refusal(learner, local, kind, config, stage)


def refusal(learner, local, kind, config, stage) -> None:
    """A loss or gradient that is not finite, on one rank only, is refused on every rank; then training goes on."""
    before = {name: x.clone() for name, x in learner.weights()}
    version = learner.version
    mine = share(record_rollout(config, 0), config, world.rank, world.size)
    mine = mine.rows(range(config.mini_batch // world.size))
    raised = {}
    for case in ("loss", "gradient"):

        def broken(outputs, rows, case=case):
            x = outputs["logprobs" if kind == "actor" else "values"]
            loss = x.square().sum()
            if bool((rows.group == record_rollout(config, 0).group[0]).any()):  # only where that row was dealt
                loss = loss + math.nan if case == "loss" else loss * math.inf
            return loss, {"loss": loss.detach() if case == "loss" else torch.zeros(())}, {"peak": loss.detach()}

        try:
            learner.step(mine, broken, 1e-3)
            raised[case] = 0.0
        except NonFiniteError:
            raised[case] = 1.0
    unchanged = all(torch.equal(before[name], x) for name, x in learner.weights())
    # The refused gradients must leave nothing behind: the next update equals the local one.
    k_steps(learner, local, kind, kind, config)
    found[f"refusal-{kind}-zero{stage}"] = {
        **raised, "unchanged": float(unchanged), "version": [learner.version - STEPS * 2, version],
        "weights_after": distance(learner, local),
    }  # fmt: skip


def one_rank() -> None:
    """All rows are on the last rank; the others have none."""
    for kind in ("actor", "critic"):
        source = MODELS / ("llama-untied" if kind == "actor" else "critic")
        config = toy_config("vapo", **RATES)
        settings = Settings(zero_stage=3, dtype="float32", token_budget=60, activation_checkpointing=False)
        learner, local = DeepSpeedLearner(source, kind, config, settings, world), expectation(source, kind, config)
        rollout = record_rollout(config, 4)
        there = types.SimpleNamespace(world=world, **{kind: learner})
        rows = rollout.rows(range(len(rollout)) if world.rank == world.size - 1 else [])
        outputs = learner.forward(rows)
        assert all(len(x) == len(rows) for x in outputs.values())
        expected = local_update(local, rollout, kind, kind, config)
        got = update(config, rows, there, kind, LOSSES[kind], 1)
        found[f"one-rank-{kind}"] = {
            "weights": distance(learner, local),
            "metrics": relative(expected, got),
            "imbalance": got[f"{kind}/imbalance"],
        }


def checkpoints(load: bool) -> None:
    """Saves after some steps, or loads what another number of ranks saved, and takes one more step."""
    for kind in ("actor", "critic"):
        for stage in (2, 3):
            source = MODELS / ("llama-untied" if kind == "actor" else "critic")
            config = toy_config("vapo", **RATES)
            settings = Settings(zero_stage=stage, dtype="float32", token_budget=60, activation_checkpointing=False)
            learner = DeepSpeedLearner(source, kind, config, settings, world)
            folder = CHECKPOINT / f"{kind}-{stage}"
            if load:
                # Saved under the other stage, by another number of ranks.
                folder = CHECKPOINT / f"{kind}-{5 - stage}"
                learner.load(folder)
            else:
                rows = share(record_rollout(config, 1), config, world.rank, world.size)
                update(config, rows, types.SimpleNamespace(world=world, **{kind: learner}), kind, LOSSES[kind], 1)
                learner.save(folder)
                again = DeepSpeedLearner(source, kind, config, settings, world)
                world.sum(torch.zeros(1))
                again.load(folder)
            local = expectation(source, kind, config)
            if local:
                local.load(folder)
            at_load = distance(learner, local)
            rollout = record_rollout(config, 2)
            local_update(local, rollout, kind, kind, config)
            rows = share(rollout, config, world.rank, world.size)
            update(config, rows, types.SimpleNamespace(world=world, **{kind: learner}), kind, LOSSES[kind], 1)
            found[f"checkpoint-{kind}-zero{stage}"] = {"at_load": at_load, "after": distance(learner, local)}
            if not load:
                update(config, rows, types.SimpleNamespace(world=world, **{kind: again}), kind, LOSSES[kind], 1)
                pairs = zip(learner.weights(), again.weights(), strict=True)
                same = all(torch.equal(a[1], b[1]) for a, b in pairs)
                found[f"checkpoint-{kind}-zero{stage}"]["identical"] = float(same)


def low_precision() -> None:
    """bf16 with fp32 master weights, and the offloaded optimizer: close to fp32, and through a checkpoint exactly."""
    for name, changes in {"bf16": {"dtype": "bfloat16"}, "offload": {"offload_optimizer": True}}.items():
        config = toy_config("vapo", **RATES)
        base = {"dtype": "float32", "token_budget": 60, "activation_checkpointing": False}
        settings = Settings(**{**base, **changes})
        learner = DeepSpeedLearner(MODELS / "llama-tied", "actor", config, settings, world)
        local = expectation(MODELS / "llama-tied", "actor", config)
        expected, got = k_steps(learner, local, "actor", "actor", config)
        folder = OUT.parent / f"{name}-{world.size}"
        learner.save(folder)
        again = DeepSpeedLearner(MODELS / "llama-tied", "actor", config, settings, world)
        world.sum(torch.zeros(1))
        again.load(folder)
        k_steps(again, local, "actor", "actor", config)
        k_steps(learner, local, "actor", "actor", config)
        same = all(torch.equal(a[1], b[1]) for a, b in zip(learner.weights(), again.weights(), strict=True))
        found[name] = {
            "metrics": relative({k: x for k, x in expected.items() if k in ("actor/loss", "actor/grad_norm")}, got),
            "identical": float(same),
        }


if sys.argv[4:] == ["load"]:
    checkpoints(load=True)
else:
    updates()
    one_rank()
    checkpoints(load=False)
    low_precision()
    found["travels"] = travels
if world.rank == 0:
    OUT.write_text(json.dumps(found, indent=1))
