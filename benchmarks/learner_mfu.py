"""Model FLOPs utilisation and peak memory of the actor-and-critic update on one GPU, beside the plan.

    python benchmarks/learner_mfu.py                                   # Qwen2.5-1.5B shape, one GPU: not run
    python benchmarks/learner_mfu.py --model Qwen2.5-3B --gpu h200-141 --out benchmarks/learner_mfu.json   # not run
    python benchmarks/learner_mfu.py --device cpu                      # a tiny shape: shows that the script works

Random weights of a real shape, bf16, ZeRO with one rank, packed micro-batches of 16,384 tokens. One update is
one optimizer step of actor and critic over `--micro-batches` of them. MFU counts the FLOPs that the mathematics
needs (three forward passes' worth); HFU counts recomputed layers and logits as well. Aim on one H200: MFU ≥ 50 %,
peak memory within 10 % of the plan. On a CPU the utilisation is against a made-up peak and means nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from plan_check import SMALL, Measure, bytes_alive, random_model, random_rollout, sum_loss

from scaled.config import Job, make_job
from scaled.planning.hardware import GPUS, this_gpu
from scaled.planning.memory import phases
from scaled.planning.setup import make_setup
from scaled.planning.shapes import Shape, forward_flops, model_config


def job_of(folder: Path, args: argparse.Namespace) -> Job:
    """One rank, one mini-batch of `micro_batches` full micro-batches."""
    rows = args.micro_batches * args.tokens // args.length
    return make_job(
        {
            "model": str(folder), "task": "gsm8k", "batch_size": rows, "mini_batch": rows, "group_size": 1,
            "max_prompt_tokens": args.length // 4, "max_new_tokens": args.length - args.length // 4,
            "token_budget": args.tokens, "zero_stage": args.zero_stage, "activation_checkpointing": args.checkpointing,
            "offload_optimizer": args.offload, "attention": args.attention, "logits_chunk": args.logits_chunk,
            "dtype": args.dtype,
        }
    )  # fmt: skip


def update_flops(shape: Shape, rows: int, length: int, checkpointing: bool) -> tuple[float, float]:
    """(model FLOPs, hardware FLOPs) of one update of one network."""
    forward = forward_flops(shape, rows * length, rows * length**2)
    head = 2.0 * shape.head_parameters * rows * length if shape.vocab > 1 else 0.0
    return 3 * forward, 4 * forward if checkpointing else 3 * forward + head


def seconds_of(step: Any, repeats: int) -> list[float]:
    """Times of steps, each waited for."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Both learners at once on the device, as in training; times and peaks of their updates."""
    from scaled.learner import DeepSpeedLearner
    from scaled.world import start

    world, job = start(), job_of(folder, args)
    gpu = this_gpu() or GPUS[args.gpu]
    if args.gpu and torch.cuda.is_available():
        gpu = dataclasses.replace(GPUS[args.gpu], memory=gpu.memory)
    setup = make_setup(job, gpu)
    # No sampler here, and torch's own count knows neither context nor fragmentation.
    plan = {phase.name: phase for phase in phases(setup)}
    rows = job.config.batch_size
    rollout = random_rollout(rows, args.length, model_config(str(folder)).vocab_size)
    base = torch.cuda.memory_allocated() if torch.cuda.is_available() else bytes_alive()
    learners = {kind: DeepSpeedLearner(folder, kind, job.config, job.settings, world) for kind in ("critic", "actor")}
    result: dict[str, Any] = {}
    model_total = hardware_total = seconds_total = 0.0
    for kind, shape in setup.learners:
        loss = sum_loss("logprobs" if kind == "actor" else "values")

        def step(kind: str = kind, loss: Any = loss) -> None:
            learners[kind].step(rollout, loss, 1e-6)

        with Measure(base) as used:
            step()  # the first is warm-up for the clock as well
        times = seconds_of(step, args.repeats)
        seconds = statistics.median(times)
        model, hardware = update_flops(shape, rows, args.length, args.checkpointing)
        mine = [phase for name, phase in plan.items() if name.startswith(kind)]
        planned = max(sum(x for (o, _), x in p.parts.items() if o in ("actor", "critic")) for p in mine)
        result[kind] = {
            "seconds": times, "mfu": model / seconds / gpu.flops, "hfu": hardware / seconds / gpu.flops,
            "tokens_per_second": rows * args.length / seconds, "peak_bytes": used.peak, "planned_bytes": planned,
            "plan_error": (planned - used.peak) / used.peak,
        }  # fmt: skip
        model_total, hardware_total = model_total + model, hardware_total + hardware
        seconds_total += seconds
    result["update"] = {
        "seconds": seconds_total, "mfu": model_total / seconds_total / gpu.flops,
        "hfu": hardware_total / seconds_total / gpu.flops, "peak_flops": gpu.flops,
    }  # fmt: skip
    return result


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", default="Qwen2.5-1.5B", help="a shape that scaled.planning.shapes knows")
    parser.add_argument("--gpu", default="h200-141", help="whose peak FLOP/s to divide by")
    parser.add_argument("--tokens", type=int, help="token budget of a micro-batch (16384; CPU 512)")
    parser.add_argument("--length", type=int, help="tokens of each row (2048; CPU 64)")
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--zero-stage", type=int, choices=[2, 3], default=2)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--logits-chunk", type=int, default=1024)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --device cpu runs a tiny shape.")
    on_gpu = args.device == "cuda"
    args.tokens = args.tokens or (16384 if on_gpu else 512)
    args.length = args.length or (2048 if on_gpu else 64)
    with tempfile.TemporaryDirectory() as folder:
        random_model(Path(folder), model_config(args.model) if on_gpu else SMALL, torch.bfloat16)
        found = measure(Path(folder), args)
    about = {
        "command": {k: str(v) for k, v in vars(args).items()},
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "torch": torch.__version__,
    }
    text = json.dumps(about | found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
