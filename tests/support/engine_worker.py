"""On two ranks: dynamic sampling, a reference model and group advantages, with one tensor-parallel vLLM engine.

engine_worker.py OUT MODEL
"""

import json
import os
import sys
from pathlib import Path

import torch
from toy import ToyTask, toy_config

from minivapo.vapo import train
from scaled.config import Settings
from scaled.engine import ScaledEngine
from scaled.world import start

OUT, MODEL = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
world = start(5)


class Uneven(ToyTask):
    """Only some prompts have groups of mixed verdicts, so that ranks need different numbers of new groups."""

    def judge(self, problems, responses):
        right = super().judge(problems, responses)
        return [False if int(p.id) % 4 == world.rank else r for p, r in zip(problems, right, strict=True)]


config = toy_config("dapo", max_prompt_tokens=16, kl_coef=0.1, steps=2, dynamic_sampling=3)
settings = Settings(dtype="float32", tensor_parallel=2, token_budget=100, sampler_sequences=8)
engine = ScaledEngine(MODEL, config, settings, world, stop=("w7",))
lines = list(train(config, Uneven(), engine))
assert engine.rollout is not None
groups = torch.cat(world.gather(engine.rollout.group))
if world.rank == 0:
    OUT.write_text(json.dumps({"lines": lines, "groups": groups.tolist(), "prompts": engine.progress.prompts}))
world.sum(torch.zeros(1))
sys.stdout.flush()
os._exit(0)  # vLLM's threads do not always end with the interpreter
