"""The first day on a GPU, in one command: everything that is labelled *not run*, the most valuable first.

    python benchmarks/gpu_day.py                          # one GPU; writes gpu_day.json; not run
    python benchmarks/gpu_day.py --only matmul mfu-0.5b   # these steps, again
    python benchmarks/gpu_day.py --device cpu             # toy sizes: a test of this script, tests/test_gpu_day.py

First whether what a GPU computes is right, then how fast it is and how much memory it takes beside the plan, then a
real run. Each step is a process of its own with at most 8 minutes; what it finds is written at once, so that a day
that is cut off goes on where it stopped: steps that passed are not run again. Nothing is downloaded: weights are
random, or those of the embedded base. The exit code is 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
LIMIT = 480
"""Seconds of one step."""
GOAL_MFU = 0.5
"""Share of the measured matmul rate that the learner's updates should reach."""
Found = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------
# Is it right?
# ---------------------------------------------------------------------------------------------------------


def about(device: str) -> Found:
    """What machine this is, by the doctor; its findings are noted, and do not fail the day."""
    import dataclasses

    from scaled import doctor

    with tempfile.TemporaryDirectory() as folder:
        args = doctor.Arguments(folder=Path(folder), megabytes=16 if device == "cpu" else 1024)
        found = [dataclasses.asdict(finding) for finding in doctor.here(args)]
    return {"passed": True, "platform": platform.platform(), "findings": found}


def local_engine(device: str) -> Found:
    """The local engine's outputs and one update, in float32, against those of the CPU."""
    import torch
    from plan_check import SMALL, random_model, random_rollout, sum_loss

    from minivapo.loading import load_actor
    from minivapo.local import LocalLearner
    from minivapo.vapo import Config

    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        source = random_model(Path(folder), SMALL, torch.float32)
        rollout = random_rollout(4, 48, SMALL.vocab_size)
        a, b = (LocalLearner(load_actor(source), "actor", Config(), where) for where in ("cpu", device))
        gap = largest(a.forward(rollout)["logprobs"] - b.forward(rollout)["logprobs"])
        for learner in (a, b):
            learner.step(rollout, sum_loss("logprobs"), 1e-4)
        after = largest(a.forward(rollout)["logprobs"] - b.forward(rollout)["logprobs"])
    return {"logprob_gap": gap, "gap_after_an_update": after, "passed": gap < 1e-3 and after < 1e-2}


def attention(device: str) -> Found:
    """Attention over packed rows, outputs and gradients, against softmax under a mask in float32."""
    import torch

    from scaled.layers.attention import attend

    lengths, heads, kv, width = (5, 130, 1, 64), 8, 2, 64
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    g = torch.Generator().manual_seed(0)
    total = sum(lengths)
    q, k, v = (torch.randn(1, h, total, width, generator=g).to(dtype).float() for h in (heads, kv, kv))
    grad = torch.randn(1, total, heads, width, generator=g)
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = (row[:, None] == row[None]) & torch.ones(total, total).tril().bool()
    reference = [x.clone().requires_grad_() for x in (q, k, v)]
    wide = [x.repeat_interleave(heads // kv, 1) for x in reference[1:]]
    logits = (reference[0] @ wide[0].transpose(-1, -2) * width**-0.5).masked_fill(~seen, -torch.inf)
    expected = (logits.softmax(-1) @ wide[1]).transpose(1, 2)
    ours = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)
    got, _ = attend(None, *ours, None, cu_seq_lens_q=bounds, max_length_q=max(lengths))
    gaps = {"output": largest(got.float().cpu() - expected)}
    for name, a, b in zip(
        "qkv", torch.autograd.grad(got, ours, grad.to(device, dtype)), torch.autograd.grad(expected, reference, grad),
        strict=True,
    ):  # fmt: skip
        gaps[f"grad_{name}"] = largest(a.float().cpu() - b) / max(1.0, largest(b))
    return {**gaps, "dtype": str(dtype), "passed": max(gaps.values()) < (1e-4 if device == "cpu" else 3e-2)}


def head(device: str) -> Found:
    """Chunked log-probs and entropies against log-softmax on the CPU, in float32."""
    import torch

    from scaled.layers.head import token_logprobs

    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(300, 64, generator=g), torch.randn(1000, 64, generator=g) * 0.2
    targets = torch.randint(1000, (300,), generator=g)
    torch.backends.cuda.matmul.allow_tf32 = False
    expected = torch.log_softmax(hidden @ weight.T, -1)
    got, entropy = token_logprobs(hidden.to(device), weight.to(device), None, targets.to(device), 128, entropy=True)
    gap = largest(got.cpu() - expected.gather(-1, targets[:, None])[:, 0])
    other = largest(entropy.cpu() + (expected.exp() * expected).sum(-1))
    return {"logprob_gap": gap, "entropy_gap": other, "passed": max(gap, other) < 1e-3}


def gae(device: str) -> Found:
    """`scaled.gae` against the definition's loop in float64, and its share of the memory's bandwidth."""
    import torch

    from minivapo.vapo import gae as definition
    from scaled.gae import gae as parallel

    rows, time_steps = (4, 512) if device == "cpu" else (64, 20480)
    g = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(rows, time_steps, generator=g) for _ in range(2))
    mask, lam = torch.rand(rows, time_steps, generator=g) < 0.9, 1 - torch.rand(rows, generator=g) / 100
    few = min(rows, 8)
    part = [x[:few].double() if x.is_floating_point() else x[:few] for x in (rewards, values, mask)]
    expected = definition(part[0], part[1], part[2], 1.0, lam[:few].double())
    inputs = [x.to(device) for x in (rewards, values, mask)]
    got = parallel(*inputs, 1.0, lam.to(device))
    gap = largest(got[:few].cpu().double() - expected) / largest(expected)
    seconds = fastest(lambda: parallel(*inputs, 1.0, lam.to(device)), device)
    return {
        "relative_gap": gap,
        "seconds": seconds,
        "GB_per_s": 13e-9 * rows * time_steps / seconds,
        "passed": gap < 1e-4,
    }


def zero3(device: str) -> Found:
    """DeepSpeed's ZeRO-3 on one rank, packed: outputs and an update against the local engine; through a checkpoint."""
    import torch
    from plan_check import SMALL, job_for, random_model, random_rollout, sum_loss

    from minivapo.loading import load_actor
    from minivapo.local import LocalLearner
    from scaled.learner import DeepSpeedLearner
    from scaled.world import start

    torch.backends.cuda.matmul.allow_tf32 = False
    world = start()
    with tempfile.TemporaryDirectory() as folder:
        source = random_model(Path(folder) / "model", SMALL, torch.float32)
        job = job_for(str(source), dtype="float32", token_budget=100, zero_stage=3)
        rollout = random_rollout(4, 48, SMALL.vocab_size)
        local = LocalLearner(load_actor(source), "actor", job.config)
        learner = DeepSpeedLearner(source, "actor", job.config, job.settings, world)
        seen = rollout.mask  # of a prompt's tokens the local learner computes nothing
        gap = largest((local.forward(rollout)["logprobs"] - learner.forward(rollout)["logprobs"]) * seen)
        for each in (local, learner):
            each.step(rollout, sum_loss("logprobs"), 1e-4)
        after = largest((local.forward(rollout)["logprobs"] - learner.forward(rollout)["logprobs"]) * seen)
        learner.save(Path(folder) / "saved")
        again = DeepSpeedLearner(source, "actor", job.config, job.settings, world)
        again.load(Path(folder) / "saved")
        resumed = largest(again.forward(rollout)["logprobs"] - learner.forward(rollout)["logprobs"])
    passed = gap < 1e-3 and after < 1e-2 and resumed == 0
    return {"logprob_gap": gap, "gap_after_an_update": after, "gap_after_resuming": resumed, "passed": passed}


def sampler(device: str) -> Found:
    """vLLM beside the learner: every push compares their log-probs by itself; sleep and wake, in seconds and bytes."""
    import torch
    from plan_check import SMALL, job_for, random_model

    from scaled.learner import DeepSpeedLearner
    from scaled.sampler import VllmSampler
    from scaled.world import start

    world = start()
    with tempfile.TemporaryDirectory() as folder:
        source = random_model(Path(folder), SMALL, torch.float32)
        dtype = "float32" if device == "cpu" else "bfloat16"
        job = job_for(str(source), dtype=dtype, token_budget=4096, sampler_memory=0.3)
        engine = VllmSampler(source, job.config, job.settings, world, [1])
        learner = DeepSpeedLearner(source, "actor", job.config, job.settings, world)
        found: Found = {"push_seconds": seconds_of(lambda: engine.sync(learner))}
        samples: list[Any] = []
        prompts = [[5, 6, 7, 8 + i] for i in range(4 if device == "cpu" else 64)]
        found["sample_seconds"] = seconds_of(lambda: samples.extend(engine.generate(prompts, 2, 0, learner.version)))
        found["tokens_per_second"] = sum(len(s.tokens) for s in samples) / found["sample_seconds"]
        if device != "cpu":
            asleep = torch.cuda.mem_get_info()[0]
            found["wake_seconds"] = seconds_of(lambda: engine.wake("weights", "kv_cache"))
            found["bytes_given_back"] = asleep - torch.cuda.mem_get_info()[0]
            found["sleep_seconds"] = seconds_of(engine.rest)
    return {**found, "passed": len(samples) == 2 * len(prompts)}


def ulysses(device: str) -> Found:
    """Ranks that share rows, against the local engine: the tests' own worker, on two ranks; needs two GPUs."""
    import torch

    if device != "cpu" and torch.cuda.device_count() < 2:
        return {"passed": True, "left_out": "one GPU"}
    words = ["-m", "pytest", "-q", "-x", "tests/scaled/layers/test_ulysses.py"]
    done = subprocess.run([sys.executable, *words], cwd=HERE.parent, capture_output=True, text=True)
    return {"passed": done.returncode == 0, "said": done.stdout[-2000:]}


# ---------------------------------------------------------------------------------------------------------
# How fast, how much memory?
# ---------------------------------------------------------------------------------------------------------


def matmul(device: str) -> Found:
    """The rate of one large product in bfloat16: what a learner can at most reach."""
    import torch

    n = 256 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = fastest(lambda: a @ b, device)
    return {"flops": 2 * n**3 / seconds, "passed": True}


def mfu(model: str) -> Callable[[str], Found]:
    """Update of actor and critic of that shape: its share of the matmul rate, and peak memory beside the plan."""

    def measure(device: str) -> Found:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "mfu.json"
            words = ["--model", model, "--out", str(out), "--device", device, "--repeats", "3"]
            if device == "cpu":  # as little as shows that it works
                words += ["--repeats", "1", "--micro-batches", "1", "--tokens", "128"]
            done = subprocess.run(
                [sys.executable, str(HERE / "learner_mfu.py"), *words], capture_output=True, text=True, cwd=HERE.parent
            )
            if done.returncode:
                return {"passed": False, "said": done.stderr[-2000:]}
            found = json.loads(out.read_text())
        rate = found["update"]["mfu"] * found["update"]["peak_flops"]
        reached = rate / matmul(device)["flops"]
        errors = [found[kind]["plan_error"] for kind in ("actor", "critic")]
        passed = device == "cpu" or (reached >= GOAL_MFU and max(map(abs, errors)) <= 0.1)
        return {**found, "share_of_matmul": reached, "plan_errors": errors, "passed": passed}

    return measure


# ---------------------------------------------------------------------------------------------------------
# A real run
# ---------------------------------------------------------------------------------------------------------


def laptop_run(device: str) -> Found:
    """`minivapo train` on the embedded base."""
    small = ["--batch-size", "8", "--group-size", "2", "--mini-batch", "4", "--max-new-tokens", "24"]
    words = ["--steps", "1", "--eval-problems", "4", "--value-pretrain-steps", "1", "--reward-model-steps", "1", *small]
    words = words if device == "cpu" else ["--steps", "20"]
    return run_of(["minivapo.cli", "train", "--device", device, *words], "--run")


def scaled_run(device: str) -> Found:
    """`scaled.train` on the embedded base, one rank: DeepSpeed and vLLM on one GPU."""
    words = ["--config", "scaled/configs/smoke.yaml", "--ranks", "1"]
    if device == "cpu":
        words += ["--steps", "1", "--batch-size", "4", "--group-size", "2", "--mini-batch", "4", "--eval-problems", "2"]
        words += ["--max-new-tokens", "16", "--value-pretrain-steps", "1"]
    return run_of(["scaled.train", *words], "--run-dir")


def run_of(words: list[str], flag: str) -> Found:
    """Trains in a process of its own; the last line of its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", *words, flag, str(run)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    last = json.loads(lines[-1]) if lines else {}
    found = {"passed": done.returncode == 0 and bool(last), "metrics": last}
    return found if found["passed"] else {**found, "said": done.stderr[-2000:]}


STEPS: dict[str, Callable[[str], Found]] = {
    "about": about, "local": local_engine, "attention": attention, "head": head, "gae": gae, "zero3": zero3,
    "sampler": sampler, "matmul": matmul, "mfu-0.5b": mfu("Qwen2.5-0.5B"), "mfu-1.5b": mfu("Qwen2.5-1.5B"),
    "laptop-run": laptop_run, "scaled-run": scaled_run, "ulysses": ulysses,
}  # fmt: skip
"""In order of value."""


def largest(x: Any) -> float:
    """The largest magnitude."""
    return float(x.detach().abs().max())


def seconds_of(call: Callable[[], Any]) -> float:
    """How long a call takes, the GPU's work included."""
    import torch

    begun = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def fastest(call: Callable[[], Any], device: str) -> float:
    """The shortest of several calls, after one that is not counted."""
    call()
    return min(seconds_of(call) for _ in range(3 if device == "cpu" else 20))


# ---------------------------------------------------------------------------------------------------------
# The day
# ---------------------------------------------------------------------------------------------------------


def main() -> int:
    """Runs what is left of the day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_day.json"))
    parser.add_argument("--only", nargs="+", choices=STEPS, help="these steps, also if they passed before")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        args.out.write_text(json.dumps(STEPS[args.step](args.device)))
        sys.stdout.flush()
        os._exit(0)  # vLLM's threads do not always end with the interpreter
    day: dict[str, Found] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.only or [name for name in STEPS if not day.get(name, {}).get("passed")]:
        print(f"{name} …", flush=True)
        day[name] = in_a_process(name, args.device)
        fresh = args.out.with_name(f".{args.out.name}.new")
        fresh.write_text(json.dumps(day, indent=1))
        fresh.replace(args.out)
        print(f"{name}: {'passed' if day[name]['passed'] else 'FAILED'}, {day[name]['seconds']:.0f} s", flush=True)
    failed = [name for name in day if not day[name]["passed"]]
    print(f"failed: {', '.join(failed)}; see {args.out}" if failed else f"all passed: {args.out}")
    return 1 if failed else 0


def in_a_process(name: str, device: str) -> Found:
    """One step, ended after `LIMIT` seconds; a crash is a finding."""
    begun = time.perf_counter()
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if device == "cpu" else {}
    env = os.environ | {"HF_HUB_OFFLINE": "1", "DS_BUILD_OPS": "0"} | hidden
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--step", name, "--device", device, "--out", str(out)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
        ) as job:
            try:
                said, _ = job.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, 9)  # its own processes too
                said, _ = job.communicate()
                said += f"\nended after {LIMIT} s"
        found = json.loads(out.read_text()) if out.exists() else {"passed": False, "said": said[-2000:]}
    return {**found, "seconds": time.perf_counter() - begun, "device": device}


if __name__ == "__main__":
    raise SystemExit(main())
