"""What the shipped critic sees of the default task, before and after training: python benchmarks/critic_sees.py --json

Each number is a share of what the oracle sees on the same fresh responses. `ev_ratio` and `fall_ratio` are of the base
policy and its shipped critic; `ev_ratio_after_training` is of both after the default run's steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import torch

from minivapo.local import LocalEngine
from minivapo.options.embedded import fitted
from minivapo.study.sight import measure_sight
from minivapo.tasks import default_model, make_task
from minivapo.vapo import PRESETS, train


def main() -> None:
    """Trains the default run, and prints the three numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="locks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--responses", type=int, default=2048)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = dataclasses.replace(fitted(PRESETS["vapo"], args.task, critic=True), seed=args.seed)
    task = make_task(args.task)
    engine = LocalEngine(default_model(args.task), config, stop=task.stop)
    engine.sampler.sync(engine.actor)
    before = measure_sight(config, task, engine, args.responses)
    engine.progress.prompts = engine.progress.samples = 0
    for metrics in train(config, task, engine):
        print(f"step {metrics['step']} of {config.steps}", end="\r", file=sys.stderr)
    after = measure_sight(config, task, engine, args.responses)
    found = {
        "ev_ratio": before.ev_ratio, "fall_ratio": before.fall_ratio, "ev_ratio_after_training": after.ev_ratio,
        "fall_ratio_after_training": after.fall_ratio, "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
    }  # fmt: skip
    print(json.dumps(found, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
