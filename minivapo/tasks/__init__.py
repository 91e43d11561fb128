"""Verifiable tasks by name: embedded ones, which make their problems, and mathematics from data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minivapo.interfaces import UserError
from minivapo.tasks.chain import Chain, Proof

BASES = Path(__file__).parent / "bases"
"""Weights shipped with the package, one transformers folder for each embedded task."""

TASKS: dict[str, Any] = {"chain": Chain, "proof": Proof}


def make_task(name: str, **options: Any) -> Any:
    """A task by its name: chain, proof, or one of `minivapo.tasks.math` (gsm8k, dapo-math, aime2024, jsonl:PATH …).

    Raises:
        UserError: there is no such task.
    """
    if name in TASKS:
        return TASKS[name]()
    from minivapo.tasks import math as math_tasks

    if name.partition(":")[0] not in math_tasks.MATH_TASKS:
        known = ", ".join([*TASKS, *math_tasks.MATH_TASKS])
        raise UserError(f"there is no task '{name}'; choose one of {known}.")
    return math_tasks.make_math_task(name, **options)


def load_task(name: str, options: dict[str, Any], model: str | None, max_prompt_tokens: int) -> tuple[Any, str]:
    """A task and the policy's model; mathematics tasks get its tokenizer, to render and to count prompts.

    Raises:
        UserError: there is no such task, its data cannot be read, or it has no default model.
    """
    from minivapo.loading import load_tokenizer
    from minivapo.tasks.math import MATH_TASKS

    if name.partition(":")[0] not in MATH_TASKS:
        task = make_task(name, **options)
        return task, model or default_model(name)
    model = model or default_model(name)
    return make_task(name, **options, tokenizer=load_tokenizer(model), max_prompt_tokens=max_prompt_tokens), model


def default_model(task: str) -> str:
    """The embedded base of a task.

    Raises:
        UserError: the task has none.
    """
    folder = BASES / ("chain" if task == "proof" else task)  # proof: the same words, other problems
    if not folder.exists():
        raise UserError(f"task '{task}' has no embedded base model: name one with --model, say Qwen/Qwen2.5-0.5B.")
    return str(folder)
