"""Trains on DeepSpeed and vLLM: `minivapo.vapo.train` behind one command for every rank.

    torchrun --standalone --nproc_per_node 2 -m scaled.train --config scaled/configs/smoke.yaml
    torchrun --standalone --nproc_per_node 2 -m scaled.train --config FILE --run-dir DIR --steps 3
    torchrun --standalone --nproc_per_node 4 -m scaled.train --resume DIR

Every key of the config file is a flag too. The run folder is that of `minivapo train`; a run can be resumed on
another number of ranks, and here or on a laptop.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivapo.interfaces import UserError
from scaled.config import Job, Settings, check_ranks, make_job, read_job, split_overrides, with_settings
from scaled.faults import one_line_end, start_watchdog, tick

OWN = ("config", "resume", "save_every", "plan")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this rank; a failure ends the process with one line that says why."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0 if words else 2
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
    given = split_overrides(words)
    own = {key: given.pop(key) for key in OWN if key in given}
    resume = Path(own["resume"]) if "resume" in own else None
    if (resume is None) == ("config" not in own):
        raise UserError("name a config file by --config FILE, or a run to go on with by --resume DIR.")
    job, options = resumed_job(resume, given) if resume else (read_job(own["config"], flags(given)), {})
    size = int(os.environ.get("WORLD_SIZE", "1"))
    check_ranks(job, size)
    check_hardware(job, size, own.get("plan", "check"))
    start_watchdog(job.settings.timeout_minutes * 60, rank)
    tick("joining the process group")

    import torch

    from minivapo.runs.training import run_training
    from minivapo.tasks import load_task
    from scaled.engine import ScaledEngine
    from scaled.world import start

    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    world = start(job.settings.timeout_minutes)
    run = world.agree(lambda: run_folder(job, resume, options))
    tick("building the engine")
    model = str(run / "base") if (run / "base").exists() else default_model(job)
    task, model = load_task(job.task, options, model, job.config.max_prompt_tokens)
    if rank == 0 and hasattr(task, "report"):
        print(f"{job.task}: {task.report}", flush=True)
    task.train_problems(0, 1, job.config.seed)  # a task for evaluation only is refused before any weights load
    engine = ScaledEngine(model, job.config, job.settings, world, stop=task.stop, critic=job.critic or None)
    lines = run_training(
        job.config, task, engine, run, resume=resume is not None, save_every=int(own.get("save_every", "1"))
    )
    for metrics in lines:
        tick("training")
        if rank == 0:
            print(summary(metrics), flush=True)
    if rank == 0:
        from minivapo.show.report import make_report

        print(f"report: {make_report([run])}", flush=True)
    world.sum(torch.zeros(1))  # nobody leaves before the last file is written


def flags(given: dict[str, str]) -> list[str]:
    """Overrides as words again."""
    return [f"{key}={value}" for key, value in given.items()]


def resumed_job(run: Path, given: dict[str, str]) -> tuple[Job, dict[str, Any]]:
    """The job of a run folder; settings may be changed, what decides the run's numbers may not.

    A run that was started on a laptop has no settings: it goes on in float32.
    """
    from minivapo.runs.folder import read_config

    config, info = read_config(run)
    settings: dict[str, Any] = info.get("settings") or {"dtype": "float32"}
    names = {f.name for f in dataclasses.fields(Settings)}
    for key in given:
        if key not in names:
            raise UserError(f"'{key}' cannot be changed on --resume; only the cluster's settings can.")
    job = make_job({"preset": info.get("preset", "vapo"), "task": info["task"], "model": info["model"]})
    job = dataclasses.replace(
        job, config=config, settings=Settings(**settings), run=str(run), critic=info.get("critic")
    )
    return with_settings(job, given), info.get("task_options") or {}


def run_folder(job: Job, resume: Path | None, options: dict[str, Any]) -> Path:
    """Rank 0: the run's folder, made and with its config.json."""
    from minivapo.runs.folder import new_run_folder, write_config

    if resume is not None:
        return resume
    name = f"{job.task.partition(':')[0]}-{job.preset}-{job.config.seed}"
    run = Path(job.run) if job.run else new_run_folder(Path("runs"), name)
    model = default_model(job)
    if not job.model and needs_widening(model):
        model = str(run / "base")
    info = {
        "preset": job.preset, "task": job.task, "task_options": options, "model": model,
        "critic": job.critic, "settings": dataclasses.asdict(job.settings),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
    }  # fmt: skip
    write_config(run, job.config, info)
    if model == str(run / "base"):
        from scaled.layers.widen import widen

        widen(default_model(job), run / "base")
    return run


def needs_widening(model: str) -> bool:
    """True for an embedded base whose heads are too narrow for vLLM on this machine's CPU."""
    import torch
    import transformers

    from scaled.layers.widen import NARROWEST

    return not torch.cuda.is_available() and transformers.AutoConfig.from_pretrained(model).head_dim < NARROWEST


def default_model(job: Job) -> str:
    """The job's model; without one, the task's embedded base."""
    if job.model:
        return job.model
    from minivapo.tasks import default_model as embedded

    return embedded(job.task)


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
