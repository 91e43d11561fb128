"""Time `scaled.gae` beside the common Python loop and beside public implementations you point it at.

    python benchmarks/gae.py                                      # ours, packed, and the loop; CPU
    python benchmarks/gae.py --threads 1 2 --out benchmarks/gae.json \
        --public slime=DIR/ppo_utils.py:chunked_gae:rows open-instruct=DIR/rl_utils.py:calculate_advantages:numpy
    python benchmarks/gae.py --device cuda                        # not run: no GPU was at hand

Everything runs interleaved in one process, with one λ for each sample (λ = 1 − 1/(0.05 · length)), full rows
and float32; every timed call follows an untimed one of the same function. Medians are compared: `times_ours` by
the clock, `times_ours_cpu` by the time spent on cores, which a busy machine disturbs less. What each contender
answers is checked against ours. A contender is `NAME=FILE:FUNCTION[:numpy|:rows|:scalar]`; its arguments are found
by name. `numpy` hands it arrays; `rows` calls it once a row, for functions that take a single λ; `scalar` calls it
once with one λ for all, an easier question than the one asked. Nothing of those projects is part of this repository.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import inspect
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scaled.gae import gae, packed_gae

SHAPES = [(16, 4096), (64, 20480)]
BYTES_PER_TOKEN = 4 + 4 + 1 + 4  # read reward, value and mask, write the advantage
NAMES = {
    "rewards": ("rewards", "token_level_rewards"),
    "values": ("values",),
    "mask": ("mask", "response_mask", "action_mask"),
    "gamma": ("gamma",),
    "lam": ("lam", "lambd", "gae_lambda", "lambda_"),
}


@torch.no_grad()
def python_loop(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: Tensor) -> Tensor:
    """The loop that most codebases share: one step of Python for each position in time, no gaps."""
    values, rewards = values * mask, rewards * mask
    last, reversed_advantages = 0, []
    for t in reversed(range(rewards.shape[1])):
        next_values = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        delta = rewards[:, t] + gamma * next_values - values[:, t]
        last = delta + gamma * lam * last
        reversed_advantages.append(last)
    return torch.stack(reversed_advantages[::-1], dim=1)


def load(spec: str) -> tuple[str, Callable, str]:
    """Read NAME=FILE:FUNCTION[:how] into (label, function, how)."""
    name, _, rest = spec.partition("=")
    file, function, how = [*rest.split(":"), ""][:3]
    module_spec = importlib.util.spec_from_file_location(f"public_{name}", file)
    assert module_spec and module_spec.loader, f"cannot load {file}"
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return f"{name} ({how})" if how in ("rows", "scalar") else name, getattr(module, function), how


def call(function: Callable, how: str, inputs: dict):
    """Call a public function with what its parameters' names ask for."""
    if how == "rows":
        answers = []
        for i, lam in enumerate(inputs["lam"].tolist()):
            row = {k: inputs[k][i : i + 1] for k in ("rewards", "values", "mask")}
            answers.append(call(function, "", {**row, "gamma": inputs["gamma"], "lam": lam}))
        return torch.cat(answers)
    if how == "scalar":
        inputs = {**inputs, "lam": 0.999}
    arguments = {}
    for parameter in inspect.signature(function).parameters:
        key = next((k for k, names in NAMES.items() if parameter in names), None)
        if key:
            value = inputs[key]
            arguments[parameter] = value.numpy() if how == "numpy" and isinstance(value, Tensor) else value
        elif parameter == "self":
            arguments[parameter] = None
    answer = function(**arguments)
    return answer[0] if isinstance(answer, tuple) else answer


def timed(function: Callable, device: str) -> tuple[float, float]:
    """Seconds on the clock and seconds of this process on its cores (all threads)."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, start_cpu = time.perf_counter(), time.process_time()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - start_cpu


def copy_bandwidth(device: str) -> float:
    """Bytes a second of a large copy, read plus written: what memory allows with these threads."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source).copy_(source)
    return 2 * source.nbytes / min(timed(lambda: target.copy_(source), device)[0] for _ in range(5))


def measure(batch: int, length: int, threads: int, arguments: argparse.Namespace) -> list[dict]:
    torch.set_num_threads(threads)
    device = arguments.device
    generator = torch.Generator().manual_seed(0)
    rewards = torch.zeros(batch, length)
    rewards[:, -1] = torch.randint(0, 2, (batch,), generator=generator).float()
    values = torch.rand(batch, length, generator=generator)
    lengths = torch.linspace(length / 8, length, batch)  # only to give every sample a λ of its own
    inputs = {
        "rewards": rewards.to(device),
        "values": values.to(device),
        "mask": torch.ones(batch, length, device=device),
        "gamma": 1.0,
        "lam": (1 - 1 / (0.05 * lengths)).clamp(0, 1).to(device),
    }
    keep = inputs["mask"].bool()
    flat = inputs["rewards"].flatten(), inputs["values"].flatten()
    boundaries = torch.arange(batch + 1) * length
    contenders: dict[str, Callable] = {
        "scaled.gae": lambda: gae(inputs["rewards"], inputs["values"], keep, 1.0, inputs["lam"]),
        "scaled.packed_gae": lambda: packed_gae(*flat, boundaries, 1.0, inputs["lam"]).view(batch, length),
        "python loop": lambda: python_loop(**inputs),
    }
    for spec in arguments.public:
        name, function, how = load(spec)
        contenders[name] = functools.partial(call, function, how, inputs)

    ours = contenders["scaled.gae"]()
    for name, function in contenders.items():  # also the warm-up
        answer = torch.as_tensor(function()).to(ours.device)
        if "scalar" not in name and not torch.allclose(answer, ours, atol=1e-3):
            print(f"note: {name} answers something else (largest gap {(answer - ours).abs().max():.3g})")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(arguments.repeats):
        for name, function in contenders.items():
            if repeat < arguments.slow_repeats or statistics.median(seconds[name]) < 0.2:
                function()  # whoever ran before has left the caches full of its own
                elapsed, on_cores = timed(function, device)
                seconds[name].append(elapsed)
                cpu[name].append(on_cores)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    median_cpu = {name: statistics.median(s) for name, s in cpu.items()}
    bandwidth = copy_bandwidth(device)
    return [
        {
            "device": device,
            "threads": threads,
            "batch": batch,
            "time": length,
            "name": name,
            "median_ms": round(1e3 * median[name], 3),
            "fastest_ms": round(1e3 * min(seconds[name]), 3),
            "median_cpu_ms": round(1e3 * median_cpu[name], 3),
            "times_ours": round(median[name] / median["scaled.gae"], 2),
            "times_ours_cpu": round(median_cpu[name] / median_cpu["scaled.gae"], 2),
            "share_of_copy_bandwidth": round(BYTES_PER_TOKEN * batch * length / median[name] / bandwidth, 4),
        }
        for name in contenders
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--slow-repeats", type=int, default=7, help="of what takes over 0.2 s")
    parser.add_argument("--public", nargs="*", default=[], metavar="NAME=FILE:FUNCTION[:HOW]")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for threads in arguments.threads:
        for batch, length in SHAPES:
            for row in measure(batch, length, threads, arguments):
                rows.append(row)
                print(
                    f"{threads} threads  {batch:>3} × {length:<6} {row['name']:<28} {row['median_ms']:>9.2f} ms "
                    f"{row['times_ours']:>8.2f} × ours "
                    f"({row['times_ours_cpu']:.2f} × in CPU time)  "
                    f"{100 * row['share_of_copy_bandwidth']:.1f} % of copy bandwidth"
                )
    if arguments.out:
        facts = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "accelerator": torch.cuda.get_device_name() if arguments.device == "cuda" else "not run",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "repeats": arguments.repeats,
            "load_average": [round(x, 1) for x in os.getloadavg()],
        }
        lines = ",\n    ".join(json.dumps(row) for row in rows)
        arguments.out.write_text(f'{{\n  "facts": {json.dumps(facts)},\n  "rows": [\n    {lines}\n  ]\n}}\n')


if __name__ == "__main__":
    main()
