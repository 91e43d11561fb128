"""The first screen of a run: what will happen, what the policy sees, and what it is all for."""

from __future__ import annotations

from pathlib import Path

from minivapo.interfaces import Problem
from minivapo.show.text import printable
from minivapo.vapo import Config

WIDTH = 300
"""Characters of a prompt that are shown; a longer one is cut in the middle."""


def shorten(text: str, width: int = WIDTH) -> str:
    """Printable text of at most `width` characters: beginning and end of a longer one, where the question often is."""
    text = printable(text.strip())
    half = (width - 3) // 2
    return text if len(text) <= width else f"{text[:half]} … {text[-half:]}"


def phases(config: Config) -> list[str]:
    """What a new run does, in its order."""
    found = [f"evaluate the policy as it is on {config.eval_problems} held-out problems"]
    if config.advantage == "gae":
        batch = config.value_pretrain_batch or config.batch_size
        if config.critic_init == "reward-model" and config.reward_model_steps:
            found.append(
                f"train a reward model, where the critic starts: {config.reward_model_steps} × {batch} responses"
            )
        if config.value_pretrain_steps:
            limit = f"at most {config.value_pretrain_steps} × {batch} responses"
            found.append(f"train the critic while the policy stands still: {limit}")
    steps = f"{config.steps} step{'' if config.steps == 1 else 's'}"
    updates = config.epochs * config.batch_size // config.mini_batch
    found.append(
        f"train the policy: {steps}, each with {config.prompts_per_step} prompts × {config.group_size} responses "
        f"and {updates} gradient steps"
    )
    found.append("evaluate it again, on the same problems, and write report.html")
    return found


def introduction(config: Config, name: str, preset: str, problem: Problem, folder: Path, about: str = "") -> str:
    """What is said before a new run begins.

    Args:
        config: of the run.
        name: of the task.
        preset: name of what the configuration started from.
        problem: one of those that the policy will see.
        folder: of the run.
        about: what the task is, in a sentence or two.
    """
    lines = [f"{preset} on {name}, seed {config.seed}; everything goes into {folder}"]
    lines += [*([about] if about else []), ""]
    lines += [f"  {number}. {text}" for number, text in enumerate(phases(config), 1)]
    lines += ["", f"the policy sees: {shorten(problem.prompt)}", f"it should find:  {shorten(problem.answer, 80)}"]
    goal = "the goal: a higher held-out accuracy at the end than at the start"
    return "\n".join([*lines, goal + "; stop at any time, and go on with --resume", ""])
