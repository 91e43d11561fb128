"""What commands share: devices and threads, tasks, and the runs or models that they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivapo.errors import UserError

if TYPE_CHECKING:  # heavy, and needed only for types
    from minivapo.interfaces import Problem
    from minivapo.local import LocalEngine
    from minivapo.vapo import Config


def load_task(name: str, options: dict[str, Any], model: str | None, max_prompt_tokens: int) -> tuple[Any, str]:
    """As `minivapo.tasks.load_task`, and prints what was read of a data set."""
    from minivapo import tasks

    task, model = tasks.load_task(name, options, model, max_prompt_tokens)
    if hasattr(task, "report"):
        print(f"{name}: {task.report}", flush=True)
    return task, model


def stop_strings(*parts: tuple[str, ...]) -> tuple[str, ...]:
    """All stop strings together.

    Raises:
        UserError: one is empty: every response would end at its first token.
    """
    found = tuple(text for part in parts for text in part)
    if "" in found:
        raise UserError('--stop "" is in every response: each would end at its first token. Give a string, or none.')
    return found


def pick_device(name: str) -> str:
    """The device that a --device flag means.

    Raises:
        UserError: it is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name.partition(":")[0], False):
        raise UserError(f"there is no device '{name}' here; use one of {', '.join(k for k, v in there.items() if v)}.")
    return name


def set_threads(threads: int, engine: LocalEngine) -> None:
    """One thread for tiny models, where waking a second one costs more than it brings."""
    import torch

    tiny = sum(p.numel() for p in engine.actor.model.parameters()) < 5_000_000
    if threads or tiny:
        torch.set_num_threads(threads or 1)


@dataclasses.dataclass(frozen=True)
class Source:
    """What a run folder or the name of a model stands for."""

    model: str
    """Transformers folder or hub name of the policy."""
    task: str
    config: Config
    task_options: dict[str, Any]
    stop: tuple[str, ...]
    """Stop strings that a run was trained with; none of a bare model."""
    folder: Path | None
    """The run folder, if it is one."""


LONGEST_PROMPT = 8192
"""Prompts of evaluations may have so many tokens, where the context allows it."""


def resolve_source(source: str, task: str | None, options: dict[str, Any], max_new_tokens: int | None = None) -> Source:
    """Reads a run folder, or takes a model as it is.

    A response is as long as the run's, or with a bare model 4,096 tokens (320 for an embedded task) or what the
    context allows. A prompt may fill the rest of the context, up to `LONGEST_PROMPT`, whatever limit a run was trained
    with: an evaluation leaves no problem out that it can ask.

    Args:
        source: run folder, transformers folder or hub name.
        task: instead of the run's, or of locks.
        options: of the task, before those of the run.
        max_new_tokens: length limit of a response, instead of those above.

    Raises:
        UserError: there is no such run or model.
    """
    folder = Path(source)
    if (folder / "config.json").exists() and (folder / "metrics.jsonl").exists():
        found = run_source(folder, task, options)
    else:
        found = model_source(source, task, options)
    context = context_of(found.model)
    new = max_new_tokens or found.config.max_new_tokens
    prompt = max(found.config.max_prompt_tokens, min(context - new, LONGEST_PROMPT))
    config = dataclasses.replace(found.config, max_prompt_tokens=prompt, max_new_tokens=new)
    return dataclasses.replace(found, config=config)


def run_source(folder: Path, task: str | None, options: dict[str, Any]) -> Source:
    """Of a run folder."""
    from minivapo.runs.checkpoint import find_checkpoint
    from minivapo.runs.folder import read_config
    from minivapo.runs.origin import find_origin

    config, info = read_config(folder)
    # The template is how the policy is spoken to: it belongs to the run whatever it is asked now.
    kept = {k: v for k, v in info["task_options"].items() if k == "template" or task in (None, info["task"])}
    options = kept | options
    stop = tuple(info.get("engine_options", {}).get("stop", []))
    task = task or find_origin(info, config, folder).task
    return Source(str(find_checkpoint(folder) / "actor"), task, config, options, stop, folder)


def model_source(name: str, task: str | None, options: dict[str, Any]) -> Source:
    """Of a bare model, with lengths that its context allows."""
    from minivapo.loading import locate
    from minivapo.tasks import TASKS
    from minivapo.vapo import Config

    model, task = locate(name, "actor"), task or "locks"
    context = context_of(model)
    prompt = min(512, context // 2)
    new = min(Config.max_new_tokens if task in TASKS else 4096, context - prompt)
    config = Config(max_prompt_tokens=prompt, max_new_tokens=new)
    return Source(model, task, config, options, (), None)


def context_of(model: str) -> int:
    """Tokens that a model can read, or 2²⁰ where it does not say."""
    from minivapo.loading import load_shape

    return getattr(load_shape(model), "max_position_embeddings", None) or 2**20


def fit_prompts(config: Config, tokenizer: Any, problems: Sequence[Problem]) -> Config:
    """The configuration with the longest prompt that there is as its limit: engines are built for no longer ones.

    Raises:
        UserError: a prompt is longer than the limit.
    """
    from minivapo.responses import encode_prompt

    longest = max(len(encode_prompt(tokenizer, p.prompt, config.max_prompt_tokens)) for p in problems)
    return dataclasses.replace(config, max_prompt_tokens=longest)


def sampling_only(config: Config) -> Config:
    """The configuration without critic and reference, for engines that only sample."""
    return dataclasses.replace(config, advantage="group", group_size=2, batch_size=2, mini_batch=2, kl_coef=0.0)
