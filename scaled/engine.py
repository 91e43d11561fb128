"""DeepSpeed learners and a vLLM sampler as the engine that `minivapo.vapo.train` runs on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivapo.interfaces import Gae, Metrics, Progress, Rollout, UserError
from minivapo.loading import (
    check_fit,
    check_same_vocabulary,
    critic_source,
    load_shape,
    load_tokenizer,
    locate,
    stop_ids,
)
from minivapo.vapo import Config
from scaled.config import Settings, check_heads
from scaled.gae import gae
from scaled.learner import DeepSpeedLearner
from scaled.sampler import VllmSampler
from scaled.world import ON_GPU, DistributedWorld

CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head widths that vLLM's CPU attention knows."""


class ScaledEngine:
    """Actor, critic and sampler over all ranks, see `minivapo.interfaces.Engine`. Every method is collective.

    Args:
        model: transformers folder or hub name of the policy.
        config: the run's configuration.
        settings: how the cluster carries it out.
        world: the ranks, from `scaled.world.start`.
        stop: the task's stop strings.
        critic: transformers folder or hub name that the critic starts from, if not the policy's.
        reference: the policy that kl_coef holds the actor to, if not the model it starts from: that of a resumed run.
    """

    def __init__(
        self,
        model: str | Path,
        config: Config,
        settings: Settings,
        world: DistributedWorld,
        *,
        stop: Sequence[str] = (),
        critic: str | Path | None = None,
        reference: str | Path | None = None,
    ) -> None:
        self.world = world
        self.config = config
        self.progress = Progress()
        self.gae: Gae = gae
        self.rollout: Rollout | None = None
        self.evaluated: Sequence[Any] = ()
        model = locate(model, "actor")
        self.tokenizer = load_tokenizer(model)
        start = locate(critic_source(config.critic_init, model, critic), "critic")
        if config.advantage == "gae":
            check_same_vocabulary(self.tokenizer, start)
        lengths = (config.max_prompt_tokens, config.max_new_tokens)
        for source in dict.fromkeys((model, start)):
            shape = load_shape(source)
            check_fit(shape, source, self.tokenizer, *lengths)
            check_attention(source, shape, settings, samples=source == model)
        # vLLM first, while the memory is free: it measures what it may take, and then sleeps.
        self.sampler = VllmSampler(model, config, settings, world, stop_ids(model, self.tokenizer), stop)
        self.actor = DeepSpeedLearner(model, "actor", config, settings, world)
        self.critic = None
        if config.advantage == "gae":
            self.critic = DeepSpeedLearner(start, "critic", config, settings, world)
        self.reference = None
        if config.kl_coef:
            reference = locate(reference or model, "actor")
            self.reference = DeepSpeedLearner(reference, "actor", config, settings, world, frozen=True)

    def balance(self, rollout: Rollout, mini_batch: int) -> Rollout:
        """Moves rows between the ranks, once, so that every mini-batch is equal work for all; see `scaled.balance`."""
        return self.actor.balance(rollout, mini_batch)

    def metrics(self) -> Metrics:
        """What this engine adds to the metrics of a step."""
        return self.sampler.metrics()

    def save(self, folder: Path) -> None:
        """Writes actor and critic as transformers folders, their optimizers, and the progress."""
        for name in ("actor", "critic"):
            learner = getattr(self, name)
            if learner is not None:
                learner.save(folder / name)
        if self.world.rank == 0:
            self.tokenizer.save_pretrained(folder / "actor")
            (folder / "progress.json").write_text(json.dumps(dataclasses.asdict(self.progress)))

    def load(self, folder: Path) -> None:
        """Takes back what `save` wrote, on any number of ranks."""
        for name in ("actor", "critic"):
            learner = getattr(self, name)
            if learner is not None:
                learner.load(folder / name)
        self.progress = Progress(**json.loads((folder / "progress.json").read_text()))


def check_attention(model: str | Path, shape: Any, settings: Settings, samples: bool) -> None:
    """Refuses, before any weights load, a model whose attention heads do not suit this machine or these settings.

    Args:
        model: its name.
        shape: its transformers config.
        settings: sequence_parallel is read.
        samples: whether vLLM is to run it.

    Raises:
        UserError: says which number does not fit.
    """
    heads = shape.num_attention_heads
    check_heads(settings.sequence_parallel, heads, getattr(shape, "num_key_value_heads", None) or heads, str(model))
    width = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    if samples and not ON_GPU and width not in CPU_HEADS:
        raise UserError(f"{model} has heads of width {width}; vLLM on the CPU takes {', '.join(map(str, CPU_HEADS))}.")
