"""A step of GRPO, VAPO and PPO here beside a step of TRL's GRPO and PPO: processor seconds and memory, turn by turn.

    python3 -m venv .venv-trl && .venv-trl/bin/pip install -c constraints.txt -e '.[real]' trl==1.16
    python3 -m venv .venv-ppo && .venv-ppo/bin/pip install -c constraints.txt -e '.[real]' trl==1.12   # has PPO
    .venv-trl/bin/python benchmarks/beside_trl.py --ppo .venv-ppo/bin/python     # --sizes embedded: the first alone

All take the same model, length limit, temperature and number of updates: 256 responses, at most 64 tokens, 16 updates
of 16 rows, one thread; 32 prompts × 8, but 256 prompts for both PPOs, which know no groups. The learning rate is so
small that lengths stay those of the base. Every measurement is a process of its own; within one the first step warms
up. The order is A B C … A B C …, so that other work on the machine touches all alike, and processor seconds are what is
compared. Without --ppo, TRL's PPO is left out; with --bf16 both GRPOs also run with products in bfloat16.

    embedded   the base of `locks`, 70,000 parameters, responses as long as it makes them
    6M         six layers of 256, random weights: nearly every response reaches the limit
    135M       SmolLM2-135M's shape with random weights, 64 responses of at most 16 tokens, 4 updates of 16 rows
    real       configs/laptop-real.yaml: SmolLM2-135M itself on sums, 64 responses of 8 prompts, 2 updates of 32 rows;
               VAPO's critic has its first 8 layers
    contrast   the same with other verdicts

An update of our GRPO takes no pass over groups that are all right or all wrong. In `embedded` and `real` verdicts are
the task's own, the share of groups that have both is in the rows; elsewhere a coin gives them that the response's text
decides, so that nearly every group has both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tables

ROOT = Path(__file__).parents[1]
SIZES: dict[str, dict[str, Any]] = {
    "embedded": {"rows": 256, "limit": 64, "mini_batch": 16, "shape": {}},
    "6M": {
        "rows": 256, "limit": 64, "mini_batch": 16,
        "shape": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
                  "num_key_value_heads": 4, "head_dim": 64},
    },
    "135M": {
        "rows": 64, "limit": 16, "mini_batch": 16,
        "shape": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                  "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152},
    },
    "real": {"rows": 64, "limit": 16, "mini_batch": 32},
    "contrast": {"rows": 64, "limit": 16, "mini_batch": 32},
}  # fmt: skip
GROUP, RATE = 8, 1e-7
OWN_MODEL, OWN_VERDICTS = ("real", "contrast"), ("embedded", "real")


class Coin:
    """A task whose verdicts a coin gives that the response's text decides."""

    def __init__(self, task: Any) -> None:
        self.task, self.name, self.stop = task, task.name, task.stop

    def train_problems(self, start: int, count: int, seed: int) -> list[Any]:
        """The task's."""
        return self.task.train_problems(start, count, seed)

    def judge(self, problems: Sequence[Any], responses: Sequence[str]) -> list[float]:
        """Half of all texts are right."""
        return [float(zlib.crc32(text.encode()) & 1) for text in responses]


def setting(size: str, folder: Path) -> tuple[Any, str, str | None]:
    """What is learned, the policy's folder, and where a critic starts if not there."""
    from minivapo.loading import locate
    from minivapo.tasks import make_task

    task, model, critic = make_task("locks"), str(folder), None
    if size in OWN_MODEL:
        import real

        args, task, model = real.shipped("--preset", "vapo")
        model, critic = locate(model, "actor"), locate(args.critic, "critic")
    return task if size in OWN_VERDICTS else Coin(task), model, critic


def make_model(size: str, folder: Path) -> None:
    """The base in the package, or random weights of a shape behind its tokenizer; none for a real model."""
    if size in OWN_MODEL:
        return
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


class Seconds:
    """Processor seconds of each step, and of sampling within it."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.sampling = [0.0]
        self.mixed: list[float] = []
        """Shares of groups with right and wrong responses, where they are known."""
        self.begun = time.process_time()

    def step(self) -> None:
        """A step ends, and the next begins."""
        now = time.process_time()
        self.steps.append(now - self.begun)
        self.sampling.append(0.0)
        self.begun = now

    def count_as_sampling(self, owner: Any, name: str) -> None:
        """Calls of this function from now on."""
        work = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            result = work(*args, **kwargs)
            self.sampling[-1] += time.process_time() - begun
            return result

        setattr(owner, name, counted)


def ours(preset: str, size: str, folder: Path, steps: int, bf16: bool = False) -> tuple[Seconds, float]:
    """Seconds of the steps of a preset, and the mean length of the last responses."""
    from minivapo.local import LocalEngine
    from minivapo.vapo import PRESETS, train_step

    rows, limit, mini_batch = (SIZES[size][name] for name in ("rows", "limit", "mini_batch"))
    group = GROUP if PRESETS[preset].group_size > 1 else 1
    task, model, critic = setting(size, folder)
    config = dataclasses.replace(
        PRESETS[preset], batch_size=rows, mini_batch=mini_batch, micro_batch=mini_batch, group_size=group, steps=steps,
        max_new_tokens=limit, actor_lr=RATE, critic_lr=RATE, critic_init="policy", value_pretrain_steps=0,
        dynamic_sampling=0,
    )  # fmt: skip
    engine = LocalEngine(model, config, critic=critic, stop=task.stop, autocast=bf16)
    engine.sampler.sync(engine.actor)
    seconds, length = Seconds(), 0.0
    seconds.count_as_sampling(engine.sampler, "generate")
    for _ in range(steps):
        metrics = train_step(config, task, engine)
        length = metrics["response/length"]
        seconds.mixed.append(metrics["reward/mixed_groups"])
        engine.progress.step += 1
        seconds.step()
    return seconds, length


def trl(size: str, folder: Path, steps: int, bf16: bool = False) -> tuple[Seconds, float]:
    """Seconds of TRL's rollouts with their updates, and the mean length of the last responses."""
    import datasets
    import torch
    import transformers
    from trl import GRPOConfig, GRPOTrainer

    rows, limit, mini_batch = (SIZES[size][name] for name in ("rows", "limit", "mini_batch"))
    updates = rows // mini_batch
    task, source, _ = setting(size, folder)
    problems = task.train_problems(0, rows // GROUP * (steps + 1), 0)
    by_prompt = {p.prompt: p for p in problems}

    def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        return [float(score or 0) for score in task.judge([by_prompt[p] for p in prompts], completions)]

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step % updates == 0:
                seconds.step()

    with tempfile.TemporaryDirectory() as out:
        arguments = GRPOConfig(
            output_dir=out, use_cpu=True, bf16=bf16, per_device_train_batch_size=mini_batch,
            gradient_accumulation_steps=1, steps_per_generation=updates, num_generations=GROUP, num_iterations=1,
            max_completion_length=limit, temperature=1.0, beta=0.0, learning_rate=RATE, lr_scheduler_type="constant",
            max_steps=updates * steps, save_strategy="no", report_to=[], logging_steps=updates, disable_tqdm=True,
            seed=0, gradient_checkpointing=False,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        trainer = GRPOTrainer(
            model=model, reward_funcs=reward, args=arguments, callbacks=[Clock()],
            processing_class=transformers.AutoTokenizer.from_pretrained(source, padding_side="left"),
            train_dataset=datasets.Dataset.from_list([{"prompt": p.prompt} for p in problems]),
        )  # fmt: skip
        seconds = Seconds()
        seconds.count_as_sampling(trainer, "_generate")
        trainer.train()
    lengths = [
        line["completions/mean_length"] for line in trainer.state.log_history if "completions/mean_length" in line
    ]
    return seconds, lengths[-1]


def trl_ppo(size: str, folder: Path, steps: int) -> tuple[Seconds, float]:
    """Seconds of TRL's rollouts with their updates of policy and critic, and the mean length of all responses.

    TRL's reward is a model's: here that model is the verifier. A reference model is asked even though its coefficient
    is 0; TRL's PPO does not go without.
    """
    import datasets
    import torch
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    rows, limit, mini_batch = (SIZES[size][name] for name in ("rows", "limit", "mini_batch"))
    task, source, critic_source = setting(size, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, padding_side="left")
    problems = task.train_problems(0, rows * (steps + 1), 0)
    lengths = []

    class Verifier(torch.nn.Module):
        """For TRL a body with states and a head with a score of each token: here the token ids, and the verdict."""

        base_model_prefix = "body"

        def body(self, input_ids, attention_mask, **_):
            return transformers.modeling_outputs.BaseModelOutput(hidden_states=((input_ids, attention_mask),))

        def score(self, states):
            verdicts = []
            for ids, there in zip(*states, strict=True):
                text = tokenizer.decode(ids[there], skip_special_tokens=True)
                problem = next(p for p in problems if text.startswith(p.prompt))
                (score,) = task.judge([problem], [text.removeprefix(problem.prompt)])
                verdicts.append(float(score or 0))
                lengths.append(len(ids[there]) - len(tokenizer(problem.prompt)["input_ids"]))
            return torch.tensor(verdicts)[:, None, None].expand(*states[0].shape, 1)

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seconds.step()

    with tempfile.TemporaryDirectory() as out:
        arguments = PPOConfig(
            output_dir=out, use_cpu=True, bf16=False, per_device_train_batch_size=rows, gradient_accumulation_steps=1,
            num_mini_batches=rows // mini_batch, num_ppo_epochs=1, local_rollout_forward_batch_size=rows,
            response_length=limit, temperature=1.0, kl_coef=0.0, stop_token="eos", learning_rate=RATE,
            lr_scheduler_type="constant", total_episodes=rows * steps, num_sample_generations=0, save_strategy="no",
            report_to=[], disable_tqdm=True, seed=0, gradient_checkpointing=False,
        )  # fmt: skip
        exact: dict[str, Any] = {"dtype": torch.float32}
        policy, reference = (transformers.AutoModelForCausalLM.from_pretrained(source, **exact) for _ in range(2))
        critic = transformers.AutoModelForSequenceClassification.from_pretrained(
            critic_source or source, num_labels=1, **exact
        )
        prompts = [{"input_ids": tokenizer(p.prompt)["input_ids"]} for p in problems]
        trainer = PPOTrainer(
            args=arguments, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=Verifier(),
            value_model=critic, callbacks=[Clock()], train_dataset=datasets.Dataset.from_list(prompts),
        )  # fmt: skip
        seconds = Seconds()
        seconds.count_as_sampling(ppo_trainer, "batch_generation")
        trainer.train()
    return seconds, statistics.fmean(lengths)


WAYS = ("trl grpo", "minivapo grpo", "minivapo vapo", "trl ppo", "minivapo ppo")
HALF = ", bf16"
"""Behind a way whose products are bfloat16's, with weights in float32; only where the processor has them (--bf16)."""


def measure(way: str, size: str, folder: Path, steps: int) -> dict[str, Any]:
    """Median over the steps after the first, the peak of memory in this process, and what ran."""
    from importlib.metadata import version

    import torch

    torch.set_num_threads(1)
    plain, half = way.removesuffix(HALF), way.endswith(HALF)
    if plain == "trl ppo":
        seconds, length = trl_ppo(size, folder, steps)
    elif plain == "trl grpo":
        seconds, length = trl(size, folder, steps, half)
    else:
        seconds, length = ours(plain.split()[1], size, folder, steps, half)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "cpu_seconds": round(statistics.median(seconds.steps[1:]), 3),
        "sampling_seconds": round(statistics.median(seconds.sampling[1:-1]), 3),
        "peak_mib": round(peak),
        "length": round(length, 1),
        "mixed_groups": round(statistics.fmean(seconds.mixed[1:]), 3) if seconds.mixed else "",
    } | {name: version(name) for name in ("trl", "transformers", "torch")}


def main() -> None:
    """Measures what the CSV does not have yet, and writes it after each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5, help="turns of all three")
    parser.add_argument("--steps", type=int, default=3, help="in each process, the first of them not counted")
    parser.add_argument("--ppo", metavar="PYTHON", help="that of an environment with TRL's PPO")
    parser.add_argument("--bf16", action="store_true", help="also both GRPOs with products in bfloat16")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/beside_trl.csv")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.sizes[0], Path(args.one[1]), args.steps)))
        return

    known, about = tables.read(args.out), tables.about()
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_model(size, Path(folder))
            for turn in range(args.rounds):
                for way in WAYS + tuple(f"{way}{HALF}" for way in WAYS[:2] if args.bf16):
                    if (way == "trl ppo" and not args.ppo) or (way.endswith("ppo") and size == "contrast"):
                        continue  # verdicts change nothing of what PPO computes
                    if any((r["size"], r["round"], r["way"]) == (size, str(turn), way) for r in known):
                        continue
                    options = ["--sizes", size, "--steps", str(args.steps), "--one", way, folder]
                    python = args.ppo if way == "trl ppo" else sys.executable
                    done = subprocess.run(
                        [python, __file__, *options], env=env, text=True, stdout=subprocess.PIPE, check=True
                    )
                    found = json.loads(done.stdout.splitlines()[-1])
                    known.append({"size": size, "round": str(turn), "way": way, **found, **about})
                    print(f"{size}, round {turn + 1} of {args.rounds}: {way} {found['cpu_seconds']} s", flush=True)
                    tables.write(args.out, known)


if __name__ == "__main__":
    main()
