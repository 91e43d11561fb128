"""What a step of TRL's GRPO, of our GRPO and of our VAPO computes, and how fast this machine multiplies matrices.

    .venv-trl/bin/python benchmarks/step_flops.py        # made as for beside_trl.py; into step_flops.csv

Counted by PyTorch in the second step of `beside_trl.py` (in the first a critic's values are all 0, and so are most
advantages): matrix products, in floating-point operations. Beside it, in the same process, the processor seconds of
another step, and the rate of one product by itself, of the shape that most of a step has, on one thread, before and
after it.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tables
import torch
from beside_trl import SIZES, make_model, ours, setting, trl
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

WAYS = ("trl grpo", "minivapo grpo", "minivapo vapo")
OUT = Path(__file__).parent / "step_flops.csv"


def rate(rows: int, inner: int, outer: int, seconds: float = 0.2, times: int = 5) -> float:
    """Operations per processor second of a product [rows, inner] × [inner, outer]; the median of several looks."""
    a, b, found = torch.randn(rows, inner), torch.randn(inner, outer), []
    for _ in range(times + 1):
        begun, count = time.process_time(), 0
        while time.process_time() - begun < seconds:
            a @ b
            count += 1
        found.append(2 * rows * inner * outer * count / (time.process_time() - begun))
    return statistics.median(found[1:])


def operations(work: Callable[..., object], size: str, folder: Path, steps: int) -> int:
    """Of the matrix products of so many steps."""
    with FlopCounterMode(display=False) as counter:
        work(size, folder, steps)
    return counter.get_total_flops()


def main() -> None:
    """Counts what the CSV does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = tables.read(args.out)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_model(size, Path(folder))
            shape = AutoConfig.from_pretrained(setting(size, Path(folder))[1])
            product = (SIZES[size]["mini_batch"] * SIZES[size]["limit"], shape.hidden_size, shape.intermediate_size)
            for way in WAYS:
                if any((row["size"], row["way"]) == (size, way) for row in rows):
                    continue
                work = trl if way == "trl grpo" else functools.partial(ours, way.split()[1])
                first, both = (operations(work, size, Path(folder), steps) for steps in (1, 2))
                before = rate(*product)
                seconds, _ = work(size, Path(folder), 2)
                found = {
                    "gflop": round((both - first) / 1e9, 3),
                    "cpu_seconds": round(seconds.steps[-1], 3),  # the first step warms up
                    "matmul_gflops": round((before + rate(*product)) / 2e9, 1),
                }
                rows.append({"size": size, "way": way} | found | tables.about())
                print(rows[-1], flush=True)
                tables.write(args.out, rows)


if __name__ == "__main__":
    main()
