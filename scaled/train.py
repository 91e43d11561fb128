"""Trains on DeepSpeed and vLLM: `minivapo.vapo.train` behind one command for every rank.

    torchrun --standalone --nproc_per_node 2 -m scaled.train --config scaled/configs/smoke.yaml
    torchrun --standalone --nproc_per_node 2 -m scaled.train --config FILE --run-dir DIR --steps 3
    torchrun --standalone --nproc_per_node 4 -m scaled.train --resume DIR
    torchrun --standalone --nproc_per_node 4 -m scaled.train --config FILE --run-dir DIR --resume auto

Every key of the config file is a flag too. The run folder is that of `minivapo train`; a run can be resumed on
another number of ranks, and here or on a laptop.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from minivapo.errors import UserError, install
from minivapo.options.fields import Count, Natural
from minivapo.options.parse import Words, parse, read_words, refuse_changes, task_options, task_words
from minivapo.runs.presets import preset_label
from scaled.config import Job, Settings, check_ranks, check_task, preset_job
from scaled.faults import farewell, one_line_end, start_watchdog, tick, write_failures_to

PROG = "scaled.train"
AUTO = Path("auto")


@dataclass(frozen=True)
class Arguments:
    """Train on DeepSpeed and vLLM, one process a rank: torchrun --nproc_per_node N -m scaled.train --config FILE."""

    resume: Path | None = None
    """Go on with this run, by its own configuration, on any number of ranks; auto: with --run-dir's, or begin it."""
    save_every: Natural = 0
    """Rollouts between checkpoints, those of value-pretraining included; 0: saving takes at most 5 % of the time."""
    keep: Count = 1
    """Checkpoints to keep: the newest as checkpoint/, those before it as checkpoint-STEP/."""
    plan: Literal["check", "skip"] = "check"
    """check refuses, on a GPU, what by the plan does not fit; skip tries it."""
    job: tyro.conf.OmitArgPrefixes[Job] = dataclasses.field(default_factory=Job)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this rank; a failure ends the process with one line that says why."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print(__doc__)
        return 2
    if {"-h", "--help"} & set(words):
        parse(Arguments, ["--help"], PROG)  # ends here
    if not sys.warnoptions:  # libraries' notices to developers, unless -W or PYTHONWARNINGS asks for them
        warnings.simplefilter("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    words = [word for word in words if not word.startswith("--local_rank")]  # older launchers add it
    rank = int(os.environ.get("RANK", "0"))
    with one_line_end(rank):
        run_rank(words, rank)
    # Libraries' threads would keep a rank alive, or crash it, after all is written.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_rank(words: Sequence[str], rank: int) -> None:
    """Reads the job, checks it, builds the engine and trains."""
    args, options = read_arguments(words)
    job, resume = args.job, args.resume if args.resume != AUTO else None
    size = int(os.environ.get("WORLD_SIZE", "1"))
    check_ranks(job, size)
    check_installed()
    check_hardware(job, size, args.plan)
    start_watchdog(job.settings.timeout_minutes * 60, rank, size, job.settings.silence_seconds)
    tick("joining the process group")

    import torch

    from minivapo.probe import PROBLEMS, probe
    from minivapo.runs.checkpoint import checkpoint_folder, has_checkpoint
    from minivapo.runs.training import run_training
    from minivapo.tasks import load_task
    from scaled.engine import ScaledEngine
    from scaled.world import start

    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    world = start(job.settings.timeout_minutes)
    run = world.agree(lambda: run_folder(job, resume))
    write_failures_to(run)
    tick("building the engine")
    model = reference = start_model(job, run, resume is not None)
    critic = job.critic or None
    if resume is not None and world.agree(lambda: has_checkpoint(run) and is_gone(model)):
        state = checkpoint_folder(run)  # it holds all that the model was there for
        model, critic = str(state / "actor"), str(state / "critic") if job.config.advantage == "gae" else None
    task, model = load_task(job.task, options, model, job.config.max_prompt_tokens)
    if rank == 0 and hasattr(task, "report"):
        print(f"{job.task}: {task.report}", flush=True)
    task.train_problems(0, 1, job.config.seed)  # a task for evaluation only is refused before any weights load
    engine = ScaledEngine(model, job.config, job.settings, world, stop=task.stop, critic=critic, reference=reference)
    tick("probing the model")
    probe(engine, task.train_problems(0, PROBLEMS, job.config.seed), job.config)
    world.agree(lambda: record(job, run, resume is not None, options))  # a refused model leaves no run behind
    how = {"save_every": args.save_every, "keep": args.keep}
    lines = run_training(job.config, task, engine, run, resume=resume is not None, **how)
    for metrics in lines:
        tick("training")
        if rank == 0:
            print(summary(metrics), flush=True)
    if rank == 0:
        from minivapo.show.report import make_report

        print(f"report: {make_report([run])}", flush=True)
    world.sum(torch.zeros(1))  # nobody leaves before the last file is written
    farewell()


def read_arguments(argv: Sequence[str]) -> tuple[Arguments, dict[str, Any]]:
    """The arguments, on top of the preset or of the run that goes on, and the options of its task.

    On --resume the cluster's settings may change, what decides the run's numbers may not.

    Raises:
        UserError: there is no config file, run or flag of that name, or the run was started with another value.
    """
    words = read_words(Arguments, argv)
    if words.start.resume == AUTO:
        return go_on_or_begin(words)
    if (words.start.resume is None) == (words.start.config is None):
        raise UserError("name a config file by --config FILE, or a run to go on with by --resume DIR.")
    if words.start.resume is None:
        args = parse(Arguments, words, PROG, Arguments(job=preset_job(words)))
        check_task(args.job)
        return args, task_options(args.job.task_option)
    job, options = recorded_job(words.start.resume)
    args = parse(Arguments, words, PROG, Arguments(job=job))
    free = ["steps", *(f.name for f in dataclasses.fields(Settings))]
    refuse_changes(job, args.job, free, "only the cluster's settings and --steps can.")
    return dataclasses.replace(args, job=dataclasses.replace(args.job, run=args.resume)), options


def go_on_or_begin(words: Words) -> tuple[Arguments, dict[str, Any]]:
    """The arguments where a job may be started many times: by its launcher, or by a scheduler that requeues it.

    Raises:
        UserError: no config file or run folder is named, or the run in it was started with another configuration.
    """
    if words.start.config is None:
        raise UserError("--resume auto needs --config FILE and --run-dir DIR: it begins the run if there is none.")
    args = parse(Arguments, words, PROG, Arguments(job=preset_job(words)))
    run = check_task(args.job).run
    if run is None:
        raise UserError("--resume auto needs --run-dir DIR, the folder of the run to go on with or to begin.")
    if not (run / "config.json").exists():
        return args, task_options(args.job.task_option)
    job, options = recorded_job(run)
    refuse_changes(job.config, args.job.config, ("steps",), f"{run} was started with another value.")
    job = dataclasses.replace(job, config=args.job.config, settings=args.job.settings, run=run)
    return dataclasses.replace(args, resume=run, job=job), options


def recorded_job(run: Path) -> tuple[Job, dict[str, Any]]:
    """The job of a run folder, and the options of its task.

    A run that was started on a laptop has no settings: it goes on in float32.
    """
    from minivapo.runs.folder import read_config
    from minivapo.runs.origin import find_origin

    config, info = read_config(run)
    origin = find_origin(info, config, run)
    recorded: dict[str, Any] = info.get("settings") or {"dtype": "float32"}
    settings = Settings(**recorded)
    options = info.get("task_options") or {}
    names = {"model": origin.model, "task": origin.task, "preset": info.get("preset", "vapo")}
    job = Job(**names, task_option=task_words(options), config=config, settings=settings, critic=origin.critic)
    return job, options


def run_folder(job: Job, resume: Path | None) -> Path:
    """Rank 0: the run's folder; a new one is made, without a config.json yet: what has that can go on.

    Raises:
        UserError: the run cannot go on like this, or the folder holds another one, or cannot be made.
    """
    from minivapo.runs.folder import cannot_write, check_steps, new_run_folder, read_config, refuse_a_run
    from minivapo.runs.origin import check_reference, find_origin
    from minivapo.tasks import task_label

    if resume is not None:
        config, info = read_config(resume)
        check_steps(resume, config.steps, job.config.steps)
        check_reference(info, find_origin(info, config, resume), resume)
        return resume
    name = f"{task_label(job.task)}-{preset_label(job.preset)}-{job.config.seed}"
    run = job.run or new_run_folder(Path("runs"), name)
    refuse_a_run(run)
    model = start_model(job, run)
    try:
        run.mkdir(parents=True, exist_ok=True)
        if model == str(run / "base"):
            from scaled.layers.widen import widen

            widen(default_model(job), run / "base")
    except OSError as error:
        raise cannot_write(run, error) from error
    return run


def record(job: Job, run: Path, resume: bool, options: dict[str, Any]) -> None:
    """Rank 0: writes config.json, or what a run goes on with."""
    from minivapo.runs.folder import record_changes, write_config

    settings = dataclasses.asdict(job.settings)
    if resume:
        return record_changes(run, job.config, settings=settings)
    info = {
        "preset": job.preset, "task": job.task, "task_options": options, "model": start_model(job, run),
        "critic": job.critic, "settings": settings, "ranks": int(os.environ.get("WORLD_SIZE", "1")),
    }  # fmt: skip
    return write_config(run, job.config, info)


def start_model(job: Job, run: Path, resume: bool = False) -> str:
    """The model that a run starts, or was started, from: the job's, or a wider copy of the embedded base, made here."""
    wide = run / "base"
    if resume:  # the folder may have been moved
        return str(wide) if Path(job.model).name == wide.name and wide.exists() else default_model(job)
    model = default_model(job)
    return str(wide) if not job.model and needs_widening(model) else model


def needs_widening(model: str) -> bool:
    """True for an embedded base whose heads are too narrow for vLLM on this machine's CPU."""
    import torch
    import transformers

    from scaled.layers.widen import NARROWEST

    return not torch.cuda.is_available() and transformers.AutoConfig.from_pretrained(model).head_dim < NARROWEST


def is_gone(model: str) -> bool:
    """Whether a name that reads like a path leads nowhere."""
    from minivapo.loading import locate

    try:
        locate(model, "actor")
    except UserError:
        return True
    return False


def default_model(job: Job) -> str:
    """The job's model; without one, the task's embedded base."""
    if job.model:
        return job.model
    from minivapo.tasks import default_model as embedded

    return embedded(job.task)


def check_installed() -> None:
    """Refuses to start without the packages that a laptop does not need.

    Raises:
        UserError: names them and how to install them.
    """
    absent = [name for name in ("deepspeed", "vllm", "accelerate") if importlib.util.find_spec(name) is None]
    if absent:
        line = install("scaled,vllm", "constraints-cuda13.txt")
        raise UserError(
            f"scaled.train needs {' and '.join(absent)}: {line}, on a machine with CUDA 13 (docs/cluster.md)."
        )


def check_hardware(job: Job, ranks: int, plan: str) -> None:
    """Refuses, before weights load, what this machine cannot compute or hold.

    Raises:
        UserError: bf16 is not supported, or the plan says that memory will not do (--plan skip goes on).
    """
    import torch

    if not torch.cuda.is_available():
        return
    if job.settings.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("dtype is bfloat16, which this GPU does not compute: set dtype=float32.")
    if plan == "skip":
        return
    from scaled.planning.advice import plan as make_plan
    from scaled.planning.hardware import this_gpu

    gpu = this_gpu()
    assert gpu is not None
    result = make_plan(dataclasses.replace(job, settings=dataclasses.replace(job.settings, ranks=ranks)), gpu)
    if not result.fits:
        raise UserError(
            f"the plan says that this will not fit: {result.reasons[0]} See python -m scaled.plan; --plan skip tries."
        )


def summary(metrics: dict[str, float]) -> str:
    """A line for the terminal."""
    names = (
        "eval/accuracy", "pretrain/value_loss", "pretrain/reward_model_loss", "reward/accuracy", "response/length",
        "value/explained_variance", "policy/sampler_gap_mean", "actor/imbalance", "time/straggler_share", "time/total",
    )  # fmt: skip
    return f"step {metrics['step']:.0f}  " + "  ".join(f"{k} {metrics[k]:.4g}" for k in names if k in metrics)


if __name__ == "__main__":
    raise SystemExit(main())
