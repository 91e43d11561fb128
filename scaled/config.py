"""What a scaled run is told: a short YAML file over a preset, and overrides. Imports neither DeepSpeed nor vLLM."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minivapo.interfaces import UserError
from minivapo.vapo import PRESETS, Config


@dataclass(frozen=True)
class Settings:
    """How a cluster carries out what `minivapo.vapo.Config` decides; none of it changes the mathematics."""

    ranks: int = 1
    """Ranks (GPUs) the file was written for: `scaled.plan` plans for so many; a job may run on others."""
    ranks_per_node: int = 8
    """Ranks on one machine, for the plan."""

    # Learner
    zero_stage: Literal[2, 3] = 3
    """ZeRO 2 shards gradients and optimizer states over the ranks, 3 the weights as well."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute and storage of weights; master weights and Adam's moments are float32 either way."""
    offload_optimizer: bool = False
    """Keep master weights and moments in CPU memory."""
    token_budget: int = 16384
    """Tokens of a packed micro-batch on one rank; a longer response gets a micro-batch of its own."""
    sequence_parallel: int = 1
    """Neighbouring ranks that share each row, every one with a slice of its tokens (Ulysses)."""
    logits_chunk: int = 1024
    """Tokens whose logits over the vocabulary are held at once."""
    activation_checkpointing: bool = True
    """Recompute each layer in the backward pass instead of keeping its activations."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """auto: flash_attention_2 on CUDA where it is installed, else sdpa."""

    # Sampler
    tensor_parallel: int = 1
    """Ranks that share one vLLM engine."""
    sampler_memory: float = 0.5
    """Share of a GPU's memory that vLLM may fill while it samples (weights and KV cache)."""
    sampler_sequences: int = 256
    """Responses that one vLLM engine works on at once."""
    sampler_sleep: bool = True
    """On CUDA, vLLM gives its memory back while the learners work."""

    # Faults
    timeout_minutes: float = 30.0
    """A rank that waits so long for the others ends the job; must exceed the longest wait for a straggler."""

    def __post_init__(self) -> None:
        """Refuses values that cannot run."""

        def need(ok: bool, text: str) -> None:
            if not ok:
                raise UserError(text)

        counts = ("ranks", "ranks_per_node", "token_budget", "sequence_parallel", "logits_chunk", "tensor_parallel")
        for name in (*counts, "sampler_sequences"):
            need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1.")
        need(
            self.sequence_parallel == 1 or self.attention in ("auto", "sdpa"),
            f"attention is {self.attention}, but sequence_parallel has its own over sdpa: use attention auto.",
        )
        need(0 < self.sampler_memory < 1, f"sampler_memory is {self.sampler_memory}; it must lie in (0, 1).")
        need(self.timeout_minutes > 0, f"timeout_minutes is {self.timeout_minutes}; it must be above 0.")


@dataclass(frozen=True)
class Job:
    """A whole run: what to train on what, the algorithm's configuration and the cluster's settings."""

    model: str
    """Policy to start from: a transformers folder or hub name; empty means the task's embedded base."""
    task: str
    """A name that `minivapo.tasks` knows."""
    preset: str
    """The preset that `config` was made from."""
    config: Config
    settings: Settings
    run: str | None = None
    """Run folder."""
    critic: str | None = None
    """Model that the critic starts from, if not the policy."""


def read_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Reads a YAML file of flat keys, then overrides: `--key value`, `--key=value` or `key=value`.

    Keys are `preset`, `model`, `critic`, `task`, `run` and the fields of `Config` and `Settings`; dashes and
    underscores are the same. The file names only what differs from its preset.

    Raises:
        UserError: no such file, an unknown key, or a value of the wrong type.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise UserError(f"no such config file: {path}. The examples are in scaled/configs/.")
    try:
        given = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(given, dict):
        raise UserError(f"{path} must hold `key: value` lines.")
    given = {str(k).replace("-", "_"): v for k, v in given.items()}
    given |= {key: yaml_value(text) for key, text in split_overrides(overrides).items()}
    return make_job(given)


def split_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Turns `--key value`, `--key=value` and `key=value` into a dictionary of texts.

    `--run-dir` is `run`: torchrun takes `--run` for a flag of its own, even behind the script's name.
    """
    result, rest = {}, list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.partition("=")
        if not equals:
            if not word.startswith("--") or not rest:
                raise UserError(f"cannot read the override '{word}': write --key value or key=value.")
            text = rest.pop(0)
        key = key.removeprefix("--").replace("-", "_")
        result["run" if key == "run_dir" else key] = text
    return result


def make_job(given: dict[str, Any]) -> Job:
    """Builds a job from flat keys, see `read_job`."""
    kinds = {Config: typing.get_type_hints(Config), Settings: typing.get_type_hints(Settings)}
    texts = ("preset", "model", "critic", "task", "run")
    known = [*texts, *kinds[Config], *kinds[Settings]]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise UserError(f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "."))
    preset = str(given.get("preset", "vapo"))
    if preset not in PRESETS:
        raise UserError(f"unknown preset '{preset}'; known are {', '.join(PRESETS)}.")
    if not given.get("task"):
        raise UserError("the config names no task.")
    parts = {cls: {k: coerce(k, given[k], hints[k]) for k in given if k in hints} for cls, hints in kinds.items()}
    config = dataclasses.replace(PRESETS[preset], **parts[Config])
    names = {k: str(given[k]) if given.get(k) else None for k in ("run", "critic")}
    return Job(str(given.get("model") or ""), str(given["task"]), preset, config, Settings(**parts[Settings]), **names)


def with_settings(job: Job, given: dict[str, Any]) -> Job:
    """The job with some of the cluster's settings changed, by name."""
    hints = typing.get_type_hints(Settings)
    changes = {k: coerce(k, yaml_value(v), hints[k]) for k, v in given.items()}
    return dataclasses.replace(job, settings=dataclasses.replace(job.settings, **changes))


def yaml_value(text: Any) -> Any:
    """What a word on the command line means."""
    import yaml

    return yaml.safe_load(text) if isinstance(text, str) else text


def coerce(key: str, value: Any, kind: Any) -> Any:
    """A value of the declared type; YAML 1.1 reads 1e-6 as text, and 1 where a float is meant.

    Raises:
        UserError: it is of another type.
    """
    options = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if options:
        if value in options and not isinstance(value, bool):
            return value
        raise UserError(f"{key} is {value!r}; it must be one of {', '.join(map(str, options))}.")
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is int and not isinstance(value, bool) and float(value) == int(float(value)):
            return int(float(value))
        if kind is str and isinstance(value, str):
            return value
    except (TypeError, ValueError):
        pass
    raise UserError(f"{key} is {value!r}; it must be of type {kind.__name__}.")


def shares_heads(ranks: int, heads: int, kv_heads: int) -> bool:
    """Whether so many ranks can share a model's attention heads; a key-value head may serve several ranks."""
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
    """Refuses a job that so many ranks cannot run, before anything is loaded.

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
