"""A preset on the real engine, with one vLLM engine shared by all ranks: metrics, who computes advantages, refusals.

engine_worker.py OUT MODEL PRESET

For dapo with a reference model, and fewer mixed groups on some ranks than on others.
"""

import json
import os
import sys
from pathlib import Path

import torch
from toy import ToyTask, toy_config

from minivapo.interfaces import UserError
from minivapo.probe import check_gap, probe
from minivapo.vapo import train
from scaled.config import Settings
from scaled.engine import ScaledEngine
from scaled.gae import gae
from scaled.world import start

OUT, MODEL, PRESET = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
world = start(5)


class Uneven(ToyTask):
    """Only some prompts have groups of mixed verdicts, so that ranks need different numbers of new groups."""

    def judge(self, problems, responses):
        right = super().judge(problems, responses)
        return [False if int(p.id) % 4 == world.rank else r for p, r in zip(problems, right, strict=True)]


changes = {"kl_coef": 0.1, "dynamic_sampling": 3} if PRESET == "dapo" else {}
config = toy_config(PRESET, max_prompt_tokens=16, steps=2, **changes)
settings = Settings(dtype="float32", tensor_parallel=world.size, token_budget=100, sampler_sequences=8)
engine = ScaledEngine(MODEL, config, settings, world, stop=("w7",))
found = {"parallel": engine.gae is gae, "calls": 0}


def counted(*arguments):
    found["calls"] += 1
    return gae(*arguments)


engine.gae = counted
gaps = probe(engine, ToyTask().train_problems(0, 3, 0), config)
lines = list(train(config, Uneven() if PRESET == "dapo" else ToyTask(), engine))


def refusal(work, *arguments) -> str:
    """What a user is told; empty where nothing is wrong."""
    try:
        work(*arguments)
    except UserError as error:
        return str(error)
    return ""


found["gap_now"] = refusal(check_gap, engine, lines[-1])
found["gap_grown"] = refusal(check_gap, engine, lines[-1] | {"policy/sampler_gap_mean": 0.002})
for name in ("actor", "critic") if engine.critic is not None else ("actor",):  # dropout that no config names
    norm = getattr(engine, name).model.base_model.norm
    handle = norm.register_forward_hook(lambda module, _, x: torch.dropout(x, 0.1, module.training))
    found[f"{name}_dropout"] = refusal(probe, engine, ToyTask().train_problems(0, 3, 0), config)
    handle.remove()
assert engine.rollout is not None
groups = torch.cat(world.gather(engine.rollout.group))
if world.rank == 0:
    found |= {"gaps": gaps, "lines": lines, "groups": groups.tolist(), "prompts": engine.progress.prompts}
    OUT.write_text(json.dumps(found))
world.sum(torch.zeros(1))
sys.stdout.flush()
os._exit(0)  # vLLM's threads do not always end with the interpreter
