"""`minivapo make-base`: trains a base model from nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from minivapo.errors import UserError
from minivapo.options.fields import Count


@dataclass(frozen=True)
class Arguments:
    """Make a base model for an embedded task from nothing: a small Llama on noisy demonstrations."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder for the model and its tokenizer; it must not exist."""
    task: str = "locks"
    """locks, chain or proof."""
    steps: Count | None = None
    """Gradient steps; default: the task's own number. For chain a loss above 1.6 at the end means that the digits are
    not learned yet, and RL will not mend that: seeds 0 and 1 need 2,000 steps, seed 2 needs 3,000."""
    seed: int = 0
    """Of the initial weights and the demonstrations."""


def run(args: Arguments) -> int:
    """Trains the base, and its critic where the task has one, with a progress bar, and writes the folder."""
    import torch
    from rich.progress import Progress

    from minivapo.runs.critic import make_critic
    from minivapo.tasks import TASKS, custom_name, make_task
    from minivapo.tasks.base import make_base
    from minivapo.tasks.embedded import EmbeddedTask

    own = custom_name(args.task)
    task = make_task(args.task) if own or args.task in TASKS else None
    if not isinstance(task, EmbeddedTask):
        known = f"{', '.join(TASKS)}, or FILE.py:CLASS of an EmbeddedTask"
        raise UserError(f"task '{args.task}' has no demonstrations; choose one of {known}.")
    if args.out.exists():
        raise UserError(f"{args.out} exists already; name a new folder.")
    torch.set_num_threads(1)
    steps = args.steps or task.recipe.steps
    with Progress() as bar:
        row = bar.add_task("training", total=steps)

        def show(step: int, steps: int, loss: float) -> None:
            bar.update(row, completed=step, total=steps, description=f"loss {loss:.3f}")

        make_base(task, args.out, steps=steps, seed=args.seed, progress=show)
        if task.recipe.critic:
            row = bar.add_task("value-pretraining", total=None)

            def show_critic(rollout: int, rollouts: int, variance: float) -> None:
                bar.update(row, completed=rollout, total=rollouts, description=f"explained variance {variance:.2f}")

            make_critic(task, args.out, args.out / "critic", seed=args.seed, progress=show_critic)
    print(f"base model: {args.out}")
    return 0
