"""`minivapo ablate`: Table 1 in miniature."""

from dataclasses import dataclass
from pathlib import Path

from minivapo.options.fields import Count


@dataclass(frozen=True)
class Arguments:
    """Run presets × seeds in parallel processes and write table1.csv, a table and figures.

    Stop it at any moment; the same line goes on where it was.
    """

    presets: tuple[str, ...] = ()
    """Rows: presets, or the extra rows vapo-fixed-0, vapo-fixed-0.99, vapo-fixed-1, ppo-fixed-0,
    ppo-policy-critic, vapo-oracle-critic; each may be followed by changes, as in vapo+actor_lr=5e-5.
    Default: the rows of the paper's table, GRPO and DAPO among them."""
    seeds: Count = 5
    """Seeds of each row."""
    first_seed: int = 1000
    """The first of them; the protocol keeps 0-99 for development."""
    task: str = "chain"
    """Task."""
    bases: tuple[str, ...] = ()
    """Base policies that the seeds take in turn; default: the task's embedded base."""
    out: Path = Path("runs/table1")
    """Folder of all runs and of the table."""
    jobs: Count = 2
    """Processes at once, each of one thread."""
    overrides: tuple[str, ...] = ()
    """Constants changed in every row, as name=value in JSON, such as steps=8."""


def run(args: Arguments) -> int:
    """Runs all rows with a progress bar, then writes and prints the table."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn
    from rich.table import Table

    from minivapo.study import ablation, table
    from minivapo.tasks import default_model

    presets = args.presets or tuple(table.PAPER)
    bases = [str(Path(b).resolve()) for b in args.bases] or [default_model(args.task)]
    overrides = ablation.parse_overrides(args.overrides)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    folder = args.out.resolve()
    jobs = ablation.plan_jobs(presets, seeds, overrides)
    ablation.claim(folder, args.task, bases, overrides)
    with Progress(*Progress.get_default_columns()[:-1], TextColumn("{task.fields[left]}")) as bar:
        row = bar.add_task("runs", total=len(jobs), left="")
        for done, _, left in ablation.run_jobs(jobs, folder, args.task, bases, overrides, args.jobs):
            text = f"{done}/{len(jobs)}" + (f", about {left / 60:.0f} min left" if left == left else "")
            bar.update(row, completed=done, left=text)
    results = table.collect_rows(folder, presets, seeds)
    table.write_csv(results, folder / "table1.csv")
    rows = table.compare(results)
    table.draw_table(rows, folder / "table1.png")
    table.draw_curves(folder, presets, seeds, folder / "curves.png")
    shown = Table(*table.TABLE_HEAD)
    for line in table.format_table(rows):
        shown.add_row(*line)
    Console().print(shown)
    print(f"table: {folder / 'table1.csv'}, table1.png, curves.png")
    return 0
