"""`minivapo train`: a new run, or the rest of one."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from minivapo.commands.arguments import load_task, pick_device, set_threads, stop_strings
from minivapo.errors import UsageError, UserError
from minivapo.options.fields import Count, Natural
from minivapo.options.parse import (
    ConfigFile,
    RunFolder,
    TaskOptions,
    Words,
    parse,
    read_words,
    refuse_changes,
    task_options,
    task_words,
)
from minivapo.runs.presets import find_preset, preset_for, preset_label
from minivapo.vapo import Config

PROG = "minivapo train"
AUTO = Path("auto")
MACHINE = ("device", "threads", "save_every", "keep", "tensorboard", "wandb")
"""Flags that change no number of a run: on --resume they hold from then on."""
START = ("file", "run", "resume", "branch_from")
"""Flags that say which run is meant."""


@dataclass(frozen=True)
class Arguments:
    """Train a policy with VAPO, an ablation of it, or a baseline, and write a run folder."""

    file: ConfigFile = None
    """YAML file whose keys are these flags; a flag overrules it."""
    preset: str = "vapo"
    """vapo, ppo, grpo, dapo, an ablation such as vapo-wo-decoupled-gae, or FILE.py:NAME of a Config."""
    task: str = "locks"
    """locks, chain, proof; reasoning-gym:GENERATOR; gsm8k, dapo-math (:FILE may follow), jsonl:FILE; FILE.py:CLASS."""
    model: str | None = None
    """Policy to start from: a transformers folder, hub name, or smollm2-135m; default: the task's embedded base."""
    critic: str | None = None
    """Model that the critic starts from, if not the policy: it may be smaller, but needs its tokenizer."""
    run: RunFolder = None
    """New run folder; default runs/TASK-PRESET-SEED."""
    resume: Path | None = None
    """Go on with this run, by its own configuration; --steps may extend it. auto: with --run's, or begin it."""
    branch_from: str | None = None
    """RUN or RUN@STEP: a new run from that checkpoint, with what the other flags change."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes the first of cuda and cpu that is there."""
    threads: Natural = 0
    """CPU threads; 0 takes 1 for models under 5 million parameters (more is slower there), else all."""
    template: str | None = None
    """Prompt template of mathematics tasks: base or chat."""
    task_option: TaskOptions = ()
    """Option of the task; may be given several times. Values are YAML; of reasoning-gym's generators all are taken."""
    stop: tuple[str, ...] = ()
    """Strings that end a response besides EOS."""
    save_every: Natural = 0
    """Rollouts between checkpoints, those of value-pretraining included; 0: saving takes at most 5 % of the time."""
    keep: Count = 1
    """Checkpoints to keep: the newest as checkpoint/, those before it as checkpoint-STEP/."""
    bf16: bool = False
    """Compute in bfloat16 with fp32 weights (a GPU, or a processor with AMX)."""
    save_memory: bool = False
    """Recompute activations in the backward pass, and keep no gradients between steps: slower, same numbers."""
    sample_batch: Count = 256
    """Responses sampled at once; fewer need less memory."""
    tensorboard: bool = False
    """Also log to TensorBoard, in the run folder."""
    wandb: bool = False
    """Also log to Weights & Biases."""
    config: tyro.conf.OmitArgPrefixes[Config] = dataclasses.field(default_factory=Config)
    """The algorithm's configuration, on top of the preset."""


def read(argv: Sequence[str]) -> Arguments:
    """The arguments, on top of the preset, or of the run that goes on or is branched from.

    Raises:
        UserError: there is no such preset, run or flag, or the run was started with another value.
    """
    words = read_words(Arguments, argv)
    start = words.start
    if start.resume is not None and start.resume != AUTO:
        return go_on(words, start.resume)
    if start.branch_from is not None:
        return read_branch(words, start.branch_from)
    name, task = start.preset or "vapo", start.task or Arguments.task
    config = preset_for(name, task, critic=start.model is None and start.critic is None)
    args = parse(Arguments, words, PROG, Arguments(preset=name, task=task, config=config))
    if args.config.critic_init == "shipped" and args.config.value_pretrain_steps:  # asked for: pretrain anew
        own = dataclasses.replace(args.config, critic_init=find_preset(name).critic_init)
        args = dataclasses.replace(args, config=own)
    if start.resume != AUTO:
        return args
    if args.run is None:
        raise UsageError("--resume auto needs --run DIR, the folder of the run to go on with or to begin.")
    return go_on(words, args.run) if (args.run / "config.json").exists() else args


def go_on(words: Words, run: Path) -> Arguments:
    """The arguments of a run that is resumed; `resume` is its folder, or auto still.

    Raises:
        UserError: there is no such run, or a flag would change its numbers.
    """
    from minivapo.runs.folder import check_steps

    default = recorded(run)
    args = parse(Arguments, words, PROG, default)
    refuse_changes(default, args, (*START, *MACHINE, "steps"), "a run goes on as it was started.")
    check_steps(run, default.config.steps, args.config.steps)
    return dataclasses.replace(args, run=run)


def read_branch(words: Words, state: str) -> Arguments:
    """The arguments of a run that starts from a state of another.

    Raises:
        UserError: there is no such run, or a flag does not go with its state.
    """
    from minivapo.runs.branch import split_state

    default = recorded(split_state(state)[0])
    args = parse(Arguments, words, PROG, default)
    free = {f.name for kind in (Config, Arguments) for f in dataclasses.fields(kind)}
    free -= {"model", "critic", "critic_init", "preset", "advantage"}
    refuse_changes(default, args, free, "the checkpoint holds what came of it.", "--branch-from")
    return args


def recorded(run: Path) -> Arguments:
    """The arguments that a run was started with, from its config.json."""
    from minivapo.runs.folder import read_config

    config, info = read_config(run)
    engine, machine = info.get("engine_options", {}), info.get("machine", {})
    return Arguments(
        preset=info.get("preset", "vapo"),
        task=info["task"],
        model=info["model"],
        critic=info["critic"],
        template=info["task_options"].get("template"),
        task_option=task_words({k: v for k, v in info["task_options"].items() if k != "template"}),
        stop=tuple(engine.get("stop", ())),
        bf16=engine.get("autocast", False),
        save_memory=engine.get("save_memory", False),
        sample_batch=engine.get("sample_batch", 256),
        config=config,
        **{name: value for name, value in machine.items() if name in MACHINE},
    )


def train_run(**flags: Any) -> Path:
    """A whole run in one call, from a program or a notebook: as `minivapo train` with these flags; returns its folder.

    For example `train_run(preset="grpo", steps=8, run="runs/mine", task_option=["min_terms=2"])`.

    Raises:
        UserError: as the command.
    """
    words: list[str] = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif name == "task_option":  # the one flag that may be given several times
            words += [word for x in value for word in (f"--{flag}", x)]
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return train_folder(read(words))


def run(args: Arguments) -> int:
    """Trains and says where the report is."""
    train_folder(args)
    return 0


def train_folder(args: Arguments) -> Path:
    """Builds task and engine, trains with a live view, and writes the report; returns the run folder."""
    from minivapo.local import LocalEngine
    from minivapo.probe import PROBLEMS, probe
    from minivapo.responses import held_out_problems, training_problem
    from minivapo.runs.folder import record_changes
    from minivapo.runs.training import run_training
    from minivapo.show.introduction import introduction
    from minivapo.show.live import Live
    from minivapo.show.loggers import check_installed
    from minivapo.show.report import make_report

    check_installed(args.tensorboard, args.wandb)  # before a folder is written
    device = pick_device(args.device)
    old = args.run if args.resume and args.run and (args.run / "config.json").exists() else None
    folder = branch_folder(args) if args.branch_from else old
    start = beginning(args) if folder is None else continuation(args, folder)
    task, model = load_task(start.task, options_of(args), start.model, args.config.max_prompt_tokens)
    # A task for evaluation only is refused here, before any weights load.
    first = training_problem(task, 0, args.config.seed)
    held_out_problems(task, args.config.eval_problems)
    engine = LocalEngine(
        model, start.config, device=device, critic=start.critic, reference=start.reference,
        stop=stop_strings(task.stop, args.stop), autocast=args.bf16, save_memory=args.save_memory,
        sample_batch=args.sample_batch,
    )  # fmt: skip
    set_threads(args.threads, engine)
    probe(engine, task.train_problems(0, PROBLEMS, args.config.seed), start.config)  # before there is a folder
    if folder is None:
        folder, resume = start_folder(args, model), False
        about = getattr(task, "about", "")
        print(introduction(args.config, args.task, args.preset, first, folder, about), flush=True)
    else:
        resume = True
        record_changes(folder, args.config, machine=machine(args))
    with Live(args.config, folder, tensorboard=args.tensorboard, wandb=args.wandb) as live:
        metrics: dict[str, float] = {}
        for metrics in run_training(
            start.config, task, engine, folder, resume=resume, save_every=args.save_every, keep=args.keep
        ):
            live.update(metrics)
    if not metrics and args.resume == AUTO:
        print(f"{folder} is complete.")
        return folder
    if not metrics:
        raise UserError(f"{folder} is complete: there is nothing left to train. --steps N extends it.")
    print(f"report: {make_report([folder])}")
    return folder


def options_of(args: Arguments) -> dict[str, Any]:
    """Options of the task."""
    return task_options(args.task_option, args.template)


@dataclass(frozen=True)
class Beginning:
    """What the engine is built from."""

    task: str
    model: str | None
    critic: str | None
    config: Config
    reference: str | None = None
    """The policy that `kl_coef` holds the actor to, if not the model."""


def beginning(args: Arguments) -> Beginning:
    """Of a new run."""
    return Beginning(args.task, args.model, args.critic, args.config)


def continuation(args: Arguments, folder: Path) -> Beginning:
    """Of a run that goes on: its own checkpoint, so that nothing outside is needed but its data and its reference.

    Raises:
        UserError: the checkpoint is damaged, or the reference policy is another one now.
    """
    from minivapo.runs.checkpoint import find_checkpoint, has_checkpoint
    from minivapo.runs.folder import read_config
    from minivapo.runs.origin import check_reference, find_origin

    _, info = read_config(folder)
    origin = find_origin(info, args.config, folder)
    check_reference(info, origin, folder)
    if not has_checkpoint(folder):  # stopped before its first: it starts again
        return Beginning(origin.task, origin.model, origin.critic, origin.config)
    state = find_checkpoint(folder)
    critic = str(state / "critic") if (state / "critic").exists() else None
    return Beginning(origin.task, str(state / "actor"), critic, origin.config, origin.model)


def machine(args: Arguments) -> dict[str, Any]:
    """How this machine carries the run out."""
    return {name: getattr(args, name) for name in MACHINE}


def description(args: Arguments, model: str) -> dict[str, Any]:
    """What config.json keeps beside the configuration."""
    how = {"autocast": args.bf16, "save_memory": args.save_memory, "sample_batch": args.sample_batch}
    return {
        "preset": args.preset, "task": args.task, "task_options": options_of(args), "model": model,
        "critic": args.critic, "engine_options": how | {"stop": list(args.stop)}, "machine": machine(args),
    }  # fmt: skip


def new_folder(args: Arguments) -> Path:
    """The folder of a new run: as given, or the next free one of its name."""
    from minivapo.runs.folder import new_run_folder
    from minivapo.tasks import task_label

    return args.run or new_run_folder(
        Path("runs"), f"{task_label(args.task)}-{preset_label(args.preset)}-{args.config.seed}"
    )


def start_folder(args: Arguments, model: str) -> Path:
    """Makes the folder of a new run, with its config.json."""
    from minivapo.runs.folder import write_config

    folder = new_folder(args)
    write_config(folder, args.config, description(args, model))
    return folder


def branch_folder(args: Arguments) -> Path:
    """Makes the folder of a run that starts from a state of another, with that state."""
    from minivapo.runs.branch import branch, find_state, split_state
    from minivapo.runs.folder import read_config
    from minivapo.runs.origin import check_reference, find_origin

    source, step = split_state(str(args.branch_from))
    find_state(source, step)  # before a folder is made
    config, info = read_config(source)
    origin = find_origin(info, config, source)
    check_reference(info, origin, source)
    folder = new_folder(args)
    same_task = args.task == info["task"]
    moved = dataclasses.replace(args, task=origin.task if same_task else args.task, critic=origin.critic)
    branch(source, step, folder, args.config, description(moved, origin.model))
    return folder
