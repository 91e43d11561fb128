"""The frozen table of docs/protocol.md: one line that runs it all, resumes, and writes table1.csv.

    python benchmarks/table1.py --bases minivapo/bases/chain base1 base2 --out runs/table1

Further flags go to `minivapo ablate`, say --jobs 4.
"""

from __future__ import annotations

import sys

from minivapo import ablate, cli

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
OTHER_RATE = "+actor_lr=1e-4+critic_lr=2e-4"


def main() -> int:
    """Runs `minivapo ablate` with the protocol's rows and constants."""
    rows = [*ablate.PAPER, *(row + OTHER_RATE for row in ablate.PAPER), *ablate.EXTRA]
    overrides = [f"{name}={value}" for name, value in CONSTANTS.items()]
    return cli.main(
        ["ablate", "--task", "proof", "--seeds", "5", *sys.argv[1:], "--presets", *rows, "--overrides", *overrides]
    )


if __name__ == "__main__":
    sys.exit(main())
