"""What a scaled run is told: a short YAML file over a preset, and overrides. Imports neither DeepSpeed nor vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from minivapo.errors import UserError
from minivapo.options.fields import Count, OpenFraction, Positive, check
from minivapo.options.parse import ConfigFile, RunFolder, TaskOptions, Words, file_words, parse, read_words
from minivapo.runs.presets import preset_for
from minivapo.vapo import Config


@dataclass(frozen=True)
class Settings:
    """How a cluster carries out what `minivapo.vapo.Config` decides; none of it changes the mathematics."""

    ranks: Count = 1
    """Ranks (GPUs) that the file was written for and that `scaled.plan` plans for; a job may run on another number."""
    ranks_per_node: Count = 8
    """Ranks on one machine, for the plan."""

    # Learner
    zero_stage: Literal[2, 3] = 3
    """ZeRO 2 shards gradients and optimizer states over the ranks, 3 the weights as well."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute and storage of weights; master weights and Adam's moments are float32 either way."""
    offload_optimizer: bool = False
    """Keep master weights and moments in CPU memory."""
    token_budget: Count = 16384
    """Tokens of a packed micro-batch on one rank; a longer response gets a micro-batch of its own."""
    sequence_parallel: Count = 1
    """Neighbouring ranks that share each row, every one with a slice of its tokens (Ulysses)."""
    logits_chunk: Count = 1024
    """Tokens whose logits over the vocabulary are held at once."""
    activation_checkpointing: bool = True
    """Recompute each layer in the backward pass instead of keeping its activations."""
    attention: Literal["auto", "varlen", "flash_attention_2", "sdpa", "eager"] = "auto"
    """auto: varlen (torch's kernel for packed rows, see scaled.layers.attention), or sdpa with a mask for models
    with sliding windows, soft caps or sinks."""

    # Sampler
    tensor_parallel: Count = 1
    """Ranks that share one vLLM engine."""
    sampler_memory: OpenFraction = 0.5
    """Share of a GPU's memory that vLLM may fill while it samples (weights and KV cache)."""
    sampler_sequences: Count = 256
    """Responses that one vLLM engine works on at once."""
    sampler_sleep: bool = True
    """On CUDA, vLLM gives its memory back while the learners work."""

    # Faults
    timeout_minutes: Positive = 30.0
    """A rank that waits longer than this for the others ends the job; must exceed the longest wait for a straggler."""
    silence_seconds: Positive = 45.0
    """A rank that gives no sign of life for this time is taken for frozen or lost, and the job ends."""

    def __post_init__(self) -> None:
        """Refuses values that cannot run."""
        check(self)
        if self.sequence_parallel > 1 and self.attention not in ("auto", "varlen", "sdpa"):
            raise UserError(
                f"attention is {self.attention}, but sequence_parallel has its own over varlen: use attention auto."
            )


@dataclass(frozen=True)
class Job:
    """A whole run: what to train on what, the algorithm's configuration and the cluster's settings."""

    file: ConfigFile = None
    """YAML file whose keys are these flags; a flag overrules it. It may also be the first word."""
    model: str = ""
    """Policy to start from: a transformers folder or hub name; default: the task's embedded base."""
    task: str = ""
    """A name that `minivapo.tasks` knows, such as chain or gsm8k."""
    task_option: TaskOptions = ()
    """Option of the task, key=value; may be given several times."""
    preset: str = "vapo"
    """vapo, ppo, grpo, dapo, an ablation such as vapo-wo-decoupled-gae, or FILE.py:NAME of a Config."""
    config: tyro.conf.OmitArgPrefixes[Config] = dataclasses.field(default_factory=Config)
    """The algorithm's configuration, on top of the preset."""
    settings: tyro.conf.OmitArgPrefixes[Settings] = dataclasses.field(default_factory=Settings)
    """How the cluster carries it out."""
    run: RunFolder = None
    """New run folder; default runs/TASK-PRESET-SEED. Behind torchrun it is --run-dir."""
    critic: str | None = None
    """Model that the critic starts from, if not the policy."""


def preset_job(words: Words) -> Job:
    """The job whose values stand where words say nothing else.

    Raises:
        UserError: there is no such preset.
    """
    preset = words.start.preset or "vapo"
    return Job(preset=preset, config=preset_for(preset, words.start.task or ""))


def check_task(job: Job) -> Job:
    """The job, if it names a task.

    Raises:
        UserError: it does not.
    """
    if not job.task:
        raise UserError("the config names no task.")
    return job


def read_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """The job of a YAML file of flat keys, then overrides: the flags of `scaled.train`, or `key=value`.

    Keys are `preset`, `model`, `critic`, `task`, `run` and the fields of `Config` and `Settings`. The file names only
    what differs from its preset.

    Raises:
        UserError: no such file, an unknown key, or a value of the wrong type or outside its range.
    """
    words = read_words(Job, ["--config", str(path), *overrides])
    return check_task(parse(Job, words, "scaled.train", preset_job(words)))


def make_job(given: Mapping[str, Any]) -> Job:
    """The job of the keys that a file would hold, see `read_job`."""
    words = read_words(Job, file_words(given))
    return check_task(parse(Job, words, "scaled.train", preset_job(words)))


def shares_heads(ranks: int, heads: int, kv_heads: int) -> bool:
    """Whether this number of ranks can share a model's attention heads; a key-value head may serve several ranks."""
    return heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


def check_heads(ranks: int, heads: int, kv_heads: int, model: str) -> None:
    """Refuses a model whose attention heads `sequence_parallel` ranks cannot share.

    Raises:
        UserError: says which number does not fit.
    """
    if not shares_heads(ranks, heads, kv_heads):
        raise UserError(
            f"sequence_parallel is {ranks}, but {model} has {heads} attention heads and {kv_heads} key-value heads: "
            "it must divide the first, and divide or be a multiple of the second."
        )


def check_ranks(job: Job, world_size: int) -> None:
    """Refuses a job that this number of ranks cannot run, before anything is loaded.

    Raises:
        UserError: says which number does not fit.
    """
    config, settings = job.config, job.settings
    for name, n in (("prompts per step", config.prompts_per_step), ("mini_batch", config.mini_batch)):
        if n % world_size:
            raise UserError(f"{name} ({n}) must be a multiple of the {world_size} ranks.")
    for name in ("tensor_parallel", "sequence_parallel"):
        if world_size % getattr(settings, name):
            raise UserError(
                f"{name} is {getattr(settings, name)}, but there are {world_size} ranks: it must divide their number."
            )
