"""Learning of TRL's GRPO, our GRPO and our VAPO on the default task, over samples and processor seconds, turn by turn.

    .venv-trl/bin/python benchmarks/curves_beside_trl.py        # made as for beside_trl.py; into curves_beside_trl.csv

The base of `locks` in the package; rollouts of 256 responses = 32 prompts × 8, 16 updates of 16 rows, one learning
rate, no warm-up, one thread; GRPO with the loss of its paper, a mean over each response. VAPO starts from the critic in
the package, whose responses are not counted. The score is the accuracy on 192 held-out problems at temperature 1 and
top-p 1, measured outside the clock. The rate was chosen after one run each at twice as much on seed 1000, which fell at
its end.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import tables
import torch

from minivapo.local import LocalEngine
from minivapo.runs.folder import git_commit
from minivapo.tasks import BASES, make_task
from minivapo.vapo import PRESETS, evaluate, train_step

OUT = Path(__file__).parent / "curves_beside_trl.csv"
ROLLOUTS, EVERY, ROWS, GROUP, MINI_BATCH, LIMIT, RATE = 16, 4, 256, 8, 16, 96, 2e-4
WAYS = ("trl grpo", "minivapo grpo", "minivapo vapo")
BASE, TASK = BASES / "locks", make_task("locks")

Row = dict[str, Any]


def engine_of(way: str, seed: int) -> LocalEngine:
    """Our engine for one of our ways; TRL's weights are judged by that of GRPO."""
    from minivapo.options.embedded import fitted

    preset = "vapo" if way == "minivapo vapo" else "grpo"
    config = dataclasses.replace(
        fitted(PRESETS[preset], "locks", critic=True), batch_size=ROWS, mini_batch=MINI_BATCH, micro_batch=MINI_BATCH,
        group_size=GROUP, steps=ROLLOUTS, max_new_tokens=LIMIT, actor_lr=RATE, warmup=0, seed=seed, eval_problems=192,
        eval_top_p=1.0,
    )  # fmt: skip
    engine = LocalEngine(BASE, config, stop=TASK.stop)
    engine.sampler.sync(engine.actor)
    return engine


def accuracy(engine: LocalEngine) -> float:
    """On held-out problems."""
    return evaluate(engine.config, TASK, engine)["eval/accuracy"]


def ours(way: str, seed: int) -> list[tuple[int, float, float]]:
    """(rollouts, processor seconds, accuracy) along one run."""
    engine, spent = engine_of(way, seed), 0.0
    found = [(0, 0.0, accuracy(engine))]
    for rollout in range(1, ROLLOUTS + 1):
        begun = time.process_time()
        train_step(engine.config, TASK, engine)
        engine.progress.step += 1
        spent += time.process_time() - begun
        if rollout % EVERY == 0:
            found.append((rollout, spent, accuracy(engine)))
    return found


def trl(seed: int) -> list[tuple[int, float, float]]:
    """The same for TRL."""
    import datasets
    import transformers
    from trl import GRPOConfig, GRPOTrainer

    updates = ROWS // MINI_BATCH
    problems = TASK.train_problems(0, ROWS // GROUP * (ROLLOUTS + 1), seed)
    by_prompt = {p.prompt: p for p in problems}
    judge = engine_of("trl grpo", seed)
    found, clock = [(0, 0.0, accuracy(judge))], {"measuring": 0.0}

    def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        return [float(TASK.is_correct(by_prompt[p], c)) for p, c in zip(prompts, completions, strict=True)]

    class Mark(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % (updates * EVERY) == 0:
                now = time.process_time()
                judge.actor.model.load_state_dict(trainer.model.state_dict())
                judge.actor.version += 1
                judge.sampler.sync(judge.actor)
                found.append((state.global_step // updates, now - begun - clock["measuring"], accuracy(judge)))
                clock["measuring"] += time.process_time() - now

    with tempfile.TemporaryDirectory() as out:
        arguments = GRPOConfig(
            output_dir=out, use_cpu=True, bf16=False, per_device_train_batch_size=MINI_BATCH, loss_type="grpo",
            gradient_accumulation_steps=1, steps_per_generation=updates, num_generations=GROUP, num_iterations=1,
            max_completion_length=LIMIT, temperature=1.0, beta=0.0, learning_rate=RATE, lr_scheduler_type="constant",
            max_steps=updates * ROLLOUTS, save_strategy="no", report_to=[], disable_tqdm=True, seed=seed,
            gradient_checkpointing=False, weight_decay=judge.config.weight_decay,
            max_grad_norm=judge.config.max_grad_norm,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(BASE), reward_funcs=reward, args=arguments,
            callbacks=[Mark()], processing_class=transformers.AutoTokenizer.from_pretrained(BASE, padding_side="left"),
            train_dataset=datasets.Dataset.from_list([{"prompt": p.prompt} for p in problems]),
        )  # fmt: skip
        begun = time.process_time()
        trainer.train()
    return found


def main() -> None:
    """Runs what the CSV does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    from importlib.metadata import version

    about = {"trl": version("trl"), "torch": version("torch"), "machine": platform.machine(), "commit": git_commit()}
    rows: list[Row] = tables.read(args.out)
    for seed in range(1000, 1000 + args.seeds):
        for way in WAYS:
            if any((row["way"], row["seed"]) == (way, str(seed)) for row in rows):
                continue
            for rollouts, seconds, score in trl(seed) if way == "trl grpo" else ours(way, seed):
                known = {"way": way, "seed": str(seed), "rollouts": rollouts, "samples": rollouts * ROWS}
                rows.append(known | {"cpu_seconds": round(seconds, 1), "accuracy": round(score, 4)} | about)
            print(f"{way}, seed {seed}: {rows[-1]['accuracy']} after {rows[-1]['cpu_seconds']} s", flush=True)
            tables.write(args.out, rows)


if __name__ == "__main__":
    main()
