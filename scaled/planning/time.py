"""Seconds of each phase of a step, and of the run, as formulas.

FLOPs, bytes moved and bytes sent, over what the hardware's data sheet promises times an efficiency that
`scaled.planning.setup.Assumptions` states.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from minivapo.measure import evaluation_interval
from minivapo.runs.checkpoint import SAVING_SHARE
from scaled.balance import cut, deal, imbalance
from scaled.planning.memory import checkpoint_bytes, kv_pool, kv_token_bytes, sampler_weights
from scaled.planning.setup import Setup
from scaled.planning.shapes import Shape, forward_flops

HASHING = 1e9
"""Bytes/s of SHA-256 on one core."""


def response_lengths(limit: int, share: float, count: int) -> list[int]:
    """`count` response lengths in tokens: quantiles of an exponential cut at the limit, in a fixed shuffle.

    Mean of min(Exp(τ), limit) = τ (1 − e^(−limit/τ)) = share · limit is solved for τ by bisection.
    """
    if share > 0.99:
        return [limit] * count
    low, high = 1e-3, 1e3  # τ as a share of the limit
    for _ in range(100):
        mid = math.sqrt(low * high)
        low, high = (mid, high) if mid * -math.expm1(-1 / mid) < share else (low, mid)
    lengths = [max(1, min(limit, round(-low * limit * math.log1p(-(i + 0.5) / count)))) for i in range(count)]
    step = max(1, round(count * 0.618))
    while math.gcd(step, count) > 1:
        step += 1
    return [lengths[i * step % count] for i in range(count)]


@dataclass(frozen=True)
class Load:
    """The tokens of one rollout, over all ranks."""

    responses: int
    prompts: int
    tokens: float
    """Σ s, prompt and response."""
    response_tokens: float
    squares: float
    """Σ s², for attention."""


def load(setup: Setup, responses: int, group: int) -> Load:
    """What so many responses amount to."""
    p = setup.assume.prompt_tokens
    lengths = response_lengths(setup.job.config.max_new_tokens, setup.assume.response_share, 512)
    mean = sum(lengths) / len(lengths)
    squares = sum((p + x) ** 2 for x in lengths) / len(lengths)
    return Load(responses, -(-responses // group), responses * (p + mean), responses * mean, responses * squares)


@dataclass(frozen=True)
class Sampling:
    """How long vLLM takes for one rollout."""

    seconds: float
    slots: int
    """Responses that one engine works on at once: what fits the KV cache, at most sampler_sequences."""
    idle: float
    """Share of these slots that stand empty while the longest responses finish."""


def sampling(setup: Setup, work: Load) -> Sampling:
    """Prefill, then continuous batching simulated from completion to completion.

    A decoded token of a batch reads all weights and the KV cache of the batch, or does its FLOPs, whichever
    takes longer, plus a fixed overhead. A group shares the prefill of its prompt.
    """
    s, a, gpu = setup.job.settings, setup.assume, setup.gpu
    engines = max(s.ranks // s.tensor_parallel, 1)
    count = -(-work.responses // engines)
    lengths = response_lengths(setup.job.config.max_new_tokens, a.response_share, count)
    mean = sum(lengths) / count
    # A response in flight is on average as long as a length-biased one half-way.
    context = a.prompt_tokens + sum(x * x for x in lengths) / count / mean / 2
    fits = int(max(kv_pool(setup), 0.0) / kv_token_bytes(setup) / context)
    slots = max(1, min(s.sampler_sequences, fits, count))
    latency = a.decode_overhead + (2 * setup.actor.layers * a.allreduce_latency if s.tensor_parallel > 1 else 0)
    flops = 2.0 * setup.actor.matmul_parameters / s.tensor_parallel / (gpu.flops * a.sampler_efficiency)
    read = 1 / (gpu.bandwidth * a.sampler_bandwidth)

    def decode(active: int) -> float:
        traffic = (sampler_weights(setup) + active * context * kv_token_bytes(setup)) * read
        return max(traffic, active * flops) + latency

    waiting, running = lengths[slots:][::-1], lengths[:slots]
    heapq.heapify(running)
    now, seconds = 0, 0.0
    while running:
        end, active = heapq.heappop(running), len(running) + 1
        seconds += (end - now) * decode(active)
        now = end
        if waiting:
            heapq.heappush(running, now + waiting.pop())
    prefill = work.prompts / engines * a.prompt_tokens * flops
    return Sampling(prefill + seconds, slots, 1 - sum(lengths) / (now * slots))


def collective_seconds(setup: Setup, size: float) -> float:
    """Seconds of an all-gather or reduce-scatter of `size` bytes: size · (r − 1)/r over the bus bandwidth.

    A ring crosses from machine to machine once for each adapter, so the bus is the slower of a GPU's link
    and a machine's whole network.
    """
    s = setup.job.settings
    if s.ranks == 1:
        return 0.0
    bus = setup.gpu.link if s.ranks <= s.ranks_per_node else min(setup.gpu.link, setup.gpu.network)
    return size * (s.ranks - 1) / s.ranks / (bus * setup.assume.network_efficiency)


def dealt(setup: Setup, shape: Shape, responses: int) -> tuple[int, float]:
    """Micro-batches of the rank that has most, and the slowest rank over the mean: dealt as `scaled.balance` deals."""
    s, limit = setup.job.settings, setup.job.config.max_new_tokens
    lengths = response_lengths(limit, setup.assume.response_share, responses)
    totals = [setup.assume.prompt_tokens + x for x in lengths]
    costs = [forward_flops(shape, x, x * x) for x in totals]
    groups = s.ranks // s.sequence_parallel
    owner = deal(costs, setup.job.config.mini_batch, groups)
    parts: list[list[int]] = [[] for _ in range(groups)]
    for total, group in zip(totals, owner, strict=True):
        parts[group].append(total)
    budget = s.token_budget * s.sequence_parallel
    return max(len(cut(part, budget)) for part in parts), imbalance(costs, owner, groups)


def pass_flops(setup: Setup, shape: Shape, work: Load, backward: bool) -> float:
    """FLOPs of passes over a rollout, on all ranks.

    A backward pass is two forward passes, and one more where layers are recomputed, up to the last tensor that
    they had to keep: without the last product. Logits are always computed anew, chunk by chunk.
    """
    # A mask keeps the attention kernel from skipping what it masks: the whole square of the micro-batch.
    masked = setup.attention in ("sdpa", "eager")
    squares = 2 * work.tokens * setup.micro_tokens if masked else work.squares
    forward = forward_flops(shape, work.tokens, squares)
    if not backward:
        return forward
    head = 2.0 * shape.head_parameters * work.tokens
    again = head if shape.vocab > 1 else 0.0
    if setup.job.settings.activation_checkpointing:
        last = 2.0 * shape.layers * shape.hidden * shape.intermediate * work.tokens
        again += forward - head - last
    return 3 * forward + again


def trade_seconds(setup: Setup, shape: Shape, tokens: float, passes: int) -> float:
    """Seconds in which Ulysses trades queries, keys, values and outputs, with `tokens` over all ranks."""
    s = setup.job.settings
    if s.sequence_parallel == 1:
        return 0.0
    heads = 2 * shape.heads + 2 * max(shape.kv_heads, s.sequence_parallel)
    sent = shape.layers * heads * shape.head_dim * setup.width * tokens / s.ranks
    bus = setup.gpu.link if s.sequence_parallel <= s.ranks_per_node else min(setup.gpu.link, setup.gpu.network)
    leaving = (s.sequence_parallel - 1) / s.sequence_parallel
    return passes * sent * leaving / (bus * setup.assume.network_efficiency)


def pass_seconds(setup: Setup, shape: Shape, work: Load, backward: bool) -> float:
    """Seconds of passes over a rollout, on the slowest rank.

    ZeRO-3 gathers all weights for a forward pass and again for a backward one, and scatters gradients; ZeRO-2
    scatters gradients alone.
    """
    s, a, c = setup.job.settings, setup.assume, setup.job.config
    steps = c.batch_size // c.mini_batch if backward else 1
    count, unequal = dealt(setup, shape, work.responses // steps)
    flops = pass_flops(setup, shape, work, backward)
    compute = flops / s.ranks / (setup.gpu.flops * a.learner_efficiency) * unequal
    passes = 1 if not backward else 3 if s.activation_checkpointing else 2
    compute += trade_seconds(setup, shape, work.tokens, passes) * unequal
    gathers = (2 if backward else 1) if s.zero_stage == 3 else 0
    moved = shape.parameters * (gathers * setup.width + (4 if backward else 0))
    wires = steps * count * collective_seconds(setup, moved)
    return compute + max(wires * (1 - a.overlap), wires - compute)


def optimizer_seconds(setup: Setup, shape: Shape) -> float:
    """Seconds of one optimizer step: Adam reads and writes 30 bytes per weight; ZeRO-2 gathers the new weights."""
    s = setup.job.settings
    share = shape.parameters / s.ranks
    if s.offload_optimizer:
        ranks_here = min(s.ranks, s.ranks_per_node)
        seconds = 30 * share * ranks_here / setup.gpu.host_bandwidth + 2 * setup.width * share / setup.gpu.host_link
    else:
        seconds = 30 * share / (setup.gpu.bandwidth * setup.assume.sampler_bandwidth)
    gather = collective_seconds(setup, setup.width * shape.parameters) if s.zero_stage == 2 else 0.0
    return seconds + gather


def times(setup: Setup) -> dict[str, float]:
    """Seconds of each phase of one step."""
    c = setup.job.config
    work = load(setup, c.batch_size, c.group_size)
    rounds = 1 + setup.assume.dynamic_rounds * c.dynamic_sampling
    steps = c.batch_size / c.mini_batch
    result = {"sample": rounds * sampling(setup, work).seconds}
    forward = sum(pass_seconds(setup, shape, work, False) for _, shape in setup.learners)
    result["forward"] = forward + (pass_seconds(setup, setup.actor, work, False) if c.kl_coef > 0 else 0.0)
    for owner, shape in setup.learners:
        one = pass_seconds(setup, shape, work, True) + steps * optimizer_seconds(setup, shape)
        result[f"{owner} update"] = one * (c.epochs if owner == "actor" else c.critic_epochs)
    result["sync"] = collective_seconds(setup, setup.width * setup.actor.parameters) + setup.assume.switch_seconds
    return result


def whole_run(setup: Setup, step: dict[str, float]) -> dict[str, float]:
    """Seconds of the run by what they are spent on: pretraining of the critic, steps, evaluations."""
    c = setup.job.config
    result = {"steps": c.steps * sum(step.values())}
    if setup.critic:
        rollouts = c.value_pretrain_steps + (c.reward_model_steps if c.critic_init == "reward-model" else 0)
        one = sampling(setup, load(setup, c.batch_size, c.group_size)).seconds + step["critic update"]
        one += pass_seconds(setup, setup.critic, load(setup, c.batch_size, c.group_size), False)
        result["value-pretraining"] = rollouts * one
    every = evaluation_interval(c.eval_every, c.steps, c.eval_problems * c.eval_samples / c.batch_size)
    evaluations = 1 + -(-c.steps // every)
    tested = load(setup, c.eval_problems * c.eval_samples, c.eval_samples)
    result["evaluations"] = evaluations * sampling(setup, tested).seconds
    # Not oftener than after each step, nor so often that saving takes more than its share: see `SaveTimer`.
    between = max(sum(step.values()), save_seconds(setup) * (1 / SAVING_SHARE - 1))
    result["saving"] = sum(result.values()) / between * save_seconds(setup)
    return result


def save_seconds(setup: Setup) -> float:
    """Seconds of saving a checkpoint: it is written, and read again from memory for its checksums, by all ranks."""
    size = checkpoint_bytes(setup)
    return size / setup.assume.storage + size / setup.job.settings.ranks / HASHING
