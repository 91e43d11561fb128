"""What a run survives: kills, seeds, hostile text, long files, faults of disk, network and clock.

    python benchmarks/survival.py                      # every part, hours on one core; goes on where it was stopped
    python benchmarks/survival.py kills-laptop --most 5

    kills-laptop   60 times SIGKILL at a random moment of `minivapo train --run DIR --resume auto`, started again until
                   the run is done; its files are compared with those of a run that was never killed
    kills-cluster  the same 30 times with `scaled.train` on two ranks under torchrun: one rank, or all of them
    kills-changed  10 kills after which the run goes on elsewhere: two ranks -> one, two ranks -> laptop, laptop -> two
    presets        20 seeds of every preset, short runs: no crash, no number that is not finite
    fuzz           100,000 responses through every verifier, most of them hostile
    long-files     `minivapo watch`, `report` and `train --resume` on a metrics.jsonl of a million lines
    faults         a dead and a frozen rank, a lost network, a full disk, a read-only folder, altered bits, a clock
                   that jumps, a launcher that starts the job anew

Rows go to docs/results/survival/PART.csv as they come, with the commit they were measured on; cases that are there are
not run again. `python docs/generate/write.py` makes the page.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE), str(ROOT / "tests" / "support")]

Row = dict[str, Any]
PARTS = {
    "kills-laptop": "survive.kills_laptop",
    "kills-cluster": "survive.kills_cluster",
    "kills-changed": "survive.kills_changed",
    "presets": "survive.presets",
    "fuzz": "survive.fuzz",
    "long-files": "survive.long_files",
    "faults": "survive.faults",
}
"""Name -> a module with `run(done, most, work)`: yields the rows of each case, of at most so many, that is not done."""


def read(path: Path) -> list[Row]:
    """The rows that are there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows to a CSV file, in one write; all rows of a file have the same columns."""
    from minivapo.runs.folder import git_commit

    about = {"machine": f"{platform.machine()} {os.cpu_count()} cores", "commit": git_commit()}
    rows = [{**row, **about} for row in rows]
    fresh = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    """Runs what is left of the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--most", type=int, default=10**9, help="cases of each part at most, now")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "survival", help="folder of the CSVs")
    parser.add_argument("--work", type=Path, default=Path("runs") / "survival", help="folder of the runs")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    for part in args.parts or PARTS:
        path = args.out / f"{part}.csv"
        module = importlib.import_module(PARTS[part])
        for rows in module.run(read(path), args.most, (args.work / part).resolve()):
            append(path, rows)
            print(part, *(f"{k}={v}" for k, v in rows[-1].items() if v != ""), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
