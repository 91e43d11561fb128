"""A step of GRPO and of VAPO here beside a step of TRL's GRPO: processor seconds and memory, turn by turn.

    python3 -m venv .venv-trl && .venv-trl/bin/pip install -c constraints.txt -e . trl==1.16
    .venv-trl/bin/python benchmarks/beside_trl.py        # --sizes embedded: the first alone; into beside_trl.csv

All three take the same model, prompts, group, length limit, temperature and number of updates: 256 responses = 32
prompts × 8, at most 64 tokens, 16 updates of 16 rows, one thread. The learning rate is so small that lengths stay
those of the base. Every measurement is a process of its own; within one the first step warms up. The order is A B C A B
C …, so that other work on the machine touches all alike, and processor seconds are what is compared.

    embedded   the base of `locks`, 70,000 parameters, responses as long as it makes them
    6M         six layers of 256, random weights: nearly every response reaches the limit
    135M       SmolLM2-135M's shape with random weights, 64 responses of at most 16 tokens, 4 updates of 16 rows
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import tables

ROOT = Path(__file__).parents[1]
SIZES: dict[str, dict[str, Any]] = {
    "embedded": {"rows": 256, "limit": 64, "shape": {}},
    "6M": {
        "rows": 256, "limit": 64,
        "shape": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
                  "num_key_value_heads": 4, "head_dim": 64},
    },
    "135M": {
        "rows": 64, "limit": 16,
        "shape": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                  "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152},
    },
}  # fmt: skip
GROUP, MINI_BATCH, RATE = 8, 16, 1e-7


def make_model(size: str, folder: Path) -> None:
    """The base in the package, or random weights of a shape behind its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from minivapo.tasks import BASES

    base = BASES / "locks"
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(base)
    shape = SIZES[size]["shape"]
    model = AutoModelForCausalLM.from_pretrained(base)
    if shape:
        config.update({"initializer_range": 0.02} | shape)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)


def ours(preset: str, size: str, folder: Path, steps: int) -> tuple[list[float], float]:
    """Processor seconds of each step of a preset, and the mean length of the last responses."""
    from minivapo.local import LocalEngine
    from minivapo.tasks import make_task
    from minivapo.vapo import PRESETS, train_step

    rows, limit = SIZES[size]["rows"], SIZES[size]["limit"]
    config = dataclasses.replace(
        PRESETS[preset], batch_size=rows, mini_batch=MINI_BATCH, micro_batch=MINI_BATCH, group_size=GROUP, steps=steps,
        max_new_tokens=limit, actor_lr=RATE, critic_lr=RATE, critic_init="policy", value_pretrain_steps=0,
        dynamic_sampling=0,
    )  # fmt: skip
    task = make_task("locks")
    engine = LocalEngine(folder, config, stop=task.stop)
    engine.sampler.sync(engine.actor)
    seconds, length = [], 0.0
    for _ in range(steps):
        begun = time.process_time()
        length = train_step(config, task, engine)["response/length"]
        engine.progress.step += 1
        seconds.append(time.process_time() - begun)
    return seconds, length


def trl(size: str, folder: Path, steps: int) -> tuple[list[float], float]:
    """Processor seconds of each of TRL's rollouts with its updates, and the mean length of the last responses."""
    import datasets
    import transformers
    from trl import GRPOConfig, GRPOTrainer

    from minivapo.tasks import make_task

    rows, limit = SIZES[size]["rows"], SIZES[size]["limit"]
    updates = rows // MINI_BATCH
    task = make_task("locks")
    problems = task.train_problems(0, rows // GROUP * (steps + 1), 0)
    by_prompt = {p.prompt: p for p in problems}

    def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        return [float(task.is_correct(by_prompt[p], c)) for p, c in zip(prompts, completions, strict=True)]

    marks = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % updates == 0:
                marks.append(time.process_time())

    with tempfile.TemporaryDirectory() as out:
        arguments = GRPOConfig(
            output_dir=out, use_cpu=True, bf16=False, per_device_train_batch_size=MINI_BATCH,
            gradient_accumulation_steps=1, steps_per_generation=updates, num_generations=GROUP, num_iterations=1,
            max_completion_length=limit, temperature=1.0, beta=0.0, learning_rate=RATE, lr_scheduler_type="constant",
            max_steps=updates * steps, save_strategy="no", report_to=[], logging_steps=updates, disable_tqdm=True,
            seed=0, gradient_checkpointing=False,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        trainer = GRPOTrainer(
            model=model, reward_funcs=reward, args=arguments, callbacks=[Clock()],
            processing_class=transformers.AutoTokenizer.from_pretrained(folder, padding_side="left"),
            train_dataset=datasets.Dataset.from_list([{"prompt": p.prompt} for p in problems]),
        )  # fmt: skip
        begun = time.process_time()
        trainer.train()
    lengths = [
        line["completions/mean_length"] for line in trainer.state.log_history if "completions/mean_length" in line
    ]
    return [b - a for a, b in itertools.pairwise([begun, *marks])], lengths[-1]


WAYS = ("trl grpo", "minivapo grpo", "minivapo vapo")


def measure(way: str, size: str, folder: Path, steps: int) -> dict[str, float]:
    """Median over the steps after the first, and the peak of memory, in this process."""
    import torch

    torch.set_num_threads(1)
    found = trl(size, folder, steps) if way == "trl grpo" else ours(way.split()[1], size, folder, steps)
    seconds, length = found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "cpu_seconds": round(statistics.median(seconds[1:]), 3),
        "peak_mib": round(peak),
        "length": round(length, 1),
    }


def main() -> None:
    """Measures what the CSV does not have yet, and writes it after each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5, help="turns of all three")
    parser.add_argument("--steps", type=int, default=3, help="in each process, the first of them not counted")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/beside_trl.csv")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.sizes[0], Path(args.one[1]), args.steps)))
        return

    from importlib.metadata import version

    from minivapo.runs.folder import git_commit

    known = tables.read(args.out)
    about = {"trl": version("trl"), "transformers": version("transformers"), "torch": version("torch"),
             "machine": platform.machine(), "commit": git_commit(), "date": date.today().isoformat()}  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_model(size, Path(folder))
            for turn in range(args.rounds):
                for way in WAYS:
                    if any((r["size"], r["round"], r["way"]) == (size, str(turn), way) for r in known):
                        continue
                    options = ["--sizes", size, "--steps", str(args.steps), "--one", way, folder]
                    done = subprocess.run(
                        [sys.executable, __file__, *options], env=env, text=True, stdout=subprocess.PIPE, check=True
                    )
                    found = json.loads(done.stdout.splitlines()[-1])
                    known.append({"size": size, "round": str(turn), "way": way, **found, **about})
                    print(f"{size}, round {turn + 1} of {args.rounds}: {way} {found['cpu_seconds']} s", flush=True)
                    tables.write(args.out, known)


if __name__ == "__main__":
    main()
