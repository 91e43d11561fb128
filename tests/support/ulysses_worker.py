"""On every rank: updates and outputs where ranks share rows, against the local engine. Rank 0 writes findings.

ulysses_worker.py OUT MODEL
"""

import json
import sys
import types
from pathlib import Path

import torch
from toy import LOSSES, record_rollout, share, toy_config

from minivapo.interfaces import World
from minivapo.loading import load_actor, load_critic
from minivapo.local import LocalLearner
from minivapo.vapo import update
from scaled.config import Settings
from scaled.learner import DeepSpeedLearner
from scaled.world import start

OUT = Path(sys.argv[1])
SOURCES = {"actor": Path(sys.argv[2]), "critic": OUT.parent / "critic"}
STEPS = 3
torch.set_num_threads(1)
world = start(5)
found: dict[str, dict] = {}


def distance(learner, local) -> float:
    """Largest difference of any weight."""
    reference = dict(local.model.named_parameters())
    return max(float((x - reference[name].detach()).abs().max()) for name, x in learner.weights())


def compare(kind: str, stage: int, budget: int, checkpointing: bool) -> dict[str, float]:
    """Outputs, then as many updates as STEPS on both."""
    config = toy_config("vapo", batch_size=24, mini_batch=12, actor_lr=1e-5, critic_lr=2e-5, weight_decay=0.01)
    settings = Settings(
        zero_stage=stage, dtype="float32", logits_chunk=7, activation_checkpointing=checkpointing,
        token_budget=budget, sequence_parallel=2,
    )  # fmt: skip
    load = load_actor if kind == "actor" else load_critic
    local = LocalLearner(load(SOURCES[kind]), kind, config)
    learner = DeepSpeedLearner(SOURCES[kind], kind, config, settings, world)
    rollout = record_rollout(config, 9)
    mine = share(rollout, config, world.rank, world.size)
    got, outputs = learner.forward(mine), 0.0
    for name, x in local.forward(mine).items():
        inside = torch.arange(x.shape[1]) < mine.totals[:, None]
        if kind == "actor":  # of a prompt's tokens the local learner computes nothing
            inside = mine.mask
        outputs = max(outputs, float(((x - got[name]) * inside).abs().max()))
    moved = {name: p.detach().clone() for name, p in local.model.named_parameters()}
    for k in range(STEPS):
        rollout = record_rollout(config, k)
        one = update(config, rollout, types.SimpleNamespace(world=World(), **{kind: local}), kind, LOSSES[kind], 1)
        rows = share(rollout, config, world.rank, world.size)
        rows = rows if k < STEPS - 1 else learner.balance(rows, config.mini_batch)
        two = update(config, rows, types.SimpleNamespace(world=world, **{kind: learner}), kind, LOSSES[kind], 1)
    return {
        "outputs": float(world.max(torch.tensor(outputs))),
        "weights": distance(learner, local),
        "moved": max(float((moved[n] - p.detach()).abs().max()) for n, p in local.model.named_parameters()),
        "metrics": max(abs(one[k] - two[k]) / max(1.0, abs(one[k])) for k in one),
    }


if world.rank == 0:  # a critic whose head is not zero, so that its body has gradients from the start
    model = load_critic(SOURCES["actor"])
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(SOURCES["critic"])
world.sum(torch.zeros(1))
for kind in ("actor", "critic"):
    for stage, budget, checkpointing in ((3, 25, True), (2, 100_000, False)):
        found[f"{kind}-zero{stage}"] = compare(kind, stage, budget, checkpointing)
if world.rank == 0:
    OUT.write_text(json.dumps(found, indent=1))
