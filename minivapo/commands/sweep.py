"""`minivapo sweep`: the map of VAPO, one technique along one axis at a time."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from minivapo.options.fields import Count


@dataclass(frozen=True)
class Arguments:
    """Run sweeps, each one technique along one axis, and write one CSV a sweep.

    Stop it at any moment; the same line goes on where it was.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Sweeps, in the order to run them; default: all."""
    seeds: Count = 10
    """Seeds of each arm at each point."""
    first_seed: int = 1000
    """The first of them; the protocol keeps 0-99 for development."""
    out: Path = Path("runs/sweeps")
    """Folder of all runs, their bases and the CSVs."""
    jobs: Count = 2
    """Processes at once, each of one thread."""


def run(args: Arguments) -> int:
    """Runs the sweeps with a progress bar each, and writes their CSVs."""
    from rich.progress import Progress, TextColumn

    from minivapo.study.sweeps import STUDIES, machinery

    seeds, folder = range(args.first_seed, args.first_seed + args.seeds), args.out.resolve()
    for sweep in map(machinery.find, args.names or tuple(STUDIES)):
        runs = machinery.plan(sweep, seeds)
        with Progress(*Progress.get_default_columns()[:-1], TextColumn("{task.fields[left]}")) as bar:
            row = bar.add_task(sweep.name, total=len(runs), left="")
            for done, _, left in machinery.run_all(runs, folder, args.jobs):
                text = f"{done}/{len(runs)}" + (f", about {left / 60:.0f} min left" if left == left else "")
                bar.update(row, completed=done, left=text)
        path = folder / f"{sweep.name}.csv"
        machinery.write_csv(machinery.table_rows(sweep, seeds, folder), path)
        print(f"{sweep.name}: {path}")
    return 0
