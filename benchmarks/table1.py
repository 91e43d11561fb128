"""All tables of docs/protocol.md: one line that runs them, goes on where it was stopped, and writes their CSV files.

    python benchmarks/table1.py --bases minivapo/bases/chain base1 base2 --out runs/tables

`table1.csv` and `chain.csv` in that folder are those of docs/results; `python docs/generate/first_table.py` makes the
page.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minivapo import cli
from minivapo.study import table
from minivapo.study.ablation import EXTRA

CONSTANTS = {
    "steps": 16,
    "batch_size": 64,
    "mini_batch": 4,
    "group_size": 4,
    "value_pretrain_batch": 256,
    "value_pretrain_steps": 24,
    "value_pretrain_patience": 8,
    "reward_model_steps": 4,
    "eval_problems": 256,
    "actor_lr": "7e-5",
    "critic_lr": "1.4e-4",
}
PAPER = list(table.PAPER)
OTHER_RATE = [row + "+actor_lr=1e-4+critic_lr=2e-4" for row in PAPER]
EQUAL_COST = ["grpo+steps=96", "dapo+steps=64", "dapo+steps=9"]
WHY = ["grpo+positive_coef=0.1", "vapo-wo-positive-loss+whiten=true"]
CONFIRMED = [
    row for row in OTHER_RATE if not row.startswith(("ppo", "vapo-wo-value", "vapo-wo-positive"))
]  # what the first five seeds had settled is not run again
TABLES = {
    # name: (task, rows, first seed, seeds); tables of one task share a folder
    "first": ("proof", [*PAPER, *OTHER_RATE, *EXTRA, *EQUAL_COST, *WHY], 1000, 5),
    "second": ("chain", PAPER, 1000, 10),
    "confirmation": ("proof", CONFIRMED, 1005, 10),
}


def main() -> int:
    """Runs `minivapo ablate` for each table, then collects what all of them gave."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bases", nargs=3, required=True, help="the three base policies that seeds take in turn")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="folder of all runs")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    args = parser.parse_args()
    overrides = [f"{name}={value}" for name, value in CONSTANTS.items()]
    for name, (task, rows, first, seeds) in TABLES.items():
        print(f"== {name} table: {task}, {len(rows)} rows, seeds {first} to {first + seeds - 1}", flush=True)
        order = ["--task", task, "--bases", *args.bases, "--out", str(args.out / task), "--jobs", str(args.jobs)]
        order += ["--presets", *rows, "--first-seed", str(first), "--seeds", str(seeds), "--overrides", *overrides]
        failed = cli.main(["ablate", *order])
        if failed:
            return failed
    for name, task in (("table1", "proof"), ("chain", "chain")):
        results = []
        for of, rows, first, seeds in TABLES.values():
            if of == task:
                results += table.collect_rows(args.out / task, rows, range(first, first + seeds))
        table.write_csv(results, args.out / f"{name}.csv")
        print(f"{args.out / name}.csv: {len(results)} runs")
    table.draw_curves(args.out / "proof", PAPER, range(1000, 1005), args.out / "table1-curves.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
