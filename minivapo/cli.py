"""The command line: `minivapo train | eval | sample | ablate | report | watch | make-base | reward-model`."""

# No `from __future__ import annotations` here: tyro could not resolve names that a command imports for itself.
import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; a mistake of the user's ends in one line and exit code 1 or 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0 if argv else 2
    if argv[0] == "--version":
        from minivapo import __version__

        print(__version__)
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        print(f"minivapo: there is no command '{argv[0]}'; choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if argv[0] == "train" and not {"-h", "--help"} & set(argv):
        print("MiniVAPO: starting …", flush=True)  # before torch, whose import takes seconds
    import os

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from minivapo.data import NonFiniteError, UserError

    try:
        return command(argv[1:]) or 0
    except (UserError, NonFiniteError) as error:
        print(f"minivapo: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"minivapo: {error.strerror or error}: {error.filename or ''}; nothing saved before was lost.",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("minivapo: stopped; go on with `minivapo train --resume RUN`.", file=sys.stderr)
        return 130
    return 1


# ---------------------------------------------------------------------------------------------------------
# train
# ---------------------------------------------------------------------------------------------------------


def train_command(argv: Sequence[str]) -> int:
    """`minivapo train`: a new run, or the rest of one."""
    import tyro

    from minivapo.data import UserError
    from minivapo.vapo import PRESETS, Config

    @dataclass(frozen=True)
    class Train:
        """Train a policy with VAPO, an ablation of it, or a baseline, and write a run folder."""

        preset: str = "vapo"
        """vapo, ppo, grpo, dapo, or an ablation such as vapo-wo-decoupled-gae."""
        task: str = "chain"
        """chain, reach; or gsm8k, dapo-math (each may be followed by :FILE), jsonl:FILE."""
        model: str | None = None
        """Policy to start from: a transformers folder or hub name; default: the task's embedded base."""
        critic: str | None = None
        """Model that the critic starts from, if not the policy: it may be smaller, but needs its tokenizer."""
        run: Path | None = None
        """New run folder; default runs/TASK-PRESET-SEED."""
        resume: Path | None = None
        """Go on with this run, by its own configuration."""
        device: str = "auto"
        """cpu, cuda, mps; auto takes the first of cuda and cpu that is there."""
        threads: int = 0
        """CPU threads; 0 takes 1 for models under 5 million parameters (more is slower there), else all."""
        template: str | None = None
        """Prompt template of mathematics tasks: base or chat."""
        save_every: int = 1
        """Steps between checkpoints."""
        bf16: bool = False
        """Compute in bfloat16 with fp32 weights (GPU)."""
        tensorboard: bool = False
        """Also log to TensorBoard, in the run folder."""
        wandb: bool = False
        """Also log to Weights & Biases."""
        config: tyro.conf.OmitArgPrefixes[Config] = dataclasses.field(default_factory=Config)
        """The algorithm's configuration, on top of the preset."""

    name = flag_value(argv, "--preset") or "vapo"
    if name not in PRESETS:
        raise UserError(f"there is no preset '{name}'; choose one of {', '.join(PRESETS)}.")
    args = parse(Train, args=list(argv), default=Train(preset=name, config=PRESETS[name]), prog="minivapo train")
    return run_train(args)


def run_train(args: Any) -> int:
    """Builds task and engine for `minivapo train`, trains with a live view, and writes the report."""
    from minivapo.data import UserError
    from minivapo.live import Live
    from minivapo.local import LocalEngine
    from minivapo.report import make_report
    from minivapo.run import new_run_folder, read_config, run_training, write_config
    from minivapo.tasks import make_task

    config, task_name, model, critic = args.config, args.task, args.model, args.critic
    options = {"template": args.template} if args.template else {}
    if args.resume is not None:
        config, info = read_config(args.resume)
        task_name, model, critic = info["task"], info["model"], info["critic"]
        options = info["task_options"]
    task = make_task(task_name, **options)
    model = model or default_model(task_name)
    engine = LocalEngine(
        model, config, stop=task.stop, device=pick_device(args.device), critic=critic, autocast=args.bf16
    )
    set_threads(args.threads, engine)
    if args.resume is None:
        run = args.run or new_run_folder(Path("runs"), f"{task_name.partition(':')[0]}-{args.preset}-{config.seed}")
        info = {"preset": args.preset, "task": task_name, "task_options": options, "model": model, "critic": critic}
        write_config(run, config, info)
    else:
        run = args.resume
    with Live(config, run, tensorboard=args.tensorboard, wandb=args.wandb) as live:
        metrics: dict[str, float] = {}
        for metrics in run_training(
            config, task, engine, run, resume=args.resume is not None, save_every=args.save_every
        ):
            live.update(metrics)
    if not metrics:
        raise UserError(f"{run} is complete: there is nothing left to train.")
    print(f"report: {make_report([run])}")
    return 0


def parse(kind: Any, *, args: list[str], prog: str, default: Any = None) -> Any:
    """`tyro.cli`, whose box of help for a mistake becomes one line.

    Raises:
        SystemExit: with code 0 after `--help`, with code 2 and a message for a mistake.
    """
    import tyro

    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, args=args, prog=prog, **({} if default is None else {"default": default}))
    except SystemExit as stop:
        if stop.code:
            lines = [line.strip("│╭╮╰╯ ") for line in box.getvalue().splitlines()[1:]]
            first = next((i for i, line in enumerate(lines) if set(line) == {"─"}), len(lines))
            what = " ".join(lines[:first]).removeprefix("Error parsing config: ").rstrip(".")
            near = [line.split()[0] for line in lines[first:] if line.startswith("--")]
            hint = f"; perhaps you meant {' or '.join(near[:3])}" if what.startswith("Unrecognized") and near else ""
            print(f"minivapo: {what}{hint}. `{prog} --help` explains each flag.", file=sys.stderr)
        raise


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """The value given to a flag, as `--flag value` or `--flag=value`."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def default_model(task: str) -> str:
    """The embedded base of a task.

    Raises:
        UserError: the task has none.
    """
    from minivapo.base import BASES
    from minivapo.data import UserError

    folder = BASES / task
    if not folder.exists():
        raise UserError(f"task '{task}' has no embedded base model: name one with --model, say Qwen/Qwen2.5-0.5B.")
    return str(folder)


def pick_device(name: str) -> str:
    """The device that a --device flag means.

    Raises:
        UserError: it is not there.
    """
    import torch

    from minivapo.data import UserError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name.partition(":")[0], False):
        raise UserError(f"there is no device '{name}' here; use one of {', '.join(k for k, v in there.items() if v)}.")
    return name


def set_threads(threads: int, engine: Any) -> None:
    """One thread for tiny models, where waking a second one costs more than it brings."""
    import torch

    tiny = sum(p.numel() for p in engine.actor.model.parameters()) < 5_000_000
    if threads or tiny:
        torch.set_num_threads(threads or 1)


# ---------------------------------------------------------------------------------------------------------
# the other commands
# ---------------------------------------------------------------------------------------------------------


def make_base_command(argv: Sequence[str]) -> int:
    """`minivapo make-base`: trains a base model from nothing."""
    import tyro

    @dataclass(frozen=True)
    class MakeBase:
        """Make a base model for an embedded task from nothing: a small Llama on noisy demonstrations."""

        out: Annotated[Path, tyro.conf.Positional]
        """Folder for the model and its tokenizer; it must not exist."""
        task: str = "chain"
        """chain or reach."""
        steps: int = 900
        """Gradient steps."""
        seed: int = 0
        """Of the initial weights and the demonstrations."""

    args = parse(MakeBase, args=list(argv), prog="minivapo make-base")
    import torch
    from rich.progress import Progress

    from minivapo.base import make_base
    from minivapo.data import UserError
    from minivapo.tasks import TASKS, make_task

    if args.task not in TASKS:
        raise UserError(f"task '{args.task}' has no demonstrations; choose one of {', '.join(TASKS)}.")
    if args.out.exists():
        raise UserError(f"{args.out} exists already; name a new folder.")
    torch.set_num_threads(1)
    with Progress() as bar:
        row = bar.add_task("training", total=args.steps)

        def show(step: int, steps: int, loss: float) -> None:
            bar.update(row, completed=step, description=f"loss {loss:.3f}")

        make_base(make_task(args.task), args.out, steps=args.steps, seed=args.seed, progress=show)
    print(f"base model: {args.out}")
    return 0


def sample_command(argv: Sequence[str]) -> int:
    """`minivapo sample`: shows responses of a run or model."""
    import tyro

    @dataclass(frozen=True)
    class Show:
        """Show some responses of a run or model to held-out problems, right and wrong."""

        source: Annotated[str, tyro.conf.Positional]
        """Run folder, transformers folder, or hub name."""
        task: str | None = None
        """Task; default: the run's, or chain."""
        count: int = 6
        """Problems to show."""
        temperature: float = 1.0
        """Sampling temperature."""
        top_p: float = 0.7
        """Top-p."""
        seed: int = 0
        """Sampling seed."""
        show_prompt: bool = False
        """Print each prompt exactly as the policy sees it, with its token count."""
        template: str | None = None
        """Prompt template of mathematics tasks: base or chat."""

    args = parse(Show, args=list(argv), prog="minivapo sample")
    from rich.console import Console
    from rich.text import Text

    from minivapo.data import encode_prompt, response_text
    from minivapo.local import LocalEngine
    from minivapo.tasks import make_task

    model, task_name, config, options = resolve_source(args.source, args.task, args.template)
    task = make_task(task_name, **options)
    config = dataclasses.replace(config, advantage="group", group_size=2, batch_size=2, mini_batch=2, kl_coef=0.0)
    engine = LocalEngine(model, config, stop=task.stop)
    set_threads(0, engine)
    problems = task.test_problems(args.count)
    prompts = [encode_prompt(engine.tokenizer, p.prompt, config.max_prompt_tokens) for p in problems]
    engine.sampler.sync(engine.actor)
    samples = engine.sampler.generate(prompts, 1, args.seed, 0, args.temperature, args.top_p)
    texts = [response_text(engine.tokenizer, s) for s in samples]
    console = Console()
    for problem, ids, sample, text, verdict in zip(
        problems, prompts, samples, texts, task.judge(problems, texts), strict=True
    ):
        mark = {True: "right", False: "wrong", None: "verifier failed"}[verdict]
        end = "" if sample.terminated else ", cut by the length limit"
        if args.show_prompt:
            console.print(Text(f"prompt ({len(ids)} tokens): {engine.tokenizer.decode(ids)!r}"))
        else:
            console.print(Text(problem.prompt, style="bold"))
        console.print(Text(text))
        style = "green" if verdict else "red"
        console.print(Text(f"→ {mark}{end}; the answer is {problem.answer}\n", style=style))
    return 0


def resolve_source(source: str, task: str | None, template: str | None) -> tuple[str, str, Any, dict[str, Any]]:
    """(model, task, config, task options) that a run folder or a model name stands for."""
    from minivapo.run import find_checkpoint, read_config
    from minivapo.vapo import Config

    options = {"template": template} if template else {}
    folder = Path(source)
    if (folder / "config.json").exists() and (folder / "metrics.jsonl").exists():
        config, info = read_config(folder)
        same_task = task is None or task == info["task"]
        return (
            str(find_checkpoint(folder) / "actor"),
            task or info["task"],
            config,
            options or (info["task_options"] if same_task else {}),
        )
    return source, task or "chain", Config(), options


def report_command(argv: Sequence[str]) -> int:
    """`minivapo report`: one HTML file for one or several runs."""
    import tyro

    @dataclass(frozen=True)
    class Report:
        """Write a self-contained HTML report of one or several runs."""

        runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
        """Run folders."""
        out: Path | None = None
        """HTML file; default report.html in the first run."""

    args = parse(Report, args=list(argv), prog="minivapo report")
    from minivapo.report import make_report

    print(f"report: {make_report(list(args.runs), args.out)}")
    return 0


def watch_command(argv: Sequence[str]) -> int:
    """`minivapo watch`: follows a run from another terminal."""
    import tyro

    @dataclass(frozen=True)
    class Watch:
        """Follow a run that trains elsewhere."""

        run: Annotated[Path, tyro.conf.Positional]
        """Run folder."""

    args = parse(Watch, args=list(argv), prog="minivapo watch")
    from minivapo.live import watch

    watch(args.run)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": train_command,
    "sample": sample_command,
    "report": report_command,
    "watch": watch_command,
    "make-base": make_base_command,
}

HELP = """MiniVAPO: VAPO in one readable file.

  minivapo train         train a policy: embedded task and base by default, nothing to download
  minivapo sample RUN    show some responses, right and wrong
  minivapo report RUN…   one HTML file with curves and the token explorer
  minivapo watch RUN     follow a run from another terminal
  minivapo make-base DIR make an embedded base model from nothing

minivapo COMMAND --help explains each flag."""


if __name__ == "__main__":
    sys.exit(main())
