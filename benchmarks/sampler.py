"""Tokens per second of `LocalSampler` beside transformers' `generate`, and what share of an iteration sampling takes.

Both sample the same prompts with the same model, batch and length limit at temperature 1, turn by turn in one
process, and every repeat gives one ratio, so that other work on the machine touches both alike. Processor
seconds are reported beside wall seconds. Only real tokens count: those up to EOS. Two lengths:

    fixed     no response may end early: cost of a token alone
    natural   responses end when the model says so: `generate` carries ended rows along until the last has ended

    python benchmarks/sampler.py --repeats 7 --steps 3 --out benchmarks/sampler.csv
"""

import argparse
import csv
import dataclasses
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch
import transformers

from minivapo.local import LocalEngine
from minivapo.responses import encode_prompt, pad_id
from minivapo.runs.folder import git_commit
from minivapo.tasks import BASES, make_task
from minivapo.vapo import PRESETS, train


def with_minivapo(engine, prompts, n, seed, fixed):
    """Real tokens sampled by LocalSampler; it records log-probs too."""
    sampler = engine.sampler
    sampler.sync(engine.actor)
    if fixed:
        sampler.ends = torch.tensor([-1])
    samples = sampler.generate(prompts, n, seed, engine.actor.version)
    return sum(len(s.tokens) for s in samples)


@torch.no_grad()
def with_transformers(engine, prompts, n, seed, fixed):
    """Real tokens sampled by `generate`, without log-probs, which would cost it more."""
    model, limit = engine.actor.model, engine.sampler.max_new_tokens
    eos, pad = engine.tokenizer.eos_token_id, pad_id(engine.tokenizer)
    width = max(map(len, prompts))
    tokens = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(seed)
    output = model.generate(
        tokens, attention_mask=attention, do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
        num_return_sequences=n, max_new_tokens=limit, min_new_tokens=limit if fixed else None,
        eos_token_id=eos, pad_token_id=pad,
    )[:, width:]  # fmt: skip
    if fixed:
        return output.numel()
    ended = (output == eos).int()
    return int((ended.cumsum(1) - ended == 0).sum())


def measure(engine, prompts, n, fixed, repeats):
    """One row of the table: medians over repeats that alternate between the two."""
    seconds = {with_minivapo: [], with_transformers: []}
    for repeat in range(repeats + 1):
        order = list(seconds) if repeat % 2 else list(seconds)[::-1]
        for function in order:
            wall, processor = time.perf_counter(), time.process_time()
            tokens = function(engine, prompts, n, repeat, fixed)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            if repeat:  # the first one warms up
                seconds[function].append((tokens / wall, tokens / processor))
    ours, theirs = (list(zip(*seconds[f], strict=True)) for f in (with_minivapo, with_transformers))
    ratios = [[a / b for a, b in zip(ours[k], theirs[k], strict=True)] for k in (0, 1)]
    return {
        "minivapo_tokens_per_s": round(statistics.median(ours[0])),
        "transformers_tokens_per_s": round(statistics.median(theirs[0])),
        "ratio": round(statistics.median(ratios[0]), 2),
        "ratio_min": round(min(ratios[0]), 2),
        "ratio_max": round(max(ratios[0]), 2),
        "minivapo_tokens_per_cpu_s": round(statistics.median(ours[1])),
        "transformers_tokens_per_cpu_s": round(statistics.median(theirs[1])),
        "ratio_cpu": round(statistics.median(ratios[1]), 2),
    }


def phases(model, task, steps):
    """Shares of sampling, forward passes and updates in the seconds of an iteration of the default run."""
    config = dataclasses.replace(
        PRESETS["vapo"], steps=steps, eval_problems=1, value_pretrain_steps=1, reward_model_steps=1
    )
    engine = LocalEngine(model, config)
    lines = [line for line in train(config, task, engine) if "time/total" in line]
    total = sum(line["time/total"] for line in lines)
    return {name: sum(line[f"time/{name}"] for line in lines) / total for name in ("sample", "forward", "update")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BASES / "chain"), help="transformers folder")
    parser.add_argument("--prompts", type=int, default=32, help="prompts in the batch")
    parser.add_argument("--group-size", type=int, default=8, help="responses for each prompt")
    parser.add_argument("--tokens", type=int, default=320, help="length limit of a response")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="iterations to take the shares of phases from; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    task = make_task("chain")
    config = dataclasses.replace(PRESETS["grpo"], max_new_tokens=args.tokens)
    engine = LocalEngine(args.model, config)
    problems = task.train_problems(0, args.prompts, 0)
    prompts = [encode_prompt(engine.tokenizer, p.prompt, config.max_prompt_tokens) for p in problems]
    rows = []
    for length in ("fixed", "natural"):
        found = measure(engine, prompts, args.group_size, length == "fixed", args.repeats)
        rows.append({
            "length": length, "batch": args.prompts * args.group_size, "limit": args.tokens, **found,
            "repeats": args.repeats, "threads": args.threads,
            "parameters": sum(p.numel() for p in engine.actor.model.parameters()),
            "torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine(),
            "date": date.today().isoformat(), "commit": git_commit(),
        })  # fmt: skip
        print(f"{length}: {found}", flush=True)
    if args.steps:
        shares = {f"share_{k}": round(v, 3) for k, v in phases(args.model, task, args.steps).items()}
        print(f"shares of an iteration: {shares}")
        rows = [row | shares for row in rows]
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
