"""The plan of a run: memory, time, whether it fits, and what to change if it does not.

It is an upper estimate for memory (every response may be as long as the limit allows) and a middle one for time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scaled.config import Job, check_heads, check_ranks, shares_heads
from scaled.planning.hardware import GPUS, Gpu, gib
from scaled.planning.memory import (
    Phase,
    checkpoint_bytes,
    host_memory,
    kv_pool,
    kv_token_bytes,
    phases,
    sampler_weights,
)
from scaled.planning.setup import Assumptions, Setup, make_setup
from scaled.planning.shapes import KNOWN, shape_of
from scaled.planning.time import Sampling, load, sampling, save_seconds, times, whole_run

ERRORS = {
    "memory at rest": (-1, 1),
    "memory at peak": (-1, 12),
    "memory of any phase": (-9, 12),
    "FLOPs": (-1, 1),
}
"""(plan − measured) / measured in percent, least and most, of `benchmarks/plan_check.csv`; a test compares them."""

# ---------------------------------------------------------------------------------------------------------
# The plan
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The answer: does it fit, what does it need, how long does it take."""

    setup: Setup
    phases: tuple[Phase, ...]
    host: float
    """Bytes of CPU memory for each machine."""
    step: dict[str, float]
    """Seconds of each phase of one step."""
    run: dict[str, float]
    """Seconds of each part of the run."""
    sampling: Sampling
    reasons: tuple[str, ...]
    """Why it does not fit; empty if it does."""
    suggestions: tuple[str, ...]
    """What to change; filled only if it does not fit."""

    @property
    def fits(self) -> bool:
        """True if every phase fits the GPU and the machine."""
        return not self.reasons

    @property
    def peak(self) -> Phase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers (bytes and seconds) for JSON."""
        return {
            "model": self.setup.job.model,
            "gpu": self.setup.gpu.name,
            "settings": dataclasses.asdict(self.setup.job.settings),
            "assumptions": dataclasses.asdict(self.setup.assume),
            "parameters": {owner: shape.parameters for owner, shape in self.setup.learners},
            "capacity_bytes": self.setup.gpu.memory,
            "memory_bytes": {
                phase.name: {f"{owner}/{part}": round(x) for (owner, part), x in phase.parts.items()}
                for phase in self.phases
            },
            "peak_bytes": {phase.name: round(phase.total) for phase in self.phases},
            "host_bytes": round(self.host),
            "checkpoint_bytes": round(checkpoint_bytes(self.setup)),
            "save_seconds": save_seconds(self.setup),
            "step_seconds": self.step,
            "run_seconds": self.run,
            "sampler": dataclasses.asdict(self.sampling),
            "fits": self.fits,
            "reasons": list(self.reasons),
            "suggestions": list(self.suggestions),
            "error_percent": ERRORS,
        }


def plan(job: Job, gpu: str | Gpu = "h100-80", assume: Assumptions | None = None) -> Plan:
    """Plans a run; see the module's docstring.

    Args:
        job: from `scaled.config.read_job`; `job.settings.ranks` GPUs are planned for.
        gpu: a key of GPUS, or a Gpu, for example of `this_gpu`.
        assume: what cannot be known before the run.

    Raises:
        UserError: unknown GPU or model, or the job does not divide over its ranks.
    """
    return plan_setup(make_setup(job, gpu, assume))


def plan_setup(setup: Setup, suggest: bool = True) -> Plan:
    """Plans what `make_setup` resolved."""
    check_ranks(setup.job, setup.job.settings.ranks)
    for _, shape in setup.learners:
        check_heads(setup.job.settings.sequence_parallel, shape.heads, shape.kv_heads, shape.name)
    found, host = phases(setup), host_memory(setup)
    step = times(setup)
    why = tuple(reasons(setup, found, host))
    work = load(setup, setup.job.config.batch_size, setup.job.config.group_size)
    advice = tuple(suggestions(setup)) if why and suggest else ()
    return Plan(setup, tuple(found), host, step, whole_run(setup, step), sampling(setup, work), why, advice)


def reasons(setup: Setup, found: Sequence[Phase], host: float) -> Iterator[str]:
    """One line for everything that does not fit."""
    for phase in found:
        if phase.total > setup.gpu.memory:
            (owner, part), x = max(phase.parts.items(), key=lambda item: item[1])
            yield (
                f"{phase.name} needs {gib(phase.total)} GiB of {gib(setup.gpu.memory)} on each GPU "
                f"(largest: {owner} {part}, {gib(x)} GiB)."
            )
    need = kv_token_bytes(setup) * setup.longest
    if kv_pool(setup) < need:
        yield (
            f"vLLM's share of {gib(setup.job.settings.sampler_memory * setup.gpu.memory)} GiB does not hold its "
            f"weights ({gib(sampler_weights(setup))} GiB), buffers and the KV cache of one longest response "
            f"({setup.longest} tokens, {gib(need)} GiB)."
        )
    if host > setup.gpu.host_memory:
        yield f"CPU memory: {gib(host)} GiB needed on each machine, {gib(setup.gpu.host_memory)} GiB there."


# ---------------------------------------------------------------------------------------------------------
# What to change
# ---------------------------------------------------------------------------------------------------------


def suggestions(setup: Setup) -> Iterator[str]:
    """Changes tried one by one, and then together until the plan fits; each line says what it achieves."""
    singles = [(text, s) for text, s in changes(setup) if fit(s)]
    for text, changed in singles:
        yield f"{text}: fits, {needs(changed)}."
    if singles:
        return
    # What costs least time comes first; what does not help is left out.
    current, used = setup, list[str]()
    for _ in range(12):
        best = next(((t, s) for t, s in changes(current) if improves(s, current)), None)
        if best is None:
            break
        text, current = best
        used.append(text)
        if fit(current):
            yield f"together: {'; '.join(used)}: fits, {needs(current)}."
            return
    yield (
        f"no combination of settings fits {setup.job.settings.ranks} × {setup.gpu.name}: "
        "take more or larger GPUs, or a smaller model."
    )


def changes(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Every change worth trying, cheapest in time first, as (words, changed setup)."""
    s, c = setup.job.settings, setup.job.config

    def with_settings(text: str, **fields: Any) -> tuple[str, Setup]:
        job = dataclasses.replace(setup.job, settings=dataclasses.replace(s, **fields))
        return text, dataclasses.replace(setup, job=job)

    if not s.sampler_sleep:
        yield with_settings("sampler_sleep: true", sampler_sleep=True)
    if not s.activation_checkpointing:
        yield with_settings("activation_checkpointing: true", activation_checkpointing=True)
    if s.zero_stage == 2 and s.ranks > 1:
        yield with_settings("zero_stage: 3", zero_stage=3)
    if s.dtype == "float32":
        yield with_settings("dtype: bfloat16", dtype="bfloat16")
    if s.logits_chunk > 256:
        yield with_settings(f"logits_chunk: {s.logits_chunk // 2}", logits_chunk=s.logits_chunk // 2)
    if s.token_budget > setup.longest_share:
        smaller = max(s.token_budget // 2, setup.longest_share)
        yield with_settings(f"token_budget: {smaller}", token_budget=smaller)
    sharing = 2 * s.sequence_parallel
    divides = s.ranks % sharing == 0 and sharing <= s.ranks_per_node and s.attention in ("auto", "varlen", "sdpa")
    if divides and all(shares_heads(sharing, shape.heads, shape.kv_heads) for _, shape in setup.learners):
        smaller = min(s.token_budget, -(-setup.longest // sharing))
        text = f"sequence_parallel: {sharing} and token_budget: {smaller}"
        yield with_settings(text, sequence_parallel=sharing, token_budget=smaller)
    yield from sampler_changes(setup, with_settings)
    yield with_settings("offload_optimizer: true", offload_optimizer=True)
    for factor in (2, 4, 8):
        ranks = s.ranks * factor
        if c.mini_batch % ranks == 0 and c.prompts_per_step % ranks == 0:
            yield with_settings(f"ranks: {ranks}", ranks=ranks)
    if c.max_new_tokens > 1024:
        shorter = dataclasses.replace(c, max_new_tokens=c.max_new_tokens // 2)
        job = dataclasses.replace(setup.job, config=shorter)
        yield f"max_new_tokens: {shorter.max_new_tokens}", dataclasses.replace(setup, job=job)
    if setup.critic:
        names = [n for n in KNOWN if shape_of(n, "critic").parameters < setup.critic.parameters]
        for name in reversed(names):
            smaller_critic = dataclasses.replace(setup, critic=shape_of(name, "critic"))
            yield f"critic: Qwen/{name} (smaller than the actor)", smaller_critic
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.memory):
        if gpu.memory > setup.gpu.memory * 1.1:
            yield f"GPUs with more memory ({gpu.name})", dataclasses.replace(setup, gpu=gpu)


def sampler_changes(setup: Setup, with_settings: Any) -> Iterator[tuple[str, Setup]]:
    """Another share for vLLM, so large as the learners leave, and larger tensor-parallel groups."""
    s = setup.job.settings
    learner = sum(x for (owner, _), x in phases(setup)[0].parts.items() if owner != "vllm")
    free = math.floor(100 * (1 - learner / setup.gpu.memory)) / 100
    if 0 < free < 1 and free != s.sampler_memory:
        yield with_settings(f"sampler_memory: {free}", sampler_memory=free)
    for tp in (2 * s.tensor_parallel, 4 * s.tensor_parallel):
        if tp <= s.ranks_per_node and s.ranks % tp == 0 and setup.actor.heads % tp == 0:
            yield with_settings(f"tensor_parallel: {tp}", tensor_parallel=tp)
            if 0 < free < 1 and free != s.sampler_memory:
                both = f"tensor_parallel: {tp} and sampler_memory: {free}"
                yield with_settings(both, tensor_parallel=tp, sampler_memory=free)


def fit(setup: Setup) -> bool:
    """True if the plan of this setup fits."""
    return not any(True for _ in reasons(setup, phases(setup), host_memory(setup)))


def needs(setup: Setup) -> str:
    """Memory of a GPU, and of a machine, in words."""
    worst = max(phase.total for phase in phases(setup))
    return f"{gib(worst)} GiB at peak, {gib(host_memory(setup))} GiB of CPU memory per machine"


def shortfall(setup: Setup) -> float:
    """Bytes missing, over all phases, vLLM's cache and the machine's memory; 0 if it fits."""
    over = sum(max(0.0, phase.total - setup.gpu.memory) for phase in phases(setup))
    cache = max(0.0, kv_token_bytes(setup) * setup.longest - kv_pool(setup))
    return over + cache + max(0.0, host_memory(setup) - setup.gpu.host_memory)


def improves(changed: Setup, current: Setup) -> bool:
    """True if at least a tenth of what is missing is won, so that no useless change is recommended."""
    return shortfall(changed) < 0.9 * shortfall(current)
