"""`minivapo reward-model`: what vanilla PPO starts its critic from."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from minivapo.commands.arguments import load_task, pick_device, set_threads, stop_strings
from minivapo.interfaces import Rollout, UserError
from minivapo.local import LocalEngine
from minivapo.options.fields import Count
from minivapo.options.parse import TaskOptions, task_options
from minivapo.vapo import Config


@dataclass(frozen=True)
class Arguments:
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
    task_option: TaskOptions = ()
    """Option of the task, as for train."""
    stop: tuple[str, ...] = ()
    """Strings that end a response besides EOS."""
    bf16: bool = False
    """Compute in bfloat16 with fp32 weights (a GPU, or a processor with AMX)."""
    save_memory: bool = False
    """Recompute activations in the backward pass, and keep no gradients between steps."""
    sample_batch: Count = 256
    """Responses sampled at once; fewer need less memory."""
    config: tyro.conf.OmitArgPrefixes[Config] = dataclasses.field(default_factory=Config)
    """Lengths, batch sizes, learning rate, rewards, seed."""


def run(args: Arguments) -> int:
    """Builds what the training needs, trains, and writes the folder."""
    from minivapo.runs import reward_model
    from minivapo.runs.folder import git_commit, versions

    if args.out.exists():
        raise UserError(f"{args.out} exists already; name a new folder.")
    config = dataclasses.replace(args.config, advantage="gae", dynamic_sampling=0, kl_coef=0.0)
    if config.reward_model_steps < 1:
        raise UserError("reward_model_steps is 0; there would be nothing to train.")
    engine, model, rollouts = prepare(args, config)
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


def prepare(args: Arguments, config: Config) -> tuple[LocalEngine, str, Iterator[Rollout]]:
    """(engine, model, rollouts of pairs), read from the file or sampled."""
    from minivapo.loading import load_tokenizer
    from minivapo.probe import PROBLEMS, probe
    from minivapo.runs import reward_model
    from minivapo.tasks import default_model

    def make_engine(model: str, stop: tuple[str, ...]) -> LocalEngine:
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
        return engine

    if args.pairs is not None:  # a file that cannot be read is named before any weights load
        model = args.model or default_model(args.task)
        rollouts = reward_model.pairs_from_file(args.pairs, load_tokenizer(model), config)
        rollouts = itertools.chain([next(rollouts)], rollouts)
        return make_engine(model, stop_strings(args.stop)), model, rollouts
    options = task_options(args.task_option, args.template)
    task, model = load_task(args.task, options, args.model, config.max_prompt_tokens)
    engine = make_engine(model, stop_strings(task.stop, args.stop))
    probe(engine, task.train_problems(0, PROBLEMS, config.seed), config)
    return engine, model, reward_model.sampled_pairs(config, task, engine)
