"""The command line: `minivapo train | eval | sample | ablate | sweep | report | watch | make-base | reward-model`."""

# No `from __future__ import annotations` here: tyro could not resolve names that a command imports for itself.
import contextlib
import dataclasses
import io
import itertools
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; a mistake of the user's ends in one line and exit code 1 or 2."""
    if argv is None and not sys.warnoptions:  # libraries' notices to developers, unless -W or PYTHONWARNINGS asks
        warnings.simplefilter("ignore")
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
    from minivapo.interfaces import NonFiniteError, UserError

    try:
        return command(argv[1:]) or 0
    except (UserError, NonFiniteError) as error:
        print(f"minivapo: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"minivapo: {error.strerror or error}: {error.filename or ''}; nothing saved before was lost.",
            file=sys.stderr,
        )
    except ImportError as error:
        if "pip install" not in str(error):  # a bug of ours, not an extra that is not installed
            raise
        print(f"minivapo: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        again = "`minivapo train --resume RUN`" if argv[0] == "train" else "the same command"
        print(f"minivapo: stopped; go on with {again}.", file=sys.stderr)
        return 130
    return 1


# ---------------------------------------------------------------------------------------------------------
# train
# ---------------------------------------------------------------------------------------------------------


def train_command(argv: Sequence[str]) -> int:
    """`minivapo train`: a new run, or the rest of one."""
    import tyro

    from minivapo.interfaces import UserError
    from minivapo.vapo import PRESETS, Config

    @dataclass(frozen=True)
    class Train:
        """Train a policy with VAPO, an ablation of it, or a baseline, and write a run folder."""

        preset: str = "vapo"
        """vapo, ppo, grpo, dapo, or an ablation such as vapo-wo-decoupled-gae."""
        task: str = "chain"
        """chain, proof; or gsm8k, dapo-math (each may be followed by :FILE), jsonl:FILE."""
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
        stop: tuple[str, ...] = ()
        """Strings that end a response besides EOS."""
        save_every: int = 1
        """Steps between checkpoints."""
        bf16: bool = False
        """Compute in bfloat16 with fp32 weights (GPU)."""
        save_memory: bool = False
        """Recompute activations in the backward pass, and keep no gradients between steps: slower, same numbers."""
        sample_batch: int = 256
        """Responses sampled at once; fewer need less memory."""
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
    check_flags(args, ones=("save_every", "sample_batch"), naughts=("threads",))
    return run_train(args)


def run_train(args: Any) -> int:
    """Builds task and engine for `minivapo train`, trains with a live view, and writes the report."""
    from minivapo.interfaces import UserError
    from minivapo.local import LocalEngine
    from minivapo.runs.folder import new_run_folder, read_config, write_config
    from minivapo.runs.training import run_training
    from minivapo.show.live import Live
    from minivapo.show.loggers import check_installed
    from minivapo.show.report import make_report

    check_installed(args.tensorboard, args.wandb)  # before a folder is written
    config, task_name, model, critic = args.config, args.task, args.model, args.critic
    options = {"template": args.template} if args.template else {}
    engine_options: dict[str, Any] = {
        "autocast": args.bf16,
        "save_memory": args.save_memory,
        "sample_batch": args.sample_batch,
    }
    engine_options["stop"] = list(args.stop)
    if args.resume is not None:
        config, info = read_config(args.resume)
        task_name, model, critic = info["task"], info["model"], info["critic"]
        options, engine_options = info["task_options"], info.get("engine_options", engine_options)
    task, model = load_task(task_name, options, model, config.max_prompt_tokens)
    task.train_problems(0, 1, config.seed)  # a task for evaluation only is refused before any weights load
    stops: dict[str, Any] = {"stop": (*task.stop, *engine_options["stop"])}
    engine = LocalEngine(model, config, device=pick_device(args.device), critic=critic, **(engine_options | stops))
    set_threads(args.threads, engine)
    if args.resume is None:
        run = args.run or new_run_folder(Path("runs"), f"{task_name.partition(':')[0]}-{args.preset}-{config.seed}")
        info = {"preset": args.preset, "task": task_name, "task_options": options, "model": model, "critic": critic}
        info["engine_options"] = engine_options
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
            # A title, then blocks between rules; the box is drawn in ASCII where the terminal is.
            lines = [line.strip("│╭╮╰╯| ") for line in box.getvalue().splitlines()[1:]]
            rules = [i for i, line in enumerate(lines) if set(line) <= set("─-")]
            start = 1 if rules[:1] == [0] else 0
            first = next((i for i in rules if i >= start), len(lines))
            what = " ".join(lines[start:first]).removeprefix("Error parsing config: ").rstrip(".")
            near = [line.split()[0] for line in lines[first:] if line[:2] == "--" and line[2:3].isalpha()]
            hint = f"; perhaps you meant {' or '.join(near[:3])}" if what.startswith("Unrecognized") and near else ""
            print(f"minivapo: {what}{hint}. `{prog} --help` explains each flag.", file=sys.stderr)
        raise


def check_flags(args: Any, ones: Sequence[str], naughts: Sequence[str] = ()) -> None:
    """Refuses counts below 1 or below 0, and a temperature or top-p with which nothing can be sampled.

    Raises:
        UserError: naming the flag.
    """
    from minivapo.interfaces import UserError

    for name in (*ones, *naughts):
        value, least = getattr(args, name), int(name in ones)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}.")
    if not getattr(args, "temperature", 1.0) > 0 or not 0 < getattr(args, "top_p", 1.0) <= 1:
        raise UserError("--temperature must be above 0, and --top-p in (0, 1].")


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """The value given to a flag, as `--flag value` or `--flag=value`."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def load_task(name: str, options: dict[str, Any], model: str | None, max_prompt_tokens: int) -> tuple[Any, str]:
    """As `minivapo.tasks.load_task`, and prints what was read of a data set."""
    from minivapo import tasks

    task, model = tasks.load_task(name, options, model, max_prompt_tokens)
    if hasattr(task, "report"):
        print(f"{name}: {task.report}", flush=True)
    return task, model


def pick_device(name: str) -> str:
    """The device that a --device flag means.

    Raises:
        UserError: it is not there.
    """
    import torch

    from minivapo.interfaces import UserError

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
        """chain or proof."""
        steps: int = 2000
        """Gradient steps. For chain a loss above 1.6 at the end means that the digits are not learned yet, and RL will
        not repair that: seeds 0 and 1 need 2,000 steps, seed 2 needs 3,000."""
        seed: int = 0
        """Of the initial weights and the demonstrations."""

    args = parse(MakeBase, args=list(argv), prog="minivapo make-base")
    import torch
    from rich.progress import Progress

    from minivapo.interfaces import UserError
    from minivapo.tasks import TASKS, make_task
    from minivapo.tasks.base import make_base

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
    check_flags(args, ones=("count",))
    from rich.console import Console
    from rich.text import Text

    from minivapo.local import LocalEngine
    from minivapo.responses import Draw, respond

    model, task_name, config, options = resolve_source(args.source, args.task, args.template)
    task, model = load_task(task_name, options, model, config.max_prompt_tokens)
    engine = LocalEngine(model, sampling_only(config), stop=(*task.stop, *run_stops(args.source)))
    set_threads(0, engine)
    engine.sampler.sync(engine.actor)
    draw = Draw(
        n=1, seed=args.seed, version=0, max_prompt_tokens=config.max_prompt_tokens, timeout=config.verifier_timeout,
        temperature=args.temperature, top_p=args.top_p,
    )  # fmt: skip
    console = Console()
    for r in respond(task, task.test_problems(args.count), engine.tokenizer, engine.sampler, draw):
        mark = {True: "right", False: "wrong", None: "verifier failed"}[r.verdict]
        end = "" if r.sample.terminated else ", cut by the length limit"
        if args.show_prompt:
            console.print(Text(f"prompt ({len(r.prompt)} tokens): {engine.tokenizer.decode(r.prompt)!r}"))
        else:
            console.print(Text(r.problem.prompt, style="bold"))
        console.print(Text(r.text))
        style = "green" if r.verdict else "red"
        console.print(Text(f"→ {mark}{end}; the answer is {r.problem.answer}\n", style=style))
    return 0


def resolve_source(
    source: str, task: str | None, template: str | None, max_new_tokens: int | None = None
) -> tuple[str, str, Any, dict[str, Any]]:
    """(model, task, config, task options) that a run folder or a model name stands for.

    Lengths are the run's; of a bare model 512 tokens a prompt and 4,096 a response (320 for an embedded task),
    or what its context allows.
    """
    from minivapo.loading import explain_loading, locate, transformers
    from minivapo.runs.checkpoint import find_checkpoint
    from minivapo.runs.folder import read_config
    from minivapo.tasks import TASKS
    from minivapo.vapo import Config

    options = {"template": template} if template else {}
    folder = Path(source)
    if (folder / "config.json").exists() and (folder / "metrics.jsonl").exists():
        config, info = read_config(folder)
        same_task = task is None or task == info["task"]
        options = options or (info["task_options"] if same_task else {})
        model, name = str(find_checkpoint(folder) / "actor"), str(task or info["task"])
    else:
        model, name = locate(source, "actor"), task or "chain"
        with explain_loading(model, "configuration"):
            shape = transformers.AutoConfig.from_pretrained(model)
        context = getattr(shape, "max_position_embeddings", None) or 2**20
        prompt = min(512, context // 2)
        config = Config(max_prompt_tokens=prompt)
        new = max_new_tokens or (config.max_new_tokens if name in TASKS else 4096)
        max_new_tokens = max_new_tokens or min(new, context - prompt)
    new = config.max_new_tokens if max_new_tokens is None else max_new_tokens
    return model, name, dataclasses.replace(config, max_new_tokens=new), options


def sampling_only(config: Any) -> Any:
    """The configuration without critic and reference, for engines that only sample."""
    return dataclasses.replace(config, advantage="group", group_size=2, batch_size=2, mini_batch=2, kl_coef=0.0)


def run_stops(source: str) -> list[str]:
    """The stop strings that a run was trained with; none of a bare model."""
    from minivapo.runs.folder import read_config

    if not (Path(source) / "metrics.jsonl").exists():
        return []
    return read_config(Path(source))[1].get("engine_options", {}).get("stop", [])


def eval_command(argv: Sequence[str]) -> int:
    """`minivapo eval`: mean pass rate over samples, with all that two people need to compare numbers."""
    import tyro

    @dataclass(frozen=True)
    class Eval:
        """Evaluate a run or model as the paper does: the mean pass rate over many samples of each problem.

        Prints a table of the problems, the accuracy with a 95 % interval over problems, and pass@k; writes all
        of it with the exact settings as JSON. A stopped evaluation goes on when the command is given again.
        """

        source: Annotated[str, tyro.conf.Positional]
        """Run folder, transformers folder, or hub name."""
        task: str | None = None
        """aime2024, aime2025, gsm8k, … (each may be followed by :FILE), chain, proof; default: the run's, or chain."""
        samples: int = 32
        """Responses for each problem (paper: 32)."""
        temperature: float = 1.0
        """Sampling temperature (paper: 1.0)."""
        top_p: float = 0.7
        """Top-p (paper: 0.7)."""
        problems: int | None = None
        """Evaluate on the first so many held-out problems; default: all."""
        max_new_tokens: int | None = None
        """Length limit of a response; default: the run's, or of a bare model 4,096 and what its context allows."""
        template: str | None = None
        """Prompt template of mathematics tasks: base or chat; default: the run's, or base."""
        stop: tuple[str, ...] = ()
        """Strings that end a response, besides EOS and those of the run."""
        seed: int = 0
        """Sampling seed."""
        sampler: Literal["transformers", "vllm"] = "transformers"
        """vllm needs minivapo[scaled] and vLLM; it draws other responses from the same seed."""
        sample_batch: int = 256
        """Responses sampled at once; more are faster (with vllm take thousands), fewer need less memory."""
        device: str = "auto"
        """cpu, cuda, mps; auto takes the first of cuda and cpu that is there."""
        bf16: bool = False
        """Compute in bfloat16 (GPU)."""
        out: Path | None = None
        """JSON file; default eval-TASK-HASH.json in the run folder, for a bare model in evals/."""

    args = parse(Eval, args=list(argv), prog="minivapo eval")
    return run_eval(args)


def run_eval(args: Any) -> int:
    """Builds what `minivapo eval` needs and evaluates, unless the result is there already."""
    from minivapo.loading import load_tokenizer
    from minivapo.local import LocalEngine
    from minivapo.runs import evaluation

    check_flags(args, ones=("samples", "problems", "max_new_tokens", "sample_batch"))
    model, task_name, config, options = resolve_source(args.source, args.task, args.template, args.max_new_tokens)
    task, model = load_task(task_name, options, model, config.max_prompt_tokens)
    problems = task.test_problems(args.problems)
    device = pick_device(args.device)
    settings = evaluation.Settings(
        model=args.source,
        weights=evaluation.fingerprint(model),
        task=task_name.partition(":")[0],
        problems=len(problems),
        problems_hash=evaluation.hash_problems(problems),
        samples=args.samples,
        temperature=args.temperature,
        top_p=args.top_p,
        max_new_tokens=config.max_new_tokens,
        max_prompt_tokens=config.max_prompt_tokens,
        stop=(*task.stop, *run_stops(args.source), *args.stop),
        seed=args.seed,
        sampler=args.sampler,
        sample_batch=args.sample_batch,
        dtype="bfloat16" if args.bf16 else "float32",
        device=device.partition(":")[0],
    )
    is_run = (Path(args.source) / "metrics.jsonl").exists()
    folder = Path(args.source) if is_run else Path("evals")
    label = "" if is_run else args.source.strip("./").replace("/", "-") + "-"
    out = args.out or folder / f"eval-{label}{settings.task}-{settings.key}.json"
    result = evaluation.finished(out, settings)
    if result is None:
        if args.sampler == "vllm":
            tokenizer, sampler = load_tokenizer(model), vllm_sampler(model, config, settings)
        else:
            engine = LocalEngine(
                model,
                sampling_only(config),
                stop=settings.stop,
                device=device,
                autocast=args.bf16,
                sample_batch=args.sample_batch,
            )
            set_threads(0, engine)
            engine.sampler.sync(engine.actor)
            tokenizer, sampler = engine.tokenizer, engine.sampler
        result = evaluation.run_evaluation(task, problems, tokenizer, sampler, settings, out, config.verifier_timeout)
    evaluation.show(result)
    print(f"result: {out}")
    return 0


def vllm_sampler(model: str, config: Any, settings: Any) -> Any:
    """The sampler of scaled runs with a model's weights, alone in this process.

    Raises:
        UserError: vLLM is not installed.
    """
    import importlib.util

    from minivapo.interfaces import UserError

    if importlib.util.find_spec("vllm") is None:
        raise UserError("--sampler vllm needs vLLM: pip install vllm (GPU), or take --sampler transformers.")
    import torch
    import torch.distributed as dist

    from minivapo.loading import load_actor, load_tokenizer, stop_ids
    from minivapo.local import LocalLearner
    from scaled.config import Settings
    from scaled.sampler import VllmSampler
    from scaled.world import DistributedWorld

    actor = LocalLearner(load_actor(model, getattr(torch, settings.dtype)), "actor", config)
    ends = stop_ids(actor.model, load_tokenizer(model))
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    how = Settings(dtype=settings.dtype, sampler_sleep=False, sampler_memory=0.85)
    sampler = VllmSampler(model, config, how, DistributedWorld(), ends, settings.stop)
    sampler.sync(actor)
    return sampler


def reward_model_command(argv: Sequence[str]) -> int:
    """`minivapo reward-model`: what vanilla PPO starts its critic from."""
    import tyro

    from minivapo.vapo import Config

    @dataclass(frozen=True)
    class RewardModel:
        """Train a reward model on (response, verdict) pairs, scored after the last token; a critic can start from it.

        The pairs are sampled from the policy and judged by the task, or read from a file. It trains for
        --reward-model-steps rollouts of --batch-size pairs, at --value-pretrain-lr. Then:
        minivapo train --preset ppo --critic-init FOLDER
        """

        out: Annotated[Path, tyro.conf.Positional]
        """Folder to write; it must not exist."""
        task: str = "chain"
        """Task that judges the policy's responses, as for train."""
        model: str | None = None
        """Policy that samples and whose weights the reward model starts from; default: the task's embedded base."""
        critic: str | None = None
        """Model that the reward model starts from, if not the policy: it may be smaller, with the same tokenizer."""
        pairs: Path | None = None
        """jsonl file of pairs with prompt, response, correct, instead of sampling."""
        device: str = "auto"
        """cpu, cuda, mps; auto takes the first of cuda and cpu that is there."""
        template: str | None = None
        """Prompt template of mathematics tasks: base or chat."""
        stop: tuple[str, ...] = ()
        """Strings that end a response besides EOS."""
        bf16: bool = False
        """Compute in bfloat16 with fp32 weights (GPU)."""
        save_memory: bool = False
        """Recompute activations in the backward pass, and keep no gradients between steps."""
        sample_batch: int = 256
        """Responses sampled at once; fewer need less memory."""
        config: tyro.conf.OmitArgPrefixes[Config] = dataclasses.field(default_factory=Config)
        """Lengths, batch sizes, learning rate, rewards, seed."""

    return run_reward_model(parse(RewardModel, args=list(argv), prog="minivapo reward-model"))


def run_reward_model(args: Any) -> int:
    """Builds what `minivapo reward-model` needs, trains, and writes the folder."""
    from minivapo.interfaces import UserError
    from minivapo.loading import load_tokenizer
    from minivapo.local import LocalEngine
    from minivapo.runs import reward_model
    from minivapo.runs.folder import git_commit, versions
    from minivapo.tasks import default_model

    if args.out.exists():
        raise UserError(f"{args.out} exists already; name a new folder.")
    config = dataclasses.replace(args.config, advantage="gae", dynamic_sampling=0, kl_coef=0.0)
    if config.reward_model_steps < 1:
        raise UserError("reward_model_steps is 0; there would be nothing to train.")
    task: Any = None
    rollouts: Any = None
    model, stop = args.model, args.stop
    if args.pairs is None:
        options = {"template": args.template} if args.template else {}
        task, model = load_task(args.task, options, args.model, config.max_prompt_tokens)
        stop = (*task.stop, *stop)
    model = model or default_model(args.task)
    if args.pairs is not None:  # a file that cannot be read is named before any weights load
        rollouts = reward_model.pairs_from_file(args.pairs, load_tokenizer(model), config)
        rollouts = itertools.chain([next(rollouts)], rollouts)
    engine = LocalEngine(
        model,
        config,
        stop=stop,
        device=pick_device(args.device),
        critic=args.critic,
        autocast=args.bf16,
        save_memory=args.save_memory,
        sample_batch=args.sample_batch,
    )
    set_threads(0, engine)
    if args.pairs is None:
        rollouts = reward_model.sampled_pairs(config, task, engine)
    history = []
    for metrics in reward_model.train_reward_model(config, engine, rollouts):
        history.append(metrics)
        print("rollout {rollout}: loss {loss:.4f}, ranking {ranking:.3f}, correct {correct:.3f}".format(**metrics))
    record = {
        "task": args.task,
        "pairs": args.pairs and str(args.pairs),
        "model": model,
        "config": dataclasses.asdict(config),
        "commit": git_commit(),
        "versions": versions(),
        "history": history,
    }
    reward_model.save_reward_model(engine, args.out, record)
    print(f"reward model: {args.out}; start a critic from it with --critic-init {args.out}")
    return 0


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
    from minivapo.show.report import make_report

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
    from minivapo.show.live import watch

    watch(args.run)
    return 0


def ablate_command(argv: Sequence[str]) -> int:
    """`minivapo ablate`: Table 1 in miniature."""
    from minivapo.study import ablation as ablate
    from minivapo.study import table

    @dataclass(frozen=True)
    class Ablate:
        """Run presets × seeds in parallel processes and write table1.csv, a table and figures.

        Stop it at any moment; the same line goes on where it was.
        """

        presets: tuple[str, ...] = tuple(table.PAPER)
        """Rows: presets, or the extra rows vapo-fixed-0, vapo-fixed-0.99, vapo-fixed-1, ppo-fixed-0,
        ppo-policy-critic, vapo-oracle-critic; each may be followed by changes, as in vapo+actor_lr=5e-5."""
        seeds: int = 5
        """Seeds of each row."""
        first_seed: int = 1000
        """The first of them; the protocol keeps 0-99 for development."""
        task: str = "chain"
        """Task."""
        bases: tuple[str, ...] = ()
        """Base policies that the seeds take in turn; default: the task's embedded base."""
        out: Path = Path("runs/table1")
        """Folder of all runs and of the table."""
        jobs: int = 2
        """Processes at once, each of one thread."""
        overrides: tuple[str, ...] = ()
        """Constants changed in every row, as name=value in JSON, such as steps=8."""

    args = parse(Ablate, args=list(argv), prog="minivapo ablate")
    check_flags(args, ones=("seeds", "jobs"))
    from rich.console import Console
    from rich.progress import Progress, TextColumn
    from rich.table import Table

    from minivapo.tasks import default_model

    bases = [str(Path(b).resolve()) for b in args.bases] or [default_model(args.task)]
    overrides = ablate.parse_overrides(args.overrides)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    folder = args.out.resolve()
    jobs = ablate.plan_jobs(args.presets, seeds, overrides)
    ablate.claim(folder, args.task, bases, overrides)
    with Progress(*Progress.get_default_columns()[:-1], TextColumn("{task.fields[left]}")) as bar:
        row = bar.add_task("runs", total=len(jobs), left="")
        for done, _, left in ablate.run_jobs(jobs, folder, args.task, bases, overrides, args.jobs):
            text = f"{done}/{len(jobs)}" + (f", about {left / 60:.0f} min left" if left == left else "")
            bar.update(row, completed=done, left=text)
    results = table.collect_rows(folder, args.presets, seeds)
    table.write_csv(results, folder / "table1.csv")
    rows = table.compare(results)
    table.draw_table(rows, folder / "table1.png")
    table.draw_curves(folder, args.presets, seeds, folder / "curves.png")
    shown = Table(*table.TABLE_HEAD)
    for line in table.format_table(rows):
        shown.add_row(*line)
    Console().print(shown)
    print(f"table: {folder / 'table1.csv'}, table1.png, curves.png")
    return 0


def sweep_command(argv: Sequence[str]) -> int:
    """`minivapo sweep`: the map of VAPO."""
    import tyro

    from minivapo.study.sweeps import SWEEPS, machinery

    @dataclass(frozen=True)
    class Arguments:
        """Run sweeps, each one technique along one axis, and write one CSV a sweep.

        Stop it at any moment; the same line goes on where it was.
        """

        names: tyro.conf.Positional[tuple[str, ...]] = tuple(SWEEPS)
        """Sweeps, in the order to run them."""
        seeds: int = 10
        """Seeds of each arm at each point."""
        first_seed: int = 1000
        """The first of them; the protocol keeps 0-99 for development."""
        out: Path = Path("runs/sweeps")
        """Folder of all runs, their bases and the CSVs."""
        jobs: int = 2
        """Processes at once, each of one thread."""

    args = parse(Arguments, args=list(argv), prog="minivapo sweep")
    check_flags(args, ones=("seeds", "jobs"))
    from rich.progress import Progress, TextColumn

    seeds, folder = range(args.first_seed, args.first_seed + args.seeds), args.out.resolve()
    for sweep in map(machinery.find, args.names):
        runs = machinery.plan(sweep, seeds)
        with Progress(*Progress.get_default_columns()[:-1], TextColumn("{task.fields[left]}")) as bar:
            row = bar.add_task(sweep.name, total=len(runs), left="")
            for done, _, left in machinery.run_all(runs, SWEEPS, folder, args.jobs):
                text = f"{done}/{len(runs)}" + (f", about {left / 60:.0f} min left" if left == left else "")
                bar.update(row, completed=done, left=text)
        path = folder / f"{sweep.name}.csv"
        machinery.write_csv(machinery.table_rows(sweep, seeds, folder), path)
        print(f"{sweep.name}: {path}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": train_command,
    "eval": eval_command,
    "sample": sample_command,
    "ablate": ablate_command,
    "sweep": sweep_command,
    "report": report_command,
    "watch": watch_command,
    "make-base": make_base_command,
    "reward-model": reward_model_command,
}

HELP = """MiniVAPO: VAPO in one readable file.

  minivapo train         train a policy: embedded task and base by default, nothing to download
  minivapo eval RUN      mean pass rate over many samples, pass@k, interval; resumable
  minivapo sample RUN    show some responses, right and wrong
  minivapo ablate        Table 1 in miniature: presets × seeds, intervals, figures
  minivapo sweep         the map of VAPO: where each technique matters, one CSV a sweep
  minivapo report RUN…   one HTML file with curves and the token explorer
  minivapo watch RUN     follow a run from another terminal
  minivapo make-base DIR make an embedded base model from nothing
  minivapo reward-model DIR  train a reward model that a critic can start from

minivapo COMMAND --help explains each flag."""


if __name__ == "__main__":
    sys.exit(main())
