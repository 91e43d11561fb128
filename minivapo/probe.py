"""A look, before a run starts, at whether a model's numbers are right where the run will use them.

A model may load, sample and train while its log-probs are wrong: because it keeps a state that our sampler does not
know, sees its neighbours in a batch, or drops neurons at random. Nothing in a run's curves says so. So a few short
rows of the task go through the real sampler and the real learners, and what must be equal is compared.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from minivapo.critics import value_head
from minivapo.interfaces import Metrics, Problem, Rollout, UserError, derive_seed, make_rollout
from minivapo.responses import encode_prompt, pad_id
from minivapo.vapo import Config

EXACT = 1e-3
"""Largest gap in float32, in nats: right computations differ by 1e-5, the smallest known mistake by 6e-3."""
PROBLEMS = 3
"""Problems of the task that the probe takes."""
PROMPT = 40
"""Tokens that a prompt of the probe has at most."""
RESPONSE = 8
"""Tokens that a response of the probe has at most."""
SAMPLES = 2
"""Responses to each prompt."""

LIST = "docs/models.md says which work"
MISTAKES = {
    "alone": (
        "a row's numbers in the {} depend on the rows beside it",
        f"Train it with minivapo train --micro-batch 1, or use another model: {LIST}.",
    ),
    "training": (
        "the {} gives other numbers while it trains, as dropout does",
        f"Set every dropout in its config.json to 0, or use another model: {LIST}.",
    ),
    "sampler": ("the sampler's log-probs are not the learner's", ""),
}
"""What a gap means, and what helps."""


def probe(engine: Any, problems: Sequence[Problem], config: Config) -> Metrics:
    """Refuses a model whose numbers would be silently wrong; about a tenth of a second for a small one. Collective.

    Args:
        engine: a `minivapo.local.LocalEngine` or a `scaled.engine.ScaledEngine`; its progress and weights stay as
            they are, its sampler gets the actor's weights.
        problems: of the task, a few.
        config: of the run.

    Returns:
        The largest gap of each comparison, in nats (bfloat16: the mean over tokens), by its name.

    Raises:
        UserError: two numbers differ that must be equal: which, by how much, and what to use instead.
    """
    actor, critic = engine.actor, engine.critic
    name = f"{type(actor.model).__name__} ({actor.model.config.model_type})"
    switch = switches_at(actor.model.config)
    past = switch if switch < config.max_prompt_tokens + config.max_new_tokens else 0
    prompts = choose_prompts(engine.tokenizer, problems, config, past)
    engine.sampler.sync(actor)
    with told_as(name, "sampler"):
        rollout = sample(engine, prompts)
    gaps = {}
    for kind, learner in (("actor", actor), ("critic", critic)):
        if getattr(learner, "model", None) is not None:  # an oracle has no network
            with told_as(name, kind), random_head(learner) if kind == "critic" else contextlib.nullcontext():
                gaps |= compare_passes(engine, learner, rollout, kind)
    with told_as(name, "actor"):
        found = actor.forward(rollout)["logprobs"]
    gaps["sampler"] = compare(engine, actor, rollout.sampled_logprobs, found, rollout.mask)
    engine.metrics()  # what the probe cost is not the first step's
    refuse(name, gaps, past)
    return {key: gap for key, (gap, _) in gaps.items()}


def refuse(name: str, gaps: dict[str, tuple[float, float]], past: int = 0) -> None:
    """Ends where a gap is larger than rounding explains.

    Args:
        name: of the model.
        gaps: (gap, bound) by comparison.
        past: tokens at which the model takes other position tables, if a row of the probe was longer.

    Raises:
        UserError: which comparison, by how much, and what to use instead.
    """
    other = f"Use another model: {LIST}."
    if past:  # transformers computes these tables for the longest row of a batch
        other = f"Keep max_prompt_tokens + max_new_tokens at {past} or less: past it the model takes other positions."
    for key, (gap, bound) in gaps.items():
        if not gap <= bound:
            what, instead = MISTAKES[key.rpartition(" ")[2]]
            raise UserError(
                f"{name} would train on wrong numbers: {what.format(key.split()[0])} (by {gap:.2g} nats, rounding "
                f"explains {bound:.2g}). {other if past else instead or other}"
            )


def choose_prompts(tokenizer: Any, problems: Sequence[Problem], config: Config, past: int) -> list[list[int]]:
    """Three prompts of unequal length, their beginnings where they are long, and one whose response passes `past`."""
    rows = [encode_prompt(tokenizer, p.prompt, config.max_prompt_tokens) for p in problems]
    rows = sorted((row[: PROMPT - 7 * i] for i, row in enumerate((rows * PROBLEMS)[:PROBLEMS])), key=len)
    for i, row in enumerate(rows[:-1]):
        rows[i] = row[: max(1, min(len(row), len(rows[-1]) - 2 + i))]
    if past:
        length = min(past - RESPONSE // 2, config.max_prompt_tokens + config.max_new_tokens - RESPONSE)
        rows.append((rows[-1] * math.ceil(length / len(rows[-1])))[:length])
    return rows


def switches_at(shape: Any) -> int:
    """Tokens of a row past which a model takes other position tables, for all rows of the batch; 0 where none does."""
    shape = shape.get_text_config()
    parameters = getattr(shape, "rope_parameters", None) or {}
    tables = [parameters, *(x for x in parameters.values() if isinstance(x, dict))]
    found = [
        table.get("original_max_position_embeddings")
        or getattr(shape, "original_max_position_embeddings", None)
        or shape.max_position_embeddings
        for table in tables
        if table.get("rope_type") in ("longrope", "dynamic")  # the two that transformers computes anew in a pass
    ]
    return min(found, default=0)


def sample(engine: Any, prompts: list[list[int]]) -> Rollout:
    """Short responses to the prompts."""
    sampler, limit = engine.sampler, engine.sampler.max_new_tokens
    sampler.max_new_tokens = min(limit, RESPONSE)
    try:
        samples = sampler.generate(prompts, SAMPLES, derive_seed("probe", engine.world.rank), engine.actor.version)
    finally:
        sampler.max_new_tokens = limit
    rows = [i for i in range(len(prompts)) for _ in range(SAMPLES)]
    return make_rollout([prompts[i] for i in rows], samples, rows, pad_id(engine.tokenizer))


def compare_passes(engine: Any, learner: Any, rollout: Rollout, kind: str) -> dict[str, tuple[float, float]]:
    """Rows together against each alone, and the mode of training against that of `forward`, twice."""
    name = "logprobs" if kind == "actor" else "scores"
    n = len(rollout)

    def look(groups: Sequence[Sequence[int]], training: bool = False) -> Tensor:
        """What the learner says of these rows, passed group by group."""
        found = torch.zeros(rollout.tokens.shape)
        for group in groups:
            rows = rollout.rows(group)
            found[group, : rows.tokens.shape[1]] = learner.forward(rows, training=training)[name].float()
        return found

    def worst(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        filled = torch.arange(rollout.tokens.shape[1]) < rollout.totals[:, None]
        filled = rollout.mask if kind == "actor" else filled  # nobody computes log-probs of prompts
        return max((compare(engine, learner, a, b, filled) for a, b in pairs), key=lambda gap: gap[0])

    whole, alone = look([range(n)]), look([[i] for i in range(n)])
    mixed = look([[i, n - 1 - i] for i in range(n // 2)])  # short beside long, which a sorted micro-batch keeps apart
    trained = [look([range(n)], training=True) for _ in range(2)]
    return {
        f"{kind} alone": worst([(alone, whole), (alone, mixed)]),
        f"{kind} training": worst([(whole, trained[0]), (trained[0], trained[1])]),
    }


def compare(engine: Any, learner: Any, a: Tensor, b: Tensor, where: Tensor) -> tuple[float, float]:
    """How far two computations of the same numbers are apart over all ranks, and how far rounding alone can take them.

    Args:
        engine: its ranks.
        learner: what computed them; its number of layers and dtype decide the bound.
        a, b: [batch, time], in nats or reward units.
        where: [batch, time], bool: what to compare.
    """
    gaps = (a - b).abs()[where].double()
    gaps = torch.where(gaps.isfinite(), gaps, math.inf)
    if learner.dtype == torch.float32:
        return float(engine.world.max(gaps.max() if len(gaps) else torch.zeros((), dtype=torch.float64))), EXACT
    # The mean, not the maximum: a router that chooses another expert by a rounding moves one token by any amount.
    gap = float(engine.world.max(gaps.mean() if len(gaps) else torch.zeros((), dtype=torch.float64)))
    return gap, rounding_bound(learner, float(engine.world.max(a.abs()[where].mean())))


def rounding_bound(learner: Any, size: float) -> float:
    """Largest mean gap that rounding explains, in nats, for log-probs of this mean size."""
    if learner.dtype == torch.float32:
        return EXACT
    # bfloat16 rounds to 8 bits: a relative error of at most 2⁻⁹, so two right computations are up to 2⁻⁸ apart at each
    # rounding. A layer rounds about four times on its way into the residual stream (two outputs, two sums), the head
    # once; independent errors add like their root. A log-prob is a difference of logits: 1 + |log π| stands for them.
    layers = learner.model.config.get_text_config().num_hidden_layers
    return 2**-8 * math.sqrt(4 * layers + 1) * (1 + size)


@contextlib.contextmanager
def told_as(name: str, part: str) -> Iterator[None]:
    """Turns what a model raises in its first pass into one line."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:150]
        raise UserError(
            f"{name} does not run in the {part} ({type(error).__name__}: {reason}). Use another model: {LIST}."
        ) from error


@contextlib.contextmanager
def random_head(learner: Any) -> Iterator[None]:
    """Reads a critic in a fixed random direction: its own head says 0 everywhere at first, whatever is below it."""
    head = value_head(learner.model)
    direction = torch.randn(head.in_features, generator=torch.Generator().manual_seed(0)) / head.in_features**0.5

    def read(module: Any, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (arguments[0].float() @ direction.to(output.device))[..., None]

    handle = head.register_forward_hook(read)
    try:
        yield
    finally:
        handle.remove()


def check_gap(engine: Any, metrics: Metrics) -> None:
    """Ends a run whose sampler and learner have come apart since the probe.

    Args:
        engine: see `probe`.
        metrics: of a step; `policy/sampler_gap_mean` is read.

    Raises:
        UserError: the gap is larger than rounding explains.
    """
    gap = metrics.get("policy/sampler_gap_mean")
    if gap is None or not hasattr(engine.actor, "dtype"):
        return
    bound = rounding_bound(engine.actor, metrics["policy/entropy"])
    if not gap <= bound:
        raise UserError(
            f"step {metrics['step']:.0f}: policy/sampler_gap_mean has grown to {gap:.2g} nats, rounding explains "
            f"{bound:.2g}: the sampler no longer samples from the policy that learns, and every ratio is wrong. The "
            "checkpoint is from before; use another model, or lower actor_lr if the weights run away."
        )
