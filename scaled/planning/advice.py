"""What a run needs before it is paid for: memory for each GPU by part and phase, and time.

    python -m scaled.plan scaled/configs/qwen2.5-32b-64gpu.yaml
    python -m scaled.plan scaled/configs/qwen2.5-7b-8gpu.yaml --gpu a100-80 --token-budget 8192

The formulas are in `scaled.planning.costs`; `benchmarks/plan_check.py` holds them against measurement. The plan is an
upper estimate for memory (every response may be as long as the limit allows) and a middle one for time.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minivapo.interfaces import UserError
from minivapo.loading import locate
from scaled.config import Job, check_heads, check_ranks, read_job, shares_heads
from scaled.planning.costs import (
    GIB,
    GPUS,
    Assumptions,
    Gpu,
    Phase,
    Sampling,
    Setup,
    host_memory,
    kv_pool,
    kv_token_bytes,
    load,
    phases,
    sampler_weights,
    sampling,
    times,
    whole_run,
)
from scaled.planning.shapes import KNOWN, shape_of

ERRORS = {
    "memory at rest": (-1, 1),
    "memory at the worst moment": (-1, 12),
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
            "step_seconds": self.step,
            "run_seconds": self.run,
            "sampler": dataclasses.asdict(self.sampling),
            "fits": self.fits,
            "reasons": list(self.reasons),
            "suggestions": list(self.suggestions),
            "error_percent": ERRORS,
        }


def make_setup(job: Job, gpu: str | Gpu = "h100-80", assume: Assumptions | None = None) -> Setup:
    """Resolves names into numbers; counts both networks on the meta device.

    Raises:
        UserError: unknown GPU or model.
    """
    if assume is None and not isinstance(gpu, str):  # this machine: what it has is known
        from transformers.utils import is_flash_attn_2_available

        assume = Assumptions(flash_attention=bool(is_flash_attn_2_available()))
    assume = assume or Assumptions()
    if isinstance(gpu, str):
        if gpu not in GPUS:
            raise UserError(f"unknown GPU '{gpu}'; known are {', '.join(GPUS)}.")
        gpu = GPUS[gpu]
    model = model_folder(job.model, job.task)
    critic = None
    if job.config.advantage == "gae":
        saved = job.config.critic_init not in ("policy", "reward-model")
        critic = shape_of(str(locate(job.critic or (job.config.critic_init if saved else model), "critic")), "critic")
    return Setup(job, shape_of(model, "actor"), critic, gpu, assume)


def model_folder(model: str, task: str) -> str:
    """The model's name or folder, that of a run folder's actor; without one, the task's embedded base."""
    from minivapo.tasks import default_model

    return str(locate(model, "actor")) if model else default_model(task)


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
        yield f"{text}: fits, {gib(worst(changed))} GiB at the worst moment."
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
            yield f"together: {'; '.join(used)}: fits, {gib(worst(current))} GiB at the worst moment."
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
    divides = s.ranks % sharing == 0 and sharing <= s.ranks_per_node and s.attention in ("auto", "sdpa")
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
        shorter = dataclasses.replace(
            c, max_new_tokens=c.max_new_tokens // 2, overlong_buffer=min(c.overlong_buffer, c.max_new_tokens // 2 - 1)
        )
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


def worst(setup: Setup) -> float:
    """Bytes of the worst phase."""
    return max(phase.total for phase in phases(setup))


def shortfall(setup: Setup) -> float:
    """Bytes missing, over all phases, vLLM's cache and the machine's memory; 0 if it fits."""
    over = sum(max(0.0, phase.total - setup.gpu.memory) for phase in phases(setup))
    cache = max(0.0, kv_token_bytes(setup) * setup.longest - kv_pool(setup))
    return over + cache + max(0.0, host_memory(setup) - setup.gpu.host_memory)


def improves(changed: Setup, current: Setup) -> bool:
    """True if at least a tenth of what is missing is won, so that no useless change is recommended."""
    return shortfall(changed) < 0.9 * shortfall(current)


def this_gpu() -> Gpu | None:
    """The GPU of this process and its machine, with speeds of the nearest known kind; None without a GPU."""
    import os

    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    name = properties.name.lower().replace(" ", "")
    nearest = min(
        GPUS.values(),
        key=lambda gpu: (gpu.name.partition("-")[0] not in name, abs(gpu.memory - properties.total_memory)),
    )
    host = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return dataclasses.replace(nearest, name=properties.name, memory=float(properties.total_memory), host_memory=host)


# ---------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------


def gib(x: float) -> str:
    """Bytes as GiB with one decimal; two below one."""
    return f"{x / GIB:.2f}" if x < GIB else f"{x / GIB:.1f}"


def duration(seconds: float) -> str:
    """Seconds in words: 41 s, 12 min, 3.4 h, 6.1 days."""
    for unit, size, below in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < below:
            return f"{seconds / size:.{0 if unit == 's' and seconds >= 10 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def memory_rows(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the memory table: parts down, phases across, GiB."""
    keys = list(dict.fromkeys(key for phase in plan.phases for key in phase.parts))
    order = ["actor", "critic", "reference", "vllm", "gpu"]
    keys.sort(key=lambda key: order.index(key[0]))
    rows = []
    for owner, part in keys:
        cells = [phase.parts.get((owner, part), 0.0) for phase in plan.phases]
        rows.append([owner, part, *(gib(x) if x else "" for x in cells)])
    rows.append(["", "total", *(gib(phase.total) for phase in plan.phases)])
    return ["", "GiB on each GPU", *(phase.name for phase in plan.phases)], rows


def time_rows(plan: Plan) -> list[list[str]]:
    """Rows of the time table: phase, seconds, share of a step; then the run."""
    total = sum(plan.step.values())
    rows = [[name, duration(x), f"{x / total:.0%}"] for name, x in plan.step.items()]
    rows.append(["one step", duration(total), "100%"])
    run = sum(plan.run.values())
    rows += [[f"run: {name}", duration(x), f"{x / run:.0%}"] for name, x in plan.run.items()]
    hours = run / 3600 * plan.setup.job.settings.ranks
    rows.append(["whole run", duration(run), f"{hours:,.0f} GPU-hours"])
    return rows


def headline(plan: Plan) -> str:
    """The run in one paragraph."""
    setup, s, c = plan.setup, plan.setup.job.settings, plan.setup.job.config
    critic = f", critic {setup.critic.parameters / 1e9:.2f} B weights" if setup.critic else ", no critic"
    shared = f", rows shared by {s.sequence_parallel} GPUs" if s.sequence_parallel > 1 else ""
    return (
        f"{setup.job.model or setup.actor.name} ({setup.job.preset}): actor {setup.actor.parameters / 1e9:.2f} B "
        f"weights{critic}; "
        f"{s.ranks} × {setup.gpu.name}, ZeRO-{s.zero_stage}, {s.dtype}"
        f"{', optimizer in CPU memory' if s.offload_optimizer else ''}, "
        f"{'activation checkpointing, ' if s.activation_checkpointing else ''}micro-batches of at most "
        f"{setup.micro_tokens:,} tokens{shared}; vLLM on {s.tensor_parallel} GPU(s) each, {plan.sampling.slots} "
        f"responses at once ({plan.sampling.idle:.0%} of their slots idle behind the longest); {c.batch_size:,} "
        f"responses of at most {c.max_new_tokens:,} tokens "
        f"(mean {setup.assume.response_share * c.max_new_tokens:,.0f} assumed) a step."
    )


def verdict(plan: Plan) -> list[str]:
    """Fits or not, why, and what to change."""
    peak = plan.peak
    room = plan.setup.gpu.memory - peak.total
    host = f"CPU memory: {gib(plan.host)} GiB a machine"
    if plan.fits:
        return [
            f"fits: {gib(peak.total)} of {gib(plan.setup.gpu.memory)} GiB at the worst moment ({peak.name}), "
            f"{gib(room)} GiB to spare. {host}."
        ]
    return ["does not fit.", *(f"- {r}" for r in plan.reasons), "change:", *(f"- {x}" for x in plan.suggestions)]


def checked() -> str:
    """One line: how far the plan was from measurement."""
    found = ", ".join(f"{name} {low:+d} to {high:+d} %" for name, (low, high) in ERRORS.items())
    return f"error against small real engines on CPUs (docs/plan-32b.md): {found}; seconds were never measured."


def show(plan: Plan) -> None:
    """Prints the plan with rich."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(headline(plan), highlight=False)
    header, rows = memory_rows(plan)
    table = Table(title=f"Memory, GiB on each GPU of {gib(plan.setup.gpu.memory)}")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i > 1 else "left")
    for i, row in enumerate(rows):
        table.add_row(*row, end_section=i + 2 >= len(rows), style="bold" if i + 1 == len(rows) else "")
    console.print(table)
    table = Table("phase", "time", "share", title="Time")
    for row in time_rows(plan):
        table.add_row(*row)
    console.print(table)
    console.print("\n".join(verdict(plan)), highlight=False, style="green" if plan.fits else "red")
    console.print(checked(), highlight=False)


@dataclass(frozen=True)
class Arguments:
    """Plan a scaled run. Keys of the config are overridden as in scaled.train: --token-budget 8192."""

    gpu: str = "h100-80"
    """Kind of GPU: a100-80, h100-80, h200-141, rtx4080-16 or rtx4090-24."""
    format: Literal["table", "json", "markdown"] = "table"
    """How to print."""
    assume: Assumptions = dataclasses.field(default_factory=Assumptions)


def markdown(plan: Plan) -> str:
    """The plan as Markdown tables, for the documentation."""
    header, rows = memory_rows(plan)
    lines = [headline(plan), "", "| " + " | ".join(header) + " |", "|---" * 2 + "|--:" * (len(header) - 2) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "| phase | time | share |", "|---|--:|--:|"]
    lines += ["| " + " | ".join(row) + " |" for row in time_rows(plan)]
    return "\n".join([*lines, "", *verdict(plan), "", checked()])


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m scaled.plan CONFIG`: 0 if it fits, 1 if not, 2 if the question is wrong."""
    import tyro

    words = list(sys.argv[1:] if argv is None else argv)
    path = words.pop(0) if words and not words[0].startswith("-") else None
    args, rest = tyro.cli(
        tyro.conf.configure(tyro.conf.OmitArgPrefixes)(Arguments),
        args=words,
        prog="python -m scaled.plan CONFIG",
        return_unknown_args=True,
    )
    try:
        if path is None:
            raise UserError("name a config file: python -m scaled.plan scaled/configs/qwen2.5-7b-8gpu.yaml")
        result = plan(read_job(path, rest), args.gpu, args.assume)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.format == "json":
        print(json.dumps(result.to_dict(), indent=1))
    elif args.format == "markdown":
        print(markdown(result))
    else:
        show(result)
    return 0 if result.fits else 1


if __name__ == "__main__":
    raise SystemExit(main())
