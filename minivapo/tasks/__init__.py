"""Verifiable tasks by name: embedded ones, which make their problems, and mathematics from data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minivapo.interfaces import UserError
from minivapo.tasks import custom
from minivapo.tasks.chain import Chain, Proof
from minivapo.tasks.locks import Locks

BASES = Path(__file__).parent / "bases"
"""Weights shipped with the package, one transformers folder for each embedded task."""

TASKS: dict[str, Any] = {"locks": Locks, "chain": Chain, "proof": Proof}


def make_task(name: str, **options: Any) -> Any:
    """A task by its name.

    Args:
        name: locks, chain, proof, reasoning-gym:NAME, FILE.py:CLASS, PACKAGE.MODULE:CLASS, or of `minivapo.tasks.math`
            (gsm8k, jsonl:PATH …).
        options: of `make_math_task`, `make_reasoning_gym_task` or `make_custom_task`.

    Raises:
        UserError: there is no such task, or it has no such option.
    """
    kind, _, rest = name.partition(":")
    if name in TASKS:
        refuse_options(name, options, ("template",))  # a template changes nothing where there is one vocabulary
        return TASKS[name]()
    if kind == "reasoning-gym":
        from minivapo.tasks.reasoning_gym import make_reasoning_gym_task

        return make_reasoning_gym_task(rest, **options)
    from minivapo.tasks import math as math_tasks

    if kind not in math_tasks.MATH_TASKS:
        if custom_name(name):
            return custom.make_custom_task(name, **options)
        known = ", ".join([*TASKS, *math_tasks.MATH_TASKS, "reasoning-gym:NAME", "FILE.py:CLASS"])
        raise UserError(f"there is no task '{name}'; choose one of {known}.")
    refuse_options(name, options, ("template", "tokenizer", "max_prompt_tokens", "held_out", "stop", "verifier"))
    return math_tasks.make_math_task(name, **options)


def refuse_options(name: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    """Refuses options that a task does not have.

    Raises:
        UserError: names the first.
    """
    wrong = [option for option in options if option not in known]
    if wrong:
        raise UserError(f"the task '{name}' has no option '{wrong[0]}'.")


def task_label(name: str) -> str:
    """A task's name for a file: without the path of its data or code."""
    own = custom_name(name)
    if own:
        return own[1].lower()
    return name.replace(":", "-") if name.startswith("reasoning-gym:") else name.partition(":")[0]


def load_task(name: str, options: dict[str, Any], model: str | None, max_prompt_tokens: int) -> tuple[Any, str]:
    """A task and the policy's model; tasks in natural language get its tokenizer, to render and to count prompts.

    Raises:
        UserError: there is no such task, its data cannot be read, or it has no default model.
    """
    from minivapo.loading import load_tokenizer
    from minivapo.tasks.math import MATH_TASKS

    if name in TASKS:
        return make_task(name, **options), model or default_model(name)
    if custom_name(name):
        own = model or default_model(name)
        options = options | {"tokenizer": lambda: load_tokenizer(own), "max_prompt_tokens": max_prompt_tokens}
        options.pop("template", None)  # nothing of ours renders its prompts
        return make_task(name, **options), own
    if name.partition(":")[0] not in (*MATH_TASKS, "reasoning-gym"):
        make_task(name)  # says what there is
    model = model or default_model(name)
    return make_task(name, **options, tokenizer=load_tokenizer(model), max_prompt_tokens=max_prompt_tokens), model


def custom_name(name: str) -> tuple[str, str] | None:
    """(file or module, class) of a task of the user's own; None for one of ours."""
    from minivapo.tasks.math import MATH_TASKS

    return None if name.partition(":")[0] in (*MATH_TASKS, "reasoning-gym") else custom.split(name)


def default_model(task: str) -> str:
    """The embedded base of a task.

    Raises:
        UserError: the task has none.
    """
    folder = BASES / ("chain" if task == "proof" else task)  # proof: the same words, other problems
    if not folder.exists():
        made = f", or make one: minivapo make-base FOLDER --task {task}" if custom_name(task) else ""
        raise UserError(f"task '{task}' has no embedded base model: name one with --model, say smollm2-135m{made}.")
    return str(folder)
