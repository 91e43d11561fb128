"""`minivapo eval`: mean pass rate over samples, with all that two people need to compare numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from minivapo.commands.arguments import (
    Source,
    fit_prompts,
    load_task,
    pick_device,
    resolve_source,
    sampling_only,
    set_threads,
    stop_strings,
)
from minivapo.errors import UserError
from minivapo.options.fields import Count, NotNegative, PositiveFraction
from minivapo.options.parse import TaskOptions, task_options

if TYPE_CHECKING:
    from minivapo.interfaces import Problem, Sampler
    from minivapo.runs.evaluation import Settings
    from minivapo.vapo import Config


@dataclass(frozen=True)
class Arguments:
    """Evaluate a run or model as the paper does: the mean pass rate over many samples of each problem.

    Prints a table of the problems, the accuracy with a 95 % interval over problems, and pass@k; writes all
    of it with the exact settings as JSON. A stopped evaluation goes on when the command is given again.
    """

    source: Annotated[str, tyro.conf.Positional]
    """Run folder, transformers folder, or hub name."""
    task: str | None = None
    """aime2024, aime2025, gsm8k, … (each maybe with :FILE), locks, chain, proof; default: the run's or locks."""
    samples: Count = 32
    """Responses for each problem (paper: 32)."""
    temperature: NotNegative = 1.0
    """Sampling temperature (paper: 1.0); 0 is greedy, with one response for each problem."""
    top_p: PositiveFraction = 0.7
    """Top-p (paper: 0.7)."""
    problems: Count | None = None
    """Maximum number of held-out problems, from the first on; default: all."""
    split: Literal["test", "all"] = "test"
    """all takes every problem of a file (gsm8k:FILE, jsonl:FILE), where test takes the 5 % that training holds out."""
    max_new_tokens: Count | None = None
    """Length limit of a response; default: the run's, or of a bare model 4,096 and what its context allows."""
    template: str | None = None
    """Prompt template of mathematics tasks: base or chat; default: the run's, or base."""
    task_option: TaskOptions = ()
    """Option of the task, as for train."""
    stop: tuple[str, ...] = ()
    """Strings that end a response, besides EOS and those of the run."""
    seed: int = 0
    """Sampling seed."""
    sampler: Literal["transformers", "vllm"] = "transformers"
    """vllm needs the extras scaled and vllm; it draws other responses from the same seed."""
    sample_batch: Count = 256
    """Responses sampled at once, at most; more are faster (with vllm take thousands), fewer need less memory."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes the first of cuda and cpu that is there."""
    bf16: bool = False
    """Compute in bfloat16 (a GPU, or a processor with AMX)."""
    out: Path | None = None
    """JSON file; default eval-TASK-HASH.json in the run folder, for a bare model in evals/."""


def run(args: Arguments) -> int:
    """Builds what the evaluation needs and runs it, unless the result is there already."""
    from minivapo.loading import load_tokenizer, stop_ids
    from minivapo.responses import held_out_problems
    from minivapo.runs import evaluation
    from minivapo.runs.origin import fingerprint
    from minivapo.tasks import task_label

    source = resolve_source(args.source, args.task, task_options(args.task_option, args.template), args.max_new_tokens)
    config = source.config
    options = source.task_options | (whole_file(source.task) if args.split == "all" else {})
    task, model = load_task(source.task, options, source.model, config.max_prompt_tokens)
    problems = held_out_problems(task, args.problems)
    device = pick_device(args.device)
    weights, files = fingerprint(model)
    tokenizer = load_tokenizer(model)
    settings = evaluation.Settings(
        model=args.source,
        weights=weights,
        files=files,
        task=task_label(source.task),
        problems=len(problems),
        problems_hash=evaluation.hash_problems(problems),
        samples=args.samples if args.temperature else 1,
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=config.max_new_tokens,
        max_prompt_tokens=config.max_prompt_tokens,
        stop=stop_strings(task.stop, source.stop, args.stop),
        stop_ids=tuple(stop_ids(model, tokenizer)),
        seed=args.seed,
        sampler=args.sampler,
        sample_batch=args.sample_batch,
        dtype="bfloat16" if args.bf16 else "float32",
        device=device.partition(":")[0],
    )
    out = args.out or result_file(args.source, source, settings)
    result = evaluation.finished(out, settings)
    if result is None:
        build = vllm_sampler if args.sampler == "vllm" else local_sampler
        tokenizer, sampler = build(model, fit_prompts(config, tokenizer, problems), settings, device, problems)
        result = evaluation.run_evaluation(task, problems, tokenizer, sampler, settings, out, config.verifier_timeout)
    evaluation.show(result)
    print(f"result: {out}")
    return 0


def whole_file(task: str) -> dict[str, float]:
    """The option of a mathematics task that holds out every problem of its file.

    Raises:
        UserError: the task reads no file.
    """
    from minivapo.tasks.math import MATH_TASKS

    name, _, path = task.partition(":")
    if name not in MATH_TASKS or not path:
        raise UserError(f"--split all is for a file of problems, say --task jsonl:FILE; {task} is none.")
    return {"held_out": 1.0}


def result_file(name: str, source: Source, settings: Settings) -> Path:
    """Where the result goes by default: into the run folder, for a bare model into evals/."""
    label = "" if source.folder else name.strip("./").replace("/", "-") + "-"
    return (source.folder or Path("evals")) / f"eval-{label}{settings.task}-{settings.key}.json"


def local_sampler(
    model: str, config: Config, settings: Settings, device: str, problems: Sequence[Problem]
) -> tuple[Any, Sampler]:
    """(tokenizer, sampler) of a model on one device, probed with the first of these problems."""
    from minivapo.local import LocalEngine
    from minivapo.probe import PROBLEMS, probe

    engine = LocalEngine(
        model,
        sampling_only(config),
        stop=settings.stop,
        device=device,
        autocast=settings.dtype == "bfloat16",
        sample_batch=settings.sample_batch,
    )
    set_threads(0, engine)
    probe(engine, problems[:PROBLEMS], engine.actor.config)
    return engine.tokenizer, engine.sampler


def vllm_sampler(
    model: str, config: Config, settings: Settings, device: str, problems: Sequence[Problem]
) -> tuple[Any, Sampler]:
    """(tokenizer, sampler) of scaled runs with a model's weights, alone in this process; vLLM finds its device.

    Raises:
        UserError: vLLM is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        raise UserError("--sampler vllm needs vLLM: pip install vllm (GPU), or take --sampler transformers.")
    import torch
    import torch.distributed as dist

    from minivapo.loading import load_actor, load_tokenizer, stop_ids
    from minivapo.local import LocalLearner
    from scaled.config import Settings as ClusterSettings
    from scaled.sampler import VllmSampler
    from scaled.world import DistributedWorld

    actor, tokenizer = (
        LocalLearner(load_actor(model, getattr(torch, settings.dtype)), "actor", config),
        load_tokenizer(model),
    )
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    at_once = min(settings.sample_batch, ClusterSettings.sampler_sequences)
    how = ClusterSettings(dtype=settings.dtype, sampler_sleep=False, sampler_memory=0.85, sampler_sequences=at_once)
    ends = stop_ids(actor.model, tokenizer)
    sampler = VllmSampler(model, config, how, DistributedWorld(), ends, settings.stop)
    sampler.sync(actor)
    return tokenizer, sampler
